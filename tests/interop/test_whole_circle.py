"""The whole circle: a real process, dumped, migrated as a model, written as images, and restored.

`memtouch.c` and its child are dumped by real criu on this machine. The source node takes their
memory from the dump; its workload is nothing, or a recording of the same program's stores; two real
nodes migrate the task, and the destination writes what it took over as images. Where nothing was
stored, real criu restores the processes from them, and they find all of their memory right. Where
something was, every page in the images is what the same operations make of the dump in a model
that never migrated.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from livemigration.channel import open_channel
from livemigration.criu.images import ImageDirectory, ImageProcess
from livemigration.struct_message import struct_message
from livemigration.v1 import (
    destination_node_pb2,
    destination_node_pb2_grpc,
    source_node_pb2,
    source_node_pb2_grpc,
)
from livemigration.workload.record import record
from predump.scenario import Scenario, scenario_from_mapping
from source_node.hosting import TaskRequest, build_task
from tests.e2e.node import node
from tests.interop.memtouch import PAGE, PRIVATE, Status, written_by
from tests.interop.real_criu import SUITES, RealCriu, fetched

PATIENCE_S = 60.0


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, f"not true after {PATIENCE_S:.0f} s"
        time.sleep(0.02)


def session(leader: int) -> list[int]:
    """Processes of a session, zombies among them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, _, rest = stat.read_text().partition(" ")
            if int(rest.rpartition(") ")[2].split()[3]) == leader:
                found.append(int(pid))
    return found


@dataclass(frozen=True, slots=True)
class Processes:
    """memtouch and its child on this machine, wherever criu has put them."""

    pid: int
    status: Path

    @property
    def child_status(self) -> Path:
        return self.status.with_name(f"{self.status.name}.child")

    def statuses(self) -> list[Status]:
        return [Status.read(file.read_text()) for file in (self.status, self.child_status)]

    def passes_on(self, step: int) -> None:
        """Both take ``step`` and then find all of their memory right, twice more."""
        first: list[int] = []

        def passed() -> bool:
            try:
                now = self.statuses()
            except (FileNotFoundError, ValueError):  # not there yet, or half written
                return False
            assert all(each.verdict == "PASS" for each in now), now
            if any(each.step != step for each in now):
                return False
            first.extend(each.passes for each in now[len(first) :])
            return all(each.passes > old + 1 for each, old in zip(now, first, strict=True))

        wait_until(passed)

    def take_step(self, step: int) -> None:
        os.kill(self.pid, signal.SIGUSR1)
        self.passes_on(step)

    def wait_for_end(self) -> None:
        """Until both have been reaped, their numbers are not free for another restore."""

        def gone() -> bool:
            left = session(self.pid)
            for pid in left:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            return not left

        wait_until(gone)


@dataclass(frozen=True, slots=True)
class Dump:
    """Processes that criu has dumped, and thereby ended."""

    processes: Processes
    images: Path
    step: int


@dataclass(frozen=True, slots=True)
class Nodes:
    """Two nodes; the destination writes each task that it takes over below ``images``."""

    source: str
    dest: str
    images: Path


