"""One case of a fault: a migration with the fault in it, and a judgement that trusts no result.

* Whoever should have the task has it: the nodes are asked, beside the link, all the time and at the
  end. A destination that has taken the task over and a source that runs it are two owners.
* What the destination has taken over runs on there once its last page has come, and then all of its
  memory is read back and compared byte for byte with that of a task that never moved.
* A source that kept the task is unharmed: it runs, and the same task migrates once more, without
  the fault. Every page is compared there, and the end of its work with that of a task to which
  nothing ever happened.
* A task that is lost is lost honestly. With its source dead it stands still, and every page that
  never passed the relay is named. With its destination dead nobody runs it, whoever is asked, until
  somebody says that it shall go on from the freeze; then it is unharmed, as above.
* Nothing takes longer than `LIMIT_S`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from livemigration.channel import open_channel
from livemigration.ownership import Ownership
from livemigration.runs import from_runs
from livemigration.struct_message import struct_message
from livemigration.v1 import (
    common_pb2,
    destination_node_pb2,
    destination_node_pb2_grpc,
    source_node_pb2,
    source_node_pb2_grpc,
)
from predump.faults.injection import Injection
from predump.faults.lab import Laboratory
from predump.faults.memory import difference, memory_like, read_memory
from predump.faults.relay import Watcher
from predump.faults.spec import CaseSpec, Fault
from source_node.hosting import TaskRequest

LIMIT_S = 120.0
"""For a migration with its fault, and for each thing that is done afterwards."""

ASK_S = 5.0
LOOK_S = 0.1
RUN_ON_NS = 20_000_000

Result = source_node_pb2.MigrationResult


@dataclass(slots=True)
class Trial:
    """How a case ended. `problems` is empty if that is how it must."""

    fault: str
    at: str
    expected: str
    mode: str = "pre-copy"
    migration_id: str = ""
    outcome: str = ""
    error: str = ""
    doubt: bool = False
    wall_s: float = 0.0
    bytes_compared: int = 0
    migrations: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether it ended as it must."""
        return not self.problems


async def try_case(
    lab: Laboratory, fault: Fault, case: CaseSpec, *, any_end: bool = False
) -> Trial:
    """Runs one case and judges it; afterwards nothing of it is left at the nodes.

    `any_end`: it need not end as the case says, only well; the fault need not even strike.
    """
    trial = Trial(fault.name, case.at, case.outcome, case.mode)
    began = time.monotonic()
    attempt = _Attempt(lab, fault, case, trial, any_end)
    try:
        async with asyncio.timeout(3 * LIMIT_S):
            await attempt.run()
    except TimeoutError:
        trial.outcome = "hung"
        trial.problems.append(f"no end after {time.monotonic() - began:.0f} s")
    except grpc.aio.AioRpcError as error:
        trial.problems.append(f"a node refused what it must do: {error.details()}")
    finally:
        lab.watch(Watcher())
        await attempt.clean_up()
    trial.wall_s = time.monotonic() - began
    return trial


