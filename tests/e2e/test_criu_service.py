"""``predump criu service``, ``tasks`` and ``shim`` as commands: one service, started and ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from predump.cli import app

SCENARIO = """\
schema = "predump.scenario/1"
name = "store"
memory = "256KiB"
[workload]
kind = "uniform"
rate = "100 pages/s"
"""


def predump(*arguments: object, status: int = 0) -> str:
    ran = CliRunner().invoke(app, ["criu", *map(str, arguments)])
    assert ran.exit_code == status, ran.output
    return ran.output


def test_a_service_from_start_to_end(tmp_path: Path) -> None:
    scenario = tmp_path / "store.toml"
    scenario.write_text(SCENARIO)
    socket = tmp_path / "criu.socket"
    command = [sys.executable, "-m", "predump", "criu", "service", "--socket", str(socket)]
    command += ["--scenario", str(scenario), "--pid", "4711", "--criu-version", "4.1.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            assert service.stdout.readline() == "task 4711: store, 256KiB, virtual clock\n"
            listening = service.stdout.readline()
            assert listening == f"predump criu service listening on {socket}\n"
            at = ("--socket", socket)
            predump("tasks", *at, "--start", scenario, "--set", "seed=7")
            predump("tasks", *at, "--pid", 4711, "--advance", "2s")
            tasks = json.loads(predump("tasks", *at, "--json"))
            assert [(task["pid"], task["operations"]) for task in tasks] == [(1000, 0), (4711, 200)]
            assert "store" in predump("tasks", *at, "--pid", 1000, "--end")
            error = predump("tasks", *at, "--pid", 1000, "--end", status=1)
            assert "there is no simulated task 1000" in error
            shim = Path(predump("shim", "--install", tmp_path / "bin", *at).strip())
            environment = {"PATH": os.environ["PATH"]}  # the socket was baked in
            for arguments, said in (
                (["check"], "Looks good.\n"),
                (["--version"], "Version: 4.1.1\n"),
                (["dump", "-t", "4711", "-D", str(tmp_path)], ""),
            ):
                ran = subprocess.run(
                    [shim, *arguments], env=environment, capture_output=True, text=True, check=True
                )
                assert ran.stdout == said
            assert json.loads(predump("tasks", *at, "--json")) == []
        finally:
            service.send_signal(signal.SIGTERM)
            assert service.wait(60) == 0
    assert not socket.exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["service", "--scenario", "nowhere.toml"], "nowhere.toml"),
        (["service", "--step", "soon"], "--step"),
        (["service", "--criu-version", "new"], "--criu-version: 'new' is no version"),
        (["tasks", "--end"], "--advance and --end need --pid"),
        (["tasks", "--pid", "1", "--advance", "x"], "--advance"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], why: str) -> None:
    said = predump(*arguments, "--socket", tmp_path / "s", status=2)
    assert why in said
    assert len(said.splitlines()) == 1


def test_without_a_service(tmp_path: Path) -> None:
    said = predump("tasks", "--socket", tmp_path / "s", status=1)
    assert f"no service at {tmp_path}/s" in said
    said = predump("shim", "--install", "/proc/nowhere", status=1)
    assert "cannot be written" in said
