"""The page stream of a post-copy, held open by the source: requests in, frames out.

What the task waits for is answered before what is fetched ahead. A stream that breaks is opened
again, and the destination asks anew for what it did not get; a destination that stays away or came
back as another process ends it, and so do streams that break again and again before the same page
has come. Even then nothing is over: `run` can be called once more, when somebody has seen to what
lies between the hosts.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

import grpc
import grpc.aio

from livemigration.channel import why
from livemigration.drill import Drill
from livemigration.errors import BadRequest, DestinationLost, MigrationError
from livemigration.observe.tracing import Metadata
from livemigration.transport import PageSource
from livemigration.v1 import common_pb2, destination_node_pb2

FETCH_PAGES = "/livemigration.v1.DestinationNode/FetchPages"

PageRequest = destination_node_pb2.PageRequest

SERVE_BATCHES = 4
"""Batches made ready at once: a switch between threads costs as much as gathering one."""

_RETRY_S = 0.1
_OPEN_S = 5.0
"""A busy host may take so long to answer a new stream."""

_DRILL_REQUEST = 5
"""A drill "in the middle of serving" strikes after so many answers."""

_MOST_DAMAGED = 3
_MOST_BREAKS = 20
"""Streams in a row over which the same page does not get through: because of what came over them,
as the destination says, or because they broke."""

_BROKEN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,  # how a stream cut in the middle of a message shows
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DATA_LOSS,  # the same frames are sent again when they are asked for
)

_Call = grpc.aio.StreamStreamCall[bytes, PageRequest]


class PageStream:
    """One post-copy's requests, over as many streams as it takes."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        address: str,
        *,
        metadata: Metadata,
        server: PageSource,
        pace: Callable[[int], Awaitable[None]],
        patience_s: float,
        drill: Drill,
    ) -> None:
        """`pace` returns when so many bytes may go out; `metadata` says whose pages they are."""
        self._open: grpc.aio.StreamStreamMultiCallable[bytes, PageRequest] = channel.stream_stream(
            FETCH_PAGES,
            request_serializer=None,
            response_deserializer=PageRequest.FromString,
        )
        self._address = address
        self._metadata = metadata
        self._server = server
        self._pace = pace
        self.patience_s = patience_s
        self._call: _Call | None = None
        self._drill = drill
        self._answered = 0
        self._compared = 0  # of the destination's messages with pages to compare
        self._oldest = 0  # the first request over the stream
        self._stuck: dict[bool, int] = {}  # streams in a row with that one: (damaged, how many)
        self.heard = time.monotonic()  # when the destination last said something
        self.reconnects = 0

    async def open(self) -> None:
        """Returns when the destination has the stream; raises MigrationError."""
        self._call = self._open(metadata=(*self._metadata, ("compared", str(self._compared))))
        try:
            async with asyncio.timeout(max(self.patience_s, _OPEN_S)):
                await self._call.initial_metadata()
            if self._call.done():
                raise self._error(await self._call.code(), await self._call.details())
        except grpc.aio.AioRpcError as error:
            self.drop()
            raise self._error(error.code(), error.details()) from error
        except TimeoutError as error:
            self.drop()
            raise self._error(grpc.StatusCode.UNAVAILABLE, "no answer") from error
        self.heard = time.monotonic()

    async def run(self) -> common_pb2.PostCopyRecord:
        """Serves until the destination says that it is over; `DestinationLost`, `BadRequest`."""
        self._stuck = {}
        while True:
            if self._call is None:
                await self._open_again()
            assert self._call is not None
            try:
                return await self._serve_stream(self._call)
            except grpc.aio.AioRpcError as error:
                code, details = error.code(), error.details()
            self.drop()
            damaged = code is grpc.StatusCode.DATA_LOSS
            self._stuck[damaged] = self._stuck.get(damaged, 0) + 1
            most = _MOST_DAMAGED if damaged else _MOST_BREAKS
            if code not in _BROKEN or self._stuck[damaged] >= most:
                raise self._error(code, details)

    def drop(self) -> None:
        """Ends the stream: nothing goes out over it any more."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    async def _open_again(self) -> None:
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                await self.open()
            except DestinationLost:
                if time.monotonic() > deadline:
                    raise
            else:
                self.reconnects += 1
                return
            await asyncio.sleep(_RETRY_S)

    def _error(self, code: grpc.StatusCode, details: str | None) -> MigrationError:
        error = grpc.aio.AioRpcError(
            code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details or None
        )
        if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
            # It answers, and does not have the task, or does not want its pages any more.
            return BadRequest(f"destination {self._address}: {why(error)}")
        return DestinationLost(f"destination {self._address} is lost: {why(error)}")

    async def _serve_stream(self, call: _Call) -> common_pb2.PostCopyRecord:
        """One stream; AioRpcError when it breaks."""
        waiting: list[tuple[bool, int, PageRequest]] = []
        some = asyncio.Event()
        first = True
        sender = asyncio.create_task(self._send(call, waiting, some), name="page-sender")
        try:
            async for request in call:
                self.heard = time.monotonic()
                if request.HasField("over"):
                    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                        await call.done_writing()
                    return request.over
                if request.HasField("read_back"):
                    if request.id > self._compared:
                        await asyncio.to_thread(self._server.compare, request.read_back)
                        self._compared = request.id
                    continue
                if first and request.id != self._oldest:
                    self._oldest, self._stuck = request.id, {}
                first = False
                heapq.heappush(waiting, (not request.urgent, request.id, request))
                some.set()
                if sender.done():
                    sender.result()
        finally:
            sender.cancel()
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await sender
        code, details = await call.code(), await call.details()
        if code is grpc.StatusCode.OK:
            code = grpc.StatusCode.UNAVAILABLE
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)

    async def _send(
        self, call: _Call, waiting: list[tuple[bool, int, PageRequest]], some: asyncio.Event
    ) -> None:
        ready: deque[bytes] = deque()
        while True:
            if not waiting and not ready:
                await some.wait()
            some.clear()
            if waiting and (not ready or waiting[0][2].urgent):
                frames = await self._answer(call, waiting)
                # What the task waits for goes before batches that are ready already.
                (ready.extendleft if len(frames) == 1 else ready.extend)(frames)
            if ready:
                frame = ready.popleft()
                await self._pace(len(frame))
                await call.write(frame)
                self._answered += 1
                if self._answered == _DRILL_REQUEST:
                    self._drill.reach("serving")

    async def _answer(
        self, call: _Call, waiting: list[tuple[bool, int, PageRequest]]
    ) -> list[bytes]:
        """The frames for what comes next: one that the task waits for, or a few batches."""
        some = [heapq.heappop(waiting)[2]]
        while waiting and len(some) < SERVE_BATCHES and not some[0].urgent:
            some.append(heapq.heappop(waiting)[2])
        try:
            return await asyncio.to_thread(lambda: [self._server.serve(one) for one in some])
        except MigrationError:
            call.cancel()
            raise

    async def close(self) -> None:
        """Ends the stream."""
        self.drop()
