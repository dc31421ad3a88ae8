"""docker-compose.yml, run for real: images built, containers up, a task migrated between them.

The command of docs/compose.md starts and ends everything. It is run twice, for its exit status; the
other scenarios go one after the other through the same two nodes, as they would at a user's who
leaves them running.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.compose.compose import ROOT, Compose, output_of, result_in

OTHER_USER = "4321"
"""A user that neither the host nor the image knows."""

# One engine start, with its images made from scratch, takes some minutes.
pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]


def test_up_migrates_a_task_and_ends_with_status_0(
    project: Callable[[str], Compose], tmp_path: Path
) -> None:
    """What `make compose` runs leaves a verified result and its picture on the host."""
    compose = project("up")
    run = compose.script(
        "scripts/compose.sh",
        "quickstart",
        COMPOSE=shlex.join(compose.arguments()),
        REPORT="1",
        RESULTS=str(tmp_path),
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
