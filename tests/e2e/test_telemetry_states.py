"""docs/telemetry.md names every state, field and presence that the nodes publish, and no other.

Both nodes run in this process, between them real gRPC; in the broker's place is a list.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import dest_node.server
import source_node.server
from dest_node.server import DestinationConfig, serve_destination
from livemigration.channel import open_channel
from livemigration.service import ListenConfig, default_host_id
from livemigration.telemetry.messages import ENDED_STATES
from livemigration.v1 import source_node_pb2, source_node_pb2_grpc
from predump.overrides import parse_override
from predump.runner import Hosts, run_scenario
from predump.scenario import Scenario, scenario_from_mapping
from source_node.server import SourceConfig, serve_source

DOC = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text(encoding="utf-8")
SMALL = {
    "schema": "predump.scenario/1",
    "memory": "1MiB",
    "workload": {"kind": "uniform", "rate": "20000 pages/s"},
    "policy": {"kind": "fixed", "rounds": 1},
    "migration": {"run_after": "10ms"},
}


@dataclass
class Heard:
    """What one host said."""

    host_id: str = ""
    states: list[str] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)
    events: list[str] = field(default_factory=list)
    pages_fields: set[str] = field(default_factory=set)
    rounds: list[Mapping[str, object]] = field(default_factory=list)

    def state(self, migration_id: str, **fields: object) -> None:
        self.fields |= fields.keys()
        if "state" in fields:
            self.states.append(str(fields["state"]))

    def round(self, migration_id: str, record: Mapping[str, object]) -> None:
        self.rounds.append(record)

    def event(self, migration_id: str, kind: str, **fields: object) -> None:
        self.events.append(kind)

    wants_pages = True

    def pages(self, migration_id: str, record: Mapping[str, object]) -> None:
        self.pages_fields |= record.keys()


@dataclass
class Listening:
    """Both nodes and what they said."""

    hosts: Hosts
    source: Heard
    dest: Heard


@asynccontextmanager
async def nodes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Listening]:
    heard = {"source": Heard(), "dest": Heard()}
    addresses: dict[str, asyncio.Future[str]] = {
        role: asyncio.get_running_loop().create_future() for role in heard
    }

    def open_recorder(url: str, *, role: str, host_id: str) -> Any:
        heard[role].host_id = host_id
        return nullcontext(heard[role])

    for module in (source_node.server, dest_node.server):
        monkeypatch.setattr(module, "open_telemetry", open_recorder)
    serving = [
        asyncio.create_task(serve_source(SourceConfig(), addresses["source"].set_result)),
        asyncio.create_task(serve_destination(DestinationConfig(), addresses["dest"].set_result)),
    ]
    try:
        async with asyncio.timeout(60):
            hosts = Hosts(await addresses["source"], await addresses["dest"])
        yield Listening(hosts, heard["source"], heard["dest"])
    finally:
        for task in serving:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def scenario(*sets: str) -> Scenario:
    return scenario_from_mapping(SMALL, [parse_override(s) for s in sets])


async def _abort_in_round_0(there: Listening) -> None:
    """A migration that somebody ends."""
    slow = scenario("clock=wall", "link.bandwidth=4Mbit/s")
    async with open_channel(there.hosts.source) as channel:
        stub: source_node_pb2_grpc.SourceNodeAsyncStub = source_node_pb2_grpc.SourceNodeStub(
            channel
        )
        start = source_node_pb2.StartTaskRequest(clock="wall")
        start.spec.update(slow.task.to_struct())
        await stub.StartTask(start)
        request = source_node_pb2.MigrateRequest(destination=there.hosts.dest)
        request.spec.update(slow.migration.to_struct())
        aborted = False
        async for event in stub.Migrate(request):
            if event.phase == "round" and not aborted:
                aborted = True  # what was said before it takes effect may still come
                await stub.Abort(source_node_pb2.AbortMigrationRequest())
        await stub.StopTask(source_node_pb2.StopTaskRequest())


async def everything(monkeypatch: pytest.MonkeyPatch) -> Listening:
    """A migration for every way to end."""
    async with nodes(monkeypatch) as there:
        good = await run_scenario(scenario("verify.mode=bytes"), hosts=there.hosts)
        assert good.exit_code == 0
        lossy = scenario("hunks.off=ptep_set_access_flags")
        assert (await run_scenario(lossy, hosts=there.hosts)).exit_code == 3
        lazy = scenario("policy.kind=post-copy")
        assert (await run_scenario(lazy, hosts=there.hosts)).exit_code == 0
        await _abort_in_round_0(there)
        return there


def documented_states(host: str) -> set[str]:
    """The states that the table of docs/telemetry.md lists for a host, Source or Destination."""
    (row,) = [line for line in DOC.splitlines() if line.startswith("| `state` |")]
    (part,) = re.findall(rf"{host}: ([^.]*)\.", row)
    return set(re.findall(r"`([a-z-]+)`", part))


async def test_the_documented_states_are_those_that_are_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = await everything(monkeypatch)
    assert set(there.source.states) == documented_states("Source")
    # No source is lost here: tests/e2e/test_post_copy_losses.py
    assert set(there.dest.states) == documented_states("Destination") - {"source-lost"}
    assert set(there.source.events) == set(there.source.states)
    told = there.source.fields | there.dest.fields | there.source.pages_fields
    assert {name for name in told if f"`{name}`" not in DOC} == set()
    assert there.source.pages_fields and not there.dest.pages_fields


@pytest.mark.parametrize("sets", [(), ("record.pages=true", "encoding.kind=auto")])
async def test_rounds_are_published_as_the_result_has_them(
    monkeypatch: pytest.MonkeyPatch, sets: tuple[str, ...]
) -> None:
    async with nodes(monkeypatch) as there:
        result = await run_scenario(scenario(*sets), hosts=there.hosts)
    assert len(result.rounds) > 1
    assert there.source.rounds == result.model_dump(mode="json")["rounds"]


async def test_a_migration_ends_in_an_end_at_both_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes(monkeypatch) as there:
        await run_scenario(scenario(), hosts=there.hosts)
    assert there.source.states[-1] == "done"
    assert there.dest.states[-2:] == ["done", "ended"]
    assert {"done", "ended"} <= ENDED_STATES


def test_the_documented_ends_are_those_that_the_code_knows() -> None:
    (row,) = [line for line in DOC.splitlines() if line.startswith("| `state` |")]
    (ends,) = re.findall(r"Ends: ([^.;]*)[.;]", row)
    assert set(re.findall(r"`([a-z]+)`", ends)) == ENDED_STATES


@pytest.mark.parametrize(
    ("address", "last"),
    [("127.0.0.1:7001", "7001"), ("[::]:0", str(os.getpid()))],
    ids=["port", "process-id"],  # which differs between the workers that collect this
)
@pytest.mark.parametrize("role", ["source", "dest"])
def test_a_host_without_a_name_is_called_as_documented(role: str, address: str, last: str) -> None:
    assert "`ROLE-HOSTNAME-PORT`, or with the process id in place of a port 0" in DOC
    wanted = f"{role}-{socket.gethostname()}-{last}"
    assert default_host_id(role, ListenConfig(address)) == wanted


async def test_nodes_use_that_name_and_give_signals_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes(monkeypatch) as there:
        assert there.source.host_id == default_host_id("source", ListenConfig())
        assert there.dest.host_id == default_host_id("dest", ListenConfig())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
