"""Whole migrations between two real processes, and what must hold of every one of them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from predump.inprocess import migrate_in_process
from predump.overrides import parse_override
from predump.result import Result
from predump.runner import run_scenario
from predump.scenario import Scenario, load_scenario
from predump.testing.pair import Pair

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "scenarios/quickstart.toml"
SMALL = ("memory=16MiB", "link.bandwidth=100Mbit/s", "workload.rate='5000 pages/s'")


def scenario(path: Path = QUICKSTART, *sets: str) -> Scenario:
    return load_scenario(path, [parse_override(s) for s in sets])


def run(path: Path = QUICKSTART, *sets: str, **options: Any) -> Result:
    return asyncio.run(run_scenario(scenario(path, *sets), **options))


def repeatable(result: Result) -> dict[str, Any]:
    """Everything of a result but ids, versions and wall times."""
    data = result.model_dump()
    for key in ("migration_id", "versions", "wall_s", "transfer_wall_s"):
        del data[key]
    return data


def test_quickstart_twice_is_the_same_in_every_field(predump_pair: Pair) -> None:
    """With two nodes of its own, and with two that have done other things before."""
    first, second = run(), predump_pair.migrate(scenario())
    assert repeatable(first) == repeatable(second)
    assert first.verified
    assert first.continued_equal is True
    assert first.pages_lost == 0
    assert first.owner == "destination"
    assert first.exit_code == 0


def test_rounds_and_times_are_the_same_with_and_without_grpc(predump_pair: Pair) -> None:
    here = asyncio.run(migrate_in_process(scenario(QUICKSTART, *SMALL)))
    there = predump_pair.migrate(scenario(QUICKSTART, *SMALL))
    assert repeatable(here) == repeatable(there)


def test_without_the_hunk_exactly_the_lost_pages_differ(predump_pair: Pair) -> None:
    result = predump_pair.migrate(scenario(QUICKSTART, *SMALL, "hunks.off=ptep_set_access_flags"))
    assert not result.verified
    assert result.exit_code == 3
    assert result.pages_lost > 0
    assert result.pages_lost == result.pages_different
    assert result.pages_lost == sum(m.pages for m in result.mismatches)
    assert result.owner == "source"
    assert result.continued_equal is None


@pytest.mark.parametrize("dbm", ["true", "false"])
@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize("mode", ["digest", "bytes"])
def test_every_page_size_with_and_without_hardware_dirty_bits(
    page_size: int, dbm: str, mode: str
) -> None:
    result = asyncio.run(
        migrate_in_process(
            scenario(
                QUICKSTART,
                *SMALL,
                f"page_size={page_size}",
                f"cpu.dbm={dbm}",
                f"verify.mode={mode}",
            )
        )
    )
    assert result.verified
    assert result.continued_equal is True
    assert result.pages_lost == 0
    assert result.rounds[0].pages_sent == result.memory_bytes // page_size


@pytest.mark.parametrize("page_size", [16384, 65536])
def test_larger_pages_between_processes(page_size: int, predump_pair: Pair) -> None:
    result = predump_pair.migrate(
        scenario(QUICKSTART, *SMALL, f"page_size={page_size}", "verify.mode=bytes")
    )
    assert result.exit_code == 0


@pytest.mark.parametrize(
    "name",
    [
        path.name
        for path in sorted((ROOT / "scenarios").glob("*.toml"))
        if "wall" not in path.read_text().split("[", 1)[0]
    ],
)
def test_every_ready_scenario_is_verified_and_goes_on_equal(name: str) -> None:
    result = asyncio.run(migrate_in_process(scenario(ROOT / "scenarios" / name)))
    assert result.exit_code == 0, result.to_json()
    assert result.continued_equal is True
    assert result.pages_lost == 0


def test_every_lossy_hunk_is_caught_and_every_other_is_verified() -> None:
    """A missing hunk either loses pages, all of which are found, or loses none: never silently."""
    from mm_model.hunks import HUNKS

    lossy = set()
    for hunk in HUNKS:
        for path in ("quickstart.toml", "swap-pressure.toml"):
            result = asyncio.run(
                migrate_in_process(
                    scenario(ROOT / "scenarios" / path, "memory=8MiB", f"hunks.off={hunk.name}")
                )
            )
            assert result.pages_lost == result.pages_different, hunk.name
            assert result.verified == (result.pages_different == 0), hunk.name
            if result.pages_lost:
                lossy.add(hunk.name)
    assert {"ptep_set_access_flags", "pte_mkdirty", "pte_swp_mksoft_dirty"} <= lossy


@pytest.mark.alone
def test_wall_clock_follows_the_shape_of_the_link() -> None:
    result = run(ROOT / "scenarios/wall.toml")
    assert result.exit_code == 0
    assert result.continued_equal is True
    first = result.rounds[0]
    rate = first.bytes_wire * 8 / first.duration_s
    assert rate == pytest.approx(1e9, rel=0.05)
