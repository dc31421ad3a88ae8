"""Whole migrations of a task in real memory: the host's own kernel says what was written."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from predump.inprocess import migrate_in_process
from predump.overrides import parse_override
from predump.result import Result
from predump.scenario import Scenario, load_scenario
from predump.testing.pair import Pair
from tests.unit.host.kernel_here import PAGE, needs

pytestmark = needs("wp-async")
QUICKSTART = Path(__file__).resolve().parents[2] / "scenarios/quickstart.toml"
SMALL = (
    "memory=8MiB",
    f"page_size={PAGE}",
    "link.bandwidth=200Mbit/s",
    "workload.rate='5000 pages/s'",
    "migration.run_after=200ms",
)
BASE = 0x10_0000_0000


def scenario(*sets: str) -> Scenario:
    return load_scenario(QUICKSTART, [parse_override(s) for s in (*SMALL, *sets)])


def here(*sets: str) -> Result:
    return asyncio.run(migrate_in_process(scenario(*sets)))


def repeatable(result: Result) -> dict[str, Any]:
    """All but the scenario, which names the tracker, and what no two runs have in common."""
    once = {"migration_id", "versions", "wall_s", "transfer_wall_s"}
    return result.model_dump(exclude={"scenario", *once})


@pytest.mark.parametrize(
    "sets",
    [
        ("workload.kind=uniform",),
        ("workload.kind=zipf", "workload.write_size=4096"),
        ("workload.kind=sequential", "source.populate=false"),
    ],
)
def test_on_the_virtual_clock_the_kernel_agrees_with_the_model_in_every_figure(
    sets: tuple[str, ...],
) -> None:
    """The faults that the kernel counts take the model's time, so even times are the same."""
    real, model = (here(f"tracker='{tracker}'", *sets) for tracker in ("host", "uffd-wp"))
    assert repeatable(real) == repeatable(model)
    assert real.exit_code == 0
    assert real.continued_equal is True


def test_over_grpc_in_real_time_it_is_verified_byte_by_byte_and_goes_on_equal(
    predump_pair: Pair,
) -> None:
    result = predump_pair.migrate(scenario("tracker=host", "clock=wall", "verify.mode=bytes"))
    assert result.exit_code == 0, result.error
    assert result.continued_equal is True
    assert result.owner == "destination"
    assert result.pages_lost == 0
    assert result.rounds[0].pages_sent == result.memory_bytes // PAGE
    assert all(r.pages_soft_dirty >= r.pages_written > 0 for r in result.rounds)


def test_pages_that_the_tracker_forgets_are_found_and_named() -> None:
    """A drill: the first 300 pages are never reported. Exactly what they lost differs."""
    result = here("tracker=host", "host.forget=300")
    assert result.exit_code == 3
    assert result.owner == "source"
    assert 0 < result.pages_lost == result.pages_different <= 300
    assert sum(m.pages for m in result.mismatches) == result.pages_different
    for mismatch in result.mismatches:
        start = int(mismatch.start, 16)
        assert BASE <= start < start + mismatch.pages * PAGE <= BASE + 300 * PAGE
        assert mismatch.last_round == 0
