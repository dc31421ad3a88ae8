"""The pytest plugin, as the tests of another project use it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import socket
import subprocess
import tomllib
from pathlib import Path

import grpc
import pytest

from livemigration.v1 import (
    common_pb2,
    destination_node_pb2_grpc,
    source_node_pb2,
    source_node_pb2_grpc,
)
from predump.scenario import scenario_from_mapping
from predump.testing.broker import Broker
from predump.testing.criu import CriuHost
from predump.testing.network import Faults, faulty_network
from predump.testing.nodes import Node, NodeError, running_node
from predump.testing.pair import SMALL, Pair

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]


def test_pytest_finds_the_plugin_where_predump_is_installed() -> None:
    (found,) = importlib.metadata.entry_points(group="pytest11", name="predump")
    assert found.value == "predump.testing.plugin"


def test_two_hosts_migrate(predump_pair: Pair) -> None:
    result = predump_pair.migrate()
    assert result.exit_code == 0
    assert result.owner == "destination"
    assert [r.round for r in result.rounds] == [0, 1, 2, 3]


async def test_also_where_an_event_loop_runs(predump_pair: Pair) -> None:
    await asyncio.sleep(0)
    result = predump_pair.migrate(memory="2MiB", policy__rounds=1)
    assert result.memory_bytes == 2 << 20
    assert len(result.rounds) == 3


@pytest.mark.predump_hunks_off("ptep_set_access_flags")
def test_a_hunk_off_loses_pages_and_says_so(predump_pair: Pair) -> None:
    result = predump_pair.migrate(cpu__dbm=False)
    assert result.hunks_off == ("ptep_set_access_flags",)
    assert result.pages_lost > 0
    assert result.pages_different == result.pages_lost
    assert result.owner == "source"


@pytest.mark.predump_network(cut_after=1 << 20, cuts=2)
def test_a_network_that_breaks_twice_delays_and_loses_nothing(predump_pair: Pair) -> None:
    result = predump_pair.migrate()
    assert result.exit_code == 0
    assert predump_pair.network is not None
    assert predump_pair.network.cuts == 2
    assert predump_pair.network.bytes_passed > 4 << 20


def test_a_dead_host_is_told_and_the_next_test_has_a_new_one(
    predump_pair: Pair, request: pytest.FixtureRequest
) -> None:
    predump_pair.destination.kill()
    result = predump_pair.migrate()
    assert result.owner == "source"
    assert result.exit_code == 1
    lasting = request.getfixturevalue("_predump_lasting_pair")
    assert lasting.pair(request).migrate().exit_code == 0


async def test_a_task_left_behind_is_not_the_next_tests(
    predump_pair: Pair, request: pytest.FixtureRequest
) -> None:
    assert predump_pair.is_idle()
    async with grpc.aio.insecure_channel(predump_pair.source.address) as channel:
        stub = source_node_pb2_grpc.SourceNodeStub(channel)
        spec = scenario_from_mapping(tomllib.loads(SMALL))
        start = source_node_pb2.StartTaskRequest(clock="virtual")
        start.spec.update(spec.task.to_struct())
        await stub.StartTask(start)
        assert not predump_pair.is_idle()
        migrate = source_node_pb2.MigrateRequest(destination=predump_pair.destination_address)
        migrate.spec.update(spec.migration.to_struct())
        results = [e.result async for e in stub.Migrate(migrate) if e.HasField("result")]
        await stub.StopTask(source_node_pb2.StopTaskRequest())
    assert results[0].verified
    assert not predump_pair.is_idle()  # the destination has it
    lasting = request.getfixturevalue("_predump_lasting_pair")
    assert lasting.pair(request).is_idle()


async def test_single_hosts_answer_at_their_addresses(
    predump_source: Node, predump_destination: Node
) -> None:
    async with (
        grpc.aio.insecure_channel(predump_source.address) as source,
        grpc.aio.insecure_channel(predump_destination.address) as dest,
    ):
        here = await source_node_pb2_grpc.SourceNodeStub(source).Describe(
            common_pb2.DescribeRequest()
        )
        there = await destination_node_pb2_grpc.DestinationNodeStub(dest).Describe(
            common_pb2.DescribeRequest()
        )
    assert here.pid == predump_source.process.pid
    assert there.pid == predump_destination.process.pid


def test_a_tool_that_runs_criu_finds_ours(predump_criu: CriuHost, tmp_path: Path) -> None:
    """What a test starts by name, three pre-dumps deep: each holds what was written since."""
    for number in (1, 2, 3):
        images = tmp_path / str(number)
        images.mkdir()
        parent = ["--prev-images-dir", f"../{number - 1}"] if number > 1 else []
        command = ["criu", "pre-dump", "--track-mem", "-t", str(predump_criu.pid), "-D", images]
        subprocess.run([*command, *parent], check=True)
        predump_criu.advance("100ms")
    sizes = [
        sum(file.stat().st_size for file in (tmp_path / str(number)).glob("pages-*.img"))
        for number in (1, 2, 3)
    ]
    assert sizes[0] == 4 << 20
    assert 0 < sizes[1] < sizes[0]
    assert 0 < sizes[2] < sizes[0]
    (task,) = predump_criu.tasks()
    assert task["running"]


@pytest.mark.predump_tasks(ROOT / "scenarios" / "quickstart.toml", ROOT / "scenarios" / "idle.toml")
def test_a_client_of_the_rpc_finds_the_tasks_that_it_asked_for(predump_criu_rpc: CriuHost) -> None:
    assert [task["name"] for task in predump_criu_rpc.tasks()] == ["quickstart", "idle"]
    assert predump_criu_rpc.pids == (1000, 1001)


def test_a_broker_listens(predump_broker: Broker) -> None:
    assert predump_broker.url == f"mqtt://127.0.0.1:{predump_broker.port}"
    with socket.create_connection(("127.0.0.1", predump_broker.port), timeout=5):
        pass


def test_a_node_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(NodeError, match="No such option: --colour"),
        running_node("source", tmp_path, "--colour"),
    ):
        pass


def test_a_slow_network_takes_its_time_and_a_silent_one_carries_nothing() -> None:
    async def carried(faults: Faults, data: bytes) -> tuple[bytes, float]:
        got, ended = bytearray(), asyncio.Event()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while piece := await reader.read(65536):
                    got.extend(piece)
            writer.close()
            ended.set()

        server = await asyncio.start_server(take, "127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        with faulty_network(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", faults) as network:
            host, _, port = network.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            begun = loop.time()
            writer.write(data)
            writer.write_eof()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(), 2)
            took = loop.time() - begun
            writer.close()
        await ended.wait()
        server.close()
        return bytes(got), took

    data = bytes(range(256)) * 512
    got, took = asyncio.run(carried(Faults(bytes_per_s=len(data) / 0.3), data))
    assert got == data
    assert took >= 0.3
    got, _ = asyncio.run(carried(Faults(cut_after=1, silent=True), data))
    assert got == b""


def test_markers_that_mean_nothing_are_refused(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.predump_network(cut=3)
        def test_it(predump_pair):
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["*predump_network: *unexpected keyword argument 'cut'*"])
    assert result.ret != 0
