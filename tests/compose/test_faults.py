"""Faults through the Docker API, on a real engine: each that it makes, and what it saw of them.

`make faults DOCKER=1` runs all of them.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from predump.faults.spec import FOLDER, KINDS, load_all
from tests.compose.compose import Compose, Run, output_of

pytestmark = [pytest.mark.compose, pytest.mark.timeout(600)]

SOURCE, DEST, BROKER = "fault-source", "fault-dest", "fault-broker"
HOUR = 3600
WRONG = "a-wrong-outcome"


RELAYS = {kind for kind in KINDS if kind.endswith("-frames")} | {"slow-destination", "slow-caller"}
HERE = [kind for kind in KINDS if kind not in RELAYS] + ["corrupt-frames"]
"""What the relay does it does alike with processes (tests/e2e/test_faults.py): here, one of it."""


@pytest.fixture(scope="module")
def laboratory(project: Callable[[str], Compose]) -> Iterator[Compose]:
    """The services of the faults, which run on from one test to the next."""
    compose = project("faults")
    socket = compose.environment.get("DOCKER_HOST", "").removeprefix("unix://")
    settings = {"DOCKER_SOCKET": socket} if socket else {}
    compose = compose.having(COMPOSE_PROFILES="faults", **settings)
    yield compose
    compose.remove()


def first_case(name: str, outcome: str = "") -> str:
    """A fault file of ours with its first case only; `outcome`: with another one."""
    head, case, *_ = (FOLDER / f"{name}.toml").read_text().split("[[case]]")
    if outcome:
        lines = case.splitlines()
        case = "\n".join(f'outcome = "{outcome}"' if x.startswith("outcome") else x for x in lines)
    return f"{head}[[case]]{case}"


def run(compose: Compose, folder: Path, *arguments: str) -> Run:
    """`predump faults run --docker` with fault files of a folder of the test's."""
    folder.chmod(0o755)
    files = [f"/faults/{path.name}" for path in sorted(folder.glob("*.toml"))]
    mount = ("-v", f"{folder}:/faults:ro")
    return compose("run", "--rm", "-T", *mount, "faults", *files, *arguments, check=False)


@dataclass(frozen=True, slots=True)
class Seen:
    """One entry of the engine's own record."""

    action: str
    container: str
    project: str

    @classmethod
    def of(cls, event: dict[str, Any]) -> Seen:
        attributes = event["Actor"]["Attributes"]
        if event["Type"] == "network":
            return cls(f"network {event['Action']}", attributes.get("container", ""), "")
        return cls(
            event["Action"],
            attributes.get("com.docker.compose.service", ""),
            attributes.get("com.docker.compose.project", ""),
        )


@dataclass(frozen=True, slots=True)
class Session:
    """A run of one case of each kind and one that is wrong, and what the engine recorded of it."""

    run: Run
    events: list[Seen]

    def did(self, container: str, *actions: str) -> bool:
        """Whether these were done to the container, in this order."""
        done = iter([e.action for e in self.events if e.container == container])
        return all(any(each.startswith(action) for each in done) for action in actions)


