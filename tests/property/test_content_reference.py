"""Content truth: the model's memory holds what a trivially simple second memory holds.

The second memory, `Reference`, knows no page tables, frames, faults or swap: a process is a dict
from page number to the bytes of that page, copied by value at fork; shared pages are looked up in
their object. The same random operations go to both. Then every readable byte that the model
loads must be the reference's, an access must fail exactly where the reference has no page or no
permission for it, and a private page that was written since the last ``clear_refs`` and is there
must be soft-dirty: the promise that pre-dumps live by.

MADV_FREE is the one operation whose effect on content is the kernel's choice: until the page is
written again it may read as before or as zeros.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_model import Machine, Mm, MmError, ModelConfig, SegFault

BASE, STRIDE = 0x10_0000_0000, 1 << 30
REGIONS, REGION_PAGES, FREE_REGIONS = 2, 12, 3
"""Two regions are mapped at the start; mremap moves pages to those after them."""

PROT_READ, PROT_WRITE = 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 16, 32
MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
ADVICE = {"willneed": 3, "dontneed": 4, "free": 8, "cold": 20, "pageout": 21}
ADVICE |= {"populate_read": 22, "populate_write": 23}
ADVICE |= {"hugepage": 14, "nohugepage": 15, "collapse": 25}
KINDS = ("anon-private", "anon-shared", "tmpfs-private", "tmpfs-shared")
PROTS = {"none": 0, "r": PROT_READ, "rw": PROT_READ | PROT_WRITE}
SOFT_DIRTY, SWAP, PRESENT = (1 << np.arange(64, dtype=np.uint64))[[55, 62, 63]]


# -- the reference --------------------------------------------------------------------------


@dataclass(slots=True)
class Page:
    """One mapped page. ``own``: the process' own bytes; None: whatever lies beneath."""

    beneath: dict[int, bytes] | None
    """The object that is mapped (shared or privately); None: anonymous memory, zeros."""
    index: int
    shared: bool
    prot: int = PROT_READ | PROT_WRITE
    own: bytes | None = None
    may_be_zero: bool = False
    locked: bool = False
    written: bool = False
    """A private page written since its process' last clear_refs (and not thrown away since)."""


@dataclass(slots=True)
class Process:
    page_size: int
    pages: dict[int, Page] = field(default_factory=dict)

    def fork(self) -> Process:
        # Locks are not inherited; bytes are immutable, so copying the records copies the memory.
        return Process(
            self.page_size,
            {number: replace(page, locked=False) for number, page in self.pages.items()},
        )

    def content(self, number: int) -> bytes:
        page = self.pages[number]
        if page.own is not None:
            return page.own
        return self.below(page)

    def below(self, page: Page) -> bytes:
        zeros = bytes(self.page_size)
        return zeros if page.beneath is None else page.beneath.get(page.index, zeros)

    def write(self, number: int, offset: int, data: bytes, actual: bytes) -> None:
        """Write; ``actual`` is what the page reads as where MADV_FREE leaves that open."""
        page = self.pages[number]
        old = actual if page.may_be_zero else self.content(number)
        new = old[:offset] + data + old[offset + len(data) :]
        if page.shared:
            assert page.beneath is not None
            page.beneath[page.index] = new
        else:
            page.own, page.may_be_zero, page.written = new, False, True

    def may_read(self, number: int) -> bool:
        return number in self.pages and bool(self.pages[number].prot & PROT_READ)

    def may_write(self, number: int) -> bool:
        return number in self.pages and bool(self.pages[number].prot & PROT_WRITE)

    def may_force(self, number: int) -> bool:
        """/proc/pid/mem writes a private page whatever its protection, a shared one as allowed."""
        page = self.pages.get(number)
        return page is not None and (not page.shared or bool(page.prot & PROT_WRITE))

    def allowed(self, number: int) -> set[bytes]:
        contents = {self.content(number)}
        if self.pages[number].may_be_zero:
            contents.add(self.below(self.pages[number]))
        return contents


def attempt(call: Callable[[], object]) -> MmError | None:
    """The error that the model answers with, if any."""
    try:
        call()
    except MmError as error:
        return error
    return None


# -- both together --------------------------------------------------------------------------


