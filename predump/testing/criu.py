"""A host that speaks CRIU's RPC, and a `criu` that asks it, for tests of tools that drive CRIU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predump.testing.nodes import NodeError, running_service


@dataclass(frozen=True, slots=True)
class CriuHost:
    """A running `predump criu service`.

    `socket`: its SEQPACKET socket. `command`: an executable named `criu` that asks it.
    `pids`: of the simulated tasks that it began with, in the order of their scenarios.
    """

    socket: Path
    command: Path
    pids: tuple[int, ...]
    log: Path

    @property
    def pid(self) -> int:
        """The first task's."""
        return self.pids[0]

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, with that `criu` before any other on PATH."""
        path = f"{self.command.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**os.environ, "PATH": path, "PREDUMP_CRIU_SOCKET": str(self.socket)}

    def tasks(self, *arguments: str) -> list[dict[str, Any]]:
        """The tasks as they are now, after what `arguments` of `predump criu tasks` ask for."""
        command = ["criu", "tasks", "--socket", str(self.socket), "--json", *arguments]
        ran = subprocess.run(
            [sys.executable, "-m", "predump", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            raise NodeError(ran.stderr)
        found: list[dict[str, Any]] = json.loads(ran.stdout)
        return found

    def advance(self, duration: str, pid: int | None = None) -> None:
        """Lets a task run on for so long in virtual time ("250ms"); the first, if none is named."""
        self.tasks("--pid", str(self.pid if pid is None else pid), "--advance", duration)


@contextmanager
def running_criu_host(
    folder: Path, scenarios: Iterable[str | Path], *arguments: str
) -> Iterator[CriuHost]:
    """A service with a task of each scenario file, and more `arguments` of `predump criu service`.

    Socket, command and log are in `folder`. Raises NodeError if it does not start, does not end
    well, or has printed a traceback.
    """
    from predump.criu_shim.install import install

    files = [str(file) for file in scenarios]
    socket, log = folder / "criu.socket", folder / "criu-service.log"
    command = ["criu", "service", "--socket", str(socket), "--pid", "1000", *arguments]
    for file in files:
        command += ["--scenario", file]
    with running_service("the CRIU service", log, socket, *command):
        pids = tuple(1000 + number for number in range(len(files)))
        yield CriuHost(socket, install(folder / "bin", socket), pids, log)
