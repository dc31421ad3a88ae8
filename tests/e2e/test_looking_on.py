"""Looking on over gRPC: everything is told as it happens, and changes nothing of the migration."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from livemigration.channel import open_channel
from livemigration.telemetry.messages import Topics, decode
from livemigration.v1 import (
    source_node_pb2,
    source_node_pb2_grpc,
    telemetry_pb2,
    telemetry_pb2_grpc,
)
from predump.overrides import parse_override
from predump.runner import Hosts, run_scenario
from predump.scenario import Scenario, scenario_from_mapping
from predump.testing.pair import Pair

SMALL = {
    "schema": "predump.scenario/1",
    "memory": "16MiB",
    "workload": {"kind": "hotspot", "rate": "8000 pages/s"},
    "policy": {"kind": "fixed", "rounds": 2},
    "migration": {"run_after": "10ms"},
}


def scenario(*sets: str) -> Scenario:
    return scenario_from_mapping(SMALL, [parse_override(s) for s in sets])


@dataclass
class Heard:
    """What a node told, by kind."""

    payloads: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return self.payloads.get(kind, [])

    async def listen(self, address: str) -> None:
        """Until cancelled."""
        async with open_channel(address) as channel:
            stub: telemetry_pb2_grpc.NodeTelemetryAsyncStub = telemetry_pb2_grpc.NodeTelemetryStub(
                channel
            )
            async for message in stub.Watch(telemetry_pb2.WatchRequest()):
                subject = Topics().subject(message.topic)
                assert subject is not None
                self.payloads.setdefault(subject.kind, []).append(decode(message.payload))
                self.changed.set()

    async def until(self, kind: str, **wanted: object) -> Mapping[str, Any]:
        """The first payload of a kind that has these fields."""
        async with asyncio.timeout(30):
            while True:
                for payload in self.of(kind):
                    if wanted.items() <= payload.items():
                        return payload
                self.changed.clear()
                await self.changed.wait()


async def test_a_virtual_migration_is_the_same_whether_it_is_looked_at_or_not(
    predump_pair: Pair,
) -> None:
    hosts = Hosts(predump_pair.source.address, predump_pair.destination.address)
    alone = await run_scenario(scenario(), hosts=hosts)
    source, dest = Heard(), Heard()
    listening = [
        asyncio.create_task(source.listen(hosts.source)),
        asyncio.create_task(dest.listen(hosts.dest)),
    ]
    await source.until("presence", status="online")
    watched = await run_scenario(scenario(), hosts=hosts)
    ended = await source.until("state", migration_id=watched.migration_id, verified=True)
    await dest.until("state", migration_id=watched.migration_id, state="ended")
    for task in listening:
        task.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await task
    assert watched.rounds == alone.rounds
    assert watched.downtime_s == alone.downtime_s
    assert ended["downtime_parts_s"] == watched.downtime_s.model_dump()
    last = source.of("pages")[-1]
    assert (last["round"], last["final"], last["over"]) == (watched.rounds[-1].round, True, True)
    assert (last["pages_sent"], last["pages_pending"]) == (watched.rounds[-1].pages_sent, 0)
    assert last["bytes_wire"] == sum(r.bytes_wire for r in watched.rounds)


async def test_lost_pages_are_told_with_their_addresses(predump_pair: Pair) -> None:
    hosts = Hosts(predump_pair.source.address, predump_pair.destination.address)
    source = Heard()
    listening = asyncio.create_task(source.listen(hosts.source))
    result = await run_scenario(scenario("hunks.off=ptep_set_access_flags"), hosts=hosts)
    told = await source.until("state", migration_id=result.migration_id, verified=False)
    listening.cancel()
    with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
        await listening
    assert told["pages_different"] == result.pages_different > 0
    ranges = [m.model_dump(mode="json") for m in result.mismatches]
    assert told["mismatches"] == ranges[: len(told["mismatches"])]
    assert len(told["mismatches"]) == min(len(ranges), 200)
    # The list is cut, the map is not.
    last = source.of("pages")[-1]
    (mapping,) = last["vmas"]
    by_cell = [0] * len(mapping["different"])
    for wrong in result.mismatches:
        for page in range(wrong.pages):
            at = int(wrong.start, 16) + page * last["page_size"] - int(mapping["start"], 16)
            by_cell[at // last["cell_bytes"]] += 1
    assert mapping["different"] == by_cell


async def test_pages_that_come_later_are_told_while_they_come(predump_pair: Pair) -> None:
    hosts = Hosts(predump_pair.source.address, predump_pair.destination.address)
    source = Heard()
    listening = asyncio.create_task(source.listen(hosts.source))
    slow = ("clock=wall", "policy.kind=post-copy", "link.bandwidth=60Mbit/s", "name=lazy")
    result = await run_scenario(scenario(*slow, "workload.rate=500 pages/s"), hosts=hosts)
    told = await source.until("state", migration_id=result.migration_id, verified=True)
    listening.cancel()
    with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
        await listening
    later = result.post_copy
    assert later is not None and later.pages_lazy > 0
    assert told["name"] == "lazy"
    for name, value in told["post_copy"].items():
        assert value == (getattr(later, name) or "" if name == "halted" else getattr(later, name))
    serving = [pages for pages in source.of("pages") if pages["serving"]]
    assert serving and {pages["over"] for pages in serving} == {False}
    pending = [pages["pages_pending"] for pages in serving]
    assert pending == sorted(pending, reverse=True) and pending[0] > pending[-1]
    for pages in serving:
        (vma,) = pages["vmas"]
        assert (sum(vma["sent"]), sum(vma["pending"])) == (
            pages["pages_sent"],
            pages["pages_pending"],
        )
    last = source.of("pages")[-1]
    assert (last["serving"], last["over"]) == (False, True)
    assert last["pages_pending"] == later.pages_dropped
    assert last["bytes_wire"] == sum(r.bytes_wire for r in result.rounds) + later.bytes_wire
    states = [state for state in source.of("state") if state["state"] == "serve"]
    assert {state["owner"] for state in states} == {"destination"}


async def test_a_policy_can_be_changed_while_rounds_go_on_and_not_afterwards(
    predump_pair: Pair,
) -> None:
    endless = scenario("clock=wall", "policy.rounds=900", "link.bandwidth=400Mbit/s")
    async with open_channel(predump_pair.source.address) as channel:
        stub: source_node_pb2_grpc.SourceNodeAsyncStub = source_node_pb2_grpc.SourceNodeStub(
            channel
        )

        def change(kind: str) -> Any:
            request = source_node_pb2.ChangePolicyRequest()
            request.policy.update({"kind": kind})
            return stub.ChangePolicy(request)

        start = source_node_pb2.StartTaskRequest(clock="wall")
        start.spec.update(endless.task.to_struct())
        await stub.StartTask(start)
        with pytest.raises(grpc.aio.AioRpcError, match="no migration is under way"):
            await change("stop-and-copy")
        request = source_node_pb2.MigrateRequest(destination=predump_pair.destination.address)
        request.spec.update(endless.migration.to_struct())
        reasons = []
        async for event in stub.Migrate(request):
            if event.phase == "round-done" and not event.round.round:
                with pytest.raises(grpc.aio.AioRpcError, match="no-such-rule"):
                    await change("no-such-rule")
                await change("stop-and-copy")
            if event.phase == "round-done":
                reasons.append(event.round.reason)
            if event.phase == "verify":
                with pytest.raises(grpc.aio.AioRpcError, match="final round has begun"):
                    await change("fixed")
            if event.HasField("result"):
                result = event.result
        await stub.StopTask(source_node_pb2.StopTaskRequest())
    assert result.verified and not result.error
    assert reasons[0] == "0 of 900 rounds done"
    assert reasons[-2] == "policy changed to stop-and-copy: the task is frozen from the start"
    assert len(reasons) < 900