@dataclass(slots=True)
class Both:
    """One model machine and the reference, driven side by side."""

    machine: Machine
    page_size: int
    tasks: list[tuple[Mm, Process]]
    serial: int = 0
    swap_is_on: bool = True
    region_pages: int = REGION_PAGES

    @classmethod
    def fresh(cls, page_size: int, dbm: bool, region_pages: int = REGION_PAGES, **how: Any) -> Both:
        pages = 40 * region_pages + 32
        machine = Machine(
            ModelConfig(page_size=page_size, frames=pages, swap_slots=pages, dbm=dbm, **how)
        )
        tasks = [(machine.create_mm(), Process(page_size))]
        return cls(machine, page_size, tasks, region_pages=region_pages)

    def address(self, number: int) -> int:
        return number * self.page_size

    def first(self, region: int) -> int:
        """Page number of the first page of a region."""
        return (BASE + region * STRIDE) // self.page_size

    def data(self, length: int) -> bytes:
        """Bytes that differ from call to call, so that no two writes look the same."""
        self.serial += 1
        return random.Random(self.serial).randbytes(length)

    # Mappings

    def map(self, region: int, kind: str, count: int) -> None:
        mm, process = self.tasks[0]
        start, shared = self.first(region), kind.endswith("shared")
        flags = MAP_FIXED | (MAP_SHARED if shared else MAP_PRIVATE)
        beneath: dict[int, bytes] | None = None if kind == "anon-private" else {}
        shared_id = 0
        if kind.startswith("tmpfs"):
            shared_id = self.machine.create_shared(count)
        else:
            flags |= MAP_ANONYMOUS
        mm.mmap(
            self.address(start), count * self.page_size, PROTS["rw"], flags, shared_id=shared_id
        )
        for index in range(count):
            process.pages[start + index] = Page(beneath, index, shared)

    def remap(self, who: int, start: int, count: int) -> None:
        mm, process = self.tasks[who]
        flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS
        mm.mmap(self.address(start), count * self.page_size, PROTS["rw"], flags)
        for number in range(start, start + count):
            process.pages[number] = Page(None, 0, shared=False)

    def munmap(self, who: int, start: int, count: int) -> None:
        mm, process = self.tasks[who]
        mm.munmap(self.address(start), count * self.page_size)
        for number in range(start, start + count):
            process.pages.pop(number, None)

    def mremap(self, who: int, start: int, count: int, target: int, keep: bool) -> None:
        """Move pages; refused (EFAULT) over several VMAs, whose borders the reference ignores."""
        mm, process = self.tasks[who]
        flags = MREMAP_MAYMOVE | MREMAP_FIXED | (MREMAP_DONTUNMAP if keep else 0)
        length = count * self.page_size
        refused = attempt(
            lambda: mm.mremap(self.address(start), length, length, flags, self.address(target))
        )
        assert refused is None or refused.errno == errno.EFAULT
        if start not in process.pages:
            assert refused is not None
            return
        # A refused move has unmapped what lay at the target all the same.
        for number in range(target, target + count):
            process.pages.pop(number, None)
        if refused is not None:
            return
        for offset in range(count):
            page = process.pages.pop(start + offset)  # KeyError: moved a hole
            process.pages[target + offset] = page
            if keep:
                process.pages[start + offset] = replace(
                    page, own=None, may_be_zero=False, locked=False, written=False
                )

    def mprotect(self, who: int, start: int, count: int, prot: str) -> None:
        mm, process = self.tasks[who]
        end = self.until_hole(process, start, count)
        self.outcome(
            lambda: mm.mprotect(self.address(start), count * self.page_size, PROTS[prot]),
            None if end == start + count else errno.ENOMEM,
        )
        for number in range(start, end):
            process.pages[number].prot = PROTS[prot]

    def mlock(self, who: int, start: int, count: int, on: bool) -> None:
        mm, process = self.tasks[who]
        end = self.until_hole(process, start, count)
        wanted = None if end == start + count else errno.ENOMEM
        if on and any(not process.pages[number].prot for number in range(start, end)):
            wanted = errno.ENOMEM  # locked, but what may not be accessed cannot be populated
        call = mm.mlock if on else mm.munlock
        self.outcome(lambda: call(self.address(start), count * self.page_size), wanted)
        for number in range(start, end):
            process.pages[number].locked = on

    def madvise(self, who: int, start: int, count: int, advice: str) -> None:
        """Only DONTNEED and FREE may change content; they end at a mapping that refuses them."""
        mm, process = self.tasks[who]
        length = count * self.page_size
        refused = attempt(lambda: mm.madvise(self.address(start), length, ADVICE[advice]))
        assert refused is None or refused.errno in {errno.EINVAL, errno.ENOMEM, errno.EFAULT}
        for number in range(start, start + count):
            page = process.pages.get(number)
            if page is None:
                continue
            if advice == "dontneed":
                if page.locked:
                    return
                page.own, page.may_be_zero, page.written = None, False, False
            elif advice == "free":
                if page.locked or page.beneath is not None:
                    return
                page.may_be_zero, page.written = True, False

    # Accesses

    def write(self, who: int, start: int, count: int, offset: int, length: int, how: str) -> None:
        mm, process = self.tasks[who]
        length = min(length, self.page_size)
        offset = min(offset, self.page_size - length)
        if how == "words":
            length, offset = 8, offset // 8 * 8
        numbers = range(start, start + count)
        payload = self.data(length * count)
        parts = [payload[i * length : (i + 1) * length] for i in range(count)]
        may = process.may_force if how == "forced" else process.may_write
        done = next((i for i, number in enumerate(numbers) if not may(number)), count)
        actual = {
            number: mm.peek(self.address(number), self.page_size)
            for number in numbers[:done]
            if process.pages[number].may_be_zero
        }
        addresses = np.array([self.address(n) + offset for n in numbers], dtype=np.uint64)
        if how == "forced":
            tries = (
                attempt(lambda a=address, p=part: mm.gup_write(a, p))
                for address, part in zip(addresses.tolist(), parts, strict=True)
            )
            failed = next((error for error in tries if error), None)
            assert failed is None or failed.errno == errno.EIO
        else:
            if how == "words":
                words = np.frombuffer(payload, dtype=np.uint64)
                failed = attempt(lambda: mm.store_words(addresses, words))
            else:
                sizes = np.full(count, length, dtype=np.uint32)
                content = np.frombuffer(payload, dtype=np.uint8)
                failed = attempt(lambda: mm.store(addresses, sizes, content))
            if isinstance(failed, SegFault):
                assert failed.address // self.page_size == start + done
        assert (failed is not None) == (done < count)
        for number, part in zip(numbers[:done], parts[:done], strict=True):
            process.write(number, offset, part, actual.get(number, b""))

    def read(self, who: int, start: int, count: int) -> None:
        mm, process = self.tasks[who]
        numbers = range(start, start + count)
        first_bad = next((number for number in numbers if not process.may_read(number)), None)
        addresses = np.array([self.address(number) for number in numbers], dtype=np.uint64)
        failed = attempt(lambda: mm.touch(addresses))
        assert failed is None or isinstance(failed, SegFault)
        assert (failed.address // self.page_size if failed else None) == first_bad

    # Processes, swap, clear_refs

    def fork(self, who: int) -> None:
        if len(self.tasks) < 3:
            mm, process = self.tasks[who]
            self.tasks.append((mm.fork(), process.fork()))

    def exit(self, who: int) -> None:
        if len(self.tasks) > 1:
            mm, _ = self.tasks.pop(who)
            mm.exit()

    def swap(self, *, on: bool) -> None:
        if on != self.swap_is_on:
            if on:
                self.machine.swapon()
            else:
                self.machine.swapoff()
            self.swap_is_on = on

    def clear(self, who: int) -> None:
        mm, process = self.tasks[who]
        mm.clear_refs()
        for page in process.pages.values():
            page.written = False

    # Comparison

    def until_hole(self, process: Process, start: int, count: int) -> int:
        numbers = range(start, start + count)
        return next((n for n in numbers if n not in process.pages), start + count)

    @staticmethod
    def outcome(call: Callable[[], object], wanted: int | None) -> None:
        error = attempt(call)
        assert (error.errno if error else None) == wanted

    def check_soft_dirty(self) -> None:
        """No written private page that is there is reported clean."""
        for mm, process in self.tasks:
            written = np.array([n for n, page in process.pages.items() if page.written], np.int64)
            for region in range(REGIONS + FREE_REGIONS):
                first = self.first(region)
                entries = mm.pagemap(self.address(first), self.region_pages)
                here = written[(written >= first) & (written < first + self.region_pages)]
                for bits, what in ((PRESENT | SWAP, "gone"), (SOFT_DIRTY, "reported clean")):
                    wrong = here[entries[here - first] & bits == 0]
                    assert not wrong.size, f"page {int(wrong[0]):#x}: written, but {what}"

    def check_content(self, look: Callable[[Mm, int, int], bytes], *, beneath: bool) -> None:
        """``look`` sees the reference's bytes; ``beneath``: also of pages mapped from an object."""
        for mm, process in self.tasks:
            numbers = sorted(
                number
                for number, page in process.pages.items()
                if process.may_read(number) and (page.beneath is None or beneath)
            )
            for run in _runs(numbers):
                seen = look(mm, self.address(run[0]), len(run) * self.page_size)
                if seen != b"".join(map(process.content, run)):
                    self._check_pages(process, run, seen)

    def _check_pages(self, process: Process, run: list[int], seen: bytes) -> None:
        """Each page is what it may be; MADV_FREE leaves that open."""
        for start, number in enumerate(run):
            page = seen[start * self.page_size : (start + 1) * self.page_size]
            allowed = process.allowed(number)
            assert page in allowed, (
                f"page {number:#x}: {page[:16].hex()}..., not "
                f"{' or '.join(sorted(content[:16].hex() for content in allowed))}"
            )
        assert len(seen) == len(run) * self.page_size


def _runs(numbers: list[int]) -> Iterator[list[int]]:
    """Pages that lie next to each other, in order."""
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        yield [number for _, number in run]


# -- random operations ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    verb: str
    who: int
    region: int
    page: int
    count: int
    offset: int
    length: int


PROFILES = {
    "anon": ("mlock", "munlock", "free", "swapoff", "swapon", "cold", "willneed"),
    "vma": ("mremap", "mremap", "mremap_dontunmap", "munmap", "remap", "remap", "free"),
    "shmem": ("mlock", "munlock", "swapoff", "swapon", "cold", "willneed", "mremap", "munmap"),
    "fork": ("fork", "fork", "exit", "mremap", "free", "swapoff", "swapon"),
}
COMMON = (
    *("write",) * 5,
    *("words", "read", "read", "clear", "clear", "clear", "dontneed", "pageout", "pageout"),
    *("mprotect_r", "mprotect_rw", "mprotect_rw", "mprotect_none", "forced"),
    *("populate_write", "populate_read", "check"),
)


def step(profile: str) -> st.SearchStrategy[Step]:
    return st.builds(
        Step,
        verb=st.sampled_from(COMMON + 2 * PROFILES[profile]),
        who=st.integers(0, 2),
        region=st.integers(0, REGIONS + FREE_REGIONS - 1),
        page=st.integers(0, REGION_PAGES - 1),
        count=st.integers(1, 6),
        offset=st.sampled_from((0, 8, 100, 4095)),
        length=st.sampled_from((1, 4, 64, 4096, 65536)),
    )


def perform(both: Both, this: Step) -> None:
    who = this.who % len(both.tasks)
    count = min(this.count, both.region_pages - this.page)
    start = both.first(this.region) + this.page
    match this.verb:
        case "write" | "words" | "forced":
            both.write(who, start, count, this.offset, this.length, this.verb)
        case "read":
            both.read(who, start, count)
        case "clear":
            both.clear(who)
        case "mprotect_r" | "mprotect_rw" | "mprotect_none":
            both.mprotect(who, start, count, this.verb.removeprefix("mprotect_"))
        case "mlock" | "munlock":
            both.mlock(who, start, count, this.verb == "mlock")
        case "munmap":
            both.munmap(who, start, count)
        case "remap":
            both.remap(who, start, count)
        case "mremap" | "mremap_dontunmap":
            # To another region, to where ``offset`` says: pages never overlap themselves.
            target = REGIONS + this.offset % FREE_REGIONS
            if target != this.region:
                both.mremap(
                    who, start, count, both.first(target) + this.page, this.verb != "mremap"
                )
        case "fork":
            both.fork(who)
        case "exit":
            both.exit(who)
        case "split":
            mm = both.tasks[who][0]
            mm.split_huge_pages(both.address(start), count * both.page_size)
        case "swapoff" | "swapon":
            both.swap(on=this.verb == "swapon")
        case "check":
            both.check_content(Mm.load, beneath=True)
        case advice:
            both.madvise(who, start, count, advice)


MAPPED_AT_START = {
    "anon": st.just(("anon-private", "anon-private")),
    "vma": st.just(("anon-private", "anon-private")),
    "shmem": st.tuples(st.sampled_from(KINDS[1:]), st.sampled_from(KINDS[1:])),
    "fork": st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
}


@pytest.mark.parametrize("profile", PROFILES)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_memory_is_what_was_written(profile: str, data: st.DataObject) -> None:
    page_size = data.draw(st.sampled_from((4096, 16384, 65536)), "page size")
    dbm = data.draw(st.booleans(), "dbm")
    kinds = data.draw(MAPPED_AT_START[profile], "kinds")
    steps = data.draw(st.lists(step(profile), min_size=15, max_size=50), "steps")

    both = Both.fresh(page_size, dbm)
    frames_before = both.machine.used_frames
    for region, kind in enumerate(kinds):
        both.map(region, kind, REGION_PAGES)
    for number, this in enumerate(steps):
        perform(both, this)
        both.check_soft_dirty()
        if number % 4 == 0:
            both.check_content(Mm.peek, beneath=False)
    both.check_content(Mm.peek, beneath=False)
    both.check_content(Mm.load, beneath=True)
    both.check_soft_dirty()
    for mm, _ in both.tasks:
        mm.exit()
    if set(kinds) == {"anon-private"}:
        assert both.machine.used_frames == frames_before
    both.machine.release()


# -- folios of several pages ------------------------------------------------------------------

PMD_PAGES = 512
FOLIO_VERBS = (
    *("write",) * 6,
    *("words", "read", "read", "clear", "clear", "clear", "dontneed", "pageout", "pageout"),
    *("mprotect_r", "mprotect_rw", "mprotect_rw", "mprotect_none", "forced", "free", "cold"),
    *("munmap", "remap", "mremap", "mremap", "mlock", "munlock", "fork", "fork", "exit"),
    *("split", "collapse", "collapse", "hugepage", "nohugepage", "swapoff", "swapon"),
)


def folio_step() -> st.SearchStrategy[Step]:
    """Pages and counts that meet the borders of folios, and such that do not."""
    few = st.sampled_from((1, 3, 16, 40))
    many = st.sampled_from((1, 5, 16, 64, PMD_PAGES, 2 * PMD_PAGES))
    borders = st.sampled_from((0, 16, 32, 64, PMD_PAGES, PMD_PAGES + 16))
    pages = st.one_of(borders, st.integers(0, 2 * PMD_PAGES - 1))

    def build(verb: str) -> st.SearchStrategy[Step]:
        return st.builds(
            Step,
            verb=st.just(verb),
            who=st.integers(0, 2),
            region=st.sampled_from((0, 0, 1, 1, 2, 3)),
            page=pages,
            count=few if verb in ("write", "words", "forced") else many,
            offset=st.sampled_from((0, 8, 4095)),
            length=st.sampled_from((1, 64, 4096)),
        )

    return st.sampled_from(FOLIO_VERBS).flatmap(build)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_large_folios_hold_what_was_written(data: st.DataObject) -> None:
    dbm = data.draw(st.booleans(), "dbm")
    sizes = data.draw(st.sets(st.sampled_from((16, 32, 64, 256))), "mTHP sizes")
    kernel = data.draw(st.sampled_from(("6.12", "6.12", "seed", "6.1")), "kernel")
    steps = data.draw(st.lists(folio_step(), min_size=15, max_size=40), "steps")

    fixed = frozenset({"contpte-access-flags-fixed"})
    both = Both.fresh(4096, dbm, 2 * PMD_PAGES, hunks_off=fixed, kernel=kernel)
    frames_before = both.machine.used_frames
    for size in sizes if kernel != "6.1" else ():
        both.machine.set_mthp(size, "always")
    for region in range(REGIONS):
        both.map(region, "anon-private", 2 * PMD_PAGES)
    both.madvise(0, both.first(0), 2 * PMD_PAGES, "hugepage")
    for number, this in enumerate(steps):
        perform(both, this)
        both.check_soft_dirty()
        if number % 8 == 0:
            both.check_content(Mm.peek, beneath=False)
    both.check_content(Mm.peek, beneath=False)
    both.check_content(Mm.load, beneath=True)
    for mm, _ in both.tasks:
        mm.exit()
    assert both.machine.used_frames == frames_before
    assert both.machine.used_swap_slots == 0
    both.machine.release()