@pytest.fixture(scope="module", autouse=True)
def adoption() -> Iterator[None]:
    """Restored processes become our children when criu ends: init may take seconds to reap them."""
    prctl, set_child_subreaper = ctypes.CDLL(None).prctl, 36
    prctl(set_child_subreaper, 1, 0, 0, 0)
    yield
    prctl(set_child_subreaper, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def dump(
    real_criu: RealCriu, memtouch_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Dump:
    folder = tmp_path_factory.mktemp("circle")
    status = folder / "status"
    started = subprocess.Popen(
        [memtouch_program, status, "child"],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
    )
    try:
        processes = Processes(started.pid, status)
        processes.passes_on(0)
        for step in (1, 2):
            processes.take_step(step)
        images = folder / "dumped"
        images.mkdir()
        real_criu.run("dump", "-t", started.pid, "-D", images)
    finally:
        started.kill()
        started.wait()
    processes.wait_for_end()
    return Dump(processes, images, 2)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("circle-nodes")
    with (
        node("dest", folder, "--export-images", folder / "{id}") as dest,
        node("source", folder) as source,
    ):
        yield Nodes(source.address, dest.address, folder)


@pytest.fixture(scope="module")
def trace(memtouch_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the program stores to: a short run of it, recorded under valgrind."""
    folder = tmp_path_factory.mktemp("trace")
    command = [str(memtouch_program), str(folder / "status"), "brief"]
    recording = record(command, folder / "memtouch.trace")
    assert recording.footer.exit_code == 0
    return folder / "memtouch.trace"


def scenario(dump: Dump, **workload: Any) -> Scenario:
    return scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "name": "circle",
            "memory": "4MiB",
            "source": {"images": str(dump.images)},
            "workload": workload,
            "policy": {"kind": "fixed", "rounds": 2},
            "link": {"bandwidth": "100Mbit/s"},
            "migration": {"run_after": "0s"},
        }
    )


def migrate(nodes: Nodes, what: Scenario) -> tuple[source_node_pb2.MigrationResult, Path]:
    """Both nodes at work: what the source says of it, and the images that the destination wrote."""
    result = asyncio.run(_migrate(nodes, what))
    assert result.verified, result.error
    assert result.continued_equal
    assert len(result.rounds) == 4
    return result, nodes.images / result.migration_id


async def _migrate(nodes: Nodes, what: Scenario) -> source_node_pb2.MigrationResult:
    async with open_channel(nodes.source) as channel, open_channel(nodes.dest) as other:
        source: Any = source_node_pb2_grpc.SourceNodeStub(channel)
        dest: Any = destination_node_pb2_grpc.DestinationNodeStub(other)
        clock = what.migration.clock
        start = source_node_pb2.StartTaskRequest(
            spec=struct_message(what.task.to_struct()), clock=clock
        )
        await source.StartTask(start)
        request = source_node_pb2.MigrateRequest(
            destination=nodes.dest, spec=struct_message(what.migration.to_struct())
        )
        results = [e.result async for e in source.Migrate(request) if e.HasField("result")]
        await source.StopTask(source_node_pb2.StopTaskRequest())
        (result,) = results
        end = destination_node_pb2.EndTaskRequest(migration_id=result.migration_id)
        await dest.EndTask(end)
    return result


@contextmanager
def restored(
    criu: RealCriu, dumped: Processes, images: Path, *, may_end_at_once: bool = False
) -> Iterator[Processes]:
    """The dumped processes at work again, while the context lasts. Their status file is kept.

    `may_end_at_once`: they may be gone before CRIU has let go of them, which CRIU takes for a
    failure.
    """
    status = dumped.status.read_bytes(), dumped.child_status.read_bytes()
    try:
        criu.run("restore", "-D", images, "-d", check=not may_end_at_once)
        yield dumped
    finally:
        with suppress(ProcessLookupError):
            os.kill(dumped.pid, signal.SIGKILL)  # the child ends with its parent
        dumped.wait_for_end()
        dumped.status.write_bytes(status[0])
        dumped.child_status.write_bytes(status[1])


def pages_of(images: ImageDirectory, process: ImageProcess) -> dict[int, bytes]:
    """Pages of a process that are not all zero, shared ones among them."""
    pages = process.pages.addresses
    found = _by_address(pages.tolist(), process.pages.read(pages).tobytes())
    for vma in process.vmas:
        if vma.is_anon_shared:
            segment = images.shared[vma.shmid].pages
            at = (segment.addresses.astype(int) + vma.start - vma.pgoff).tolist()
            content = segment.read(segment.addresses).tobytes()
            shared = _by_address(at, content)
            found |= {page: data for page, data in shared.items() if vma.start <= page < vma.end}
    return found


def _by_address(addresses: list[int], content: bytes) -> dict[int, bytes]:
    pages = {page: content[k * PAGE : (k + 1) * PAGE] for k, page in enumerate(addresses)}
    return {page: data for page, data in pages.items() if any(data)}


def changed_pages(before: dict[int, bytes], after: dict[int, bytes]) -> set[int]:
    return {page for page in before | after if before.get(page) != after.get(page)}


@pytest.fixture(scope="module")
def round_trip(dump: Dump, nodes: Nodes) -> Path:
    """The images of a task that did nothing meanwhile."""
    return migrate(nodes, scenario(dump, kind="idle"))[1]


@pytest.mark.parametrize("restoring", SUITES)
def test_process_that_went_round_runs_on(dump: Dump, round_trip: Path, restoring: str) -> None:
    """Restored by either CRIU: what one alone would not read is written so that both can."""
    before, after = ImageDirectory.open(dump.images), ImageDirectory.open(round_trip)
    for process in before.processes:
        there = pages_of(after, after.process(process.pid))
        assert not changed_pages(pages_of(before, process), there)
    with restored(fetched(restoring), dump.processes, round_trip) as processes:
        processes.passes_on(dump.step)
        processes.take_step(dump.step + 1)


def test_process_finds_one_wrong_byte(
    dump: Dump, round_trip: Path, real_criu: RealCriu, tmp_path: Path
) -> None:
    """What the test above relies on."""
    images = tmp_path / "wrong"
    shutil.copytree(round_trip, images)
    wrong = PRIVATE + 100 * PAGE
    pages = ImageDirectory.open(images).process(dump.processes.pid).pages
    (at,) = pages.position[pages.addresses == wrong]
    with pages.files[0].open("r+b") as file:
        file.seek(int(at) * PAGE + 4000)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with restored(real_criu, dump.processes, images, may_end_at_once=True) as processes:
        wait_until(lambda: f"FAIL {wrong:#x} word 500 " in processes.status.read_text())


def test_images_are_the_models_memory_after_the_recorded_stores(
    dump: Dump, nodes: Nodes, trace: Path
) -> None:
    what = scenario(dump, kind="trace", file=str(trace), speed=0.05)
    result, folder = migrate(nodes, what)
    assert result.operations > 1000
    assert [each.pages_sent > 0 for each in result.rounds] == [True] * 4
    before, after = ImageDirectory.open(dump.images), ImageDirectory.open(folder)
    request = TaskRequest(what.task, what.task.to_struct(), what.migration.clock, Path("/"))
    task, workload, _ = build_task(request)
    done = result.operations
    workload.run_until(task, workload.due_ns(done - 1) + 1, max_ops=done)
    changed: set[int] = set()
    for process, mm in zip(after.processes, task.processes.values(), strict=True):
        expected: dict[int, bytes] = {}
        for vma in mm.vmas():
            places = list(range(vma.start, vma.end, PAGE))
            expected |= _by_address(places, mm.load(vma.start, vma.end - vma.start))
        found = pages_of(after, process)
        assert {hex(page) for page in changed_pages(expected, found)} == set()
        changed |= changed_pages(pages_of(before, before.process(process.pid)), found)
    assert written_by(1) <= changed
    task.release()
