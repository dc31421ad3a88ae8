"""The laboratory of docker-compose.yml: mutual TLS, a shaped link, and hosts that fail."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.compose.compose import ROOT, Compose, output_of, result_in

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

LINK_BITS = 200_000_000
MEASURED = (
    "--set clock=wall --set link.bandwidth=unlimited --set memory=32MiB --set policy.kind=fixed "
    "--set workload.kind=uniform --set workload.rate='5000 pages/s' --set migration.run_after=200ms"
)
"""In real time, as fast as the link carries it: rounds 0, 1, 2 take about 1.4, 1.1 and 0.9 s."""


@pytest.fixture(scope="module")
def laboratory(project: Callable[[str], Compose]) -> Iterator[Compose]:
    """Nodes with mutual TLS behind a link of 200 Mbit/s, which run on to the next test."""
    compose = project("laboratory").having(
        TLS="1",
        LINK="200mbit",
        NODE_USER="root",
        LOG_FORMAT="json",
        SOURCE_CPUS="1.5",
        COMPOSE_PROFILES="second,dashboard",
    )
    compose("up", "-d", "source", "dest")
    yield compose
    compose.remove()


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
