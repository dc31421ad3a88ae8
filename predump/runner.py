"""Running one scenario: nodes as needed, one migration, one result.

This is what ``predump run`` calls and what a program or a test calls:

    result = asyncio.run(run_scenario(load_scenario("scenarios/quickstart.toml")))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from livemigration.channel import open_channel, why
from livemigration.encoding.tally import encoding_name
from livemigration.spec import lazy_of
from livemigration.struct_message import struct_message
from livemigration.tls import TlsConfig, channel_credentials
from livemigration.v1 import (
    common_pb2,
    destination_node_pb2,
    destination_node_pb2_grpc,
    source_node_pb2,
    source_node_pb2_grpc,
)
from predump.exit_status import BAD_INPUT, FAILED
from predump.hosts import LocalHosts, NodeFailed
from predump.lost_source import ask_destination
from predump.result import (
    DeltaCache,
    Downtime,
    EncodingResult,
    Mismatch,
    PageMap,
    PageRange,
    PostCopy,
    ProcessPages,
    Result,
    RoundResult,
)
from predump.scenario import Scenario
from predump.versions import versions

NS = 1_000_000_000

MOST_MISMATCHES = 1000
"""Ranges listed in a result; `pages_different` counts all pages."""

Event = Mapping[str, Any]

_OWNERS = {
    common_pb2.OWNERSHIP_STATE_RELEASED: "destination",
    common_pb2.OWNERSHIP_STATE_IN_DOUBT: "in-doubt",
}

_REFUSED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
"""The migration never began; the task that was started for it would be in the next one's way."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """Two nodes that run already. `dest` is the address as the source reaches it."""

    source: str
    dest: str
    tls: TlsConfig | None = None


