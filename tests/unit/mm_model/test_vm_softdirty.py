"""VM_SOFTDIRTY: a mapping that is new counts as soft-dirty everywhere (mm/vma.c, mm/mmap.c)."""

from __future__ import annotations

import pytest

from mm_model import MAP_GROWSDOWN, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE, PROT_READ, Machine
from tests.unit.mm_model.kernel_box import (
    ANON_PRIVATE,
    BASE,
    RW,
    Region,
    extents,
    make_machine,
    map_object,
    map_region,
    new_region,
    tracked_region,
    vma_soft_dirty,
)


class TestNewMappings:
    def test_all_their_pages_are_reported_touched_or_not(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        region.write(1)
        assert region.soft_dirty == "sss"
        assert vma_soft_dirty(region.mm) == [True]

    def test_clear_refs_takes_it_away(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        region.mm.clear_refs()
        assert region.soft_dirty == "..."
        assert vma_soft_dirty(region.mm) == [False]

    def test_shared_memory_too(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(2), 2)
        assert region.soft_dirty == "ss"
        region.mm.clear_refs()
        assert region.soft_dirty == ".."

    def test_while_it_lasts_a_write_to_shared_memory_needs_one_fault_only(
        self, any_machine: Machine
    ) -> None:
        """Nothing is write-protected for tracking's sake: a read maps the page writable."""
        region = map_object(any_machine.create_mm(), any_machine.create_shared(1), 1)
        region.read(0)
        assert region.entry_bit(0, 51)
        region.mm.clear_refs()
        assert not region.entry_bit(0, 51)


class TestMerging:
    """A new mapping next to old ones becomes part of them, and makes the whole soft-dirty."""

    @pytest.mark.parametrize("first", [-2, 4])
    def test_with_a_neighbour(self, any_machine: Machine, first: int) -> None:
        region = tracked_region(any_machine, 4)
        map_region(region.mm, 2, start=region.at(first))
        assert len(region.mm.vmas()) == 1
        assert Region(region.mm, region.at(min(first, 0)), 6).soft_dirty == "ssssss"

    def test_between_two(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 6)
        region.mm.munmap(*region.part(2, 2))
        assert extents(region.mm) == [(0, 2), (4, 2)]
        map_region(region.mm, 2, start=region.at(2))
        assert extents(region.mm) == [(0, 6)]
        assert region.soft_dirty == "ssssss"

    def test_over_the_middle_of_one(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 6)
        map_region(region.mm, 2, start=region.at(2))
        assert extents(region.mm) == [(0, 6)]
        assert (region.soft_dirty, region.present) == ("ssssss", "pp..pp")

    def test_not_with_another_protection(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        map_region(region.mm, 2, start=region.at(2), prot=PROT_READ)
        assert extents(region.mm) == [(0, 2), (2, 2)]
        assert Region(region.mm, region.start, 4).soft_dirty == "..ss"


class TestGrowing:
    def test_mremap_in_place_does_not_set_it(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.mm.mremap(region.start, region.length, 2 * region.length)
        assert vma_soft_dirty(region.mm) == [False]
        assert Region(region.mm, region.start, 4).soft_dirty == "...."

    def test_a_growing_stack_does_not_set_it(self, any_machine: Machine) -> None:
        mm = any_machine.create_mm()
        stack = map_region(mm, 2, flags=ANON_PRIVATE | MAP_GROWSDOWN)
        mm.clear_refs()
        stack.read(-1)
        assert vma_soft_dirty(mm) == [False]

    def test_brk_sets_it_for_the_whole_heap(self, any_machine: Machine) -> None:
        mm = any_machine.create_mm()
        size = any_machine.page_size
        mm.set_brk_base(BASE)
        mm.brk(BASE + 2 * size)
        mm.clear_refs()
        assert vma_soft_dirty(mm) == [False]
        mm.brk(BASE + 3 * size)
        assert vma_soft_dirty(mm) == [True]
        assert Region(mm, BASE, 3).soft_dirty == "sss"

    def test_a_shrinking_heap_does_not_set_it(self, any_machine: Machine) -> None:
        mm = any_machine.create_mm()
        size = any_machine.page_size
        mm.set_brk_base(BASE)
        mm.brk(BASE + 3 * size)
        mm.clear_refs()
        mm.brk(BASE + size)
        assert vma_soft_dirty(mm) == [False]


class TestSplittingMovingCopying:
    def test_both_parts_keep_it(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 4)
        region.mm.mprotect(*region.part(1, 1), PROT_READ)
        assert vma_soft_dirty(region.mm) == [True, True, True]
        region.mm.munmap(*region.part(2, 1))
        assert region.soft_dirty == "ss.s"

    def test_a_moved_mapping_takes_it_along_or_stays_without(self, any_machine: Machine) -> None:
        for cleared in (False, True):
            region = new_region(any_machine, 2)
            if cleared:
                region.mm.clear_refs()
            target = BASE + (1 << 30)
            region.mm.mremap(
                region.start, region.length, region.length, MREMAP_MAYMOVE | MREMAP_FIXED, target
            )
            assert vma_soft_dirty(region.mm) == [not cleared]

    def test_fork_copies_it(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        assert vma_soft_dirty(region.mm.fork()) == [True]
        region.mm.clear_refs()
        assert vma_soft_dirty(region.mm.fork()) == [False]


class TestLostInAMerge:
    """A fault of these kernels: when mprotect makes two mappings one, the changed one's flag stays.

    VM_SOFTDIRTY does not hinder the merge, and mprotect_fixup() then writes the flags of the range
    that it was called for over those of the whole. Linux mended it after 6.18 ("mm: propagate
    VM_SOFTDIRTY on merge"): CRIU's incremental dumps had failed on it.
    """

    def test_holes_of_the_new_mapping_are_no_longer_reported(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.mm.clear_refs()
        map_region(region.mm, 2, start=region.at(2), prot=PROT_READ)
        both = Region(region.mm, region.start, 4)
        assert both.soft_dirty == "..ss"
        region.mm.mprotect(*region.part(0, 2), PROT_READ)
        assert extents(region.mm) == [(0, 4)]
        assert both.soft_dirty == "...."

    @pytest.mark.parametrize("dbm", [True, False])
    def test_a_write_that_only_the_flag_told_of_is_lost(self, dbm: bool) -> None:
        region = tracked_region(make_machine(dbm=dbm), 4)
        region.mm.mprotect(*region.part(2, 2), PROT_READ)  # stays clean
        map_region(region.mm, 2, start=region.at(-2))  # merges with pages 0 and 1
        # Under the flag mprotect sees no need to catch the next write to a page.
        region.mm.mprotect(*region.part(-2, 4), PROT_NONE)
        region.mm.mprotect(*region.part(-2, 4), RW)
        assert region.write(0) == 0
        assert region.soft_dirty == "ss.."
        region.mm.mprotect(*region.part(2, 2), RW)
        assert extents(region.mm) == [(-2, 6)]
        assert region.soft_dirty == "...."
