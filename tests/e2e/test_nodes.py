"""The nodes as services: health, reflection, wrong calls, abort, a second task, TLS."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from livemigration.channel import open_channel
from livemigration.struct_message import struct_message
from livemigration.v1 import (
    common_pb2,
    destination_node_pb2,
    destination_node_pb2_grpc,
    source_node_pb2,
    source_node_pb2_grpc,
)
from predump.health import check
from predump.hosts import LocalHosts
from predump.overrides import parse_override
from predump.scenario import Scenario, load_scenario

SCENARIO = Path(__file__).resolve().parents[2] / "scenarios/quickstart.toml"


def _scenario(*sets: str) -> Scenario:
    small = ("memory=16MiB", "policy.kind=fixed", "policy.rounds=2", "workload.rate='5000 pages/s'")
    return load_scenario(SCENARIO, [parse_override(s) for s in (*small, *sets)])


class Nodes:
    """Stubs of two running nodes."""

    def __init__(self, hosts: LocalHosts, source: grpc.aio.Channel, dest: grpc.aio.Channel) -> None:
        self.hosts = hosts
        self.source = source_node_pb2_grpc.SourceNodeStub(source)
        self.dest = destination_node_pb2_grpc.DestinationNodeStub(dest)
        self.source_channel = source
        self.dest_channel = dest

    async def start(self, scenario: Scenario) -> Any:
        return await self.source.StartTask(
            source_node_pb2.StartTaskRequest(
                spec=struct_message(scenario.task.to_struct()), clock=scenario.migration.clock
            )
        )

    def migrate(self, scenario: Scenario, **fields: Any) -> Any:
        fields = {"destination": self.hosts.dest.address} | fields
        return self.source.Migrate(
            source_node_pb2.MigrateRequest(
                spec=struct_message(scenario.migration.to_struct()), **fields
            )
        )


@asynccontextmanager
async def nodes() -> AsyncIterator[Nodes]:
    async with (
        LocalHosts(16 << 20) as hosts,
        open_channel(hosts.source.address) as source,
        open_channel(hosts.dest.address) as dest,
    ):
        yield Nodes(hosts, source, dest)


async def _refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    details = caught.value.details() or ""
    assert "\n" not in details
    return caught.value.code(), details


async def _services(channel: grpc.aio.Channel) -> list[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def ask() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async for reply in stub.ServerReflectionInfo(ask()):
        return [s.name for s in reply.list_services_response.service]
    return []


async def test_health_and_reflection() -> None:
    async with nodes() as n:
        for address in (n.hosts.source.address, n.hosts.dest.address):
            assert await asyncio.to_thread(check, address) == ""
        assert "livemigration.v1.SourceNode" in await _services(n.source_channel)
        assert "livemigration.v1.DestinationNode" in await _services(n.dest_channel)
        source = await n.source.Describe(common_pb2.DescribeRequest())
        dest = await n.dest.Describe(common_pb2.DescribeRequest())
        assert source.incarnation != dest.incarnation
        assert dest.store_id


async def test_calls_at_the_wrong_time_are_refused_in_one_line() -> None:
    scenario = _scenario()
    async with nodes() as n:
        code, text = await _refused(n.source.GetTask(source_node_pb2.GetTaskRequest()))
        assert (code, "start one first" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        await n.start(scenario)
        code, text = await _refused(n.start(scenario))
        assert (code, "already" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        code, _ = await _refused(n.source.Abort(source_node_pb2.AbortMigrationRequest()))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        request = destination_node_pb2.CommitRequest(migration_id="none")
        code, _ = await _refused(n.dest.Commit(request))
        assert code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"page_size": 5000}, "page_size"),
        ({"memory": "lots"}, "memory"),
        ({"colour": "blue"}, "colour"),
        ({"workload": {"kind": "zip"}}, "zip"),
    ],
)
async def test_a_bad_spec_names_the_key(change: dict[str, Any], says: str) -> None:
    async with nodes() as n:
        spec = _scenario().task.to_struct() | change
        request = source_node_pb2.StartTaskRequest(spec=struct_message(spec), clock="virtual")
        code, text = await _refused(n.source.StartTask(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert says in text


async def test_commit_without_verification_is_refused() -> None:
    async with nodes() as n:
        await n.dest.Prepare(
            destination_node_pb2.PrepareRequest(
                migration_id="early",
                task=struct_message(_scenario().task.to_struct()),
                clock="virtual",
            )
        )
        request = destination_node_pb2.CommitRequest(migration_id="early", memory_digest="00")
        code, text = await _refused(n.dest.Commit(request))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "receiving here and cannot be taken over" in text


async def test_an_aborted_migration_leaves_the_task_running_here_and_can_be_tried_again() -> None:
    scenario = _scenario("clock=wall", "link.bandwidth=40Mbit/s")
    async with nodes() as n:
        await n.start(scenario)
        result = None
        async for event in n.migrate(scenario):
            if event.phase == "round" and "0" in event.message:
                await asyncio.sleep(0.3)
                status = await n.source.Abort(source_node_pb2.AbortMigrationRequest())
                assert status.running
            if event.HasField("result"):
                result = event.result
        assert result is not None
        assert "aborted" in result.error
        assert result.ownership == common_pb2.OWNERSHIP_STATE_RUNNING
        before = (await n.source.GetTask(source_node_pb2.GetTaskRequest())).operations
        await asyncio.sleep(0.5)
        after = (await n.source.GetTask(source_node_pb2.GetTaskRequest())).operations
        assert after > before, "the task does not run any more"
        fast = _scenario("clock=wall")
        async for event in n.migrate(fast):
            if event.HasField("result"):
                result = event.result
        assert result.verified
        assert result.continued_equal


async def test_a_caller_that_goes_away_does_not_disturb_the_migration() -> None:
    scenario = _scenario()
    async with nodes() as n:
        await n.start(scenario)
        call = n.migrate(scenario)
        await call.read()
        call.cancel()
        for _ in range(300):
            task = await n.source.GetTask(source_node_pb2.GetTaskRequest())
            if task.ownership == common_pb2.OWNERSHIP_STATE_RELEASED:
                break
            await asyncio.sleep(0.1)
        assert task.ownership == common_pb2.OWNERSHIP_STATE_RELEASED


async def test_a_destination_that_cannot_be_reached_is_named() -> None:
    scenario = _scenario()
    async with nodes() as n:
        await n.start(scenario)
        async for event in n.migrate(scenario, destination="127.0.0.1:1"):
            if event.HasField("result"):
                assert "127.0.0.1:1" in event.result.error
                assert "resumed" in event.result.error
        assert (await n.source.GetTask(source_node_pb2.GetTaskRequest())).running


async def test_a_destination_with_a_task_takes_no_second_one() -> None:
    scenario = _scenario()
    async with nodes() as n:
        for attempt in range(2):
            if attempt:
                await n.source.StopTask(source_node_pb2.StopTaskRequest())
            await n.start(scenario)
            async for event in n.migrate(scenario):
                if event.HasField("result"):
                    result = event.result
        assert "end it first" in result.error
        assert result.ownership == common_pb2.OWNERSHIP_STATE_RUNNING
