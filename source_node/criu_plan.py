"""What of a scan goes into which of CRIU's images, page by page.

As a dump orders it (criu/cr-dump.c, criu/shmem.c, criu/mem.c): shared segments first, each once
and whole, since nothing tracks them; then each process with its private pages, sent or left to the
parent. Hugetlb memory is in the final round only, and so are segments unless they are wanted in
every round. Files of the task, and pages that are still a file's own, are nobody's: CRIU leaves
them to the file system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.carried import CarriedImages, carried_naming
from livemigration.criu.page_server.protocol import Target, TargetKind
from livemigration.errors import BadRequest
from livemigration.files import file_numbers
from livemigration.layout import describe, huge_objects
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

    target: what it is called there;
    addresses: uint64[n] ascending, of every page that is alive (of a segment: offsets in it);
    send: bool[n], those whose bytes go; the others are left to the parent;
    named: the process or the object that it is here, if that has another name (-1: the same).
    """

    target: Target
    addresses: U64
    send: Bools
    claims: tuple[Claim, ...] = ()
    named: int = -1

    @property
    def model_id(self) -> int:
        """The process or the object that it is here."""
        return self.target.id if self.named < 0 else self.named

    def all(self) -> Part:
        """The same for a server that has no parent: all bytes go."""
        return replace(self, send=np.ones_like(self.send))

    def look(self, task: Task, addresses: U64) -> tuple[Rows, U64]:
        """Content rows and versions, as they are now, of some of the pages; row 0 or less: gone."""
        page_size = task.machine.page_size
        if self.target.kind is TargetKind.SHARED:
            rows = task.machine.object_frames(self.model_id)
            numbers = (addresses // np.uint64(page_size)).astype(np.int64)
            there = np.zeros(addresses.size, np.int64)
            inside = numbers < rows.size
            there[inside] = rows[numbers[inside]]
            return there, task.machine.phys.version[np.maximum(there, 0)]
        mm = task.processes.get(self.model_id)
        if mm is None:
            return np.zeros(addresses.size, np.int64), np.zeros(addresses.size, np.uint64)
        parts = []
        for piece in near_pieces(addresses, page_size):
            first = int(piece[0])
            index = ((piece - piece[0]) // np.uint64(page_size)).astype(np.int64)
            rows, versions = mm.contents(first, int(index[-1]) + 1)
            parts.append((rows[index], versions[index]))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


@dataclass(frozen=True, slots=True)
class Names:
    """What the model's processes and shared objects are called in images; as here if not named."""

    pids: Mapping[int, int] = field(default_factory=dict)
    shmids: Mapping[int, int] = field(default_factory=dict)

    def process(self, pid: int) -> Target:
        """A process."""
        return Target(TargetKind.PROCESS, self.pids.get(pid, pid))

    def segment(self, object_id: int) -> Target:
        """A shared object."""
        return Target(TargetKind.SHARED, self.shmids.get(object_id, object_id))


def names_of(task: Task, images: CarriedImages | None) -> Names:
    """Those of the images that the task came out of, with which it can be restored.

    Raises BadRequest if they do not describe the task any more.
    """
    if images is None:
        return Names()
    spaces = {
        pid: describe(pid, task.parents[pid], mm) for pid, mm in sorted(task.processes.items())
    }
    if task.files:
        raise BadRequest(
            "the task has open memfds, whose pages are not sent to page servers: export its images"
        )
    naming = carried_naming(task, spaces, images)
    return Names(naming.pids, naming.shmids)


def plan(
    task: Task,
    scan: RoundScan,
    names: Names | None = None,
    *,
    final: bool,
    shared_in_rounds: bool = False,
) -> list[Part]:
    """The images of a round, in the order of sending; `shared_in_rounds`: as the scan was made."""
    names = names or Names()
    files = file_numbers(task)
    huge = huge_objects(process.space for process in scan.processes)
    claims: dict[int, list[Claim]] = {}
    private: list[Part] = []
    for process in scan.processes:
        private.append(_private(process, names, final=final))
        for vma in process.space.vmas:
            early = shared_in_rounds and vma.shared_id not in huge
            left_out = vma.shared_id in files or not (final or early)
            if vma.flags & MAP_SHARED and vma.shared_id and not left_out:
                claims.setdefault(vma.shared_id, []).append(
                    _claim(process, vma, task.machine.page_size)
                )
    shared = [_shared(task, object_id, names, claims[object_id]) for object_id in sorted(claims)]
    return shared + private


def _shared(task: Task, shared_id: int, names: Names, claims: list[Claim]) -> Part:
    page_size = np.uint64(task.machine.page_size)
    pages = np.flatnonzero(task.machine.object_frames(shared_id) > 0).astype(np.uint64)
    return Part(
        names.segment(shared_id),
        pages * page_size,
        np.ones(pages.size, np.bool_),
        tuple(claims),
        shared_id,
    )


def _claim(process: ProcessScan, vma: Vma, page_size: int) -> Claim:
    addresses = _within(process.send, vma)
    offsets = addresses - np.uint64(vma.start) + np.uint64(vma.pgoff * page_size)
    return Claim(process.space.pid, addresses, offsets)


def _private(process: ProcessScan, names: Names, *, final: bool) -> Part:
    live = process.live
    mine = np.ones(live.size, np.bool_)
    for vma in process.space.vmas:
        if vma.flags & MAP_SHARED or (vma.flags & MAP_HUGETLB and not final):
            first, last = np.searchsorted(live, np.array([vma.start, vma.end], np.uint64)).tolist()
            mine[first:last] = False
    live = live[mine]
    send = np.isin(live, process.send, assume_unique=True)
    return Part(names.process(process.space.pid), live, send, named=process.space.pid)


def _within(addresses: U64, vma: Vma) -> U64:
    first, last = np.searchsorted(addresses, np.array([vma.start, vma.end], np.uint64)).tolist()
    return addresses[first:last]
