"""Accesses by the kernel: /proc/PID/mem with FOLL_FORCE, and mlock (mm/gup.c, mm/mlock.c)."""

from __future__ import annotations

import errno

import pytest

from mm_model import MADV_PAGEOUT, PROT_NONE, PROT_READ, Livelock, Machine, MmError, SegFault
from tests.unit.mm_model.kernel_box import (
    BASE,
    Region,
    make_machine,
    map_object,
    map_region,
    new_region,
    tracked_region,
)


def read_only(machine: Machine) -> Region:
    region = tracked_region(machine, 2)
    region.mm.mprotect(region.start, region.length, PROT_READ)
    return region


class TestForcedWrite:
    def test_reaches_a_read_only_private_page_and_marks_it(self, any_machine: Machine) -> None:
        region = read_only(any_machine)
        region.mm.gup_write(region.start, b"forced")
        assert region.mm.peek(region.start, 6) == b"forced"
        assert region.soft_dirty == "s."

    def test_the_page_stays_closed_to_the_task(self, any_machine: Machine) -> None:
        region = read_only(any_machine)
        region.mm.gup_write(region.start, b"forced")
        with pytest.raises(SegFault):
            region.write(0)

    def test_reaches_a_page_that_nobody_may_access(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        region.mm.mprotect(region.start, region.length, PROT_NONE)
        region.mm.gup_write(region.start, b"forced")
        assert region.mm.gup_read(region.start, 6) == b"forced"
        assert region.soft_dirty == "s"

    def test_takes_a_copy_of_a_page_shared_by_fork(self, any_machine: Machine) -> None:
        region = read_only(any_machine)
        child = region.seen_by(region.mm.fork())
        region.mm.gup_write(region.start, b"\x09" + bytes(7))
        assert (region.word(0), child.word(0)) == (9, 1)

    def test_takes_a_copy_of_file_memory(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(1)
        public = map_object(any_machine.create_mm(), shared, 1)
        public.write(0, value=1)
        private = map_object(any_machine.create_mm(), shared, 1, private=True, prot=PROT_READ)
        private.mm.gup_write(private.start, b"\x02")
        assert (public.word(0), private.word(0)) == (1, 2)

    def test_of_a_page_that_is_not_there_yet(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1, prot=PROT_READ)
        region.mm.clear_refs()
        region.mm.gup_write(region.start, b"\x02")
        assert (region.word(0), region.soft_dirty) == (2, "s")

    def test_over_a_swapped_page(self, any_machine: Machine) -> None:
        region = read_only(any_machine)
        region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
        region.mm.gup_write(region.start, b"\x02")
        assert (region.word(0), region.soft_dirty, region.swapped) == (2, "s.", ".w")

    def test_across_pages(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 3)
        data = bytes(range(1, 11))
        region.mm.gup_write(region.at(1) - 5, data)
        assert region.mm.gup_read(region.at(1) - 5, 10) == data
        assert region.soft_dirty == "ss."

    def test_to_writable_shared_memory(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(1), 1)
        region.mm.clear_refs()
        region.mm.gup_write(region.start, b"\x05")
        assert (region.word(0), region.soft_dirty) == (5, "s")

    def test_not_to_read_only_shared_memory(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(1)
        region = map_object(any_machine.create_mm(), shared, 1, prot=PROT_READ)
        with pytest.raises(MmError, match=r"/proc/PID/mem") as caught:
            region.mm.gup_write(region.start, b"x")
        assert caught.value.errno == errno.EIO

    def test_nor_to_nothing(self, any_machine: Machine) -> None:
        mm = any_machine.create_mm()
        for call in (lambda: mm.gup_write(BASE, b"x"), lambda: mm.gup_read(BASE, 1)):
            with pytest.raises(MmError) as caught:
                call()
            assert caught.value.errno == errno.EIO
            assert not isinstance(caught.value, SegFault)

    @pytest.mark.parametrize("off", ["ptep_set_access_flags", "pte_mkdirty", "pte_soft_dirty"])
    @pytest.mark.parametrize("dbm", [True, False])
    def test_never_ends_where_the_fault_cannot_mark_the_page(self, off: str, dbm: bool) -> None:
        """GUP waits for an entry that is soft-dirty, the fault thinks that it has made one."""
        machine = make_machine(dbm=dbm, off=[off])
        region = read_only(machine)
        with pytest.raises(Livelock, match="never ends") as caught:
            region.mm.gup_write(region.start, b"forced")
        assert caught.value.address == region.start
        assert machine.faults.livelocks == 1


class TestForcedRead:
    def test_sees_what_is_there_and_marks_nothing(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        assert region.mm.gup_read(region.start, 8) == (1).to_bytes(8, "little")
        assert region.soft_dirty == ".."

    def test_of_a_hole_maps_the_zero_page(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.mm.clear_refs()
        assert region.mm.gup_read(region.start, 4) == bytes(4)
        assert (region.present, region.soft_dirty) == ("p", ".")
        assert any_machine.used_frames == 0

    def test_of_nothing(self, any_machine: Machine) -> None:
        assert any_machine.create_mm().gup_read(BASE, 0) == b""


class TestLock:
    def test_private_memory_is_populated_as_if_written(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        map_region(region.mm, 1, start=region.at(2))
        whole = Region(region.mm, region.start, 3)
        whole.mm.clear_refs()
        whole.mm.mlock(whole.start, whole.length)
        assert (whole.present, whole.soft_dirty) == ("ppp", "sss")
        assert [vma.locked for vma in whole.mm.vmas()] == [True]

    def test_read_only_memory_as_if_read(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2, prot=PROT_READ)
        region.mm.clear_refs()
        region.mm.mlock(region.start, region.length)
        assert (region.present, region.soft_dirty) == ("pp", "..")

    def test_swapped_pages_come_back(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
        region.mm.mlock(region.start, region.length)
        assert (region.present, region.word(0)) == ("p", 1)

    def test_part_of_a_mapping_splits_it_and_munlock_merges_it(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 3)
        region.mm.mlock(*region.part(1, 1))
        assert [vma.locked for vma in region.mm.vmas()] == [False, True, False]
        region.mm.munlock(*region.part(1, 1))
        assert [vma.locked for vma in region.mm.vmas()] == [False]
        assert region.soft_dirty == ".s."

    def test_a_populated_part_does_not_merge_into_memory_never_touched(
        self, any_machine: Machine
    ) -> None:
        """is_mergeable_anon_vma() of these kernels wants the larger mapping to have an anon_vma."""
        region = new_region(any_machine, 3)
        region.mm.mlock(*region.part(1, 1))
        region.mm.munlock(*region.part(1, 1))
        assert len(region.mm.vmas()) == 3

    def test_children_do_not_inherit_it(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.mm.mlock(region.start, region.length)
        assert [vma.locked for vma in region.mm.fork().vmas()] == [False]

    def test_a_gap_is_an_error(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        region.mm.munmap(*region.part(1, 1))
        for call in (region.mm.mlock, region.mm.munlock):
            with pytest.raises(MmError) as caught:
                call(region.start, region.length)
            assert caught.value.errno == errno.ENOMEM

    def test_memory_that_nobody_may_access_is_locked_but_not_populated(
        self, any_machine: Machine
    ) -> None:
        region = new_region(any_machine, 1, prot=PROT_NONE)
        with pytest.raises(MmError) as caught:
            region.mm.mlock(region.start, region.length)
        assert caught.value.errno == errno.ENOMEM
        assert region.mm.vmas()[0].locked
