"""`predump faults run --docker` where it cannot work, and what its parts must not do.

What it does with an engine: tests/compose/test_faults.py.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from predump.faults import disk
from predump.faults.disk import FullDisk, NoSmallDisk
from predump.faults.injection import Injection
from predump.faults.lab import LocalLaboratory
from predump.faults.link import Gate, Link
from predump.faults.spec import FOLDER, load_fault

WITHOUT = "import sys; sys.modules['docker'] = None; from predump.cli import main; main()"
RUN = ("faults", "run", "--docker", "slow-caller")


def said(*command: str, **environment: str) -> str:
    """The one line of a command that fails."""
    ran = subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    (line,) = ran.stderr.splitlines()
    return line


def test_without_an_engine_it_says_what_to_do(tmp_path: Path) -> None:
    line = said("-m", "predump", *RUN, DOCKER_HOST=f"unix://{tmp_path}/docker.sock")
    assert "no Docker engine answers here (No such file or directory)" in line
    assert "make faults DOCKER=1" in line


def test_without_its_package_it_says_what_to_install() -> None:
    line = said("-c", WITHOUT, *RUN)
    assert line.endswith("--docker needs the package docker: pip install predump[docker]")


def test_a_disk_that_others_use_is_not_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoSmallDisk, match="/ is no file system of its own"):
        FullDisk(Path("/")).fill()
    shared = Path("/dev/shm")
    monkeypatch.setattr(disk, "LARGEST", 0)
    with pytest.raises(NoSmallDisk, match="not filled"):
        FullDisk(shared).fill()
    assert not (shared / "filler").exists()


class SlowLaboratory(LocalLaboratory):
    """Cutting its cable takes a while, as where an engine is asked for it."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.done: list[str] = []

    async def cut_link(self) -> None:
        self.done.append("cutting")
        await asyncio.sleep(0.05)
        self.done.append("cut")

    async def heal_link(self) -> None:
        self.done.append("healed")


async def test_a_fault_is_done_and_undone_though_the_call_that_it_strikes_ends_by_it() -> None:
    lab = SlowLaboratory()
    injection = Injection(lab, load_fault(FOLDER / "link-cut-and-healed.toml"), "commit")
    call = asyncio.create_task(injection.reach("commit"))
    while not lab.done:
        await asyncio.sleep(0)
    call.cancel()  # as gRPC does when the connection of a call is gone
    with pytest.raises(asyncio.CancelledError):
        await call
    await injection.over()
    assert lab.done == ["cutting", "cut", "healed"]


async def test_a_fault_that_cannot_be_made_is_told_and_not_taken_for_the_hosts() -> None:
    class Broken(SlowLaboratory):
        async def cut_link(self) -> None:
            raise NoSmallDisk("not here")

    injection = Injection(Broken(), load_fault(FOLDER / "link-cut-for-good.toml"), "commit")
    await injection.reach("commit")
    with pytest.raises(NoSmallDisk, match="not here"):
        await injection.over()


async def test_a_gate_leads_where_its_target_is_now() -> None:
    async def serve(word: bytes) -> asyncio.Server:
        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(word)
            writer.close()

        return await asyncio.start_server(greet, "127.0.0.1", 0)

    first, second = await serve(b"first"), await serve(b"second")
    gate = Gate(Link(), "")
    host, _, port = (await gate.open("127.0.0.2")).rpartition(":")
    heard = []
    for server in (first, second):
        gate.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        reader, writer = await asyncio.open_connection(host, int(port))
        heard.append(await reader.read())
        writer.close()
    await gate.close()
    first.close()
    second.close()
    assert heard == [b"first", b"second"]
