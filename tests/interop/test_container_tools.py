"""Container engines that checkpoint and restore real containers, whose memory is simulated.

runc drives CRIU by go-criu; crun loads the libcriu of its own Debian. Both find our `criu` on PATH.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from predump.criu_host.host import HostConfig
from tests.interop.real_criu import ROOT, SUITES, fetched
from tests.interop.simulated_host import ran, scenario, simulated

# crun wants cgroup 2 alone, and a machine may have the older one beside it: it gets its own view.
CGROUP_2 = (
    "unshare",
    "--mount",
    "sh",
    "-ec",
    "[ $(stat -fc %T /sys/fs/cgroup) = cgroup2fs ] || {"
    " umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; };"
    ' exec "$@"',
    "sh",
)


def installed_runc() -> str:
    """runc, which comes with Docker on Debian; installed where it is missing."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if shutil.which("runc", path=path) is None:
        subprocess.run([ROOT / "scripts" / "apt-install.sh", "runc"], check=True)
    found = shutil.which("runc", path=path)
    assert found is not None
    return found


@pytest.fixture(scope="module", params=["runc", *(f"crun of {suite}" for suite in SUITES)])
def tool(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The command of each engine in turn."""
    name, _, suite = str(request.param).partition(" of ")
    return (*CGROUP_2, str(fetched(suite).crun)) if name == "crun" else (installed_runc(),)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine with a state folder of its own."""

    command: tuple[str, ...]

    def status_of(self, name: str) -> str:
        """Of a container."""
        state = subprocess.run(
            [*self.command, "state", name], capture_output=True, text=True, check=False
        )
        return str(json.loads(state.stdout)["status"]) if state.returncode == 0 else "none"


@contextmanager
def container(tool: tuple[str, ...], folder: Path) -> Iterator[Engine]:
    """A running container `before` of a program that only waits."""
    bundle = folder / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    source = folder / "wait.c"
    source.write_text("#include <unistd.h>\nint main(void) { for (;;) pause(); }\n")
    subprocess.run(["cc", "-static", "-o", bundle / "rootfs" / "wait", source], check=True)
    subprocess.run([*tool, "spec"], cwd=bundle, check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"] |= {"args": ["/wait"], "terminal": False}
    config["root"]["readonly"] = False
    (bundle / "config.json").write_text(json.dumps(config))
    engine = Engine((*tool, "--root", str(folder / "state")))
    with (folder / "run.log").open("w") as log:
        started = subprocess.run(
            [*engine.command, "run", "-d", "before"],
            cwd=bundle,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the container keeps it open
            stderr=log,
            check=False,
        )
    if started.returncode:
        pytest.fail(f"no container starts here: {(folder / 'run.log').read_text()}")
    try:
        yield engine
    finally:
        for name in ("before", "after"):
            subprocess.run(
                [*engine.command, "delete", "-f", name], capture_output=True, check=False
            )


async def test_a_container_is_checkpointed_and_restored(
    tmp_path: Path, tool: tuple[str, ...]
) -> None:
    """The engine asks for the version and memory tracking, and by `criu swrk` for the rest.

    The container is real and the memory simulated: the container's process stands for the task.
    """
    with container(tool, tmp_path) as engine:
        config = HostConfig(adopt=scenario())
        async with simulated(tmp_path, config) as (host, environment):

            async def checkpoint(
                number: int, *more: str, last: int | None = None, status: int = 0
            ) -> str:
                images = tmp_path / str(number)
                last = number - 1 if last is None else last
                parent = ["--parent-path", f"../{last}"] if number else []
                arguments = ["checkpoint", *more, *parent, "--image-path", str(images)]
                done = await ran(
                    *(*engine.command, *arguments, "before"),
                    environment=environment,
                    folder=tmp_path,
                    status=status,
                )
                return done.stderr

            for number in range(3):
                await checkpoint(number, "--pre-dump")
                assert engine.status_of("before") == "running"
            ((pid, task),) = host.tasks.items()
            said = await checkpoint(7, "--pre-dump", last=0, status=1)
            assert "../0 is not the last dump" in (tmp_path / "7" / "dump.log").read_text(), said
            await checkpoint(3)
            assert engine.status_of("before") == "none"
            assert pid not in host.tasks
            restore = ["restore", "-d", "-b", tmp_path / "bundle", "--image-path", tmp_path / "3"]
            await ran(*engine.command, *restore, "after", environment=environment, folder=tmp_path)
            assert engine.status_of("after") == "running"
            ((again, restored),) = host.tasks.items()
            assert restored.workload.ops_done >= task.workload.ops_done
            # The engine stops the container, and the task is gone with it.
            kill = [*engine.command, "kill", "after", "KILL"]
            await ran(*kill, environment=environment, folder=tmp_path)
            await asyncio.wait_for(host.wait(again), 60)
            assert host.tasks == {}
