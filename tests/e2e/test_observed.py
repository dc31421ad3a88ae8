"""What operators see of a migration: metrics fetched over HTTP, traces of both hosts, JSON logs.

Two nodes and three migrations between them: one whose transfer breaks once on the way, one that
loses pages, one that is refused. What the endpoints say is compared with the results.
"""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from predump.result import Result
from predump.testing.network import Faults, faulty_network
from predump.testing.nodes import Node, running_node
from predump.testing.pair import Pair
from tests.e2e.node import predump

HUNK = "ptep_set_access_flags"


@dataclass(frozen=True)
class Seen:
    """All that the two nodes let see; `broken`, `lossy`: results of the migrations."""

    broken: Result
    lossy: Result
    metrics: dict[str, dict[str, float]]
    spans: dict[str, list[dict[str, Any]]]
    logs: dict[str, list[dict[str, Any]]]


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def scraped(node: Node) -> dict[str, float]:
    """Every sample of a node's endpoint, as ``name{value of its label}``."""
    (line,) = (x for x in lines_of(node.log_text()) if x["message"].startswith("metrics on "))
    url = line["message"].removeprefix("metrics on ")
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("observed")

    def options(role: str) -> list[str]:
        traces = ["--traces", str(folder / f"{role}.spans")]
        return ["--metrics", "127.0.0.1:0", "--log-format", "json", *traces]

    with (
        running_node("source", folder, *options("source")) as source,
        running_node("dest", folder, *options("dest")) as dest,
    ):
        with faulty_network(dest.address, Faults(cut_after=1 << 20)) as network:
            broken = Pair(source, dest, network).migrate(memory="8MiB")
            assert network.cuts == 1
        lossy = Pair(source, dest, hunks_off=(HUNK,)).migrate(policy__rounds=1)
        metrics = {node.role: scraped(node) for node in (source, dest)}
        logs = {node.role: lines_of(node.log_text()) for node in (source, dest)}
    spans = {role: lines_of((folder / f"{role}.spans").read_text()) for role in ("source", "dest")}
    return Seen(broken, lossy, metrics, spans, logs)


def test_the_sources_counters_are_the_results_figures(seen: Seen) -> None:
    source, both = seen.metrics["source"], (seen.broken, seen.lossy)

    assert source["predump_source_migrations_started_total"] == 2
    assert source["predump_source_migrations_total{verified}"] == 1
    assert source["predump_source_migrations_total{differs}"] == 1
    assert source["predump_source_rounds_total"] == sum(len(r.rounds) for r in both)
    sent = sum(x.pages_sent for r in both for x in r.rounds)
    assert source["predump_source_pages_sent_total"] == sent
    assert source["predump_source_pages_lost_total"] == seen.lossy.pages_lost > 0
    assert source["predump_source_pages_different_total"] == seen.lossy.pages_different
    spurious = sum(r.pages_spurious for r in both)
    assert source["predump_source_pages_spurious_total"] == spurious
    assert source["predump_source_wire_bytes_total"] == sum(r.bytes_wire for r in both)
    assert source["predump_source_streams_broken_total"] == 1


def test_only_what_was_handed_over_is_in_the_histogram_of_downtimes(seen: Seen) -> None:
    source = seen.metrics["source"]

    assert source["predump_source_downtime_seconds_count{virtual}"] == 1
    total = source["predump_source_downtime_seconds_sum{virtual}"]
    assert total == pytest.approx(seen.broken.downtime_s.total)


def test_ownership_and_memory_are_as_the_nodes_have_them_now(seen: Seen) -> None:
    """Both tasks are gone again; one state is set, and the process has the memory of a process."""
    for role in ("source", "dest"):
        found = seen.metrics[role]
        states = {k: v for k, v in found.items() if k.startswith(f"predump_{role}_ownership")}
        assert sum(states.values()) == 1
        assert found[f"predump_{role}_task_memory_bytes"] == 0
        assert found["process_resident_memory_bytes"] > 50 << 20


