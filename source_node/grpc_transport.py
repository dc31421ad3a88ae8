"""The destination over gRPC: one bidirectional stream of frames, and the calls around it.

Frames that are not acknowledged are kept, at most `WINDOW`, and nothing more is sent until some
are. When the stream breaks, the destination is asked how far it got, the stream is opened again and
the frames after that are sent again; it applies each once. A destination that comes back as another
process has lost the pages, which ends the migration.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from livemigration.channel import open_channel, why
from livemigration.drill import Drill
from livemigration.errors import (
    BadRequest,
    CommitInDoubt,
    DamagedFrame,
    DestinationLost,
    MigrationError,
    NoSpace,
    WrongState,
)
from livemigration.link import NS
from livemigration.observe.tracing import Metadata
from livemigration.ownership import counts
from livemigration.spec import PatienceSpec
from livemigration.struct_message import struct_message
from livemigration.transport import PageSource
from livemigration.v1 import common_pb2, destination_node_pb2, destination_node_pb2_grpc
from source_node.page_stream import PageStream

WINDOW = 16
"""Frames under way without acknowledgement: about 16 MiB."""

QUESTION_S = 2.0
"""How long one question after the hand-over may take; it is asked again."""

MOST_DAMAGED = 3
"""How often a frame is sent again that arrives damaged each time."""

MOST_BREAKS = 20
"""How often the stream may break without any frame getting through."""

_RETRY_S = 0.1
_TRANSFER = "/livemigration.v1.DestinationNode/Transfer"

_ANSWERS = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.RESOURCE_EXHAUSTED: NoSpace,
    grpc.StatusCode.DATA_LOSS: DamagedFrame,
}
"""Statuses that are the destination's own word, not the network's."""

_BROKEN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,  # how a call cut in the middle of a message shows
    grpc.StatusCode.CANCELLED,
)
"""Statuses of a connection that broke: the stream is opened again, a question asked again."""

_Stream = grpc.aio.StreamStreamCall[bytes, common_pb2.TransferAck]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the source waits, in seconds (`livemigration.spec.PatienceSpec`)."""

    answer_s: float = 30.0
    reconnect_s: float = 5.0
    settle_s: float = 30.0

    @property
    def question_s(self) -> float:
        """For one question after the hand-over."""
        return min(QUESTION_S, self.answer_s)

    @classmethod
    def of(cls, spec: PatienceSpec) -> Patience:
        """As the migration's spec says."""
        return cls(spec.answer_ns / NS, spec.reconnect_ns / NS, spec.settle_ns / NS)


