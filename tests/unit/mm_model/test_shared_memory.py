"""Shared objects: one content, many mappings, and soft-dirty bits of each process' own entries."""

from __future__ import annotations

import errno

import pytest

from mm_model import (
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_SHARED,
    Machine,
    MmError,
    SegFault,
)
from tests.unit.mm_model.kernel_box import BASE, make_machine, map_object, map_region

WRITE = 51


class TestContent:
    def test_every_mapping_sees_every_write(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(2)
        one = map_object(any_machine.create_mm(), shared, 2)
        other = map_object(any_machine.create_mm(), shared, 2, start=BASE + (1 << 30))
        one.write(0, value=3)
        other.write(1, value=4)
        assert [other.word(0), one.word(1)] == [3, 4]
        assert any_machine.used_frames == 2

    def test_an_offset_shows_a_later_part(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(4)
        mm = any_machine.create_mm()
        whole = map_object(mm, shared, 4)
        part = map_region(
            mm, 2, flags=MAP_SHARED, shared_id=shared, pgoff=2, start=BASE + (1 << 30)
        )
        whole.write(3, value=8)
        assert part.word(1) == 8

    def test_a_private_mapping_reads_through_and_writes_apart(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(2)
        public = map_object(any_machine.create_mm(), shared, 2)
        public.write_all(value=1)
        private = map_object(any_machine.create_mm(), shared, 2, private=True)
        private.read(0, 1)
        assert private.word(0) == 1
        private.write(0, value=2)
        public.write(1, value=3)
        assert (public.word(0), private.word(0)) == (1, 2)
        assert private.word(1) == 3  # not copied yet, so still the object's page

    def test_a_private_write_to_an_untouched_page_copies_it(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(1)
        public = map_object(any_machine.create_mm(), shared, 1)
        public.mm.gup_write(public.start, b"\x11" * 16)
        private = map_object(any_machine.create_mm(), shared, 1, private=True)
        private.write(0, value=0)
        assert private.mm.peek(private.start, 16) == bytes(8) + b"\x11" * 8
        assert any_machine.faults.cow == 1

    def test_two_anonymous_shared_mappings_are_two_objects(self, any_machine: Machine) -> None:
        mm = any_machine.create_mm()
        one, other = (
            map_region(mm, 1, flags=MAP_SHARED | MAP_ANONYMOUS, start=BASE + k * (1 << 30))
            for k in range(2)
        )
        one.write(0, value=5)
        assert other.word(0) == 0

    def test_children_share_it(self, any_machine: Machine) -> None:
        region = map_region(any_machine.create_mm(), 1, flags=MAP_SHARED | MAP_ANONYMOUS)
        region.write(0, value=1)
        child = region.seen_by(region.mm.fork())
        child.write(0, value=2)
        assert region.word(0) == 2


class TestSoftDirty:
    def test_only_the_writers_entry_is_marked(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(2)
        one = map_object(any_machine.create_mm(), shared, 2)
        other = map_object(any_machine.create_mm(), shared, 2)
        for region in (one, other):
            region.read(0, 1)
            region.mm.clear_refs()
        one.write(0)
        assert (one.soft_dirty, other.soft_dirty) == ("s.", "..")

    def test_a_tracked_page_faults_at_its_next_write_once(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(1), 1)
        region.write(0)
        region.mm.clear_refs()
        assert not region.entry_bit(0, WRITE)
        assert region.write(0) == 1
        assert region.write(0) == 0
        assert region.soft_dirty == "s"

    def test_pageout_forgets_the_bit_with_the_entry(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(1), 1)
        region.mm.clear_refs()
        region.write(0, value=7)
        region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
        assert (region.present, region.swapped, region.soft_dirty) == (".", ".", ".")
        assert any_machine.used_swap_slots == 1
        region.read(0)
        assert (region.word(0), region.soft_dirty) == (7, ".")

    def test_a_page_that_two_map_is_not_paged_out(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(1)
        one = map_object(any_machine.create_mm(), shared, 1)
        other = map_object(any_machine.create_mm(), shared, 1)
        one.write(0)
        other.read(0)
        one.mm.madvise(one.start, one.length, MADV_PAGEOUT)
        assert one.present == "p"

    def test_a_page_never_written_is_dropped_at_pageout(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(1), 1)
        region.read(0)
        region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
        assert (any_machine.used_frames, any_machine.used_swap_slots) == (0, 0)


class TestEndOfObject:
    def test_an_access_beyond_it_is_sigbus(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(1), 3)
        region.write(0)
        for access in (region.read, region.write):
            with pytest.raises(SegFault, match="SIGBUS") as caught:
                access(1)
            assert (caught.value.signal, caught.value.address) == (7, region.at(1))

    def test_looking_there_finds_nothing(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(1), 3)
        region.write(0)
        frames = region.mm.frames(region.start, 3).tolist()
        assert frames[0] > 0
        assert frames[1:] == [-1, -1]


class TestFaultAround:
    """A read fault maps the neighbours that are in memory as well, 64 KiB of them at most."""

    @pytest.mark.parametrize(("page_size", "window"), [(4096, 16), (16384, 4), (65536, 1)])
    def test_window(self, page_size: int, window: int) -> None:
        machine = make_machine(page_size)
        shared = machine.create_shared(40)
        map_object(machine.create_mm(), shared, 40).write_all()
        reader = map_object(machine.create_mm(), shared, 40)
        assert reader.read(window) == 1
        expected = ["p" if window <= page < 2 * window else "." for page in range(40)]
        assert reader.present == "".join(expected)

    def test_holes_of_the_object_stay_holes(self, machine: Machine) -> None:
        shared = machine.create_shared(16)
        map_object(machine.create_mm(), shared, 16).write(1, 5)
        reader = map_object(machine.create_mm(), shared, 16)
        reader.read(5)
        assert reader.present == ".p...p.........."

    def test_a_write_maps_its_page_only(self, machine: Machine) -> None:
        shared = machine.create_shared(4)
        map_object(machine.create_mm(), shared, 4).write_all()
        writer = map_object(machine.create_mm(), shared, 4)
        writer.write(1)
        assert writer.present == ".p.."

    def test_mapped_around_is_not_soft_dirty(self, machine: Machine) -> None:
        shared = machine.create_shared(4)
        map_object(machine.create_mm(), shared, 4).write_all()
        reader = map_object(machine.create_mm(), shared, 4)
        reader.mm.clear_refs()
        reader.read(0)
        assert (reader.present, reader.soft_dirty) == ("pppp", "....")


class TestLifetime:
    def test_an_object_goes_with_its_last_mapping(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(1)
        one = map_object(any_machine.create_mm(), shared, 1)
        other = map_object(any_machine.create_mm(), shared, 1)
        one.write(0)
        one.mm.exit()
        assert any_machine.used_frames == 1
        other.mm.munmap(other.start, other.length)
        assert any_machine.used_frames == 0
        with pytest.raises(MmError) as caught:
            map_object(other.mm, shared, 1)
        assert caught.value.errno == errno.EBADF

    def test_one_that_is_kept_waits_for_its_next_mapping(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(1, keep=True)
        first = map_object(any_machine.create_mm(), shared, 1)
        first.write(0, value=9)
        first.mm.exit()
        second = map_object(any_machine.create_mm(), shared, 1)
        assert second.word(0) == 9
        any_machine.close_shared(shared)
        assert second.word(0) == 9
        second.mm.exit()
        assert any_machine.used_frames == 0

    def test_swapped_pages_go_with_it(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(1), 1)
        region.write(0)
        region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
        region.mm.exit()
        assert (any_machine.used_frames, any_machine.used_swap_slots) == (0, 0)

    def test_an_object_of_no_pages(self, machine: Machine) -> None:
        with pytest.raises(MmError, match="at least 1") as caught:
            machine.create_shared(0)
        assert caught.value.errno == errno.EINVAL
