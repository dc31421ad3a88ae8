"""A host, or the connection, is lost while pages of a running task are on their way."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from livemigration.channel import open_channel
from livemigration.v1 import (
    common_pb2,
    destination_node_pb2,
    destination_node_pb2_grpc,
    source_node_pb2,
    source_node_pb2_grpc,
)
from predump.hosts import LocalHosts
from predump.inprocess import migrate_in_process
from predump.result import Result
from predump.runner import Hosts, run_scenario
from predump.scenario import Scenario, scenario_from_mapping
from predump.testing.network import Faults, Network, between
from tests.e2e.node import node, predump

PAGE = 4096
MIB = 1 << 20
TABLES: dict[str, Any] = {
    "schema": "predump.scenario/1",
    "memory": "8MiB",
    "workload": {"kind": "uniform", "rate": "20000 pages/s", "write_size": 64},
    "policy": {"kind": "post-copy", "prefetch": "around-faults"},
    "migration": {"run_after": "50ms"},
}


def scenario(**tables: Any) -> Scenario:
    return scenario_from_mapping({**TABLES, **tables})


async def cut(made: Scenario, cut_after: int, cuts: int) -> tuple[Result, Network]:
    async with (
        LocalHosts(made.task.memory) as hosts,
        between(hosts.dest.address, Faults(cut_after, cuts)) as network,
    ):
        through = Hosts(hosts.source.address, network.address)
        return await run_scenario(made, hosts=through), network


@pytest.mark.parametrize("clock", ["virtual", "wall"])
def test_a_page_stream_that_breaks_is_resumed_and_no_page_is_lost_or_doubled(clock: str) -> None:
    result, network = asyncio.run(cut(scenario(clock=clock), 2 * MIB + 12345, 3))
    assert network.cuts == 3
    assert result.exit_code == 0, result.error
    assert result.continued_equal is True
    came = result.post_copy
    assert came is not None
    assert came.faults_remote + came.pages_prefetched == came.pages_lazy == 8 * MIB // PAGE
    if clock == "virtual":  # what the task saw of the breaks is nothing
        assert came == asyncio.run(migrate_in_process(scenario())).post_copy


def check_stranded(result: Result) -> None:
    """The task stands still at one of the pages that are missing, and the result names them."""
    assert result.exit_code == 1
    assert result.owner == "destination"
    assert not result.verified
    assert result.continued_equal is None
    # What was known before the loss is still told.
    assert result.downtime_s.total > 0
    assert [r.pages_sent for r in result.rounds] == [0]
    left = result.post_copy
    assert left is not None
    assert 0 < left.pages_missing < left.pages_lazy
    assert sum(part.pages for part in left.missing) == left.pages_missing
    assert left.halted is not None
    assert left.halted in (result.error or "")
    at = int(left.halted.partition("needs page ")[2].partition(" ")[0], 16)
    spans = [(int(part.start, 16), part.pages) for part in left.missing]
    assert any(start <= at < start + pages * PAGE for start, pages in spans)


def test_a_lost_source_stops_the_task_at_the_page_that_is_missing() -> None:
    made = scenario(clock="wall", policy={"kind": "post-copy", "lost_after": "3s"})
    check_stranded(asyncio.run(run_scenario(made, drill="kill@serving")))


def test_the_command_says_which_pages_are_missing_and_fails(tmp_path: Path) -> None:
    file = tmp_path / "post.toml"
    file.write_text(
        'schema = "predump.scenario/1"\nmemory = "8MiB"\n'
        '[workload]\nkind = "uniform"\nrate = "20000 pages/s"\n'
        '[policy]\nkind = "post-copy"\nlost_after = "3s"\n'
    )
    with (
        node("dest", tmp_path) as dest,
        node("source", tmp_path, "--drill", "kill@serving", dies=True) as source,
    ):
        ended = predump(
            "migrate", "--source", source.address, "--dest", dest.address, "--scenario", file,
            "--json", tmp_path / "result.json",
        )  # fmt: skip
    assert ended.status == 1
    assert "Pages that never came" in ended.out
    assert "the destination has the task" in ended.out
    check_stranded(Result.from_json((tmp_path / "result.json").read_text()))


async def migrate(stub: Any, made: Scenario, destination: str) -> Any:
    """The migration's result, without anybody settling it."""
    start = source_node_pb2.StartTaskRequest(clock="virtual")
    start.spec.update(made.task.to_struct())
    await stub.StartTask(start)
    request = source_node_pb2.MigrateRequest(destination=destination)
    request.spec.update(made.migration.to_struct())
    (result,) = [e.result async for e in stub.Migrate(request) if e.HasField("result")]
    return result


