"""Real clients of CRIU's RPC and command line, against simulated tasks.

libcriu and pycriu of each CRIU that can be had; the command lines of LXC; and real `criu service`,
asked what our service is asked. Container engines: test_container_tools.py.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from livemigration.costs import CostSpec
from livemigration.criu.pb import rpc_pb2
from livemigration.criu.rpc.client import RpcClient, RpcError
from livemigration.snapshot import digest_task
from predump.criu_host.restore import load_images
from tests.interop.real_criu import RealCriu
from tests.interop.simulated_host import ran, scenario, simulated

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="session")
def libcriu_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's object file; it is linked with each version's own library."""
    made = tmp_path_factory.mktemp("libcriu") / "client.o"
    source = HERE / "libcriu_client.c"
    subprocess.run(["cc", "-Wall", "-Werror", "-O1", "-c", "-o", made, source], check=True)
    return made


def libcriu_client(program: Path, real: RealCriu, folder: Path) -> list[str]:
    """The command that runs the client with a CRIU's own libraries."""
    (library,) = real.root.glob("usr/lib/*/libcriu.so.2")
    (linker,) = library.parent.glob("ld-linux-*.so.*")
    client = folder / "client"
    command = [
        "cc",
        "-o",
        client,
        program,
        library,
        "-Wl,--unresolved-symbols=ignore-in-shared-libs",
    ]
    subprocess.run(command, check=True)
    return [str(linker), "--library-path", str(library.parent), str(client)]


# -- libcriu


@pytest.mark.parametrize("how", ["socket", "binary"])
async def test_libcriu(
    tmp_path: Path, real_criu: RealCriu, libcriu_program: Path, how: str
) -> None:
    client = await asyncio.to_thread(libcriu_client, libcriu_program, real_criu, tmp_path)
    async with simulated(tmp_path) as (host, environment):
        task = await host.start(scenario())
        images = tmp_path / "images"
        images.mkdir()
        at = environment["PREDUMP_CRIU_SOCKET"] if how == "socket" else tmp_path / "bin" / "criu"
        done = await ran(
            *client, how, at, task.pid, images, environment=environment, folder=tmp_path
        )
        lines = done.stdout.splitlines()
        assert lines[:6] == [
            "check 0",
            "version 40201",
            "features 0 1",
            *["pre-dump 0"] * 3,
        ]
        dump = ["notify pre-dump 0", "notify query-ext-files 0", "notify post-dump 0", "dump 0"]
        assert lines[6:10] == dump
        assert task.pid not in host.tasks
        if how == "binary":
            # The restored task has a real process, which is the client's own child.
            assert lines[-2:] == ["alive 0", "reaped 1"]
            pid = int(lines[-3].removeprefix("restore "))
            assert f"notify post-restore {pid}" in lines
            await asyncio.wait_for(host.wait(pid), 60)
        load_images(images / "3", CostSpec()).task.release()


# -- pycriu


async def test_pycriu(tmp_path: Path, real_criu: RealCriu) -> None:
    async with simulated(tmp_path) as (host, environment):
        task = await host.start(scenario())
        environment |= {
            "PYTHONPATH": str(real_criu.root / "usr/lib/python3/dist-packages"),
            "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
        }
        done = await ran(
            *(sys.executable, "-S", HERE / "pycriu_client.py"),
            *(environment["PREDUMP_CRIU_SOCKET"], task.pid, tmp_path),
            environment=environment,
            folder=tmp_path,
        )
        lines = done.stdout.splitlines()
        assert lines == [
            *(f"dumped {number}" for number in range(4)),
            f"restored {task.pid}",
            f"again {errno.EEXIST}",
        ]
        # crit of the same version reads all of it.
        for number in range(4):
            shown = real_criu.decode("show", tmp_path / str(number) / f"pagemap-{task.pid}.img")
            entries = json.loads(shown.stdout)["entries"]
            assert any("PE_PARENT" in entry.get("flags", "") for entry in entries) == (number > 0)
        assert str(task.pid) in real_criu.decode("x", tmp_path / "3", "ps").stdout
        real_criu.run("dedup", "-D", tmp_path / "3")


# -- the command line


