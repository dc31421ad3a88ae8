"""`predump workload show` and `replay`, and what `record` refuses before it runs anything."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from predump.cli import app
from tests.unit.workload.harness import PERL
from tests.unit.workload.raw_traces import RECORDS, footer, good_items, header, write


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["workload", *map(str, arguments)])


def answer(*arguments: str | Path) -> dict[str, Any]:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def refusal(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("predump: error: ")
    return line.removeprefix("predump: error: ")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "small.trace", good_items(RECORDS))


class TestShow:
    def test_tells_what_there_is(self, trace: Path) -> None:
        shown = answer("show", trace, "--json", "--window", "500us", "--top", "1")
        assert shown == {
            "schema": "predump.workload.show/1",
            "file": str(trace),
            "file_bytes": trace.stat().st_size,
            "command": ["sort", "a file"],
            "page_size": 4096,
            "created_by": "by hand",
            "instructions_per_second": 1_000_000,
            "slice_instructions": 100,
            "chunks": 1,
            "records": 5,
            "stores": 42,
            "pages": 3,
            "instructions": 1000,
            "exit_code": 0,
            "complete": True,
            "duration_s": 0.001001,
            "window_s": 0.0005,
            "pages_per_window": [3, 1, 0],
            "pages_per_second_mean": pytest.approx(4 / 0.0015),
            "pages_per_second_peak": 6000.0,
            "hottest": [{"address": 0x4000_000, "stores": 36, "records": 3}],
        }

    def test_as_tables(self, trace: Path) -> None:
        result = run("show", trace)
        assert result.exit_code == 0
        for text in ("sort a file", "3 of 4KiB", "42 in 5 records", "0x4000000", "85.7 %"):
            assert text in result.stdout

    def test_a_stopped_recording_says_so(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t", [header(), footer(exit_code=-2, complete=False)])
        result = run("show", path)
        assert result.exit_code == 0
        assert "-2 (stopped early)" in result.stdout

    def test_names_with_brackets_are_printed_as_they_are(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t", [header(command=["[red]x[/]", ":boom:"]), footer()])
        assert "[red]x[/] :boom:" in run("show", path).stdout

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            (["--window", "0s"], "--window = 0s: it must be more than no time"),
            (
                ["--window", "soon"],
                "--window: 'soon' is not understood; "
                'write a time like "100us", "300ms" or "1.5s"',
            ),
            (
                ["--window", "1ns"],
                "a window of 1ns cuts the trace into more than 100000 pieces; use a longer one",
            ),
        ],
    )
    def test_windows_that_make_no_sense(self, trace: Path, options: list[str], line: str) -> None:
        assert refusal("show", trace, *options) == line


class TestReplay:
    def test_tells_what_each_interval_did(self, trace: Path) -> None:
        told = answer("replay", trace, "--json", "--interval", "500us", "--for", "1ms")
        intervals = told.pop("intervals")
        assert told == {
            "schema": "predump.workload.replay/1",
            "file": str(trace),
            "page_size": 4096,
            "dbm": True,
            "seed": 1,
            "speed": 1.0,
            "pages": 3,
        }
        assert [interval["end_s"] for interval in intervals] == [0.0005, 0.001]
        assert [interval["stores"] for interval in intervals] == [4, 1]
        assert [interval["soft_dirty_pages"] for interval in intervals] == [3, 1]
        assert [interval["bytes"] for interval in intervals] == [8 + 8 + 84 + 64, 4096]
        # After clear_refs the first store to a page is a fault.
        assert [interval["faults"] for interval in intervals] == [3, 1]

    def test_twice_as_fast(self, trace: Path) -> None:
        told = answer("replay", trace, "--json", "--speed", "2", "--interval", "250us")
        ends = [interval["end_s"] for interval in told["intervals"]]
        assert ends == [0.00025, 0.0005, 0.000500501]
        assert [interval["stores"] for interval in told["intervals"]] == [4, 1, 0]

    def test_on_larger_pages(self, trace: Path) -> None:
        told = answer("replay", trace, "--json", "--interval", "1s", "--page-size", "64KiB")
        assert told["pages"] == 2
        assert told["intervals"][0]["soft_dirty_pages"] == 2

    def test_the_whole_recording_in_about_ten_intervals(self) -> None:
        shown = answer("show", PERL, "--json")
        told = answer("replay", PERL, "--json")
        assert 5 <= len(told["intervals"]) <= 10
        assert sum(interval["stores"] for interval in told["intervals"]) == shown["records"]
        assert told["intervals"][-1]["end_s"] == pytest.approx(shown["duration_s"])

    def test_as_a_table(self, trace: Path) -> None:
        result = run("replay", trace, "--interval", "500us", "--no-dbm")
        assert result.exit_code == 0
        assert "no DBM" in result.stdout
        assert "soft-dirty pages" in result.stdout

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            (["--page-size", "8192"], "--page-size = 8192: it must be 4096, 16384 or 65536"),
            (["--interval", "0ms"], "--interval = 0ms: it must be more than no time"),
            (
                ["--interval", "1ns", "--for", "1s"],
                "--interval = 1ns cuts the run into more than 100000 intervals; use a longer one",
            ),
        ],
    )
    def test_options_that_make_no_sense(self, trace: Path, options: list[str], line: str) -> None:
        assert refusal("replay", trace, *options) == line


@pytest.mark.parametrize("command", ["show", "replay"])
def test_files_that_are_no_traces_are_one_line(command: str, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    assert refusal(command, nothing) == (
        f"{nothing}: cannot read the trace: No such file or directory"
    )
    whole = write(tmp_path / "t", good_items(RECORDS)).read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(whole[:-20])
    assert refusal(command, cut).endswith("it was cut short, record it again")


@pytest.fixture
def fake_valgrind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Takes valgrind's place on PATH, and tells if it was run for more than its version."""
    folder, ran = tmp_path / "bin", tmp_path / "ran"
    folder.mkdir()
    fake = folder / "valgrind"
    fake.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo valgrind-0\ntouch {ran}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return ran


