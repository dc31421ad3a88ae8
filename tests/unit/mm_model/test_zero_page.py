"""The zero page: reads of memory never written share one frame that is always zeros."""

from __future__ import annotations

from mm_model import MADV_PAGEOUT, MADV_POPULATE_READ, MREMAP_FIXED, MREMAP_MAYMOVE, Machine
from tests.unit.mm_model.kernel_box import BASE, new_region

SPECIAL, WRITE = 56, 51


def test_a_read_maps_it_read_only_and_takes_no_frame(any_machine: Machine) -> None:
    region = new_region(any_machine, 3)
    assert region.read(0, 1, 2) == 3
    assert region.present == "ppp"
    assert any_machine.used_frames == 0
    assert region.mm.frames(region.start, 3).tolist() == [0, 0, 0]
    assert region.entry_bit(0, SPECIAL)
    assert not region.entry_bit(0, WRITE)


def test_it_reads_as_zeros(any_machine: Machine) -> None:
    region = new_region(any_machine, 1)
    assert region.mm.load(region.start, region.page_size) == bytes(region.page_size)


def test_a_read_after_clear_refs_leaves_the_page_clean(any_machine: Machine) -> None:
    region = new_region(any_machine, 2)
    region.mm.clear_refs()
    region.read(0)
    assert (region.present, region.soft_dirty) == ("p.", "..")


def test_a_write_replaces_it_by_a_frame_and_marks_the_page(any_machine: Machine) -> None:
    region = new_region(any_machine, 2)
    region.mm.clear_refs()
    region.read(0, 1)
    assert region.write(0, value=7) == 1
    assert region.soft_dirty == "s."
    assert (region.word(0), region.word(1)) == (7, 0)
    assert any_machine.used_frames == 1
    assert not any_machine.content[0].any()


def test_a_write_of_zeros_is_a_write(any_machine: Machine) -> None:
    region = new_region(any_machine, 1)
    region.mm.clear_refs()
    region.read(0)
    region.write(0, value=0)
    assert region.soft_dirty == "s"
    assert region.mm.versions(region.start, 1).tolist() == [0]


def test_fork_shares_it_without_counting(any_machine: Machine) -> None:
    region = new_region(any_machine, 1)
    region.read(0)
    child = region.seen_by(region.mm.fork())
    child.write(0, value=1)
    region.write(0, value=2)
    assert (child.word(0), region.word(0)) == (1, 2)
    child.mm.exit()
    region.mm.exit()
    assert any_machine.used_frames == 0
    assert not any_machine.content[0].any()


def test_it_is_never_swapped_out(any_machine: Machine) -> None:
    region = new_region(any_machine, 1)
    region.read(0)
    region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
    assert (region.present, region.swapped) == ("p", ".")
    assert any_machine.used_swap_slots == 0


def test_moving_it_marks_it(any_machine: Machine) -> None:
    region = new_region(any_machine, 2)
    region.read(0)
    region.mm.clear_refs()
    target = BASE + (1 << 30)
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    region.mm.mremap(region.start, region.length, region.length, flags, target)
    assert region.moved_to(target).soft_dirty == "s."


def test_populating_for_reading_maps_it(any_machine: Machine) -> None:
    region = new_region(any_machine, 2)
    region.mm.clear_refs()
    region.mm.madvise(region.start, region.length, MADV_POPULATE_READ)
    assert (region.present, region.soft_dirty) == ("pp", "..")
    assert any_machine.used_frames == 0


def test_it_is_not_counted_as_resident(any_machine: Machine) -> None:
    region = new_region(any_machine, 2)
    region.read(0)
    region.write(1)
    assert region.mm.rss_pages == 1
