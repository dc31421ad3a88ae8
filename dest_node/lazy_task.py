"""A task whose workload finds out when it needs a page that is not there yet.

To the kernel's model a missing page is a hole, and an access would be given zeros. So a workload
whose task lacks pages gets its address spaces through `LazyMm`, which does what userfaultfd does
for CRIU's lazy-pages daemon: an access to a missing page waits until the page is there, and what
the process does to its address space meanwhile is told to those who bring the pages. Of a batch of
accesses the ones before the first missing page are made, then the page is waited for, then the next
ones, so that everything happens in the order and with the results that it has without migration.

Calls that neither access memory nor change where it is are passed on. There is a list of them: one
that is on no list would pass missing pages by, and is refused.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dest_node.missing import MissingPages
from livemigration.task import Task, TaskFile
from mm_model import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    MAP_FIXED,
    MREMAP_FIXED,
    Machine,
    Mm,
    MmError,
)

U64 = NDArray[np.uint64]

TASK_END = 1 << 48
"""No address of a process is above this."""

_NEEDS_PAGES = (MADV_COLLAPSE, MADV_FREE, MADV_POPULATE_READ, MADV_POPULATE_WRITE)
_LEAVES_PAGES = (  # MADV_REMOVE is for shared memory, which is all there
    *(MADV_COLD, MADV_DONTFORK, MADV_HUGEPAGE, MADV_MERGEABLE, MADV_NOHUGEPAGE, MADV_PAGEOUT),
    *(MADV_REMOVE, MADV_WILLNEED, MADV_WIPEONFORK),
)
_NOT_INHERITED = 1 << MADV_DONTFORK | 1 << MADV_WIPEONFORK
_PASSED_ON = frozenset(
    ("machine", "vmas", "frames", "pagemap", "mprotect", "munlock", "msync", "split_huge_pages")
)


class Waiting(Protocol):
    """Whoever brings pages."""

    missing: MissingPages

    def fetch(self, page: int, position: int) -> None:
        """Returns when this page is there; the access under way has made `position` accesses."""
        ...


class LazyMm:
    """One address space; see the module's text. Signatures are those of `Mm`."""

    def __init__(self, pid: int, mm: Mm, waiting: Waiting) -> None:
        self._pid = pid
        self._mm = mm
        self._waiting = waiting

    def __getattr__(self, name: str) -> Any:
        if name not in _PASSED_ON:
            raise NotImplementedError(f"Mm.{name} of a task whose pages are not all there")
        return getattr(self._mm, name)

    # -- accesses

    def store_words(self, addresses: U64, values: U64) -> int:
        """Stores; returns the number of the model's own faults."""
        faults = 0
        for part in self._parts(addresses):
            faults += self._mm.store_words(addresses[part], values[part])
        return faults

    def store(self, addresses: U64, sizes: NDArray[np.uint32], payload: NDArray[np.uint8]) -> int:
        """Stores of different sizes."""
        faults = position = 0
        for part in self._parts(addresses):
            length = int(sizes[part].sum(dtype=np.uint64))
            data = payload[position : position + length]
            faults += self._mm.store(addresses[part], sizes[part], data)
            position += length
        return faults

    def touch(self, addresses: U64) -> int:
        """Reads."""
        return sum(self._mm.touch(addresses[part]) for part in self._parts(addresses))

    def gup_write(self, address: int, data: bytes) -> None:
        """Writes through /proc/PID/mem."""
        self._need(address, address + len(data))
        self._mm.gup_write(address, data)

    def gup_read(self, address: int, length: int) -> bytes:
        """Reads through /proc/PID/mem."""
        self._need(address, address + length)
        return self._mm.gup_read(address, length)

    def _parts(self, addresses: U64) -> Iterator[slice]:
        """The accesses in pieces, before each of which the page that it begins with is there."""
        done, missing = 0, self._waiting.missing
        while done < addresses.size:
            stop, page = missing.first(self._pid, addresses, done)
            if stop > done:
                yield slice(done, stop)
            done = stop
            if page >= 0:
                self._waiting.fetch(page, done)

    def _need(self, start: int, end: int) -> None:
        """Waits for every missing page of [start, end)."""
        size = self._mm.machine.page_size
        for _ in self._parts(np.arange(start // size * size, end, size, dtype=np.uint64)):
            pass

    # -- the address space

    def mmap(self, addr: int | None, length: int, prot: int, flags: int, **options: Any) -> int:
        """Maps; what was there before goes away."""
        with self._as_far_as_it_went():
            mapped = self._mm.mmap(addr, length, prot, flags, **options)
        if flags & MAP_FIXED:
            self._drop(mapped, length)
        return mapped

    def munmap(self, addr: int, length: int) -> None:
        """Unmaps."""
        with self._as_far_as_it_went():
            self._mm.munmap(addr, length)
        self._drop(addr, length)

    def brk(self, addr: int) -> int:
        """Moves the heap's end."""
        before = self._mm.brk(0)
        after = self._mm.brk(addr)
        if after < before:
            size = self._mm.machine.page_size
            self._drop(-(-after // size) * size, before - after)
        return after

    def mremap(
        self, old: int, old_len: int, new_len: int, flags: int = 0, new_addr: int = 0
    ) -> int:
        """Resizes or moves; missing pages move along."""
        with self._as_far_as_it_went():
            now = self._mm.mremap(old, old_len, new_len, flags, new_addr)
        size = self._mm.machine.page_size
        kept = min(-(-old_len // size), -(-new_len // size)) * size
        if flags & MREMAP_FIXED:
            self._drop(now, new_len)
        if now != old:
            self._waiting.missing.move(self._pid, old, old + kept, now)
        if old_len > kept:
            self._drop(old + kept, old_len - kept)
        return now

    def madvise(self, addr: int, length: int, advice: int) -> None:
        """Gives advice; the pages that it works on must be there, or go."""
        if advice in _NEEDS_PAGES:
            self._need(addr, addr + length)
        elif advice == MADV_DONTNEED:
            self._give_back(addr, length)
            return
        elif advice not in _LEAVES_PAGES:
            raise NotImplementedError(f"madvise {advice} of a task whose pages are not all there")
        self._mm.madvise(addr, length, advice)

    def _give_back(self, addr: int, length: int) -> None:
        """MADV_DONTNEED: where it fails, what came before is given back all the same."""
        before = self._mm.vmas()
        try:
            self._mm.madvise(addr, length, MADV_DONTNEED)
        except MmError as error:
            if error.errno != errno.ENOMEM:  # gaps are passed over; a mapping that refuses is not
                stops = (v.start for v in before if v.end > addr and (v.locked or v.shared_id))
                length = max(0, min(next(stops, addr), addr + length) - addr)
            self._drop(addr, length)
            raise
        self._drop(addr, length)

    def mlock(self, addr: int, length: int) -> None:
        """Locks, which needs all pages."""
        self._need(addr, addr + length)
        self._mm.mlock(addr, length)

    def _drop(self, start: int, length: int) -> None:
        size = self._mm.machine.page_size
        self._waiting.missing.drop(self._pid, start, start + -(-length // size) * size)

    @contextmanager
    def _as_far_as_it_went(self) -> Iterator[None]:
        """A call that fails may have unmapped something before: pages without mapping go."""
        try:
            yield
        except MmError:
            end = 0
            for vma in self._mm.vmas():
                self._waiting.missing.drop(self._pid, end, vma.start)
                end = vma.end
            self._waiting.missing.drop(self._pid, end, TASK_END)
            raise


class _Processes(Mapping[int, Any]):
    def __init__(self, task: Task, waiting: Waiting) -> None:
        self._task = task
        self._waiting = waiting

    def __getitem__(self, pid: int) -> LazyMm:
        return LazyMm(pid, self._task.processes[pid], self._waiting)

    def __iter__(self) -> Iterator[int]:
        return iter(self._task.processes)

    def __len__(self) -> int:
        return len(self._task.processes)


class LazyTask:
    """A task as its workload sees it, while pages are missing."""

    def __init__(self, task: Task, waiting: Waiting) -> None:
        self._task = task
        self._waiting = waiting
        self.processes: Mapping[int, Any] = _Processes(task, waiting)

    @property
    def machine(self) -> Machine:
        """The host."""
        return self._task.machine

    @property
    def files(self) -> Sequence[TaskFile]:
        """The task's files, whose pages came before it went on."""
        return self._task.files

    def create_file(self, pages: int, /, *, on_disk: bool) -> int:
        """A new file."""
        return self._task.create_file(pages, on_disk=on_disk)

    def fork(self, pid: int, /) -> int:
        """A child, which lacks what its parent lacks, but for what it does not inherit."""
        missing, parent = self._waiting.missing, self._task.processes[pid]
        child = self._task.fork(pid)
        missing.fork(pid, child)
        for vma in parent.vmas():
            if vma.advice & _NOT_INHERITED:
                missing.drop(child, vma.start, vma.end)
        return child

    def exit(self, pid: int, /) -> None:
        """The end of a process."""
        self._task.exit(pid)
        self._waiting.missing.exit(pid)
