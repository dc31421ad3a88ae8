"""A wall clock that jumps, for one process: a small library loaded in front of the C library's."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

from livemigration.errors import MigrationError

_SOURCE = Path(__file__).with_name("clock_jump.c")


class NoCompiler(MigrationError):
    """The library cannot be made here."""


class ClockFile:
    """What the library reads: by how many seconds the clock is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """From now on it is wrong by so many seconds."""
        if not self.path.exists():
            self.path.write_bytes(struct.pack("=q", seconds))
            return
        with self.path.open("r+b") as file:  # in place: the processes have it mapped
            file.write(struct.pack("=q", seconds))


class JumpingClock(ClockFile):
    """The clock of the processes that are started with `environment`."""

    def __init__(self, folder: Path) -> None:
        """Compiles the library into `folder`; raises `NoCompiler`."""
        super().__init__(folder / "clock")
        self._library = folder / "clock_jump.so"
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise NoCompiler("a clock that jumps needs a C compiler: apt install gcc libc6-dev")
        made = subprocess.run(
            [compiler, "-O1", "-shared", "-fPIC", "-o", self._library, _SOURCE],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise NoCompiler(f"{_SOURCE.name} does not compile: {made.stderr.strip()}")

    @property
    def environment(self) -> dict[str, str]:
        """For the processes whose clock it is to be."""
        return os.environ | {"LD_PRELOAD": str(self._library), "PREDUMP_CLOCK": str(self.path)}
