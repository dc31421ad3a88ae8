"""Nodes as a person starts them: `predump serve` processes, and the command line against them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 120.0
SCENARIO = """
schema = "predump.scenario/1"
name = "small"
memory = "2MiB"
[workload]
kind = "uniform"
rate = "2000 pages/s"
[policy]
kind = "fixed"
rounds = 1
[migration]
run_after = "100ms"
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    def line(self) -> str:
        """The only line on standard error, without the command's name."""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("predump: error: ")
        assert self.err.endswith("\n")
        return self.err.removeprefix("predump: error: ").rstrip("\n")


def predump(
    *arguments: str | Path, timeout: float = 60, env: dict[str, str] | None = None
) -> Ended:
    """Runs the command to its end."""
    ran = subprocess.run(
        [sys.executable, "-m", "predump", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "200"} | (env or {}),
    )
    assert "Traceback" not in ran.stdout + ran.stderr
    return Ended(ran.returncode, ran.stdout, ran.stderr)


@dataclass
class Node:
    """A node that serves."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


@contextmanager
def node(
    role: str, folder: Path, *arguments: str | Path, host: str = "localhost", dies: bool = False
) -> Iterator[Node]:
    """A node for as long as the context lasts. It must end well when it is asked to.

    `dies`: it must have been killed by then.
    """
    # Names that no other node in this folder has.
    number = len(list(folder.glob(f"{role}-*.log")))
    log, port_file = folder / f"{role}-{number}.log", folder / f"{role}-{number}.address"
    command = ["serve", role, "--listen", f"{host}:0", "--port-file", port_file, *arguments]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "predump", *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + START_S
            while not port_file.exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            yield Node(port_file.read_text().strip(), process, log)
            process.terminate()
            # A node that still compiles (its first start on a machine) ends after that.
            expected = -signal.SIGKILL if dies else 0
            assert process.wait(START_S) == expected, log.read_text()
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()
