"""Finished runs as the dashboard lists them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from predump.dashboard import finished as module
from predump.dashboard.finished import MOST_HERE, Finished
from predump.result import Result


def _make_result() -> Any:
    path = Path(__file__).parents[1] / "make_result.py"
    spec = importlib.util.spec_from_file_location("make_result", path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


make = _make_result()


def a_result(**changes: Any) -> Result:
    result: Result = make.result_of(**changes)
    return result


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(a_result(pages_lost=3).to_json())
    finished = Finished([file])
    (run,) = finished.listing()["runs"]
    assert (run["policy"], run["downtime_s"], run["origin"]) == ("threshold", 0.0512, "run.json")
    detail = finished.detail(run["key"])
    assert detail is not None and detail["result"]["pages_lost"] == 3
    file.write_text(a_result(pages_lost=4444).to_json())
    os.utime(file, ns=(1, 1))
    finished.listing()
    detail = finished.detail(run["key"])
    assert detail is not None and detail["result"]["pages_lost"] == 4444


def test_a_file_that_cannot_be_read_is_said_and_hides_no_other_one(tmp_path: Path) -> None:
    good, bad, gone = tmp_path / "good.json", tmp_path / "bad.duckdb", tmp_path / "gone.json"
    good.write_text(a_result().to_json())
    bad.write_text("not a database")
    told = Finished([bad, gone, good]).listing()
    assert [run["origin"] for run in told["runs"]] == ["good.json"]
    assert len(told["troubles"]) == 2
    assert all("\n" not in trouble for trouble in told["troubles"])
    assert "bad.duckdb: cannot be opened" in told["troubles"][0]
    assert "gone.json: there is no such" in told["troubles"][1]


def test_runs_started_here_come_first_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    finished = Finished()
    for number in range(MOST_HERE + 5):
        finished.add(a_result(migration_id=f"m{number}"))
    finished.failed("slow", "m-last", "source 127.0.0.1:1: no answer")
    runs = finished.listing()["runs"]
    assert len(runs) == MOST_HERE
    assert (runs[0]["key"], runs[0]["error"]) == ("here-m-last", "source 127.0.0.1:1: no answer")
    assert "downtime_s" not in runs[0]
    assert runs[1]["key"] == f"here-m{MOST_HERE + 4}"
    assert finished.detail("here-m0") is None
    monkeypatch.setattr(module, "MOST_LISTED", 0)
    assert finished.detail("here-m-last") == {
        "key": "here-m-last", "name": "slow", "settings": {}, "result": None,
        "error": "source 127.0.0.1:1: no answer",
    }  # fmt: skip


@pytest.mark.parametrize(
    "key", ["", "-", "0-0", "9-9", "-1-0", "0--1", "here-", "../../etc/passwd"]
)
def test_names_of_no_run_are_no_run(key: str) -> None:
    assert Finished().detail(key) is None