class _Attempt:
    """The parts of one trial."""

    def __init__(
        self, lab: Laboratory, fault: Fault, case: CaseSpec, trial: Trial, any_end: bool
    ) -> None:
        self._any_end = any_end
        self._lab = lab
        self._fault = fault
        self._case = case
        self._trial = trial
        self._injection = Injection(lab, fault, case.at)
        self._scenario = fault.scenario_of(case)
        self._id = ""

    async def run(self) -> None:
        """The migration, the judgement."""
        lab, trial, scenario = self._lab, self._trial, self._scenario
        lab.watch(self._injection)
        async with open_channel(lab.source) as channel:
            stub = source_node_pb2_grpc.SourceNodeStub(channel)
            await stub.StartTask(
                source_node_pb2.StartTaskRequest(
                    spec=struct_message(scenario.task.to_struct()), clock=scenario.migration.clock
                ),
                timeout=LIMIT_S,
            )
            looking = asyncio.create_task(self._look_for_two_owners())
            try:
                result = await self._migrate(stub)
            finally:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
            if not self._injection.struck and not self._any_end:
                trial.problems.append(f"the migration never came to the point {self._case.at}")
            if result is None:
                await self._judge_dead_source()
            else:
                await self._judge(stub, result)
        if self._any_end:
            if trial.outcome == "in doubt":
                trial.problems.append(f"the doubt does not end: {trial.error}")
            return
        if trial.outcome != self._case.outcome:
            trial.problems.append(
                f"it ended {trial.outcome or 'otherwise'}, not {self._case.outcome}: {trial.error}"
            )
        if self._case.says not in trial.error:
            trial.problems.append(f"{trial.error!r} does not say {self._case.says!r}")

    async def _migrate(self, stub: Any, *, again: bool = False) -> Result | None:
        """One migration to its end; None if the source is gone."""
        self._id = self._trial.migration_id = uuid.uuid4().hex[:12]
        spec = self._scenario.migration.to_struct()
        if again:  # a host that has just been started may be slower than a fault is to wait
            spec.pop("patience", None)
            spec["policy"].pop("lost_after", None)
        request = source_node_pb2.MigrateRequest(
            migration_id=self._id, destination=self._lab.between, spec=struct_message(spec)
        )
        self._trial.migrations += 1
        result = None
        said = "nothing"
        try:
            async with asyncio.timeout(LIMIT_S):
                async for event in stub.Migrate(request):
                    await self._injection.read_event()
                    said = f"{event.phase} {event.message}"
                    if event.HasField("result"):
                        result = event.result
        except grpc.aio.AioRpcError:
            if self._fault.spec.kind != "kill-source" or again:
                raise
        except TimeoutError:
            which = "the next migration" if again else "the migration"
            self._trial.problems.append(
                f"{which} did not end within {LIMIT_S:g} s; the last it said: {said}"
            )
            raise
        finally:
            await self._injection.over()
        return result

    # -- judging

    async def _judge(self, stub: Any, result: Result) -> None:
        trial = self._trial
        trial.error = result.error
        if result.ownership == Ownership.IN_DOUBT.value:
            result = await self._settle(stub)
        elif self._case.doubt and not self._any_end:
            trial.problems.append("the source was never in doubt")
        there = await self._destination_state()
        if result.ownership == Ownership.RELEASED.value:
            trial.outcome = "migrated"
            await self._check_migrated(result)
            if there is not Ownership.COMMITTED:
                trial.problems.append(f"the destination is {there.word}")
        elif result.ownership == Ownership.RUNNING.value:
            trial.outcome = "rolled-back"
            if there is Ownership.COMMITTED:
                trial.problems.append("two owners: the destination has taken the task over, too")
            await self._check_unharmed(stub)
        elif there is Ownership.LOST:
            await self._judge_dead_destination(stub)
        else:
            trial.outcome = "in doubt"

    async def _check_migrated(self, result: Result) -> None:
        if not result.verified:
            self._trial.problems.append(
                f"not verified: {result.mismatched_pages} pages differ: {result.error}"
            )
        if not result.continued_equal and not (result.error and self._any_end):
            # (A destination that was lost after the hand-over could not be asked.)
            self._trial.problems.append("the task did not go on as if nothing had happened")
        await self._check_task_there()

    async def _check_task_there(self) -> None:
        """The task at the destination runs on, and then has every byte that it must have."""
        trial, spec = self._trial, self._scenario.task
        request = TaskRequest(spec, spec.to_struct(), "virtual", Path())
        async with open_channel(self._lab.destination) as channel:
            stub = destination_node_pb2_grpc.DestinationNodeStub(channel)
            until = 0
            for _ in range(2):  # to rest, with all its pages, and then on
                reply = await stub.Continue(
                    destination_node_pb2.ContinueRequest(
                        migration_id=self._id, until_workload_ns=until
                    ),
                    timeout=LIMIT_S,
                )
                until = reply.workload_ns + RUN_ON_NS
            chunks = stub.ReadBack(
                destination_node_pb2.ReadBackRequest(migration_id=self._id), timeout=LIMIT_S
            )
            there = await read_memory(chunks, spec.page_size)
        expected, digest = await memory_like(request, reply.operations)
        wrong = difference(there, expected, spec.page_size)
        if wrong:
            trial.problems.append(f"after {reply.operations} operations {wrong}")
        if reply.memory_digest != digest:
            trial.problems.append("the task does not go on as if nothing had happened")
        trial.bytes_compared += spec.memory

    async def _settle(self, stub: Any) -> Result:
        """In doubt the task must stand still; then the fault is over, and the source asks.

        It stays in doubt only about a task that the destination says it lost.
        """
        trial = self._trial
        trial.doubt = True
        if not self._case.doubt and not self._any_end:
            trial.problems.append("the source is in doubt")
        task = await stub.GetTask(source_node_pb2.GetTaskRequest(), timeout=ASK_S)
        if task.running:
            trial.problems.append("the task runs at the source while it is in doubt")
        request = source_node_pb2.SettleRequest(
            migration_id=self._id, decision=source_node_pb2.SettleRequest.DECISION_ASK
        )
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                settled: Result = await stub.Settle(request, timeout=LIMIT_S)
            except grpc.aio.AioRpcError:  # the source does not reach the destination yet
                if time.monotonic() > deadline:
                    raise
            else:
                trial.error = f"{trial.error}; settled: {settled.error}"
                if settled.ownership != Ownership.IN_DOUBT.value or time.monotonic() > deadline:
                    return settled
                if await self._destination_state() is Ownership.LOST:
                    return settled
            await asyncio.sleep(LOOK_S)

    async def _check_unharmed(self, stub: Any) -> None:
        """It runs, and the same task migrates without the fault, equal to the last byte."""
        trial = self._trial
        task = await stub.GetTask(source_node_pb2.GetTaskRequest(), timeout=LIMIT_S)
        if not task.running:
            trial.problems.append("the source kept the task, but it does not run")
        if self._scenario.migration.clock == "wall":
            await asyncio.sleep(LOOK_S)
            later = await stub.GetTask(source_node_pb2.GetTaskRequest(), timeout=LIMIT_S)
            if later.operations <= task.operations:
                trial.problems.append("the task does no more work at the source")
        self._lab.watch(Watcher())
        await self._lab.ready()
        again = await self._migrate(stub, again=True)
        if again is None or again.ownership != Ownership.RELEASED.value:
            said = "" if again is None else again.error
            trial.problems.append(f"the task cannot be migrated any more: {said}")
            return
        await self._check_migrated(again)

    async def _judge_dead_destination(self, stub: Any) -> None:
        """The task as it was over there is lost; where it was frozen, somebody may let it go on."""
        trial = self._trial
        trial.outcome = "set-back"
        await self._check_refused("the destination runs a task that it says it lost")
        task = await stub.GetTask(source_node_pb2.GetTaskRequest(), timeout=ASK_S)
        if task.running:
            trial.problems.append("the source went back to the freeze by itself")
        kept = await stub.Settle(
            source_node_pb2.SettleRequest(
                migration_id=self._id, decision=source_node_pb2.SettleRequest.DECISION_KEEP
            ),
            timeout=LIMIT_S,
        )
        if kept.ownership != Ownership.RUNNING.value:
            trial.problems.append("the source does not go back to the freeze on somebody's word")
            return
        await self._check_unharmed(stub)

    async def _check_refused(self, otherwise: str) -> None:
        """The destination does not let the task go on."""
        async with open_channel(self._lab.destination) as channel:
            stub = destination_node_pb2_grpc.DestinationNodeStub(channel)
            request = destination_node_pb2.ContinueRequest(migration_id=self._id)
            try:
                await stub.Continue(request, timeout=LIMIT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._trial.problems.append("nobody is told that the task stands still")
                return
            self._trial.problems.append(otherwise)

    async def _judge_dead_source(self) -> None:
        """Without the source: the destination has the task, with every byte, or never runs it."""
        trial = self._trial
        there = await self._status()
        if there is None or there.ownership != Ownership.COMMITTED.value:
            trial.outcome = "died"
        elif there.post_copy.pages_missing:
            await self._judge_stranded(there.post_copy)
        else:
            trial.outcome = "taken"
            await self._check_task_there()

    async def _judge_stranded(self, record: common_pb2.PostCopyRecord) -> None:
        """It stands still, lacks just what never came, and says so."""
        trial, page_size = self._trial, self._scenario.task.page_size
        trial.outcome = "stranded"
        deadline = time.monotonic() + LIMIT_S
        while not record.halted:
            if time.monotonic() > deadline:
                trial.problems.append(f"{record.pages_missing} pages are missing, and it runs on")
                return
            await asyncio.sleep(LOOK_S)
            status = await self._status()
            if status is None or status.ownership != Ownership.COMMITTED.value:
                trial.problems.append("the destination has forgotten the task that it took over")
                return
            record = status.post_copy
        trial.error = record.halted
        named = {
            (part.pid, address)
            for part in record.missing
            for address in range(part.start, part.start + part.pages * page_size, page_size)
        }
        if len(named) != record.pages_missing:
            trial.problems.append(f"{record.pages_missing} pages are missing, {len(named)} named")
        pages = self._injection.pages
        if pages is None:
            trial.problems.append("pages are missing of a task that left none behind")
            return
        left_behind, passed = (
            {
                (pid, address)
                for pid, starts, counts in runs
                for address in from_runs(starts, counts, page_size).tolist()
            }
            for runs in (pages.left_behind, pages.passed)
        )
        if not left_behind - passed <= named <= left_behind:
            trial.problems.append("the pages that it names are not those that never came")
        await self._check_refused("a task without all its pages goes on")
        again = await self._status()
        if again is None or again.post_copy != record:
            trial.problems.append("a task that stands still does something")

    async def _destination_state(self) -> Ownership:
        """What the destination says of the migration, asked beside the link."""
        status = await self._status()
        return Ownership.NONE if status is None else Ownership(status.ownership)

    async def _status(self) -> destination_node_pb2.MigrationStatus | None:
        """The same with all else that it says; None if it knows nothing of it."""
        async with open_channel(self._lab.destination) as channel:
            stub = destination_node_pb2_grpc.DestinationNodeStub(channel)
            deadline = time.monotonic() + LIMIT_S
            while True:
                try:
                    return await stub.GetMigration(
                        destination_node_pb2.GetMigrationRequest(migration_id=self._id),
                        timeout=ASK_S,
                    )
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.NOT_FOUND:
                        return None
                    if time.monotonic() > deadline:
                        raise
                await asyncio.sleep(LOOK_S)

    async def _look_for_two_owners(self) -> None:
        """First the destination, then the source: who has committed stays so, so that is proof."""
        async with (
            open_channel(self._lab.destination) as there,
            open_channel(self._lab.source) as here,
        ):
            destination = destination_node_pb2_grpc.DestinationNodeStub(there)
            source = source_node_pb2_grpc.SourceNodeStub(here)
            while True:
                await asyncio.sleep(LOOK_S)
                with suppress(grpc.aio.AioRpcError):
                    asked = self._id
                    status = await destination.GetMigration(
                        destination_node_pb2.GetMigrationRequest(migration_id=asked), timeout=ASK_S
                    )
                    if status.ownership != Ownership.COMMITTED.value:
                        continue
                    task = await source.GetTask(source_node_pb2.GetTaskRequest(), timeout=ASK_S)
                    if task.migration_id == asked and task.running:
                        self._trial.problems.append("two owners: the task runs at both hosts")
                        return

    # -- afterwards

    async def clean_up(self) -> None:
        """Leaves both nodes without a task; one that cannot be freed of it is started anew."""
        lab = self._lab
        await self._injection.over()
        await lab.ready()
        if not await self._end_task():
            await lab.kill_destination()
            await lab.start_destination()
            await self._end_task()
        if not await self._stop_task():
            await lab.kill_source()
        await lab.ready()

    async def _end_task(self) -> bool:
        async with open_channel(self._lab.destination) as channel:
            stub = destination_node_pb2_grpc.DestinationNodeStub(channel)
            try:
                await stub.EndTask(
                    destination_node_pb2.EndTaskRequest(migration_id=self._id), timeout=ASK_S
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:  # it has taken none over
                    await stub.Abort(
                        destination_node_pb2.AbortRequest(migration_id=self._id), timeout=ASK_S
                    )
                    return True
                return error.code() is grpc.StatusCode.NOT_FOUND
        return True

    async def _stop_task(self) -> bool:
        async with open_channel(self._lab.source) as channel:
            stub = source_node_pb2_grpc.SourceNodeStub(channel)
            try:
                await stub.StopTask(source_node_pb2.StopTaskRequest(), timeout=ASK_S)
            except grpc.aio.AioRpcError as error:
                return "no task" in (error.details() or "")
        return True