async def test_lxcs_command_lines(tmp_path: Path) -> None:
    async with simulated(tmp_path) as (host, environment):
        task = await host.start(scenario())
        common = (
            "--tcp-established --file-locks --link-remap --manage-cgroups=full "
            "--ext-mount-map auto --enable-external-sharing --enable-external-masters "
            "--enable-fs hugetlbfs --enable-fs tracefs --cgroup-root name=systemd:/lxc -vvvvvv"
        )
        script = tmp_path / "script"
        script.write_text(f"#!/bin/sh\necho $CRTOOLS_SCRIPT_ACTION >> {tmp_path}/actions\n")
        script.chmod(0o755)

        async def criu(line: str, status: int = 0) -> subprocess.CompletedProcess[str]:
            return await ran(
                "criu", *shlex.split(line), environment=environment, folder=tmp_path, status=status
            )

        said = await criu("--version")
        assert said.stdout == "Version: 4.2.1\n"
        assert (await criu("check")).stdout == "Looks good.\n"
        feature = await criu("check --feature mem_dirty_track")
        assert feature.stdout == "mem_dirty_track is supported\n"
        assert "Unknown feature nosuch" in (await criu("check --feature nosuch", 1)).stderr
        for number in range(4):
            images = tmp_path / str(number)
            images.mkdir()
            action = "pre-dump" if number < 3 else "dump"
            parent = f"--prev-images-dir ../{number - 1}" if number else ""
            await criu(
                f"{action} {common} -D {images} -o {images}/{action}.log -t {task.pid} "
                f"--skip-in-flight --freeze-cgroup /sys/fs/cgroup/freezer/lxc --force-irmap "
                f"--track-mem --action-script {script} {parent}"
            )
            assert "finished successfully" in (images / f"{action}.log").read_text()
            assert not list(images.glob("criu-*.log"))
        assert host.tasks == {}
        restored = await criu(
            f"restore {common} -D {images} -o {images}/restore.log --root / --restore-detached "
            f"--restore-sibling --lsm-profile apparmor:lxc --pidfile {tmp_path}/pid"
        )
        assert restored.stdout == ""
        pid = int((tmp_path / "pid").read_text())
        assert list(host.tasks) == [pid]
        os.kill(pid, 15)  # a real process stands for it
        await asyncio.wait_for(host.wait(pid), 60)
        actions = (tmp_path / "actions").read_text().split()
        assert actions == ["pre-dump", "query-ext-files", "post-dump"]
        failed = await criu(f"dump -t 1 -D {images}", 1)
        assert "there is no simulated task 1" in failed.stderr
        del environment["PREDUMP_CRIU_SOCKET"]
        assert "PREDUMP_CRIU_SOCKET is not set" in (await criu("check", 1)).stderr


async def test_a_page_server_by_command_line(tmp_path: Path) -> None:
    async with simulated(tmp_path) as (host, environment):
        task = await host.start(scenario())
        for name in ("server", "local"):
            (tmp_path / name).mkdir()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        at = f"--address 127.0.0.1 --port {port}"
        server = asyncio.create_task(
            ran(
                "criu",
                *shlex.split(f"page-server -D server {at} --status-fd 1"),
                environment=environment,
                folder=tmp_path,
            )
        )
        for _ in range(200):
            await asyncio.sleep(0.1)
            if host._servers:
                break
        await ran(
            "criu",
            *shlex.split(f"dump -t {task.pid} -D local --page-server {at} --leave-stopped"),
            environment=environment,
            folder=tmp_path,
        )
        await server
        for file in (tmp_path / "server").glob("page*"):
            shutil.copy(file, tmp_path / "local")
        again = load_images(tmp_path / "local", CostSpec())
        assert digest_task(again.task).memory_digest == digest_task(task.task).memory_digest


class Worker:
    """`criu swrk` as p.haul starts it: a control socket, and the connection for pages beside it."""

    def __init__(self, pages: socket.socket, environment: dict[str, str]) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(60)
        with theirs:
            self._process = subprocess.Popen(
                [environment["PATH"].split(":")[0] + "/criu", "swrk", str(theirs.fileno())],
                pass_fds=[theirs.fileno(), pages.fileno()],
                env=environment,
            )
        self._pages = pages.fileno()

    def ask(self, kind: int, images: Path, parent: str = "", **options: object) -> bool:
        """One request about pages over the connection; whether it went well."""
        images.mkdir(exist_ok=True)
        folder = os.open(images, os.O_DIRECTORY)
        asked = rpc_pb2.RpcOptions(images_dir_fd=folder, parent_img=parent, **options)
        asked.ps.fd = self._pages
        request = rpc_pb2.RpcRequest(type=kind, opts=asked)
        request.keep_open = kind == rpc_pb2.RPC_PAGE_SERVER
        self._ours.sendall(request.SerializeToString())
        answer = rpc_pb2.RpcResponse.FromString(self._ours.recv(8192))
        os.close(folder)
        assert answer.success, answer.cr_errmsg
        return bool(answer.success)

    def close(self) -> int:
        """Ends the conversation; the worker's exit status."""
        self._ours.close()
        return self._process.wait(60)


