"""The connection between the hosts breaks: the migration goes on, every frame is applied once."""

import asyncio
from pathlib import Path

from predump.hosts import LocalHosts
from predump.overrides import parse_override
from predump.result import Result
from predump.runner import Hosts, run_scenario
from predump.scenario import Scenario, load_scenario
from predump.testing.network import Faults, Network, between

SCENARIO = Path(__file__).resolve().parents[2] / "scenarios/quickstart.toml"
MIB = 1 << 20


def _scenario(*sets: str) -> Scenario:
    small = ("memory=32MiB", "policy.kind=fixed", "policy.rounds=2", "workload.rate='5000 pages/s'")
    return load_scenario(SCENARIO, [parse_override(s) for s in (*small, *sets)])


async def _over(hosts: LocalHosts, scenario: Scenario, faults: Faults) -> tuple[Result, Network]:
    async with between(hosts.dest.address, faults) as network:
        through = Hosts(hosts.source.address, network.address)
        return await run_scenario(scenario, hosts=through), network


async def _run(scenario: Scenario, cut_after: int, cuts: int) -> tuple[Result, Network]:
    async with LocalHosts(scenario.task.memory) as hosts:
        return await _over(hosts, scenario, Faults(cut_after, cuts))


def test_a_stream_that_breaks_again_and_again_loses_and_doubles_nothing() -> None:
    scenario = _scenario()
    result, network = asyncio.run(_run(scenario, 5 * MIB + 12345, 5))
    assert network.cuts == 5
    assert result.exit_code == 0
    assert result.continued_equal is True
    whole, _ = asyncio.run(_run(scenario, 0, 0))
    # What the task saw of it is nothing: the same rounds, the same pages, the same times.
    assert result.rounds == whole.rounds
    assert result.downtime_s == whole.downtime_s


def test_a_break_on_the_wall_clock_is_made_good_as_well() -> None:
    result, network = asyncio.run(_run(_scenario("clock=wall"), 12 * MIB, 2))
    assert network.cuts == 2
    assert result.exit_code == 0
    assert result.continued_equal is True


async def test_deltas_find_their_bases_after_a_break() -> None:
    """Cut where rounds are nearly all deltas, of versions that were sent before the break."""
    scenario = _scenario("encoding.kind=delta", "workload.rate='40000 pages/s'")
    async with LocalHosts(scenario.task.memory) as hosts:
        whole, uncut = await _over(hosts, scenario, Faults())
        later = uncut.bytes_passed - 32 * MIB  # after round 0
        assert later > 0.9 * sum(r.bytes_wire for r in whole.rounds[1:]) > 100_000
        faults = Faults(later // 8, 5, spared=32 * MIB)
        result, network = await _over(hosts, scenario, faults)
    assert network.cuts == 5
    assert result.exit_code == 0 and result.continued_equal is True
    assert result.rounds == whole.rounds
    assert result.delta_cache == whole.delta_cache
