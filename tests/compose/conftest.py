"""An engine and the image for the compose tests, made once for all of them.

engine.sh finds an engine or starts one; where there is none to be had (not root, or the kernel
refuses) these tests are skipped, with its reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mm_model.code_cache import CACHE_DIR
from tests.compose.compose import ROOT, Compose, engine_environment

ENGINE = Path(__file__).with_name("engine.sh")
NO_ENGINE = 77
KNOWS_CHECKPOINT_RESTORE = 23
"""The first version of the engine after 20.10, which does not know that capability."""


@contextmanager
def compiled_beside_the_sources() -> Iterator[None]:
    """Lends the image what this machine has compiled: compiling it again takes two minutes."""
    lent = ROOT / "compiled"
    # What no node runs stays here: the other architecture's model.
    shutil.copytree(
        CACHE_DIR,
        lent / CACHE_DIR.name,
        ignore=shutil.ignore_patterns("mm_model.x86*", "tests.*"),
        dirs_exist_ok=True,
    )
    try:
        yield
    finally:
        shutil.rmtree(lent)


def engine_version(environment: dict[str, str]) -> str:
    """Of the engine, not of the command."""
    command = ["docker", "version", "-f", "{{.Server.Version}}"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="package")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Compose]]:
    """Gives compose projects of the image; the engine, if it is ours, ends with the module."""
    folder = tmp_path_factory.mktemp("engine")
    started = subprocess.run(
        [ENGINE, "start", folder, str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    try:
        if started.returncode == NO_ENGINE:
            pytest.skip(started.stderr.strip().splitlines()[-1])
        assert started.returncode == 0, started.stderr
        environment = engine_environment(folder)
        tag = f"test-{os.getpid()}"
        files = ["-f", "docker-compose.yml"]
        if environment["OWN_ENGINE"] == "1":
            files += ["-f", "tests/compose/own-engine.yml"]
        command = (*environment["COMPOSE"].split(), *files)
        # No test writes to the clone's own folder of results.
        environment |= {"PREDUMP_TAG": tag, "RESULTS": str(tmp_path_factory.mktemp("results"))}
        if int(engine_version(environment).split(".")[0]) < KNOWS_CHECKPOINT_RESTORE:
            environment["CRIU_CAP"] = "SYS_ADMIN"
        environment["REPORT"] = "0"  # drawing takes seconds, and one test is enough for it
        compose = Compose(command, environment, f"predump-{tag}")
        with compiled_beside_the_sources():
            compose("build", "runner", "criu")
        subprocess.run([ENGINE, "isolate", folder], stdin=subprocess.DEVNULL, check=True)
        yield lambda name: replace(compose, project=f"{compose.project}-{name}")
        docker = ["docker", "image", "rm", "--force", f"predump:{tag}", f"predump-criu:{tag}"]
        subprocess.run(docker, env=environment, capture_output=True, check=False)
    finally:
        subprocess.run([ENGINE, "stop", folder], stdin=subprocess.DEVNULL, check=True)


@pytest.fixture(scope="package")
def nodes(project: Callable[[str], Compose]) -> Iterator[Compose]:
    """A project whose nodes and broker run on from one test to the next."""
    compose = project("nodes")
    yield compose
    compose("down", "--volumes", "--remove-orphans", check=False)
