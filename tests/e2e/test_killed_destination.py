"""kill -9 of the destination at every phase: one host owns the task afterwards, nothing is lost.

The destination is a real process that sends itself SIGKILL at an exact point (livemigration.drill);
a supervisor starts it again with its state directory, as predump.hosts does for every run.
"""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from livemigration.channel import open_channel
from livemigration.v1 import common_pb2, source_node_pb2, source_node_pb2_grpc
from predump.hosts import LocalHosts, NodeProcess
from predump.overrides import parse_override
from predump.result import Result
from predump.runner import run_scenario
from predump.scenario import Scenario, load_scenario

SCENARIO = Path(__file__).resolve().parents[2] / "scenarios/quickstart.toml"
SMALL = (
    "memory=16MiB",
    "link.bandwidth=100Mbit/s",
    "workload.rate='5000 pages/s'",
    "policy.kind=fixed",
    "policy.rounds=2",
    # A supervisor starts it again: on a busy machine that may take long.
    "patience.answer=120s",
    "patience.reconnect=60s",
    "patience.settle=60s",
)

BEFORE_COMMIT = ("round-0", "round-1", "final", "verify", "before-commit")
AFTER_COMMIT = ("in-commit", "after-commit")


def _scenario(*sets: str) -> Scenario:
    return load_scenario(SCENARIO, [parse_override(s) for s in (*SMALL, *sets)])


def _run(**options: Any) -> tuple[Result, list[LocalHosts]]:
    hosts: list[LocalHosts] = []
    result = asyncio.run(run_scenario(_scenario(), on_hosts=hosts.append, **options))
    return result, hosts


def _died(node: NodeProcess) -> bool:
    """It was started again, or the run was over before its supervisor came to that."""
    assert node.process is not None
    return node.starts == 2 or node.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("phase", BEFORE_COMMIT)
def test_before_commit_the_source_keeps_the_task_and_resumes_it(phase: str) -> None:
    result, hosts = _run(drill=f"kill@{phase}")
    assert _died(hosts[0].dest), f"the destination was not killed: {result.error}"
    assert result.owner == "source"
    assert result.exit_code == 1
    assert result.error is not None
    assert "resumed it" in result.error
    assert result.continued_equal is None


@pytest.mark.parametrize("phase", AFTER_COMMIT)
def test_after_commit_the_destination_has_the_task_with_every_byte(phase: str) -> None:
    result, hosts = _run(drill=f"kill@{phase}")
    assert _died(hosts[0].dest), f"the destination was not killed: {result.error}"
    assert result.owner == "destination"
    assert result.verified
    # Started again it goes on from the commit, and ends like a task that never moved or died.
    assert result.continued_equal is True
    assert result.pages_lost == 0


async def _until_owner_is_known(phase: str) -> tuple[Any, Any]:
    """A destination that dies and does not come back: (result, the source's task status)."""
    async with (
        LocalHosts(
            _scenario().task.memory, drill=f"kill@{phase}", restart_destination=False
        ) as hosts,
        open_channel(hosts.source.address) as channel,
    ):
        stub = source_node_pb2_grpc.SourceNodeStub(channel)
        spec, migration = source_node_pb2.StartTaskRequest(clock="virtual"), None
        scenario = _scenario("patience.reconnect=500ms", "patience.settle=1s")
        spec.spec.update(scenario.task.to_struct())
        await stub.StartTask(spec)
        request = source_node_pb2.MigrateRequest(destination=hosts.dest.address)
        request.spec.update(scenario.migration.to_struct())
        async for event in stub.Migrate(request):
            if event.HasField("result"):
                migration = event.result
        task = await stub.GetTask(source_node_pb2.GetTaskRequest())
        if phase == "before-commit":
            assert not task.running
            with pytest.raises(grpc.aio.AioRpcError, match="in doubt, with all its memory"):
                await stub.StopTask(source_node_pb2.StopTaskRequest())
            # The operator knows that the other host will never run it.
            kept = await stub.Settle(
                source_node_pb2.SettleRequest(
                    migration_id=migration.migration_id,
                    decision=source_node_pb2.SettleRequest.DECISION_KEEP,
                )
            )
            assert kept.ownership == common_pb2.OWNERSHIP_STATE_RUNNING
            task = await stub.GetTask(source_node_pb2.GetTaskRequest())
        return migration, task


@pytest.mark.parametrize("phase", ["round-0", "final"])
def test_a_destination_that_never_comes_back_leaves_the_task_at_the_source(phase: str) -> None:
    result, task = asyncio.run(_until_owner_is_known(phase))
    assert result.ownership == common_pb2.OWNERSHIP_STATE_RUNNING
    assert task.running
    assert "resumed it" in result.error


def test_silence_after_the_hand_over_leaves_the_task_standing_until_somebody_decides() -> None:
    result, task = asyncio.run(_until_owner_is_known("before-commit"))
    assert result.ownership == common_pb2.OWNERSHIP_STATE_IN_DOUBT
    assert "in doubt" in result.error
    assert task.running  # after the operator's word


async def _migrate_again_after(phase: str) -> list[Any]:
    """The same task once more, to the destination as it came back."""
    results = []
    async with (
        LocalHosts(_scenario().task.memory, drill=f"kill@{phase}") as hosts,
        open_channel(hosts.source.address) as channel,
    ):
        stub = source_node_pb2_grpc.SourceNodeStub(channel)
        start = source_node_pb2.StartTaskRequest(clock="virtual")
        start.spec.update(_scenario().task.to_struct())
        await stub.StartTask(start)
        for _ in range(2):
            request = source_node_pb2.MigrateRequest(destination=hosts.dest.address)
            request.spec.update(_scenario().migration.to_struct())
            results += [e.result async for e in stub.Migrate(request) if e.HasField("result")]
    return results


@pytest.mark.parametrize("phase", ["round-1", "final"])
def test_after_a_failed_migration_the_next_one_sends_everything_again_and_is_equal(
    phase: str,
) -> None:
    """Dirty bits that the failed attempt took must not be missed by the next (propolis#387)."""
    failed, good = asyncio.run(_migrate_again_after(phase))
    assert failed.error
    assert good.verified
    assert good.continued_equal
    assert good.pages_lost == 0


async def _kill_from_outside() -> Result:
    """A real kill -9 by another process, at whatever point it hits in the first rounds."""
    seen: list[LocalHosts] = []

    def strike(event: Any) -> None:
        if event["phase"] == "round-done" and event["round"]["round"] == 0:
            process = seen[0].dest.process
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)

    return await run_scenario(_scenario(), on_hosts=seen.append, on_event=strike)


def test_a_kill_from_outside_between_two_rounds() -> None:
    result = asyncio.run(_kill_from_outside())
    assert result.owner == "source"
    assert result.exit_code == 1
    assert result.error is not None
    assert "started anew" in result.error


async def _nothing_left() -> list[Path]:
    hosts = LocalHosts(_scenario().task.memory)
    async with hosts:
        folders = [hosts.state_dir, hosts.folder]
        assert all(f.is_dir() for f in folders)
        processes = [hosts.source.process, hosts.dest.process]
    assert all(p is not None and p.returncode is not None for p in processes)
    return [f for f in folders if f.exists()]


def test_a_run_leaves_no_process_and_no_file_behind() -> None:
    assert asyncio.run(_nothing_left()) == []
