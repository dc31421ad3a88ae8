"""fork: pages are shared until one side writes; each side then has soft-dirty bits of its own."""

from __future__ import annotations

import pytest

from mm_model import (
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_KEEPONFORK,
    MADV_PAGEOUT,
    MADV_WIPEONFORK,
    PROT_READ,
    Machine,
    SegFault,
)
from tests.unit.mm_model.kernel_box import (
    RW,
    make_machine,
    map_object,
    map_region,
    new_region,
    tracked_region,
)

WRITE = 51


class TestSharing:
    def test_the_child_sees_the_parents_bytes_and_costs_no_frames(
        self, any_machine: Machine
    ) -> None:
        region = new_region(any_machine, 3)
        region.write_all(value=5)
        used = any_machine.used_frames
        child = region.seen_by(region.mm.fork())
        assert [child.word(page) for page in range(3)] == [5, 5, 5]
        assert any_machine.used_frames == used
        assert (
            child.mm.frames(child.start, 3).tolist() == region.mm.frames(region.start, 3).tolist()
        )

    def test_both_sides_lose_write_permission(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0)
        child = region.seen_by(region.mm.fork())
        assert not region.entry_bit(0, WRITE)
        assert not child.entry_bit(0, WRITE)

    @pytest.mark.parametrize("writer", ["parent", "child"])
    def test_a_write_of_one_side_is_not_seen_by_the_other(
        self, any_machine: Machine, writer: str
    ) -> None:
        region = new_region(any_machine, 2)
        region.write_all(value=1)
        child = region.seen_by(region.mm.fork())
        one, other = (region, child) if writer == "parent" else (child, region)
        assert one.write(0, value=2) == 1
        assert (one.word(0), other.word(0)) == (2, 1)
        assert any_machine.faults.cow == 1
        assert any_machine.used_frames == 3

    def test_the_rest_of_a_copied_page_comes_along(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        size = region.page_size
        region.mm.gup_write(region.start, bytes(range(256)) * (size // 256))
        child = region.seen_by(region.mm.fork())
        child.write(0, value=0)
        whole = bytes(8) + (bytes(range(256)) * (size // 256))[8:]
        assert child.mm.peek(child.start, size) == whole

    def test_the_last_holder_writes_in_place(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0, value=1)
        child = region.seen_by(region.mm.fork())
        child.write(0, value=2)  # takes a copy, so the parent is alone with the page
        before = region.mm.frames(region.start, 1).tolist()
        region.write(0, value=3)
        assert region.mm.frames(region.start, 1).tolist() == before
        assert any_machine.faults.cow == 1

    def test_grandchildren(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0, value=1)
        child = region.seen_by(region.mm.fork())
        grandchild = child.seen_by(child.mm.fork())
        child.write(0, value=2)
        assert [each.word(0) for each in (region, child, grandchild)] == [1, 2, 1]

    def test_holes_are_filled_apart(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.write(0)
        child = region.seen_by(region.mm.fork())
        child.write(1, value=7)
        assert (region.present, child.present) == ("p.", "pp")
        assert region.word(1) == 0

    def test_protection_is_copied(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0)
        region.mm.mprotect(region.start, region.length, PROT_READ)
        child = region.seen_by(region.mm.fork())
        with pytest.raises(SegFault):
            child.write(0)

    def test_the_heap_is_copied(self, any_machine: Machine) -> None:
        mm = any_machine.create_mm()
        mm.set_brk_base(1 << 32)
        end = mm.brk((1 << 32) + any_machine.page_size)
        child = mm.fork()
        assert child.brk(0) == end
        assert child.brk(end + any_machine.page_size) == end + any_machine.page_size
        assert mm.brk(0) == end


class TestSoftDirty:
    def test_bits_are_copied(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 4)
        region.write(1, 3)
        child = region.seen_by(region.mm.fork())
        assert child.soft_dirty == region.soft_dirty == ".s.s"

    def test_then_each_side_has_its_own(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 4)
        region.write(0)
        child = region.seen_by(region.mm.fork())
        child.mm.clear_refs()
        child.write(1)
        region.write(2)
        assert (region.soft_dirty, child.soft_dirty) == ("s.s.", ".s..")

    def test_a_page_that_is_not_copied_on_write_is_marked_as_well(
        self, any_machine: Machine
    ) -> None:
        region = tracked_region(any_machine, 1)
        region.mm.fork().exit()
        region.write(0)
        assert any_machine.faults.cow == 0
        assert region.soft_dirty == "s"

    def test_swapped_pages_too(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.write(0)
        region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
        child = region.seen_by(region.mm.fork())
        assert (child.swapped, child.soft_dirty) == ("ww", "s.")


class TestAdvice:
    def test_dontfork_leaves_the_mapping_out(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        region.write_all()
        region.mm.madvise(*region.part(1, 1), MADV_DONTFORK)
        child = region.seen_by(region.mm.fork())
        assert child.present == "p.p"
        with pytest.raises(SegFault, match="not mapped"):
            child.read(1)

    def test_dofork_takes_it_back(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        region.write_all()
        region.mm.madvise(*region.part(1, 1), MADV_DONTFORK)
        region.mm.madvise(*region.part(1, 1), MADV_DOFORK)
        assert region.seen_by(region.mm.fork()).present == "ppp"
        assert len(region.mm.vmas()) == 1

    def test_wipeonfork_gives_the_child_an_empty_mapping(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.mm.madvise(*region.part(0, 1), MADV_WIPEONFORK)
        child = region.seen_by(region.mm.fork())
        assert (child.present, child.soft_dirty) == (".p", "..")
        child.read(0)
        assert (child.word(0), region.word(0)) == (0, 1)

    def test_keeponfork_undoes_it(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.mm.madvise(*region.part(0, 1), MADV_WIPEONFORK)
        region.mm.madvise(*region.part(0, 1), MADV_KEEPONFORK)
        assert region.seen_by(region.mm.fork()).present == "pp"


class TestExit:
    def test_gives_every_frame_and_table_back(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 4)
        region.write_all()
        child = region.seen_by(region.mm.fork())
        child.write(0, 1)
        assert any_machine.used_frames == 6
        child.mm.exit()
        assert any_machine.used_frames == 4
        region.mm.exit()
        assert any_machine.used_frames == 0

    def test_the_parent_may_go_first(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.write_all(value=6)
        child = region.seen_by(region.mm.fork())
        region.mm.exit()
        assert [child.word(page) for page in range(2)] == [6, 6]
        child.mm.exit()
        assert any_machine.used_frames == 0

    def test_frees_swap_too(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.write_all()
        region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
        assert any_machine.used_swap_slots == 2
        region.mm.exit()
        assert (any_machine.used_swap_slots, any_machine.used_frames) == (0, 0)

    def test_twice_is_once(self, machine: Machine) -> None:
        region = new_region(machine, 1)
        region.write(0)
        region.mm.exit()
        region.mm.exit()
        assert machine.used_frames == 0


def test_shared_memory_stays_shared_and_its_entries_are_not_copied(any_machine: Machine) -> None:
    region = map_object(any_machine.create_mm(), any_machine.create_shared(2), 2)
    region.mm.clear_refs()
    region.write(0, value=3)
    child = region.seen_by(region.mm.fork())
    assert child.present == child.soft_dirty == ".."
    child.write(0, value=4)
    assert region.word(0) == 4
    assert any_machine.faults.cow == 0


def test_a_new_mapping_of_the_child_does_not_reach_the_parent() -> None:
    machine = make_machine()
    region = new_region(machine, 1)
    child = region.mm.fork()
    map_region(child, 1, prot=RW, start=region.at(5))
    assert len(region.mm.vmas()) == 1
