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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
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

    def container(self, service: str) -> str:
        """The container of a service that was started."""
        return self("ps", "-a", "-q", service).stdout.strip()

    def engine(self, *arguments: str) -> str:
        """What ``docker`` prints for a command beside compose."""
        command = ["docker", *arguments]
        ran = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()


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
        environment["REPORT"] = "0"  # drawing takes seconds, and one test is enough for it
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
    """What `make compose` runs leaves a verified result and its picture on the host."""
    compose = project("up")
    run = subprocess.run(
        [ROOT / "scripts/compose.sh", "quickstart"],
        env=compose.environment
        | {"COMPOSE": shlex.join(compose.arguments()), "BUILD": "0", "REPORT": "1"}
        | {"RESULTS": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, output_of(run)
    assert "report.html" in run.stdout
    assert (tmp_path / "report.html").stat().st_size > 100_000
    assert list((tmp_path / "figures").glob("*.png"))
    assert compose("ps", "-a", "-q").stdout == "", "nothing of it is left"
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
        " && { find / /tmp -xdev -name '*.nb[ic]' -newer /tmp/start 2>/dev/null || true; }"
        " && find /var/cache/predump -name '*.nbc' | wc -l"
    )

    entry = ("--entrypoint", "lab-entry", "runner", "sh", "-c", script)
    run = nodes.in_container("-u", OTHER_USER, *entry)

    lines = run.stdout.splitlines()
    assert lines[0] == OTHER_USER
    assert not [line for line in lines if ".nb" in line]
    assert int(lines[-1]) > 50


# -- the laboratory: what may go wrong between two hosts, with their containers

LINK_BITS = 200_000_000
MEASURED = (
    "--set clock=wall --set link.bandwidth=unlimited --set memory=32MiB --set policy.kind=fixed "
    "--set workload.kind=uniform --set workload.rate='5000 pages/s' --set migration.run_after=200ms"
)
"""In real time, as fast as the link carries it: rounds 0, 1, 2 take about 1.4, 1.1 and 0.9 s."""


@pytest.fixture(scope="module")
def laboratory(project: Callable[[str], Compose]) -> Iterator[Compose]:
    """Nodes with mutual TLS behind a link of 200 Mbit/s, which run on to the next test."""
    compose = project("laboratory")
    settings = {
        "TLS": "1",
        "LINK": "200mbit",
        "NODE_USER": "root",
        "LOG_FORMAT": "json",
        "SOURCE_CPUS": "1.5",
        "COMPOSE_PROFILES": "second,dashboard",
    }
    compose = replace(compose, environment=compose.environment | settings)
    compose("up", "-d", "source", "dest")
    yield compose
    compose("kill", check=False)  # a farewell is for the test that measures it
    compose("down", "--volumes", "--remove-orphans", check=False)


@contextmanager
def migrating(compose: Compose, results: Path, *, rounds: int) -> Iterator[subprocess.Popen[str]]:
    """A migration that has just begun its round 2."""
    started = time.time()
    environment = compose.environment | {
        "RESULTS": str(results),
        "PREDUMP_ARGS": f"{MEASURED} --set policy.rounds={rounds}",
    }
    with (
        subprocess.Popen(
            compose.arguments("run", "--rm", "-T", "runner"),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as runner,
        subprocess.Popen(
            ["docker", "logs", "-f", "--since", str(int(started)), compose.container("source")],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as log,
    ):
        assert log.stderr is not None
        for line in log.stderr:
            told = json.loads(line)
            if told["message"] == "round 2" and told["time"] > iso(started):
                break
        log.kill()
        yield runner


def iso(moment: float) -> str:
    """As the nodes' logs write a moment; such texts are in order."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def test_a_link_of_200_mbit_carries_that_over_mutual_tls(
    laboratory: Compose, tmp_path: Path
) -> None:
    """Measured where pages are received, within a tenth; nobody else may call the nodes."""
    run = laboratory.migrate(tmp_path, PREDUMP_ARGS=f"{MEASURED} --set policy.rounds=1")

    assert run.returncode == 0, output_of(run)
    result = result_in(tmp_path)
    assert result["verified"] is True
    first = result["rounds"][0]
    assert first["bytes_wire"] * 8 / first["duration_s"] == pytest.approx(LINK_BITS, rel=0.1)

    ask = ("exec", "-T", "-u", "predump", "source", "python", "-m", "predump.health")
    authority = ("--tls-ca", "/tls/ca.pem")
    own = ("--tls-cert", "/tls/runner.pem", "--tls-key", "/tls/runner.key")
    for node in ("source:50051", "dest:50052"):
        assert laboratory(*ask, node, *authority, *own).returncode == 0
        assert laboratory(*ask, node, *authority, check=False).returncode == 1
    assert laboratory(*ask, "dest:50052", check=False).returncode == 1


def test_containers_have_what_they_need_and_no_more(laboratory: Compose) -> None:
    """Though it began as root, to shape: a node is a user's, without capabilities, and may not
    write to its image; the source has the processors that it was given."""
    for node in ("source", "dest"):
        status = laboratory("exec", "-T", "-u", "predump", node, "cat", "/proc/1/status").stdout
        found = dict(line.split(":\t", 1) for line in status.splitlines())
        assert set(found["Uid"].split()) == {"1000"}
        assert {found[name] for name in ("CapEff", "CapPrm", "CapAmb")} == {"0" * 16}
        assert found["NoNewPrivs"] == "1"
        written = laboratory("exec", "-T", node, "touch", "/app/x", check=False)
        assert "Read-only file system" in output_of(written)
    limit = laboratory.engine(
        "inspect", "-f", "{{.HostConfig.NanoCpus}}", laboratory.container("source")
    )
    assert int(limit) == 1_500_000_000


def test_metrics_of_a_node_are_there_for_its_neighbours(laboratory: Compose) -> None:
    """As Prometheus asks for them, from another container."""
    fetch = (
        "import urllib.request as u; print(u.urlopen('http://dest:9100/metrics').read().decode())"
    )

    text = laboratory("exec", "-T", "source", "python", "-c", fetch).stdout

    assert 'predump_dest_migrations_total{outcome="committed"} 1.0' in text


def test_the_dashboard_is_served_beside_the_nodes(laboratory: Compose) -> None:
    """Over TLS to both nodes; compose waits for it to be healthy."""
    laboratory("up", "-d", "dashboard")
    page = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:7080/').read().decode())"
    deadline = time.monotonic() + 60
    while True:
        ended = laboratory("exec", "-T", "dashboard", "python", "-c", page, check=False)
        if ended.returncode == 0 or time.monotonic() > deadline:
            break
        time.sleep(0.3)

    assert "<title>Predump</title>" in ended.stdout, output_of(ended)


def test_a_link_that_is_cut_and_healed_delays_a_migration(
    laboratory: Compose, tmp_path: Path
) -> None:
    """The destination's cable is pulled in round 2 for two seconds: every byte still arrives."""
    dest = laboratory.container("dest")
    networks = laboratory.engine(
        "inspect", "-f", "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}", dest
    )
    with migrating(laboratory, tmp_path, rounds=3) as runner:
        laboratory.engine("network", "disconnect", networks, dest)
        time.sleep(2)
        assert runner.poll() is None
        laboratory.engine("network", "connect", "--alias", "dest", networks, dest)
        out, _ = runner.communicate(timeout=120)

    assert runner.returncode == 0, out
    result = result_in(tmp_path)
    assert (result["verified"], result["owner"]) == (True, "destination")
    assert max(entry["duration_s"] for entry in result["rounds"][2:]) > 2


def test_a_destination_killed_in_round_2_leaves_the_task_at_the_source(
    laboratory: Compose, tmp_path: Path
) -> None:
    """kill -9: the source takes the task back, unharmed; the next migration finds another host."""
    with migrating(laboratory, tmp_path, rounds=3) as runner:
        laboratory.engine("kill", laboratory.container("dest"))
        out, _ = runner.communicate(timeout=120)

    assert runner.returncode == 1, out
    result = result_in(tmp_path)
    assert (result["verified"], result["owner"]) == (False, "source")
    assert "the source kept the task" in result["error"]
    assert [entry["round"] for entry in result["rounds"]] == [0, 1]

    laboratory("up", "-d", "dest2")
    other = {"DEST": "dest2", "SCENARIO": "scenarios/idle.toml"}
    run = laboratory.migrate(tmp_path, **other)
    assert run.returncode == 0, output_of(run)
    assert result_in(tmp_path)["verified"] is True
    assert "committed" in laboratory("logs", "dest2").stdout


def test_a_link_that_cannot_be_shaped_is_refused_in_one_line(laboratory: Compose) -> None:
    """What tc says, and what to do about it."""
    node = ("source", "source", "--listen=127.0.0.1:0")
    run = ("run", "--rm", "-T", "--no-deps")
    nonsense = laboratory(*run, "-e", "LINK=banana", *node, check=False)
    weak = laboratory(*run, "-u", "predump", *node, check=False)

    for ended, hint in ((nonsense, "leave LINK empty"), (weak, "NODE_USER=root")):
        assert ended.returncode == 2, output_of(ended)
        (line,) = (x for x in output_of(ended).splitlines() if x.startswith("lab-entry: "))
        assert hint in line


def test_nodes_end_in_good_order_within_ten_seconds(laboratory: Compose) -> None:
    """SIGTERM is enough: nothing has to be killed."""
    laboratory("up", "-d", "source", "dest")
    began = time.monotonic()
    laboratory("stop", "source", "dest")
    assert time.monotonic() - began < 10

    for node in ("source", "dest"):
        code = laboratory.engine("inspect", "-f", "{{.State.ExitCode}}", laboratory.container(node))
        assert code == "0"
