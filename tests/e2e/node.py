"""Nodes as a person starts them: `predump serve` processes, and the command line against them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from predump.testing.nodes import Node, Role, running_node

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
    *arguments: str | Path, timeout: float = 240, env: dict[str, str] | None = None
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


@contextmanager
def node(
    role: Role, folder: Path, *arguments: str | Path, host: str = "localhost", dies: bool = False
) -> Iterator[Node]:
    """A node for as long as the context lasts. It must end well when it is asked to.

    `dies`: it must have been killed by then.
    """
    with running_node(role, folder, *arguments, host=host) as running:
        yield running
        assert (running.process.poll() == -signal.SIGKILL) == dies, running.log_text()
