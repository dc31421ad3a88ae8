"""Where the pages are while a round goes on: what it has sent, what it has not, what is dirty anew.

One small record for whoever looks on, however large the memory is: cells of a power of two of
bytes, at most `CELLS` of them and one per VMA. What a scan found is an ascending array that is sent
from its beginning on, so that a few searches count a cell; only what was written since the scan is
read page by page, by the tracker, in compiled code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mm_model import Vma
from source_node.tracker import DirtyVma, RoundScan

U64 = NDArray[np.uint64]

CELLS = 1024
MOST_VMAS = 256
"""Of more mappings, the largest are shown."""


@dataclass(slots=True)
class LiveRound:
    """The round under way.

    One thread gathers batches in the order of the scan, the event loop sends them, and whoever
    looks on may read at any time.
    """

    number: int
    final: bool
    scan: RoundScan
    sent: Counter[int] = field(default_factory=Counter)  # pages by process, from the lowest on
    bytes_wire: int = 0
    over: bool = False
    _coming: dict[int, tuple[int, int]] = field(default_factory=dict)  # by sequence: process, pages
    _gone: Counter[int] = field(default_factory=Counter)  # pages that were not there any more

    def skipped(self, pid: int, pages: int) -> None:
        """A batch of which nothing was left when it was gathered."""
        self._gone[pid] += pages

    def gathered(self, sequence: int, pid: int, pages: int) -> None:
        """A batch will go out in a frame."""
        self._coming[sequence] = pid, pages + self._gone.pop(pid, 0)

    def went(self, sequence: int, length: int) -> None:
        """A frame went out."""
        self.bytes_wire += length
        pid, pages = self._coming.pop(sequence, (0, 0))
        self.sent[pid] += pages

    def at_rest(self, page_size: int) -> list[DirtyVma]:
        """The mappings as the scan saw them, of a task that does not run and so writes nothing."""
        return [
            DirtyVma(process.space.pid, vma, np.zeros((vma.end - vma.start) // page_size, np.bool_))
            for process in self.scan.processes
            for vma in process.space.vmas
        ]

    def cells(self, now: Sequence[DirtyVma], page_size: int) -> dict[str, object]:
        """`vmas` of the record (docs/telemetry.md), with how many there are beside them."""
        shown = sorted(now, key=lambda m: m.vma.start - m.vma.end)[:MOST_VMAS]
        shown.sort(key=lambda m: (m.pid, m.vma.start))
        cell_bytes = _cell_bytes([m.vma for m in shown], page_size)
        send = {process.space.pid: process.send for process in self.scan.processes}
        every = sum(pages.size for pages in send.values())
        went = dict(self.sent)  # as it is now, for all that is said here
        if self.over:
            went = {pid: pages.size for pid, pages in send.items()}
        sent = sum(went.values())
        none = np.zeros(0, np.uint64)
        return {
            "cell_bytes": cell_bytes,
            "vmas": [
                _vma(m, send.get(m.pid, none), went.get(m.pid, 0), cell_bytes, page_size)
                for m in shown
            ],
            "vmas_left_out": len(now) - len(shown),
            "pages_soft_dirty": sum(int(np.count_nonzero(m.dirty)) for m in now),
            "pages_sent": sent,
            "pages_pending": every - sent,
        }


def _vma(m: DirtyVma, send: U64, went: int, cell_bytes: int, page_size: int) -> dict[str, object]:
    """Counts of one mapping by cell; the first `went` pages of `send` are sent."""
    edges = np.arange(m.vma.start, m.vma.end + cell_bytes, cell_bytes, dtype=np.uint64)
    edges[-1] = m.vma.end
    at = np.searchsorted(send, edges)
    sent = np.minimum(at, went)
    first = np.arange(0, m.dirty.size, cell_bytes // page_size)
    dirty = np.add.reduceat(m.dirty, first, dtype=np.int64)
    return {
        "pid": m.pid,
        "start": f"{m.vma.start:#x}",
        "end": f"{m.vma.end:#x}",
        "name": m.vma.name,
        "prot": m.vma.prot,
        "flags": m.vma.flags,
        "soft_dirty": dirty.tolist(),
        "sent": np.diff(sent).tolist(),
        "pending": (np.diff(at) - np.diff(sent)).tolist(),
    }


def _cell_bytes(vmas: Sequence[Vma], page_size: int) -> int:
    """The smallest power of two that makes no more than `CELLS` and one per VMA."""
    mapped = sum(vma.end - vma.start for vma in vmas)
    return max(page_size, 1 << ((max(mapped, 1) - 1) // CELLS).bit_length())
