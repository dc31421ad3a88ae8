"""Explicit huge pages (hugetlb) of every size that each page size and architecture offers."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from numpy.typing import NDArray

from mm_model import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_PAGEOUT,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE_IS_HUGE,
    PAGE_IS_SOFT_DIRTY,
    PAGE_IS_WRITTEN,
    PM_FILE,
    PM_MMAP_EXCLUSIVE,
    PM_PRESENT,
    PM_SCAN_WP_MATCHING,
    PM_SOFT_DIRTY,
    PM_SWAP,
    PM_UFFD_WP,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    MmError,
    ModelConfig,
    SegFault,
)
from mm_model.arm64.hugetlbpage import huge_ptep_set_access_flags
from mm_model.arm64.pgtable import pte_mkclean, pte_wrprotect
from mm_model.pagewalk import walk
from mm_model.state import LARGE_FOLIOS, PGD

BASE = 0x10_0000_0000
RW = PROT_READ | PROT_WRITE
DIRTY, SOFT_DIRTY = np.uint64(1 << 55), np.uint64(1 << 63)
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZES = [
    pytest.param("arm64", 4096, 64 * KIB, id="4K-64K"),
    pytest.param("arm64", 4096, 2 * MIB, id="4K-2M"),
    pytest.param("arm64", 4096, 32 * MIB, id="4K-32M"),
    pytest.param("arm64", 16384, 2 * MIB, id="16K-2M"),
    pytest.param("arm64", 16384, 32 * MIB, id="16K-32M"),
    pytest.param("arm64", 65536, 2 * MIB, id="64K-2M"),
    pytest.param("arm64", 65536, 512 * MIB, id="64K-512M"),
    pytest.param("x86_64", 4096, 2 * MIB, id="x86-2M"),
]
GIGANTIC = [
    pytest.param("arm64", 4096, GIB, id="4K-1G"),
    pytest.param("arm64", 16384, GIB, id="16K-1G"),
    pytest.param("x86_64", 4096, GIB, id="x86-1G"),
]
every_size = pytest.mark.parametrize(("arch", "page_size", "huge"), SIZES)


def flags_of(huge: int) -> int:
    return MAP_HUGETLB | (huge.bit_length() - 1) << MAP_HUGE_SHIFT


def mapped(arch: str, page_size: int, huge: int, kind: int = MAP_PRIVATE) -> Mm:
    """Two huge pages' worth of hugetlb memory, nothing touched."""
    config = ModelConfig(page_size, frames=6 * huge // page_size, arch=arch)
    mm = Machine(config).create_mm()
    mm.mmap(BASE, 2 * huge, RW, kind | MAP_ANONYMOUS | MAP_FIXED | flags_of(huge))
    return mm


def small(kind: int = MAP_PRIVATE) -> Mm:
    return mapped("arm64", 4096, 64 * KIB, kind)


def one(address: int) -> NDArray[np.uint64]:
    return np.array([address], np.uint64)


def store(mm: Mm, address: int, value: int) -> None:
    mm.store_words(one(address), one(value))


def count(mm: Mm, bit: np.uint64, length: int) -> int:
    return int(np.count_nonzero(mm.pagemap(BASE, length // mm.machine.page_size) & bit))


def refusal(call: object, *arguments: object, **options: object) -> int | None:
    with pytest.raises(MmError) as refused:
        call(*arguments, **options)  # type: ignore[operator]
    return refused.value.errno


class TestFirstTouch:
    @pytest.mark.parametrize(("arch", "page_size", "huge"), [*SIZES, *GIGANTIC])
    def test_brings_a_whole_page_and_exit_frees_it(
        self, arch: str, page_size: int, huge: int
    ) -> None:
        mm = mapped(arch, page_size, huge)
        store(mm, BASE + huge - 8, 7)
        pages = huge // page_size
        assert mm.machine.used_frames == mm.hugetlb_pages == count(mm, PM_PRESENT, 2 * huge)
        assert mm.hugetlb_pages == pages
        assert mm.rss_pages == 0  # VmRSS leaves hugetlb out
        assert mm.frames(BASE, 1)[0] % pages == 0
        assert mm.load(BASE + huge - 8, 1) == b"\x07"
        mm.exit()
        assert mm.machine.used_frames == 0

    @every_size
    def test_by_a_read_too_and_there_is_no_zero_page(
        self, arch: str, page_size: int, huge: int
    ) -> None:
        mm = mapped(arch, page_size, huge)
        mm.touch(one(BASE))
        assert mm.hugetlb_pages == huge // page_size
        before = mm.machine.faults.minor
        store(mm, BASE, 7)  # write-protected until now, but its own
        assert mm.machine.faults.minor == before + 1
        assert mm.machine.used_frames == huge // page_size

    def test_takes_one_fault_whatever_part_is_touched(self) -> None:
        mm = mapped("arm64", 4096, 2 * MIB)
        assert mm.touch_write(np.uint64(BASE) + np.arange(1024, dtype=np.uint64) * 4096) == 2

    def test_fails_when_no_run_of_frames_is_free(self) -> None:
        mm = Machine(ModelConfig(frames=600)).create_mm()
        mm.mmap(BASE, 4 * MIB, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flags_of(2 * MIB))
        assert refusal(store, mm, BASE, 1) == errno.ENOMEM


class TestSoftDirty:
    @pytest.mark.parametrize("kind", [MAP_PRIVATE, MAP_SHARED])
    @every_size
    def test_writes_after_clear_refs_are_not_seen_in_pagemap(
        self, arch: str, page_size: int, huge: int, kind: int
    ) -> None:
        mm = mapped(arch, page_size, huge, kind)
        store(mm, BASE, 7)
        assert count(mm, PM_SOFT_DIRTY, 2 * huge) == 2 * huge // page_size
        assert count(mm, PM_FILE, 2 * huge) == (huge // page_size if kind == MAP_SHARED else 0)
        mm.clear_refs()
        store(mm, BASE, 8)
        store(mm, BASE + huge, 9)
        assert count(mm, PM_SOFT_DIRTY, 2 * huge) == 0
        assert count(mm, PM_MMAP_EXCLUSIVE, 2 * huge) == 2 * huge // page_size

    @every_size
    def test_pagemap_scan_shows_the_entrys_own_bit_which_stays(
        self, arch: str, page_size: int, huge: int
    ) -> None:
        mm = mapped(arch, page_size, huge)
        store(mm, BASE, 7)
        mm.clear_refs()
        kinds = PAGE_IS_SOFT_DIRTY | PAGE_IS_HUGE
        found = mm.pagemap_scan(
            BASE, BASE + 2 * huge, category_mask=PAGE_IS_SOFT_DIRTY, return_mask=kinds
        )
        assert found.regions.tolist() == [[BASE, BASE + huge, kinds]]

    def test_hardware_makes_a_shared_page_dirty_without_a_fault_or_soft_dirty(self) -> None:
        """Mapped for reading and then made writable: with DBM no fault notes the first store."""
        mm = small(MAP_SHARED)
        mm.mprotect(BASE, 128 * KIB, PROT_READ)
        mm.touch(one(BASE))
        mm.mprotect(BASE, 128 * KIB, RW)
        before = mm.machine.faults.minor
        store(mm, BASE, 7)
        assert mm.machine.faults.minor == before
        mm.clear_refs()
        assert not mm.pagemap_scan(
            BASE, BASE + 64 * KIB, category_mask=PAGE_IS_SOFT_DIRTY
        ).regions.size

    @pytest.mark.parametrize(
        ("hunk", "invented"),
        [
            ("huge_ptep_get", True),
            ("get_clear_contig", True),
            ("huge_ptep_set_access_flags", False),
        ],
    )
    def test_without_a_hunk_gathering_dirty_bits_invents_it(
        self, hunk: str, invented: bool
    ) -> None:
        mm = Machine(ModelConfig(frames=256, hunks_off=frozenset({hunk}))).create_mm()
        flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED | flags_of(64 * KIB)
        mm.mmap(BASE, 64 * KIB, PROT_READ, flags)
        mm.touch(one(BASE))
        mm.mprotect(BASE, 64 * KIB, RW)
        store(mm, BASE, 7)
        mm.mprotect(BASE, 64 * KIB, PROT_READ)  # takes the entries down and sets them again
        mm.clear_refs()
        found = mm.pagemap_scan(BASE, BASE + 64 * KIB, category_mask=PAGE_IS_SOFT_DIRTY)
        assert bool(found.regions.size) == invented
        assert count(mm, PM_SOFT_DIRTY, 64 * KIB) == 0

    def test_access_flags_gathered_from_a_run_are_no_soft_dirty(self) -> None:
        """Entries that a fault finds dirty are soft-dirty already, but for ones made by hand."""

        def gathered(**settings: object) -> int:
            machine = Machine(ModelConfig(frames=256, **settings))  # type: ignore[arg-type]
            mm = machine.create_mm()
            mm.mmap(
                BASE, 64 * KIB, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flags_of(64 * KIB)
            )
            store(mm, BASE, 7)
            first = walk(machine.arch, machine.phys, mm.space.regs[PGD], np.uint64(BASE))
            run = machine.phys.tables[first : first + 16]
            run &= ~SOFT_DIRTY
            clean = pte_mkclean(
                pte_wrprotect(run[0])
            )  # what a fault that saw no dirty entry would set
            assert huge_ptep_set_access_flags(machine.arch, machine.phys, first, clean, 16, 1)
            assert np.all(run & DIRTY)
            return int(np.count_nonzero(run & SOFT_DIRTY))

        assert gathered() == 0
        assert gathered(hunks_off=frozenset({"huge_ptep_set_access_flags"})) == 16

    def test_clear_refs_leaves_the_access_flag_alone(self) -> None:
        mm = small()
        store(mm, BASE, 7)
        before = mm.ptes(BASE, 16).tolist()
        mm.clear_refs(1)
        assert mm.ptes(BASE, 16).tolist() == before


class TestFork:
    @every_size
    def test_shares_private_pages_until_written(self, arch: str, page_size: int, huge: int) -> None:
        mm = mapped(arch, page_size, huge)
        store(mm, BASE, 7)
        store(mm, BASE + huge, 8)
        used = mm.machine.used_frames
        child = mm.fork()
        assert child.load(BASE, 1) + child.load(BASE + huge, 1) == b"\x07\x08"
        assert mm.machine.used_frames == used
        assert count(child, PM_MMAP_EXCLUSIVE, 2 * huge) == 0
        store(child, BASE + 8, 9)
        assert mm.machine.used_frames == used + huge // page_size
        assert child.load(BASE, 9) == b"\x07" + bytes(7) + b"\x09"
        assert mm.load(BASE, 9) == b"\x07" + bytes(8)
        store(mm, BASE, 5)  # the parent has its page for itself now
        assert mm.machine.used_frames == used + huge // page_size
        mm.exit()
        child.exit()
        assert mm.machine.used_frames == 0

    @every_size
    def test_of_shared_memory_copies_no_entry(self, arch: str, page_size: int, huge: int) -> None:
        mm = mapped(arch, page_size, huge, MAP_SHARED)
        store(mm, BASE, 6)
        child = mm.fork()
        assert child.hugetlb_pages == 0
        store(mm, BASE, 7)
        assert child.load(BASE, 1) == b"\x07"
        mm.munmap(BASE, 2 * huge)
        store(child, BASE, 8)
        child.madvise(BASE, 2 * huge, MADV_DONTNEED)
        assert count(child, PM_PRESENT, 2 * huge) == 0
        assert child.load(BASE, 1) == b"\x08"
        child.exit()
        assert mm.machine.used_frames == 0


class TestWholePagesOnly:
    @every_size
    def test_mprotect(self, arch: str, page_size: int, huge: int) -> None:
        mm = mapped(arch, page_size, huge)
        store(mm, BASE, 7)
        assert refusal(mm.mprotect, BASE, page_size, PROT_READ) == errno.EINVAL
        mm.mprotect(BASE, huge, PROT_NONE)
        assert count(mm, PM_PRESENT, 2 * huge) == huge // page_size
        with pytest.raises(SegFault):
            mm.touch(one(BASE))
        mm.mprotect(BASE, huge, RW)
        assert len(mm.vmas()) == 2  # mappings of hugetlb never merge
        store(mm, BASE, 8)
        assert mm.load(BASE, 1) == b"\x08"

    @every_size
    def test_mremap(self, arch: str, page_size: int, huge: int) -> None:
        mm = mapped(arch, page_size, huge)
        store(mm, BASE, 8)
        target = BASE + 4 * GIB
        entry = mm.ptes(BASE, 1).tolist()
        assert mm.mremap(BASE, huge, huge, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target
        assert mm.ptes(target, 1).tolist() == entry
        assert mm.load(target, 1) == b"\x08"
        assert mm.hugetlb_pages == huge // page_size
        for length, flags in ((2 * huge, 0), (2 * huge, MREMAP_MAYMOVE)):
            assert refusal(mm.mremap, target, huge, length, flags) == errno.EINVAL
        dontunmap = MREMAP_MAYMOVE | MREMAP_DONTUNMAP
        assert refusal(mm.mremap, target, huge, huge, dontunmap) == errno.EINVAL

    @every_size
    def test_munmap(self, arch: str, page_size: int, huge: int) -> None:
        mm = mapped(arch, page_size, huge)
        store(mm, BASE, 7)
        assert refusal(mm.munmap, BASE, page_size) == errno.EINVAL
        assert mm.load(BASE, 1) == b"\x07"
        mm.munmap(BASE, huge)
        assert mm.machine.used_frames == 0

    def test_a_refused_call_may_leave_the_mapping_split_but_sound(self) -> None:
        mm = small()
        store(mm, BASE, 7)
        store(mm, BASE + 64 * KIB, 8)
        assert refusal(mm.mprotect, BASE + 64 * KIB, 4096, PROT_READ) == errno.EINVAL
        mm.clear_refs()
        child = mm.fork()
        assert child.load(BASE, 1) + child.load(BASE + 64 * KIB, 1) == b"\x07\x08"

    def test_dontneed_takes_no_page_of_which_only_the_start_is_named(self) -> None:
        mm = small()
        store(mm, BASE, 7)
        store(mm, BASE + 64 * KIB, 8)
        assert refusal(mm.madvise, BASE + 4096, 4096, MADV_DONTNEED) == errno.EINVAL
        mm.madvise(BASE, 4096, MADV_DONTNEED)
        assert count(mm, PM_PRESENT, 128 * KIB) == 32
        mm.madvise(BASE, 64 * KIB + 4096, MADV_DONTNEED)
        assert count(mm, PM_PRESENT, 128 * KIB) == 16
        assert mm.load(BASE, 1) == b"\x00"

    def test_a_mapping_is_placed_and_sized_in_huge_pages(self) -> None:
        mm = Machine(ModelConfig(4096, frames=64)).create_mm()
        mm.mmap(None, 4096, RW, MAP_PRIVATE | MAP_ANONYMOUS)
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB
        start = mm.mmap(None, 4096, RW, flags)
        assert start % (2 * MIB) == 0  # without a size: that of a PMD
        assert mm.vmas()[0].end - start == 2 * MIB
        assert refusal(mm.mmap, BASE + 4096, 4096, RW, flags | MAP_FIXED) == errno.EINVAL


class TestRefusals:
    @pytest.mark.parametrize(
        "advice", [MADV_PAGEOUT, MADV_COLD, MADV_FREE, MADV_COLLAPSE, MADV_WIPEONFORK]
    )
    def test_it_is_neither_reclaimed_nor_collapsed_nor_wiped(self, advice: int) -> None:
        mm = small()
        store(mm, BASE, 7)
        assert refusal(mm.madvise, BASE, 128 * KIB, advice) == errno.EINVAL
        assert count(mm, PM_SWAP, 128 * KIB) == 0

    def test_advice_about_transparent_huge_pages_means_nothing(self) -> None:
        mm = small()
        mm.madvise(BASE, 128 * KIB, MADV_HUGEPAGE)
        store(mm, BASE, 7)
        assert mm.hugetlb_pages == 16
        assert mm.split_huge_pages(BASE, 128 * KIB) == 0
        assert mm.machine.compact() == 0

    def test_forced_writes(self) -> None:
        mm = small()
        mm.mprotect(BASE, 128 * KIB, PROT_READ)
        assert refusal(mm.gup_write, BASE, b"x") == errno.EIO
        assert mm.gup_read(BASE, 1) == b"\x00"

    @pytest.mark.parametrize(
        ("arch", "page_size", "huge"),
        [
            ("arm64", 4096, 4 * MIB),
            ("arm64", 16384, 64 * KIB),
            ("arm64", 65536, 64 * KIB),
            ("arm64", 65536, GIB),
            ("x86_64", 4096, 64 * KIB),
            ("x86_64", 4096, 32 * MIB),
        ],
    )
    def test_sizes_that_the_hardware_has_not(self, arch: str, page_size: int, huge: int) -> None:
        assert refusal(mapped, arch, page_size, huge) == errno.EINVAL


class TestObjectsOfHugePages:
    def test_two_processes_share_one(self) -> None:
        machine = Machine(ModelConfig(frames=128))
        shared_id = machine.create_shared(20, keep=True, huge=4)
        first, second = machine.create_mm(), machine.create_mm()
        for mm in (first, second):
            mm.mmap(BASE, 128 * KIB, RW, MAP_SHARED | MAP_FIXED, shared_id=shared_id)
        store(first, BASE, 7)
        assert second.load(BASE, 1) == b"\x07"
        assert second.vmas()[0].flags & MAP_HUGETLB
        first.exit()
        second.exit()
        assert machine.used_frames == 16
        machine.close_shared(shared_id)
        assert machine.used_frames == 0

    def test_a_private_mapping_copies_on_write(self) -> None:
        machine = Machine(ModelConfig(frames=128))
        shared_id = machine.create_shared(16, keep=True, huge=4)
        shared, private = machine.create_mm(), machine.create_mm()
        shared.mmap(BASE, 64 * KIB, RW, MAP_SHARED | MAP_FIXED, shared_id=shared_id)
        private.mmap(BASE, 64 * KIB, RW, MAP_PRIVATE | MAP_FIXED, shared_id=shared_id)
        store(shared, BASE, 7)
        assert private.load(BASE, 1) == b"\x07"
        store(private, BASE, 8)
        assert shared.load(BASE, 1) + private.load(BASE, 1) == b"\x07\x08"

    def test_beyond_its_end_there_is_a_bus_error(self) -> None:
        machine = Machine(ModelConfig(frames=128))
        shared_id = machine.create_shared(16, huge=4)
        mm = machine.create_mm()
        mm.mmap(BASE, 128 * KIB, RW, MAP_SHARED | MAP_FIXED, shared_id=shared_id)
        with pytest.raises(SegFault) as fault:
            store(mm, BASE + 64 * KIB, 1)
        assert fault.value.signal == 7

    def test_a_hole_takes_whole_pages_and_zeroes_the_rest(self) -> None:
        mm = small(MAP_SHARED)
        for page in (0, 3, 16):
            store(mm, BASE + page * 4096, 7)
        mm.madvise(BASE + 3 * 4096, 29 * 4096, MADV_REMOVE)
        assert mm.machine.used_frames == 16
        assert [mm.load(BASE + page * 4096, 1) for page in (0, 3, 16)] == [b"\x07", b"\0", b"\0"]

    def test_base_page_objects_are_no_hugetlb(self) -> None:
        machine = Machine(ModelConfig(frames=128))
        mm = machine.create_mm()
        shared_id = machine.create_shared(16)
        flags = MAP_SHARED | MAP_HUGETLB
        assert refusal(mm.mmap, BASE, 4096, RW, flags, shared_id=shared_id) == errno.EINVAL


class TestWriteProtection:
    """userfaultfd with WP_ASYNC, which unlike soft-dirty knows hugetlb."""

    @every_size
    def test_the_page_that_is_written_loses_its_mark(
        self, arch: str, page_size: int, huge: int
    ) -> None:
        mm = mapped(arch, page_size, huge)
        store(mm, BASE, 7)
        uffd = mm.userfaultfd()
        uffd.register(BASE, 2 * huge)
        uffd.writeprotect(BASE, 2 * huge)
        assert count(mm, PM_UFFD_WP, 2 * huge) == 2 * huge // page_size
        store(mm, BASE + page_size, 8)
        assert count(mm, PM_UFFD_WP, 2 * huge) == huge // page_size
        store(mm, BASE + huge, 8)  # a marker said that it is protected
        assert count(mm, PM_UFFD_WP, 2 * huge) == 0
        assert mm.load(BASE, 1) == b"\x07"

    def test_goes_by_whole_pages(self) -> None:
        mm = small()
        uffd = mm.userfaultfd()
        assert refusal(uffd.register, BASE, 4096) == errno.EINVAL
        uffd.register(BASE, 128 * KIB)
        assert refusal(uffd.writeprotect, BASE, 4096) == errno.EINVAL

    def test_a_discarded_page_stays_marked(self) -> None:
        mm = small()
        store(mm, BASE, 7)
        uffd = mm.userfaultfd()
        uffd.register(BASE, 128 * KIB)
        uffd.writeprotect(BASE, 64 * KIB)
        mm.madvise(BASE, 128 * KIB, MADV_DONTNEED)
        assert count(mm, PM_UFFD_WP, 128 * KIB) == 16
        uffd.close()
        assert count(mm, PM_UFFD_WP, 128 * KIB) == 0
        assert mm.machine.used_frames == 0

    @pytest.mark.parametrize(("huge", "protected"), [(2 * MIB, 512), (64 * KIB, 0)])
    def test_pagemap_scan_protects_pages_of_pmd_size_only(self, huge: int, protected: int) -> None:
        """The kernel compares with HPAGE_SIZE, and takes a page of any other size for a part."""
        mm = mapped("arm64", 4096, huge)
        store(mm, BASE, 7)
        mm.userfaultfd().register(BASE, 2 * huge)
        found = mm.pagemap_scan(
            BASE, BASE + huge, flags=PM_SCAN_WP_MATCHING, category_mask=PAGE_IS_WRITTEN,
            return_mask=PAGE_IS_WRITTEN,
        )  # fmt: skip
        assert count(mm, PM_UFFD_WP, huge) == protected
        assert len(found.regions) == (1 if protected else 0)
        assert found.walk_end == (BASE + huge if protected else BASE)


class TestRestoring:
    @every_size
    def test_install_and_discard_go_by_base_pages(
        self, arch: str, page_size: int, huge: int
    ) -> None:
        mm = mapped(arch, page_size, huge)
        mm.mprotect(BASE, 2 * huge, PROT_READ)
        where = np.array([BASE + page_size, BASE + huge - page_size], np.uint64)
        mm.install(where, np.repeat(np.array([7, 8], np.uint8), page_size))
        assert mm.load(BASE + page_size, 1) + mm.load(BASE + huge - 1, 1) == b"\x07\x08"
        assert mm.load(BASE, 1) == b"\x00"
        with pytest.raises(SegFault):
            store(mm, BASE, 1)
        mm.discard(where[:1])
        assert mm.peek(BASE + page_size, 1) + mm.peek(BASE + huge - 1, 1) == b"\x00\x08"

    def test_a_mapping_says_how_it_was_made(self) -> None:
        mm = small()
        (vma,) = mm.vmas()
        assert vma.flags == MAP_PRIVATE | MAP_ANONYMOUS | flags_of(64 * KIB)
        assert vma.shared_id == 0


def test_populating_and_locking_bring_pages_in() -> None:
    mm = small()
    mm.madvise(BASE, 64 * KIB, MADV_POPULATE_WRITE)
    assert mm.hugetlb_pages == 16
    mm.mlock(BASE, 128 * KIB)
    assert mm.hugetlb_pages == 32
    assert not mm.vmas()[0].locked  # mlock of hugetlb sets no flag


def test_other_mappings_are_as_fast_as_ever() -> None:
    """Pages of hugetlb do not count as large folios, for which common paths look more closely."""
    mm = small()
    store(mm, BASE, 7)
    assert mm.machine.phys.ctr[LARGE_FOLIOS] == 0
