"""brk: the heap grows with holes, shrinks for good, and never over its neighbours."""

from __future__ import annotations

import pytest

from mm_model import PROT_READ, Machine, Mm, SegFault
from tests.unit.mm_model.kernel_box import BASE, Region, map_region


def heap(machine: Machine, pages: int) -> Region:
    mm = machine.create_mm()
    mm.set_brk_base(BASE)
    assert mm.brk(BASE + pages * machine.page_size) == BASE + pages * machine.page_size
    return Region(mm, BASE, pages)


def end(mm: Mm) -> int:
    return mm.brk(0)


def test_zero_asks(any_machine: Machine) -> None:
    region = heap(any_machine, 2)
    assert end(region.mm) == region.at(2)


def test_it_grows_with_writable_holes(any_machine: Machine) -> None:
    region = heap(any_machine, 3)
    (vma,) = region.mm.vmas()
    assert (vma.start, vma.end, vma.name) == (region.start, region.at(3), "[heap]")
    assert region.present == "..."
    region.write(2, value=4)
    assert (region.word(2), region.present) == (4, "..p")


def test_growing_again_makes_one_mapping(any_machine: Machine) -> None:
    region = heap(any_machine, 1)
    region.write(0)
    region.mm.brk(region.at(3))
    assert len(region.mm.vmas()) == 1
    region.write(2)


def test_what_it_shrank_over_is_gone_and_comes_back_as_zeros(any_machine: Machine) -> None:
    region = heap(any_machine, 3)
    region.write_all(value=6)
    region.mm.brk(region.at(1))
    with pytest.raises(SegFault):
        region.read(1)
    assert any_machine.used_frames == 1
    region.mm.brk(region.at(3))
    region.read(1)
    assert [region.word(page) for page in range(3)] == [6, 0, 0]


def test_an_end_inside_a_page_is_kept_and_the_page_is_mapped(any_machine: Machine) -> None:
    region = heap(any_machine, 1)
    assert region.mm.brk(region.at(1) + 5) == region.at(1) + 5
    assert end(region.mm) == region.at(1) + 5
    region.write(1)
    region.mm.brk(region.at(1) + 9)
    assert region.word(1) == 0x5EED


def test_shrinking_inside_a_page_keeps_the_page(any_machine: Machine) -> None:
    region = heap(any_machine, 2)
    region.write(1)
    region.mm.brk(region.at(1) + 1)
    assert region.present == ".p"


def test_down_to_nothing(any_machine: Machine) -> None:
    region = heap(any_machine, 2)
    region.write_all()
    assert region.mm.brk(region.start) == region.start
    assert region.mm.vmas() == []
    assert any_machine.used_frames == 0


class TestRefusalLeavesTheEndWhereItIs:
    def test_below_the_start(self, any_machine: Machine) -> None:
        region = heap(any_machine, 2)
        assert region.mm.brk(region.start - 1) == region.at(2)

    def test_over_a_mapping(self, any_machine: Machine) -> None:
        region = heap(any_machine, 1)
        map_region(region.mm, 1, prot=PROT_READ, start=region.at(4))
        assert region.mm.brk(region.at(5)) == region.at(1)

    def test_one_page_stays_free_before_a_mapping(self, any_machine: Machine) -> None:
        region = heap(any_machine, 1)
        map_region(region.mm, 1, prot=PROT_READ, start=region.at(4))
        assert region.mm.brk(region.at(4)) == region.at(1)
        assert region.mm.brk(region.at(3)) == region.at(3)

    def test_beyond_user_memory(self, any_machine: Machine) -> None:
        region = heap(any_machine, 1)
        assert region.mm.brk(1 << 48) == region.at(1)

    def test_without_a_heap(self, any_machine: Machine) -> None:
        mm = any_machine.create_mm()
        assert mm.brk(BASE) == 0
        assert mm.vmas() == []
