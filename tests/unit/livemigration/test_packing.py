"""What of a batch travels as bytes and what as zeros: each page is looked at once, and rightly."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from livemigration.packing import pack_from, zero_pages
from livemigration.runs import to_runs
from mm_model import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    ModelConfig,
)

BASE = 0x10_0000_0000
PAGES = 24


def address_space(page_size: int, values: Iterable[int | None]) -> Mm:
    """One mapping; page n is never touched if the n-th value is None, else it holds that number."""
    machine = Machine(ModelConfig(page_size=page_size, frames=64, swap_slots=64))
    mm = machine.create_mm()
    mm.mmap(
        BASE, PAGES * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    )
    written = [(n, value) for n, value in enumerate(values) if value is not None]
    # Different numbers first, so that every page has been written, even one of zeros.
    for change in (1, 0):
        mm.store_words(
            np.array([BASE + n * page_size + page_size - 8 for n, _ in written], np.uint64),
            np.array([value + change for _, value in written], np.uint64),
        )
    return mm


def addresses_of(numbers: Iterable[int], page_size: int) -> NDArray[np.uint64]:
    return np.array([BASE + n * page_size for n in numbers], np.uint64)


@given(
    values=st.lists(st.sampled_from([None, 0, 7]), min_size=PAGES, max_size=PAGES),
    asked=st.sets(st.integers(0, PAGES - 1), min_size=1),
    swapped=st.booleans(),
    page_size=st.sampled_from([4096, 16384]),
)
def test_every_page_asked_for_is_bytes_or_zeros_or_not_there(
    values: list[int | None], asked: set[int], swapped: bool, page_size: int
) -> None:
    mm = address_space(page_size, values)
    if swapped:
        mm.madvise(BASE, PAGES * page_size, MADV_PAGEOUT)
    packing = pack_from(mm, addresses_of(sorted(asked), page_size))

    there = addresses_of([n for n in sorted(asked) if values[n] is not None], page_size)
    full = addresses_of([n for n in sorted(asked) if values[n]], page_size)
    zero = addresses_of([n for n in sorted(asked) if values[n] == 0], page_size)
    assert packing.addresses.tolist() == there.tolist()
    for address, version in zip(packing.addresses.tolist(), packing.versions, strict=True):
        assert mm.versions(address, 1)[0] == version
    for address, row in zip(full.tolist(), packing.rows.tolist(), strict=True):
        assert mm.machine.content[row].tobytes() == mm.peek(address, page_size)
    for found, expected in zip(
        (packing.run_start, packing.run_pages, packing.zero_start, packing.zero_pages),
        (*to_runs(full, page_size), *to_runs(zero, page_size)),
        strict=True,
    ):
        assert found.tolist() == expected.tolist()


def test_pages_given_back_since_they_were_noted_are_left_out() -> None:
    mm = address_space(4096, [7] * PAGES)
    mm.madvise(BASE + 2 * 4096, 4096, MADV_DONTNEED)
    packing = pack_from(mm, addresses_of(range(4), 4096))
    assert packing.addresses.tolist() == addresses_of([0, 1, 3], 4096).tolist()
    assert packing.run_pages.tolist() == [2, 1]


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_zero_pages_looks_at_every_byte(page_size: int) -> None:
    content = np.random.default_rng(1).integers(0, 256, (5, page_size), np.uint8)
    content[0] = 0
    content[2:5] = 0
    content[3, page_size - 1] = 1
    content[4, 0] = 1
    found = zero_pages(content, np.array([-1, 0, 1, 2, 3, 4]))
    assert found.tolist() == [True, True, False, True, False, False]


def test_a_row_past_the_end_is_refused() -> None:
    content = np.zeros((9, 4096), np.uint8)
    with pytest.raises(IndexError, match="row 9 of a content array of 9 frames"):
        zero_pages(content, np.array([9]))
