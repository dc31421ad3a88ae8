"""Rounds of a task in real memory: what to send is what the host's kernel says was written.

The same questions and answers as `source_node.tracker`, for the one mapping of a
`livemigration.host` task. One look at the kernel's flags per scan, and one compiled pass over them
that also judges the kernel by the stamps that the stores left: the task stands still meanwhile.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from livemigration.compiled import compiled
from livemigration.host.memory import host_memory
from livemigration.host.written import THERE, WRITTEN
from livemigration.layout import describe
from livemigration.task import ROOT_PID, Task
from source_node.tracker import NEVER, DirtyVma, ProcessScan, RoundScan

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]

_THERE = np.uint8(THERE)
_WRITTEN = np.uint8(WRITTEN)
_LIVE, _SEND, _DIRTY, _CHANGED, _LOST, _SPURIOUS = range(6)


@compiled
def _judge(
    flags: U8,
    stamps: U64,
    sent: U64,
    everything: bool,
    start: np.uint64,
    page_size: np.uint64,
    live: U64,
    send: U64,
    counts: NDArray[np.int64],
) -> None:
    """Fills ``live`` and ``send`` with page addresses, and ``counts`` with how many of what."""
    for page in range(flags.shape[0]):
        if flags[page] & _THERE == 0:
            continue
        address = start + np.uint64(page) * page_size
        live[counts[_LIVE]] = address
        counts[_LIVE] += 1
        dirty = flags[page] & _WRITTEN != 0
        changed = stamps[page] != sent[page]
        counts[_DIRTY] += dirty
        counts[_CHANGED] += changed
        if everything or dirty:
            send[counts[_SEND]] = address
            counts[_SEND] += 1
            counts[_SPURIOUS] += not changed
        elif changed and not (sent[page] == NEVER and stamps[page] == np.uint64(0)):
            # Zeros where the destination never had a page are what it has there.
            counts[_LOST] += 1


class HostTracker:
    """Scans a task in real memory round by round and remembers what was sent."""

    def __init__(self) -> None:
        self._versions: U64 = np.zeros(0, np.uint64)  # last sent, by page; NEVER: not yet
        self._rounds: NDArray[np.int32] = np.zeros(0, np.int32)
        self._start = np.uint64(0)
        self._page_size = np.uint64(1)

    def scan(self, task: Task, *, first: bool, final: bool = False) -> RoundScan:
        """Asks the kernel of a task at rest; `first` (round 0) sends every page that is there."""
        mm = host_memory(task)
        pages, page_size = mm.pages, mm.machine.page_size
        if self._versions.size != pages:
            self._versions = np.full(pages, NEVER)
            self._rounds = np.full(pages, -1, dtype=np.int32)
            self._start, self._page_size = np.uint64(mm.start), np.uint64(page_size)
        live, send = np.empty(pages, np.uint64), np.empty(pages, np.uint64)
        counts = np.zeros(6, np.int64)
        _judge(
            mm.flags(mm.start, pages),
            mm.machine.stamps,
            self._versions,
            first,
            self._start,
            self._page_size,
            live,
            send,
            counts,
        )
        live, send = live[: counts[_LIVE]], send[: counts[_SEND]]
        space = describe(ROOT_PID, task.parents[ROOT_PID], task.processes[ROOT_PID])
        return RoundScan(
            processes=[ProcessScan(space, live, send, [send] if send.size else [])],
            scanned=pages,
            present=live.size,
            soft_dirty=int(counts[_DIRTY]),
            written=int(counts[_CHANGED]),
            lost=int(counts[_LOST]),
            spurious=int(counts[_SPURIOUS]),
            to_send=send.size,
            skipped=live.size - send.size,
            vmas=len(space.vmas),
        )

    def reset(self, task: Task) -> None:
        """From now on only what is written anew counts; the task must not run meanwhile."""
        host_memory(task).machine.written.reset()

    def stop(self, task: Task) -> None:
        """The task goes on here, and its writes cost no faults any more."""
        host_memory(task).machine.written.stop()

    def count_dirty(self, task: Task) -> int:
        """Pages that a scan would send now; changes nothing (QEMU's exact sync)."""
        mm = host_memory(task)
        flags = mm.flags(mm.start, mm.pages)
        return int(np.count_nonzero(flags == THERE | WRITTEN))

    def written_since(self, task: Task) -> list[DirtyVma]:
        """The mapping, with the pages that were written since the last scan; changes nothing."""
        mm = host_memory(task)
        dirty = mm.flags(mm.start, mm.pages) == THERE | WRITTEN
        space = describe(ROOT_PID, task.parents[ROOT_PID], task.processes[ROOT_PID])
        return [
            DirtyVma(ROOT_PID, vma, dirty[(vma.start - mm.start) // mm.machine.page_size :])
            for vma in space.vmas
            if vma.start == mm.start
        ]

    def note(self, pid: int, addresses: U64, versions: U64, round_number: int) -> None:
        """These pages went out with these stamps."""
        pages = self._numbers(addresses)
        self._versions[pages] = versions
        self._rounds[pages] = round_number

    def last_rounds(self, pid: int, addresses: U64) -> NDArray[np.int32]:
        """The round that last sent each page; -1: never."""
        return self._rounds[self._numbers(addresses)]

    def _numbers(self, addresses: U64) -> NDArray[np.int64]:
        return ((addresses - self._start) // self._page_size).astype(np.int64)

    def note_file(self, number: int, pages: NDArray[np.int64], versions: U64, at: int) -> None:
        """Never called: such a task has no files."""
        raise AssertionError(f"file {number} of a task without files")
