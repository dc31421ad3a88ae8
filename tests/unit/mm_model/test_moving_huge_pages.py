"""Page migration of large folios: huge pages by one entry, others by their page entries."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mm_model import (
    MADV_FREE,
    MADV_HUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE_IS_HUGE,
    PAGE_IS_SWAPPED,
    PM_PRESENT,
    PM_SOFT_DIRTY,
    PM_SWAP,
    PM_UFFD_WP,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    ModelConfig,
)
from mm_model.arm64.pgtable import PTE_CONT, PTE_VALID

PAGE, HUGE = 4096, 2 << 20
RW = PROT_READ | PROT_WRITE
BASE = 0x10_0000_0000
every_arch = pytest.mark.parametrize("arch", ["arm64", "x86_64"])


def at(*pages: int) -> NDArray[np.uint64]:
    return np.uint64(BASE) + np.array(pages, np.uint64) * np.uint64(PAGE)


def huge_page(*, frames: int = 4096, off: tuple[str, ...] = (), **settings: str) -> Mm:
    """One huge page with a 7 in front, mapped by one entry, soft-dirty by itself only."""
    config = ModelConfig(frames=frames, hunks_off=frozenset(off), **settings)  # type: ignore[arg-type]
    mm = Machine(config).create_mm()
    mm.mmap(BASE, HUGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    mm.madvise(BASE, HUGE, MADV_HUGEPAGE)
    mm.clear_refs()
    write(mm, 0, 7)
    assert mm.machine.used_frames == 512
    return mm


def write(mm: Mm, page: int, value: int) -> None:
    mm.store_words(at(page), np.array([value], np.uint64))


def rows(mm: Mm, bit: np.uint64, start: int = BASE) -> int:
    return int(np.count_nonzero(mm.pagemap(start, 512) & bit))


def soft_dirty(mm: Mm, start: int = BASE) -> int:
    return rows(mm, PM_SOFT_DIRTY, start)


class TestWhole:
    @every_arch
    def test_a_huge_page_moves_with_its_bytes_and_stays_one(self, arch: str) -> None:
        mm = huge_page(arch=arch)
        before = mm.frames(BASE, 512)
        assert mm.machine.migrate_start(mm, BASE, 1) == 512  # one page of it is enough
        mm.machine.migrate_finish()
        after = mm.frames(BASE, 512)
        assert not set(before.tolist()) & set(after.tolist())
        assert (np.diff(after) == 1).all()
        assert after[0] % 512 == 0
        assert mm.load(BASE, 1) == b"\x07"
        assert mm.machine.used_frames == mm.rss_pages == 512
        assert mm.split_huge_pages(BASE, HUGE) == 1  # it was still one
        mm.exit()
        assert mm.machine.used_frames == 0

    def test_where_there_is_no_room_it_stays(self) -> None:
        mm = huge_page(frames=1100)
        before = mm.frames(BASE, 512)
        mm.machine.compact()
        assert mm.frames(BASE, 512).tolist() == before.tolist()
        assert rows(mm, PM_PRESENT) == 512

    def test_the_huge_zero_page_does_not_move(self) -> None:
        mm = Machine(ModelConfig(frames=2048)).create_mm()
        mm.mmap(BASE, HUGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
        mm.madvise(BASE, HUGE, MADV_HUGEPAGE)
        mm.touch(at(0))
        assert mm.machine.migrate_start(mm, BASE, 512) == 0

    def test_a_contiguous_block_is_unfolded_and_folded_again(self) -> None:
        mm = Machine(ModelConfig(frames=256)).create_mm()
        mm.machine.set_mthp(64, "always")
        mm.mmap(BASE, 16 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
        write(mm, 3, 7)
        assert (mm.ptes(BASE, 16) & PTE_CONT).all()
        before = mm.frames(BASE, 16)
        assert mm.machine.migrate_start(mm, BASE, 16) == 16
        assert not (mm.ptes(BASE, 16) & PTE_VALID).any()
        mm.machine.migrate_finish()
        assert (mm.ptes(BASE, 16) & PTE_CONT).all()
        assert (mm.frames(BASE, 16) != before).all()
        assert mm.load(BASE + 3 * PAGE, 1) == b"\x07"

    def test_every_process_that_shares_it_sees_it_moved(self) -> None:
        mm = huge_page()
        child = mm.fork()
        mm.machine.compact()
        assert child.frames(BASE, 512).tolist() == mm.frames(BASE, 512).tolist()
        write(child, 0, 8)
        assert mm.load(BASE, 1) + child.load(BASE, 1) == b"\x07\x08"


class TestMeanwhile:
    @every_arch
    def test_it_counts_as_swapped_and_keeps_soft_dirty(self, arch: str) -> None:
        mm = huge_page(arch=arch)
        mm.machine.migrate_start(mm, BASE, 512)
        assert (rows(mm, PM_PRESENT), rows(mm, PM_SWAP), soft_dirty(mm)) == (0, 512, 512)
        found = mm.pagemap_scan(BASE, BASE + HUGE, category_mask=PAGE_IS_SWAPPED, return_mask=0x50)
        assert found.regions.tolist() == [[BASE, BASE + HUGE, PAGE_IS_SWAPPED | PAGE_IS_HUGE]]
        assert mm.peek(BASE, 1) == b"\x07"

    @every_arch
    def test_whoever_touches_it_waits_for_the_end(self, arch: str) -> None:
        mm = huge_page(arch=arch)
        mm.machine.migrate_start(mm, BASE, 512)
        assert mm.load(BASE, 1) == b"\x07"
        assert rows(mm, PM_PRESENT) == 512
        mm.machine.migrate_start(mm, BASE, 512)
        mm.gup_write(BASE, b"\x08")
        assert mm.load(BASE, 1) == b"\x08"

    @every_arch
    def test_clear_refs_reaches_it_but_a_dirty_page_comes_back_soft_dirty(self, arch: str) -> None:
        """remove_migration_pmd() makes it dirty again, and thereby soft-dirty; page entries not."""
        mm = huge_page(arch=arch)
        mm.machine.migrate_start(mm, BASE, 512)
        mm.clear_refs()
        assert soft_dirty(mm) == 0
        mm.machine.migrate_finish()
        assert soft_dirty(mm) == 512

    def test_a_clean_page_keeps_the_bit_that_it_had(self) -> None:
        mm = huge_page()
        mm.madvise(BASE, HUGE, MADV_FREE)  # clean, and still soft-dirty
        mm.machine.compact()
        assert soft_dirty(mm) == 512
        mm.clear_refs()
        mm.machine.compact()
        assert soft_dirty(mm) == 0

    @every_arch
    def test_unmapping_a_part_splits_its_entry(self, arch: str) -> None:
        mm = huge_page(arch=arch)
        mm.machine.migrate_start(mm, BASE, 512)
        mm.munmap(BASE + 256 * PAGE, 256 * PAGE)
        assert (rows(mm, PM_SWAP), soft_dirty(mm)) == (256, 256)
        mm.machine.migrate_finish()
        assert (rows(mm, PM_PRESENT), soft_dirty(mm)) == (256, 256)
        assert mm.load(BASE, 1) == b"\x07"
        mm.exit()
        assert mm.machine.used_frames == 0

    @every_arch
    def test_unmapping_all_of_it_frees_it(self, arch: str) -> None:
        mm = huge_page(arch=arch)
        mm.machine.migrate_start(mm, BASE, 512)
        mm.munmap(BASE, HUGE)
        mm.machine.migrate_finish()
        assert mm.machine.used_frames == 0
        assert mm.rss_pages == 0

    @every_arch
    def test_fork_shares_it(self, arch: str) -> None:
        mm = huge_page(arch=arch)
        mm.machine.migrate_start(mm, BASE, 512)
        child = mm.fork()
        write(mm, 0, 9)  # ends the move, and copies
        assert child.load(BASE, 1) + mm.load(BASE, 1) == b"\x07\x09"
        child.exit()
        mm.exit()
        assert mm.machine.used_frames == 0

    @every_arch
    def test_mprotect_takes_the_write_permission_that_it_remembers(self, arch: str) -> None:
        mm = huge_page(arch=arch)
        mm.machine.migrate_start(mm, BASE, 512)
        mm.mprotect(BASE, HUGE, PROT_READ)
        assert soft_dirty(mm) == 512
        mm.machine.migrate_finish()
        mm.mprotect(BASE, HUGE, RW)
        mm.clear_refs()
        before = mm.machine.faults.minor
        write(mm, 0, 8)
        assert mm.machine.faults.minor == before + 1
        assert soft_dirty(mm) == 512

    @every_arch
    def test_mremap_marks_it(self, arch: str) -> None:
        mm = huge_page(arch=arch)
        mm.clear_refs()
        mm.machine.migrate_start(mm, BASE, 512)
        target = BASE + (1 << 30)
        mm.mremap(BASE, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, target)
        assert soft_dirty(mm, target) == 512
        assert mm.load(target, 1) == b"\x07"

    @every_arch
    def test_userfaultfd_protects_it(self, arch: str) -> None:
        mm = huge_page(arch=arch)
        uffd = mm.userfaultfd()
        uffd.register(BASE, HUGE)
        mm.machine.migrate_start(mm, BASE, 512)
        uffd.writeprotect(BASE, HUGE)
        assert rows(mm, PM_UFFD_WP) == 512
        mm.machine.migrate_finish()
        assert rows(mm, PM_UFFD_WP) == 512
        write(mm, 0, 8)
        assert rows(mm, PM_UFFD_WP) == 511


class TestHunksOff:
    @pytest.mark.parametrize("hunk", ["pmd_swp_mksoft_dirty", "pmd_swp_soft_dirty"])
    def test_written_pages_are_lost_while_they_move(self, hunk: str) -> None:
        mm = huge_page(off=(hunk,))
        mm.machine.migrate_start(mm, BASE, 512)
        assert soft_dirty(mm) == 0

    @pytest.mark.parametrize("hunk", ["pmd_swp_mksoft_dirty", "pmd_swp_soft_dirty"])
    def test_and_for_ever_if_they_are_clean(self, hunk: str) -> None:
        mm = huge_page(off=(hunk,))
        mm.madvise(BASE, HUGE, MADV_FREE)
        mm.machine.compact()
        assert soft_dirty(mm) == 0

    def test_what_was_cleared_is_reported_while_it_moves(self) -> None:
        mm = huge_page(off=("pmd_swp_clear_soft_dirty",))
        mm.machine.migrate_start(mm, BASE, 512)
        mm.clear_refs()
        assert soft_dirty(mm) == 512
