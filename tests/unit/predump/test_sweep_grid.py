"""Grid files: every combination, in order, checked before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from predump.sweep.grid import Grid, GridError, grid_from_mapping, load_grid


def grid(axes: dict[str, Any], **keys: Any) -> Grid:
    base = {"memory": "1MiB", "workload": {"kind": "uniform", "rate": "10 pages/s"}}
    return grid_from_mapping(
        {"schema": "predump.sweep/1", "base": base, "axes": axes, **keys}, origin="g.toml"
    )


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


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "scenarios/sweeps").glob("*.toml")), ids=str
)
def test_the_ready_grids_have_points_that_can_run(path: Path) -> None:
    ready = load_grid(path)
    points = list(ready.points())
    assert ready.name == path.stem
    assert len({point.key for point in points}) == len(points) > 1
