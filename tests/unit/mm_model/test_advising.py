"""madvise: what each advice does to content, entries and soft-dirty bits (mm/madvise.c)."""

from __future__ import annotations

import errno

import pytest

from mm_model import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    PROT_NONE,
    PROT_READ,
    Machine,
    MmError,
)
from tests.unit.mm_model.kernel_box import (
    BASE,
    Region,
    make_machine,
    map_object,
    new_region,
    tracked_region,
)

RDONLY, AF, WRITE, DIRTY, SOFT_DIRTY = 7, 10, 51, 55, 63


def advise(region: Region, advice: int, first: int = 0, count: int = 0) -> None:
    region.mm.madvise(*region.part(first, count or region.pages), advice)


def refused(region: Region, advice: int, number: int, first: int = 0, count: int = 0) -> None:
    with pytest.raises(MmError) as caught:
        advise(region, advice, first, count)
    assert caught.value.errno == number


class TestDontneed:
    def test_pages_are_gone_and_read_as_zeros(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        region.write_all(value=5)
        advise(region, MADV_DONTNEED, 1, 1)
        assert region.present == "p.p"
        assert any_machine.used_frames == 2
        region.read(1)
        assert [region.word(page) for page in range(3)] == [5, 0, 5]

    def test_what_is_gone_is_clean_until_written(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 3)
        region.write_all()
        advise(region, MADV_DONTNEED, 0, 2)
        assert region.soft_dirty == "..s"
        region.write(0)
        assert region.soft_dirty == "s.s"

    def test_swapped_pages_go_too(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.write_all()
        advise(region, MADV_PAGEOUT)
        advise(region, MADV_DONTNEED)
        assert (region.swapped, region.word(0)) == ("..", 0)
        assert (any_machine.used_frames, any_machine.used_swap_slots) == (0, 0)

    def test_the_other_side_of_a_fork_keeps_its_pages(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0, value=3)
        child = region.seen_by(region.mm.fork())
        advise(region, MADV_DONTNEED)
        assert (region.word(0), child.word(0)) == (0, 3)

    def test_shared_memory_keeps_its_content(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(1), 1)
        region.mm.clear_refs()
        region.write(0, value=3)
        advise(region, MADV_DONTNEED)
        assert (region.present, region.soft_dirty) == (".", ".")
        region.read(0)
        assert region.word(0) == 3

    def test_a_private_copy_falls_back_to_what_it_was_copied_from(
        self, any_machine: Machine
    ) -> None:
        shared = any_machine.create_shared(1, keep=True)
        map_object(any_machine.create_mm(), shared, 1).write(0, value=1)
        region = map_object(any_machine.create_mm(), shared, 1, private=True)
        region.write(0, value=2)
        advise(region, MADV_DONTNEED)
        region.read(0)
        assert region.word(0) == 1

    def test_locked_memory_is_refused_unless_asked_for(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0)
        region.mm.mlock(region.start, region.length)
        refused(region, MADV_DONTNEED, errno.EINVAL)
        assert region.present == "p"
        advise(region, MADV_DONTNEED_LOCKED)
        assert region.present == "."


class TestFree:
    def test_pages_stay_until_memory_is_wanted(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0, value=3)
        advise(region, MADV_FREE)
        assert (region.present, region.word(0)) == ("p", 3)

    def test_then_they_are_dropped_without_swap(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        advise(region, MADV_FREE)
        advise(region, MADV_PAGEOUT)
        assert (region.present, region.swapped, region.soft_dirty) == (".", ".", ".")
        assert (any_machine.used_frames, any_machine.used_swap_slots) == (0, 0)
        region.read(0)
        assert region.word(0) == 0

    def test_unless_they_were_written_again(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0, value=3)
        advise(region, MADV_FREE)
        region.write(0, value=4)
        advise(region, MADV_PAGEOUT)  # takes the page back as swappable
        assert region.word(0) == 4
        advise(region, MADV_PAGEOUT)
        assert (region.swapped, region.word(0)) == ("w", 4)

    def test_it_does_not_touch_soft_dirty(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.write(0)
        advise(region, MADV_FREE)
        assert region.soft_dirty == "s."

    def test_swapped_pages_go_at_once(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0)
        advise(region, MADV_PAGEOUT)
        advise(region, MADV_FREE)
        assert region.swapped == "."
        assert any_machine.used_frames == 0

    def test_only_anonymous_private_memory(self, any_machine: Machine) -> None:
        mm, shared = any_machine.create_mm(), any_machine.create_shared(1)
        refused(map_object(mm, shared, 1), MADV_FREE, errno.EINVAL)
        refused(map_object(mm, shared, 1, private=True), MADV_FREE, errno.EINVAL)


class TestPopulate:
    def test_for_writing_is_like_a_write_of_nothing(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        advise(region, MADV_DONTNEED, 1, 1)
        advise(region, MADV_POPULATE_WRITE)
        assert (region.present, region.soft_dirty) == ("pp", "ss")
        assert [region.word(page) for page in range(2)] == [1, 0]
        assert region.write(0, 1) == 0

    def test_for_reading_marks_nothing(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        advise(region, MADV_DONTNEED, 1, 1)
        advise(region, MADV_POPULATE_READ)
        assert (region.present, region.soft_dirty) == ("pp", "..")

    def test_a_gap_ends_it(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        region.mm.munmap(*region.part(1, 1))
        refused(region, MADV_POPULATE_WRITE, errno.ENOMEM)
        assert region.present == "p.."

    def test_what_the_protection_forbids_is_refused(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1, prot=PROT_READ)
        refused(region, MADV_POPULATE_WRITE, errno.EINVAL)
        region.mm.mprotect(region.start, region.length, PROT_NONE)
        refused(region, MADV_POPULATE_READ, errno.EINVAL)

    def test_beyond_the_end_of_an_object(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(1), 2)
        refused(region, MADV_POPULATE_READ, errno.EFAULT)


class TestOthers:
    def test_cold_makes_pages_old_and_nothing_else(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.write(0)
        before = [region.entry(page) for page in range(2)]
        advise(region, MADV_COLD)
        assert [region.entry(page) for page in range(2)] == [entry & ~(1 << AF) for entry in before]

    def test_willneed_brings_swapped_pages_near_without_mapping_them(
        self, any_machine: Machine
    ) -> None:
        region = tracked_region(any_machine, 2)
        advise(region, MADV_PAGEOUT)
        before = [region.entry(page) for page in range(2)]
        advise(region, MADV_WILLNEED)
        assert [region.entry(page) for page in range(2)] == before
        region.write(0)
        region.read(1)
        assert (region.word(1), region.soft_dirty) == (1, "s.")

    def test_remove_punches_a_hole_for_everyone(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(2)
        region = map_object(any_machine.create_mm(), shared, 2)
        other = map_object(any_machine.create_mm(), shared, 2)
        region.write_all(value=3)
        other.read(0, 1)
        advise(region, MADV_REMOVE, 0, 1)
        assert (region.present, other.present) == (".p", ".p")
        other.read(0)
        assert [other.word(page) for page in range(2)] == [0, 3]

    def test_remove_is_for_shared_memory_that_may_be_written(self, any_machine: Machine) -> None:
        """How it is mapped now does not count (vma_is_shared_maywrite)."""
        refused(new_region(any_machine, 1), MADV_REMOVE, errno.EINVAL)
        mm, shared = any_machine.create_mm(), any_machine.create_shared(1)
        advise(map_object(mm, shared, 1, prot=PROT_READ), MADV_REMOVE)
        private = map_object(mm, shared, 1, private=True, start=BASE + (1 << 30))
        refused(private, MADV_REMOVE, errno.EACCES)

    @pytest.mark.parametrize("advice", [MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL])
    def test_hints_on_access_patterns_change_nothing(
        self, any_machine: Machine, advice: int
    ) -> None:
        region = tracked_region(any_machine, 2)
        before = [region.entry(page) for page in range(2)]
        advise(region, advice)
        assert [region.entry(page) for page in range(2)] == before


class TestErrors:
    @pytest.mark.parametrize("advice", [MADV_DONTNEED, MADV_FREE, MADV_PAGEOUT, MADV_NORMAL])
    def test_gaps_are_reported_after_the_rest_was_done(
        self, any_machine: Machine, advice: int
    ) -> None:
        region = tracked_region(any_machine, 3)
        region.mm.munmap(*region.part(1, 1))
        refused(region, advice, errno.ENOMEM)
        if advice == MADV_DONTNEED:
            assert region.present == "..."
        if advice == MADV_PAGEOUT:
            assert region.swapped == "w.w"

    def test_a_range_without_any_mapping(self, machine: Machine) -> None:
        refused(Region(machine.create_mm(), BASE, 1), MADV_DONTNEED, errno.ENOMEM)

    @pytest.mark.parametrize("advice", [5, -1, 99])
    def test_unknown_advice(self, machine: Machine, advice: int) -> None:
        refused(new_region(machine, 1), advice, errno.EINVAL)

    @pytest.mark.parametrize("advice", [MADV_DONTNEED, MADV_PAGEOUT, MADV_NORMAL])
    def test_an_address_inside_a_page(self, machine: Machine, advice: int) -> None:
        region = new_region(machine, 1)
        with pytest.raises(MmError) as caught:
            region.mm.madvise(region.start + 1, 4096, advice)
        assert caught.value.errno == errno.EINVAL

    def test_no_length_is_no_error(self, machine: Machine) -> None:
        region = new_region(machine, 1)
        region.write(0)
        region.mm.madvise(region.start, 0, MADV_DONTNEED)
        assert region.present == "p"

    @pytest.mark.parametrize("advice", [MADV_FREE, MADV_COLD, MADV_PAGEOUT])
    def test_locked_memory(self, machine: Machine, advice: int) -> None:
        region = new_region(machine, 1)
        region.mm.mlock(region.start, region.length)
        refused(region, advice, errno.EINVAL)

    def test_wipeonfork_is_for_anonymous_private_memory(self, machine: Machine) -> None:
        shared = machine.create_shared(1)
        refused(map_object(machine.create_mm(), shared, 1), MADV_WIPEONFORK, errno.EINVAL)

    def test_collapse_where_no_huge_page_fits_is_einval_as_on_linux(self) -> None:
        refused(new_region(make_machine(), 8), MADV_COLLAPSE, errno.EINVAL)
        refused(new_region(make_machine(), 1024), MADV_COLLAPSE, errno.EINVAL)
