"""When operations come: rates are kept exactly, whatever they are and however one looks."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from livemigration.workload.clock import NeverClock, PhaseClock, RateClock
from tests.unit.workload.harness import KINDS, SECOND, busy_spec, make, spec, start

MS = 10**6
RATED = ["uniform", "zipf", "hotspot", "sequential", "append-heap", "fork-cow", "swap-pressure"]


@pytest.mark.parametrize("kind", RATED)
@pytest.mark.parametrize(
    ("rate", "page_size", "in_two_seconds"),
    [
        ("5000 pages/s", 4096, 10_000),
        ("5000 pages/s", 16384, 10_000),
        ("20MiB/s", 4096, 10_240),
        ("20MiB/s", 16384, 2_560),
        ("2.5 pages/s", 4096, 5),
    ],
)
def test_writes_come_at_the_rate(kind: str, rate: str, page_size: int, in_two_seconds: int) -> None:
    workload, task = start(
        spec(kind, rate=rate, write_size=256), page_size=page_size, memory=4 * 2**20
    )
    assert workload.run_until(task, 2 * SECOND).ops == in_two_seconds


@pytest.mark.parametrize("kind", RATED)
def test_the_default_is_20000_writes_per_second(kind: str) -> None:
    workload, task = start(spec(kind))
    assert workload.run_until(task, SECOND // 10).ops == 2000


def test_writes_are_spread_evenly() -> None:
    workload, task = start(spec("uniform", rate="20000 pages/s"))
    each = [workload.run_until(task, at * 10 * MS).ops for at in range(1, 21)]
    assert each == [200] * 20


def test_a_rate_that_does_not_divide_a_second_is_rounded_down_for_each_write_alone() -> None:
    workload = make(spec("uniform", rate="3 pages/s"))
    assert [workload.due_ns(k) for k in range(5)] == [
        0,
        333_333_333,
        666_666_666,
        SECOND,
        1_333_333_333,
    ]
    # No error adds up: a year later the write is due to the nanosecond.
    assert workload.due_ns(3 * 365 * 86_400) == 365 * 86_400 * SECOND


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"idle"}))
def test_an_operation_runs_only_after_its_time(kind: str) -> None:
    workload, task = start(busy_spec(kind))
    for _ in range(30):
        due = workload.due_ns(workload.ops_done)
        before = workload.ops_done
        assert workload.run_until(task, due).ops == 0
        workload.run_until(task, due + 1)
        assert workload.ops_done > before
        assert workload.due_ns(workload.ops_done - 1) <= due
        assert workload.due_ns(workload.ops_done) > due


def test_phases_take_turns_and_pauses_are_quiet() -> None:
    workload, task = start(
        spec(
            "phased",
            phases=[
                {"kind": "uniform", "duration": "20ms", "rate": "10000 pages/s"},
                {"kind": "idle", "duration": "30ms"},
                {"kind": "zipf", "duration": "50ms", "rate": "4000 pages/s"},
            ],
        )
    )
    for cycle in range(3):
        in_ten_ms = [
            workload.run_until(task, (100 * cycle + end) * MS).ops for end in range(10, 110, 10)
        ]
        assert in_ten_ms == [100, 100, 0, 0, 0, 40, 40, 40, 40, 40]


def test_a_burst_between_pauses_keeps_the_mean_rate() -> None:
    workload, task = start(
        spec(
            "phased",
            phases=[
                {"kind": "sequential", "duration": "1ms", "rate": "100000 pages/s"},
                {"kind": "idle", "duration": "9ms"},
            ],
        )
    )
    assert workload.run_until(task, SECOND).ops == 10_000


def test_phases_without_any_write_are_an_idle_task() -> None:
    workload, task = start(spec("phased", phases=[{"kind": "idle", "duration": "1ms"}]))
    assert workload.run_until(task, SECOND).ops == 0
    assert workload.due_ns(0) > 10**9 * SECOND


@pytest.mark.parametrize("speed", [0.05, 0.5, 1.0, 2.0])
def test_a_trace_runs_at_its_speed(speed: float) -> None:
    as_recorded = make(busy_spec("trace", speed=1.0))
    workload = make(busy_spec("trace", speed=speed))
    for k in (0, 1, 100, 4000, 12345):
        assert workload.due_ns(k) == pytest.approx(as_recorded.due_ns(k) / speed, abs=1 / speed)


def test_a_trace_begins_again_at_its_end_or_stops() -> None:
    once, task = start(busy_spec("trace", speed=1.0, loop=False))
    records = once.run_until(task, 100 * SECOND).ops
    assert once.run_until(task, 200 * SECOND).ops == 0
    assert once.due_ns(records) > 10**9 * SECOND

    again = make(busy_spec("trace", speed=1.0))
    cycle = again.due_ns(records) - again.due_ns(0)
    assert cycle > once.due_ns(records - 1) - once.due_ns(0)
    assert [again.due_ns(k + records) - again.due_ns(k) for k in (0, 7, records - 1)] == [cycle] * 3


class TestClocks:
    @pytest.mark.parametrize(
        "rate", [Fraction(1, 3), Fraction(20_000), Fraction(7, 11), Fraction(10**9), Fraction(3e9)]
    )
    def test_both_directions_of_a_rate_agree(self, rate: Fraction) -> None:
        clock = RateClock(rate)
        for k in (0, 1, 2, 999, 10**6, 10**12):
            due = clock.due_ns(k)
            assert due <= k * SECOND / rate < due + 1
            assert clock.due_before(due) <= k < clock.due_before(due + 1)

    def test_nothing_is_due_before_the_beginning(self) -> None:
        phases = PhaseClock([(10, Fraction(10**9))])
        for clock in (RateClock(Fraction(1)), NeverClock(), phases):
            assert clock.due_before(0) == 0
            assert clock.due_before(-5) == 0

    def test_a_place_in_the_phases(self) -> None:
        clock = PhaseClock([(3, Fraction(10**9)), (5, Fraction(0)), (2, Fraction(10**9))])
        assert [clock.due_ns(k) for k in range(12)] == [0, 1, 2, 8, 9, 10, 11, 12, 18, 19, 20, 21]
        places: list[tuple[Any, ...]] = [
            (place.phase, place.turn, place.left) for place in map(clock.locate, range(7))
        ]
        assert places == [
            (0, 0, 3),
            (0, 1, 2),
            (0, 2, 1),
            (2, 0, 2),
            (2, 1, 1),
            (0, 3, 3),
            (0, 4, 2),
        ]
