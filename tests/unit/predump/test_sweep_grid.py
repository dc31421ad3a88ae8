"""Grid files: every combination, in order, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from predump.overrides import Override, parse_override
from predump.sweep.comparisons import comparisons, load_comparison
from predump.sweep.grid import Grid, GridError, grid_from_mapping, load_grid

ROOT = Path(__file__).parents[3]


def grid(axes: dict[str, Any], overrides: Sequence[Override] = (), **keys: Any) -> Grid:
    base = {"memory": "1MiB", "workload": {"kind": "uniform", "rate": "10 pages/s"}}
    data = {"schema": "predump.sweep/1", "base": base, "axes": axes, **keys}
    return grid_from_mapping(data, origin="g.toml", overrides=overrides)


def test_every_combination_in_order_the_last_axis_fastest() -> None:
    made = grid({"policy.kind": ["fixed", "xen"], "seed": [1, 2, 3]})
    points = list(made.points())
    assert len(made) == len(points) == 6
    assert [(p.scenario.migration.policy.kind, p.scenario.task.seed) for p in points] == [
        ("fixed", 1), ("fixed", 2), ("fixed", 3), ("xen", 1), ("xen", 2), ("xen", 3),
    ]  # fmt: skip
    assert [p.index for p in points] == list(range(6))
    assert points[4].axes == {"policy.kind": "xen", "seed": 2}


def test_without_axes_there_is_one_point() -> None:
    assert len(list(grid({}).points())) == 1


def test_repeats_run_with_seeds_that_follow_each_other() -> None:
    points = list(grid({"memory": ["1MiB", "2MiB"]}, repeats=3).points())
    assert [(p.scenario.task.memory >> 20, p.scenario.task.seed, p.repeat) for p in points] == [
        (1, 1, 0), (1, 2, 1), (1, 3, 2), (2, 1, 0), (2, 2, 1), (2, 3, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ({"range": [2, 8], "step": 3}, [2, 5, 8]),
        ({"range": [1, 3]}, [1, 2, 3]),
        ({"linear": [1, 2], "points": 3}, [1, 1.5, 2]),
        ({"log": [1, 100], "points": 3}, [1, 10, 100]),
        ({"log": [1000, 1], "points": 4}, [1000, 100, 10, 1]),
        ({"log": [1, 10], "points": 3, "unit": "pages/s"},
         ["1 pages/s", "3.16228 pages/s", "10 pages/s"]),
        ({"range": [1, 2], "unit": "Gbit/s"}, ["1 Gbit/s", "2 Gbit/s"]),
    ],
)  # fmt: skip
def test_values_can_be_counted_out(form: dict[str, Any], values: list[Any]) -> None:
    key = "workload.rate" if "pages/s" in str(values) else "link.bandwidth"
    if not isinstance(values[0], str):
        form = {**form, "unit": "Mbit/s"}
        values = [f"{value:g} Mbit/s" for value in values]
    assert list(grid({key: form}).axes[0].values) == values


def test_a_range_without_a_unit_gives_numbers() -> None:
    assert [p.scenario.task.seed for p in grid({"seed": {"range": [5, 7]}}).points()] == [5, 6, 7]


def test_an_axis_can_take_whole_tables() -> None:
    made = grid({"policy": [{"kind": "fixed", "rounds": 2}, {"kind": "stop-and-copy"}]})
    assert [p.scenario.migration.policy.kind for p in made.points()] == ["fixed", "stop-and-copy"]


def test_axes_in_tables_are_the_same_as_dotted_ones() -> None:
    assert grid({"policy": {"kind": ["xen"]}}).axes == grid({"policy.kind": ["xen"]}).axes


def test_a_points_key_says_what_runs_and_not_where_in_the_grid() -> None:
    one = {p.key for p in grid({"seed": [1, 2], "policy.kind": ["xen"]}).points()}
    other = {p.key for p in grid({"policy.kind": ["fixed", "xen"], "seed": [2]}).points()}
    assert len(one & other) == 1


def test_a_scenario_file_is_found_beside_the_grid(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        'schema = "predump.scenario/1"\nmemory = "1MiB"\n[workload]\nkind = "idle"\n'
    )
    (tmp_path / "g.toml").write_text(
        'schema = "predump.sweep/1"\nscenario = "s.toml"\n[axes]\nseed = [1, 2]\n'
    )
    made = load_grid(tmp_path / "g.toml")
    assert (made.name, len(made)) == ("g", 2)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"axes": {"seed": 1}}, "axes: seed: 1 is one value"),
        ({"axes": {"seed": []}}, "has no values"),
        ({"axes": {"seed": [1, 1]}}, "points 0 and 1 .* are the same run"),
        ({"axes": {"sede": [1]}}, "did you mean 'seed'"),
        ({"axes": {"link.bandwidth": ["fast"]}}, r"point 0 \(link.bandwidth=fast\)"),
        ({"axes": {"seed": {"range": [3, 1]}}}, "a range goes up"),
        ({"axes": {"seed": {"range": [1]}}}, "two numbers"),
        ({"axes": {"seed": {"range": [1, 2], "points": 3}}}, "range goes with step, unit"),
        ({"axes": {"seed": {"log": [0, 1], "points": 2}}}, "numbers above 0"),
        ({"axes": {"seed": {"log": [1, 2]}}}, "points: how many"),
        ({"axes": {"seed": {"range": [1, 2_000_000]}}}, "2,000,000 points; at most"),
        ({"axes": []}, "axes: is a table"),
        ({"repeats": 0}, "repeats: 0"),
        ({"axis": {}}, "axis: .*did you mean 'axes'"),
        ({"schema": "predump.sweep/9"}, 'write schema = "predump.sweep/1"'),
        ({"scenario": "x.toml"}, "give either scenario = FILE or"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(GridError, match=says) as caught:
        grid(keys.pop("axes", {}), **keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there is no such grid file"), (b"a = ", "not valid TOML"), (b"\xff", "not UTF-8")],
)
def test_a_file_that_is_no_grid(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "g.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(GridError, match=says):
        load_grid(file)


def test_keys_of_the_scenario_are_replaced_in_every_point() -> None:
    overrides = [parse_override("memory=8MiB"), parse_override("policy.kind=xen")]
    points = list(grid({"seed": [1, 2]}, overrides).points())
    assert [(p.scenario.task.seed, p.scenario.task.memory) for p in points] == [
        (1, 8 << 20),
        (2, 8 << 20),
    ]
    assert {p.scenario.migration.policy.kind for p in points} == {"xen"}


@pytest.mark.parametrize("key", ["policy.rounds=3", "policy.kind=xen"])
def test_what_a_grid_varies_cannot_be_replaced(key: str) -> None:
    axes = {"policy": [{"kind": "fixed", "rounds": 1}, {"kind": "stop-and-copy"}]}
    with pytest.raises(GridError, match=rf"--set {key}: g\.toml varies policy itself"):
        grid(axes, [parse_override(key)])


@pytest.mark.parametrize("name", sorted(comparisons()))
def test_every_ready_comparison_loads_says_what_it_shows_and_is_documented(name: str) -> None:
    made = load_comparison(name)
    assert made.name == name
    assert 9 <= len(made) <= 200
    assert len(comparisons()[name].split()) > 5
    assert f"`{name}`" in (ROOT / "docs" / "sweeps.md").read_text("utf-8")
    largest = max(point.scenario.task.memory for point in made.points())
    assert largest <= 1 << 30


def test_the_comparisons_of_guestperf_are_there() -> None:
    """Start by iteration, bandwidth from 100 Mbit/s to 100 Gbit/s, throttle steps."""
    bandwidths = {
        point.scenario.migration.link.bandwidth_bps
        for point in load_comparison("bandwidth").points()
    }
    assert (min(bandwidths), max(bandwidths)) == (10**8, 10**11)
    steps = {
        point.scenario.migration.policy.throttle_increment
        for point in load_comparison("throttle-steps").points()
    }
    assert steps == {5, 10, 20}
    starts = {
        getattr(point.scenario.migration.policy, "rounds", None)
        for point in load_comparison("pause-iters").points()
    }
    assert starts == {None, 0, 1, 5, 20}


def test_a_comparison_that_there_is_not_is_told_with_the_nearest_name() -> None:
    with pytest.raises(GridError, match="unknown comparison 'pause-iter'; did you mean 'pause-it"):
        load_comparison("pause-iter")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "scenarios/sweeps").glob("*.toml")), ids=str
)
def test_the_ready_grids_have_points_that_can_run(path: Path) -> None:
    ready = load_grid(path)
    points = list(ready.points())
    assert ready.name == path.stem
    assert len({point.key for point in points}) == len(points) > 1
