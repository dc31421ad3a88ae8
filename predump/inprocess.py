"""Source and destination in one process: the same migration without gRPC between them.

Frames are encoded, decoded, checked and applied exactly as between processes; only the network is
missing. On the virtual clock rounds, page sets and times are the same as through gRPC (a test holds
that), which makes this the way to run many migrations.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from dest_node.incoming import IncomingTask, Request
from livemigration import batch
from livemigration.clock import VirtualClock
from livemigration.errors import BadRequest, SourceLost
from livemigration.policy import build_policy
from livemigration.transport import PageSource, Transport
from livemigration.v1 import common_pb2, destination_node_pb2
from livemigration.verification import Comparison
from predump.result import Result
from predump.runner import to_result
from predump.scenario import Scenario
from source_node.hosting import HostedTask, TaskRequest
from source_node.migration import Migration, Observer
from source_node.outcome import Outcome, Round


class DirectChannel:
    """The source of a post-copy in this process (`dest_node.page_channel.PageChannel`)."""

    def __init__(self, server: PageSource, page_size: int) -> None:
        self._server = server
        self._page_size = page_size
        self._loop = asyncio.get_running_loop()
        self._frames: deque[bytes] = deque()
        self.ended: asyncio.Future[common_pb2.PostCopyRecord] = self._loop.create_future()

    def ask(self, request: destination_node_pb2.PageRequest) -> None:
        """Answers at once."""
        self._frames.append(self._server.serve(request))

    def tell(self, pages: destination_node_pb2.MemoryChunk) -> None:
        """Compares at once."""
        self._server.compare(pages)

    @property
    def held(self) -> int:
        """There is but one."""
        return 1

    @property
    def lost(self) -> SourceLost | None:
        """It never is."""
        return None

    def wait_for_source(self) -> None:
        """It is here."""

    def take(self) -> tuple[batch.Frame, int]:
        """What was answered first."""
        message = self._frames.popleft()
        frame = batch.decode(message)
        batch.check(frame, self._page_size)
        return frame, len(message)

    def poll(self) -> tuple[batch.Frame, int] | None:
        """The same, if there is anything."""
        return self.take() if self._frames else None

    def over(self, record: common_pb2.PostCopyRecord) -> None:
        """Tells the source."""
        self._loop.call_soon_threadsafe(self.ended.set_result, record)


class InProcessTransport(Transport):
    """A destination in this process."""

    def __init__(self) -> None:
        self.incoming: IncomingTask | None = None
        self._pages: DirectChannel | None = None

    @property
    def _there(self) -> IncomingTask:
        assert self.incoming is not None
        return self.incoming

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
        """Makes room."""
        self.incoming = IncomingTask.prepare(
            Request(migration_id, task, base_dir, clock, extra_pages), None
        )

    async def send(self, sequence: int, frame: bytes) -> None:
        """Applies the frame at once."""
        self._there.apply(frame)

    async def flush(self) -> None:
        """Everything is applied already."""

    async def verify(
        self, chunks: AsyncIterator[destination_node_pb2.VerifyChunk]
    ) -> destination_node_pb2.VerifyReply:
        """Compares with the destination's own digests, made while the source makes its own."""
        comparison = Comparison(self._there.spec.page_size)
        own = asyncio.ensure_future(asyncio.to_thread(self._there.digest))
        try:
            async for chunk in chunks:
                if chunk.digests or chunk.memory_digest:
                    comparison.add(chunk)
        finally:
            await asyncio.wait([own])  # it holds the lock and the model: let it end first
        reply = comparison.compare(own.result())
        self._there.verified(equal=reply.equal, lazy=comparison.lazy)
        return reply

    async def read_back(self) -> AsyncIterator[destination_node_pb2.MemoryChunk]:
        """The destination's memory."""
        for chunk in self._there.memory():
            yield chunk

    async def open_pages(
        self,
        server: PageSource,
        pace: Callable[[int], Awaitable[None]],
        patience_ns: int,
    ) -> None:
        """Requests are calls."""
        self._pages = DirectChannel(server, self._there.spec.page_size)
        self._there.channel = self._pages

    async def pages_over(self) -> common_pb2.PostCopyRecord:
        """How they came."""
        assert self._pages is not None
        return await asyncio.shield(self._pages.ended)

    async def commit(self, memory_digest: str) -> destination_node_pb2.MigrationStatus:
        """Hands the task over."""
        self._there.take_over(memory_digest)
        return destination_node_pb2.MigrationStatus(ownership=self._there.ownership.state.value)

    async def abort(self, reason: str) -> None:
        """Forgets the task."""
        if self.incoming is not None:
            self.incoming.give_up()

    async def settle(self) -> common_pb2.OwnershipState.ValueType:
        """Nothing is ever in doubt here."""
        return self._there.ownership.state.value

    async def continue_to(self, workload_ns: int) -> destination_node_pb2.ContinueReply:
        """Runs the task on."""
        execution = self._there.execution
        assert execution is not None
        await self._there.run_to(workload_ns)
        return destination_node_pb2.ContinueReply(
            operations=execution.workload.ops_done,
            memory_digest=self._there.digest().memory_digest,
            workload_ns=execution.workload_ns,
        )

    async def close(self) -> None:
        """Nothing to close."""

    async def end(self) -> None:
        """Ends the destination's task and frees its memory at once."""
        if self.incoming is None:
            return
        if self.incoming.execution is not None:
            await self.incoming.execution.close()
        self.incoming.task.release()


class _Silent:
    def phase(self, phase: str, at_ns: int, message: str) -> None: ...

    def round(self, record: Round, at_ns: int) -> None: ...

    def handed_over(self, outcome: Outcome, at_ns: int) -> None: ...


async def migrate_in_process(
    scenario: Scenario,
    *,
    transport: InProcessTransport | None = None,
    migration_id: str = "local",
    observer: Observer | None = None,
) -> Result:
    """Migrates a scenario's task within this process; virtual clock only (`BadRequest`).

    With a `transport` of the caller's the task lives on at its destination. `observer` hears of
    every step.
    """
    if scenario.migration.clock != "virtual":
        raise BadRequest('a migration within one process needs clock = "virtual"')
    there = transport if transport is not None else InProcessTransport()
    hosted = await HostedTask.start(
        TaskRequest(scenario.task, scenario.task.to_struct(), "virtual", Path())
    )
    hosted.execution.write_fault_ns = scenario.migration.costs.write_fault
    migration = Migration(
        migration_id=migration_id,
        spec=scenario.migration,
        origin=hosted.origin,
        execution=hosted.execution,
        ownership=hosted.ownership,
        transport=there,
        policy=build_policy(scenario.migration.policy, scenario.policies),
        clock=VirtualClock(hosted.execution.advance),
        observer=observer or _Silent(),
        reference=hosted.reference,
    )
    try:
        outcome = await migration.run()
    finally:
        await hosted.end()
        if transport is None:
            await there.end()
    return to_result(scenario, outcome.to_proto())
