"""Page sets as runs and back."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from livemigration.runs import from_runs, to_runs

PAGE = 4096


@given(st.sets(st.integers(0, 2**36)).map(sorted))
def test_runs_give_back_the_same_pages(numbers: list[int]) -> None:
    addresses = np.array(numbers, dtype=np.uint64) * np.uint64(PAGE)
    starts, pages = to_runs(addresses, PAGE)
    assert from_runs(starts, pages, PAGE).tolist() == addresses.tolist()


@given(st.sets(st.integers(0, 60)).map(sorted))
def test_runs_are_as_few_as_can_be(numbers: list[int]) -> None:
    starts, pages = to_runs(np.array(numbers, dtype=np.uint64) * np.uint64(PAGE), PAGE)
    gaps = sum(1 for i, n in enumerate(numbers) if i == 0 or n != numbers[i - 1] + 1)
    assert (starts.size, int(pages.sum())) == (gaps, len(numbers))
