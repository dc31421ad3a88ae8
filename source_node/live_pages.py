"""Where the pages are while a round goes on: what it has sent, what it has not, what is dirty anew.

One small record for whoever looks on, however large the memory is: cells of a power of two of
bytes, at most `CELLS` of them and one per VMA. What a scan found is an ascending array that is sent
from its beginning on, so that a few searches count a cell; only what was written since the scan is
read page by page, by the tracker, in compiled code.

Pages that come after the task went on (post-copy) are pending until the destination has asked for
them; pages that differ in the end are counted by cell as well, since a list of them is cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mm_model import Vma
from source_node.page_server import PageServer
from source_node.tracker import DirtyVma, RoundScan

U64 = NDArray[np.uint64]
_NO_PAGES = np.zeros(0, np.uint64)

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
    later: PageServer | None = None  # has the pages that come when the task runs again
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

    def cells(
        self,
        now: Sequence[DirtyVma],
        page_size: int,
        different: Mapping[int, U64] = MappingProxyType({}),
    ) -> dict[str, object]:
        """`vmas` of the record (docs/telemetry.md), with how many there are beside them.

        `different`: pages that differ at the destination, by process, ascending.
        """
        shown = sorted(now, key=lambda m: m.vma.start - m.vma.end)[:MOST_VMAS]
        shown.sort(key=lambda m: (m.pid, m.vma.start))
        cell_bytes = _cell_bytes([m.vma for m in shown], page_size)
        send = {process.space.pid: process.send for process in self.scan.processes}
        every = sum(pages.size for pages in send.values())
        went = dict(self.sent)  # as it is now, for all that is said here
        if self.over:
            went = {pid: pages.size for pid, pages in send.items()}
        lazy: Mapping[int, U64] = {}
        asked: Mapping[int, NDArray[np.bool_]] = {}
        if self.later is not None:
            lazy = self.later.lazy
            asked = {pid: there.copy() for pid, there in dict(self.later.asked).items()}
        every += sum(pages.size for pages in lazy.values())
        sent = sum(went.values()) + sum(int(np.count_nonzero(a)) for a in asked.values())
        vmas = []
        for m in shown:
            edges = _edges(m.vma, cell_bytes)
            at = np.searchsorted(send.get(m.pid, _NO_PAGES), edges)
            by_cell = np.diff(np.minimum(at, went.get(m.pid, 0)))
            pending = np.diff(at) - by_cell
            if m.pid in lazy:
                come, missing = _later(lazy[m.pid], asked.get(m.pid), edges)
                by_cell, pending = by_cell + come, pending + missing
            vma = _vma(m, by_cell, pending, cell_bytes // page_size)
            if different:
                wrong = np.searchsorted(different.get(m.pid, _NO_PAGES), edges)
                vma["different"] = np.diff(wrong).tolist()
            vmas.append(vma)
        return {
            "cell_bytes": cell_bytes,
            "vmas": vmas,
            "vmas_left_out": len(now) - len(shown),
            "pages_soft_dirty": sum(int(np.count_nonzero(m.dirty)) for m in now),
            "pages_sent": sent,
            "pages_pending": every - sent,
        }


def _edges(vma: Vma, cell_bytes: int) -> U64:
    """Where the cells of a mapping begin, and where the last one ends."""
    edges = np.arange(vma.start, vma.end + cell_bytes, cell_bytes, dtype=np.uint64)
    edges[-1] = vma.end
    return edges


def _later(
    lazy: U64, asked: NDArray[np.bool_] | None, edges: U64
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """By cell, of the pages left behind: how many were asked for, and how many were not."""
    at = np.searchsorted(lazy, edges)
    every = np.diff(at).astype(np.int64)
    if asked is None:
        return np.zeros_like(every), every
    come = _counted(asked, at)
    return come, every - come


def _counted(flags: NDArray[np.bool_], at: NDArray[np.intp]) -> NDArray[np.int64]:
    """How many flags are set from each index to the next. Far faster than `np.add.reduceat`."""
    return np.array(
        [np.count_nonzero(flags[first:end]) for first, end in pairwise(at.tolist())], np.int64
    )


def _vma(
    m: DirtyVma, sent: NDArray[np.int64], pending: NDArray[np.int64], cell_pages: int
) -> dict[str, object]:
    """One mapping, with its counts by cell."""
    dirty = _counted(m.dirty, np.arange(0, m.dirty.size + cell_pages, cell_pages))
    return {
        "pid": m.pid,
        "start": f"{m.vma.start:#x}",
        "end": f"{m.vma.end:#x}",
        "name": m.vma.name,
        "prot": m.vma.prot,
        "flags": m.vma.flags,
        "soft_dirty": dirty.tolist(),
        "sent": sent.tolist(),
        "pending": pending.tolist(),
    }


def _cell_bytes(vmas: Sequence[Vma], page_size: int) -> int:
    """The smallest power of two that makes no more than `CELLS` and one per VMA."""
    mapped = sum(vma.end - vma.start for vma in vmas)
    return max(page_size, 1 << ((max(mapped, 1) - 1) // CELLS).bit_length())
