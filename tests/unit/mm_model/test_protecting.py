"""mprotect: permissions change, soft-dirty bits do not (mm/mprotect.c)."""

from __future__ import annotations

import errno

import pytest

from mm_model import (
    MADV_FREE,
    MADV_PAGEOUT,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    Machine,
    MmError,
    SegFault,
)
from tests.unit.mm_model.kernel_box import (
    RW,
    Region,
    extents,
    make_machine,
    map_object,
    map_region,
    new_region,
    tracked_region,
)

RDONLY, WRITE = 7, 51


def protect(region: Region, prot: int, first: int = 0, count: int = 0) -> None:
    region.mm.mprotect(*region.part(first, count or region.pages), prot)


class TestPermissions:
    def test_read_only_stops_writes_and_not_reads(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0)
        protect(region, PROT_READ)
        assert region.read(0) == 0
        with pytest.raises(SegFault):
            region.write(0)

    def test_none_stops_everything_and_keeps_the_page(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0, value=8)
        protect(region, PROT_NONE)
        for access in (region.read, region.write):
            with pytest.raises(SegFault):
                access(0)
        assert (region.present, region.word(0)) == ("p", 8)
        protect(region, RW)
        region.write(0, value=9)
        assert region.word(0) == 9

    def test_pages_that_are_not_there_yet_get_the_new_protection(
        self, any_machine: Machine
    ) -> None:
        region = new_region(any_machine, 1, prot=PROT_READ)
        protect(region, RW)
        region.write(0)

    def test_only_the_range_changes(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        protect(region, PROT_READ, 1, 1)
        region.write(0, 2)
        with pytest.raises(SegFault) as caught:
            region.write(1)
        assert caught.value.address == region.at(1)

    def test_of_one_process_does_not_reach_another(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0)
        child = region.seen_by(region.mm.fork())
        protect(child, PROT_READ)
        region.write(0)

    def test_a_page_shared_by_fork_does_not_become_writable(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0, value=1)
        child = region.seen_by(region.mm.fork())
        protect(region, PROT_READ)
        protect(region, RW)
        assert not region.entry_bit(0, WRITE)
        region.write(0, value=2)
        assert child.word(0) == 1


class TestSoftDirty:
    @pytest.mark.parametrize("prot", [PROT_NONE, PROT_READ, RW])
    def test_bits_stay(self, any_machine: Machine, prot: int) -> None:
        region = tracked_region(any_machine, 4)
        region.write(1, 2)
        protect(region, prot)
        assert region.soft_dirty == ".ss."
        protect(region, RW)
        assert region.soft_dirty == ".ss."

    @pytest.mark.parametrize("through", [PROT_NONE, PROT_READ])
    def test_a_clean_page_still_catches_its_next_write(
        self, any_machine: Machine, through: int
    ) -> None:
        region = tracked_region(any_machine, 2)
        protect(region, through)
        protect(region, RW)
        assert region.write(0) == 1
        assert region.soft_dirty == "s."

    def test_a_page_marked_already_is_writable_at_once(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        region.write(0)
        protect(region, PROT_READ)
        protect(region, RW)
        assert region.write(0) == 0

    def test_swap_entries_keep_theirs(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.write(0)
        region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
        protect(region, PROT_READ)
        assert (region.swapped, region.soft_dirty) == ("ww", "s.")
        region.read(0, 1)
        assert region.soft_dirty == "s."
        with pytest.raises(SegFault):
            region.write(0)

    def test_shared_memory_catches_writes_after_it_as_well(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(2), 2)
        region.write_all()
        region.mm.clear_refs()
        protect(region, PROT_READ)
        protect(region, RW)
        assert region.write(1) == 1
        assert region.soft_dirty == ".s"


class TestMappings:
    def test_split_in_three_and_merge_again(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 6)
        protect(region, PROT_READ, 2, 2)
        assert extents(region.mm) == [(0, 2), (2, 2), (4, 2)]
        assert [vma.prot for vma in region.mm.vmas()] == [RW, PROT_READ, RW]
        protect(region, RW, 2, 2)
        assert extents(region.mm) == [(0, 6)]

    def test_the_same_protection_changes_nothing(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 3)
        before = region.mm.ptes(region.start, 3).tolist()
        protect(region, RW, 1, 1)
        assert extents(region.mm) == [(0, 3)]
        assert region.mm.ptes(region.start, 3).tolist() == before

    def test_a_border_moves(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 6)
        protect(region, PROT_READ, 3, 3)
        protect(region, PROT_READ, 1, 2)
        assert extents(region.mm) == [(0, 1), (1, 5)]
        protect(region, RW, 1, 3)
        assert extents(region.mm) == [(0, 4), (4, 2)]

    def test_across_mappings(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 4)
        protect(region, PROT_READ, 1, 2)
        protect(region, PROT_NONE, 0, 4)
        assert {vma.prot for vma in region.mm.vmas()} == {PROT_NONE}
        protect(region, PROT_WRITE, 0, 4)
        region.write(0, 1, 2, 3)

    def test_memory_once_charged_does_not_merge_with_memory_never_charged(
        self, machine: Machine
    ) -> None:
        """VM_ACCOUNT stays with a mapping that has pages, and a read-only one never had it."""
        region = tracked_region(machine, 2)
        map_region(region.mm, 2, start=region.at(2), prot=PROT_READ)
        protect(region, PROT_READ)
        assert extents(region.mm) == [(0, 2), (2, 2)]


class TestErrors:
    def test_a_gap_ends_it_with_enomem_after_what_came_before(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 4)
        region.mm.munmap(*region.part(2, 1))
        with pytest.raises(MmError) as caught:
            protect(region, PROT_READ)
        assert caught.value.errno == errno.ENOMEM
        assert [vma.prot for vma in region.mm.vmas()] == [PROT_READ, RW]

    def test_an_address_inside_a_page(self, machine: Machine) -> None:
        region = new_region(machine, 1)
        with pytest.raises(MmError) as caught:
            region.mm.mprotect(region.start + 1, 4096, PROT_READ)
        assert caught.value.errno == errno.EINVAL

    def test_a_length_is_rounded_up_to_pages(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.mm.mprotect(region.start, 1, PROT_READ)
        assert extents(region.mm) == [(0, 1), (1, 1)]

    def test_no_length_is_no_error(self, machine: Machine) -> None:
        region = new_region(machine, 1)
        region.mm.mprotect(region.start, 0, PROT_READ)
        region.write(0)


@pytest.mark.parametrize(("dbm", "faults"), [(True, 0), (False, 1)])
def test_a_clean_page_made_writable_stays_clean_until_the_store(dbm: bool, faults: int) -> None:
    """pte_mkwrite leaves RDONLY set: otherwise mprotect would dirty clean pages by hardware."""
    region = new_region(make_machine(dbm=dbm), 1)
    region.write(0)
    region.mm.madvise(region.start, region.length, MADV_FREE)  # clean from here on
    protect(region, PROT_READ)
    protect(region, RW)
    assert region.entry_bit(0, WRITE)
    assert region.entry_bit(0, RDONLY)
    assert region.write(0) == faults
    assert not region.entry_bit(0, RDONLY)
