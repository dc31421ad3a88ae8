"""A task's memory in a real mapping, with the names that the model gives it.

`HostMachine` and `HostMm` offer what a task that only writes, and its migration, ask of
`mm_model.Machine` and `mm_model.Mm`: one private mapping in one process, stores, and looking. There
are no page tables of the model behind them: a store is a store, its fault is the kernel's, and a
page is there if the kernel says so. What such a task may do is said in its specification
(`livemigration.spec.HOST_WORKLOADS`); fork, unmapping and files are not among it.

Content stamps are kept beside the memory, as in the model: they judge the tracker, and decide
nothing.
"""

from __future__ import annotations

import errno
import resource
from typing import cast

import numpy as np
from numpy.typing import NDArray

from livemigration.host.region import Region
from livemigration.host.stores import store_words
from livemigration.host.written import THERE, Forgetful, WrittenPages, open_written
from livemigration.task import Task
from mm_model import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    MmError,
    SegFault,
    Vma,
)

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
Rows = NDArray[np.int64]

SIGSEGV = 11
_WORD = 8


class HostMachine:
    """This host, as far as one task's memory goes. Callers serialise access."""

    def __init__(self, pages: int, page_size: int, method: str = "auto", forget: int = 0) -> None:
        """Room for `pages` pages, tracked by `method`; `forget`: see `Forgetful`.

        `BadRequest` where the kernel cannot track, `NoSpace` where there is no room.
        """
        self.page_size = page_size
        self.region: Region = Region(pages, page_size)
        written = open_written(self.region, method)
        self.written: WrittenPages = Forgetful(written, forget) if forget else written
        self.stamps: U64 = np.zeros(pages, np.uint64)
        self.counter: U64 = np.zeros(1, np.uint64)

    @property
    def content(self) -> U8:
        """uint8[pages + 1, page_size]: row 0 is zeros, row n + 1 the task's page n."""
        return self.region.content

    @property
    def used_frames(self) -> int:
        """Pages that are there."""
        return int(np.count_nonzero(self.written.look(0, self.region.pages) & THERE))

    def same_content(self, stamps: U64) -> U64:
        """Stamps that are equal where content is known to be: as they are, for nothing merges."""
        return stamps

    def release(self) -> None:
        """Gives the memory back; the machine is of no use afterwards."""
        self.written.close()
        self.region = Region(1, self.page_size)
        self.stamps = np.zeros(1, np.uint64)


class HostMm:
    """The one process of the task. Addresses are the task's: it sees its mapping where it asked."""

    start_brk = 0

    def __init__(self, machine: HostMachine) -> None:
        self.machine = machine
        self.start = 0
        self.pages = 0

    def mmap(self, addr: int, length: int, prot: int, flags: int) -> int:
        """Maps the whole region at `addr`, once."""
        page_size = self.machine.page_size
        if self.pages or flags & MAP_ANONYMOUS == 0 or flags & MAP_PRIVATE == 0:
            raise MmError(errno.EOPNOTSUPP, "the host's memory is one private anonymous mapping")
        if length != self.machine.region.pages * page_size or addr % page_size:
            raise MmError(errno.EINVAL, f"mmap: {length} bytes at {addr:#x} are not the region")
        self.start, self.pages = addr, length // page_size
        return addr

    def vmas(self) -> list[Vma]:
        """The mapping."""
        if not self.pages:
            return []
        return [
            Vma(
                start=self.start,
                end=self.start + self.pages * self.machine.page_size,
                prot=PROT_READ | PROT_WRITE,
                flags=MAP_PRIVATE | MAP_ANONYMOUS,
                shared_id=0,
                pgoff=0,
                soft_dirty=False,
                name="",
            )
        ]

    def brk(self, addr: int) -> int:
        """There is no heap."""
        return 0

    # --- stores ---

    def store_words(self, addresses: U64, values: U64) -> int:
        """Stores one 8-byte word (uint64[n]) at each address; see `store`."""
        return self._store(addresses, np.full(addresses.size, _WORD, np.uint32), values)

    def store(self, addresses: U64, sizes: U32, payload: U8) -> int:
        """Stores ``sizes[n]`` bytes at each of ``addresses`` (uint64[n]), from ``payload``.

        Everything is in whole, aligned words. Returns the page faults that the kernel counted for
        this thread meanwhile. `SegFault` for an address outside of the mapping.
        """
        return self._store(addresses, sizes, payload.view(np.uint64))

    def _store(self, addresses: U64, sizes: U32, payload: U64) -> int:
        machine = self.machine
        odd = (addresses | sizes.astype(np.uint64)) % np.uint64(_WORD)
        if odd.any() or int(sizes.sum(dtype=np.uint64)) != payload.size * _WORD:
            raise MmError(errno.EINVAL, "store: addresses, sizes and payload must be whole words")
        before = _faults()
        done = store_words(
            machine.region.words,
            machine.stamps,
            machine.counter,
            np.uint64(self.start),
            machine.page_size // _WORD,
            addresses,
            sizes,
            payload,
        )
        if done < addresses.size:
            address = int(addresses[done])
            raise SegFault(address, SIGSEGV, f"store at {address:#x}: nothing is mapped there")
        return _faults() - before

    # --- looking without touching ---

    def flags(self, start: int, npages: int) -> U8:
        """What the kernel says of pages from `start` on (`livemigration.host.written`)."""
        return self.machine.written.look((start - self.start) // self.machine.page_size, npages)

    def frames(self, start: int, npages: int) -> Rows:
        """Content row of each page, int64[npages]; -1 where nothing is there."""
        first = (start - self.start) // self.machine.page_size
        rows = np.arange(first + 1, first + 1 + npages, dtype=np.int64)
        rows[self.flags(start, npages) & THERE == 0] = -1
        return rows

    def contents(self, start: int, npages: int) -> tuple[Rows, U64]:
        """Content row and stamp of each page."""
        first = (start - self.start) // self.machine.page_size
        return self.frames(start, npages), self.machine.stamps[first : first + npages].copy()

    def versions(self, start: int, npages: int) -> U64:
        """Content stamp of each page, uint64[npages]: 0 for zeros that were never written."""
        return self.contents(start, npages)[1]


def _faults() -> int:
    """Minor page faults of this thread so far."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def host_task(pages: int, page_size: int, method: str = "auto", forget: int = 0) -> Task:
    """A task in real memory; errors as `HostMachine`.

    Its parts pass for the model's, whose names and meanings they have; nothing else is asked of
    them by the workloads that such a task may have, and by a migration of it.
    """
    machine = HostMachine(pages, page_size, method, forget)
    return Task(cast("Machine", machine), cast("Mm", HostMm(machine)))


def host_memory(task: Task) -> HostMm:
    """The memory of a task that `host_task` made."""
    return cast("HostMm", next(iter(task.processes.values())))
