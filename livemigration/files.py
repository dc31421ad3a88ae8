"""The files of a task: which pages have content, and what a host is told of them.

CRIU leaves files to whoever moves the file system: it dumps no page of a file mapping that is still
the file's own, and at the other host the file must be there with the same bytes (criu/mem.c,
should_dump_page; criu/files-reg.c). Here files move with the task, as p.haul moves a container's
file system by rsync around the rounds: a page goes again whenever its bytes are not what was sent
last. Nothing of this rests on soft-dirty, which does not see write(2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from livemigration.errors import DamagedFrame
from livemigration.runs import from_runs, to_runs
from livemigration.task import Task, TaskFile
from livemigration.v1 import common_pb2
from mm_model import MAP_HUGETLB, MAP_SHARED, Machine

U64 = NDArray[np.uint64]

_KINDS = {
    (False, False): common_pb2.OBJECT_KIND_ANONYMOUS,
    (True, False): common_pb2.OBJECT_KIND_TMPFS,
    (True, True): common_pb2.OBJECT_KIND_DISK,
}


def file_pages(machine: Machine, file: TaskFile) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pages of a file that are no holes, as int64[n] numbers and content rows."""
    rows = machine.object_frames(file.object_id)
    pages = _with_content(rows)
    return pages, rows[pages]


def _with_content(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero(rows > 0)


def offsets(pages: NDArray[np.int64], page_size: int) -> U64:
    """Where pages begin in their file, in bytes: what stands for addresses in a frame."""
    return pages.astype(np.uint64) * np.uint64(page_size)


def file_numbers(task: Task) -> dict[int, int]:
    """The objects that are files of the task, with their numbers."""
    return {file.object_id: number for number, file in enumerate(task.files)}


def unmapped_pages(task: Task) -> list[tuple[int, NDArray[np.int64]]]:
    """The shared anonymous memory of a task, with the pages that have content and are not mapped.

    A process may have unmapped a part of it, and mremap may show that part again. (object, numbers)
    of each, in the order in which processes and addresses come to them: the same at both hosts,
    whose objects have other ids. Without files, and hugetlb, whose mappings do not grow.
    """
    files = file_numbers(task)
    left: dict[int, NDArray[np.bool_]] = {}
    for _, mm in sorted(task.processes.items()):
        for vma in mm.vmas():
            number = vma.shared_id
            if not number or number in files or vma.flags & MAP_HUGETLB:
                continue
            if number not in left:
                left[number] = task.machine.object_frames(number) > 0
            if vma.flags & MAP_SHARED:
                length = (vma.end - vma.start) // task.machine.page_size
                left[number][vma.pgoff : vma.pgoff + length] = False
    return [(number, np.flatnonzero(pages)) for number, pages in left.items()]


def describe_file(file: TaskFile, live: NDArray[np.int64]) -> common_pb2.SharedObject:
    """What the other host is told of a file with content at ``live`` (ascending numbers)."""
    starts, counts = to_runs(live.astype(np.uint64), 1)
    return common_pb2.SharedObject(
        id=file.object_id,
        pages=file.pages,
        kind=_KINDS[True, file.on_disk],
        live_start=starts.tolist(),
        live_pages=counts.tolist(),
    )


def describe_shared(machine: Machine, object_id: int, *, huge: bool) -> common_pb2.SharedObject:
    """What the other host is told of shared anonymous memory; of hugetlb memory no pages, since it
    has none of them before the final round."""
    told = common_pb2.SharedObject(id=object_id, pages=machine.shared(object_id).npages)
    if not huge:
        live = _with_content(machine.object_frames(object_id))
        starts, counts = to_runs(live.astype(np.uint64), 1)
        told.live_start.extend(starts.tolist())
        told.live_pages.extend(counts.tolist())
        told.live_told = True
    return told


def drop_holes(machine: Machine, object_id: int, told: common_pb2.SharedObject) -> None:
    """Pages that are holes at the source become holes here; `DamagedFrame` if that cannot be."""
    if len(told.live_start) != len(told.live_pages):
        raise DamagedFrame("the live pages of an object are columns of different lengths")
    if sum(told.live_pages) > told.pages:
        raise DamagedFrame(f"object {told.id} of {told.pages} pages has more live ones")
    starts, counts = np.array(told.live_start, np.uint64), np.array(told.live_pages, np.uint64)
    live = from_runs(starts, counts, 1) if starts.size else starts
    pages = _with_content(machine.object_frames(object_id))
    dead = np.setdiff1d(pages, live.astype(np.int64)).astype(np.uint64)
    for first, count in zip(*(run.tolist() for run in to_runs(dead, 1)), strict=True):
        machine.punch_hole(object_id, first, count)
