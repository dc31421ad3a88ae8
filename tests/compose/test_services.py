"""Every service of docker-compose.yml, of all profiles at once: what it may do, and that it works.

Locked down, healthy, nobody is root, gone within ten seconds; and Prometheus hears both nodes.
"""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compose.compose import Compose, output_of, result_in

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

RUN = ("source", "dest", "dashboard", "prometheus", "criu", "broker")
"""Services that run until they are stopped, in an order in which they can be."""
ALIKE = ("dest2", "criu-dest")
"""More of the same image, with the same settings: not run here."""
END = ("runner", "criu-runner", "criu-dump", "criu-compare")
"""Services that do one thing; nobody waits for their health."""


@pytest.fixture(scope="module")
def everything(project: Callable[[str], Compose]) -> Iterator[Compose]:
    """All services, of which those of `RUN` have been started."""
    compose = project("services").having(
        COMPOSE_PROFILES="second,dashboard,prometheus,criu",
        # Some free ports: those of the file may be taken where the engine is the machine's own.
        DASHBOARD_PORT="0",
        PROMETHEUS_PORT="0",
    )
    compose("up", "--no-start")
    compose("up", "-d", *RUN)
    yield compose
    compose.remove()


def inspected(compose: Compose, service: str) -> dict[str, Any]:
    """What the engine knows of a service's container."""
    (found,) = json.loads(compose.engine("inspect", compose.container(service)))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("service", [*RUN, *ALIKE, *END])
def test_a_service_may_do_little(everything: Compose, service: str) -> None:
    """A system that cannot be written to, no capabilities but those of the file, no new ones."""
    found = inspected(everything, service)
    host = found["HostConfig"]

    assert host["ReadonlyRootfs"] is True
    assert host["Privileged"] is False
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    health = found["Config"].get("Healthcheck", {"Test": ["NONE"]})
    assert (health["Test"][0] != "NONE") == (service not in END)


@pytest.mark.parametrize("service", RUN)
def test_a_service_becomes_healthy_and_is_not_root(everything: Compose, service: str) -> None:
    """Whatever it starts as: no process of it is root's, and none can write to its image."""
    deadline = time.monotonic() + 60
    while inspected(everything, service)["State"]["Health"]["Status"] != "healthy":
        assert time.monotonic() < deadline, output_of(everything("logs", service))
        time.sleep(0.3)

    processes = everything.engine("top", everything.container(service), "-eo", "pid,uid,args")
    users = {int(line.split()[1]) for line in processes.splitlines()[1:]}
    assert users
    assert 0 not in users, processes
    written = everything("exec", "-T", service, "touch", "/x", check=False)
    assert "Read-only file system" in output_of(written)


def asked(compose: Compose, query: str) -> list[dict[str, Any]]:
    """What Prometheus answers to a query, over its HTTP API."""
    url = f"http://127.0.0.1:9090/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    answer = json.loads(compose("exec", "-T", "prometheus", "wget", "-q", "-O-", url).stdout)
    assert answer["status"] == "success"
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def test_prometheus_keeps_what_both_nodes_count(everything: Compose, tmp_path: Path) -> None:
    """Its figures of a migration are those of the result."""
    run = everything.migrate(tmp_path, SCENARIO="scenarios/idle.toml")
    assert run.returncode == 0, output_of(run)
    sent = sum(entry["bytes_wire"] for entry in result_in(tmp_path)["rounds"])

    deadline = time.monotonic() + 30
    while not (counted := asked(everything, "predump_source_wire_bytes_total > 0")):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    up = {entry["metric"]["instance"]: entry["value"][1] for entry in asked(everything, "up")}

    assert up == {"source:9100": "1", "dest:9100": "1"}
    assert [float(entry["value"][1]) for entry in counted] == [sent]
    committed = 'predump_dest_migrations_total{outcome="committed"}'
    assert [entry["value"][1] for entry in asked(everything, committed)] == ["1"]


def test_all_end_in_good_order_within_ten_seconds(everything: Compose) -> None:
    """SIGTERM is enough for every one of them: after ten seconds the engine kills it (137)."""
    codes = {}
    for service in RUN:
        everything.engine("stop", "--time", "10", everything.container(service))
        codes[service] = inspected(everything, service)["State"]["ExitCode"]

    assert codes == dict.fromkeys(RUN, 0)
