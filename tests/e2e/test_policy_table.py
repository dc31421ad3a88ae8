"""The README's table of policies: all of them are in it, and the command still makes it."""

from __future__ import annotations

from pathlib import Path

from livemigration.spec import ReadyPolicySpec
from livemigration.spec_errors import kinds, members
from predump.inprocess import migrate_in_process
from predump.policy_table import COMPARISON, policy_table, workload_name
from predump.runs import Run, settings_of
from predump.sweep import load_comparison
from predump.sweep.grid import Point

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BEGIN, END = "<!-- predump policies -->\n", "<!-- end -->"
AGAIN = ("uniform", "hotspot")
"""Workloads that are run again here; the other two take longer."""


def rows(table: str) -> dict[str, list[str]]:
    """The table by its first column."""
    lines = [line.strip("| ").split(" | ") for line in table.strip().splitlines()]
    return {first: rest for first, *rest in lines}


def the_table() -> dict[str, list[str]]:
    return rows(README.partition(BEGIN)[2].partition(END)[0])


def as_run(point: Point) -> Run:
    """The point as it would be read back, not run yet."""
    scenario = point.scenario
    parts = {"task": scenario.task.to_struct(), "migration": scenario.migration.to_struct()}
    return Run(f"point {point.index}", point.axes, settings_of(parts), None)


def test_every_policy_and_every_workload_of_the_comparison_are_in_it() -> None:
    points = [as_run(point) for point in load_comparison(COMPARISON).points()]
    table = the_table()
    assert table["policy"] == list(dict.fromkeys(workload_name(run) for run in points))
    ready = {f"`{kind}`" for model in members(ReadyPolicySpec) for kind in kinds(model)}
    assert set(table) - {"policy", "---"} == ready
    assert all(len(row) == len(table["policy"]) for row in table.values())
    assert len(table["policy"]) == 4


async def test_running_it_again_gives_the_same_figures() -> None:
    runs = []
    for point in load_comparison(COMPARISON).points():
        if point.scenario.task.workload.kind in AGAIN:
            result = await migrate_in_process(point.scenario)
            assert result.verified
            waiting = as_run(point)
            runs.append(Run(waiting.origin, waiting.axes, waiting.settings, result))
    made, there = rows(policy_table(runs)), the_table()
    columns = [there["policy"].index(name) for name in made["policy"]]
    assert len(columns) == len(AGAIN)
    for policy, cells in made.items():
        assert cells == [there[policy][column] for column in columns], policy
