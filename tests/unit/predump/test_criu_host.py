"""The simulated host behind CRIU's RPC: what it dumps is the memory, and goes on when restored."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from livemigration.costs import CostSpec
from livemigration.criu.images import ImageDirectory
from livemigration.criu.pb import rpc_pb2
from livemigration.criu.pb.stats_pb2 import DumpStats, StatsEntry
from livemigration.criu.rpc.errors import RpcFailure
from livemigration.criu.rpc.log import RequestLog
from livemigration.criu.rpc.options import opened
from livemigration.criu.rpc.packets import Peer
from livemigration.snapshot import digest_task, own_pages
from predump.criu_host.host import HostConfig, SimulatedHost
from predump.criu_host.restore import load_images
from predump.criu_host.task import SimulatedTask
from predump.scenario import Scenario, scenario_from_mapping
from source_node.hosting import TaskRequest, build_task

WRITER = {"kind": "hotspot", "rate": "400 pages/s"}
FORKS = {"kind": "fork-cow", "rate": "400 pages/s", "fork_every": 60, "child_life": 50}
ME = Peer(os.getpid(), os.getuid(), os.getgid())


def scenario(workload: dict[str, Any], **more: Any) -> Scenario:
    tables = {"schema": "predump.scenario/1", "memory": "512KiB", "workload": workload, **more}
    return scenario_from_mapping(tables)


class Client:
    """Asks a host as the RPC's session does, without a socket."""

    def __init__(self, host: SimulatedHost, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.points: list[tuple[str, int]] = []
        self.refuses = ""

    async def reached(self, point: str, pid: int = 0) -> None:
        self.points.append((point, pid))
        if point == self.refuses:
            raise RpcFailure(f"the client reported that its script {point} failed")

    async def __call__(self, what: str, name: str, **options: Any) -> int:
        """One request with images in the folder `name`."""
        images = self.folder / name
        images.mkdir(exist_ok=True)
        asked = rpc_pb2.RpcOptions(images_dir=str(images), log_level=4, **options)
        with opened(asked, ME) as (request, journal):
            match what:
                case "pre-dump":
                    await self.host.pre_dump(request, journal)
                case "dump":
                    await self.host.dump(request, journal, self)
                case "restore":
                    return await self.host.restore(request, journal, self)
                case "page-server":
                    return (await self.host.start_page_server(request, journal)).port
        return 0


@asynccontextmanager
async def hosted(
    folder: Path, config: HostConfig | None = None
) -> AsyncIterator[tuple[SimulatedHost, Client]]:
    host = SimulatedHost(config)
    try:
        yield host, Client(host, folder)
    finally:
        await host.close()


def sleeping() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


def memory_of(task: SimulatedTask) -> dict[int, tuple[list[int], bytes]]:
    """Pages of every process by its pid in images: addresses and bytes, from its page tables."""
    found = {}
    for inside, outside in task.pids.items():
        if inside in task.task.processes:
            addresses, rows = own_pages(task.task, inside)
            found[outside] = addresses.tolist(), task.task.machine.content[rows].tobytes()
    return found


def stats_of(folder: Path) -> DumpStats:
    return StatsEntry.FromString((folder / "stats-dump").read_bytes()[12:]).dump


def dumped(folder: Path) -> dict[int, tuple[list[int], bytes]]:
    images = ImageDirectory.open(folder)
    return {
        process.pid: (
            process.pages.addresses.tolist(),
            images.read_pages(process.pid, process.pages.addresses).tobytes(),
        )
        for process in images.processes
    }


@pytest.mark.parametrize("workload", [WRITER, FORKS], ids=["writer", "forks"])
async def test_pre_dumps_and_a_dump_hold_the_memory(
    tmp_path: Path, workload: dict[str, Any]
) -> None:
    async with hosted(tmp_path) as (host, ask):
        task = await host.start(scenario(workload))
        parents = ["", "../0", "../1", "../2"]
        for number, parent in enumerate(parents[:3]):
            await ask("pre-dump", str(number), pid=task.pid, parent_img=parent, track_mem=True)
        before = task.workload.ops_done
        await ask("dump", "3", pid=task.pid, parent_img="../2", track_mem=True, leave_stopped=True)
        assert task.workload.ops_done > before > 0
        forks = len(task.task.processes) > 1
        assert forks == (workload is FORKS)
        again = load_images(tmp_path / "3", CostSpec())
        assert digest_task(again.task).memory_digest == digest_task(task.task).memory_digest
        # Only the first one sent all; what the others left out is in the chain.
        stats = [stats_of(tmp_path / str(number)) for number in range(4)]
        assert stats[0].pages_skipped_parent == 0
        assert all(0 < s.pages_written < stats[0].pages_written for s in stats[1:]) or forks
        assert all(s.pages_skipped_parent > 0 for s in stats[1:])


async def test_a_task_in_real_time(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (host, ask):
        task = await host.start(scenario(WRITER, clock="wall"))
        for number, parent in enumerate(["", "../0"]):
            await asyncio.sleep(0.2)
            await ask("pre-dump", str(number), pid=task.pid, parent_img=parent)
            assert task.execution.running
        await asyncio.sleep(0.2)
        await ask("dump", "2", pid=task.pid, parent_img="../1", track_mem=True, leave_stopped=True)
        assert task.workload.ops_done > 0
        assert dumped(tmp_path / "2") == memory_of(task)
        await host.end(task)
        restored = host.tasks[await ask("restore", "2")]
        done = restored.workload.ops_done
        await asyncio.sleep(0.3)
        assert restored.workload.ops_done > done


async def test_a_restored_task_goes_on_as_if_it_had_never_been_dumped(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (host, ask):
        task = await host.start(scenario(FORKS))
        await ask("pre-dump", "0", pid=task.pid, track_mem=True)
        await ask("dump", "1", pid=task.pid, parent_img="../0", track_mem=True)
        assert task.pid not in host.tasks
        assert await host.wait(task.pid) == 9  # killed, as CRIU does
        pid = await ask("restore", "1")
        assert pid == task.pid
        again = host.tasks[pid]
        await asyncio.to_thread(again.execution.advance, 500_000_000)
        await again.execution.freeze()
        done = again.workload.ops_done
        never, workload, _ = build_task(TaskRequest(again.spec, {}, "virtual", tmp_path))
        workload.run_until(never, workload.due_ns(done - 1) + 1, max_ops=done)
        assert digest_task(again.task).memory_digest == digest_task(never).memory_digest


async def test_points_are_told_in_crius_order(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (host, ask):
        task = await host.start(scenario(WRITER))
        task.own_net = True
        await ask("dump", "0", pid=task.pid, leave_running=True)
        assert [point for point, _ in ask.points] == [
            "pre-dump",
            "network-lock",
            "query-ext-files",
            "post-dump",
            "network-unlock",
        ]
        assert task.execution.running
        await ask("dump", "0", pid=task.pid)
        ask.points.clear()
        await ask("restore", "0")
        assert ask.points == [
            ("pre-restore", 0),
            ("setup-namespaces", task.pid),
            ("post-setup-namespaces", 0),
            ("post-restore", task.pid),
            ("network-unlock", 0),
            ("pre-resume", 0),
            ("post-resume", 0),
        ]


@pytest.mark.parametrize("point", ["pre-dump", "network-lock", "post-dump"])
async def test_a_client_that_refuses_keeps_its_task(tmp_path: Path, point: str) -> None:
    async with hosted(tmp_path) as (host, ask):
        task = await host.start(scenario(WRITER))
        task.own_net = True
        ask.refuses = point
        with pytest.raises(RpcFailure, match=point):
            await ask("dump", "0", pid=task.pid)
        assert host.tasks[task.pid].execution.running
        ask.refuses = ""
        await ask("dump", "0", pid=task.pid)
        ask.refuses = "post-restore"
        with pytest.raises(RpcFailure, match="post-restore"):
            await ask("restore", "0")
        assert host.tasks == {}


async def test_a_parent_that_is_not_the_last_dump_is_refused(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (host, ask):
        task = await host.start(scenario(WRITER))

        async def refused(name: str, parent: str) -> str:
            with pytest.raises(RpcFailure) as caught:
                await ask("pre-dump", name, pid=task.pid, parent_img=parent, track_mem=True)
            assert host.tasks[task.pid].execution.running
            return caught.value.message

        await ask("pre-dump", "0", pid=task.pid, track_mem=True)
        assert "no parent image found" in await refused("a", "../nowhere")
        await ask("pre-dump", "1", pid=task.pid, parent_img="../0", track_mem=True)
        assert "not the last dump" in await refused("b", "../0")
        assert "leads to ../0 already" in await refused("b", "../1")
        # A dump that fails half-way leaves a gap that no later one may paper over.
        server = {"address": "127.0.0.1", "port": 1}
        with pytest.raises(RpcFailure, match="no page server"):
            await ask("pre-dump", "c", pid=task.pid, parent_img="../1", ps=server)
        await ask("pre-dump", "d", pid=task.pid, parent_img="../1")  # nothing was cleared by then
        (tmp_path / "e").mkdir()
        (tmp_path / "e" / "inventory.img").mkdir()  # cannot be written
        with pytest.raises(RpcFailure, match="Is a directory"):
            await ask("pre-dump", "e", pid=task.pid, parent_img="../d")
        assert "failed half-way" in await refused("f", "../d")
        await ask("dump", "g", pid=task.pid, track_mem=True, leave_stopped=True)
        assert dumped(tmp_path / "g") == memory_of(task)


async def test_a_hole_that_the_parent_does_not_list_is_refused(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (host, ask):
        task = await host.start(scenario(WRITER))
        await ask("pre-dump", "0", pid=task.pid)
        pagemap = tmp_path / "0" / f"pagemap-{task.pid}.img"
        pagemap.write_bytes(pagemap.read_bytes()[:14])  # the head, and no pages
        with pytest.raises(RpcFailure, match="missing in parent pagemap"):
            await ask("dump", "1", pid=task.pid, parent_img="../0", track_mem=True)


async def test_auto_dedup_takes_from_the_parent_what_a_dump_has_itself(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (host, ask):
        task = await host.start(scenario(WRITER))
        await ask("pre-dump", "0", pid=task.pid)
        taken = (tmp_path / "0" / "pages-1.img").stat().st_blocks
        options = {"parent_img": "../0", "track_mem": True, "auto_dedup": True}
        await ask("dump", "1", pid=task.pid, leave_stopped=True, **options)
        left = (tmp_path / "0" / "pages-1.img").stat().st_blocks
        assert taken - left == stats_of(tmp_path / "1").pages_written * 8
        assert dumped(tmp_path / "1") == memory_of(task)


async def test_pids(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (host, ask):
        task = await host.start(scenario(WRITER), 4711)
        with pytest.raises(RpcFailure) as caught:
            await ask("dump", "0", pid=4712)
        assert caught.value.errno == errno.ESRCH
        assert "4711" in caught.value.message
        await ask("dump", "0", pid=task.pid, leave_running=True)
        with pytest.raises(RpcFailure) as caught:
            await ask("restore", "0")
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(RpcFailure) as caught:
            await host.start(scenario(WRITER), 4711)
        assert caught.value.errno == errno.EEXIST


async def test_a_page_server_receives_what_another_task_dumps(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (host, ask):
        task = await host.start(scenario(WRITER))
        for number, parent in enumerate(["", "../0"]):
            port = await ask(
                "page-server", str(number), parent_img=parent, ps={"address": "127.0.0.1"}
            )
            here = {"address": "127.0.0.1", "port": port}
            name = f"local{number}"
            local = f"../local{number - 1}" if parent else ""
            options: dict[str, Any] = {"pid": task.pid, "parent_img": local, "ps": here}
            if number == 0:
                await ask("pre-dump", name, **options)
            else:
                await ask("dump", name, track_mem=True, leave_stopped=True, **options)
        assert not list((tmp_path / "local1").glob("pages-*"))
        images = ImageDirectory.open(tmp_path / "local1", also=tmp_path / "1")
        addresses, content = memory_of(task)[task.pid]
        found = images.read_pages(task.pid, np.array(addresses, np.uint64))
        assert found.tobytes() == content


async def test_page_servers_whose_clients_never_come(tmp_path: Path) -> None:
    """They are few, keep nobody else waiting, and end with the host."""
    async with hosted(tmp_path) as (host, ask):
        ports = [await ask("page-server", str(n), ps={"address": "127.0.0.1"}) for n in range(16)]
        assert len(set(ports)) == 16
        with pytest.raises(RpcFailure) as caught:
            await ask("page-server", "16", ps={"address": "127.0.0.1"})
        assert caught.value.errno == errno.EAGAIN
        task = await host.start(scenario(WRITER))
        await ask("dump", "17", pid=task.pid)
        waited = asyncio.create_task(host.wait(next(iter(host._servers))))
        await asyncio.sleep(0)
        await asyncio.wait_for(host.close(), 60)
        assert await waited == 1 << 8


async def test_a_host_without_dirty_tracking(tmp_path: Path) -> None:
    async with hosted(tmp_path, HostConfig(mem_track=False)) as (host, ask):
        task = await host.start(scenario(WRITER))
        assert not host.features.mem_track
        for what, options in (("pre-dump", {}), ("dump", {"track_mem": True})):
            with pytest.raises(RpcFailure, match="Tracking memory is not available"):
                await ask(what, "0", pid=task.pid, **options)
        await ask("dump", "0", pid=task.pid)


async def test_a_real_process_as_the_outside_of_a_task(tmp_path: Path) -> None:
    config = HostConfig(adopt=scenario(WRITER))
    async with hosted(tmp_path, config) as (host, ask):
        with sleeping() as process:
            await ask("pre-dump", "0", pid=process.pid)
            await ask("dump", "1", pid=process.pid, parent_img="../0", track_mem=True)
            assert process.wait(20) == -9
        with sleeping() as process:
            await ask("pre-dump", "2", pid=process.pid)
            process.kill()
            assert await asyncio.wait_for(host.wait(process.pid), 20) == 9
        with pytest.raises(RpcFailure) as caught:
            await ask("dump", "3", pid=process.pid)
        assert caught.value.errno == errno.ESRCH


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "EOF while parsing"),
        ('{"schema": "other"}', "schema"),
        (None, "names other processes than pstree.img"),
    ],
)
async def test_a_damaged_state_file_is_refused(tmp_path: Path, text: str | None, why: str) -> None:
    async with hosted(tmp_path) as (host, ask):
        task = await host.start(scenario(WRITER))
        await ask("dump", "0", pid=task.pid)
        file = tmp_path / "0" / "predump.json"
        if text is None:
            text = file.read_text().replace(f'"1":{task.pid}', '"1":77')
        file.write_text(text)
        with pytest.raises(RpcFailure, match=why):
            await ask("restore", "0")
        file.unlink()
        pid = await ask("restore", "0")  # as a dump by real CRIU: there, and idle
        assert host.tasks[pid].workload.due_ns(0) == 2**62


async def test_control_starts_advances_and_ends_tasks(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(
        'schema = "predump.scenario/1"\nmemory = "256KiB"\n'
        '[workload]\nkind = "uniform"\nrate = "100 pages/s"\n'
    )
    async with hosted(tmp_path) as (host, _):
        control = rpc_pb2.RpcControl
        (task,) = await host.control(control(start=str(file), pid=7, set=["seed=4"]))
        assert (task.pid, task.memory, task.operations) == (7, 256 << 10, 0)
        (task,) = await host.control(control(pid=7, advance_ns=10**9))
        assert task.operations == 100
        with pytest.raises(RpcFailure, match="there is no simulated task 8"):
            await host.control(control(pid=8, end=True))
        with pytest.raises(RpcFailure, match="memori"):
            await host.control(control(start=str(file), set=["memori=4"]))
        assert await host.control(control(pid=7, end=True)) == []


def test_a_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livemigration.criu.rpc.log.MOST_BYTES", 200)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        journal = RequestLog.create(folder, "l", 4)
        for _ in range(100):
            journal.info("again and again")
        journal.close()
    finally:
        os.close(folder)
    assert (tmp_path / "l").stat().st_size < 300
