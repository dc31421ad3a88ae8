"""docker-compose.yml, run for real: images built, containers up, a task migrated between them.

engine.sh finds an engine or starts one; where there is none to be had (not root, or the kernel
refuses) these tests are skipped, with its reason.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = Path(__file__).with_name("engine.sh")
NO_ENGINE = 77

# One engine start, with its images made from scratch, takes about two minutes.
pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]


@dataclass(frozen=True, slots=True)
class Compose:
    """``docker compose`` on one project, with the engine's environment."""

    command: tuple[str, ...]
    environment: dict[str, str]

    def __call__(
        self, *arguments: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a subcommand; with *check* a failure shows what it printed."""
        result = subprocess.run(
            [*self.command, *arguments],
            cwd=ROOT,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if check and result.returncode:
            pytest.fail(f"compose {' '.join(arguments)}: {result.returncode}\n{result.stdout}")
        return result

    def migrate(self, results: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command of docs/compose.md, then everything of it removed."""
        try:
            return self(
                "up",
                "--abort-on-container-exit",
                "--exit-code-from",
                "runner",
                check=False,
                RESULTS=str(results),
                **environment,
            )
        finally:
            self("down", "--volumes", "--remove-orphans", check=False, RESULTS=str(results))


def engine_environment(folder: Path) -> dict[str, str]:
    """What engine.sh wrote, as a shell reads it."""
    script = f"set -a; . {shlex.quote(str(folder / 'env'))}; env -0"
    output = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return dict(item.split("=", 1) for item in output.stdout.split("\0") if "=" in item)


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Compose with the image built; the engine, if it is ours, ends with the module."""
    # Short, as a socket's path may have 107 bytes.
    folder = tmp_path_factory.mktemp("engine")
    started = subprocess.run(
        [ENGINE, "start", folder],
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
        command = [*environment["COMPOSE"].split(), "-p", f"predump-{tag}", *files]
        run = Compose(tuple(command), environment | {"PREDUMP_TAG": tag})
        run("build")
        yield run
        docker = ["docker", "image", "rm", "--force", f"predump:{tag}"]
        subprocess.run(docker, env=environment, capture_output=True, check=False)
        if environment["OWN_ENGINE"] == "1":
            docker = ["docker", "image", "prune", "--force"]
            subprocess.run(docker, env=environment, capture_output=True, check=False)
    finally:
        subprocess.run([ENGINE, "stop", folder], stdin=subprocess.DEVNULL, check=True)


def result_in(folder: Path) -> dict[str, Any]:
    """The JSON object that the runner wrote."""
    loaded: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return loaded


def test_a_task_is_migrated_between_containers(compose: Compose, tmp_path: Path) -> None:
    """`up` ends with status 0 and leaves a verified result on the host."""
    run = compose.migrate(tmp_path)

    assert run.returncode == 0, run.stdout
    result = result_in(tmp_path)
    assert result["schema"] == "predump.result/1"
    assert result["name"] == "quickstart"
    assert result["verified"] is True
    assert result["continued_equal"] is True
    assert result["pages_lost"] == 0
    assert result["owner"] == "destination"
    assert result["rounds"][0]["pages_sent"] == result["memory_bytes"] // result["page_size"]


def test_lost_pages_give_status_3_through_compose(compose: Compose, tmp_path: Path) -> None:
    """A hunk of the patch left out: the destination refuses, and `up` exits with Predump's 3."""
    run = compose.migrate(tmp_path, PREDUMP_ARGS="--set hunks.off=ptep_set_access_flags")

    assert run.returncode == 3, run.stdout
    result = result_in(tmp_path)
    assert result["verified"] is False
    assert result["owner"] == "source"
    assert result["pages_lost"] == result["pages_different"] > 0


def test_the_source_reads_images_that_a_scenario_names(compose: Compose, tmp_path: Path) -> None:
    """SCENARIO chooses the scenario; CRIU's images are mounted where the source finds them."""
    run = compose.migrate(tmp_path, SCENARIO="scenarios/real-image.toml")

    assert run.returncode == 0, run.stdout
    assert result_in(tmp_path)["name"] == "real-image"
    assert result_in(tmp_path)["verified"] is True


def test_bad_input_gives_status_2_through_compose(compose: Compose, tmp_path: Path) -> None:
    """One line in the log says what is wrong, and no result is written."""
    run = compose.migrate(tmp_path, PREDUMP_ARGS="--set memroy=1GiB")

    assert run.returncode == 2, run.stdout
    assert "memory" in run.stdout
    assert not (tmp_path / "result.json").exists()


def test_results_belong_to_the_owner_of_the_folder(compose: Compose, tmp_path: Path) -> None:
    """The container writes as the user who made RESULTS, not as root."""
    if os.getuid() == 0:
        os.chown(tmp_path, 12345, 12345)
    owner = tmp_path.stat().st_uid

    run = compose.migrate(tmp_path, SCENARIO="scenarios/idle.toml")

    assert run.returncode == 0, run.stdout
    assert (tmp_path / "result.json").stat().st_uid == owner
