"""The gRPC face of the source: every call of `SourceNode`."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf import json_format

from livemigration.clock import Clock, VirtualClock, WallClock
from livemigration.drill import Drill
from livemigration.errors import BadRequest, UnknownMigration, WrongState
from livemigration.observe.metrics import SourceMetrics
from livemigration.observe.tracing import MigrationTrace, Tracing
from livemigration.ownership import Ownership
from livemigration.policy import build_policy
from livemigration.spec import MigrationSpec, TaskSpec
from livemigration.status import answering
from livemigration.telemetry import Telemetry
from livemigration.telemetry.messages import ENDED_STATES
from livemigration.v1 import common_pb2, source_node_pb2, source_node_pb2_grpc
from livemigration.warm import WarmUp
from source_node.grpc_transport import GrpcTransport, Patience
from source_node.hosting import HostedTask, TaskRequest
from source_node.migration import Migration
from source_node.outcome import NS, Outcome, Round
from source_node.warmup import warm_up

PAGE_SIZES = (4096, 16384, 65536)
CLOCKS = ("virtual", "wall")

MISMATCHES_TOLD = 200
LONGEST_NAME = 200
"""Ranges in telemetry; a result has more."""

LOOK_S = 0.25
LOOK_SHARE = 0.02
"""How often the page tables are looked at for whoever looks on, and the most time that takes."""

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class _Events:
    """Turns what a migration reports into stream events and telemetry."""

    migration_id: str
    telemetry: Telemetry
    hosted: HostedTask
    metrics: SourceMetrics
    trace: MigrationTrace
    queue: asyncio.Queue[source_node_pb2.MigrationEvent] = field(default_factory=asyncio.Queue)

    def phase(self, phase: str, at_ns: int, message: str) -> None:
        """A step begins or ends."""
        if phase not in ENDED_STATES:
            self.trace.step(message if phase == "round" else phase, at_s=at_ns / NS)
        self.queue.put_nowait(self._event(phase=phase, at_ns=at_ns, message=message))
        # A source that serves pages has the bytes, but the task is not its own any more.
        released = self.hosted.ownership.state in (Ownership.RELEASED, Ownership.SERVING)
        self.telemetry.state(
            self.migration_id,
            state=phase,
            owner="destination" if released else "source",
            ownership=self.hosted.ownership.state.name.lower(),
            message=message,
            at_s=at_ns / NS,
        )
        self.telemetry.event(self.migration_id, phase, message=message, at_s=at_ns / NS)

    def round(self, record: Round, at_ns: int) -> None:
        """A round is over."""
        self.trace.note(
            round=record.round,
            pages_sent=record.pages_sent,
            pages_soft_dirty=record.pages_soft_dirty,
            pages_lost=record.pages_lost,
            pages_spurious=record.pages_spurious,
            bytes_wire=record.bytes_wire,
            reason=record.reason,
        )
        self.metrics.round(
            sent=record.pages_sent,
            zero=record.pages_zero,
            spurious=record.pages_spurious,
            wire=record.bytes_wire,
        )
        self.queue.put_nowait(
            self._event(
                phase="round-done", at_ns=at_ns, message=record.reason, round=record.to_proto()
            )
        )
        self.telemetry.round(self.migration_id, record.to_json())
        self.telemetry.state(
            self.migration_id,
            round=record.round,
            pages_sent=record.pages_sent,
            pages_soft_dirty=record.pages_soft_dirty,
            bytes_wire=record.bytes_wire,
        )

    def handed_over(self, outcome: Outcome, at_ns: int) -> None:
        """What is known already, for the case that this host is lost before the end."""
        self.queue.put_nowait(
            self._event(phase="resume", at_ns=at_ns, message="", so_far=outcome.to_proto())
        )

    def end(self, outcome: Outcome) -> None:
        """The last event, with the result."""
        self.telemetry.state(
            self.migration_id,
            verified=outcome.verified,
            continued_equal=outcome.continued_equal if outcome.continued else None,
            downtime_s=outcome.downtime.total_ns / NS,
            downtime_parts_s=outcome.downtime.to_json(),
            total_time_s=outcome.total_ns / NS,
            pages_lost=outcome.pages_lost,
            pages_spurious=outcome.pages_spurious,
            pages_different=outcome.mismatched_pages,
            mismatches=[
                {
                    "pid": m.pid,
                    "start": f"{m.start:#x}",
                    "pages": m.pages,
                    "last_round": m.last_round if m.last_round >= 0 else None,
                }
                for m in outcome.mismatches[:MISMATCHES_TOLD]
            ],
            post_copy=_post_copy(outcome),
            error=outcome.error,
        )
        self.queue.put_nowait(
            self._event(
                phase="result", at_ns=outcome.total_ns, message="", result=outcome.to_proto()
            )
        )

    def _event(self, **fields: Any) -> source_node_pb2.MigrationEvent:
        return source_node_pb2.MigrationEvent(migration_id=self.migration_id, **fields)


def _post_copy(outcome: Outcome) -> dict[str, object] | None:
    """How the pages came that were not there when the task went on; names as in a result."""
    record = outcome.post_copy
    if record is None:
        return None
    return {
        "pages_lazy": record.pages_lazy,
        "faults": record.faults,
        "faults_remote": record.faults_remote,
        "pages_prefetched": record.pages_prefetched,
        "pages_dropped": record.pages_dropped,
        "pages_missing": record.pages_missing,
        "stalled_s": record.stalled_ns / NS,
        "longest_stall_s": record.longest_stall_ns / NS,
        "residual_s": record.residual_ns / NS,
        "bytes_wire": record.bytes_wire,
        "halted": record.halted,
    }


@dataclass(slots=True)
class _Running:
    """The migration under way, or the last one while it is in doubt."""

    migration: Migration
    transport: GrpcTransport
    events: _Events
    clock: str
    work: asyncio.Task[None] | None = None


def _timed(call: Callable[[], _T]) -> tuple[float, _T]:
    """What a call returns, and before it how many seconds of this thread's time it took."""
    began = time.thread_time()
    made = call()
    return time.thread_time() - began, made


