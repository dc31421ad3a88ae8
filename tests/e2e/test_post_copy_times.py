"""What a missing page costs on the virtual clock, against times worked out by hand."""

import asyncio
from typing import Any

import pytest

from predump.inprocess import migrate_in_process
from predump.result import PostCopy
from predump.scenario import scenario_from_mapping

MS, US = 1e-3, 1e-6
LATENCY = 1 * MS
BIT = 1e-9  # seconds at 1 Gbit/s
PAGE_ON_LINE = (4096 + 40) * 8 * BIT  # a page and what a frame adds to it, about
BATCH_ON_LINE = (1 << 20) * 8 * BIT
COPY = 4 * 115e-9
PLACE = 4 * 540e-9
FAULT = 4.5 * US
ROUND_TRIP = 2 * LATENCY + COPY + PAGE_ON_LINE + FAULT + PLACE
"""From the access to the task going on, if nothing else is on the line."""
NEAR = 2 * US  # frames' heads have different lengths


def came(script: str, *, prefetch: str, pages: int = 1024, **costs: str) -> PostCopy:
    """How the pages of a task came that does a step of the script every 5 ms from 0 on."""
    tables: dict[str, Any] = {
        "schema": "predump.scenario/1",
        "memory": f"{pages * 4}KiB",
        "workload": {
            "kind": "script",
            "setup": f"map 0 anon-private {pages}; write 0 0 {pages}",
            "script": script,
            "every": "5ms",
            "loop": False,
        },
        "policy": {"kind": "post-copy", "prefetch": prefetch, "batch": "1MiB"},
        "link": {"bandwidth": "1Gbit/s", "latency": "1ms"},
        "costs": costs,
        "migration": {"run_after": "50ms"},
    }
    result = asyncio.run(migrate_in_process(scenario_from_mapping(tables)))
    assert result.exit_code == 0, result.error
    assert result.post_copy is not None
    return result.post_copy


def test_a_fault_costs_a_round_trip_and_its_page() -> None:
    one = came("write 0 0 1; write 0 500 1; write 0 0 1", prefetch="none")
    assert one.faults == one.faults_remote == 2
    assert one.stalled_s == pytest.approx(2 * ROUND_TRIP, abs=NEAR)
    assert one.longest_stall_s == pytest.approx(ROUND_TRIP, abs=NEAR)


def test_faults_cost_what_the_cost_model_says() -> None:
    dear = came("write 0 0 1", prefetch="none", remote_fault="1ms", place_kib="250us")
    assert dear.stalled_s == pytest.approx(ROUND_TRIP + 2 * MS - FAULT - PLACE, abs=NEAR)


def test_a_fault_waits_for_the_batch_that_is_on_the_line_and_for_no_other() -> None:
    """Step 0 faults at 0. The line is free for batches from 1 ms on, behind the answer to it."""
    both = came("write 0 0 1; write 0 1000 1", prefetch="sequential")
    assert both.faults == both.faults_remote == 2
    begins = LATENCY + COPY + PAGE_ON_LINE  # the first batch goes onto the line
    second = 5 * MS + ROUND_TRIP  # when the task needs page 1000
    assert begins < second + LATENCY < begins + BATCH_ON_LINE
    there = begins + BATCH_ON_LINE + COPY + PAGE_ON_LINE + LATENCY + FAULT + PLACE
    assert both.longest_stall_s == pytest.approx(there - second, abs=NEAR)
    assert both.stalled_s == pytest.approx(ROUND_TRIP + there - second, abs=NEAR)


def test_a_page_in_the_batch_on_the_line_is_waited_for_but_not_asked_for() -> None:
    both = came("write 0 0 1; write 0 200 1", prefetch="sequential")
    assert (both.faults, both.faults_remote) == (2, 1)
    begins, second = LATENCY + COPY + PAGE_ON_LINE, 5 * MS + ROUND_TRIP
    there = begins + BATCH_ON_LINE + LATENCY + FAULT + PLACE
    assert both.longest_stall_s == pytest.approx(there - second, abs=NEAR)


def test_pages_that_come_before_they_are_needed_cost_the_task_nothing() -> None:
    later = "; ".join(["read 0 0 1"] * 9 + ["write 0 0 1024"])
    all_there = came(later, prefetch="sequential")
    assert all_there.faults == 1
    assert all_there.stalled_s == pytest.approx(ROUND_TRIP, abs=NEAR)
    assert all_there.slowdown == pytest.approx(ROUND_TRIP / all_there.residual_s, rel=1e-4)


def test_the_source_stays_as_long_as_the_line_needs_for_the_pages() -> None:
    idle = came("read 0 0 1", prefetch="sequential", pages=2048)
    line = 2048 * 4096 * 8 * BIT
    assert idle.residual_s == pytest.approx(2 * LATENCY + line, rel=0.002)


def test_pages_around_a_fault_come_first() -> None:
    """The neighbours of page 700 are there when the task comes to them, in either direction."""
    script = "write 0 700 1; read 0 700 1; read 0 700 1; write 0 600 200"
    around = came(script, prefetch="around-faults")
    in_order = came(script, prefetch="sequential")
    assert around.faults == 1
    assert in_order.faults > 1
