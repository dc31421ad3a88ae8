"""Any sequence of operations: memory holds what was written, and every write is reported.

Hypothesis drives the model and, beside it, an oracle that knows nothing of frames, faults, page
tables or swap. To the oracle a process is a map from page numbers to cells of bytes; fork copies
the cells of private pages and shares those of shared ones. After every step

- each process reads, byte for byte, what its cells hold;
- each page written since the last clear_refs is soft-dirty;
- each frame, swap slot and page table is counted exactly as often as entries name it;

and an access fails exactly where the oracle has no page or no permission. In the end, when every
process is gone, so are all frames, slots and tables.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mm_model import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PM_SOFT_DIRTY,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    MmError,
    ModelConfig,
    SegFault,
)
from mm_model.state import FREE_TABLES, NEXT_TABLE, PG_CACHE

RW = PROT_READ | PROT_WRITE
PAGES, HEAP_PAGES = 32, 8
HEAP = 1 << 32  # far below the arena
MOST_PROCESSES = 3

whose = st.integers(0, MOST_PROCESSES - 1)
pages = st.integers(0, PAGES - 1)
counts = st.integers(1, 9)
prots = st.sampled_from((RW, RW, PROT_READ, PROT_NONE))


@dataclass(slots=True)
class Page:
    """``cell``: its bytes, the same object in every process that shares the page."""

    cell: bytearray
    prot: int
    shared: bool


@dataclass(slots=True)
class Process:
    """The oracle's process, beside the model's. Pages are numbered by address // page size."""

    mm: Mm
    pages: dict[int, Page] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)
    untracked: set[int] = field(default_factory=set)
    """Pages that lost VM_SOFTDIRTY to a merge: see ``merging``."""

    def may(self, number: int, prot: int) -> bool:
        page = self.pages.get(number)
        return page is not None and bool(page.prot & prot)

    def may_force(self, number: int) -> bool:
        page = self.pages.get(number)
        return page is not None and (not page.shared or bool(page.prot & PROT_WRITE))

    def write(self, number: int, offset: int, data: bytes) -> None:
        self.pages[number].cell[offset : offset + len(data)] = data
        if number not in self.untracked:
            self.written.add(number)

    def drop(self, number: int) -> None:
        self.pages.pop(number, None)
        self.forget(number)

    def forget(self, number: int) -> None:
        self.written.discard(number)
        self.untracked.discard(number)

    def flagged(self, size: int) -> set[int]:
        """Pages that lie in mappings with VM_SOFTDIRTY."""
        return {
            number
            for vma in self.mm.vmas()
            if vma.soft_dirty
            for number in range(vma.start // size, vma.end // size)
        }


def error_of(call: Callable[[], object]) -> MmError | None:
    try:
        call()
    except MmError as error:
        return error
    return None


class Memory(RuleBasedStateMachine):
    @initialize(page_size=st.sampled_from((4096, 16384, 65536)), dbm=st.booleans())
    def boot(self, page_size: int, dbm: bool) -> None:
        self.size = page_size
        self.machine = Machine(
            ModelConfig(page_size=page_size, frames=400, swap_slots=200, dbm=dbm)
        )
        # The arena lies across a border between two tables.
        entries = page_size // 8
        self.first = (1 << 36) // page_size // entries * entries + entries - PAGES // 2
        mm = self.machine.create_mm()
        mm.set_brk_base(HEAP)
        self.processes = [Process(mm)]
        self.serial = 0
        self.swap_on = True
        self.map(0, 0, PAGES // 2, RW, shared=False, clear=True)

    # -- words of the rules

    def process(self, who: int) -> Process:
        return self.processes[who % len(self.processes)]

    def numbers(self, page: int, count: int) -> range:
        return range(self.first + page, self.first + min(page + count, PAGES))

    def span(self, numbers: range) -> tuple[int, int]:
        return numbers.start * self.size, len(numbers) * self.size

    def data(self, length: int) -> bytes:
        """Bytes that no other write has written."""
        self.serial += 1
        return (self.serial.to_bytes(8, "little") * (length // 8 + 1))[:length]

    @contextmanager
    def merging(self, process: Process) -> Iterator[None]:
        """Around calls in which these kernels may drop VM_SOFTDIRTY when two mappings merge.

        What was written under the flag alone, and may be written on without a fault, is then not
        reported before the next clear_refs: a fault of the kernel (unit tests show it alone).
        """
        before = process.flagged(self.size)
        yield
        lost = (before - process.flagged(self.size)) & process.pages.keys()
        process.untracked |= lost
        process.written -= lost

    # -- mappings

    @rule(
        who=whose,
        page=pages,
        count=counts,
        prot=prots,
        shared=st.booleans(),
        clear=st.sampled_from((True, True, False)),
    )
    def map(self, who: int, page: int, count: int, prot: int, shared: bool, clear: bool) -> None:
        """``clear``: else VM_SOFTDIRTY covers most of the arena most of the time."""
        process, numbers = self.process(who), self.numbers(page, count)
        kind = MAP_SHARED if shared else MAP_PRIVATE
        process.mm.mmap(*self.span(numbers), prot, kind | MAP_ANONYMOUS | MAP_FIXED)
        for number in numbers:
            process.forget(number)
            process.pages[number] = Page(bytearray(self.size), prot, shared)
        if clear:
            self.clear_refs(who)

    @rule(who=whose, page=pages, count=counts)
    def unmap(self, who: int, page: int, count: int) -> None:
        process, numbers = self.process(who), self.numbers(page, count)
        process.mm.munmap(*self.span(numbers))
        for number in numbers:
            process.drop(number)

    @rule(who=whose, page=pages, count=counts, prot=prots)
    def protect(self, who: int, page: int, count: int, prot: int) -> None:
        process, numbers = self.process(who), self.numbers(page, count)
        gap = next((n for n in numbers if n not in process.pages), None)
        with self.merging(process):
            refused = error_of(lambda: process.mm.mprotect(*self.span(numbers), prot))
        assert (refused.errno if refused else None) == (None if gap is None else errno.ENOMEM)
        for number in range(numbers.start, numbers.stop if gap is None else gap):
            process.pages[number].prot = prot

    @rule(who=whose, page=pages, count=counts, to=pages, keep=st.booleans(), fitting=st.booleans())
    def move(self, who: int, page: int, count: int, to: int, keep: bool, fitting: bool) -> None:
        """``fitting``: no further than the mapping goes, or most moves would be refused."""
        process, source = self.process(who), self.numbers(page, count)
        for vma in process.mm.vmas() if fitting else []:
            if vma.start <= source.start * self.size < vma.end:
                source = range(source.start, min(source.stop, vma.end // self.size))
        goal = self.numbers(min(to, PAGES - len(source)), len(source))
        flags = MREMAP_MAYMOVE | MREMAP_FIXED | (MREMAP_DONTUNMAP if keep else 0)
        start, length = self.span(source)
        overlap = set(source) & set(goal)
        whole = any(vma.start <= start and start + length <= vma.end for vma in process.mm.vmas())
        with self.merging(process):
            refused = error_of(
                lambda: process.mm.mremap(start, length, length, flags, goal.start * self.size)
            )
            self.moved(process, source, goal, overlap, refused, keep)
        if not overlap and source.start in process.pages:
            assert whole == (refused is None) or keep

    def moved(
        self,
        process: Process,
        source: range,
        goal: range,
        overlap: set[int],
        refused: MmError | None,
        keep: bool,
    ) -> None:
        if source.start not in process.pages:
            assert refused is not None
            assert refused.errno == errno.EFAULT
            return
        if overlap:
            assert refused is not None
            assert refused.errno == errno.EINVAL
            return
        alike = {(page.prot, page.shared) for n in source if (page := process.pages.get(n))}
        one = all(number in process.pages for number in source) and len(alike) == 1
        assert refused is None or refused.errno == errno.EFAULT
        assert one or refused is not None
        for number in goal:  # unmapped first, even if the move is then refused
            process.drop(number)
        if refused is not None:
            return
        for old, new in zip(source, goal, strict=True):
            page = process.pages[old]
            if old in process.written or (not page.shared and any(page.cell)):
                process.written.add(new)  # what moves counts as written, if it is there
            process.drop(old)
            process.pages[new] = page
            if keep:
                cell = page.cell if page.shared else bytearray(self.size)
                process.pages[old] = Page(cell, page.prot, page.shared)

    @rule(who=whose, heap=st.integers(0, HEAP_PAGES), odd=st.integers(0, 100))
    def brk(self, who: int, heap: int, odd: int) -> None:
        process = self.process(who)
        end = HEAP + heap * self.size - (odd if heap else 0)
        assert process.mm.brk(end) == end
        for k in range(HEAP_PAGES):
            number = HEAP // self.size + k
            if k >= heap:
                process.drop(number)
            elif number not in process.pages:
                process.pages[number] = Page(bytearray(self.size), RW, shared=False)

    # -- accesses

    def anywhere(self, process: Process, page: int, count: int, heap: bool) -> range:
        if not heap:
            return self.numbers(page, count)
        start = HEAP // self.size + page % HEAP_PAGES
        return range(start, start + min(count, 3))

    @rule(
        who=whose,
        page=pages,
        count=counts,
        offset=st.integers(0, 4088),
        length=st.sampled_from((0, 1, 7, 64, 4096)),
        heap=st.booleans(),
    )
    def store(self, who: int, page: int, count: int, offset: int, length: int, heap: bool) -> None:
        """``length`` 0: words, by the fast entry."""
        process = self.process(who)
        numbers = self.anywhere(process, page, count, heap)
        size = length or 8
        offset = min(offset, self.size - size)
        payload = [self.data(size) for _ in numbers]
        bad = next((n for n in numbers if not process.may(n, PROT_WRITE)), None)
        where = np.array([n * self.size + offset for n in numbers], np.uint64)
        joined = b"".join(payload)
        if length:
            sizes = np.full(len(numbers), size, np.uint32)
            failed = error_of(
                lambda: process.mm.store(where, sizes, np.frombuffer(joined, np.uint8))
            )
        else:
            failed = error_of(
                lambda: process.mm.store_words(where, np.frombuffer(joined, np.uint64))
            )
        self.check_fault(failed, bad)
        for number, part in zip(numbers, payload, strict=True):
            if number == bad:
                break
            process.write(number, offset, part)

    @rule(who=whose, page=pages, count=counts, heap=st.booleans())
    def read(self, who: int, page: int, count: int, heap: bool) -> None:
        process = self.process(who)
        numbers = self.anywhere(process, page, count, heap)
        bad = next((n for n in numbers if not process.may(n, RW)), None)
        where = np.array([n * self.size for n in numbers], np.uint64)
        self.check_fault(error_of(lambda: process.mm.touch(where)), bad)

    def check_fault(self, failed: MmError | None, bad: int | None) -> None:
        if bad is None:
            assert failed is None
            return
        assert isinstance(failed, SegFault)
        assert failed.address // self.size == bad
        assert failed.signal == 11

    @rule(who=whose, page=pages, offset=st.integers(0, 4088))
    def force(self, who: int, page: int, offset: int) -> None:
        process, number = self.process(who), self.first + page
        data = self.data(8)
        address = number * self.size + offset
        failed = error_of(lambda: process.mm.gup_write(address, data))
        if process.may_force(number):
            assert failed is None
            process.write(number, offset, data)
        else:
            assert failed is not None
            assert failed.errno == errno.EIO

    # -- advice, swap, processes, clear_refs

    @rule(who=whose, page=pages, count=counts)
    def dontneed(self, who: int, page: int, count: int) -> None:
        process, numbers = self.process(who), self.numbers(page, count)
        error_of(lambda: process.mm.madvise(*self.span(numbers), MADV_DONTNEED))
        for number in numbers:
            process.forget(number)
            found = process.pages.get(number)
            if found and not found.shared:
                found.cell = bytearray(self.size)

    @rule(who=whose, page=pages, count=st.one_of(counts, st.just(PAGES)))
    def pageout(self, who: int, page: int, count: int) -> None:
        process = self.process(who)
        numbers = self.numbers(0 if count == PAGES else page, count)
        error_of(lambda: process.mm.madvise(*self.span(numbers), MADV_PAGEOUT))
        for number in numbers:
            if number in process.pages and process.pages[number].shared:
                process.forget(number)  # the bit goes with the entry, as on Linux

    @rule()
    def toggle_swap(self) -> None:
        if self.swap_on:
            self.machine.swapoff()
            assert self.machine.used_swap_slots == 0
        else:
            self.machine.swapon()
        self.swap_on = not self.swap_on

    @precondition(lambda self: len(self.processes) < MOST_PROCESSES)
    @rule(who=whose)
    def fork(self, who: int) -> None:
        parent = self.process(who)
        child = Process(parent.mm.fork())
        for number, page in parent.pages.items():
            cell = page.cell if page.shared else bytearray(page.cell)
            child.pages[number] = Page(cell, page.prot, page.shared)
        private = {number for number, page in child.pages.items() if not page.shared}
        child.written, child.untracked = parent.written & private, parent.untracked & private
        self.processes.append(child)

    @precondition(lambda self: len(self.processes) > 1)
    @rule(who=whose)
    def exit(self, who: int) -> None:
        process = self.process(who)
        process.mm.exit()
        self.processes.remove(process)

    @rule(who=whose)
    def clear_refs(self, who: int) -> None:
        process = self.process(who)
        process.mm.clear_refs()
        process.written.clear()
        process.untracked.clear()
        assert not any(vma.soft_dirty for vma in process.mm.vmas())

    @rule(who=whose, mode=st.sampled_from((1, 2, 3, 5)))
    def clear_other_refs(self, who: int, mode: int) -> None:
        self.process(who).mm.clear_refs(mode)

    # -- what holds after every step

    def ranges(self) -> list[tuple[int, int]]:
        return [(self.first, PAGES), (HEAP // self.size, HEAP_PAGES)]

    @invariant()
    def content_is_what_was_written(self) -> None:
        nothing = bytes(self.size)
        for process in self.processes:
            for start, count in self.ranges():
                seen = process.mm.peek(start * self.size, count * self.size)
                for k in range(count):
                    page = process.pages.get(start + k)
                    expected = bytes(page.cell) if page else nothing
                    assert seen[k * self.size : (k + 1) * self.size] == expected, hex(start + k)

    @invariant()
    def every_write_is_reported(self) -> None:
        for process in self.processes:
            for start, count in self.ranges():
                bits = process.mm.pagemap(start * self.size, count) & PM_SOFT_DIRTY
                reported = {start + k for k in np.flatnonzero(bits).tolist()}
                here = {n for n in process.written if start <= n < start + count}
                assert here <= reported, f"written, reported clean: {here - reported}"

    @invariant()
    def mappings_are_the_oracles(self) -> None:
        for process in self.processes:
            found = {
                number: (vma.prot, bool(vma.flags & MAP_SHARED))
                for vma in process.mm.vmas()
                for number in range(vma.start // self.size, vma.end // self.size)
            }
            assert found == {n: (page.prot, page.shared) for n, page in process.pages.items()}

    @invariant()
    def everything_is_counted_as_often_as_it_is_named(self) -> None:
        phys = self.machine.phys
        maps, slots = Counter[int](), Counter[int]()
        for process in self.processes:
            for start, count in self.ranges():
                entries = process.mm.ptes(start * self.size, count)
                frames = process.mm.frames(start * self.size, count)
                present = process.mm.pagemap(start * self.size, count) >> np.uint64(63) == 1
                maps.update(frames[present & (frames > 0)].tolist())
                slots.update((entries[~present & (entries != 0)] >> np.uint64(12)).tolist())
        cached = phys.cache[phys.cache != 0]
        slots.update((cached[cached & np.uint64(1) == 1] >> np.uint64(1)).tolist())
        in_cache = set((cached[cached & np.uint64(1) == 0] >> np.uint64(1)).tolist())
        assert Counter({f: int(n) for f, n in enumerate(phys.mapcount) if n}) == maps
        assert Counter({s: int(n) for s, n in enumerate(phys.slot_count) if n}) == slots
        on_swap = set(phys.slot_frame[phys.slot_frame != 0].tolist())
        assert set(np.flatnonzero(phys.flags & PG_CACHE).tolist()) == in_cache
        assert self.machine.used_frames == len(set(maps) | on_swap | in_cache)
        assert self.machine.used_swap_slots == len(on_swap)

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        for process in self.processes:
            process.mm.exit()
        assert (self.machine.used_frames, self.machine.used_swap_slots) == (0, 0)
        ctr = self.machine.phys.ctr
        assert ctr[NEXT_TABLE] - 1 == ctr[FREE_TABLES]


Memory.TestCase.settings = settings(stateful_step_count=50)
TestMemory = Memory.TestCase
