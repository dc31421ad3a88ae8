"""What became of a task whose source was lost after it went on at the destination.

With post-copy the source has pages that the destination lacks. A caller that loses the source while
they are on their way asks the destination, which has the task: has it all of it, or does it stand
still at a page that will not come?
"""

from __future__ import annotations

import asyncio
import time

import grpc
import grpc.aio

from livemigration.channel import open_channel, why
from livemigration.v1 import (
    common_pb2,
    destination_node_pb2,
    destination_node_pb2_grpc,
    source_node_pb2,
)

NS = 1_000_000_000
_RETRY_S = 0.2
_LONGER_S = 15.0
"""How much longer than the destination's own patience it is waited for."""


async def ask_destination(
    address: str,
    credentials: grpc.ChannelCredentials | None,
    so_far: source_node_pb2.MigrationResult,
    *,
    lost_after_ns: int,
    reason: str,
) -> source_node_pb2.MigrationResult:
    """The result of such a migration: `so_far`, and how it is at the destination now.

    `reason`: how the source was lost, in one line.
    """
    result = source_node_pb2.MigrationResult()
    result.CopyFrom(so_far)
    result.ownership = common_pb2.OWNERSHIP_STATE_RELEASED
    result.verified = False
    patience_s = lost_after_ns / NS + _LONGER_S
    async with open_channel(address, credentials) as channel:
        stub: destination_node_pb2_grpc.DestinationNodeAsyncStub = (
            destination_node_pb2_grpc.DestinationNodeStub(channel)
        )
        try:
            record = await _until_known(stub, so_far.migration_id, patience_s)
        except grpc.aio.AioRpcError as error:
            result.error = f"{reason}, and destination {address} does not say more: {why(error)}"
            return result
    result.post_copy.CopyFrom(record)
    if record.halted:
        result.error = record.halted
    elif record.pages_missing:
        result.error = (
            f"{reason}; {record.pages_missing} pages are missing after {patience_s:.0f} s"
        )
    else:
        result.verified = not record.pages_different
        result.error = f"{reason}, after all pages were at the destination and compared"
    return result


async def _until_known(
    stub: destination_node_pb2_grpc.DestinationNodeAsyncStub, migration_id: str, patience_s: float
) -> common_pb2.PostCopyRecord:
    """How the pages came, when all are there or the task cannot go on, or after so long."""
    deadline = time.monotonic() + patience_s
    while True:
        status = await stub.GetMigration(
            destination_node_pb2.GetMigrationRequest(migration_id=migration_id), timeout=_LONGER_S
        )
        record = status.post_copy
        if record.halted or not record.pages_missing or time.monotonic() > deadline:
            return record
        await asyncio.sleep(_RETRY_S)
