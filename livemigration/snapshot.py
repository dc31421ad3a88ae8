"""What a task's memory is: digests of every page that is not all zeros, from its own page tables.

Both hosts call this on their own model; nothing that was sent is reused. Pages that read as zeros
are left out on both sides, so that a hole, a zero page and a page of zeros count as equal - which
they are to the task. The whole-memory digest covers the processes, their areas and all those pages,
the files with theirs, mapped or not, and what is left of shared memory that is not mapped.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from livemigration.digest import memory_digest, page_digests, zero_page_digest
from livemigration.files import file_numbers, file_pages, unmapped_pages
from livemigration.layout import areas
from livemigration.packing import zero_pages
from livemigration.runs import near_pieces
from livemigration.task import Task
from mm_model import MAP_SHARED, PM_PRESENT, PM_SWAP, Machine, Mm, Vma

U64 = NDArray[np.uint64]
_NO_PAGES = np.zeros(0, dtype=np.uint64)
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ProcessPages:
    """Pages of one process that are not all zeros: addresses uint64[n] ascending, rows int64[n]."""

    pid: int
    addresses: U64
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ProcessDigests:
    """The digests (XXH3-64, uint64[n]) of one process' pages at `addresses` (uint64[n])."""

    pid: int
    addresses: U64
    digests: U64


@dataclass(frozen=True, slots=True)
class TaskDigests:
    """Every process, by ascending pid, and the digest of it all (hexadecimal)."""

    processes: tuple[ProcessDigests, ...]
    memory_digest: str

    @property
    def pages(self) -> int:
        """Number of pages that are not all zeros."""
        return sum(int(p.addresses.size) for p in self.processes)