class RunError(Exception):
    """A run that gave no result: one line, and the exit status that fits."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


async def run_scenario(
    scenario: Scenario,
    *,
    hosts: Hosts | None = None,
    mqtt: str = "",
    drill: str = "",
    debug: bool = False,
    export_images: str = "",
    on_event: Callable[[Event], None] | None = None,
    on_hosts: Callable[[LocalHosts], None] | None = None,
) -> Result:
    """Migrates the scenario's task once.

    Without `hosts`, both nodes are started as processes and stopped afterwards; `drill` is then
    given to the destination (livemigration.drill), `debug` to both, and `on_hosts` gets the
    processes; `export_images` names a directory for the task that arrived, as CRIU images. Raises
    `RunError`.
    """
    async with AsyncExitStack() as stack:
        if hosts is None:
            try:
                local = await stack.enter_async_context(
                    LocalHosts(
                        scenario.task.memory,
                        mqtt=mqtt or scenario.telemetry.mqtt,
                        drill=drill,
                        debug=debug,
                        policies=scenario.policies,
                        export_images=export_images,
                    )
                )
            except NodeFailed as error:
                raise RunError(str(error)) from error
            except TimeoutError as error:
                raise RunError("the nodes did not start in time") from error
            if on_hosts is not None:
                on_hosts(local)
            hosts = Hosts(local.source.address, local.dest.address)
        return await _migrate(scenario, hosts, on_event or _ignore)


def _ignore(event: Event) -> None:
    pass


async def _migrate(scenario: Scenario, hosts: Hosts, on_event: Callable[[Event], None]) -> Result:
    credentials = channel_credentials(hosts.tls) if hosts.tls is not None else None
    so_far: list[source_node_pb2.MigrationResult] = []
    async with open_channel(hosts.source, credentials) as channel:
        stub: source_node_pb2_grpc.SourceNodeAsyncStub = source_node_pb2_grpc.SourceNodeStub(
            channel
        )
        try:
            on_event({"phase": "start", "message": f"{scenario.name}: the source builds the task"})
            await stub.StartTask(
                source_node_pb2.StartTaskRequest(
                    spec=struct_message(scenario.task.to_struct()), clock=scenario.migration.clock
                )
            )
            outcome = await _events(stub, scenario, hosts, on_event, so_far)
            if outcome.ownership == common_pb2.OWNERSHIP_STATE_IN_DOUBT:
                outcome = await _settle(stub, outcome)
            if outcome.ownership != common_pb2.OWNERSHIP_STATE_IN_DOUBT:
                await stub.StopTask(source_node_pb2.StopTaskRequest())
        except grpc.aio.AioRpcError as error:
            if not so_far:
                raise _run_error(hosts.source, error) from error
            on_event({"phase": "lost", "message": "the source is lost; asking the destination"})
            outcome = await ask_destination(
                hosts.dest,
                credentials,
                so_far[-1],
                lost_after_ns=lazy_of(scenario.migration.policy).lost_after_ns,
                reason=f"source {hosts.source} is lost: {why(error)}",
            )
    if outcome.ownership == common_pb2.OWNERSHIP_STATE_RELEASED:
        await _end_task(hosts, credentials, outcome.migration_id)
    return to_result(scenario, outcome)


async def _events(
    stub: source_node_pb2_grpc.SourceNodeAsyncStub,
    scenario: Scenario,
    hosts: Hosts,
    on_event: Callable[[Event], None],
    so_far: list[source_node_pb2.MigrationResult],
) -> source_node_pb2.MigrationResult:
    """The result; `so_far` gets what is known when the task goes on before its pages are there."""
    request = source_node_pb2.MigrateRequest(
        destination=hosts.dest,
        spec=struct_message(scenario.migration.to_struct()),
        name=scenario.name,
    )
    try:
        async for event in stub.Migrate(request):
            if event.HasField("result"):
                return event.result
            if event.HasField("so_far"):
                so_far.append(event.so_far)
                continue
            on_event(_plain(event))
    except grpc.aio.AioRpcError as error:
        if error.code() in _REFUSED:
            with suppress(grpc.aio.AioRpcError):  # the refusal is what the user must hear of
                await stub.StopTask(source_node_pb2.StopTaskRequest())
        raise
    raise RunError("the source ended the migration without a result")


async def _settle(
    stub: source_node_pb2_grpc.SourceNodeAsyncStub, outcome: source_node_pb2.MigrationResult
) -> source_node_pb2.MigrationResult:
    """One more question to the destination; the doubt stays if it does not answer."""
    try:
        return await stub.Settle(
            source_node_pb2.SettleRequest(
                migration_id=outcome.migration_id,
                decision=source_node_pb2.SettleRequest.DECISION_ASK,
            )
        )
    except grpc.aio.AioRpcError:
        return outcome


async def _end_task(
    hosts: Hosts, credentials: grpc.ChannelCredentials | None, migration_id: str
) -> None:
    """The run is over: the destination may forget the task. Best effort, the result stands."""
    async with open_channel(hosts.dest, credentials) as channel:
        stub: destination_node_pb2_grpc.DestinationNodeAsyncStub = (
            destination_node_pb2_grpc.DestinationNodeStub(channel)
        )
        try:
            await stub.EndTask(
                destination_node_pb2.EndTaskRequest(migration_id=migration_id), timeout=10
            )
        except grpc.aio.AioRpcError:
            return


def _run_error(address: str, error: grpc.aio.AioRpcError) -> RunError:
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        return RunError(why(error), BAD_INPUT)
    return RunError(f"source {address}: {why(error)}")


def _plain(event: source_node_pb2.MigrationEvent) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "phase": event.phase,
        "message": event.message,
        "at_ns": event.at_ns,
        "migration_id": event.migration_id,
    }
    if event.HasField("round"):
        plain["round"] = {
            field.name: value
            for field, value in event.round.ListFields()
            if field.name != "encodings"  # a result has them
        }
        plain["round"].setdefault("round", 0)
    return plain


def _page_map(there: common_pb2.PageMap) -> PageMap:
    return PageMap(
        bin_bytes=there.bin_bytes,
        processes=tuple(
            ProcessPages(
                pid=process.pid,
                start=tuple(f"{address:#x}" for address in process.start),
                pages=tuple(process.pages),
            )
            for process in there.processes
        ),
    )


def to_post_copy(record: common_pb2.PostCopyRecord) -> PostCopy:
    """How the pages of a post-copy came, as a result has it."""
    residual = record.residual_ns
    return PostCopy(
        pages_lazy=record.pages_lazy,
        working_set=record.working_set,
        faults=record.faults,
        faults_remote=record.faults_remote,
        stalled_s=record.stalled_ns / NS,
        longest_stall_s=record.longest_stall_ns / NS,
        pages_prefetched=record.pages_prefetched,
        pages_dropped=record.pages_dropped,
        pages_zero=record.pages_zero,
        bytes_wire=record.bytes_wire,
        residual_s=residual / NS,
        slowdown=min(1.0, record.stalled_ns / residual) if residual else 0.0,
        pages_missing=record.pages_missing,
        missing=tuple(
            PageRange(pid=m.pid, start=f"{m.start:#x}", pages=m.pages)
            for m in record.missing[:MOST_MISMATCHES]
        ),
        halted=record.halted or None,
    )


def to_result(scenario: Scenario, outcome: source_node_pb2.MigrationResult) -> Result:
    """The result of a run as its JSON object has it."""
    down = outcome.downtime
    return Result(
        name=scenario.name,
        migration_id=outcome.migration_id,
        clock=scenario.migration.clock,
        seed=scenario.task.seed,
        page_size=scenario.task.page_size,
        memory_bytes=scenario.task.memory,
        policy=scenario.migration.policy,
        encoding=scenario.migration.encoding,
        verified=outcome.verified,
        continued_equal=outcome.continued_equal if outcome.continued else None,
        owner=_OWNERS.get(outcome.ownership, "source"),  # type: ignore[arg-type]
        error=outcome.error or None,
        rounds=tuple(
            RoundResult(
                round=r.round,
                pages_sent=r.pages_sent,
                pages_soft_dirty=r.pages_soft_dirty,
                pages_written=r.pages_written,
                pages_zero=r.pages_zero,
                bytes_wire=r.bytes_wire,
                duration_s=r.duration_ns / NS,
                reason=r.reason,
                page_map=_page_map(r.page_map) if r.HasField("page_map") else None,
                encodings=_encodings([r]),
                encode_s=r.encode_ns / NS,
                delta_cache=_delta_cache([r]),
            )
            for r in outcome.rounds
        ),
        downtime_s=Downtime(
            total=down.total_ns / NS,
            freeze=down.freeze_ns / NS,
            scan=down.scan_ns / NS,
            dump=down.dump_ns / NS,
            transfer=down.transfer_ns / NS,
            restore=down.restore_ns / NS,
            resume=down.resume_ns / NS,
        ),
        verify_s=outcome.verify_ns / NS,
        total_time_s=outcome.total_ns / NS,
        bytes_wire=outcome.bytes_wire,
        bytes_pages=outcome.payload_bytes,
        encodings=_encodings(outcome.rounds),
        encode_s=sum(r.encode_ns for r in outcome.rounds) / NS,
        delta_cache=_delta_cache(outcome.rounds),
        pages_lost=outcome.pages_lost,
        pages_spurious=outcome.pages_spurious,
        pages_different=outcome.mismatched_pages,
        mismatches=tuple(
            Mismatch(
                pid=m.pid,
                start=f"{m.start:#x}",
                pages=m.pages,
                last_round=m.last_round if m.last_round >= 0 else None,
            )
            for m in outcome.mismatches[:MOST_MISMATCHES]
        ),
        post_copy=(to_post_copy(outcome.post_copy) if outcome.HasField("post_copy") else None),
        hunks_off=scenario.task.hunks.off,
        wall_s=outcome.wall_ns / NS,
        transfer_wall_s=outcome.transfer_wall_ns / NS,
        versions=versions(),
        scenario={"task": scenario.task.to_struct(), "migration": scenario.migration.to_struct()},
    )


def _encodings(rounds: Iterable[common_pb2.RoundRecord]) -> tuple[EncodingResult, ...]:
    pages: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    for count in (count for record in rounds for count in record.encodings):
        pages[count.encoding] += count.pages
        sizes[count.encoding] += count.bytes
    return tuple(
        EncodingResult(
            encoding=encoding_name(kind),  # type: ignore[arg-type]
            pages=pages[kind],
            bytes=sizes[kind],
        )
        for kind in sorted(pages)
    )


def _delta_cache(rounds: Sequence[common_pb2.RoundRecord]) -> DeltaCache:
    return DeltaCache(
        hits=sum(r.delta_hits for r in rounds),
        misses=sum(r.delta_misses for r in rounds),
        overflows=sum(r.delta_overflows for r in rounds),
    )