async def test_phauls_way(tmp_path: Path) -> None:
    """One worker at each end, and one connection between them that all rounds' pages take."""
    async with simulated(tmp_path) as (host, environment):
        task = await host.start(scenario())
        ends = socket.socketpair()
        with ends[0], ends[1]:

            def migrate() -> tuple[int, int]:
                source, dest = Worker(ends[0], environment), Worker(ends[1], environment)
                for number in range(4):
                    parent = f"../{number - 1}" if number else ""
                    there, here = tmp_path / "there", tmp_path / "here"
                    for folder in (there, here):
                        folder.mkdir(exist_ok=True)
                    dest.ask(rpc_pb2.RPC_PAGE_SERVER, there / str(number), parent)
                    source.ask(
                        rpc_pb2.RPC_PRE_DUMP if number < 3 else rpc_pb2.RPC_DUMP,
                        here / str(number),
                        parent,
                        pid=task.pid,
                        track_mem=True,
                        leave_stopped=number == 3,
                    )
                return source.close(), dest.close()

            assert await asyncio.to_thread(migrate) == (0, 0)
        for file in (tmp_path / "here" / "3").glob("*"):
            if file.name not in ("parent", "stats-dump", "criu.log"):
                shutil.copy(file, tmp_path / "there" / "3")
        again = load_images(tmp_path / "there" / "3", CostSpec())
        assert digest_task(again.task).memory_digest == digest_task(task.task).memory_digest


# -- real CRIU as the reference


def answers(path: Path) -> list[object]:
    """What a service answers to requests that touch no task, and to those that cannot be."""
    kind = rpc_pb2.RpcRequest
    nobody = rpc_pb2.RpcOptions(images_dir_fd=os.open("/tmp", os.O_DIRECTORY), pid=4194303)
    nobody.log_file = f"predump-{os.getpid()}.log"
    requests = [
        kind(type=rpc_pb2.RPC_CHECK, opts=nobody),
        kind(type=rpc_pb2.RPC_FEATURE_CHECK, features=rpc_pb2.RpcFeatures()),
        kind(type=rpc_pb2.RPC_EMPTY),
        kind(type=rpc_pb2.RPC_NOTIFY, notify_success=True),
        kind(type=rpc_pb2.RPC_DUMP, opts=rpc_pb2.RpcOptions(images_dir_fd=-1)),
        kind(type=rpc_pb2.RPC_PRE_DUMP, opts=rpc_pb2.RpcOptions(images_dir_fd=9999)),
        kind(type=rpc_pb2.RPC_SINGLE_PRE_DUMP, opts=rpc_pb2.RpcOptions(images_dir_fd=9999)),
        kind(type=rpc_pb2.RPC_RESTORE, opts=rpc_pb2.RpcOptions(images_dir_fd=9999)),
        kind(type=rpc_pb2.RPC_PAGE_SERVER, opts=rpc_pb2.RpcOptions(images_dir_fd=9999)),
        kind(type=rpc_pb2.RPC_DUMP, opts=nobody),
        kind(type=rpc_pb2.RPC_DUMP, opts=rpc_pb2.RpcOptions(images_dir_fd=-1), keep_open=True),
        kind(type=rpc_pb2.RPC_WAIT_PID, pid=1),
    ]
    found: list[object] = []
    for request in requests:
        with RpcClient.connect(path) as client:
            try:
                answer = client.ask(request)
            except RpcError:
                found.append("closed")
                continue
        # Which words there are for what went wrong is each one's own.
        fields = {field.name for field, _ in answer.ListFields()} - {"cr_errmsg"}
        found.append((answer.type, answer.success, answer.cr_errno, sorted(fields)))
    os.close(nobody.images_dir_fd)
    (Path("/tmp") / nobody.log_file).unlink(missing_ok=True)
    return found


async def test_the_service_answers_as_real_criu_does(tmp_path: Path, real_criu: RealCriu) -> None:
    path = tmp_path / "real.socket"
    real = await asyncio.create_subprocess_exec(
        *(str(real_criu.criu), "service", "--address", str(path), "-D", str(tmp_path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            await asyncio.sleep(0.05)
            if path.exists():
                break
        with RpcClient.connect(path) as client:
            version = client.ask(rpc_pb2.RpcRequest(type=rpc_pb2.RPC_VERSION)).version
        numbers = (version.major_number, version.minor_number, version.sublevel)
        assert numbers == real_criu.version
        expected = await asyncio.to_thread(answers, path)
    finally:
        real.terminate()
        await real.wait()
    async with simulated(tmp_path) as (_, environment):
        ours = Path(environment["PREDUMP_CRIU_SOCKET"])
        assert await asyncio.to_thread(answers, ours) == expected
