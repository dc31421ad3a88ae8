"""mremap: grow, shrink and move; what moves entry by entry becomes soft-dirty (mm/mremap.c)."""

from __future__ import annotations

import errno

import pytest

from mm_model import (
    MADV_PAGEOUT,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    Machine,
    MmError,
    NotModelled,
    SegFault,
)
from tests.unit.mm_model.kernel_box import (
    BASE,
    Region,
    extents,
    map_object,
    map_region,
    new_region,
    tracked_region,
)

TARGET = BASE + (1 << 40)
TO = MREMAP_MAYMOVE | MREMAP_FIXED


def move(region: Region, target: int = TARGET, flags: int = TO) -> Region:
    where = region.mm.mremap(region.start, region.length, region.length, flags, target)
    return region.moved_to(where)


class TestMove:
    def test_content_goes_along_and_the_old_place_is_gone(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        region.write(0, value=4)
        region.write(2, value=6)
        moved = move(region)
        assert [moved.word(page) for page in range(3)] == [4, 0, 6]
        assert moved.present == "p.p"
        with pytest.raises(SegFault, match="not mapped"):
            region.read(0)

    def test_no_byte_is_copied(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.write_all()
        frames = region.mm.frames(region.start, 2).tolist()
        assert move(region).mm.frames(TARGET, 2).tolist() == frames

    def test_pages_become_soft_dirty_and_holes_do_not(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 4)
        region.write(0, 2)
        region.mm.clear_refs()
        moved = move(region)
        assert moved.soft_dirty == "s.s."
        assert not moved.mm.vmas()[0].soft_dirty

    def test_swapped_pages_become_soft_dirty(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.mm.madvise(*region.part(1, 1), MADV_PAGEOUT)
        moved = move(region)
        assert (moved.swapped, moved.soft_dirty) == (".w", "ss")
        moved.read(1)
        assert (moved.word(1), moved.soft_dirty) == (1, "ss")

    def test_a_moved_page_is_tracked_after_the_next_clear(self, any_machine: Machine) -> None:
        moved = move(tracked_region(any_machine, 2))
        moved.mm.clear_refs()
        moved.write(1)
        assert moved.soft_dirty == ".s"

    def test_whole_tables_move_as_they_are(self, any_machine: Machine) -> None:
        """CONFIG_HAVE_MOVE_PMD: the table changes hands and nobody looks at its entries."""
        per_table = any_machine.page_size // 8
        region = map_region(any_machine.create_mm(), 2 * per_table)
        region.write(0, per_table - 1, per_table, value=3)
        region.mm.clear_refs()
        region.write(per_table)
        moved = move(region)
        assert [page for page, bit in enumerate(moved.soft_dirty) if bit == "s"] == [per_table]
        assert [moved.word(page) for page in (0, per_table - 1)] == [3, 3]

    def test_part_of_a_table_moves_entry_by_entry(self, any_machine: Machine) -> None:
        per_table = any_machine.page_size // 8
        region = map_region(any_machine.create_mm(), per_table)
        region.write(0, per_table - 2)
        region.mm.clear_refs()
        part = Region(region.mm, region.start, per_table - 1)
        moved = move(part)
        assert [page for page, bit in enumerate(moved.soft_dirty) if bit == "s"] == [
            0,
            per_table - 2,
        ]

    def test_protection_goes_along(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0)
        region.mm.mprotect(region.start, region.length, PROT_READ)
        moved = move(region)
        moved.read(0)
        with pytest.raises(SegFault):
            moved.write(0)

    def test_a_part_leaves_the_rest_where_it_is(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 5)
        moved = move(Region(region.mm, region.at(1), 2))
        assert region.present == "p..pp"
        assert region.soft_dirty == "....."
        assert moved.soft_dirty == "ss"

    def test_it_replaces_what_was_at_the_target(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        other = map_region(region.mm, 2, start=TARGET)
        other.write_all(value=9)
        used = any_machine.used_frames
        move(region)
        assert [other.word(page) for page in range(2)] == [1, 9]
        assert any_machine.used_frames == used - 1

    def test_grow_and_move_at_once(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.mm.mremap(region.start, region.length, 2 * region.length, TO, TARGET)
        moved = Region(region.mm, TARGET, 4)
        assert (moved.present, moved.soft_dirty) == ("pp..", "ss..")
        moved.write(3)

    def test_shrink_and_move_at_once(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 3)
        region.mm.mremap(region.start, region.length, region.page_size, TO, TARGET)
        assert extents(region.mm) == [(((1 << 40) // region.page_size), 1)]
        assert any_machine.used_frames == 1


class TestDontUnmap:
    FLAGS = TO | MREMAP_DONTUNMAP

    def test_the_old_range_stays_mapped_empty_and_clean(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        moved = move(region, flags=self.FLAGS)
        assert (region.present, region.soft_dirty) == ("..", "..")
        assert (moved.present, moved.soft_dirty) == ("pp", "ss")
        region.write(0, value=5)
        assert (region.word(0), moved.word(0)) == (5, 1)

    def test_without_fixed_the_kernel_chooses_where(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        moved = move(region, 0, MREMAP_MAYMOVE | MREMAP_DONTUNMAP)
        assert moved.start != region.start
        assert (region.present, moved.present) == ("..", "pp")

    def test_shared_memory_shows_the_same_at_both_places(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(1), 1)
        region.write(0, value=2)
        moved = move(region, flags=self.FLAGS)
        region.write(0, value=3)
        assert moved.word(0) == 3

    @pytest.mark.parametrize("flags", [MREMAP_DONTUNMAP, MREMAP_DONTUNMAP | MREMAP_FIXED])
    def test_it_needs_maymove(self, machine: Machine, flags: int) -> None:
        refused(new_region(machine, 1), errno.EINVAL, flags=flags)

    def test_it_cannot_resize(self, machine: Machine) -> None:
        refused(new_region(machine, 1), errno.EINVAL, new_pages=2, flags=self.FLAGS)


class TestResizeInPlace:
    def test_growing_adds_holes(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        assert region.mm.mremap(region.start, region.length, 2 * region.length) == region.start
        grown = Region(region.mm, region.start, 4)
        assert (grown.present, grown.soft_dirty) == ("pp..", "....")
        grown.write(3)
        assert grown.soft_dirty == "...s"

    def test_without_room_it_moves_if_it_may(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        map_region(region.mm, 1, start=region.at(2), prot=PROT_READ)
        refused(region, errno.ENOMEM, new_pages=3, flags=0)
        where = region.mm.mremap(region.start, region.length, 3 * region.page_size, MREMAP_MAYMOVE)
        moved = Region(region.mm, where, 3)
        assert (moved.present, moved.soft_dirty) == ("pp.", "ss.")
        assert region.present == ".."

    def test_shrinking_gives_the_tail_back(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 4)
        assert region.mm.mremap(region.start, region.length, region.page_size) == region.start
        assert region.present == "p..."
        assert region.soft_dirty == "...."
        assert any_machine.used_frames == 1

    def test_the_same_size_changes_nothing(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        before = region.mm.ptes(region.start, 2).tolist()
        assert region.mm.mremap(region.start, region.length, region.length) == region.start
        assert region.mm.ptes(region.start, 2).tolist() == before


def refused(
    region: Region,
    number: int,
    *,
    offset: int = 0,
    new_pages: int = 0,
    flags: int = TO,
    target: int = TARGET,
) -> None:
    new_length = (new_pages or region.pages) * region.page_size
    with pytest.raises(MmError) as caught:
        region.mm.mremap(region.start + offset, region.length, new_length, flags, target)
    assert caught.value.errno == number


class TestErrors:
    def test_fixed_needs_maymove(self, machine: Machine) -> None:
        refused(new_region(machine, 1), errno.EINVAL, flags=MREMAP_FIXED)

    def test_unknown_flags(self, machine: Machine) -> None:
        refused(new_region(machine, 1), errno.EINVAL, flags=TO | 8)

    def test_an_address_inside_a_page(self, machine: Machine) -> None:
        refused(new_region(machine, 1), errno.EINVAL, offset=8)
        refused(new_region(machine, 1), errno.EINVAL, target=TARGET + 8)

    @pytest.mark.parametrize("flags", [TO, MREMAP_MAYMOVE | MREMAP_DONTUNMAP])
    def test_old_and_new_range_must_not_overlap(self, machine: Machine, flags: int) -> None:
        region = new_region(machine, 4)
        refused(region, errno.EINVAL, flags=flags, target=region.at(2))
        refused(region, errno.EINVAL, flags=flags, target=region.at(-2))

    def test_a_new_length_of_zero(self, machine: Machine) -> None:
        region = new_region(machine, 1)
        with pytest.raises(MmError) as caught:
            region.mm.mremap(region.start, region.length, 0)
        assert caught.value.errno == errno.EINVAL

    def test_an_old_length_of_zero(self, machine: Machine) -> None:
        """It would double a shared mapping, which is not modelled; a private one it refuses."""
        region = new_region(machine, 1)
        with pytest.raises(MmError) as caught:
            region.mm.mremap(region.start, 0, region.length, MREMAP_MAYMOVE)
        assert caught.value.errno == errno.EINVAL
        shared = map_object(machine.create_mm(), machine.create_shared(1), 1)
        with pytest.raises(NotModelled):
            shared.mm.mremap(shared.start, 0, shared.length, MREMAP_MAYMOVE)

    def test_nothing_mapped(self, machine: Machine) -> None:
        region = new_region(machine, 1)
        region.mm.munmap(region.start, region.length)
        refused(region, errno.EFAULT)

    def test_more_than_one_mapping(self, machine: Machine) -> None:
        region = new_region(machine, 4)
        region.mm.mprotect(*region.part(2, 2), PROT_READ)
        refused(region, errno.EFAULT)

    def test_beyond_user_memory(self, machine: Machine) -> None:
        refused(new_region(machine, 2), errno.EINVAL, target=(1 << 48) - 4096)
