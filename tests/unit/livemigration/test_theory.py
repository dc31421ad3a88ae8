"""Closed forms, against sums, experiments and each other."""

from __future__ import annotations

import numpy as np
import pytest

from livemigration.theory import Overhead, constant_rate, distinct_pages, random_writes, ratios


def test_a_constant_rate_gives_a_geometric_series() -> None:
    model = constant_rate(1000.0, 50.0, 100.0, 3)
    assert model.round_bytes == (1000.0, 500.0, 250.0, 125.0, 62.5)
    assert model.round_s == (10.0, 5.0, 2.5, 1.25, 0.625)
    assert model.downtime_s == 0.625
    r = 0.5
    assert model.total_s == pytest.approx(10 * (1 - r**5) / (1 - r))
    assert ratios(model) == (r, r, r, r)


def test_overhead_adds_time_to_rounds_and_pages_only_while_the_task_runs() -> None:
    model = constant_rate(1000.0, 50.0, 100.0, 1, Overhead(running_s=1.0, frozen_s=0.5))
    # 10 s of sending and 1 s more dirty 550 bytes; 5.5 s and 1 s more dirty 325.
    assert model.round_bytes == (1000.0, 550.0, 325.0)
    assert model.round_s == (11.5, 7.0, 3.75)


def test_no_round_sends_more_than_the_memory() -> None:
    assert constant_rate(1000.0, 500.0, 100.0, 2).round_bytes == (1000.0,) * 4


def test_an_idle_task_has_nothing_left_to_send() -> None:
    model = constant_rate(1000.0, 0.0, 100.0, 1)
    assert model.round_bytes == (1000.0, 0.0, 0.0)
    assert ratios(model) == (0.0, 0.0)


@pytest.mark.parametrize(("pages", "writes"), [(1, 0), (1, 5), (10, 1), (1000, 700), (64, 1000)])
def test_distinct_pages_are_what_an_experiment_finds(pages: int, writes: int) -> None:
    rng = np.random.default_rng(pages * 1000 + writes)
    found = [np.unique(rng.integers(0, pages, writes)).size for _ in range(400)]
    spread = max(1e-3, float(np.std(found)) / 20)  # of the mean of 400
    assert distinct_pages(pages, writes) == pytest.approx(float(np.mean(found)), abs=5 * spread)


def test_even_probabilities_are_the_same_as_none() -> None:
    even = np.full(500, 1 / 500)
    assert distinct_pages(500, 321, even) == pytest.approx(distinct_pages(500, 321))


def test_a_page_that_is_never_written_is_never_dirty() -> None:
    half = np.repeat([1 / 250, 0.0], 250)
    assert distinct_pages(500, 1e9, half) == pytest.approx(250)


def test_large_memories_lose_no_digits() -> None:
    # One write in 2**40 pages: 1 - (1 - 1/N) would be rounded to nothing much.
    assert distinct_pages(2**40, 1.0) == pytest.approx(1.0, rel=1e-12)


def test_random_writes_approach_a_constant_rate_when_they_are_few() -> None:
    few = random_writes(10**6, 4096, 10.0, 1e9, 2)
    same = constant_rate(10**6 * 4096, 10.0 * 4096, 1e9, 2)
    assert few.round_bytes == pytest.approx(same.round_bytes, rel=1e-3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: constant_rate(0, 1, 1, 1),
        lambda: constant_rate(1, 1, 0, 1),
        lambda: constant_rate(1, -1, 1, 1),
        lambda: constant_rate(1, 1, 1, -1),
        lambda: constant_rate(float("inf"), 1, 1, 1),
        lambda: distinct_pages(0, 1),
        lambda: distinct_pages(1, -1),
        lambda: distinct_pages(3, 1, np.array([0.5, 0.5])),
    ],
)
def test_numbers_that_are_none_are_refused(call: object) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=r"must|not|probabilities"):
        call()
