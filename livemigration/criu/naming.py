"""What the model's things are called in images, and the images that lie beside the pages.

A task has two kinds of images beside its pages. Those of a task that came out of images are the
ones it came with (`carried`): registers, files and whatever else the model does not know go
through a migration as they are. Those of a task that the model made are made up as far as CRIU's
tools ask for them (`born`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.magic import VmaStatus
from livemigration.criu.pb.mm_pb2 import VmaEntry
from livemigration.snapshot import dumped
from livemigration.task import Task
from mm_model import MAP_ANONYMOUS, MAP_HUGETLB, MAP_LOCKED, MAP_PRIVATE, Mm, Vma

U64 = NDArray[np.uint64]
Bools = NDArray[np.bool_]

_PIECE_PAGES: Final = 1 << 20
_NEVER_LAZY: Final = VmaStatus.VDSO | VmaStatus.VVAR | VmaStatus.VSYSCALL


@dataclass(frozen=True, slots=True)
class Naming:
    """pids: the model's pid -> the image's; shmids: the model's object -> the segment's id, for
    objects whose pages are in images; images: file name -> content, pages and pagemaps excepted;
    lazy: for each of the model's pids the ranges whose pages may come after a restore.
    """

    pids: Mapping[int, int]
    shmids: Mapping[int, int]
    images: Mapping[str, bytes]
    lazy: Mapping[int, LazyRanges]


@dataclass(frozen=True, slots=True, eq=False)
class LazyRanges:
    """starts, ends: u64[r], ascending."""

    starts: U64
    ends: U64

    @classmethod
    def of(cls, vmas: Iterable[VmaEntry]) -> LazyRanges:
        """As CRIU decides it (criu/mem.c: vma_entry_can_be_lazy).

        There it also leaves out pages of stack pointers, but its dumps have them marked as well.
        """
        able = [vma for vma in vmas if _can_be_lazy(vma)]
        return cls(
            np.array([vma.start for vma in able], np.uint64),
            np.array([vma.end for vma in able], np.uint64),
        )

    def holds(self, addresses: U64) -> Bools:
        """Which of these pages may come later."""
        return inside_ranges(addresses, self.starts, self.ends)


def inside_ranges(addresses: U64, starts: U64, ends: U64) -> Bools:
    """Which addresses lie in one of the ranges (ascending, u64[r] each)."""
    if starts.size == 0:
        return np.zeros(addresses.size, np.bool_)
    index = np.searchsorted(starts, addresses, side="right") - 1
    return (index >= 0) & (addresses < ends[np.maximum(index, 0)])


def vma_pages(task: Task, mm: Mm, vma: Vma, files: Container[int]) -> tuple[U64, NDArray[np.int64]]:
    """The pages of a private mapping that a dump has: addresses u64[n] and content rows i64[n].

    A large mapping is looked at piece by piece: most of it may be nothing.
    """
    page_size = task.machine.page_size
    addresses: list[U64] = [np.zeros(0, np.uint64)]
    rows: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for start in range(vma.start, vma.end, _PIECE_PAGES * page_size):
        piece = replace(
            vma,
            start=start,
            end=min(vma.end, start + _PIECE_PAGES * page_size),
            pgoff=vma.pgoff + (start - vma.start) // page_size,
        )
        count = (piece.end - start) // page_size
        there = mm.frames(start, count)
        index = np.flatnonzero(dumped(task, piece, mm.pagemap(start, count), there, files))
        addresses.append(np.uint64(start) + index.astype(np.uint64) * np.uint64(page_size))
        rows.append(there[index])
    return np.concatenate(addresses), np.concatenate(rows)


def _can_be_lazy(vma: VmaEntry) -> bool:
    wanted = MAP_ANONYMOUS | MAP_PRIVATE
    if vma.flags & wanted != wanted or vma.flags & (MAP_LOCKED | MAP_HUGETLB):
        return False
    return not vma.status & _NEVER_LAZY


def model_pids(parents: Mapping[int, int]) -> dict[int, int]:
    """The pids that dumped processes get in the model, by their pids in the images.

    parents: pid -> parent's pid, in the images' order. The root becomes 1, the others follow by
    pid.
    """
    roots = [pid for pid, ppid in parents.items() if ppid not in parents]
    order = [*roots, *sorted(pid for pid in parents if pid not in roots)]
    return {pid: number for number, pid in enumerate(order, 1)}