@pytest.fixture(scope="module")
def session(laboratory: Compose, tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("faults")
    for kind in HERE:
        *_, fault = (each for each in load_all() if each.spec.kind == kind)
        (folder / f"{kind}.toml").write_text(first_case(fault.name))
    (folder / f"{WRONG}.toml").write_text(first_case("frames-swallowed", outcome="rolled-back"))
    with (  # while it happens: the engine itself remembers only the last 256
        (folder / "events").open("w+") as record,
        subprocess.Popen(
            ["docker", "events", "--since", "0s", "--format", "{{json .}}"],
            env=laboratory.environment,
            stdin=subprocess.DEVNULL,
            stdout=record,
        ) as events,
    ):
        ran = run(laboratory, folder, "--json")
        events.terminate()
        events.wait()
        record.seek(0)
        return Session(ran, [Seen.of(json.loads(line)) for line in record])


def test_cases_end_as_their_files_say(session: Session) -> None:
    trials = {t["fault"]: t for t in map(json.loads, session.run.stdout.splitlines())}
    assert trials.keys() == {*HERE, WRONG}, output_of(session.run)
    del trials[WRONG]
    for trial in trials.values():
        assert (trial["outcome"], trial["problems"]) == (trial["expected"], [])
    compared = [t["bytes_compared"] for t in trials.values() if t["outcome"] == "migrated"]
    assert min(compared) >= 8 << 20
    assert "No space left on device" in trials["fill-disk"]["error"]


def test_the_engine_saw_what_was_done(laboratory: Compose, session: Session) -> None:
    """Killed and started again, frozen, off the network and on it; and inside of the container:
    its interface down and up, a token bucket set and taken away."""
    assert session.did(SOURCE, "kill", "die", "start")
    assert session.did(DEST, "kill", "die", "start")
    assert session.did(BROKER, "kill", "die", "start")
    assert session.did(SOURCE, "pause", "unpause")
    assert session.did(DEST, "pause", "unpause")
    dest = laboratory.container(DEST)
    assert session.did(dest, "network disconnect", "network connect")
    for host in (SOURCE, DEST):
        add, remove = "exec_create: tc qdisc replace dev eth", "exec_create: tc qdisc del dev eth"
        assert session.did(host, add, remove)
    down, up = (f"exec_create: ip link set eth{n} down" for n in (0, 1)), "exec_create: ip link set"
    assert any(session.did(DEST, each, up) for each in down)


def test_no_other_container_was_touched(laboratory: Compose, session: Session) -> None:
    """Though those of other tests are beside them."""
    done = ("kill", "pause", "unpause", "exec_create: ip", "exec_create: tc")
    touched = {
        (e.project, e.container)
        for e in session.events
        if e.action.startswith(done) and e.container != "faults"
    }
    assert touched == {(laboratory.project, service) for service in (SOURCE, DEST, BROKER)}


def test_a_case_that_ends_otherwise_is_the_exit_status(session: Session) -> None:
    (wrong,) = (t for t in map(json.loads, session.run.stdout.splitlines()) if t["problems"])
    assert wrong["fault"] == WRONG
    assert wrong["problems"] == ["it ended migrated, not rolled-back: "]
    assert session.run.returncode == 1, output_of(session.run)


def test_the_one_command_ends_with_its_status_and_leaves_nothing(laboratory: Compose) -> None:
    """What `make faults DOCKER=1` calls."""
    project = f"{laboratory.project}-command"
    ended = laboratory.script("scripts/compose-faults.sh", "slow-caller", FAULTS_PROJECT=project)
    assert ended.returncode == 0, output_of(ended)
    assert "1 cases, 0 wrong" in ended.stdout
    label = ("--filter", f"label=com.docker.compose.project={project}", "-q")
    for kind in (("container", "ls", "-a"), ("network", "ls"), ("volume", "ls")):
        assert laboratory.engine(*kind, *label) == ""


def test_the_clock_of_a_node_really_jumped(laboratory: Compose, session: Session) -> None:
    """By what the node wrote to its log, and the engine's time of the same line."""
    log = laboratory("logs", "-t", "--no-log-prefix", SOURCE).stdout
    # The engine's time of a line, then the node's.
    second = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)"
    pairs = re.findall(rf"{second}\S* {second}\S* info ", log)
    behind = [_seconds(engine) - _seconds(node) for engine, node in pairs]
    assert min(behind, key=abs) == pytest.approx(0, abs=60)
    assert max(behind, key=abs) == pytest.approx(-HOUR, abs=60)


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()


def test_all_is_well_again_afterwards(laboratory: Compose, session: Session) -> None:
    """The destination's disk, its place on the cable and how fast that is, the clocks."""
    state = laboratory("exec", "-T", DEST, "ls", "-A", "/state").stdout.split()
    assert sorted(state) == ["lock", "store-id"]
    clock = laboratory("exec", "-T", DEST, "od", "-An", "-td8", "/clock/ahead").stdout.split()
    assert clock == ["0"]
    for service in (SOURCE, DEST):
        queues = laboratory("exec", "-T", service, "tc", "qdisc", "show").stdout
        assert "qdisc" in queues and "tbf" not in queues
        links = json.loads(laboratory("exec", "-T", service, "ip", "-j", "address").stdout)
        assert [link["operstate"] for link in links if link["ifname"] != "lo"] == ["UP", "UP"]
