"""The two clocks: one that the cost model moves, and the real one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemigration.clock import VirtualClock, WallClock


@given(durations=st.lists(st.integers(0, 10**12), max_size=20))
def test_virtual_time_is_what_was_spent_and_the_task_runs_for_just_that(
    durations: list[int],
) -> None:
    ran: list[int] = []
    clock = VirtualClock(ran.append)
    for duration in durations:
        clock.spend(duration)
    assert clock.now_ns == sum(durations) == sum(ran)
    assert ran == durations


def test_virtual_time_stands_still_by_itself() -> None:
    clock = VirtualClock(lambda _: None)
    clock.spend(5)
    time.sleep(0.002)
    assert clock.now_ns == 5


def test_the_task_runs_before_the_time_is_over() -> None:
    """A step that looks at the clock while the task runs sees the time at which it began."""
    seen: list[int] = []
    clock = VirtualClock(lambda _: seen.append(clock.now_ns))
    clock.spend(10)
    clock.spend(10)
    assert seen == [0, 10]


def test_virtual_time_does_not_run_backwards() -> None:
    ran: list[int] = []
    clock = VirtualClock(ran.append)
    with pytest.raises(ValueError, match="backwards"):
        clock.spend(-1)
    assert (clock.now_ns, ran) == (0, [])


def test_wall_time_passes_by_itself_and_is_not_spent() -> None:
    clock = WallClock()
    before = clock.now_ns
    clock.spend(10**15)
    time.sleep(0.01)
    passed = clock.now_ns - before
    assert 10_000_000 <= passed < 10**12


def test_the_clocks_are_told_apart_by_name() -> None:
    assert (VirtualClock(lambda _: None).name, WallClock().name) == ("virtual", "wall")
