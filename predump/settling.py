"""Ending a doubt at a source: asking the destination once more, or saying what became of a task."""

from __future__ import annotations

import grpc
import grpc.aio

from livemigration.channel import open_channel, why
from livemigration.ownership import Ownership
from livemigration.v1 import source_node_pb2, source_node_pb2_grpc
from predump.exit_status import FAILED
from predump.runner import RunError

_Kind = source_node_pb2.SettleRequest
DECISIONS = {
    "ask": _Kind.DECISION_ASK,
    "keep": _Kind.DECISION_KEEP,
    "release": _Kind.DECISION_RELEASE,
}


async def settle(
    source: str, credentials: grpc.ChannelCredentials | None, decision: str
) -> tuple[str, int]:
    """What became of the doubt, in one line, and an exit status: 0 if it is over.

    After "ask" a post-copy that was paused is served to its last page first. Raises `RunError`.
    """
    async with open_channel(source, credentials) as channel:
        stub: source_node_pb2_grpc.SourceNodeAsyncStub = source_node_pb2_grpc.SourceNodeStub(
            channel
        )
        try:
            task = await stub.GetTask(source_node_pb2.GetTaskRequest())
            state = Ownership(task.ownership)
            if state is not Ownership.IN_DOUBT:
                raise RunError(f"source {source}: the task is {state.word}, there is no doubt")
            result = await stub.Settle(
                _Kind(migration_id=task.migration_id, decision=DECISIONS[decision])
            )
        except grpc.aio.AioRpcError as error:
            raise RunError(f"source {source}: {why(error)}") from error
    about = f": {result.error}" if result.error else ""
    match Ownership(result.ownership):
        case Ownership.RELEASED:
            return f"the destination has the task{about}", 0
        case Ownership.RUNNING:
            return f"the source runs the task{about}", 0
        case state:
            return f"the task is {state.word}{about}", FAILED
