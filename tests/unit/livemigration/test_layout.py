"""Address spaces: how they travel, and how another host's process is made like one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemigration.errors import DamagedFrame
from livemigration.layout import (
    AddressSpace,
    areas,
    describe,
    from_proto,
    huge_objects,
    reconcile,
    restore_advice,
    to_proto,
)
from livemigration.v1 import common_pb2
from mm_model import (
    MADV_DONTFORK,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    ModelConfig,
    Vma,
)

PAGE = 4096
BASE = 0x10_0000_0000
RW = PROT_READ | PROT_WRITE
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS


def machine() -> Machine:
    return Machine(ModelConfig(frames=512, swap_slots=64))


def vma(first: int, end: int, **changes: Any) -> Vma:
    """Pages [first, end) of private memory."""
    whole = Vma(BASE + first * PAGE, BASE + end * PAGE, RW, PRIVATE, 0, 0, False, "")
    return replace(whole, **changes)


def space(*vmas: Vma, start_brk: int = 0, brk: int = 0) -> AddressSpace:
    return AddressSpace(1, 0, vmas, start_brk, brk)


def shape(mm: Mm) -> list[tuple[int, int, int, int]]:
    return areas(mm.vmas(), PAGE)


def write(mm: Mm, *numbers: int) -> None:
    addresses = np.array([BASE + n * PAGE for n in numbers], dtype=np.uint64)
    mm.store_words(addresses, np.array(numbers, dtype=np.uint64) + np.uint64(1))


def content(mm: Mm, *numbers: int) -> list[int]:
    return [int.from_bytes(mm.peek(BASE + n * PAGE, 8), "little") for n in numbers]


# -- on the way


def test_an_address_space_is_the_same_after_its_trip() -> None:
    mm = machine().create_mm()
    shared = mm.machine.create_shared(9)
    mm.mmap(BASE, 3 * PAGE, RW, PRIVATE | MAP_FIXED, name="[anon:x]")
    mm.mmap(BASE + 8 * PAGE, PAGE, PROT_NONE, PRIVATE | MAP_GROWSDOWN | MAP_FIXED)
    mm.mmap(
        BASE + 16 * PAGE,
        4 * PAGE,
        PROT_READ,
        MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
        shared_id=shared,
        pgoff=5,
    )
    mm.set_brk_base(BASE + 40 * PAGE)
    mm.brk(BASE + 42 * PAGE)
    sent = describe(7, 3, mm)
    message = common_pb2.Process.FromString(to_proto(sent).SerializeToString())
    arrived = from_proto(message)
    assert (arrived.pid, arrived.ppid) == (7, 3)
    assert (arrived.start_brk, arrived.brk) == (BASE + 40 * PAGE, BASE + 42 * PAGE)
    # What only this host's kernel knows of a mapping stays here.
    assert arrived.vmas == tuple(replace(v, soft_dirty=False, locked=False) for v in sent.vmas)


def test_areas_are_joined_where_only_bookkeeping_divides_them() -> None:
    parts = [
        vma(0, 2, soft_dirty=True),
        vma(2, 3, name="[heap]"),
        vma(3, 4, prot=PROT_READ),
        vma(5, 6, prot=PROT_READ),
        vma(6, 7, prot=PROT_READ, flags=MAP_SHARED | MAP_ANONYMOUS, shared_id=4),
    ]
    assert areas(parts, PAGE) == [
        (BASE, BASE + 3 * PAGE, RW, MAP_PRIVATE),
        (BASE + 3 * PAGE, BASE + 4 * PAGE, PROT_READ, MAP_PRIVATE),
        (BASE + 5 * PAGE, BASE + 6 * PAGE, PROT_READ, MAP_PRIVATE),
        (BASE + 6 * PAGE, BASE + 7 * PAGE, PROT_READ, MAP_SHARED),
    ]


# -- made like another


def test_an_empty_process_gets_everything() -> None:
    mm = machine().create_mm()
    wanted = space(vma(0, 4), vma(4, 6, prot=PROT_READ), vma(9, 12, name="x"))
    reconcile(mm, wanted, {})
    assert shape(mm) == areas(wanted.vmas, PAGE)
    assert mm.vmas()[-1].name == "x"


def test_everything_goes_if_nothing_is_wanted() -> None:
    mm = machine().create_mm()
    reconcile(mm, space(vma(0, 4), vma(6, 8)), {})
    write(mm, 1, 7)
    reconcile(mm, space(), {})
    assert mm.vmas() == []
    assert mm.machine.used_frames == machine().used_frames


def test_pages_stay_where_the_same_kind_of_memory_stays() -> None:
    mm = machine().create_mm()
    reconcile(mm, space(vma(0, 8)), {})
    write(mm, *range(8))
    reconcile(mm, space(vma(1, 3), vma(4, 6, prot=PROT_READ), vma(7, 10)), {})
    assert content(mm, 1, 2, 4, 5, 7) == [2, 3, 5, 6, 8]
    reconcile(mm, space(vma(0, 10)), {})
    assert content(mm, *range(10)) == [0, 2, 3, 0, 5, 6, 0, 8, 0, 0]
    assert len(shape(mm)) == 1


def test_memory_that_turned_shared_is_another_memory() -> None:
    mm = machine().create_mm()
    reconcile(mm, space(vma(0, 4)), {})
    write(mm, 0, 1, 2, 3)
    here = mm.machine.create_shared(8, keep=True)
    part = vma(1, 3, flags=MAP_SHARED | MAP_ANONYMOUS, shared_id=77, pgoff=5)
    reconcile(mm, space(vma(0, 1), part, vma(3, 4)), {77: here})
    assert content(mm, 0, 1, 2, 3) == [1, 0, 0, 4]
    assert [(v.shared_id, v.pgoff) for v in mm.vmas()] == [(0, 0), (here, 5), (0, 0)]


def test_another_part_of_the_same_object_is_mapped_anew() -> None:
    mm = machine().create_mm()
    here = mm.machine.create_shared(8, keep=True)
    shared = vma(0, 4, flags=MAP_SHARED | MAP_ANONYMOUS, shared_id=5)
    reconcile(mm, space(shared), {5: here})
    write(mm, 0, 1, 2, 3)
    reconcile(mm, space(replace(shared, pgoff=2)), {5: here})
    assert content(mm, 0, 1, 2, 3) == [3, 4, 0, 0]
    reconcile(mm, space(replace(shared, start=BASE + PAGE, pgoff=1)), {5: here})
    assert content(mm, 1, 2, 3) == [2, 3, 4]


def test_the_heap_ends_where_it_ended() -> None:
    mm = machine().create_mm()
    heap = vma(0, 3, name="[heap]")
    reconcile(mm, space(heap, start_brk=BASE, brk=BASE + 3 * PAGE), {})
    assert (mm.start_brk, mm.brk(0)) == (BASE, BASE + 3 * PAGE)
    assert mm.brk(BASE + 5 * PAGE) == BASE + 5 * PAGE
    assert shape(mm) == [(BASE, BASE + 5 * PAGE, RW, MAP_PRIVATE)]


@pytest.mark.parametrize(
    "bad",
    [
        space(vma(2, 2)),
        space(vma(3, 2)),
        space(vma(4, 6), vma(0, 2)),
        space(vma(0, 3), vma(2, 4)),
        space(vma(0, 2, start=BASE + 5)),
        space(replace(vma(0, 2), end=BASE + 2 * PAGE - 1)),
        space(vma(0, 1), vma(1, 2, shared_id=9, flags=MAP_SHARED | MAP_ANONYMOUS)),
    ],
)
def test_what_is_no_address_space_is_refused_and_changes_nothing(bad: AddressSpace) -> None:
    mm = machine().create_mm()
    reconcile(mm, space(vma(0, 8)), {})
    write(mm, 1, 2)
    before = mm.vmas()
    with pytest.raises(DamagedFrame, match=r"^VMA 0x"):
        reconcile(mm, bad, {})
    assert mm.vmas() == before
    assert content(mm, 1, 2) == [2, 3]


_CELL = st.sampled_from(["", "rw", "r", "none", "shared", "shifted"])


def _layout(cells: list[str]) -> AddressSpace:
    """One VMA per page that is not a hole: the finest cut there is."""
    flags = MAP_SHARED | MAP_ANONYMOUS
    kinds: dict[str, dict[str, Any]] = {
        "rw": {},
        "r": {"prot": PROT_READ},
        "none": {"prot": PROT_NONE},
        "shared": {"flags": flags, "shared_id": 3},
        "shifted": {"flags": flags, "shared_id": 3},
    }
    return space(
        *(
            vma(n, n + 1, **kinds[cell])
            if "sh" not in cell
            else vma(n, n + 1, **kinds[cell], pgoff=n + (cell == "shifted"))
            for n, cell in enumerate(cells)
            if cell
        )
    )


@given(before=st.lists(_CELL, max_size=12), after=st.lists(_CELL, max_size=12))
def test_any_address_space_can_become_any_other(before: list[str], after: list[str]) -> None:
    mm = machine().create_mm()
    objects = {3: mm.machine.create_shared(16, keep=True)}
    first, second = _layout(before), _layout(after)
    reconcile(mm, first, objects)
    kept = [
        n
        for n, (a, b) in enumerate(zip(before, after, strict=False))
        if a == "rw" and b in ("rw", "r", "none")
    ]
    write(mm, *kept)
    reconcile(mm, second, objects)
    assert shape(mm) == areas(second.vmas, PAGE)
    for v in mm.vmas():
        if v.shared_id:
            offset = {(v.pgoff - (v.start - BASE) // PAGE)}
            assert offset <= {0, 1}
    assert content(mm, *kept) == [n + 1 for n in kept]


class TestHugetlb:
    HUGE = PRIVATE | MAP_HUGETLB | 16 << MAP_HUGE_SHIFT

    def test_mappings_travel_with_the_size_of_their_pages(self) -> None:
        mm = machine().create_mm()
        wanted = space(vma(0, 32, flags=self.HUGE), vma(32, 40))
        reconcile(mm, from_proto(to_proto(wanted)), {})
        assert [(v.start, v.end, v.flags) for v in mm.vmas()] == [
            (BASE, BASE + 32 * PAGE, self.HUGE),
            (BASE + 32 * PAGE, BASE + 40 * PAGE, PRIVATE),
        ]
        page = np.full(PAGE, 7, np.uint8)
        mm.install(np.array([BASE + PAGE], np.uint64), page)
        assert mm.hugetlb_pages == 16
        assert mm.load(BASE + PAGE, 1) == b"\x07"

    def test_a_huge_page_goes_whole_where_a_part_becomes_other_memory(self) -> None:
        mm = machine().create_mm()
        reconcile(mm, space(vma(0, 48, flags=self.HUGE)), {})
        mm.touch_write(np.arange(BASE, BASE + 48 * PAGE, PAGE, dtype=np.uint64))
        reconcile(mm, space(vma(0, 16, flags=self.HUGE), vma(20, 24)), {})
        assert mm.hugetlb_pages == 16
        assert [(v.start - BASE) // PAGE for v in mm.vmas()] == [0, 20]
        reconcile(mm, space(vma(0, 8)), {})
        assert mm.machine.used_frames == 0

    def test_objects_of_huge_pages_are_known_by_their_mappings(self) -> None:
        shared = MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | 21 << MAP_HUGE_SHIFT
        spaces = [space(vma(0, 512, flags=shared, shared_id=3), vma(600, 601, shared_id=4))]
        assert huge_objects(spaces) == {3: 2 << 20}

    @pytest.mark.parametrize(("size", "end"), [(16, 8), (17, 32), (63, 32)])
    def test_sizes_and_borders_that_cannot_be_are_refused(self, size: int, end: int) -> None:
        bad = PRIVATE | MAP_HUGETLB | size << MAP_HUGE_SHIFT
        with pytest.raises(DamagedFrame):
            reconcile(machine().create_mm(), space(vma(0, end, flags=bad)), {})


LASTING = (MADV_DONTFORK, MADV_HUGEPAGE, MADV_MERGEABLE, MADV_NOHUGEPAGE, MADV_WIPEONFORK)


def test_advice_and_locks_travel_and_are_given_at_the_end() -> None:
    there = machine().create_mm()
    for k, advice in enumerate(LASTING):
        there.mmap(BASE + 2 * k * PAGE, PAGE, RW, PRIVATE | MAP_FIXED)
        there.madvise(BASE + 2 * k * PAGE, PAGE, advice)
    there.mlock(BASE, PAGE)
    sent = from_proto(to_proto(describe(1, 0, there)))
    here = machine().create_mm()
    reconcile(here, sent, {})
    assert all(not v.advice and not v.locked for v in here.vmas())
    restore_advice(here, sent)
    assert [v.advice for v in here.vmas()] == [1 << advice for advice in LASTING]
    assert [v.locked for v in here.vmas()] == [True, False, False, False, False]


def test_advice_that_there_is_not_is_refused() -> None:
    here = machine().create_mm()
    reconcile(here, space(vma(0, 2)), {})
    with pytest.raises(DamagedFrame, match="VMA 0x1000000000: madvise: unknown advice 40"):
        restore_advice(here, space(vma(0, 2, advice=1 << 40)))
