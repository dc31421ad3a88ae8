"""Source and destination as processes of their own on this machine, for as long as a run takes.

A destination that dies is started again once, on the same port and with the same state directory,
as a supervisor would do: only then can it say whether the task is its own
(livemigration.ownership).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from livemigration.drill import SOURCE_PHASES
from livemigration.errors import MigrationError

START_S = 120.0
"""How long a node may take to listen; the first start on a machine may compile."""

STOP_S = 10.0
_POLL_S = 0.02
_SHARED_MEMORY = Path("/dev/shm")


class NodeFailed(MigrationError):
    """A node's process did not start."""


@dataclass(slots=True)
class NodeProcess:
    """One ``predump serve`` process."""

    role: str
    folder: Path
    arguments: Sequence[str] = ()
    address: str = ""
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    environment: Mapping[str, str] | None = None  # None: that of this process

    async def start(self, *extra: str) -> None:
        """Starts the process (again, on the same port) and waits until it serves."""
        self.starts += 1
        port_file = self.folder / f"{self.role}-{self.starts}.address"
        log = (self.folder / f"{self.role}.log").open("ab")
        try:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "predump",
                "serve",
                self.role,
                "--listen",
                self.address or "127.0.0.1:0",
                "--port-file",
                str(port_file),
                *self.arguments,
                *extra,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        finally:
            log.close()
        async with asyncio.timeout(START_S):
            while not port_file.exists():
                if self.process.returncode is not None:
                    raise NodeFailed(f"the {self.role} did not start: {self.last_words()}")
                await asyncio.sleep(_POLL_S)
        self.address = port_file.read_text().strip()

    def last_words(self) -> str:
        """The last line that the process printed."""
        lines = (self.folder / f"{self.role}.log").read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    async def stop(self) -> None:
        """Asks the process to end, and ends it if it does not."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def state_folder(memory_bytes: int) -> Path:
    """A new folder for a destination's state: in shared memory if the task fits twice, else on
    disk.
    """
    room = 0
    if _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK):
        room = shutil.disk_usage(_SHARED_MEMORY).free
    parent = str(_SHARED_MEMORY) if room > 2 * memory_bytes else None
    return Path(tempfile.mkdtemp(prefix="predump-state-", dir=parent))


@dataclass(slots=True)
class LocalHosts:
    """Both nodes, started on entering and stopped on leaving; nothing of them is left behind."""

    memory_bytes: int
    mqtt: str = ""
    drill: str = ""
    debug: bool = False
    policies: Sequence[str] = ()
    export_images: str = ""
    restart_destination: bool = True
    source: NodeProcess = field(init=False)
    dest: NodeProcess = field(init=False)
    state_dir: Path = field(init=False)
    folder: Path = field(init=False)
    _watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="predump-"))
        self.state_dir = state_folder(self.memory_bytes)
        common = ["--mqtt", self.mqtt] if self.mqtt else []
        if self.debug:
            common.append("--debug")
        allowed = [word for place in self.policies for word in ("--policies", place)]
        self.source = NodeProcess("source", self.folder, [*common, *allowed])
        export = ["--export-images", self.export_images] if self.export_images else []
        self.dest = NodeProcess(
            "dest", self.folder, [*common, *export, "--state-dir", str(self.state_dir)]
        )
        try:
            drill = ["--drill", self.drill] if self.drill else []
            at_source = self.drill.partition("@")[2] in SOURCE_PHASES
            await asyncio.gather(
                self.source.start(*(drill if at_source else [])),
                self.dest.start(*([] if at_source else drill)),
            )
        except BaseException:
            await self._end()
            raise
        if self.restart_destination:
            self._watch = asyncio.create_task(self._supervise(), name="supervisor")
        return self

    async def _supervise(self) -> None:
        assert self.dest.process is not None
        await self.dest.process.wait()
        await self.dest.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await watch
        await asyncio.gather(self.source.stop(), self.dest.stop())
        shutil.rmtree(self.state_dir, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
