"""Recording real programs under the real valgrind, and migrating what was recorded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from predump.cli import app

PROGRAM = "my %k; $k{$_ % 97} .= 'item ' for 1 .. 3000; print length(join '', values %k), qq(\\n);"


def predump(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "predump", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def record(*arguments: str | Path) -> dict[str, Any]:
    """What `record` says of a recording that went well."""
    ran = predump("workload", "record", "--json", *arguments)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert isinstance(said, dict)
    return {**said, "errors": ran.stderr}


def look(command: str, path: Path, *options: str) -> dict[str, Any]:
    """What `show` or `replay` says, asked in this process, which saves starting another."""
    ran = CliRunner().invoke(app, ["workload", command, str(path), "--json", *options])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A Perl program's trace, and what was said of it."""
    path = tmp_path_factory.mktemp("recorded") / "perl.msgpack"
    return path, record("-o", path, "--", "perl", "-e", PROGRAM)


def test_the_program_runs_as_without_us(recording: tuple[Path, dict[str, Any]]) -> None:
    path, said = recording
    alone = subprocess.run(
        ["perl", "-e", PROGRAM], capture_output=True, text=True, check=True
    ).stdout
    assert said["errors"] == alone  # with --json the program's output goes to standard error
    assert said["schema"] == "predump.workload.record/1"
    assert said["command"] == ["perl", "-e", PROGRAM]
    assert said["created_by"].startswith("valgrind-")
    assert (said["exit_code"], said["complete"]) == (0, True)
    assert said["file_bytes"] == path.stat().st_size
    assert not path.with_name(path.name + ".part").exists()


def test_a_program_of_this_size_makes_so_many_stores(
    recording: tuple[Path, dict[str, Any]],
) -> None:
    _, said = recording
    # Perl alone takes a few million instructions to start; its stores are about a sixth of them.
    assert 10**6 < said["instructions"] < 10**9
    assert said["instructions"] / 20 < said["stores"] < said["instructions"]
    assert 50 < said["pages"] < said["records"] < said["stores"]
    assert said["duration_s"] == pytest.approx(said["instructions"] / 1e9, abs=2e-9)


def test_show_finds_in_the_file_what_record_said(
    recording: tuple[Path, dict[str, Any]],
) -> None:
    path, said = recording
    shown = look("show", path)
    for key in set(said) - {"schema", "errors"}:
        assert shown[key] == said[key]
    assert shown["hottest"][0]["stores"] > said["stores"] / said["pages"]
    assert max(shown["pages_per_window"]) <= said["pages"]


@pytest.mark.parametrize("page_size", [4096, 16384])
def test_replay_writes_the_recorded_pages(
    recording: tuple[Path, dict[str, Any]], page_size: int
) -> None:
    path, said = recording
    told = look("replay", path, "--page-size", str(page_size))
    intervals = told["intervals"]
    assert sum(interval["stores"] for interval in intervals) == said["records"]
    assert told["pages"] <= said["pages"]
    assert (told["pages"] == said["pages"]) == (page_size == 4096)
    for interval in intervals:
        assert interval["soft_dirty_pages"] <= min(told["pages"], interval["faults"])
    assert sum(interval["soft_dirty_pages"] for interval in intervals) >= told["pages"]


def test_a_recorded_program_is_migrated_and_goes_on(
    recording: tuple[Path, dict[str, Any]],
) -> None:
    path, said = recording
    scenario = path.with_name("mine.toml")
    scenario.write_text(
        'schema = "predump.scenario/1"\n'
        'memory = "8MiB"\n'
        "[workload]\n"
        'kind = "trace"\n'
        f'file = "{path.name}"\n'
        "speed = 0.05\n"
        "[policy]\n"
        'kind = "fixed"\n'
        "rounds = 3\n"
        "[verify]\n"
        'mode = "bytes"\n'
    )
    ran = predump("run", scenario, "--json", "-")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["verified"] is True
    assert result["continued_equal"] is True
    assert result["pages_lost"] == 0
    assert result["rounds"][0]["pages_sent"] == said["pages"]
    assert sum(done["pages_written"] for done in result["rounds"][1:]) > 0


