"""Real CRIU, in every version that scripts/criu.sh can fetch, for the interop tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop import memtouch
from tests.interop.criu_guest import CriuGuest, boot, build
from tests.interop.real_criu import ROOT, SUITES, RealCriu, fetched

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=SUITES)
def real_criu(request: pytest.FixtureRequest) -> RealCriu:
    """Each version in turn, module by module: what a module shares is made once for both."""
    return fetched(str(request.param))


@pytest.fixture(scope="session")
def memtouch_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that knows what its memory must be (memtouch.c)."""
    return build(memtouch.SOURCE, tmp_path_factory.mktemp("memtouch") / "memtouch")


@pytest.fixture(scope="session")
def sharing_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with memory of every kind (sharing.c)."""
    return build(HERE / "sharing.c", tmp_path_factory.mktemp("sharing") / "sharing")


@pytest.fixture(scope="session")
def criu_guest(memtouch_program: Path, sharing_program: Path) -> Iterator[CriuGuest]:
    """A booted guest with CRIU in all versions, and both programs."""
    versions = {criu.name: criu.root for criu in map(fetched, SUITES)}
    programs = {"memtouch": memtouch_program, "sharing": sharing_program}
    kernel, busybox = (_guest_file(what) for what in ("image", "busybox"))
    with boot(kernel, busybox, versions, programs) as guest:
        yield guest


def _guest_file(what: str) -> Path:
    command = [str(ROOT / "scripts" / "guest-kernel.sh"), what]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Path(ran.stdout.strip())
