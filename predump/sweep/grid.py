"""What a sweep runs: a scenario, and the values that keys of it take (``predump.sweep/1``).

A grid file names a scenario file (or has the scenario's tables under ``[base]``) and gives axes:
the sweep is every combination of their values, in the file's order, the last axis changing fastest.
With ``repeats`` each combination runs that often, with seeds that follow each other.

All points are checked before the first one runs. What is wrong is a `GridError`: one line.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livemigration.spec_errors import unknown_name
from predump.overrides import Override
from predump.scenario import (
    SCENARIO_SCHEMA,
    Scenario,
    ScenarioError,
    scenario_from_mapping,
)
from predump.toml_file import read_toml

GRID_SCHEMA = "predump.sweep/1"
MOST_POINTS = 1_000_000
"""A grid with more is a slip of the pen."""

_KEYS = ("schema", "name", "scenario", "base", "axes", "repeats")
_FORMS = (
    "a list, {range = [FIRST, LAST], step = N}, {linear = [FIRST, LAST], points = N} or {log = ...}"
)


class GridError(ValueError):
    """A grid that cannot be run; ``str()`` is one line for the user."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One key of the scenario and the values that it takes, as in a scenario file."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One migration of a sweep. `key` tells it from all others by what is run, not by its place."""

    index: int
    key: str
    repeat: int
    axes: dict[str, Any]
    scenario: Scenario


@dataclass(frozen=True, slots=True)
class Grid:
    """A sweep that was read and checked: a scenario's tables, keys replaced in them, and axes."""

    name: str
    base: Mapping[str, Any]
    axes: tuple[Axis, ...]
    repeats: int
    base_dir: Path
    origin: str
    overrides: tuple[Override, ...] = ()

    def __len__(self) -> int:
        return math.prod(len(axis.values) for axis in self.axes) * self.repeats

    def points(self) -> Iterator[Point]:
        """Every point, in order. GridError for one whose scenario is none."""
        index = 0
        for values in itertools.product(*(axis.values for axis in self.axes)):
            chosen = {axis.key: value for axis, value in zip(self.axes, values, strict=True)}
            for repeat in range(self.repeats):
                yield self._point(index, repeat, chosen)
                index += 1

    def _point(self, index: int, repeat: int, chosen: dict[str, Any]) -> Point:
        overrides = [
            *self.overrides,
            *(Override(key, _shown(value), value) for key, value in chosen.items()),
        ]
        try:
            scenario = scenario_from_mapping(
                self.base, overrides, origin=self.origin, base_dir=self.base_dir
            )
            if repeat:
                seed = scenario.task.seed + repeat
                more = Override("seed", str(seed), seed)
                scenario = scenario_from_mapping(
                    self.base, [*overrides, more], origin=self.origin, base_dir=self.base_dir
                )
        except ScenarioError as error:
            raise GridError(f"{self.origin}: point {index} ({_names(chosen)}): {error}") from error
        return Point(index, scenario_key(scenario), repeat, chosen, scenario)


