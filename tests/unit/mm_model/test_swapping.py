"""Swap: content and soft-dirty go out and come back (mm/vmscan.c, mm/rmap.c, mm/swapfile.c)."""

from __future__ import annotations

import errno

import pytest

from mm_model import MADV_PAGEOUT, MADV_WILLNEED, PROT_NONE, PROT_READ, Machine, MmError
from tests.unit.mm_model.kernel_box import (
    RW,
    Region,
    make_machine,
    map_object,
    new_region,
    tracked_region,
)

SWP_EXCLUSIVE, SWP_SOFT_DIRTY, SWP_OFFSET = 1 << 2, 1 << 4, 12
AF, WRITE = 10, 51


def page_out(region: Region, first: int = 0, count: int = 0) -> None:
    region.mm.madvise(*region.part(first, count or region.pages), MADV_PAGEOUT)


class TestOut:
    def test_pages_leave_and_their_content_is_kept(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        region.write_all(value=4)
        page_out(region, 0, 2)
        assert (region.present, region.swapped) == ("..p", "ww.")
        assert [region.word(page) for page in range(3)] == [4, 4, 4]
        assert any_machine.used_swap_slots == 2
        assert region.mm.rss_pages == 1

    @pytest.mark.parametrize("written", [False, True])
    def test_the_swap_entry_carries_the_bit(self, any_machine: Machine, written: bool) -> None:
        region = tracked_region(any_machine, 1)
        if written:
            region.write(0)
        page_out(region)
        flags = SWP_EXCLUSIVE | (SWP_SOFT_DIRTY if written else 0)
        assert region.entry(0) == 1 << SWP_OFFSET | flags

    def test_the_seeds_kernel_keeps_it_at_61(self) -> None:
        region = new_region(make_machine(kernel="seed"), 1)
        region.write(0)
        page_out(region)
        assert region.entry(0) == 1 << 61 | 1 << 4 | SWP_EXCLUSIVE
        assert region.soft_dirty == "s"

    def test_pages_shared_by_fork_stay(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.write_all()
        child = region.seen_by(region.mm.fork())
        child.write(1)
        page_out(region)
        assert region.swapped == ".w"

    def test_a_page_that_nobody_may_access_goes_as_well(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        region.write(0)
        region.mm.mprotect(region.start, region.length, PROT_NONE)
        page_out(region)
        region.mm.mprotect(region.start, region.length, RW)
        assert (region.swapped, region.soft_dirty) == ("w", "s")

    def test_without_a_device_or_a_free_slot_pages_stay(self, any_machine: Machine) -> None:
        size, dbm = any_machine.page_size, any_machine.config.dbm
        for slots, swapped in ((0, "..."), (2, "ww.")):
            region = new_region(make_machine(size, dbm=dbm, swap_slots=slots), 3)
            region.write_all()
            page_out(region)
            assert region.swapped == swapped


class TestIn:
    def test_a_read_brings_content_and_bit_back(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.write(0, value=3)
        page_out(region)
        assert region.read(0, 1) == 2
        assert (region.present, region.swapped, region.soft_dirty) == ("pp", "..", "s.")
        assert [region.word(page) for page in range(2)] == [3, 1]
        assert any_machine.faults.swapin == 2
        assert any_machine.used_swap_slots == 0

    def test_a_write_marks_it(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        page_out(region)
        region.write(1, value=5)
        assert (region.soft_dirty, region.word(1)) == (".s", 5)

    def test_after_clear_a_page_comes_back_clean_and_tracked(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.write_all()
        page_out(region)
        region.mm.clear_refs()
        region.read(0, 1)
        assert region.soft_dirty == ".."
        assert region.write(1) == 1
        assert region.soft_dirty == ".s"

    @pytest.mark.parametrize(("kernel", "writable"), [("6.12", True), ("6.1", False)])
    def test_a_read_of_a_marked_page_maps_it_writable_since_6_12(
        self, kernel: str, writable: bool
    ) -> None:
        region = new_region(make_machine(kernel=kernel), 1)
        region.write(0)
        page_out(region)
        region.read(0)
        assert region.entry_bit(0, WRITE) is writable

    def test_protection_is_that_of_now(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        page_out(region)
        region.mm.mprotect(region.start, region.length, PROT_READ)
        region.read(0)
        assert not region.entry_bit(0, WRITE)

    def test_out_and_in_many_times(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.write(0, value=6)
        for _ in range(5):
            page_out(region)
            region.read(0, 1)
        assert (region.soft_dirty, region.word(0)) == ("s.", 6)
        assert any_machine.used_frames == 2


class TestFork:
    def shared_slot(self, machine: Machine) -> tuple[Region, Region]:
        region = tracked_region(machine, 1)
        region.write(0, value=1)
        page_out(region)
        return region, region.seen_by(region.mm.fork())

    def test_both_name_one_slot_and_neither_is_exclusive(self, any_machine: Machine) -> None:
        region, child = self.shared_slot(any_machine)
        assert any_machine.used_swap_slots == 1
        assert region.entry(0) == child.entry(0) == 1 << SWP_OFFSET | SWP_SOFT_DIRTY

    @pytest.mark.parametrize("read_first", [False, True])
    def test_a_write_of_one_is_not_seen_by_the_other(
        self, any_machine: Machine, read_first: bool
    ) -> None:
        region, child = self.shared_slot(any_machine)
        if read_first:
            region.read(0)
            child.read(0)
        child.write(0, value=2)
        assert (region.word(0), child.word(0)) == (1, 2)
        region.write(0, value=3)
        assert (region.word(0), child.word(0)) == (3, 2)

    def test_nothing_is_left_when_both_are_gone(self, any_machine: Machine) -> None:
        region, child = self.shared_slot(any_machine)
        child.read(0)
        region.mm.exit()
        assert child.word(0) == 1
        child.mm.exit()
        assert (any_machine.used_frames, any_machine.used_swap_slots) == (0, 0)


class TestSwapoff:
    def test_everything_comes_back_with_its_bits(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 3)
        region.write(1, value=9)
        page_out(region)
        any_machine.swapoff()
        assert (region.present, region.soft_dirty) == ("ppp", ".s.")
        assert [region.word(page) for page in range(3)] == [1, 9, 1]
        assert any_machine.used_swap_slots == 0

    def test_pages_come_back_old_and_catch_their_next_write(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        page_out(region)
        any_machine.swapoff()
        assert not region.entry_bit(0, AF)
        assert not region.entry_bit(0, WRITE)
        region.write(0)
        assert region.soft_dirty == "s"

    def test_for_both_sides_of_a_fork(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        page_out(region)
        child = region.seen_by(region.mm.fork())
        any_machine.swapoff()
        assert region.present == child.present == "p"
        child.write(0, value=2)
        assert (region.word(0), child.word(0)) == (1, 2)
        assert any_machine.used_frames == 2

    def test_shared_memory_comes_back_to_its_object(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(1), 1)
        region.write(0, value=4)
        page_out(region)
        any_machine.swapoff()
        assert (region.present, region.word(0)) == (".", 4)
        assert any_machine.used_swap_slots == 0

    def test_pages_read_ahead_are_given_up(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        page_out(region)
        region.mm.madvise(region.start, region.length, MADV_WILLNEED)
        region.read(0)
        any_machine.swapoff()
        assert region.present == "pp"
        assert any_machine.used_swap_slots == 0
        region.mm.exit()
        assert any_machine.used_frames == 0

    def test_afterwards_nothing_is_swapped_until_swapon(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        any_machine.swapoff()
        page_out(region)
        assert region.present == "p"
        any_machine.swapon()
        page_out(region)
        assert region.swapped == "w"

    def test_off_when_off_and_on_when_on(self, machine: Machine) -> None:
        with pytest.raises(MmError) as caught:
            machine.swapon()
        assert caught.value.errno == errno.EBUSY
        machine.swapoff()
        with pytest.raises(MmError) as caught:
            machine.swapoff()
        assert caught.value.errno == errno.EINVAL
        without = make_machine(swap_slots=0)
        with pytest.raises(MmError, match="swap_slots=0") as caught:
            without.swapon()
        assert caught.value.errno == errno.EINVAL