def test_each_recording_of_a_program_is_much_the_same(tmp_path: Path) -> None:
    said = [record("-o", tmp_path / name, "--", "/bin/true") for name in ("one", "two")]
    assert said[0]["instructions"] == pytest.approx(said[1]["instructions"], rel=0.05)
    assert said[0]["stores"] == pytest.approx(said[1]["stores"], rel=0.05)


def test_the_name_of_the_trace_is_that_of_the_program_if_not_given(tmp_path: Path) -> None:
    source = str(Path(__file__).parents[2])
    ran = predump(
        "workload",
        "record",
        "--",
        "/bin/echo",
        "hi",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert ran.returncode == 0
    assert ran.stdout == "hi\n"
    assert ran.stderr.startswith("echo.trace.msgpack: ")
    assert [path.name for path in tmp_path.iterdir()] == ["echo.trace.msgpack"]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 7", "sh ended with exit status 7; the trace was kept"),
        ("kill -TERM $$", "sh was ended by signal 15; the trace was kept"),
    ],
)
def test_the_trace_of_a_program_that_fails_is_kept(tmp_path: Path, script: str, says: str) -> None:
    path = tmp_path / "t"
    ran = predump("workload", "record", "-o", path, "--", "sh", "-c", script)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == f"predump: error: {says}"
    shown = look("show", path)
    assert shown["complete"] is True
    assert shown["exit_code"] == (7 if "7" in script else -15)
    assert shown["pages"] > 10


def test_children_run_but_only_the_program_itself_is_recorded(tmp_path: Path) -> None:
    """The child, a Perl that does far more than its parent, is in the output and not the trace."""
    path = tmp_path / "t"
    script = "perl -e 'my $n = 0; $n += $_ for 1 .. 300000; print \"$n\\n\"'; echo end"
    ran = predump("workload", "record", "-o", path, "--", "sh", "-c", script)
    assert ran.returncode == 0
    assert ran.stdout == "45000150000\nend\n"
    assert look("show", path)["instructions"] < 10**6


def test_ctrl_c_keeps_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "t"
    process = subprocess.Popen(
        [sys.executable, "-m", "predump", "workload", "record", "-o", str(path), "--",
         "sh", "-c", "echo started; while :; do :; done"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 1
    assert errors.splitlines()[-1] == (
        "predump: error: stopped before sh ended; the trace holds what it did until then"
    )
    shown = look("show", path)
    assert shown["complete"] is False
    assert shown["instructions"] > 100_000


def test_a_full_disk_ends_the_program_and_leaves_no_half_trace(tmp_path: Path) -> None:
    """With a limit on the size of files in a full disk's place."""
    path = tmp_path / "t"
    limited = 'trap "" XFSZ; ulimit -f 8; exec "$@"'
    ran = subprocess.run(
        ["bash", "-c", limited, "bash", sys.executable, "-m", "predump", "workload", "record",
         "--slice", "1", "-o", str(path), "--", "perl", "-e", PROGRAM],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1] == (
        f"predump: error: {path}: cannot write the trace: File too large"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--", "no-such-program"], "no-such-program: no such program; give a command that can"),
        (["-o", "none/t", "--", "/bin/true"], "none/t: cannot write the trace: No such file or di"),
        (["-o", ".", "--", "/bin/true"], ".: is a directory; name a file for the trace"),
    ],
)
def test_what_cannot_be_recorded_is_one_line(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    source = str(Path(__file__).parents[2])
    ran = predump(
        "workload",
        "record",
        *arguments,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"predump: error: {says}")
    assert list(tmp_path.iterdir()) == []


def test_without_valgrind_it_says_how_to_get_it(tmp_path: Path) -> None:
    assert shutil.which("valgrind") is not None  # the other tests are about the real one
    ran = predump(
        "workload",
        "record",
        "-o",
        tmp_path / "t",
        "--",
        "/bin/true",
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert ran.returncode == 2
    assert ran.stderr == (
        "predump: error: valgrind is not installed; recording needs it "
        "(Debian and Ubuntu: apt-get install valgrind)\n"
    )
