"""What a source makes of a destination that answers in the middle of dying."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from livemigration.errors import CommitInDoubt, DestinationLost, WrongState
from livemigration.v1 import common_pb2, destination_node_pb2, destination_node_pb2_grpc
from source_node.grpc_transport import GrpcTransport, Patience

Status = destination_node_pb2.MigrationStatus


class Dying(destination_node_pb2_grpc.DestinationNodeServicer):
    """Cuts the first transfer, and answers so many questions with an error before it is back."""

    def __init__(self, code: grpc.StatusCode, times: int) -> None:
        self.code, self.left = code, times
        self.cut = False
        self.got: list[int] = []

    async def Describe(
        self, request: common_pb2.DescribeRequest, context: grpc.aio.ServicerContext
    ) -> common_pb2.HostDescription:
        return common_pb2.HostDescription(incarnation="1", store_id="s")

    async def Prepare(
        self, request: destination_node_pb2.PrepareRequest, context: grpc.aio.ServicerContext
    ) -> Status:
        return Status(incarnation="1", store_id="s")

    async def Transfer(
        self,
        request_iterator: AsyncIterator[common_pb2.TransferFrame],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[common_pb2.TransferAck]:
        async for frame in request_iterator:
            if not self.cut:
                self.cut = True
                await context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
            self.got.append(frame.sequence)
            yield common_pb2.TransferAck(sequence=frame.sequence)

    async def _fail_first(self, context: grpc.aio.ServicerContext) -> None:
        if self.left:
            self.left -= 1
            await context.abort(self.code, "cut in the middle")

    async def GetMigration(
        self, request: destination_node_pb2.GetMigrationRequest, context: grpc.aio.ServicerContext
    ) -> Status:
        await self._fail_first(context)
        return Status(incarnation="1")

    async def Continue(
        self, request: destination_node_pb2.ContinueRequest, context: grpc.aio.ServicerContext
    ) -> destination_node_pb2.ContinueReply:
        await self._fail_first(context)
        return destination_node_pb2.ContinueReply(operations=7)


@asynccontextmanager
async def prepared(
    destination: Dying, patience: Patience | None = None
) -> AsyncIterator[GrpcTransport]:
    server = grpc.aio.server()
    destination_node_pb2_grpc.add_DestinationNodeServicer_to_server(destination, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    transport = GrpcTransport(f"127.0.0.1:{port}", patience=patience or Patience())
    try:
        await transport.prepare(
            "m", {}, base_dir="", clock="virtual", extra_pages=0, resident_pages=0
        )
        yield transport
    finally:
        await transport.close()
        await server.stop(None)


BROKEN = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED]


@pytest.mark.parametrize("code", BROKEN)
async def test_broken_answers_are_asked_for_again(code: grpc.StatusCode) -> None:
    destination = Dying(code, times=2)
    async with prepared(destination) as transport:
        for sequence in (1, 2, 3):
            frame = common_pb2.TransferFrame(sequence=sequence)
            await transport.send(sequence, frame.SerializeToString())
        await transport.flush()
        assert destination.got == [1, 2, 3]
        assert transport.reconnects == 1


@pytest.mark.parametrize("code", BROKEN)
async def test_task_that_goes_on_is_asked_after_again(code: grpc.StatusCode) -> None:
    async with prepared(Dying(code, times=2)) as transport:
        assert (await transport.continue_to(1)).operations == 7


async def test_what_the_destination_itself_says_is_no_broken_connection() -> None:
    async with prepared(Dying(grpc.StatusCode.PERMISSION_DENIED, times=1)) as transport:
        await transport.send(1, common_pb2.TransferFrame(sequence=1).SerializeToString())
        with pytest.raises(DestinationLost, match="cut in the middle"):
            await transport.flush()


class Exporting(Dying):
    """Takes a task over, for so long; `acts` says what it does meanwhile."""

    def __init__(self, seconds: float, *acts: str) -> None:
        super().__init__(grpc.StatusCode.OK, times=0)
        self.seconds, self.acts = seconds, acts

    async def Commit(
        self, request: destination_node_pb2.CommitRequest, context: grpc.aio.ServicerContext
    ) -> Status:
        await asyncio.sleep(self.seconds)
        if "refuses" in self.acts:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no room")
        return Status(restore_ns=7)

    async def GetMigration(
        self, request: destination_node_pb2.GetMigrationRequest, context: grpc.aio.ServicerContext
    ) -> Status:
        if "silent" in self.acts:
            await asyncio.sleep(60)
        return Status(incarnation="1", taking_over="says so" in self.acts)


QUICK = Patience(answer_s=0.4)


async def test_a_take_over_may_take_as_long_as_the_destination_is_at_it() -> None:
    async with prepared(Exporting(1.5, "says so"), QUICK) as transport:
        assert (await transport.commit("digest")).restore_ns == 7


async def test_what_a_destination_says_after_a_long_time_is_its_word() -> None:
    async with prepared(Exporting(1.0, "says so", "refuses"), QUICK) as transport:
        with pytest.raises(WrongState, match="no room"):
            await transport.commit("digest")


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("silent", "it does not answer"),
        ("knows nothing of it", "no answer for 0.4 s"),  # one of both messages was lost on its way
    ],
)
async def test_a_hand_over_without_an_answer_is_in_doubt(act: str, reason: str) -> None:
    async with prepared(Exporting(60, act), QUICK) as transport:
        began = time.monotonic()
        with pytest.raises(CommitInDoubt, match=f"did not answer the hand-over: .*{reason}"):
            await transport.commit("digest")
        assert time.monotonic() - began < 30
