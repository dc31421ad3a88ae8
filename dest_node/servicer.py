"""The gRPC face of the destination: every call of `DestinationNode`."""

from __future__ import annotations

import asyncio
import os
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format

from dest_node.criu_pages import CriuPages
from dest_node.incoming import IncomingTask, Request
from dest_node.page_channel import StreamChannel
from dest_node.post_copy import VirtualRun, WallRun
from dest_node.store import StateDirectory
from dest_node.warmup import warm_up
from livemigration.drill import Drill
from livemigration.errors import SourceLost, UnknownMigration, WrongState
from livemigration.observe.metrics import DestinationMetrics
from livemigration.ownership import Event, Ownership, OwnershipMachine
from livemigration.status import answering
from livemigration.telemetry import Telemetry
from livemigration.v1 import common_pb2, destination_node_pb2, destination_node_pb2_grpc
from livemigration.verification import Comparison
from livemigration.warm import WarmUp

PAGE_SIZES = (4096, 16384, 65536)

ACK_EVERY = 8
"""Frames between two acknowledgements: half the sender's window, so that it never runs dry."""

INBOX = 16
"""Frames that wait to be applied: a sender's whole window. Beyond it, nothing more is read."""

_LOOK_S = 0.1
"""How often a task that is to run on is looked at, whether it still can."""

_DRILL_FRAME = 3
"""A drill "in the middle of a round" strikes at this frame of it, or at its end if it is shorter.
"""

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class _Arrivals:
    """One transfer stream's frames on their way into a task."""

    incoming: IncomingTask
    drill: Drill
    in_round: int = 0

    def apply(self, messages: Sequence[bytes]) -> bool:
        """Applies frames one by one; whether one of them closed a round."""
        ended = False
        for message in messages:
            before = self.incoming.round
            self.incoming.apply(message)
            self.in_round = 1 if self.incoming.round != before else self.in_round + 1
            over = self.incoming.round_over
            ended |= over
            if self.in_round == _DRILL_FRAME or over:
                self._reach()
        return ended

    def _reach(self) -> None:
        begin = self.incoming.begin
        final = begin is not None and begin.final
        self.drill.reach("final" if final else f"round-{self.incoming.round}")


@dataclass(slots=True)
class _PageDrill:
    """Counts the frames of a page stream, for a drill in the middle of it or at its end."""

    drill: Drill
    source: Callable[[], Awaitable[bytes | None]]
    frames: int = 0

    async def read(self) -> bytes | None:
        """The next message."""
        message = await self.source()
        self.frames += 1
        if message is None:
            self.drill.reach("pages-over")
        elif self.frames == _DRILL_FRAME:
            self.drill.reach("pages")
        return message


