"""/proc/PID/clear_refs: what each mode clears, and what it leaves alone (fs/proc/task_mmu.c)."""

from __future__ import annotations

import errno

import pytest

from mm_model import MADV_DONTNEED, MADV_PAGEOUT, PROT_NONE, Machine, MmError
from tests.unit.mm_model.kernel_box import (
    BASE,
    Region,
    make_machine,
    map_object,
    map_region,
    new_region,
    tracked_region,
)

AF, WRITE, DIRTY, SOFT_DIRTY = 10, 51, 55, 63
SWP_SOFT_DIRTY = 4


class TestSoftDirty:
    """Mode 4."""

    def test_clears_the_bit_and_the_write_permission_of_every_page(
        self, any_machine: Machine
    ) -> None:
        region = new_region(any_machine, 3)
        region.write_all()
        region.mm.clear_refs(4)
        assert region.soft_dirty == "..."
        for page in range(3):
            assert not region.entry_bit(page, SOFT_DIRTY)
            assert not region.entry_bit(page, WRITE)

    def test_it_is_the_default(self, machine: Machine) -> None:
        region = new_region(machine, 1)
        region.write(0)
        region.mm.clear_refs()
        assert region.soft_dirty == "."

    def test_a_page_stays_dirty_for_writeback(self, any_machine: Machine) -> None:
        assert tracked_region(any_machine, 1).entry_bit(0, DIRTY)

    def test_age_and_content_stay(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        assert region.entry_bit(0, AF)
        assert region.word(0) == 1

    def test_clears_swap_entries_too(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.write_all()
        region.mm.madvise(*region.part(0, 1), MADV_PAGEOUT)
        assert region.entry_bit(0, SWP_SOFT_DIRTY)
        region.mm.clear_refs()
        assert not region.entry_bit(0, SWP_SOFT_DIRTY)
        assert (region.swapped, region.soft_dirty) == ("w.", "..")

    def test_clears_pages_that_nobody_may_access(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0)
        region.mm.mprotect(region.start, region.length, PROT_NONE)
        region.mm.clear_refs()
        assert region.soft_dirty == "."

    def test_clears_every_mapping(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        far = map_region(region.mm, 2, start=BASE + (1 << 40))
        region.write_all()
        far.write_all()
        region.mm.clear_refs()
        assert region.soft_dirty + far.soft_dirty == "...."

    def test_other_processes_keep_their_bits(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.write_all()
        child = region.seen_by(region.mm.fork())
        region.mm.clear_refs()
        assert (region.soft_dirty, child.soft_dirty) == ("..", "ss")

    def test_twice_is_once(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        before = [region.entry(page) for page in range(2)]
        region.mm.clear_refs()
        assert [region.entry(page) for page in range(2)] == before

    def test_without_soft_dirty_in_the_kernel_it_succeeds_and_does_nothing(self) -> None:
        region = new_region(make_machine(off=["have_arch_soft_dirty"]), 1)
        region.write(0)
        before = region.entry(0)
        region.mm.clear_refs(4)
        assert region.entry(0) == before


class TestReferenced:
    """Modes 1, 2 and 3 clear the access flag and nothing else."""

    def both_kinds(self, machine: Machine) -> tuple[Region, Region]:
        anon = new_region(machine, 1)
        shared = map_object(anon.mm, machine.create_shared(1), 1, start=BASE + (1 << 30))
        anon.write(0)
        shared.write(0)
        return anon, shared

    @pytest.mark.parametrize(
        ("mode", "anon_is_old", "shared_is_old"),
        [(1, True, True), (2, True, False), (3, False, True)],
    )
    def test_which_mappings(
        self, any_machine: Machine, mode: int, anon_is_old: bool, shared_is_old: bool
    ) -> None:
        anon, shared = self.both_kinds(any_machine)
        anon.mm.clear_refs(mode)
        assert anon.entry_bit(0, AF) is not anon_is_old
        assert shared.entry_bit(0, AF) is not shared_is_old

    @pytest.mark.parametrize("mode", [1, 2, 3])
    def test_soft_dirty_and_write_permission_stay(self, any_machine: Machine, mode: int) -> None:
        anon, shared = self.both_kinds(any_machine)
        before = [region.entry(0) | 1 << AF for region in (anon, shared)]
        anon.mm.clear_refs(mode)
        assert [region.entry(0) | 1 << AF for region in (anon, shared)] == before
        assert anon.mm.vmas()[0].soft_dirty

    def test_the_zero_page_is_passed_over(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.read(0)
        region.mm.clear_refs(1)
        assert region.entry_bit(0, AF)


class TestPeakRss:
    """Mode 5."""

    def test_resets_the_peak_to_what_is_mapped_now(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 5)
        region.write_all()
        region.mm.madvise(*region.part(0, 3), MADV_DONTNEED)
        assert (region.mm.rss_pages, region.mm.peak_rss_pages) == (2, 5)
        region.mm.clear_refs(5)
        assert (region.mm.rss_pages, region.mm.peak_rss_pages) == (2, 2)

    def test_leaves_every_bit_alone(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0)
        before = region.entry(0)
        region.mm.clear_refs(5)
        assert (region.entry(0), region.soft_dirty) == (before, "s")


@pytest.mark.parametrize("mode", [0, -1, 6, 40])
def test_other_modes_are_refused(machine: Machine, mode: int) -> None:
    region = new_region(machine, 1)
    region.write(0)
    with pytest.raises(MmError, match="1 to 5") as caught:
        region.mm.clear_refs(mode)
    assert caught.value.errno == errno.EINVAL
    assert region.soft_dirty == "s"
