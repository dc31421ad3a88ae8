"""What of a scan goes into which of CRIU's images, page by page.

As a dump orders it (criu/cr-dump.c, criu/shmem.c, criu/mem.c): shared segments first, each once
and whole in every round, since soft-dirty does not track them; then each process with its private
pages, sent or left to the parent. Hugetlb memory is in the final round only. Files of the task, and
pages that are still a file's own, are nobody's: CRIU leaves them to the file system.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.page_server.protocol import Target, TargetKind
from livemigration.files import file_numbers
from livemigration.layout import huge_objects
from livemigration.runs import near_pieces
from livemigration.task import Task
from mm_model import MAP_HUGETLB, MAP_SHARED, Vma
from source_node.tracker import ProcessScan, RoundScan

U64 = NDArray[np.uint64]
Rows = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Claim:
    """Pages of a shared segment that a process' scan counts as its own to send."""

    pid: int
    addresses: U64  # in the process
    offsets: U64  # in the segment, in bytes


@dataclass(frozen=True, slots=True)
class Part:
    """One image of a round.

    addresses: uint64[n] ascending, of every page that is alive (of a segment: offsets in it);
    send: bool[n], those whose bytes go. The others are left to the parent.
    """

    target: Target
    addresses: U64
    send: Bools
    claims: tuple[Claim, ...] = ()

    def all(self) -> Part:
        """The same for a server that has no parent: all bytes go."""
        return Part(self.target, self.addresses, np.ones_like(self.send), self.claims)

    def look(self, task: Task, addresses: U64) -> tuple[Rows, U64]:
        """Content rows and versions, as they are now, of some of the pages; row 0 or less: gone."""
        page_size = task.machine.page_size
        if self.target.kind is TargetKind.SHARED:
            rows = task.machine.object_frames(self.target.id)
            numbers = (addresses // np.uint64(page_size)).astype(np.int64)
            there = np.zeros(addresses.size, np.int64)
            inside = numbers < rows.size
            there[inside] = rows[numbers[inside]]
            return there, task.machine.phys.version[np.maximum(there, 0)]
        mm = task.processes.get(self.target.id)
        if mm is None:
            return np.zeros(addresses.size, np.int64), np.zeros(addresses.size, np.uint64)
        parts = []
        for piece in near_pieces(addresses, page_size):
            first = int(piece[0])
            index = ((piece - piece[0]) // np.uint64(page_size)).astype(np.int64)
            rows, versions = mm.contents(first, int(index[-1]) + 1)
            parts.append((rows[index], versions[index]))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def plan(task: Task, scan: RoundScan, *, final: bool) -> list[Part]:
    """The images of a round, in the order of sending."""
    files = file_numbers(task)
    huge = huge_objects(process.space for process in scan.processes)
    claims: dict[int, list[Claim]] = {}
    private: list[Part] = []
    for process in scan.processes:
        private.append(_private(process, final=final))
        for vma in process.space.vmas:
            left_out = vma.shared_id in files or (vma.shared_id in huge and not final)
            if vma.flags & MAP_SHARED and vma.shared_id and not left_out:
                claims.setdefault(vma.shared_id, []).append(
                    _claim(process, vma, task.machine.page_size)
                )
    return [_shared(task, shared_id, claims[shared_id]) for shared_id in sorted(claims)] + private


def _shared(task: Task, shared_id: int, claims: list[Claim]) -> Part:
    page_size = np.uint64(task.machine.page_size)
    pages = np.flatnonzero(task.machine.object_frames(shared_id) > 0).astype(np.uint64)
    return Part(
        Target(TargetKind.SHARED, shared_id),
        pages * page_size,
        np.ones(pages.size, np.bool_),
        tuple(claims),
    )


def _claim(process: ProcessScan, vma: Vma, page_size: int) -> Claim:
    addresses = _within(process.send, vma)
    offsets = addresses - np.uint64(vma.start) + np.uint64(vma.pgoff * page_size)
    return Claim(process.space.pid, addresses, offsets)


def _private(process: ProcessScan, *, final: bool) -> Part:
    live = process.live
    mine = np.ones(live.size, np.bool_)
    for vma in process.space.vmas:
        if vma.flags & MAP_SHARED or (vma.flags & MAP_HUGETLB and not final):
            first, last = np.searchsorted(live, np.array([vma.start, vma.end], np.uint64)).tolist()
            mine[first:last] = False
    live = live[mine]
    send = np.isin(live, process.send, assume_unique=True)
    return Part(Target(TargetKind.PROCESS, process.space.pid), live, send)


def _within(addresses: U64, vma: Vma) -> U64:
    first, last = np.searchsorted(addresses, np.array([vma.start, vma.end], np.uint64)).tolist()
    return addresses[first:last]