class TestRecordRefuses:
    def test_a_machine_without_valgrind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert refusal("record", "-o", tmp_path / "t", "--", "/bin/true") == (
            "valgrind is not installed; recording needs it "
            "(Debian and Ubuntu: apt-get install valgrind)"
        )

    def test_a_program_that_is_not_there(self, tmp_path: Path, fake_valgrind: Path) -> None:
        assert refusal("record", "-o", tmp_path / "t", "--", "no-such-program") == (
            "no-such-program: no such program; give a command that can be run"
        )
        assert not fake_valgrind.exists()

    def test_a_directory_as_output_before_the_program_runs(
        self, tmp_path: Path, fake_valgrind: Path
    ) -> None:
        assert refusal("record", "-o", tmp_path, "--", "/bin/true") == (
            f"{tmp_path}: is a directory; name a file for the trace"
        )
        assert not fake_valgrind.exists()

    def test_an_output_that_cannot_be_written_before_the_program_runs(
        self, tmp_path: Path, fake_valgrind: Path
    ) -> None:
        output = tmp_path / "none" / "t"
        assert refusal("record", "-o", output, "--", "/bin/true") == (
            f"{output}: cannot write the trace: No such file or directory"
        )
        assert not fake_valgrind.exists()

    @pytest.mark.usefixtures("fake_valgrind")
    def test_what_valgrind_says_when_it_cannot_run_the_program(self, tmp_path: Path) -> None:
        fake = tmp_path / "bin" / "valgrind"
        fake.write_text(
            f"#!{sys.executable} -S\n"
            "import os, sys\n"
            "for word in sys.argv:\n"
            "    if word.startswith('--log-fd='):\n"
            "        os.write(int(word.split('=')[1]), b'==1== x\\nvalgrind: wrong machine\\n')\n"
            "        sys.exit(1)\n"
        )
        output = tmp_path / "t"
        assert refusal("record", "-o", output, "--", "/bin/true") == (
            "valgrind recorded nothing of /bin/true: valgrind: wrong machine"
        )
        assert not output.exists()
        assert [path.name for path in tmp_path.iterdir()] == ["bin"]

    @pytest.mark.usefixtures("fake_valgrind")
    def test_a_valgrind_that_is_no_program(self, tmp_path: Path) -> None:
        (tmp_path / "bin" / "valgrind").write_bytes(b"\x7fELF nonsense")
        line = refusal("record", "-o", tmp_path / "t", "--", "/bin/true")
        assert line == (
            f"{tmp_path}/bin/valgrind: cannot be run: Exec format error; install valgrind anew"
        )

    @pytest.mark.parametrize("option", ["--slice", "--instructions-per-second"])
    @pytest.mark.parametrize("number", ["0", "-5", str(2**70), "many"])
    def test_numbers_that_make_no_sense(self, tmp_path: Path, option: str, number: str) -> None:
        result = run("record", option, number, "-o", tmp_path / "t", "--", "/bin/true")
        assert result.exit_code == 2
        assert "Traceback" not in result.output
        assert not (tmp_path / "t").exists()