def live_pages(mm: Mm) -> tuple[U64, NDArray[np.int64]]:
    """All pages with content of their own: (addresses, rows); zero page and holes are not among
    them.
    """
    page_size = mm.machine.page_size
    addresses, rows = [], []
    for vma in mm.vmas():
        there = mm.frames(vma.start, (vma.end - vma.start) // page_size)
        index = np.flatnonzero(there > 0)
        if index.size:
            addresses.append(np.uint64(vma.start) + index.astype(np.uint64) * np.uint64(page_size))
            rows.append(there[index])
    if not addresses:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    return np.concatenate(addresses), np.concatenate(rows)


def dumped(
    task: Task, vma: Vma, entries: U64, rows: NDArray[np.int64], files: Container[int]
) -> Bools:
    """Which pages of a mapping travel with its process, as CRIU decides it (criu/mem.c).

    `entries`: its pagemap; `files`: the task's files, whose own pages travel with them. Whether a
    page was copied on write is not asked of as CRIU does, but of the model: userfaultfd's
    markers for pages that are still the file's look like swapped pages (pte_to_pagemap_entry() of
    fs/proc/task_mmu.c), and there CRIU has none.
    """
    live = rows > 0
    if vma.shared_id in files:
        if vma.flags & MAP_SHARED:
            return np.zeros(live.size, dtype=np.bool_)
        of_file = task.machine.object_frames(vma.shared_id)[vma.pgoff :][: live.size]
        live[: of_file.size] &= rows[: of_file.size] != of_file
    if not vma.flags & MAP_SHARED:
        live &= (entries & (PM_PRESENT | PM_SWAP)) != 0
    return live


def own_pages(task: Task, pid: int) -> tuple[U64, NDArray[np.int64]]:
    """The pages with content that a process has without the task's files: (addresses, rows)."""
    mm, files = task.processes[pid], file_numbers(task)
    page_size = mm.machine.page_size
    addresses, rows = [], []
    for vma in mm.vmas():
        count = (vma.end - vma.start) // page_size
        there = mm.frames(vma.start, count)
        index = np.flatnonzero(dumped(task, vma, mm.pagemap(vma.start, count), there, files))
        addresses.append(np.uint64(vma.start) + index.astype(np.uint64) * np.uint64(page_size))
        rows.append(there[index])
    if not addresses:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    return np.concatenate(addresses), np.concatenate(rows)


def rows_at(mm: Mm, addresses: U64) -> NDArray[np.int64]:
    """Content rows, int64[n], of pages at any addresses (uint64[n], n > 0)."""
    size = np.uint64(mm.machine.page_size)
    parts = []
    for piece in near_pieces(addresses, mm.machine.page_size):
        index = ((piece - piece[0]) // size).astype(np.int64)
        parts.append(mm.frames(int(piece[0]), int(index[-1]) + 1)[index])
    return np.concatenate(parts)


def nonzero_pages(pid: int, mm: Mm) -> ProcessPages:
    """Pages of a process whose bytes are not all zeros."""
    addresses, rows = live_pages(mm)
    keep = ~zero_pages(mm.machine.content, rows)
    return ProcessPages(pid, addresses[keep], rows[keep])


def digest_task(task: Task) -> TaskDigests:
    """Digests of the whole task, computed now; each page is read once."""
    processes = [
        ProcessDigests(pid, *_not_zeros(mm.machine, *live_pages(mm)))
        for pid, mm in sorted(task.processes.items())
    ]
    return _digest_all(task, processes)


def without_pages(task: Task, digests: TaskDigests, later: Mapping[int, U64]) -> TaskDigests:
    """`digests`, just made of `task`, as if it had nothing at the pages `later` (uint64[n])."""
    processes = []
    for process in digests.processes:
        stays = ~np.isin(process.addresses, later.get(process.pid, _NO_PAGES))
        processes.append(
            ProcessDigests(process.pid, process.addresses[stays], process.digests[stays])
        )
    return _digest_all(task, processes)


def digests_at(process: ProcessDigests, addresses: U64, page_size: int) -> ProcessDigests:
    """The digests of just these pages (ascending), those of zeros among them."""
    found = np.full(addresses.size, zero_page_digest(page_size), dtype=np.uint64)
    at = np.searchsorted(process.addresses, addresses)
    known = at < process.addresses.size
    known[known] = process.addresses[at[known]] == addresses[known]
    found[known] = process.digests[at[known]]
    return ProcessDigests(process.pid, addresses, found)


def _digest_all(task: Task, processes: Sequence[ProcessDigests]) -> TaskDigests:
    """The digest over the processes' pages, given, and all else that makes the task."""
    page_size = task.machine.page_size
    description = bytearray(struct.pack("<QQ", page_size, len(task.processes)))
    columns: list[U64] = []
    for process in processes:
        spans = areas(task.processes[process.pid].vmas(), page_size)
        description += struct.pack("<QQQ", process.pid, len(spans), process.addresses.size)
        for span in spans:
            description += struct.pack("<QQQQ", *span)
        columns += [process.addresses, process.digests]
    description += struct.pack("<Q", len(task.files))
    for file in task.files:
        pages, rows = file_pages(task.machine, file)
        numbers, digests = _not_zeros(task.machine, pages.astype(np.uint64), rows)
        description += struct.pack("<QQQ", file.pages, file.on_disk, numbers.size)
        columns += [numbers, digests]
    for order, (object_id, unmapped) in enumerate(unmapped_pages(task)):
        rows = task.machine.object_frames(object_id)[unmapped]
        numbers, digests = _not_zeros(task.machine, unmapped.astype(np.uint64), rows)
        if numbers.size:
            description += struct.pack("<QQ", order, numbers.size)
            columns += [numbers, digests]
    return TaskDigests(tuple(processes), memory_digest(bytes(description), *columns))


def _not_zeros(machine: Machine, where: U64, rows: NDArray[np.int64]) -> tuple[U64, U64]:
    """Of pages at `where` with content `rows`, those that are not all zeros, and their digests."""
    content = machine.content
    digests = page_digests(content, rows)
    suspects = np.flatnonzero(digests == np.uint64(zero_page_digest(machine.page_size)))
    if suspects.size == 0:
        return where, digests
    # A digest alone does not say that a page is zeros: its bytes do.
    zero = suspects[zero_pages(content, rows[suspects])]
    return np.delete(where, zero), np.delete(digests, zero)
