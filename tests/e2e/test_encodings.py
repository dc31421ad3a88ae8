"""Whole migrations in every encoding: the same memory arrives, in fewer bytes and other times."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from livemigration.costs import CostSpec
from livemigration.link import Link
from predump.inprocess import migrate_in_process
from predump.overrides import parse_override
from predump.result import Result
from predump.scenario import Scenario, load_scenario
from predump.testing.pair import Pair
from source_node.migration import GATHER_BATCHES
from tests.e2e import watching

SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"
SMALL = ("memory=16MiB", "link.bandwidth=100Mbit/s", "workload.rate='5000 pages/s'")
KINDS = {
    "raw": {"raw"},
    "zstd": {"zstd"},
    "lz4": {"lz4"},
    "delta": {"raw", "delta"},
    "auto": {"zstd", "delta"},
}


def scenario(*sets: str) -> Scenario:
    overrides = [parse_override(s) for s in (*SMALL, *sets)]
    return load_scenario(SCENARIOS / "quickstart.toml", overrides)


def migrate(*sets: str) -> Result:
    return asyncio.run(migrate_in_process(scenario(*sets)))


def used(result: Result) -> dict[str, int]:
    """Pages by encoding."""
    return {entry.encoding: entry.pages for entry in result.encodings}


def assert_moved(result: Result) -> None:
    assert result.exit_code == 0, result.to_json()
    assert result.verified and result.continued_equal is True
    assert result.pages_lost == result.pages_different == 0
    for entry in (*result.rounds, result):
        content = sum(part.bytes for part in entry.encodings)
        assert content < entry.bytes_wire
    for entry in result.rounds:
        assert sum(part.pages for part in entry.encodings) == entry.pages_sent


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize("kind", KINDS)
def test_every_encoding_at_every_page_size(kind: str, page_size: int) -> None:
    sets = (f"page_size={page_size}", "workload.content=text", "verify.mode=bytes")
    result = migrate(*sets, f"encoding.kind={kind}")
    assert_moved(result)
    assert set(used(result)) >= KINDS[kind]
    raw = migrate(*sets)
    assert (result.bytes_wire < raw.bytes_wire) is (kind != "raw")
    assert result.bytes_pages == page_size * sum(used(result).values())


NODES = (
    ("encoding.kind=zstd", "encoding.level=3", "page_size=65536", "workload.content=text"),
    ("encoding.kind=lz4", "workload.content=zero"),
    ("encoding.kind=delta", "encoding.codec=zstd", "page_size=16384"),
    ("encoding.kind=auto", "encoding.cache=1MiB", "workload.compressibility=0.4"),
)


def test_rounds_times_and_encodings_are_the_same_with_and_without_grpc(predump_pair: Pair) -> None:
    for sets in NODES:
        what = scenario(*sets)
        here, there = asyncio.run(migrate_in_process(what)), predump_pair.migrate(what)
        assert_moved(there)
        assert _repeatable(here) == _repeatable(there)


def _repeatable(result: Result) -> dict[str, Any]:
    data = result.model_dump()
    for key in ("migration_id", "versions", "wall_s", "transfer_wall_s"):
        del data[key]
    return data


@pytest.mark.parametrize("kind", ["delta", "auto"])
@pytest.mark.parametrize("name", ["contpte", "thp", "ksm", "files", "mremap", "hugetlb"])
def test_memory_that_moves_merges_and_goes_away_is_no_trouble_for_deltas(
    name: str, kind: str
) -> None:
    sets = (f"encoding.kind={kind}", "encoding.cache=512KiB")
    result = asyncio.run(migrate_in_process(watching.scenario(name, 4096, *sets)))
    assert_moved(result)
    assert result.delta_cache.hits + result.delta_cache.misses == sum(
        pages for kind, pages in used(result).items() if kind != "zero"
    )


def test_real_time_is_measured_and_memory_arrives(predump_pair: Pair) -> None:
    sets = ("clock=wall", "encoding.kind=auto", "workload.content=text", "link.bandwidth=1Gbit/s")
    result = predump_pair.migrate(scenario(*sets))
    assert_moved(result)
    assert used(result)["zstd"] > 0
    assert 0 < result.encode_s < result.total_time_s


# -- what it costs


def test_processor_time_is_charged_in_the_final_round_part_by_part() -> None:
    result = migrate("policy.kind=stop-and-copy", "encoding.kind=zstd", "workload.content=text")
    costs, down = CostSpec(), result.downtime_s
    kib, first = 16 << 10, GATHER_BATCHES << 10  # the others are made while these are sent
    each = costs.copy_kib + costs.zstd_kib
    assert used(result) == {"zstd": 4096}
    assert down.dump == pytest.approx(first * each / 1e9)
    assert result.encode_s == pytest.approx(kib * costs.zstd_kib / 1e9)
    link = Link(10**8, 100_000)
    sending = max(link.transmit_ns(result.bytes_wire), (kib - first) * each)
    assert down.transfer == pytest.approx((sending + link.latency_ns) / 1e9)
    raw = migrate("policy.kind=stop-and-copy", "workload.content=text").downtime_s
    assert down.restore - raw.restore == pytest.approx(kib * costs.unzstd_kib / 1e9)
    assert down.total < raw.total


def test_while_the_task_runs_the_slowest_of_source_link_and_destination_counts() -> None:
    idle = ("workload.kind=uniform", "workload.rate='1 pages/s'", "workload.content=text")
    sets = (*idle, "policy.kind=fixed", "policy.rounds=0", "encoding.kind=zstd")
    kib = 16 << 10

    def first_round(*more: str) -> float:
        return migrate(*sets, *more).rounds[0].duration_s

    by_link = first_round()
    assert by_link == pytest.approx(first_round("costs.zstd_kib=0"), rel=1e-3)
    at_source = first_round("costs.zstd_kib=50us")
    assert at_source == pytest.approx(kib * (50_000 + 115) / 1e9, rel=0.01)
    at_destination = first_round("costs.unzstd_kib=60us")
    assert at_destination == pytest.approx(kib * 60_000 / 1e9, rel=0.01)


@pytest.mark.parametrize("content", ["random", "text"])
def test_the_automatic_choice_is_at_least_as_good_as_the_best_of_them(content: str) -> None:
    """But for looking at pages and remembering them, which it cannot save."""
    for bandwidth in ("100Mbit/s", "1Gbit/s", "10Gbit/s", "unlimited"):
        sets = (f"workload.content={content}", f"link.bandwidth={bandwidth}")
        times = {kind: migrate(*sets, f"encoding.kind={kind}").total_time_s for kind in KINDS}
        auto = times.pop("auto")
        assert auto <= min(times.values()) * 1.02, (bandwidth, times)
        if bandwidth == "unlimited":
            assert auto == times["raw"]


def test_a_larger_cache_finds_more_versions() -> None:
    found = []
    for cache in ("1MiB", "4MiB", "16MiB"):
        result = migrate("encoding.kind=delta", f"encoding.cache={cache}")
        first, *later = result.rounds
        assert (first.delta_cache.hits, first.delta_cache.misses) == (0, 4096)
        found.append(sum(entry.delta_cache.hits for entry in later))
        misses = sum(entry.delta_cache.misses for entry in later)
        if cache == "16MiB":
            assert misses == 0
        else:
            assert misses > 0
    assert found == sorted(found)


def test_pages_that_change_all_over_are_sent_whole() -> None:
    result = migrate("encoding.kind=delta", "workload.write_size=4096")
    assert_moved(result)
    # The deltas that there are say that nothing changed.
    deltas = used(result).get("delta", 0)
    assert deltas <= result.pages_spurious
    assert [e.bytes for e in result.encodings if e.encoding == "delta"] in ([], [2 * deltas])
    assert result.delta_cache.overflows == result.delta_cache.hits - deltas > 0
