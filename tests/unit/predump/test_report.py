"""What reports are made of: runs read back, sorted out, and held against theory."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from predump.cli import app
from predump.inprocess import migrate_in_process
from predump.report.expected import expected
from predump.report.make import ReportError, figures_of, write_report
from predump.report.quantities import mebibytes, quantity, seconds, shown
from predump.report.study import Study, study
from predump.report.vega import axis_of
from predump.runs import Run, RunsError, load_all, load_runs, settings_of
from predump.scenario import scenario_from_mapping
from predump.sweep import ResultStore, run_sweep
from predump.sweep.execute import Cluster
from predump.sweep.grid import grid_from_mapping
from tests.unit.predump.make_result import result_of

BASE: dict[str, Any] = {
    "memory": "2MiB",
    "workload": {"kind": "uniform", "rate": "1000 pages/s"},
    "link": {"bandwidth": "100Mbit/s"},
    "migration": {"run_after": "0s"},
}


def sweep(file: Path, axes: dict[str, Any], **more: Any) -> list[Run]:
    """Runs a grid into `file` and reads it back."""
    grid = grid_from_mapping({"schema": "predump.sweep/1", "base": BASE | more, "axes": axes})
    with ResultStore(file) as store, ThreadPoolExecutor(1) as thread:
        run_sweep(grid, store, Cluster(thread, 1))
    return load_runs(file)


async def test_the_same_runs_come_from_a_database_parquet_and_json(tmp_path: Path) -> None:
    runs = sweep(tmp_path / "r.duckdb", {"policy.rounds": [0, 1]}, policy={"kind": "fixed"})
    with ResultStore(tmp_path / "r.duckdb") as store:
        store.export_parquet(tmp_path / "parquet")
    assert load_runs(tmp_path / "parquet") == runs
    for run, rounds in zip(runs, (0, 1), strict=True):
        scenario = scenario_from_mapping(
            {"schema": "predump.scenario/1", **BASE, "policy": {"kind": "fixed", "rounds": rounds}}
        )
        alone = await migrate_in_process(scenario)
        folder = tmp_path / "json"
        folder.mkdir(exist_ok=True)
        (folder / f"{rounds}.json").write_text(alone.to_json())
        assert run.settings["policy.rounds"] == rounds
        (read,) = load_runs(folder / f"{rounds}.json")
        assert read.settings == run.settings
        assert read.result is not None and run.result is not None
        assert read.result.rounds == run.result.rounds
    assert [run.result.rounds for run in load_runs(folder) if run.result] == [
        run.result.rounds for run in runs if run.result
    ]
    assert len(load_all([tmp_path / "r.duckdb", folder])) == 4


def test_files_that_hold_no_runs_are_told_in_one_line(tmp_path: Path) -> None:
    text, empty, other = tmp_path / "text.duckdb", tmp_path / "empty", tmp_path / "other.json"
    text.write_text("no database")
    empty.mkdir()
    other.write_text('{"schema": "x"}')
    ResultStore(tmp_path / "none.duckdb").close()
    for path, says in (
        (tmp_path / "missing", "there is no such result file"),
        (text, "cannot be opened as a result file"),
        (empty, "has neither runs.parquet nor results"),
        (other, "not a predump.result/1 object"),
        (tmp_path / "none.duckdb", "has no runs yet"),
    ):
        with pytest.raises(RunsError, match=says) as caught:
            load_runs(path)
        assert "\n" not in str(caught.value)


def settings(**changes: Any) -> dict[str, Any]:
    plain = {
        "workload.kind": "zipf",
        "workload.rate": "1000 pages/s",
        "link.bandwidth": "1Gbit/s",
        "memory": 1 << 26,
        "page_size": 4096,
        "seed": 1,
        "policy.kind": "fixed",
        "policy.rounds": 4,
    }
    changed = plain | {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in changed.items() if value is not None}


def sorted_out(*several: dict[str, Any]) -> Study:
    def policy(chosen: dict[str, Any]) -> dict[str, Any]:
        kind = chosen["policy.kind"]
        return {"kind": kind, "rounds": chosen["policy.rounds"]} if kind == "fixed" else {
            "kind": kind
        }  # fmt: skip

    return study(
        Run("a run", {}, chosen, result_of(policy=policy(chosen), rounds=result_of().rounds))
        for chosen in several
    )


def test_the_dirty_rate_is_the_axis_and_bandwidths_are_panels() -> None:
    found = sorted_out(
        settings(), settings(workload__rate="2MiB/s"), settings(link__bandwidth="10Gbit/s")
    )
    assert found.axis is not None
    assert (found.axis.key, found.axis.unit) == ("workload.rate", "pages/s")
    assert found.panels == ("1 Gbit/s", "10 Gbit/s")
    assert found.series == ("fixed",)
    assert [done.x for done in found.done] == [1000, 512, 1000]


def test_without_rates_another_quantity_is_the_axis() -> None:
    for key, values, unit in (
        ("link.bandwidth", ("100Mbit/s", "unlimited"), "bit/s"),
        ("memory", (1 << 20, 1 << 21), "B"),
        ("policy.rounds", (1, 2), ""),
        ("link.latency", ("1ms", "2ms"), "s"),
    ):
        found = sorted_out(*(settings() | {key: value} for value in values))
        assert found.axis is not None
        assert (found.axis.key, found.axis.unit) == (key, unit)
        assert found.panels == ("",)


def test_what_else_varies_makes_series() -> None:
    found = sorted_out(
        settings(),
        settings(workload__rate="2 pages/s", policy__rounds=9),
        settings(policy__kind="stop-and-copy", policy__rounds=None),
    )
    assert found.series == ("fixed, rounds 4", "fixed, rounds 9", "stop-and-copy")


def test_a_setting_that_two_policies_have_is_not_one_that_varies() -> None:
    found = sorted_out(
        settings(policy__max_rounds=5),
        settings(policy__kind="xen", policy__max_rounds=30),
    )
    assert set(found.varying) == {"policy.kind"}
    assert found.axis is None


def test_seeds_are_repeats_of_one_point() -> None:
    found = sorted_out(settings(), settings(seed=2), settings(workload__rate="5 pages/s"))
    points = found.points("", "fixed")
    assert [(x, len(runs)) for x, runs in points.items()] == [(5, 1), (1000, 2)]


def test_runs_that_failed_are_in_no_figure(tmp_path: Path) -> None:
    runs = sweep(tmp_path / "r.duckdb", {"clock": ["virtual", "wall"]})
    found = study(runs)
    assert len(found.done) == 1
    assert "needs clock" in found.failed[0].error
    with pytest.raises(ReportError, match=r"no run has a result: BadRequest"):
        write_report(list(found.failed), None, title="t")


@pytest.mark.parametrize(
    ("key", "value", "number", "unit", "text"),
    [
        ("link.bandwidth", "2500Mbit/s", 2.5e9, "bit/s", "2.5 Gbit/s"),
        ("link.bandwidth", "1MiB/s", 8388608, "bit/s", "8.39 Mbit/s"),
        ("workload.rate", "4MiB/s", 1024, "pages/s", "1.02k pages/s"),
        ("workload.rate", "500000 pages/s", 5e5, "pages/s", "500k pages/s"),
        ("memory", 1 << 26, 1 << 26, "B", "64 MiB"),
        ("policy.rounds", 3, 3, "", "3"),
        ("policy.downtime_limit", "300ms", 0.3, "s", "300 ms"),
        ("encoding.cache", "16MiB", 1 << 24, "B", "16 MiB"),
    ],
)
def test_values_are_read_as_quantities(
    key: str, value: Any, number: float, unit: str, text: str
) -> None:
    assert quantity(key, value) == (number, unit)
    assert shown(number, unit) == text


def test_words_are_no_quantities() -> None:
    assert [quantity("a.b", value) for value in ("zipf", True, None, [1])] == [None] * 4


def test_numbers_are_short() -> None:
    assert [seconds(s) for s in (0, 1.25, 0.0312, 87e-6)] == ["0 s", "1.25 s", "31.2 ms", "87 µs"]
    assert mebibytes(1.5 * 2**20) == "1.5 MiB"
    assert mebibytes(3 * 2**30) == "3 GiB"


def test_axes_are_logarithmic_where_values_are_far_apart() -> None:
    near, far = axis_of([1, 2, 5], "t", ""), axis_of([0.01, 1, 300], "t", "s")
    assert near["scale"].get("type") is None
    assert far["scale"]["type"] == "log"
    assert far["axis"]["values"] == [0.01, 0.1, 1, 10, 100]
    assert axis_of([0, 1000], "t", "")["scale"].get("type") is None


@pytest.mark.parametrize(
    ("workload", "policy"),
    [
        ({"kind": "uniform", "rate": "2000 pages/s"}, {"kind": "fixed", "rounds": 2}),
        ({"kind": "uniform", "rate": "8000 pages/s"}, {"kind": "xen"}),
        ({"kind": "zipf", "rate": "4000 pages/s"}, {"kind": "threshold"}),
        ({"kind": "hotspot", "rate": "4000 pages/s"}, {"kind": "fixed", "rounds": 3}),
        ({"kind": "hotspot", "rate": "4000 pages/s", "working_set": 1 << 22}, {"kind": "phaul"}),
        ({"kind": "sequential", "rate": "1000 pages/s"}, {"kind": "downtime-limit"}),
        ({"kind": "idle"}, {"kind": "fixed", "rounds": 1}),
        ({"kind": "uniform", "rate": "8000 pages/s"}, {"kind": "stop-and-copy"}),
    ],
    ids=lambda table: "-".join(str(value) for value in table.values()),
)
@pytest.mark.parametrize("bandwidth", ["200Mbit/s", "100Gbit/s"])
async def test_with_its_costs_a_run_is_what_theory_expects(
    workload: dict[str, Any], policy: dict[str, Any], bandwidth: str
) -> None:
    """Distinct pages of few hundred writes scatter by a few percent; times hardly do."""
    scenario = scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "memory": "16MiB",
            "workload": workload,
            "policy": policy,
            "link": {"bandwidth": bandwidth, "latency": "1ms"},
            "migration": {"run_after": "0s"},
        }
    )
    result = await migrate_in_process(scenario)
    file_like = json.loads(result.to_json())
    assert file_like["scenario"]["migration"]["policy"]["kind"] == policy["kind"]
    (done,) = study([Run("a run", {}, settings_of(file_like["scenario"]), result)]).done
    theory = expected(done)
    assert theory is not None
    assert result.total_time_s == pytest.approx(theory.total_s, rel=0.02)
    assert result.bytes_wire == pytest.approx(theory.bytes_wire, rel=0.02)
    assert result.downtime_s.total == pytest.approx(theory.downtime_s, rel=0.06)


def test_a_sweep_has_every_figure_and_theory_only_where_it_holds(tmp_path: Path) -> None:
    runs = sweep(
        tmp_path / "r.duckdb",
        {
            "policy.kind": ["fixed", "auto-converge"],
            "link.bandwidth": ["100Mbit/s", "1Gbit/s"],
            "workload.rate": ["500 pages/s", "5000 pages/s"],
        },
        record={"pages": True, "bins": 16},
    )
    found = study(runs)
    assert [figure.name for figure in figures_of(found)] == [
        "downtime", "total-time", "bytes", "convergence", "rounds-time", "rounds-bytes",
        "downtime-parts", "pages",
    ]  # fmt: skip
    for done in found.done:
        assert (expected(done) is None) == (done.series == "auto-converge")


def test_post_copy_is_told_by_what_the_task_waits_for_afterwards(tmp_path: Path) -> None:
    runs = sweep(
        tmp_path / "r.duckdb",
        {
            "policy.kind": ["stop-and-copy", "post-copy"],
            "workload.rate": ["2000 pages/s", "20000 pages/s"],
        },
        migration={"run_after": "100ms"},
    )
    found = study(runs)
    figures = {figure.name: figure for figure in figures_of(found)}
    assert list(figures)[:3] == ["downtime", "standstill", "total-time"]
    (drawn,) = figures["standstill"].panels
    values = drawn.spec["layer"][0].get("data", drawn.spec["data"])["values"]
    heights = {(row["s"], row["x"]): row["y"] for row in values}
    for done in found.done:
        later = done.result.post_copy
        assert (later is None) == (done.series == "stop-and-copy")
        waited = 0.0 if later is None else later.stalled_s
        assert later is None or waited > 0
        assert heights[done.series, done.x] == done.result.downtime_s.total + waited
    keys = [key.label for key in figures["rounds-time"].keys]
    assert keys[-1] == "pages after the hand-over"
    place = figures["rounds-time"].panels[0]
    pieces = {(row["s"], row["part"]): row["v"] for row in place.spec["data"]["values"]}
    (slow,) = [d for d in found.done if d.series == "post-copy" and d.x == 2000]
    assert slow.result.post_copy is not None
    assert pieces["post-copy", keys[-1]] == slow.result.post_copy.residual_s
    assert ("stop-and-copy", keys[-1]) not in pieces


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.duckdb"], "there is no such result file"),
        (["{file}", "-o", "no/such/folder.html"], "there is no directory"),
        (["{file}", "-o", "{folder}"], "is a directory"),
    ],
)
def test_what_cannot_be_reported_is_told_in_one_line(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    file = tmp_path / "result.json"
    file.write_text(result_of().to_json())
    filled = [argument.format(file=file, folder=tmp_path) for argument in arguments]
    ended = CliRunner().invoke(app, ["report", *filled])
    assert ended.exit_code == 2
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_figures_have_no_layers_without_data(tmp_path: Path) -> None:
    """Vega warns of those on the reader's console."""
    runs = sweep(
        tmp_path / "r.duckdb",
        {"workload.rate": ["500 pages/s", "1000 pages/s", "1500 pages/s", "2000 pages/s"]},
        policy={"kind": "auto-converge"},
    )
    filters = [
        step["filter"]
        for figure in figures_of(study(runs))
        for panel in figure.panels
        for layer in panel.spec.get("layer", ())
        for step in layer.get("transform", ())
    ]
    assert set(filters) == {"!isValid(datum.m)"}  # no theory, no repeats, nothing stuck
