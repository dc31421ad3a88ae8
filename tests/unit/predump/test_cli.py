"""The command line: what it calls, what it prints where, and the exit status.

A fake takes the runner's place; tests with real processes are in tests/e2e.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
from typer.testing import CliRunner

import predump.runner
from livemigration.errors import MigrationError
from predump.cli import app
from predump.result import Result
from predump.runner import Hosts, RunError
from predump.scenario import Scenario
from tests.unit.predump.make_result import lossy_result, result_of

SCENARIO = """
schema = "predump.scenario/1"
name = "mine"
memory = "1MiB"
[workload]
kind = "uniform"
[telemetry]
mqtt = "mqtt://broker"
"""


class FakeRunner:
    """Takes the place of `run_scenario`: keeps what it was given, gives what it was told to."""

    def __init__(self) -> None:
        self.outcomes: list[Result | BaseException] = [result_of()]
        self.calls: list[tuple[Scenario, Mapping[str, Any]]] = []

    async def __call__(self, scenario: Scenario, **options: Any) -> Result:
        self.calls.append((scenario, options))
        options["on_event"]({"phase": "round-done", "round": {"round": 0, "pages_sent": 256}})
        outcome = self.outcomes[min(len(self.calls), len(self.outcomes)) - 1]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    @property
    def scenario(self) -> Scenario:
        """The scenario of the only run."""
        ((scenario, _),) = self.calls
        return scenario

    @property
    def hosts(self) -> Hosts | None:
        """The nodes of the only run."""
        ((_, options),) = self.calls
        hosts: Hosts | None = options.get("hosts")
        return hosts


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> FakeRunner:
    fake = FakeRunner()
    monkeypatch.setattr(predump.runner, "run_scenario", fake)
    return fake


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(SCENARIO)
    return str(path)


def call(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of ``predump ARGUMENTS``."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


# -- run


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (result_of(), 0),
        (lossy_result(), 3),
        (result_of(continued_equal=False), 3),
        (result_of(verified=False, error="the destination was lost", owner="source"), 1),
        (RunError("the destination did not start"), 1),
        (RunError("workload.write_size = 9 is odd", 2), 2),
        (MigrationError("the link is gone"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_exit_status_tells_how_it_ended(
    runner: FakeRunner, scenario: str, outcome: Result | BaseException, status: int
) -> None:
    runner.outcomes = [outcome]
    code, _, _ = call("run", scenario)
    assert code == status


def test_run_shows_progress_tables_and_the_verdict(runner: FakeRunner, scenario: str) -> None:
    _, out, err = call("run", scenario)
    assert out.startswith("round 0: 256 pages\n")
    assert "Downtime" in out
    assert "Verified: every page is equal" in out
    assert err == ""


def test_run_starts_both_nodes_itself_unless_told_where_they_are(
    runner: FakeRunner, scenario: str
) -> None:
    call("run", scenario)
    assert runner.hosts is None


def test_run_uses_the_nodes_it_is_told_of(runner: FakeRunner, scenario: str) -> None:
    call("run", scenario, "--source", "a:1", "--dest", "b:2")
    assert runner.hosts == Hosts(source="a:1", dest="b:2", tls=None)


def test_set_reaches_the_scenario(runner: FakeRunner, scenario: str) -> None:
    call("run", scenario, "--set", "memory=2MiB", "--set", "hunks.off=pte_modify")
    assert runner.scenario.task.memory == 2 * 2**20
    assert runner.scenario.task.hunks.off == ("pte_modify",)


@pytest.mark.parametrize(
    ("arguments", "broker"), [((), "mqtt://broker"), (("--mqtt", "mqtt://other"), "mqtt://other")]
)
def test_the_broker_is_the_scenarios_or_the_options(
    runner: FakeRunner, scenario: str, arguments: tuple[str, ...], broker: str
) -> None:
    call("run", scenario, *arguments)
    ((_, options),) = runner.calls
    assert options["mqtt"] == broker


def test_json_on_standard_output_is_alone_there(runner: FakeRunner, scenario: str) -> None:
    _, out, err = call("run", scenario, "--json", "-")
    assert Result.from_json(out) == result_of()
    assert "round 0: 256 pages" in err
    assert "Verified" in err


def test_json_goes_to_a_file_too(runner: FakeRunner, scenario: str, tmp_path: Path) -> None:
    runner.outcomes = [lossy_result()]
    code, out, _ = call("run", scenario, "--json", tmp_path / "r.json")
    assert code == 3
    assert Result.from_json((tmp_path / "r.json").read_text()) == lossy_result()
    assert "Memory differs" in out


def test_a_result_is_the_same_object_wherever_it_goes(
    runner: FakeRunner, scenario: str, tmp_path: Path
) -> None:
    _, out, _ = call("run", scenario, "--json", "-")
    call("run", scenario, "--json", tmp_path / "r.json")
    assert json.loads(out) == json.loads((tmp_path / "r.json").read_text())


def test_a_file_that_cannot_be_written_is_an_error(runner: FakeRunner, scenario: str) -> None:
    code, _, err = call("run", scenario, "--json", "/dev/full")
    assert code == 1
    assert err == "predump: error: /dev/full: cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["FILE", "--set", "memory"], "--set 'memory': not KEY=VALUE; "),
        (
            ["FILE", "--set", "memroy=1"],
            "--set memroy=1: memroy: unknown key 'memroy'; did you mean",
        ),
        (["none.toml"], "none.toml: there is no such file"),
        (["/"], "/: is a directory; name a scenario file in it"),
        (["FILE", "--source", "a:1"], "--source and --dest go together"),
        (["FILE", "--dest", "a:1"], "--source and --dest go together"),
        (
            ["FILE", "--source", "a", "--dest", "b:1"],
            "--source: 'a' is not an address; write HOST:",
        ),
        (["FILE", "--source", "a:1", "--dest", "b:0"], "--dest: 'b:0' has port 0; write the port"),
        (["FILE", "--source", "a:1", "--dest", "b:70000"], "--dest: 'b:70000' is not an address"),
        (["FILE", "--json", "/"], "--json /: is a directory; name a file in it"),
        (["FILE", "--json", "/no/r.json"], "--json /no/r.json: there is no directory /no"),
        (["FILE", "--mqtt", "broker"], "--mqtt: broker URL 'broker' does not start with mqtt://"),
        (["FILE", "--tls-ca", "ca.pem"], "--tls-ca, --tls-cert and --tls-key need --source and"),
        (
            ["FILE", "--source", "a:1", "--dest", "b:1", "--tls-cert", "c.pem"],
            "--tls-cert and --tls-key need --tls-ca",
        ),
        (
            ["FILE", "--source", "a:1", "--dest", "b:1", "--tls-ca", "none.pem"],
            "none.pem: cannot be read: No such file or directory",
        ),
        (
            ["FILE", "--source", "a:1", "--dest", "b:1", "--mqtt", "mqtt://b"],
            "--mqtt is for nodes started here; give it to `predump serve` instead",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_nothing_runs(
    runner: FakeRunner, scenario: str, arguments: list[str], line: str
) -> None:
    code, out, err = call("run", *(scenario if a == "FILE" else a for a in arguments))
    assert code == 2
    assert out == ""
    assert err.startswith(f"predump: error: {line}")
    assert err.count("\n") == 1
    assert runner.calls == []


def test_an_unexpected_error_is_one_line_without_a_traceback(
    runner: FakeRunner, scenario: str
) -> None:
    runner.outcomes = [RuntimeError("two\nlines")]
    code, _, err = call("run", scenario)
    assert code == 1
    assert err == "predump: error: unexpected RuntimeError: two lines (--debug shows where)\n"


def test_debug_shows_where_an_error_came_from(runner: FakeRunner, scenario: str) -> None:
    runner.outcomes = [RuntimeError("inside")]
    with pytest.raises(RuntimeError, match="inside"):
        call("run", scenario, "--debug")


# -- migrate


def test_migrate_gives_the_scenario_to_running_nodes(runner: FakeRunner, scenario: str) -> None:
    nodes = ("--source", "a:1", "--dest", "b:2")
    code, _, _ = call("migrate", *nodes, "--scenario", scenario, "--set", "seed=9")
    assert code == 0
    assert runner.hosts == Hosts(source="a:1", dest="b:2", tls=None)
    assert (runner.scenario.name, runner.scenario.task.seed) == ("mine", 9)


def test_migrate_without_a_scenario_takes_the_demos(runner: FakeRunner) -> None:
    call("migrate", "--source", "a:1", "--dest", "b:2", "--set", "memory=64MiB")
    assert (runner.scenario.name, runner.scenario.task.memory) == ("demo", 64 * 2**20)


def test_migrate_needs_both_nodes(runner: FakeRunner) -> None:
    code, _, err = call("migrate", "--source", "a:1")
    assert code == 2
    assert "--dest" in err
    assert runner.calls == []


def test_paths_in_a_scenario_are_the_source_hosts(
    runner: FakeRunner, scenario: str, tmp_path: Path
) -> None:
    call("migrate", "--source", "a:1", "--dest", "b:2", "--scenario", scenario)
    call("run", scenario, "--set", "source.images=dump", "--source", "a:1", "--dest", "b:2")
    assert runner.calls[1][0].task.source.images == str(tmp_path / "dump")


def test_tls_files_are_passed_on(runner: FakeRunner, scenario: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    own = authority.issue_cert("client")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    files = [f"--tls-{name}={tmp_path / f'{name}.pem'}" for name in ("ca", "cert", "key")]
    code, _, err = call("run", scenario, "--source", "a:1", "--dest", "b:2", *files)
    assert (code, err) == (0, "")
    assert runner.hosts is not None
    assert runner.hosts.tls is not None
    assert runner.hosts.tls.ca == tmp_path / "ca.pem"
    assert runner.hosts.tls.key == tmp_path / "key.pem"


# -- demo


def test_demo_ends_well_only_if_both_parts_did_what_they_should(runner: FakeRunner) -> None:
    runner.outcomes = [result_of(), lossy_result()]
    code, out, _ = call("demo")
    assert code == 0
    assert "Both parts did what they should" in out
    assert [run.task.hunks.off for run, _ in runner.calls] == [(), ("ptep_set_access_flags",)]


def test_demo_ends_badly_if_nothing_was_lost(runner: FakeRunner) -> None:
    code, _, _ = call("demo")
    assert code == 1


def test_demo_ends_with_one_line_if_a_node_does_not_start(runner: FakeRunner) -> None:
    runner.outcomes = [RunError("the source did not start")]
    code, _, err = call("demo")
    assert (code, err) == (1, "predump: error: the source did not start\n")


# -- serve


@pytest.mark.parametrize("role", ["source", "dest"])
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--listen", "8080"], "--listen: '8080' is not an address; write HOST:PORT"),
        (["--port-file", "/no/port"], "--port-file /no/port: there is no directory /no"),
        (["--mqtt", "http://b"], "--mqtt: broker URL 'http://b' does not start with mqtt://"),
        (["--tls-cert", "c.pem"], "--tls-cert and --tls-key go together; give both"),
        (["--tls-client-ca", "ca.pem"], "--tls-client-ca needs --tls-cert and --tls-key"),
        (["--tls-cert", "c.pem", "--tls-key", "k.pem"], "c.pem: cannot be read: No such file"),
    ],
)
def test_a_node_that_cannot_be_started_says_why(role: str, arguments: list[str], line: str) -> None:
    code, out, err = call("serve", role, *arguments)
    assert code == 2
    assert err.startswith(f"predump: error: {line}")
    assert err.count("\n") == 1
    assert out == ""


def test_a_drill_is_checked() -> None:
    code, _, err = call("serve", "dest", "--drill", "kill@lunch")
    assert code == 2
    assert err.startswith(
        "predump: error: --drill: 'kill@lunch' is not a drill; write ACTION@PHASE"
    )


# -- the small ones


def test_version_names_what_it_runs_on() -> None:
    code, out, _ = call("version")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()]
    assert names[:3] == ["python", "machine", "predump"]
    assert f"python {sys.version.split()[0]}" in out.splitlines()


def test_it_is_also_a_module() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "predump", "run", "none.toml"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 2
    assert ran.stderr == "predump: error: none.toml: there is no such file\n"
    assert ran.stdout == ""


def test_without_arguments_there_is_help() -> None:
    _, out, err = call()
    commands = ("demo", "run", "serve", "migrate", "watch", "workload", "version")
    for command in (*commands, "conform", "hunks", "mm"):
        assert command in out + err


def test_an_unknown_command_is_bad_input() -> None:
    code, _, err = call("migrte")
    assert code == 2
    assert "migrate" in err


def test_reading_a_command_line_loads_neither_the_model_nor_grpc() -> None:
    """Half a second of each command, be it only to say that a file is missing."""
    heavy = {"numpy", "numba", "mm_model", "grpc", "duckdb"}
    script = f"import sys, predump.cli; print(*sorted({heavy!r} & sys.modules.keys()))"
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.split() == []
