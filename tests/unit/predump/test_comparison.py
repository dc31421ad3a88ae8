"""Two sets of runs side by side: which points belong together, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from predump.cli import app
from predump.comparison import compare, point_name
from predump.runs import Run
from tests.unit.predump.make_result import DOWNTIME, result_of


def run(axes: dict[str, Any], downtime: float = 0.1, **more: Any) -> Run:
    result = result_of(downtime_s=DOWNTIME | {"total": downtime}, bytes_wire=1000)
    fields: dict[str, Any] = {"settings": dict(axes), "result": result, "sweep": "s"}
    return Run(f"run {axes}", axes, **fields | more)


def test_points_with_the_same_axes_belong_together_in_any_order() -> None:
    a = [run({"x": 1}, 0.1), run({"x": 2}, 0.2), run({"x": 3})]
    b = [run({"x": 4}), run({"x": 2}, 0.1), run({"x": 1}, 0.3)]
    compared = compare(a, b)
    assert [(p.name, p.changes["downtime_s"].ratio) for p in compared.pairs] == [
        ("x 1", pytest.approx(3)),
        ("x 2", pytest.approx(0.5)),
    ]
    assert compared.ratios("downtime_s") == pytest.approx((0.5, 1.75, 3))
    assert compared.ratios("bytes_wire") == (1, 1, 1)
    assert [r.axes for r in compared.only_a] == [{"x": 3}]
    assert [r.axes for r in compared.only_b] == [{"x": 4}]


def test_repeats_belong_to_their_own() -> None:
    a = [run({"x": 1}, 0.1, repeat=0), run({"x": 1}, 0.2, repeat=1)]
    b = [run({"x": 1}, 0.2, repeat=1), run({"x": 1}, 0.1, repeat=0)]
    compared = compare(a, b)
    assert [p.changes["downtime_s"].ratio for p in compared.pairs] == [1, 1]
    assert [p.name for p in compared.pairs] == ["x 1", "x 1, repeat 1"]


def test_sweeps_in_one_file_are_told_apart_by_their_names() -> None:
    a = [run({"x": 1}, 0.1, sweep="one"), run({"x": 1}, 0.2, sweep="two")]
    assert [p.changes["downtime_s"].ratio for p in compare(a, list(reversed(a))).pairs] == [1, 1]


def test_what_is_different_in_every_pair_is_said_once() -> None:
    def one(x: int, bandwidth: str, seed: int) -> Run:
        return run({"x": x}, settings={"x": x, "link.bandwidth": bandwidth, "seed": seed})

    compared = compare(
        [one(1, "1Gbit/s", 1), one(2, "1Gbit/s", 1)], [one(1, "2Gbit/s", 7), one(2, "2Gbit/s", 1)]
    )
    assert compared.settings == {"link.bandwidth": ("1Gbit/s", "2Gbit/s")}


def test_a_point_that_failed_in_one_has_no_ratio() -> None:
    compared = compare([run({"x": 1})], [run({"x": 1}, result=None, error="no room")])
    assert compared.pairs == ()
    assert [(a.error, b.error) for a, b in compared.failed] == [("", "no room")]
    assert compared.ratios("rounds") is None


def test_points_are_named_by_their_axes() -> None:
    axes = {"policy.kind": "xen", "workload.rate": "5 pages/s", "policy": {"kind": "fixed", "n": 2}}
    assert point_name(run(axes)) == "xen, rate 5 pages/s, policy fixed 2"


def write(path: Path, **changes: Any) -> Path:
    path.write_text(result_of(**changes).to_json())
    return path


def test_two_results_are_compared_whatever_they_are_called(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json")
    b = write(tmp_path / "b.json", total_time_s=4.4, bytes_wire=135_900_000)
    shown = CliRunner().invoke(app, ["compare", str(a), str(b)])
    assert shown.exit_code == 0
    assert "2.20 s -> 4.40 s (2)" in " ".join(shown.output.split())
    made = CliRunner().invoke(app, ["compare", str(a), str(b), "--json", "-"])
    compared = json.loads(made.output)
    assert compared["schema"] == "predump.compare/1"
    (point,) = compared["points"]
    assert point["total_time_s"] == {"a": 2.2, "b": 4.4, "ratio": 2.0}
    assert point["bytes_wire"]["ratio"] == 0.5


def test_what_cannot_be_compared_is_told_in_one_line(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json")
    for arguments in (
        ["compare", str(a), str(tmp_path / "none")],
        ["compare", str(a), str(a), "--json", str(tmp_path / "no" / "x.json")],
    ):
        ended = CliRunner().invoke(app, arguments)
        assert ended.exit_code == 2
        assert ended.stderr.count("\n") == 1
