"""Real CRIU, beside the system: one version of it, and how to run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITES = ("trixie", "sid")


@dataclass(frozen=True, slots=True)
class RealCriu:
    """One version of CRIU, unpacked beside the system."""

    suite: str
    version: tuple[int, ...]
    criu: Path
    crit: Path
    crun: Path
    root: Path

    @property
    def name(self) -> str:
        """Its version, as people write it."""
        return ".".join(map(str, self.version))

    def run(
        self, *arguments: object, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Runs criu to its end; with `check`, a failure shows what criu said."""
        return _run([self.criu, *arguments], check=check, timeout=timeout)

    def decode(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs crit to its end."""
        return _run([self.crit, *arguments], check=check, timeout=120)


def _run(
    command: Sequence[object], *, check: bool, timeout: float
) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHON": sys.executable},
    )
    if check and ran.returncode != 0:
        pytest.fail(f"{ran.args} exited with {ran.returncode}:\n{ran.stdout}{ran.stderr}")
    return ran


def _fetch(what: str, suite: str) -> Path:
    ran = subprocess.run(
        [str(ROOT / "scripts" / "criu.sh"), what, suite],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Path(ran.stdout.strip())


@cache
def fetched(suite: str) -> RealCriu:
    """The CRIU of a Debian suite, fetched if it is not there yet."""
    criu = _fetch("criu", suite)
    said = _run([criu, "--version"], check=True, timeout=60).stdout
    version = tuple(map(int, said.splitlines()[0].removeprefix("Version:").strip().split(".")))
    crit, crun, root = (_fetch(what, suite) for what in ("crit", "crun", "root"))
    return RealCriu(suite, version, criu, crit, crun, root)
