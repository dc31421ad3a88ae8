"""mmap and munmap: where mappings go, how they split and merge (mm/mmap.c, mm/vma.c)."""

from __future__ import annotations

import errno
import itertools
from typing import Any

import pytest

from mm_model import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    Machine,
    MmError,
    NotModelled,
    SegFault,
    Vma,
)
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
)


def test_a_mapping_is_reported_as_it_was_made(machine: Machine) -> None:
    mm = machine.create_mm()
    map_region(mm, 2, prot=PROT_READ, name="code")
    shared = machine.create_shared(4)
    map_region(mm, 2, flags=MAP_SHARED, shared_id=shared, pgoff=1, start=BASE + (1 << 30))
    assert mm.vmas() == [
        Vma(BASE, BASE + 8192, PROT_READ, ANON_PRIVATE, 0, 0, True, "code"),
        Vma(
            BASE + (1 << 30), BASE + (1 << 30) + 8192, RW, MAP_SHARED | MAP_ANONYMOUS,
            shared, 1, True, "",
        ),
    ]  # fmt: skip


class TestPlacing:
    def test_without_an_address_mappings_never_overlap(self, any_machine: Machine) -> None:
        mm, size = any_machine.create_mm(), any_machine.page_size
        ranges = []
        for pages in (1, 5, 2):
            start = mm.mmap(None, pages * size, RW, MAP_SHARED | MAP_ANONYMOUS)
            assert start % size == 0
            ranges.append((start, start + pages * size))
        ranges.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))

    def test_a_free_address_is_taken_as_asked(self, any_machine: Machine) -> None:
        mm, size = any_machine.create_mm(), any_machine.page_size
        assert mm.mmap(BASE, size, RW, ANON_PRIVATE) == BASE

    def test_an_address_in_use_is_only_a_hint(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.write_all(value=7)
        other = region.mm.mmap(region.at(1), region.page_size, RW, ANON_PRIVATE)
        assert other not in (region.at(0), region.at(1))
        assert region.word(1) == 7

    def test_fixed_replaces_what_is_there(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        region.write_all(value=7)
        map_region(region.mm, 1, start=region.at(1))
        assert [region.word(page) for page in range(3)] == [7, 0, 7]
        assert any_machine.used_frames == 2

    def test_fixed_noreplace_does_not(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        for first, count in ((0, 1), (2, 4), (-1, 2), (-1, 5)):
            with pytest.raises(MmError) as caught:
                region.mm.mmap(*region.part(first, count), RW, ANON_PRIVATE | MAP_FIXED_NOREPLACE)
            assert caught.value.errno == errno.EEXIST
        where = region.part(3, 1)
        assert region.mm.mmap(*where, RW, ANON_PRIVATE | MAP_FIXED_NOREPLACE) == region.at(3)

    def test_lengths_are_rounded_up_to_pages(self, any_machine: Machine) -> None:
        mm = any_machine.create_mm()
        start = mm.mmap(BASE, any_machine.page_size + 1, RW, ANON_PRIVATE)
        assert mm.vmas()[0].end == start + 2 * any_machine.page_size


class TestMerging:
    def test_anonymous_neighbours_alike_become_one(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        map_region(region.mm, 1, start=region.at(2))
        map_region(region.mm, 1, start=region.at(-1))
        assert extents(region.mm) == [(-1, 4)]

    @pytest.mark.parametrize(
        "difference",
        [{"prot": PROT_READ}, {"name": "other"}, {"flags": ANON_PRIVATE | MAP_GROWSDOWN}],
    )
    def test_a_difference_keeps_them_apart(
        self, any_machine: Machine, difference: dict[str, Any]
    ) -> None:
        region = new_region(any_machine, 2)
        map_region(region.mm, 1, start=region.at(2), **difference)
        assert extents(region.mm) == [(0, 2), (2, 1)]

    @pytest.mark.parametrize(("pgoff", "merged"), [(2, True), (1, False), (3, False)])
    def test_parts_of_an_object_merge_where_they_continue(
        self, any_machine: Machine, pgoff: int, merged: bool
    ) -> None:
        mm, shared = any_machine.create_mm(), any_machine.create_shared(8)
        first = map_object(mm, shared, 2)
        map_region(mm, 2, flags=MAP_SHARED, shared_id=shared, pgoff=pgoff, start=first.at(2))
        assert len(mm.vmas()) == (1 if merged else 2)

    def test_different_objects_do_not(self, any_machine: Machine) -> None:
        mm = any_machine.create_mm()
        first = map_object(mm, any_machine.create_shared(2), 2)
        map_object(mm, any_machine.create_shared(2), 2, start=first.at(2))
        assert extents(mm) == [(0, 2), (2, 2)]

    def test_pages_written_before_a_merge_are_there_after_it(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.write_all(value=3)
        map_region(region.mm, 2, start=region.at(2))
        whole = Region(region.mm, region.start, 4)
        whole.write(3, value=4)
        assert [whole.word(page) for page in range(4)] == [3, 3, 0, 4]


class TestUnmapping:
    def test_a_hole_in_the_middle_splits(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 5)
        region.write_all(value=2)
        region.mm.munmap(*region.part(2, 1))
        assert extents(region.mm) == [(0, 2), (3, 2)]
        assert region.present == "pp.pp"
        assert any_machine.used_frames == 4
        with pytest.raises(SegFault):
            region.read(2)

    @pytest.mark.parametrize(
        ("first", "count", "left"),
        [(0, 2, [(2, 3)]), (3, 2, [(0, 3)]), (0, 5, []), (-3, 10, []), (-2, 3, [(1, 4)])],
    )
    def test_ends_and_more(
        self, any_machine: Machine, first: int, count: int, left: list[tuple[int, int]]
    ) -> None:
        region = new_region(any_machine, 5)
        region.mm.munmap(*region.part(first, count))
        assert extents(region.mm) == left

    def test_several_mappings_at_once(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 6)
        region.write_all()
        region.mm.mprotect(*region.part(2, 2), PROT_READ)
        region.mm.munmap(*region.part(1, 4))
        assert extents(region.mm) == [(0, 1), (5, 1)]
        assert any_machine.used_frames == 2

    def test_nothing_there_is_no_error(self, any_machine: Machine) -> None:
        any_machine.create_mm().munmap(BASE, any_machine.page_size)

    def test_the_offset_of_what_is_left_is_right(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(4)
        region = map_object(any_machine.create_mm(), shared, 4)
        region.write(3, value=5)
        region.mm.munmap(*region.part(0, 2))
        assert region.mm.vmas()[0].pgoff == 2
        assert region.word(3) == 5

    def test_mapped_again_it_is_empty(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.write_all()
        region.mm.munmap(region.start, region.length)
        map_region(region.mm, 2)
        region.read(0, 1)
        assert [region.word(page) for page in range(2)] == [0, 0]

    def test_page_tables_are_given_back(self, any_machine: Machine) -> None:
        """Else a heap that wanders would eat tables without end."""
        mm = any_machine.create_mm()
        tables = any_machine.phys.free_tables.shape[0]
        for k in range(2 * tables):
            region = map_region(mm, 1, start=BASE + (k % 1000) * (1 << 32))
            region.write(0)
            mm.munmap(region.start, region.length)
        assert any_machine.phys.free_tables.shape[0] == tables


class TestErrors:
    @pytest.mark.parametrize(
        ("length", "flags"),
        [
            (0, ANON_PRIVATE),
            (-4096, ANON_PRIVATE),
            (4096, MAP_ANONYMOUS),
            (4096, MAP_ANONYMOUS | MAP_SHARED | MAP_PRIVATE),
            (4096, MAP_ANONYMOUS | MAP_SHARED | MAP_GROWSDOWN),
        ],
    )
    def test_bad_lengths_and_flags(self, machine: Machine, length: int, flags: int) -> None:
        with pytest.raises(MmError) as caught:
            machine.create_mm().mmap(None, length, RW, flags)
        assert caught.value.errno == errno.EINVAL

    def test_an_address_inside_a_page(self, machine: Machine) -> None:
        mm = machine.create_mm()
        for call in (
            lambda: mm.mmap(BASE + 1, 4096, RW, ANON_PRIVATE | MAP_FIXED),
            lambda: mm.munmap(BASE + 1, 4096),
        ):
            with pytest.raises(MmError, match="not page-aligned") as caught:
                call()
            assert caught.value.errno == errno.EINVAL

    def test_beyond_user_memory(self, machine: Machine) -> None:
        mm = machine.create_mm()
        with pytest.raises(MmError):
            mm.mmap((1 << 48) - 4096, 8192, RW, ANON_PRIVATE | MAP_FIXED)
        with pytest.raises(MmError) as caught:
            mm.mmap(None, 1 << 48, RW, ANON_PRIVATE)
        assert caught.value.errno == errno.ENOMEM

    def test_munmap_of_nothing(self, machine: Machine) -> None:
        region = new_region(machine, 1)
        with pytest.raises(MmError, match="length is 0") as caught:
            region.mm.munmap(region.start, 0)
        assert caught.value.errno == errno.EINVAL

    def test_a_file_mapping_without_a_file(self, machine: Machine) -> None:
        for shared_id in (0, 99):
            with pytest.raises(MmError) as caught:
                machine.create_mm().mmap(None, 4096, RW, MAP_PRIVATE, shared_id=shared_id)
            assert caught.value.errno == errno.EBADF

    @pytest.mark.parametrize("flag", [0x8000, 0x10000])
    def test_flags_that_are_not_modelled_say_so(self, machine: Machine, flag: int) -> None:
        with pytest.raises(NotModelled):
            machine.create_mm().mmap(None, 4096, RW, ANON_PRIVATE | flag)

    def test_a_refused_call_changes_nothing(self, machine: Machine) -> None:
        region = new_region(machine, 2)
        region.write_all(value=3)
        with pytest.raises(MmError):
            region.mm.mmap(region.start, 0, RW, ANON_PRIVATE | MAP_FIXED)
        with pytest.raises(MmError):
            region.mm.mmap(region.start, 4096, RW, MAP_PRIVATE | MAP_FIXED, shared_id=99)
        assert [region.word(page) for page in range(2)] == [3, 3]


def test_geometry_of_tables() -> None:
    """A last-level table spans 2 MiB of 4K pages, 32 MiB of 16K pages, 512 MiB of 64K pages."""
    spans = {4096: 2 << 20, 16384: 32 << 20, 65536: 512 << 20}
    for page_size, span in spans.items():
        assert 1 << int(make_machine(page_size).arch.pmd_shift) == span