class DestinationNode(destination_node_pb2_grpc.DestinationNodeServicer):
    """One destination host. It has at most one task at a time."""

    def __init__(
        self,
        *,
        host_id: str,
        version: str,
        store: StateDirectory | None,
        telemetry: Telemetry,
        drill: Drill,
        metrics: DestinationMetrics,
        criu_pages: CriuPages | None = None,
        export_images: str = "",
    ) -> None:
        """`export_images`: where tasks are written as CRIU images, with {id} for the migration."""
        self._export_images = export_images
        self._host_id = host_id
        self._version = version
        self._store = store
        self._telemetry = telemetry
        self._drill = drill
        self._metrics = metrics
        self._metrics.watch(self._ownership, self._memory_bytes)
        self._criu_pages = criu_pages
        self._incarnation = uuid.uuid4().hex
        self._incoming: IncomingTask | None = None
        self._connected = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="destination")
        self._committing = asyncio.Lock()
        self._hand_overs = 0  # Commits that are not answered yet
        self._steps: set[asyncio.Task[destination_node_pb2.MigrationStatus]] = set()
        self._lost = ""  # migration whose task ran here and died with the process before this one
        self._watching: asyncio.Task[None] | None = None  # of a post-copy's source
        self._continuing: asyncio.Task[None] | None = None
        self._warm = WarmUp(warm_up)

    # -- the process' life

    async def start(self) -> None:
        """Takes up a task that the state directory holds, and gets ready for the first one."""
        self._warm.start()
        if self._store is None:
            return
        self._incoming = await self._in_thread(IncomingTask.recover, self._store)
        self._lost = await self._in_thread(self._store.lost)
        if self._incoming is not None and self._incoming.execution is not None:
            self._incoming.execution.thaw()
            self._metrics.recovered()
            self._say("committed", self._incoming, recovered=True)

    async def close(self) -> None:
        """Stops a running task and frees everything; a state directory keeps what was committed."""
        incoming = self._incoming
        if self._steps:
            await asyncio.wait(self._steps, timeout=5)
        if self._criu_pages is not None:
            await asyncio.to_thread(self._criu_pages.close)
        await self._stop_post_copy()
        if incoming is not None:
            if incoming.execution is not None:
                await incoming.execution.close()
            await self._in_thread(incoming.give_up)
        self._pool.shutdown(wait=True)
        if self._store is not None:
            self._store.close()

    # -- calls

    async def Describe(
        self, request: common_pb2.DescribeRequest, context: _Context
    ) -> common_pb2.HostDescription:
        """Who this is."""
        return common_pb2.HostDescription(
            host_id=self._host_id,
            incarnation=self._incarnation,
            version=self._version,
            page_sizes=PAGE_SIZES,
            pid=os.getpid(),
            store_id=self._store_id,
        )

    async def Prepare(
        self, request: destination_node_pb2.PrepareRequest, context: _Context
    ) -> destination_node_pb2.MigrationStatus:
        """Makes room for a task."""
        async with answering(context):
            if not request.migration_id:
                raise ValueError("migration_id is empty; give each migration a name of its own")
            return await self._to_its_end(self._make_room(request))

    async def _make_room(
        self, request: destination_node_pb2.PrepareRequest
    ) -> destination_node_pb2.MigrationStatus:
        await self._in_thread(self._warm.wait)
        # A task that is being taken over at this moment must not be given up for the next one.
        async with self._committing:
            await self._replace_incoming(request)
            return self._status()

    async def _replace_incoming(self, request: destination_node_pb2.PrepareRequest) -> None:
        current = self._incoming
        if current is not None:
            state = current.ownership.state
            if current.request.migration_id == request.migration_id:
                if state is Ownership.RECEIVING and current.sequence == 0:
                    return  # asked again
                raise WrongState(f"migration {request.migration_id} was here before; use a new id")
            if state is Ownership.COMMITTED:
                raise WrongState(
                    f"this host runs the task of migration {current.request.migration_id}; "
                    "end it first"
                )
            if self._connected and state is not Ownership.ABORTED:
                raise WrongState(f"this host is receiving migration {current.request.migration_id}")
            await self._in_thread(current.give_up)
            self._incoming = None
        if self._lost and self._store is not None:
            await self._in_thread(self._store.forget)
            self._lost = ""
        self._incoming = await self._in_thread(
            IncomingTask.prepare,
            Request(
                migration_id=request.migration_id,
                struct=json_format.MessageToDict(request.task),
                base_dir=request.base_dir,
                clock=request.clock,
                extra_pages=request.extra_pages,
                resident_pages=request.resident_pages,
            ),
            self._store,
            self._export_to(request.migration_id),
        )
        self._metrics.prepared()
        self._say("prepared", self._incoming)

    def _export_to(self, migration_id: str) -> Path | None:
        """Where this host's operator wants the task's images. A peer's name for a migration becomes
        one part of that path, never more."""
        if not self._export_images:
            return None
        name = re.sub(r"[^A-Za-z0-9_-]", "_", migration_id)[:80]
        return Path(self._export_images.replace("{id}", name))

    async def Transfer(  # type: ignore[override]  # reads and writes by hand, which is faster
        self, _: object, context: _Context
    ) -> None:
        """Frames in, acknowledgements out."""
        async with answering(context):
            incoming = self._find(_metadata(context, "migration-id"))
            wanted = _metadata(context, "incarnation", self._incarnation)
            if wanted != self._incarnation:
                raise UnknownMigration("this host was started anew since it made room")
            self._connected += 1
            try:
                await self._receive(incoming, context)
            finally:
                self._connected -= 1
                if not incoming.complete and incoming.ownership.state is Ownership.RECEIVING:
                    self._metrics.streams_broken.inc()

    async def _receive(self, incoming: IncomingTask, context: _Context) -> None:
        arrivals = _Arrivals(incoming, self._drill)
        inbox: asyncio.Queue[bytes | None] = asyncio.Queue(INBOX)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._apply(arrivals, inbox, context))
                while (message := await context.read()) is not grpc.aio.EOF:
                    await inbox.put(message)
                await inbox.put(None)
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None  # one frame's error is what the peer must know

    async def _apply(
        self, arrivals: _Arrivals, inbox: asyncio.Queue[bytes | None], context: _Context
    ) -> None:
        """Applies what has arrived, all of it in one go, while more arrives."""
        unacknowledged = 0
        while True:
            some = [await inbox.get()]
            while len(some) < ACK_EVERY and not inbox.empty():
                some.append(inbox.get_nowait())
            frames = [message for message in some if message is not None]
            ended = await self._in_thread(arrivals.apply, frames)
            unacknowledged += len(frames)
            wire = sum(len(frame) for frame in frames)
            self._metrics.arrived(frames=len(frames), wire=wire, rounds=int(ended))
            if unacknowledged >= ACK_EVERY or ended:
                unacknowledged = 0
                await context.write(common_pb2.TransferAck(sequence=arrivals.incoming.sequence))
            if ended:
                self._say("received", arrivals.incoming)
            if len(frames) < len(some):
                return

    async def FetchPages(  # type: ignore[override]  # reads and writes by hand
        self, _: object, context: _Context
    ) -> None:
        """Requests out, frames in, for as long as the source holds the stream open."""
        async with answering(context):
            incoming = self._find(_metadata(context, "migration-id"))
            incoming.ownership.require(Ownership.VERIFIED, Ownership.COMMITTED)
            if incoming.came is not None:
                # A process before this one had all pages, and died before the source heard of it.
                await context.send_initial_metadata(())
                await context.write(destination_node_pb2.PageRequest(over=incoming.came))
                while await _read(context) is not None:
                    pass
                return
            channel = self._page_channel(incoming)
            await context.send_initial_metadata(())
            drill = _PageDrill(self._drill, partial(_read, context))
            await channel.hold(drill.read, context.write, _count(context, "compared"))

    def _page_channel(self, incoming: IncomingTask) -> StreamChannel:
        if incoming.channel is None:
            if incoming.begin is None or incoming.missing is None:
                raise WrongState("this migration is no post-copy: there are no pages to ask for")
            plan = incoming.begin.post_copy
            incoming.channel = StreamChannel(
                incoming.spec.page_size, plan.lost_after_ns, plan.bandwidth_bps
            )
        assert isinstance(incoming.channel, StreamChannel)
        return incoming.channel

    async def Verify(
        self,
        request_iterator: AsyncIterator[destination_node_pb2.VerifyChunk],
        context: _Context,
    ) -> destination_node_pb2.VerifyReply:
        """Compares the source's digests with this host's own, which it makes meanwhile."""
        async with answering(context):
            incoming: IncomingTask | None = None
            own = None
            comparison = None
            async for chunk in request_iterator:
                if incoming is None:
                    incoming = self._find(chunk.migration_id)
                    incoming.ownership.require(Ownership.RECEIVING)
                    if not incoming.complete:
                        raise WrongState(
                            "the final round has not arrived; there is nothing to verify"
                        )
                    self._say("verifying", incoming)
                    own = asyncio.ensure_future(self._in_thread(incoming.digest))
                    comparison = Comparison(incoming.spec.page_size)
                    if not chunk.digests and not chunk.memory_digest:
                        continue  # only the start signal
                assert comparison is not None
                comparison.add(chunk)
            if incoming is None or own is None or comparison is None:
                raise ValueError("verification without a migration id")
            digests = await own
            reply: destination_node_pb2.VerifyReply = await self._in_thread(
                comparison.compare, digests
            )
            self._drill.reach("verify")
            incoming.verified(equal=reply.equal, lazy=comparison.lazy)
            self._metrics.compared(equal=reply.equal)
            self._say("verified" if reply.equal else "differs", incoming)
            return reply

    async def ReadBack(
        self, request: destination_node_pb2.ReadBackRequest, context: _Context
    ) -> AsyncIterator[destination_node_pb2.MemoryChunk]:
        """This host's memory, read from its page tables."""
        async with answering(context):
            incoming = self._find(request.migration_id)
            if self._continuing is not None and not self._continuing.done():
                raise WrongState("the task runs here; its memory can be read once it is at rest")
            chunks = incoming.memory()
            while (chunk := await self._in_thread(next, chunks, None)) is not None:
                yield chunk

    async def Commit(
        self, request: destination_node_pb2.CommitRequest, context: _Context
    ) -> destination_node_pb2.MigrationStatus:
        """Takes the task over and lets it run here."""
        async with answering(context):
            return await self._to_its_end(self._take_over_and_tell(request))

    async def _take_over_and_tell(
        self, request: destination_node_pb2.CommitRequest
    ) -> destination_node_pb2.MigrationStatus:
        """Whoever asks meanwhile is told that it is under way."""
        self._hand_overs += 1
        try:
            status = await self._take_over(request)
        finally:
            self._hand_overs -= 1
        status.taking_over = False
        return status

    async def _take_over(
        self, request: destination_node_pb2.CommitRequest
    ) -> destination_node_pb2.MigrationStatus:
        async with self._committing:
            if request.incarnation not in ("", self._incarnation):
                # Its refusal would be no word on what became of the task.
                raise UnknownMigration("this host was started anew since it got the pages")
            incoming = self._find(request.migration_id)
            self._drill.reach("before-commit")
            began = time.monotonic_ns()
            again = incoming.ownership.state is Ownership.COMMITTED
            try:
                await self._in_thread(incoming.take_over, request.memory_digest)
            except Exception:
                # The source takes the task back when it is told so; the same request may still
                # come once more.
                await self._in_thread(incoming.refuse)
                raise
            restored = time.monotonic_ns()
            assert incoming.execution is not None
            if incoming.post_copy is not None and self._watching is None:
                incoming.when_kept = partial(self._drill.reach, "pages-kept")
                self._watch(incoming.post_copy, self._page_channel(incoming))
            incoming.execution.thaw()
            resumed = time.monotonic_ns()
            if not again:
                self._metrics.committed(restored - began)
            self._drill.reach("in-commit")
            self._say("committed", incoming)
            status = self._status()
            status.restore_ns = restored - began
            status.resume_ns = resumed - restored
            return status

    def _watch(self, run: VirtualRun | WallRun, channel: StreamChannel) -> None:
        """The task runs, and its pages come through the stream, until the source is lost."""
        if isinstance(run, WallRun):
            channel.on_frame = run.arrived
            run.start()
        channel.on_lost = partial(self._source_lost, run)
        channel.on_back = partial(self._source_back, run)
        self._watching = asyncio.create_task(channel.watch(), name="source-watch")

    def _source_lost(self, run: VirtualRun | WallRun, lost: SourceLost) -> None:
        run.lost(lost)
        self._say_of_source("source-lost", "source-lost", str(lost))

    def _source_back(self, run: VirtualRun | WallRun) -> None:
        run.back()
        self._say_of_source("committed", "source-back", "the source is back: pages come again")

    def _say_of_source(self, state: str, event: str, message: str) -> None:
        if self._incoming is not None:
            self._say(state, self._incoming, message=message)
            # The state is soon followed by another one, and may be skipped: the event is not.
            self._telemetry.event(self._incoming.request.migration_id, event, message=message)

    async def _stop_post_copy(self) -> None:
        """Nobody waits for pages any more."""
        incoming = self._incoming
        if incoming is not None and isinstance(incoming.channel, StreamChannel):
            incoming.channel.stop("the task was ended")
        for work in (self._continuing, self._watching):
            if work is not None:
                await asyncio.wait([work], timeout=5)
                work.cancel()
        self._continuing = self._watching = None
        if incoming is not None and incoming.post_copy is not None:
            incoming.post_copy.close()

    async def Abort(
        self, request: destination_node_pb2.AbortRequest, context: _Context
    ) -> destination_node_pb2.MigrationStatus:
        """Forgets the task, unless it is this host's already: the answer says which."""
        async with answering(context):
            return await self._to_its_end(self._give_up(request))

    async def _give_up(
        self, request: destination_node_pb2.AbortRequest
    ) -> destination_node_pb2.MigrationStatus:
        async with self._committing:
            incoming = self._incoming
            if incoming is not None and incoming.request.migration_id == request.migration_id:
                before = incoming.ownership.state
                await self._in_thread(incoming.give_up)
                if incoming.ownership.state is Ownership.ABORTED is not before:
                    self._metrics.aborted()
                self._say(incoming.ownership.state.name.lower(), incoming, reason=request.reason)
                return self._status()
            if self._lost and request.migration_id == self._lost:
                return self._status_of_lost()
            return self._bare_status(request.migration_id, Ownership.NONE)

    async def GetMigration(
        self, request: destination_node_pb2.GetMigrationRequest, context: _Context
    ) -> destination_node_pb2.MigrationStatus:
        """How far a migration is; without an id, the one whose task is here."""
        async with answering(context):
            if self._lost and request.migration_id == self._lost:
                return self._status_of_lost()
            if request.migration_id or self._incoming is None:
                self._find(request.migration_id)
            return self._status()

    async def Continue(
        self, request: destination_node_pb2.ContinueRequest, context: _Context
    ) -> destination_node_pb2.ContinueReply:
        """Lets the task run on until its own time is the one asked for."""
        async with answering(context):
            incoming = self._find(request.migration_id)
            incoming.ownership.require(Ownership.COMMITTED)
            self._drill.reach("after-commit")
            execution = incoming.execution
            assert execution is not None
            # Goes on though the caller should be lost meanwhile, and is found again by the next.
            if self._continuing is None or self._continuing.done():
                self._continuing = asyncio.create_task(incoming.run_to(request.until_workload_ns))
            while not (await asyncio.wait([self._continuing], timeout=_LOOK_S))[0]:
                if incoming.channel is not None and incoming.channel.lost is not None:
                    # It goes on when the source is back; nobody must wait for that here.
                    raise incoming.channel.lost
            await self._continuing
            digests = await self._in_thread(incoming.digest)
            self._say("done", incoming)
            return destination_node_pb2.ContinueReply(
                operations=execution.workload.ops_done,
                memory_digest=digests.memory_digest,
                workload_ns=execution.workload_ns,
            )

    async def EndTask(
        self, request: destination_node_pb2.EndTaskRequest, context: _Context
    ) -> destination_node_pb2.MigrationStatus:
        """The task is over; its memory and its state directory are free again."""
        async with answering(context):
            return await self._to_its_end(self._end_task(request))

    async def _end_task(
        self, request: destination_node_pb2.EndTaskRequest
    ) -> destination_node_pb2.MigrationStatus:
        async with self._committing:
            incoming = self._find(request.migration_id)
            incoming.ownership.require(Ownership.COMMITTED)
            status = self._status()
            await self._stop_post_copy()
            if incoming.execution is not None:
                await incoming.execution.close()
            self._incoming = None
            await self._in_thread(incoming.task.release)
            if self._store is not None:
                await self._in_thread(self._store.forget)
            self._say("ended", incoming)
            return status

    async def ListCheckpoints(
        self, request: destination_node_pb2.ListCheckpointsRequest, context: _Context
    ) -> destination_node_pb2.ListCheckpointsReply:
        """What CRIU's dumps have brought."""
        async with answering(context):
            pages = self._criu_pages
            if pages is None:
                raise WrongState(
                    "this node has no page server: start it with --criu-page-server HOST:PORT"
                )
            if request.new_chain:
                pages.new_chain()
            return await asyncio.to_thread(pages.describe)

    # -- small things

    def _ownership(self) -> Ownership:
        return Ownership.NONE if self._incoming is None else self._incoming.ownership.state

    def _memory_bytes(self) -> int:
        """0 without a task, and once it was given up."""
        incoming = self._incoming
        if incoming is None or incoming.ownership.state is Ownership.ABORTED:
            return 0
        return incoming.spec.memory

    def _find(self, migration_id: str) -> IncomingTask:
        incoming = self._incoming
        if incoming is None or incoming.request.migration_id != migration_id:
            raise UnknownMigration(f"migration {migration_id!r} is not known here")
        return incoming

    def _status(self) -> destination_node_pb2.MigrationStatus:
        incoming = self._incoming
        assert incoming is not None
        return destination_node_pb2.MigrationStatus(
            migration_id=incoming.request.migration_id,
            ownership=incoming.ownership.state.value,
            sequence=incoming.sequence,
            incarnation=self._incarnation,
            store_id=self._store_id,
            recovered=incoming.recovered,
            taking_over=self._hand_overs > 0,
            post_copy=(
                incoming.came if incoming.post_copy is None else incoming.post_copy.status()
            ),
        )

    def _status_of_lost(self) -> destination_node_pb2.MigrationStatus:
        machine = OwnershipMachine(source=False)
        machine.on(Event.FIND_TAKEN)
        return self._bare_status(self._lost, machine.state)

    def _bare_status(
        self, migration_id: str, ownership: Ownership
    ) -> destination_node_pb2.MigrationStatus:
        """Of a migration of which nothing is here."""
        return destination_node_pb2.MigrationStatus(
            migration_id=migration_id,
            ownership=ownership.value,
            incarnation=self._incarnation,
            store_id=self._store_id,
        )

    @property
    def _store_id(self) -> str:
        return "" if self._store is None else self._store.store_id

    def _say(self, state: str, incoming: IncomingTask, **fields: object) -> None:
        self._telemetry.state(
            incoming.request.migration_id,
            state=state,
            owner="destination" if incoming.ownership.state is Ownership.COMMITTED else "source",
            round=incoming.round if incoming.round >= 0 else None,
            sequence=incoming.sequence,
            **fields,
        )

    async def _to_its_end(
        self, work: Coroutine[Any, Any, destination_node_pb2.MigrationStatus]
    ) -> destination_node_pb2.MigrationStatus:
        """Does a step that must not stop half-way when the caller, or the connection, goes away."""
        task = asyncio.create_task(work)
        self._steps.add(task)
        task.add_done_callback(self._step_done)
        return await asyncio.shield(task)

    def _step_done(self, task: asyncio.Task[destination_node_pb2.MigrationStatus]) -> None:
        self._steps.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for the answer gets it; nobody else has to

    async def _in_thread(self, call: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)


async def _read(context: _Context) -> bytes | None:
    """The next message; None when the peer has ended the stream."""
    message = await context.read()
    return None if message is grpc.aio.EOF else message


def _count(context: _Context, key: str) -> int:
    text = _metadata(context, key, "0")
    if not text.isdecimal() or len(text) > 18:
        raise ValueError(f"metadata {key!r} is {text[:40]!r}; it must be a count")
    return int(text)


def _metadata(context: _Context, key: str, default: str = "") -> str:
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, str) else value.decode()
    if default:
        return default
    raise ValueError(f"metadata {key!r} is missing; it says which migration the stream is for")
