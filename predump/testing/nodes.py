"""A node as a process of its own (`predump serve`), for as long as a context lasts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Role = Literal["source", "dest"]

START_S: Final = 120.0
"""How long a node may take to listen: the first start on a machine compiles the model."""

STOP_S: Final = 30.0
_POLL_S: Final = 0.02


class NodeError(AssertionError):
    """A node that did not start, or ended as it should not have; the text ends with its log."""


@dataclass(slots=True)
class Node:
    """A node that serves at `address` (HOST:PORT)."""

    role: Role
    address: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.address.rpartition(":")[2])

    def log_text(self) -> str:
        """All that it has printed."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """kill -9, as when a host dies. The context then takes its death for granted."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running_node(
    role: Role, folder: Path, *arguments: str | Path, host: str = "127.0.0.1"
) -> Iterator[Node]:
    """Starts a node with more `arguments` of `predump serve`; its log is kept in `folder`.

    On leaving it is asked to end. Raises NodeError if it does not start, does not end well, or has
    printed a traceback; a node that was killed (`Node.kill`, or by anyone with SIGKILL) may be.
    """
    # Names that no other node in this folder has.
    number = len(list(folder.glob(f"{role}-*.log")))
    log, port_file = folder / f"{role}-{number}.log", folder / f"{role}-{number}.address"
    command = ["serve", role, "--listen", f"{host}:0", "--port-file", port_file, *arguments]
    with running_service(f"the {role}", log, port_file, *command) as process:
        yield Node(role, port_file.read_text().strip(), process, log)


@contextmanager
def running_service(
    name: str, log: Path, ready: Path, *arguments: str | Path
) -> Iterator[subprocess.Popen[bytes]]:
    """`predump` with these arguments, for as long as the context lasts, from when `ready` is there.

    Raises NodeError as `running_node` does.
    """
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "predump", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            _wait_for(ready, process, name, log)
            yield process
            process.terminate()
            try:
                status = process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                raise _error(f"{name} did not end within {STOP_S:g} s", log) from None
            if status not in (0, -signal.SIGKILL):
                raise _error(f"{name} ended with status {status}", log)
        finally:
            process.kill()
    if "Traceback (most recent call last)" in log.read_text(errors="replace"):
        raise _error(f"{name} printed a traceback", log)


def _wait_for(ready: Path, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not ready.exists():
        if process.poll() is not None:
            raise _error(f"{name} did not start", log)
        if time.monotonic() > deadline:
            raise _error(f"{name} did not listen within {START_S:g} s", log)
        time.sleep(_POLL_S)


def _error(what: str, log: Path) -> NodeError:
    return NodeError(f"{what}; it said:\n{log.read_text(errors='replace')}")