def scenario_key(scenario: Scenario) -> str:
    """What makes two runs the same: SHA-256 of the task's and the migration's specifications."""
    content = [scenario.task.to_struct(), scenario.migration.to_struct()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_grid(path: str | Path, overrides: Sequence[Override] = ()) -> Grid:
    """Read the grid file `path` and check all its points. Raises GridError.

    `overrides` replace keys of the scenario that the grid does not vary.
    """
    path = Path(path)
    return grid_from_mapping(
        read_toml(path, GridError, "grid"),
        origin=str(path),
        base_dir=path.resolve().parent,
        overrides=overrides,
    )


def grid_from_mapping(
    data: Mapping[str, Any],
    *,
    origin: str = "grid",
    base_dir: Path | None = None,
    overrides: Sequence[Override] = (),
) -> Grid:
    """The grid whose tables are `data`; paths in it are relative to `base_dir`. GridError."""
    base_dir = base_dir or Path.cwd()
    for key in data:
        if key not in _KEYS:
            raise GridError(f"{origin}: {key}: {unknown_name('key', key, _KEYS)}")
    if data.get("schema") != GRID_SCHEMA:
        raise GridError(f'{origin}: schema: write schema = "{GRID_SCHEMA}"')
    base, scenario_dir, scenario_origin = _base(data, origin, base_dir)
    axes = data.get("axes", {})
    if not isinstance(axes, Mapping):
        raise GridError(f"{origin}: axes: is a table of keys and values")
    repeats = data.get("repeats", 1)
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise GridError(f"{origin}: repeats: {repeats!r} is not a number of at least 1")
    read = tuple(
        Axis(key, values) for key, values in _flattened(axes, origin) if _is_key(key, origin)
    )
    name = data.get("name", Path(origin).stem)
    for override in overrides:
        for axis in read:
            if override.covers(axis.key):
                raise GridError(
                    f"--set {override.key}={override.text}: {origin} varies {axis.key} itself"
                )
    grid = Grid(str(name), base, read, repeats, scenario_dir, scenario_origin, tuple(overrides))
    if len(grid) > MOST_POINTS:
        raise GridError(f"{origin}: {len(grid):,} points; at most {MOST_POINTS:,} in one sweep")
    seen: dict[str, int] = {}
    for point in grid.points():
        first = seen.setdefault(point.key, point.index)
        if first != point.index:
            same = f"points {first} and {point.index} ({_names(point.axes)})"
            raise GridError(f"{origin}: {same} are the same run; take one of them out")
    return grid


def _base(
    data: Mapping[str, Any], origin: str, base_dir: Path
) -> tuple[Mapping[str, Any], Path, str]:
    """The scenario's tables, where its paths start, and what error lines call it."""
    if ("scenario" in data) == ("base" in data):
        raise GridError(f"{origin}: give either scenario = FILE or the scenario under [base]")
    if "base" in data:
        if not isinstance(data["base"], Mapping):
            raise GridError(f"{origin}: base: is a table, the scenario")
        return {"schema": SCENARIO_SCHEMA, **data["base"]}, base_dir, origin
    if not isinstance(data["scenario"], str):
        raise GridError(f"{origin}: scenario: is the name of a scenario file")
    file = (base_dir / data["scenario"]).resolve()
    return read_toml(file, GridError, "scenario"), file.parent, str(file)


def _flattened(axes: Mapping[str, Any], origin: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Axes by dotted key: ``[axes] "a.b" = [...]`` and ``[axes.a] b = [...]`` are the same."""
    for key, value in axes.items():
        if isinstance(value, Mapping) and not value.keys() & {"range", "linear", "log"}:
            for inner, values in _flattened(value, origin):
                yield f"{key}.{inner}", values
        else:
            yield key, _values(key, value, origin)


def _is_key(key: str, origin: str) -> bool:
    if key == "seed" or all(part for part in key.split(".")):
        return True
    raise GridError(f"{origin}: axes: {key!r} is not a key of a scenario")


def _values(key: str, value: Any, origin: str) -> tuple[Any, ...]:
    where = f"{origin}: axes: {key}"
    if isinstance(value, list):
        if not value:
            raise GridError(f"{where}: has no values")
        return tuple(value)
    if not isinstance(value, Mapping):
        raise GridError(f"{where}: {value!r} is one value; write {_FORMS}")
    for form, allowed, make in (
        ("range", {"range", "step", "unit"}, _range),
        ("linear", {"linear", "points", "unit"}, _linear),
        ("log", {"log", "points", "unit"}, _log),
    ):
        if form in value:
            if value.keys() - allowed:
                raise GridError(f"{where}: {form} goes with {', '.join(sorted(allowed - {form}))}")
            numbers = make(value, where)
            unit = value.get("unit", "")
            return tuple(f"{_plain(n)} {unit}" if unit else n for n in numbers)
    raise GridError(f"{where}: write {_FORMS}")


def _ends(value: Mapping[str, Any], form: str, where: str) -> tuple[float, float]:
    ends = value[form]
    if (
        not isinstance(ends, list)
        or len(ends) != 2
        or not all(isinstance(e, int | float) and not isinstance(e, bool) for e in ends)
    ):
        raise GridError(f"{where}: {form} = [FIRST, LAST], two numbers")
    return ends[0], ends[1]


def _range(value: Mapping[str, Any], where: str) -> Sequence[float]:
    first, last = _ends(value, "range", where)
    step = value.get("step", 1)
    if not isinstance(step, int) or step < 1 or first != int(first) or last < first:
        raise GridError(f"{where}: a range goes up from a whole number in whole steps")
    return range(int(first), int(last) + 1, step)


def _count(value: Mapping[str, Any], where: str) -> int:
    points = value.get("points", 0)
    if not isinstance(points, int) or points < 2:
        raise GridError(f"{where}: points: how many values, at least 2")
    return points


def _linear(value: Mapping[str, Any], where: str) -> Sequence[float]:
    first, last = _ends(value, "linear", where)
    steps = _count(value, where) - 1
    return [_rounded(first + (last - first) * i / steps) for i in range(steps + 1)]


def _log(value: Mapping[str, Any], where: str) -> Sequence[float]:
    first, last = _ends(value, "log", where)
    steps = _count(value, where) - 1
    if first <= 0 or last <= 0:
        raise GridError(f"{where}: log needs numbers above 0")
    return [_rounded(first * (last / first) ** (i / steps)) for i in range(steps + 1)]


def _rounded(number: float) -> float:
    """Six figures: what is left of rounding would only make values unreadable."""
    short = float(f"{number:.6g}")
    return int(short) if short == int(short) else short


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:f}".rstrip("0").rstrip(".")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _names(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_shown(value)}" for key, value in chosen.items()) or "no axes"
