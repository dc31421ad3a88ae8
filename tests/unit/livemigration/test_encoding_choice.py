"""The automatic choice against every other choice there is, and against sending raw."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from livemigration.encoding.choice import choose

I64 = NDArray[np.int64]
PAGE = 4096
NS_BITS = 8 * 10**9

sizes_of_a_page = st.tuples(*(st.one_of(st.just(-1), st.integers(2, 2 * PAGE)) for _ in range(3)))
costs = st.tuples(*(st.integers(0, 50_000) for _ in range(3)))
frames = st.builds(
    lambda rows: np.array([(PAGE, *row) for row in rows], np.int64),
    st.lists(sizes_of_a_page, min_size=1, max_size=5),
)
bandwidths = st.sampled_from([10**6, 10**8, 10**9, 10**10, 10**11])


def taken(
    sizes: I64,
    picks: NDArray[np.integer],
    encode: I64,
    decode: I64,
    fixed: tuple[int, int],
    bandwidth: int,
    one_after_other: bool,
) -> int:
    """The time of a frame, by the model that docs/encodings.md has."""
    wire = int(sizes[np.arange(len(picks)), picks].sum())
    parts = (
        wire * NS_BITS // bandwidth,
        fixed[0] + int(encode[picks].sum()),
        fixed[1] + int(decode[picks].sum()),
    )
    return sum(parts) if one_after_other else max(parts)


def all_choices(sizes: I64) -> list[NDArray[np.integer]]:
    possible = [np.flatnonzero(row >= 0).tolist() for row in sizes]
    return [np.array(picks) for picks in product(*possible)]


@given(frames, costs, costs, st.tuples(st.integers(0, 10**5), st.integers(0, 10**5)), bandwidths)
def test_in_the_final_round_no_other_choice_is_faster_by_more_than_rounding(
    sizes: I64,
    encode: tuple[int, ...],
    decode: tuple[int, ...],
    fixed: tuple[int, int],
    bandwidth: int,
) -> None:
    args = (np.array((0, *encode)), np.array((0, *decode)))
    picks = choose(sizes, *args, fixed_ns=fixed, bandwidth=bandwidth, one_after_other=True)
    best = min(taken(sizes, other, *args, fixed, bandwidth, True) for other in all_choices(sizes))
    # Each page's share of the link is cut to whole nanoseconds.
    assert taken(sizes, picks, *args, fixed, bandwidth, True) <= best + len(sizes)


@given(
    frames,
    costs,
    costs,
    st.tuples(st.integers(0, 10**5), st.integers(0, 10**5)),
    bandwidths,
    st.booleans(),
)
def test_a_choice_is_possible_and_never_slower_than_raw(
    sizes: I64,
    encode: tuple[int, ...],
    decode: tuple[int, ...],
    fixed: tuple[int, int],
    bandwidth: int,
    one_after_other: bool,
) -> None:
    args = (np.array((0, *encode)), np.array((0, *decode)))
    picks = choose(
        sizes, *args, fixed_ns=fixed, bandwidth=bandwidth, one_after_other=one_after_other
    )
    assert (sizes[np.arange(len(picks)), picks] >= 0).all()
    raw = np.zeros(len(sizes), np.int64)
    assert taken(sizes, picks, *args, fixed, bandwidth, one_after_other) <= taken(
        sizes, raw, *args, fixed, bandwidth, one_after_other
    )


@pytest.mark.parametrize("bandwidth", [10**8, 10**9, 10**10, 4 * 10**10])
def test_pages_that_are_all_alike_share_the_work_between_link_and_processor(
    bandwidth: int,
) -> None:
    """The time is within a page of the least that any number of compressed pages gives."""
    count = 256
    sizes = np.tile(np.array([PAGE, PAGE // 2]), (count, 1))
    encode, decode = np.array([0, 10_400]), np.array([0, 2_800])
    picks = choose(
        sizes, encode, decode, fixed_ns=(118_000, 0), bandwidth=bandwidth, one_after_other=False
    )
    mixes = [np.arange(count) < compressed for compressed in range(count + 1)]
    times = [
        taken(sizes, mix.astype(int), encode, decode, (118_000, 0), bandwidth, False)
        for mix in mixes
    ]
    got = taken(sizes, picks, encode, decode, (118_000, 0), bandwidth, False)
    assert got == min(times)
    if bandwidth == 10**10:  # neither all nor none is best there
        assert 0 < np.count_nonzero(picks) < count
        assert got < min(times[0], times[-1])


def test_bytes_that_cost_no_time_are_saved_as_well() -> None:
    sizes = np.array([[PAGE, 100]], np.int64)
    picks = choose(
        sizes,
        np.array([0, 0]),
        np.array([0, 50]),
        fixed_ns=(10**9, 0),
        bandwidth=10**9,
        one_after_other=False,
    )
    assert picks.tolist() == [1]
