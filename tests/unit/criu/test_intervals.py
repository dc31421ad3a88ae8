"""Sets of page numbers as ranges do what Python's sets do."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from livemigration.criu.intervals import PageRanges

SETS = st.sets(st.integers(0, 60))


def ranges(pages: set[int]) -> PageRanges:
    numbers = np.array(sorted(pages), np.int64)
    return PageRanges.of(numbers, np.ones_like(numbers))


def members(found: PageRanges) -> list[int]:
    return [
        page
        for start, end in zip(found.starts.tolist(), found.ends.tolist(), strict=True)
        for page in range(start, end)
    ]


@given(SETS, SETS)
def test_and_and_minus(a: set[int], b: set[int]) -> None:
    assert members(ranges(a) & ranges(b)) == sorted(a & b)
    assert members(ranges(a) - ranges(b)) == sorted(a - b)
    assert (ranges(a) & ranges(b)).pages == len(a & b)


def test_ranges_that_touch_are_one() -> None:
    found = ranges({3, 4, 5, 9})
    assert found.starts.tolist() == [3, 9]
    assert found.ends.tolist() == [6, 10]


def test_a_range_as_long_as_an_address_space_takes_no_memory() -> None:
    whole = PageRanges.of(np.array([0]), np.array([1 << 52]))
    assert (whole - ranges({7})).pages == (1 << 52) - 1
