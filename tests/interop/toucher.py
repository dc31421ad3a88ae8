"""The program of toucher.c: compiled, started, stopped, and its memory as the kernel shows it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PAGE = 4096
PRIVATE = 0x10000000
SHARED = 0x8000000
SHARED_PAGES = 8
_SOURCE = Path(__file__).with_name("toucher.c")
_PATIENCE_S = 20.0
_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
"""Where it has none of it, the kernel writes nothing into a stopped program's memory."""


def compiled(folder: Path) -> Path:
    """The program, which needs nothing of the system at run time."""
    program = folder / "toucher"
    subprocess.run(["gcc", "-O2", "-static", "-o", program, _SOURCE], check=True, timeout=120)
    return program


@dataclass(frozen=True, slots=True)
class Toucher:
    """A process that runs the program."""

    pid: int
    pages: int

    def memory(self, addresses: NDArray[np.uint64]) -> bytes:
        """These pages, as they are now."""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            return b"".join(os.pread(memory.fileno(), PAGE, at) for at in addresses.tolist())

    def filled(self) -> bytes:
        """The pages that the program fills itself; to the C library's the kernel writes as well."""
        own = PRIVATE + np.arange(self.pages, dtype=np.uint64) * np.uint64(PAGE)
        shared = SHARED + np.arange(SHARED_PAGES, dtype=np.uint64) * np.uint64(PAGE)
        return self.memory(np.concatenate((own, shared)))

    def count(self) -> int:
        """The counter in the first page."""
        first = self.memory(np.array([PRIVATE], np.uint64))
        return int.from_bytes(first[8:16], "little")

    def stop(self) -> None:
        """From now on its memory stays as it is."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_for(lambda: _state(self.pid) == "T")

    def go_on(self) -> None:
        """Lets it run, and waits until it has counted on."""
        before = self.count()
        os.kill(self.pid, signal.SIGCONT)
        wait_for(lambda: self.count() > before)


def wait_for(met: Callable[[], bool]) -> None:
    """Until a condition is met; a failure after some time."""
    give_up = time.monotonic() + _PATIENCE_S
    while not met():
        assert time.monotonic() < give_up, "it did not come to that"
        time.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def end(pid: int) -> None:
    """Ends a process, ours or one that criu restored, and waits until its pid is free."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    wait_for(lambda: _state(pid) in ("", "Z"))


@contextmanager
def touching(program: Path, pages: int = 64, touched: int = 16) -> Iterator[Toucher]:
    """The program at work, in a session of its own as criu wants it."""
    process = subprocess.Popen(
        [program, str(pages), str(touched)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=_ENVIRONMENT,
        cwd="/",
    )
    toucher = Toucher(process.pid, pages)
    try:
        wait_for(lambda: _ready(toucher))
        yield toucher
    finally:
        process.kill()
        process.wait()


def _ready(toucher: Toucher) -> bool:
    try:
        return toucher.count() > 0
    except OSError:
        return False
