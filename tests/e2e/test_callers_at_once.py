"""Several callers of one source: a task is migrated once at a time, whoever comes first."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest

import source_node.servicer
from livemigration.channel import open_channel
from livemigration.v1 import source_node_pb2, source_node_pb2_grpc
from predump.scenario import scenario_from_mapping
from source_node.server import SourceConfig, serve_source

NOWHERE = "127.0.0.1:1"
SCENARIO = scenario_from_mapping(
    {
        "schema": "predump.scenario/1",
        "memory": "1MiB",
        "workload": {"kind": "idle"},
        "patience": {"answer": "2s", "reconnect": "500ms"},
    }
)


async def migrate(source: Any) -> str:
    """What came of it: the status of the call, or the error of the migration."""
    request = source_node_pb2.MigrateRequest(destination=NOWHERE)
    request.spec.update(SCENARIO.migration.to_struct())
    try:
        async for event in source.Migrate(request):
            if event.HasField("result"):
                return str(event.result.error)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    raise AssertionError("no result")


async def test_two_who_migrate_at_once_are_not_both_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes while what the failed migration before left is still cleared away."""
    close = source_node.servicer.GrpcTransport.close

    async def slowly(transport: Any) -> None:
        await asyncio.sleep(0.3)
        await close(transport)

    address = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve_source(SourceConfig(), address.set_result))
    try:
        async with asyncio.timeout(120), open_channel(await address) as channel:
            source: Any = source_node_pb2_grpc.SourceNodeStub(channel)
            start = source_node_pb2.StartTaskRequest(clock="virtual")
            start.spec.update(SCENARIO.task.to_struct())
            await source.StartTask(start)
            assert "is lost" in await migrate(source)
            monkeypatch.setattr(source_node.servicer.GrpcTransport, "close", slowly)
            first, second = sorted(await asyncio.gather(migrate(source), migrate(source)))
            assert first.startswith("FAILED_PRECONDITION") and "is under way" in first
            assert "is lost" in second
            assert "is lost" in await migrate(source)
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
