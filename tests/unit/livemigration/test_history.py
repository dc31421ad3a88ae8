"""Models of a workload's history: their rules, their limits, and how they agree with each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemigration.history import (
    XenRules,
    _distinct,
    average_rate,
    bounds,
    energy_j,
    from_history,
    rounds_needed,
    skipping_rounds,
)
from livemigration.theory import constant_rate, distinct_pages

PAGE = 4096
PAGES = 1000
LINK = 1000.0 * PAGE  # 1,000 pages/s: round 0 takes a second


def pages_of(model: Any) -> list[float]:
    return [size / PAGE for size in model.round_bytes]


def test_avg_is_the_geometric_series_until_few_pages_are_left() -> None:
    model = average_rate(PAGES, PAGE, 500, LINK)
    # 1000, 500, 250, 125, 62.5; the next would be 31.25, fewer than 50.
    assert pages_of(model) == [1000, 500, 250, 125, 62.5, 31.25]
    plain = constant_rate(PAGES * PAGE, 500 * PAGE, LINK, 4)
    assert model.round_s == plain.round_s


def test_avg_stops_when_three_times_the_memory_was_sent() -> None:
    # 1000 + 1000 + 1000 is not yet more; after the fourth it is, and the final round is full, too.
    assert pages_of(average_rate(PAGES, PAGE, 5000, LINK)) == [1000] * 5


def test_avg_stops_after_its_rounds() -> None:
    assert len(pages_of(average_rate(PAGES, PAGE, 900, LINK, XenRules(0, 3, 0)))) == 5


@pytest.mark.parametrize("rate", [0, 10, 700, 990, 1e9])
def test_whatever_the_rate_times_are_within_the_bounds(rate: float) -> None:
    model = average_rate(PAGES, PAGE, rate, LINK)
    limits = bounds(PAGES * PAGE, PAGE, LINK)
    assert limits.total_s[0] <= model.total_s <= limits.total_s[1] + 1e-9 + PAGE / LINK
    assert limits.downtime_s[0] <= model.downtime_s <= limits.downtime_s[1]


def test_the_bounds_of_512_mib_on_a_gigabit() -> None:
    """Five times the memory less a page at worst, once at best, and overheads beside them."""
    limits = bounds(512 << 20, PAGE, 125e6, before_s=0.2, after_s=0.1)
    once = (512 << 20) / 125e6
    assert limits.total_s == pytest.approx((0.3 + once, 0.3 + 5 * once), rel=1e-4)
    assert limits.downtime_s == pytest.approx((0.1, 0.1 + once))


def test_hist_counts_a_page_once_that_gets_dirty_in_every_interval() -> None:
    same = np.arange(100)
    hist = from_history([same], 0.1, PAGES, PAGE, LINK)
    # Ever the same 100 pages, although 1,000 pages/s get dirty on average.
    assert pages_of(hist)[:3] == [1000, 100, 100]
    assert pages_of(average_rate(PAGES, PAGE, 1000, LINK))[:3] == [1000, 1000, 1000]


def test_hist_and_avg_agree_on_ever_new_pages() -> None:
    history = [np.arange(start, start + 10) for start in range(0, PAGES, 10)]  # 100 pages/s
    hist = from_history(history, 0.1, PAGES, PAGE, LINK)
    avg = average_rate(PAGES, PAGE, 100, LINK)
    assert pages_of(hist) == pytest.approx(pages_of(avg), rel=0.05)


def test_hist_follows_bursts() -> None:
    burst = [np.arange(400)] + [np.zeros(0, dtype=np.int64)] * 19  # in the first tenth of 2 s
    model = from_history(burst, 0.1, PAGES, PAGE, LINK)
    # Round 0 is under way during the burst; during the next second nothing happens.
    assert pages_of(model) == [1000, 400, 0]


@given(
    intervals=st.lists(st.lists(st.integers(0, 49), max_size=30), min_size=1, max_size=6),
    since=st.integers(0, 20),
    length=st.integers(0, 20),
)
def test_whole_intervals_count_as_their_union(
    intervals: list[list[int]], since: int, length: int
) -> None:
    """From the start of one interval to the end of another, exactly the pages that got dirty."""
    sets = [np.unique(np.array(entry, dtype=np.int64)) for entry in intervals]
    expected = {p for k in range(since, since + length) for p in intervals[k % len(intervals)]}
    assert _distinct(sets, 50, since, since + length) == pytest.approx(len(expected))


def test_hist_of_random_pages_is_the_expected_number_of_distinct_ones() -> None:
    rng = np.random.default_rng(5)
    history = [rng.integers(0, PAGES, 20) for _ in range(200)]  # 20 s at 200 writes/s
    model = from_history(history, 0.1, PAGES, PAGE, LINK, XenRules(0, 2, 0))
    assert pages_of(model)[1] == pytest.approx(distinct_pages(PAGES, 200), rel=0.05)


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 0.83])
@pytest.mark.parametrize("threshold", [1e-4, 0.01, 0.25])
def test_the_rounds_needed_are_enough_and_one_less_is_not(ratio: float, threshold: float) -> None:
    rounds = rounds_needed(1e9, ratio * 1e8, 1e8, threshold * 1e9)
    model = constant_rate(1e9, ratio * 1e8, 1e8, rounds)
    assert model.round_bytes[-1] <= threshold * 1e9 * (1 + 1e-9)
    if rounds:
        assert constant_rate(1e9, ratio * 1e8, 1e8, rounds - 1).round_bytes[-1] > threshold * 1e9


def test_without_writes_no_round_is_needed_after_the_first() -> None:
    assert rounds_needed(1e9, 0, 1e8, 1) == 0


def test_skipping_nothing_is_the_geometric_series() -> None:
    model = skipping_rounds(1000, 50, 100, 70, lambda seconds, rate: 0.0)
    assert model.round_bytes == (1000, 500, 250, 125, 62.5)


def test_skipped_pages_are_sent_in_the_final_round() -> None:
    # Half of what is dirty is left out, but not at the end.
    model = skipping_rounds(1000, 80, 100, 100, lambda seconds, rate: 0.5)
    assert model.round_bytes == pytest.approx((1000, 400, 160, 128))
    assert model.total_bytes < constant_rate(1000, 80, 100, 7).total_bytes


def test_rounds_that_grow_are_the_last() -> None:
    model = skipping_rounds(1000, 150, 100, 1, lambda seconds, rate: 0.02 * seconds)
    assert model.round_bytes[1:] == (800.0, 1000.0)  # memory is all there is
    assert len(model.round_bytes) == 3


def test_energy_is_a_line_over_the_traffic() -> None:
    assert energy_j(0) == 20.165
    assert energy_j(1e9) - energy_j(0) == pytest.approx(512)
    assert energy_j(2e6, joules_per_mb=1, base_joules=3) == 5


@pytest.mark.parametrize(
    "call",
    [
        lambda: average_rate(0, PAGE, 1, LINK),
        lambda: average_rate(1, PAGE, 1, math.inf),
        lambda: from_history([], 1, 1, PAGE, LINK),
        lambda: from_history([np.array([5])], 1, 5, PAGE, LINK),
        lambda: from_history([np.array([0])], 0, 5, PAGE, LINK),
        lambda: rounds_needed(1, 1, 1, 1),
        lambda: rounds_needed(1, 0.5, 1, 0),
        lambda: skipping_rounds(0, 1, 1, 1, lambda seconds, rate: 0),
    ],
)
def test_numbers_that_are_none_are_refused(call: Any) -> None:
    with pytest.raises(ValueError, match=r"must|history|smaller"):
        call()
