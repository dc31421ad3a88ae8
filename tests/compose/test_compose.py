"""docker-compose.yml, run for real: images built, containers up, a task migrated between them.

engine.sh finds an engine or starts one; where there is none to be had (not root, or the kernel
refuses) these tests are skipped, with its reason.

The command of docs/compose.md starts and ends everything. It is run twice, for its exit status; the
other scenarios go one after the other through the same two nodes, as they would at a user's who
leaves them running.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from mm_model.code_cache import CACHE_DIR

ROOT = Path(__file__).resolve().parents[2]
ENGINE = Path(__file__).with_name("engine.sh")
NO_ENGINE = 77
OTHER_USER = "4321"
"""A user that neither the host nor the image knows."""

# One engine start, with its images made from scratch, takes some minutes.
pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

Run = subprocess.CompletedProcess[str]


@dataclass(frozen=True, slots=True)
class Compose:
    """``docker compose`` on one project, with the engine's environment."""

    command: tuple[str, ...]
    environment: dict[str, str]
    project: str

    def arguments(self, *arguments: str) -> list[str]:
        """The whole command line of a subcommand."""
        return [*self.command, "-p", self.project, *arguments]

    def __call__(self, *arguments: str, check: bool = True, **environment: str) -> Run:
        """Run a subcommand; with *check* a failure shows what it printed."""
        result = subprocess.run(
            self.arguments(*arguments),
            cwd=ROOT,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and result.returncode:
            pytest.fail(f"{' '.join(arguments)}: {result.returncode}\n{output_of(result)}")
        return result

    def up(self, results: Path, **environment: str) -> Run:
        """The command of docs/compose.md, then everything of it removed."""
        environment["RESULTS"] = str(results)
        up = ("up", "--abort-on-container-exit", "--exit-code-from", "runner")
        try:
            return self(*up, check=False, **environment)
        finally:
            self("down", "--volumes", "--remove-orphans", check=False, **environment)

    def migrate(self, results: Path, **environment: str) -> Run:
        """One scenario through nodes that run on; starts them where they do not run."""
        environment["RESULTS"] = str(results)
        return self("run", "--rm", "-T", "runner", check=False, **environment)

    def in_container(self, *arguments: str) -> Run:
        """A command of its own in a new container, without the nodes: `-u 1:1 --entrypoint ...`."""
        return self("run", "--rm", "-T", "--no-deps", *arguments)


def output_of(run: Run) -> str:
    """All that a command printed, for a failed assertion."""
    return run.stdout + run.stderr


def engine_environment(folder: Path) -> dict[str, str]:
    """What engine.sh wrote, as a shell reads it."""
    script = f"set -a; . {shlex.quote(str(folder / 'env'))}; env -0"
    output = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return dict(item.split("=", 1) for item in output.stdout.split("\0") if "=" in item)


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


@pytest.fixture(scope="module")
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
        compose = Compose(command, environment, f"predump-{tag}")
        with compiled_beside_the_sources():
            compose("build", "runner")
        subprocess.run([ENGINE, "isolate", folder], stdin=subprocess.DEVNULL, check=True)
        yield lambda name: replace(compose, project=f"{compose.project}-{name}")
        docker = ["docker", "image", "rm", "--force", f"predump:{tag}"]
        subprocess.run(docker, env=environment, capture_output=True, check=False)
    finally:
        subprocess.run([ENGINE, "stop", folder], stdin=subprocess.DEVNULL, check=True)


@pytest.fixture(scope="module")
def nodes(project: Callable[[str], Compose]) -> Iterator[Compose]:
    """A project whose nodes and broker run on from one test to the next."""
    compose = project("nodes")
    yield compose
    compose("down", "--volumes", "--remove-orphans", check=False)


def result_in(folder: Path) -> dict[str, Any]:
    """The JSON object that the runner wrote."""
    loaded: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return loaded


def test_up_migrates_a_task_and_ends_with_status_0(
    project: Callable[[str], Compose], tmp_path: Path
) -> None:
    """The command of the README leaves a verified result on the host."""
    run = project("up").up(tmp_path)

    assert run.returncode == 0, output_of(run)
    result = result_in(tmp_path)
    assert result["schema"] == "predump.result/1"
    assert result["name"] == "quickstart"
    assert result["verified"] is True
    assert result["continued_equal"] is True
    assert result["pages_lost"] == 0
    assert result["owner"] == "destination"
    assert result["rounds"][0]["pages_sent"] == result["memory_bytes"] // result["page_size"]


def test_up_ends_with_status_3_when_pages_were_lost(
    project: Callable[[str], Compose], tmp_path: Path
) -> None:
    """A hunk of the patch left out: the destination refuses, and `up` exits with Predump's 3."""
    run = project("up").up(tmp_path, PREDUMP_ARGS="--set hunks.off=ptep_set_access_flags")

    assert run.returncode == 3, output_of(run)
    result = result_in(tmp_path)
    assert result["verified"] is False
    assert result["owner"] == "source"
    assert result["pages_lost"] == result["pages_different"] > 0


def test_the_source_reads_images_that_a_scenario_names(nodes: Compose, tmp_path: Path) -> None:
    """SCENARIO chooses the scenario; CRIU's images are mounted where the source finds them."""
    run = nodes.migrate(tmp_path, SCENARIO="scenarios/real-image.toml")

    assert run.returncode == 0, output_of(run)
    assert result_in(tmp_path)["name"] == "real-image"
    assert result_in(tmp_path)["verified"] is True


def test_bad_input_ends_with_status_2(nodes: Compose, tmp_path: Path) -> None:
    """One line in the log says what is wrong, and no result is written."""
    run = nodes.migrate(tmp_path, PREDUMP_ARGS="--set memroy=1GiB")

    assert run.returncode == 2, output_of(run)
    assert "memory" in output_of(run)
    assert not (tmp_path / "result.json").exists()


def test_results_belong_to_the_owner_of_the_folder(nodes: Compose, tmp_path: Path) -> None:
    """The container writes as the user who made RESULTS, not as root."""
    if os.getuid() == 0:
        os.chown(tmp_path, int(OTHER_USER), int(OTHER_USER))
    owner = tmp_path.stat().st_uid

    run = nodes.migrate(tmp_path, SCENARIO="scenarios/idle.toml")

    assert run.returncode == 0, output_of(run)
    assert (tmp_path / "result.json").stat().st_uid == owner


def test_a_folder_that_the_engine_made_goes_to_the_images_user(
    nodes: Compose, tmp_path: Path
) -> None:
    """A missing RESULTS does not end as a folder of root's that nobody may write to."""
    if os.getuid() != 0:
        pytest.skip("as this user, the folder is not root's")
    results = tmp_path / "results"

    run = nodes.migrate(results, SCENARIO="scenarios/idle.toml")

    assert run.returncode == 0, output_of(run)
    assert (results / "result.json").stat().st_uid == results.stat().st_uid == 1000


def received(line: str) -> tuple[str, dict[str, Any]]:
    """Topic and content of a line of ``mosquitto_sub -F '%t %x'``."""
    topic, payload = line.rsplit(" ", 1)
    return topic, msgpack.unpackb(bytes.fromhex(payload), strict_map_key=False)


def test_telemetry_reaches_the_broker(nodes: Compose, tmp_path: Path) -> None:
    """A subscriber hears the rounds live; a later one still finds the outcome and both hosts."""
    subscribe = ("exec", "-T", "broker", "mosquitto_sub", "-q", "1", "-F", "%t %x")
    nodes.migrate(tmp_path, SCENARIO="scenarios/idle.toml")  # the nodes run from here on
    with subprocess.Popen(
        nodes.arguments(*subscribe, "-t", "predump/v1/#", "-W", "60"),
        cwd=ROOT,
        env=nodes.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as subscriber:
        assert subscriber.stdout is not None
        received(subscriber.stdout.readline())  # a retained message: it is subscribed
        run = nodes.migrate(tmp_path)
        assert run.returncode == 0, output_of(run)
        result = result_in(tmp_path)
        of_source = f"predump/v1/{result['migration_id']}/source"
        rounds = []
        for line in subscriber.stdout:
            topic, content = received(line)
            if topic == f"{of_source}/round":
                rounds.append(content)
            elif topic == f"{of_source}/state" and content["state"] == "done":
                break
        subscriber.kill()

    assert rounds == result["rounds"]

    watch = ("--entrypoint", "predump", "runner", "watch", "--mqtt", "mqtt://broker:1883")
    shown = json.loads(nodes.in_container(*watch, "--once", "--json").stdout)
    (migration,) = (
        entry for entry in shown["migrations"] if entry["migration_id"] == result["migration_id"]
    )
    assert migration["owner"] == "destination"
    assert migration["states"]["source"]["state"] == "done"
    assert migration["states"]["source"]["verified"] is True
    assert migration["states"]["dest"]["owner"] == "destination"
    assert {host: entry["status"] for host, entry in shown["hosts"].items()} == {
        "source": "online",
        "dest": "online",
    }


def test_nothing_in_the_nodes_runs_as_root(nodes: Compose, tmp_path: Path) -> None:
    """Neither the image's user nor that of the running nodes is root."""
    nodes.migrate(tmp_path, SCENARIO="scenarios/idle.toml")  # the nodes run from here on

    users = {
        node: nodes("exec", "-T", node, "stat", "-c", "%U %u", "/proc/1").stdout.strip()
        for node in ("source", "dest")
    }

    assert users == {"source": "predump 1000", "dest": "predump 1000"}


def test_the_image_holds_the_compiled_model_for_any_user(nodes: Compose) -> None:
    """A migration in a fresh container compiles nothing: no file of Numba's is written anywhere."""
    script = (
        "id -u; touch /tmp/start; sleep 0.01"
        " && predump run scenarios/quickstart.toml --set memory=16MiB"
        " && { find / -xdev -name '*.nb[ic]' -newer /tmp/start 2>/dev/null || true; }"
        " && find /var/cache/predump -name '*.nbc' | wc -l"
    )

    run = nodes.in_container("-u", OTHER_USER, "--entrypoint", "sh", "runner", "-c", script)

    lines = run.stdout.splitlines()
    assert lines[0] == OTHER_USER
    assert not [line for line in lines if ".nb" in line]
    assert int(lines[-1]) > 50