def test_the_destinations_counters_are_of_what_arrived(seen: Seen) -> None:
    dest, source = seen.metrics["dest"], seen.metrics["source"]

    assert dest["predump_dest_migrations_total{committed}"] == 1
    assert dest["predump_dest_migrations_total{aborted}"] == 1
    assert dest["predump_dest_verifications_total{equal}"] == 1
    assert dest["predump_dest_verifications_total{different}"] == 1
    assert dest["predump_dest_rounds_total"] == source["predump_source_rounds_total"]
    # What was under way when the connection broke came again.
    assert dest["predump_dest_wire_bytes_total"] >= source["predump_source_wire_bytes_total"]
    assert dest["predump_dest_streams_broken_total"] == 1


def test_both_hosts_spans_of_a_migration_are_one_trace(seen: Seen) -> None:
    migration = seen.broken.migration_id
    mine = {
        role: [s for s in spans if s["attributes"]["predump.migration_id"] == migration]
        for role, spans in seen.spans.items()
    }
    everything = mine["source"] + mine["dest"]

    assert len({span["context"]["trace_id"] for span in everything}) == 1
    assert {span["resource"]["attributes"]["service.name"] for span in everything} == {
        "predump-source",
        "predump-dest",
    }
    known = {span["context"]["span_id"]: span for span in everything}
    (root,) = (span for span in everything if span["parent_id"] is None)
    assert root["name"] == "migration"
    for span in everything:
        assert span is root or span["parent_id"] in known
    steps = [span["name"] for span in mine["source"] if span is not root]
    rounds = [f"round {number}" for number in range(len(seen.broken.rounds) - 1)]
    before, after = ["prepare", *rounds, "freeze", "final", "verify"], ["commit", "resume"]
    assert steps[: len(before) + 2] == [*before, *after]
    of_dest = {span["name"]: known[span["parent_id"]]["name"] for span in mine["dest"]}
    assert of_dest["Prepare"] == "prepare"
    assert of_dest["Verify"] == "verify"
    assert of_dest["Commit"] == "commit"
    transfers = [span for span in mine["dest"] if span["name"] == "Transfer"]
    assert len(transfers) == 2, "the transfer broke once, and was opened again"


def test_two_migrations_are_two_traces_and_the_rounds_have_their_figures(seen: Seen) -> None:
    roots = [span for span in seen.spans["source"] if span["name"] == "migration"]

    assert len({span["context"]["trace_id"] for span in roots}) == 2
    (last,) = (
        span["attributes"]
        for span in seen.spans["source"]
        if span["name"] == "final"
        and span["attributes"]["predump.migration_id"] == seen.lossy.migration_id
    )
    assert last["predump.pages_lost"] == seen.lossy.pages_lost
    assert last["predump.bytes_wire"] == seen.lossy.rounds[-1].bytes_wire


def test_every_line_of_both_logs_is_json_and_tells_its_migration(seen: Seen) -> None:
    for role, lines in seen.logs.items():
        assert {line["role"] for line in lines} == {role}
        told = [line["migration_id"] for line in lines if line["logger"] == "predump.migration"]
        assert set(told) == {seen.broken.migration_id, seen.lossy.migration_id}
        others = [line["message"] for line in lines if line["migration_id"] is None]
        assert [text.split(" ")[0] for text in others] == ["metrics", "predump"]
    rounds = [
        line["pages_sent"]
        for line in seen.logs["source"]
        if line["migration_id"] == seen.broken.migration_id and "pages_sent" in line
    ]
    assert rounds == [record.pages_sent for record in seen.broken.rounds]


def test_a_metrics_address_that_is_none_is_refused() -> None:
    ended = predump("serve", "source", "--metrics", "9100")

    assert (ended.status, "--metrics" in ended.line(), "HOST:PORT" in ended.line()) == (
        2,
        True,
        True,
    )