async def lose_destination(phase: str) -> list[Any]:
    """The migration's result, and what settling says when asked and on an operator's word."""
    made = scenario()
    kind = source_node_pb2.SettleRequest
    async with (
        LocalHosts(made.task.memory, drill=f"kill@{phase}") as hosts,
        open_channel(hosts.source.address) as channel,
    ):
        stub = source_node_pb2_grpc.SourceNodeStub(channel)
        results: list[Any] = [await migrate(stub, made, hosts.dest.address)]
        settle = kind(migration_id=results[0].migration_id, decision=kind.DECISION_ASK)
        results.append(await stub.Settle(settle))
        task = await stub.GetTask(source_node_pb2.GetTaskRequest())
        assert not task.running
        for decision in ("keep", "ask"):
            command = ("settle", decision, "--source", hosts.source.address)
            results.append(await asyncio.to_thread(predump, *command))
        task = await stub.GetTask(source_node_pb2.GetTaskRequest())
        assert task.running
        return results


async def pull_the_cable(made: Scenario) -> tuple[Any, Any]:
    """(the migration's result at the source, how it is at the destination)."""
    async with (
        LocalHosts(made.task.memory) as hosts,
        between(hosts.dest.address, Faults(2 * MIB, silent=True)) as network,
        open_channel(hosts.source.address) as channel,
        open_channel(hosts.dest.address) as beside,
    ):
        stub = source_node_pb2_grpc.SourceNodeStub(channel)
        result = await migrate(stub, made, network.address)
        assert network.cuts == 1
        there: Any = destination_node_pb2_grpc.DestinationNodeStub(beside)
        status = await there.GetMigration(
            destination_node_pb2.GetMigrationRequest(migration_id=result.migration_id)
        )
        return result, status.post_copy


def test_hosts_that_are_cut_off_from_each_other_both_find_out() -> None:
    """Nothing ends the connection: each of them waits for an answer that does not come."""
    made = scenario(policy={"kind": "post-copy", "lost_after": "2s"})
    here, there = asyncio.run(pull_the_cable(made))
    assert here.ownership == common_pb2.OWNERSHIP_STATE_IN_DOUBT
    assert "as it was at the freeze" in here.error
    assert "did not answer" in there.halted
    assert 0 < there.pages_missing < there.pages_lazy


@pytest.mark.parametrize("phase", ["pages", "in-commit"])
def test_a_destination_that_dies_without_all_pages_leaves_the_decision_to_somebody(
    phase: str,
) -> None:
    """It is started again with its state directory, and knows only that it had the task."""
    lost, asked, kept, again = asyncio.run(lose_destination(phase))
    assert lost.ownership == common_pb2.OWNERSHIP_STATE_IN_DOUBT
    assert not lost.verified
    assert "as it was at the freeze" in lost.error
    # Asking again does not make the source run what others may have seen run further.
    assert asked.ownership == common_pb2.OWNERSHIP_STATE_IN_DOUBT
    assert kept.status == 0
    assert kept.out.startswith("the source runs the task: ")
    assert "the source resumed it" in kept.out
    assert again.status == 1
    assert "the task is running, there is no doubt" in again.err


def test_a_task_that_has_all_its_pages_outlives_its_destinations_process() -> None:
    """The source hears from the next process that they are all there."""
    result = asyncio.run(run_scenario(scenario(), drill="kill@pages-kept"))
    assert result.exit_code == 0, result.error
    assert result.continued_equal is True
    assert result.owner == "destination"
    assert result.post_copy == asyncio.run(migrate_in_process(scenario())).post_copy