class SourceNode(source_node_pb2_grpc.SourceNodeServicer):
    """One source host. It has at most one task, and at most one migration of it at a time."""

    def __init__(
        self,
        *,
        host_id: str,
        version: str,
        telemetry: Telemetry,
        credentials: grpc.ChannelCredentials | None,
        drill: Drill,
        metrics: SourceMetrics,
        tracing: Tracing,
        policies: tuple[str, ...] = (),
    ) -> None:
        self._host_id = host_id
        self._version = version
        self._telemetry = telemetry
        self._credentials = credentials
        self._policies = policies
        self._drill = drill
        self._metrics = metrics
        self._tracing = tracing
        self._metrics.watch(self._ownership, self._memory_bytes)
        self._incarnation = uuid.uuid4().hex
        self._hosted: HostedTask | None = None
        self._running: _Running | None = None
        self._starting = asyncio.Lock()
        self._warm = WarmUp(warm_up)

    def start(self) -> None:
        """Gets ready for the first migration, beside whatever is asked for meanwhile."""
        self._warm.start()

    async def close(self) -> None:
        """Ends a migration under way (the task stays here), then the task."""
        running = self._running
        if running is not None:
            running.migration.request_abort("the source is shutting down")
            if running.work is not None:
                await asyncio.wait([running.work], timeout=30)
            await running.transport.close()
        if self._hosted is not None:
            await self._hosted.end()

    # -- the task

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
        )

    async def StartTask(
        self, request: source_node_pb2.StartTaskRequest, context: _Context
    ) -> source_node_pb2.TaskStatus:
        """Builds a task and lets it run."""
        async with answering(context), self._starting:
            if self._hosted is not None and self._hosted.ownership.state is not Ownership.RELEASED:
                raise WrongState("this host has a task already; stop it first")
            if request.clock not in CLOCKS:
                raise BadRequest(f"clock {request.clock!r} is unknown; use virtual or wall")
            struct = json_format.MessageToDict(request.spec)
            spec = TaskSpec.from_struct(struct)
            await self._drop_task()
            self._hosted = await HostedTask.start(
                TaskRequest(spec, struct, request.clock, Path(request.base_dir))
            )
            return self._status()

    async def _drop_task(self) -> None:
        hosted, self._hosted = self._hosted, None
        if self._running is not None:
            await self._running.transport.close()
            self._running = None
        if hosted is not None:
            await hosted.end()

    async def GetTask(
        self, request: source_node_pb2.GetTaskRequest, context: _Context
    ) -> source_node_pb2.TaskStatus:
        """How the task is."""
        async with answering(context):
            self._need_task()
            return self._status()

    async def StopTask(
        self, request: source_node_pb2.StopTaskRequest, context: _Context
    ) -> source_node_pb2.TaskStatus:
        """Ends the task."""
        async with answering(context), self._starting:
            self._need_task()
            if self._migrating():
                raise WrongState("a migration is under way; abort it first")
            if self._need_task().ownership.state in (Ownership.IN_DOUBT, Ownership.SERVING):
                raise WrongState("the task is in doubt, with all its memory; settle it first")
            status = self._status()
            await self._drop_task()
            return status

    # -- the migration

    async def Migrate(
        self, request: source_node_pb2.MigrateRequest, context: _Context
    ) -> AsyncIterator[source_node_pb2.MigrationEvent]:
        """Migrates; a caller that goes away does not disturb it."""
        async with answering(context):
            await asyncio.to_thread(self._warm.wait)
            # One at a time, and of a task that nobody starts or ends meanwhile.
            async with self._starting:
                running = await self._begin(request, context.invocation_metadata())
            while True:
                event = await running.events.queue.get()
                yield event
                if event.HasField("result"):
                    return

    async def _begin(self, request: source_node_pb2.MigrateRequest, metadata: Any) -> _Running:
        hosted = self._need_task()
        if self._migrating():
            raise WrongState(f"migration {hosted.migration_id} is under way; abort it first")
        hosted.ownership.require(Ownership.RUNNING)
        spec = MigrationSpec.from_struct(json_format.MessageToDict(request.spec))
        if spec.clock != hosted.request.clock:
            raise BadRequest(
                f"the task runs on the {hosted.request.clock} clock; clock must be the same"
            )
        if not request.destination:
            raise BadRequest("destination is empty; write HOST:PORT")
        if self._running is not None:
            await self._running.transport.close()
        hosted.migration_id = request.migration_id or uuid.uuid4().hex[:12]
        hosted.execution.write_fault_ns = spec.costs.write_fault
        clock: Clock = (
            WallClock() if spec.clock == "wall" else VirtualClock(hosted.execution.advance)
        )
        policy = build_policy(spec.policy, self._policies)
        trace = self._tracing.migration(hosted.migration_id, metadata)
        events = _Events(hosted.migration_id, self._telemetry, hosted, self._metrics, trace)
        transport = GrpcTransport(
            request.destination,
            self._credentials,
            self._drill,
            Patience.of(spec.patience),
            trace=trace.metadata,
        )
        migration = Migration(
            migration_id=hosted.migration_id,
            spec=spec,
            origin=hosted.origin,
            execution=hosted.execution,
            ownership=hosted.ownership,
            transport=transport,
            policy=policy,
            clock=clock,
            observer=events,
            reference=hosted.reference,
        )
        self._running = running = _Running(migration, transport, events, spec.clock)
        self._metrics.began()
        task = hosted.request.spec
        self._telemetry.state(
            hosted.migration_id,
            state="prepare",
            owner="source",
            name=request.name[:LONGEST_NAME],
            destination=request.destination,
            memory_bytes=task.memory,
            page_size=task.page_size,
            workload=task.workload.kind,
            hunks_off=list(task.hunks.off),
            policy=spec.policy.kind,
            clock=spec.clock,
        )
        running.work = asyncio.create_task(self._run(running), name="migration")
        return running

    async def _run(self, running: _Running) -> None:
        looking = asyncio.create_task(self._look_on(running), name="looking on")
        try:
            outcome = await running.migration.run()
            await self._look(running)
        except Exception as error:  # a fault of ours: say so instead of leaving the caller waiting
            outcome = running.migration.outcome
            outcome.error = f"internal error: {type(error).__name__}: {error}"
            self._end(running, outcome)
            raise
        finally:
            looking.cancel()
        try:
            if outcome.ownership is not Ownership.IN_DOUBT:
                await running.transport.close()
        finally:
            # The last thing: who hears of it may ask for the next migration at once.
            self._end(running, outcome)

    def _end(self, running: _Running, outcome: Outcome) -> None:
        result = outcome.to_proto()
        self._metrics.ended(
            result,
            clock=running.clock,
            aborted=running.migration.abort_requested,
            streams_broken=running.transport.streams_broken,
        )
        running.events.trace.end(
            outcome.error,
            verified=outcome.verified,
            bytes_wire=result.bytes_wire,
            pages_lost=result.pages_lost,
            downtime_s=outcome.downtime.total_ns / NS,
            ownership=outcome.ownership.name.lower(),
        )
        running.events.end(outcome)

    async def _look_on(self, running: _Running) -> None:
        """Tells now and then where the pages are, if anybody may read it."""
        while True:
            took = await self._look(running)
            await asyncio.sleep(max(LOOK_S, took / LOOK_SHARE))

    async def _look(self, running: _Running) -> float:
        """Looks once; returns how many seconds of a processor that took."""
        if not self._telemetry.wants_pages:
            return 0.0
        took, pages = 0.0, None
        try:
            took, pages = await asyncio.to_thread(_timed, running.migration.look)
        except Exception:  # no migration fails because somebody looks on
            log.debug("looking on failed", exc_info=True)
        if pages is not None:
            self._telemetry.pages(running.events.migration_id, pages)
        return took

    async def ChangePolicy(
        self, request: source_node_pb2.ChangePolicyRequest, context: _Context
    ) -> source_node_pb2.TaskStatus:
        """Another policy for the migration under way, from the end of this round on."""
        async with answering(context):
            hosted, running, _ = self._need_migration(request.migration_id)
            values = json_format.MessageToDict(request.policy)
            spec = MigrationSpec.from_struct({"policy": values}).policy
            if not running.migration.change_policy(spec, build_policy(spec, self._policies)):
                raise WrongState("the final round has begun: no policy decides any more")
            self._telemetry.state(hosted.migration_id, policy=spec.kind)
            self._telemetry.event(hosted.migration_id, "policy", message=f"now {spec.kind}")
            return self._status()

    async def Abort(
        self, request: source_node_pb2.AbortMigrationRequest, context: _Context
    ) -> source_node_pb2.TaskStatus:
        """Ends the migration under way; returns when the task runs here again."""
        async with answering(context):
            hosted, running, work = self._need_migration(request.migration_id)
            if hosted.ownership.state is Ownership.SERVING:
                raise WrongState("the task runs at the destination already, and needs its pages")
            running.migration.request_abort("on request")
            await asyncio.wait([work])
            return self._status()

    async def Settle(
        self, request: source_node_pb2.SettleRequest, context: _Context
    ) -> source_node_pb2.MigrationResult:
        """Ends the doubt about a migration."""
        async with answering(context):
            hosted = self._need_task()
            running = self._running
            if running is None or request.migration_id != hosted.migration_id:
                raise UnknownMigration(f"migration {request.migration_id!r} is not known here")
            if self._migrating():
                raise WrongState("the destination is still being asked; wait for the result")
            hosted.ownership.require(Ownership.IN_DOUBT)
            kind = source_node_pb2.SettleRequest
            if request.decision == kind.DECISION_KEEP:
                running.migration.decide(keep=True)
            elif request.decision == kind.DECISION_RELEASE:
                running.migration.decide(keep=False)
            else:
                await running.migration.settle()
            outcome = running.migration.outcome
            outcome.ownership = hosted.ownership.state
            return outcome.to_proto()

    # -- small things

    def _ownership(self) -> Ownership:
        return Ownership.NONE if self._hosted is None else self._hosted.ownership.state

    def _memory_bytes(self) -> int:
        """0 without a task, and once it is the destination's."""
        hosted = self._hosted
        if hosted is None or hosted.ownership.state is Ownership.RELEASED:
            return 0
        return hosted.request.spec.memory

    def _need_task(self) -> HostedTask:
        if self._hosted is None:
            raise WrongState("this host has no task; start one first")
        return self._hosted

    def _need_migration(self, migration_id: str) -> tuple[HostedTask, _Running, asyncio.Task[None]]:
        """What is under way; `migration_id`: the one that the caller means, "" for any."""
        hosted = self._need_task()
        running = self._running
        if running is None or running.work is None or running.work.done():
            raise WrongState("no migration is under way")
        if migration_id and migration_id != hosted.migration_id:
            raise UnknownMigration(f"migration {migration_id!r} is not under way here")
        return hosted, running, running.work

    def _migrating(self) -> bool:
        running = self._running
        return running is not None and running.work is not None and not running.work.done()

    def _status(self) -> source_node_pb2.TaskStatus:
        hosted = self._hosted
        assert hosted is not None
        return source_node_pb2.TaskStatus(
            ownership=hosted.ownership.state.value,
            migration_id=hosted.migration_id,
            operations=hosted.workload.ops_done,
            memory_bytes=hosted.request.spec.memory,
            page_size=hosted.request.spec.page_size,
            processes=len(hosted.task.processes),
            workload_ns=hosted.execution.workload_ns,
            running=hosted.execution.running,
        )