class GrpcTransport:
    """One migration to one destination; see `livemigration.transport.Transport`."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None = None,
        drill: Drill | None = None,
        patience: Patience | None = None,
        channel: grpc.aio.Channel | None = None,
        trace: Callable[[], Metadata] = tuple,
    ) -> None:
        """`channel`: one that is open already, instead of a new one to `address`.

        `trace`: what calls carry, so that the destination's spans join the source's.
        """
        self._address = address
        self._patience = patience or Patience()
        self._trace = trace
        self._drill = drill or Drill()
        self._channel = channel if channel is not None else open_channel(address, credentials)
        self._stub: destination_node_pb2_grpc.DestinationNodeAsyncStub = (
            destination_node_pb2_grpc.DestinationNodeStub(self._channel)
        )
        self._open_transfer: grpc.aio.StreamStreamMultiCallable[bytes, common_pb2.TransferAck] = (
            self._channel.stream_stream(
                _TRANSFER,
                request_serializer=None,
                response_deserializer=common_pb2.TransferAck.FromString,
            )
        )
        self._id = ""
        self._incarnation = ""
        self._store_id = ""
        self._stream: _Stream | None = None
        self._reader: asyncio.Task[None] | None = None
        self._window: deque[tuple[int, bytes]] = deque()
        self._changed = asyncio.Condition()
        self._broken: grpc.aio.AioRpcError | None = None
        self._pages: PageStream | None = None
        self._watch: asyncio.Task[None] | None = None
        self._lost: DestinationLost | None = None  # by what the watch has found out
        self._broke_at = -1  # the oldest frame of the window when the stream broke last
        self._breaks = 0  # ... and how often it has at this one
        self.reconnects = 0

    # -- prepare

    async def prepare(
        self,
        migration_id: str,
        task: dict[str, Any],
        *,
        base_dir: str,
        clock: str,
        extra_pages: int,
        resident_pages: int,
    ) -> None:
        """Learns who the destination is and asks it for room."""
        self._id = migration_id
        try:
            await self._stub.Describe(common_pb2.DescribeRequest(), timeout=self._patience.answer_s)
            # Without a deadline: a host that has just started may have to compile first.
            status = await self._watched(
                self._stub.Prepare(
                    destination_node_pb2.PrepareRequest(
                        migration_id=migration_id,
                        task=struct_message(task),
                        base_dir=base_dir,
                        clock=clock,
                        extra_pages=extra_pages,
                        resident_pages=resident_pages,
                    ),
                    metadata=self._metadata(),
                )
            )
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error
        # Of the process that made room, which must be the one that gets the pages.
        self._incarnation, self._store_id = status.incarnation, status.store_id
        self._open()
        self._watch = asyncio.create_task(self._watch_transfer(), name="transfer-watch")

    def _metadata(self) -> Metadata:
        return (("migration-id", self._id), *self._trace())

    def _error(self, error: grpc.aio.AioRpcError) -> MigrationError:
        kind = _ANSWERS.get(error.code())
        if kind is not None:
            return kind(f"destination {self._address}: {why(error)}")
        return DestinationLost(f"destination {self._address} is lost: {why(error)}")

    # -- is it still there

    async def _ask_how_far(
        self, patience_s: float | None = None
    ) -> destination_node_pb2.MigrationStatus | None:
        """None if there is an answer that says nothing; `DestinationLost` if there is none."""
        patience_s = patience_s or self._patience.answer_s
        try:
            return await self._stub.GetMigration(
                destination_node_pb2.GetMigrationRequest(migration_id=self._id),
                timeout=patience_s,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DestinationLost(
                    f"destination {self._address} is lost: it does not answer ({patience_s:g} s)"
                ) from error
            return None  # a connection that breaks ends the calls on it by itself

    async def _watched(self, call: Awaitable[_T]) -> _T:
        """The call's result, for as long as the destination answers questions beside it.

        A host that is switched off, stopped, or behind a cable that was pulled ends no connection.
        """
        work: asyncio.Future[_T] = asyncio.ensure_future(_result(call))
        try:
            while not (await asyncio.wait([work], timeout=self._patience.answer_s))[0]:
                await self._ask_how_far()
            return work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _watch_transfer(self) -> None:
        """Frees a transfer that stands still: opens the stream again, or gives up.

        Frames that are not acknowledged for a while are asked after. A destination that does not
        answer is lost. One that answers, but is no further, has not got them: something between
        the hosts has swallowed a frame, and they are sent again, once.
        """
        seen, since, again = 0, time.monotonic(), False
        while True:
            await asyncio.sleep(self._patience.answer_s / 4)
            oldest = self._window[0][0] if self._window else 0
            if oldest == 0 or oldest - 1 > seen:
                seen, since, again = max(seen, oldest - 1), time.monotonic(), False
                continue
            if time.monotonic() - since < self._patience.answer_s:
                continue
            try:
                status = await self._ask_how_far()
            except DestinationLost as lost:
                await self._end_transfer(lost)
                return
            if status is not None and status.sequence > seen:
                seen, since, again = status.sequence, time.monotonic(), False
                continue
            if again:
                await self._end_transfer(
                    DestinationLost(
                        f"destination {self._address} is lost: it takes nothing more "
                        f"(after frame {seen})"
                    )
                )
                return
            since, again = time.monotonic(), True
            if self._stream is not None:
                self._stream.cancel()

    async def _end_transfer(self, lost: DestinationLost) -> None:
        self._lost = lost
        if self._stream is not None:
            self._stream.cancel()
        async with self._changed:
            self._changed.notify_all()

    # -- the stream

    def _open(self) -> None:
        self._broken = None
        self._stream = self._open_transfer(
            metadata=(*self._metadata(), ("incarnation", self._incarnation))
        )
        self._reader = asyncio.create_task(self._read(self._stream), name="transfer-acks")

    async def _read(self, stream: _Stream) -> None:
        try:
            async for ack in stream:
                async with self._changed:
                    while self._window and self._window[0][0] <= ack.sequence:
                        self._window.popleft()
                    self._changed.notify_all()
            code, details = await stream.code(), await stream.details()
            broken = grpc.aio.AioRpcError(
                code if code is not grpc.StatusCode.OK else grpc.StatusCode.UNAVAILABLE,
                grpc.aio.Metadata(),
                grpc.aio.Metadata(),
                details or "the destination ended the transfer",
            )
        except grpc.aio.AioRpcError as error:
            broken = error
        except asyncio.CancelledError:
            # The watch has cut it, or `_finish_stream` has, after which nobody asks.
            broken = grpc.aio.AioRpcError(
                grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata(), "stood still"
            )
        async with self._changed:
            if stream is self._stream:
                self._broken = broken
            self._changed.notify_all()

    async def send(self, sequence: int, frame: bytes) -> None:
        """Sends one frame once there is room in the window."""
        if len(self._window) >= WINDOW and self._broken is None:
            async with self._changed:
                await self._changed.wait_for(lambda: len(self._window) < WINDOW or self._broken)
        if self._broken is not None:
            await self._reconnect()
        self._window.append((sequence, frame))
        await self._write(frame)

    async def _write(self, frame: bytes) -> None:
        assert self._stream is not None
        try:
            await self._put(frame)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            # What a failed write says is not why the stream ended: that is the reader's to learn.
            await self._reconnect()
        except asyncio.CancelledError:
            if not _cut_by_us():
                raise
            await self._reconnect()

    async def flush(self) -> None:
        """Waits until the window is empty."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._window or self._broken)
            if not self._window:
                return
            await self._reconnect()

    async def _reconnect(self) -> None:
        """Opens the stream again and sends what the destination has not applied."""
        deadline = time.monotonic() + self._patience.reconnect_s
        while True:
            if self._lost is not None:
                raise self._lost
            if self._reader is not None:
                await self._reader  # a broken stream ends its reader, which knows why
            broken = self._broken
            if broken is not None and not self._may_try_again(broken):
                raise self._error(broken)
            await self._resume_after(deadline, broken)
            if self._lost is not None:  # the watch has given up meanwhile, and watches no more
                raise self._lost
            self.reconnects += 1
            self._open()
            if await self._send_again():
                return
            if time.monotonic() > deadline:
                raise DestinationLost(f"destination {self._address}: the transfer keeps breaking")

    async def _put(self, frame: bytes) -> None:
        """Writes to the stream for as long as that is read.

        gRPC lets a write to a call that was cancelled before it began wait for ever.
        """
        assert self._stream is not None
        assert self._reader is not None
        writing = asyncio.ensure_future(_result(self._stream.write(frame)))
        try:
            await asyncio.wait([writing, self._reader], return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                raise asyncio.InvalidStateError("the transfer has ended")
            writing.result()
        finally:
            writing.cancel()

    def _may_try_again(self, broken: grpc.aio.AioRpcError) -> bool:
        """Whether what is not acknowledged is worth being sent again.

        A frame that is damaged on its way is; one that is damaged each time was sent so.
        """
        oldest = self._window[0][0] if self._window else 0
        if oldest != self._broke_at:
            self._broke_at, self._breaks = oldest, 0
        self._breaks += 1
        if broken.code() is grpc.StatusCode.DATA_LOSS:
            return self._breaks <= MOST_DAMAGED
        return broken.code() in _BROKEN and self._breaks <= MOST_BREAKS

    async def _send_again(self) -> bool:
        """Writes the whole window; False if the stream broke meanwhile."""
        assert self._stream is not None
        for _, frame in list(self._window):
            try:
                await self._put(frame)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return False
            except asyncio.CancelledError:
                if not _cut_by_us():
                    raise
                return False
        return True

    async def _resume_after(self, deadline: float, broken: grpc.aio.AioRpcError | None) -> None:
        """Waits for the destination and drops from the window what it has applied."""
        while True:
            try:
                status = await self._stub.GetMigration(
                    destination_node_pb2.GetMigrationRequest(migration_id=self._id),
                    timeout=self._patience.answer_s,
                )
                break
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    raise self._started_anew() from error
                if error.code() not in _BROKEN:
                    raise self._error(error) from error
                if time.monotonic() > deadline:
                    raise self._error(broken or error) from error
            await asyncio.sleep(_RETRY_S)
        if status.incarnation != self._incarnation:
            raise self._started_anew()
        if status.ownership == common_pb2.OWNERSHIP_STATE_ABORTED:
            raise DestinationLost(f"destination {self._address} gave the migration up")
        while self._window and self._window[0][0] <= status.sequence:
            self._window.popleft()

    def _started_anew(self) -> DestinationLost:
        return DestinationLost(f"destination {self._address} was started anew and lost the pages")

    async def _finish_stream(self, *, in_order: bool = True) -> None:
        """Ends the transfer; `in_order`: everything on it has arrived, so its end will, too."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        stream, self._stream = self._stream, None
        if stream is not None:
            if in_order:
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await stream.done_writing()
            stream.cancel()
        reader, self._reader = self._reader, None
        if reader is not None:
            with suppress(asyncio.CancelledError):
                await reader

    # -- post-copy

    async def open_pages(
        self,
        server: PageSource,
        pace: Callable[[int], Awaitable[None]],
        patience_ns: int,
    ) -> None:
        """Opens the page stream beside the transfer."""
        self._pages = PageStream(
            self._channel,
            self._address,
            server=server,
            pace=pace,
            patience_s=patience_ns / NS,
            drill=self._drill,
            metadata=self._metadata(),
        )
        await self._pages.open()

    async def pages_over(self) -> common_pb2.PostCopyRecord:
        """Answers requests until it is over."""
        assert self._pages is not None
        serving = asyncio.create_task(self._pages.run())
        watching = asyncio.create_task(self._watch_destination(self._pages))
        try:
            await asyncio.wait([serving, watching], return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                watching.result()
            return await serving
        except BaseException:
            self._pages.drop()  # no page goes out any more once this host has given up
            raise
        finally:
            for work in (serving, watching):
                work.cancel()
            await asyncio.gather(serving, watching, return_exceptions=True)

    async def _watch_destination(self, pages: PageStream) -> None:
        """Raises `DestinationLost` when a destination that asks for nothing does not answer either.

        A host that is switched off, or cut off, ends no connection.
        """
        while True:
            await asyncio.sleep(pages.patience_s)
            if time.monotonic() - pages.heard < pages.patience_s:
                continue
            try:
                await self._stub.GetMigration(
                    destination_node_pb2.GetMigrationRequest(migration_id=self._id),
                    timeout=pages.patience_s,
                )
            except grpc.aio.AioRpcError as error:
                # What else can be wrong is for the stream to find out.
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise self._error(error) from error

    # -- proof and hand-over

    async def verify(
        self, chunks: AsyncIterator[destination_node_pb2.VerifyChunk]
    ) -> destination_node_pb2.VerifyReply:
        """Streams the digests; the answer is the destination's comparison."""
        try:
            return await self._watched(self._stub.Verify(chunks, metadata=self._metadata()))
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error

    async def read_back(self) -> AsyncIterator[destination_node_pb2.MemoryChunk]:
        """The destination's memory, in batches."""
        request = destination_node_pb2.ReadBackRequest(migration_id=self._id)
        try:
            call = self._stub.ReadBack(request, metadata=self._metadata())
            while True:
                chunk = await self._watched(call.read())
                if not isinstance(chunk, destination_node_pb2.MemoryChunk):
                    return  # the end of the stream
                yield chunk
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error

    async def commit(self, memory_digest: str) -> destination_node_pb2.MigrationStatus:
        """Hands the task over; the stream ends first, so that nothing is under way any more."""
        await self._finish_stream()
        request = destination_node_pb2.CommitRequest(
            migration_id=self._id, memory_digest=memory_digest, incarnation=self._incarnation
        )
        try:
            return await self._taken_over(
                self._stub.Commit(request, metadata=self._metadata()),
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in _ANSWERS:
                raise self._error(error) from error
            raise self._in_doubt(why(error)) from error
        except DestinationLost as error:
            raise self._in_doubt(str(error)) from error

    async def _taken_over(
        self, call: Awaitable[destination_node_pb2.MigrationStatus]
    ) -> destination_node_pb2.MigrationStatus:
        """The answer to Commit, for as long as the destination says that it is at it.

        It may have many GiB of images to write before the point of no return. `DestinationLost` if
        it does not answer, or has nothing more to do and its answer does not come.
        """
        work = asyncio.ensure_future(_result(call))
        patience = self._patience
        try:
            while not (await asyncio.wait([work], timeout=patience.answer_s))[0]:
                status = await self._ask_how_far(patience.question_s)
                if status is not None and status.taking_over:
                    continue
                if not (await asyncio.wait([work], timeout=patience.question_s))[0]:
                    raise DestinationLost(f"no answer for {patience.answer_s:g} s")
            return work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def _in_doubt(self, reason: str) -> CommitInDoubt:
        return CommitInDoubt(f"destination {self._address} did not answer the hand-over: {reason}")

    async def abort(self, reason: str) -> None:
        """Best effort: a destination that is not told forgets the task when the next one comes."""
        if not self._id:
            return
        await self._finish_stream(in_order=False)
        with suppress(grpc.aio.AioRpcError):
            await self._stub.Abort(
                destination_node_pb2.AbortRequest(migration_id=self._id, reason=reason),
                timeout=self._patience.question_s,
                metadata=self._metadata(),
            )

    async def settle(self) -> common_pb2.OwnershipState.ValueType:
        """Asks until there is an answer that counts, see `livemigration.ownership`."""
        deadline = time.monotonic() + self._patience.settle_s
        last = "no answer"
        while time.monotonic() < deadline:
            try:
                # Aborts what is not committed: the answer to that is final.
                status = await self._stub.Abort(
                    destination_node_pb2.AbortRequest(
                        migration_id=self._id, reason="the hand-over was not answered"
                    ),
                    timeout=self._patience.question_s,
                )
                # Who answers and where it keeps its tasks is one message: between two, another
                # process could have taken its place.
                if counts(self._store_id, status.store_id):
                    return status.ownership
                last = "it was started without the state directory it had"
            except grpc.aio.AioRpcError as error:
                last = why(error)
            await asyncio.sleep(_RETRY_S)
        raise DestinationLost(f"destination {self._address} is lost: {last}")

    async def continue_to(self, workload_ns: int) -> destination_node_pb2.ContinueReply:
        """Runs the task over there; no deadline, since real time may have to pass.

        A destination that dies meanwhile and comes back with its state directory goes on from the
        commit, so it is looked for as long as one in doubt is.
        """
        request = destination_node_pb2.ContinueRequest(
            migration_id=self._id, until_workload_ns=workload_ns
        )
        lost_at: float | None = None
        while True:
            try:
                return await self._watched(self._stub.Continue(request, metadata=self._metadata()))
            except grpc.aio.AioRpcError as error:
                now = time.monotonic()
                lost_at = lost_at or now
                # A post-copy goes on over there while the connection is away.
                comes_back = self._store_id or self._pages is not None
                broken = error.code() in _BROKEN
                if not broken or not comes_back or now - lost_at > self._patience.settle_s:
                    raise self._error(error) from error
            await asyncio.sleep(_RETRY_S)

    @property
    def streams_broken(self) -> int:
        """Streams of pages that broke and were opened again."""
        return self.reconnects + (self._pages.reconnects if self._pages is not None else 0)

    async def close(self) -> None:
        """Ends stream and connection."""
        await self._finish_stream(in_order=False)
        if self._pages is not None:
            await self._pages.close()
        await self._channel.close()


async def _result(call: Awaitable[_T]) -> _T:
    return await call


def _cut_by_us() -> bool:
    """Whether a `CancelledError` says that the call was cancelled, and not who waits for it."""
    task = asyncio.current_task()
    return task is not None and not task.cancelling()
