"""Two sets of runs side by side: point by point, what changed and by how much.

Points of two sweeps belong together if the values of their axes are the same, whatever else of the
scenario changed: that is what is compared. Two single results always belong together.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from predump.result import Result
from predump.runs import Run

COMPARE_SCHEMA = "predump.compare/1"

MEASURES: dict[str, Callable[[Result], float]] = {
    "downtime_s": lambda result: result.downtime_s.total,
    "total_time_s": lambda result: result.total_time_s,
    "bytes_wire": lambda result: result.bytes_wire,
    "rounds": lambda result: len(result.rounds),
}


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of a point in both runs."""

    a: float
    b: float

    @property
    def ratio(self) -> float | None:
        """``b / a``; None if `a` is nothing."""
        return self.b / self.a if self.a else None


@dataclass(frozen=True, slots=True)
class Pair:
    """A point that both have. `changes`: by the names in `MEASURES`."""

    name: str
    a: Run
    b: Run
    changes: dict[str, Change]


@dataclass(frozen=True, slots=True)
class Compared:
    """All that two sets of runs have in common, and what only one of them has.

    `settings`: keys of the scenario that are different in every pair in the same way. `failed`:
    points that both have and that failed in one of them.
    """

    pairs: tuple[Pair, ...]
    only_a: tuple[Run, ...]
    only_b: tuple[Run, ...]
    failed: tuple[tuple[Run, Run], ...]
    settings: dict[str, tuple[Any, Any]]

    def ratios(self, measure: str) -> tuple[float, float, float] | None:
        """Least, median and greatest ratio of a measure; None if there is none."""
        found = [r for pair in self.pairs if (r := pair.changes[measure].ratio) is not None]
        return (min(found), statistics.median(found), max(found)) if found else None


def compare(a: Sequence[Run], b: Sequence[Run]) -> Compared:
    """Finds the points that both have."""
    identity = _identity(a, b)
    there = {identity(run): run for run in b}
    pairs, failed, only_a = [], [], []
    for run in a:
        other = there.pop(identity(run), None)
        if other is None:
            only_a.append(run)
        elif run.result is None or other.result is None:
            failed.append((run, other))
        else:
            changes = {
                name: Change(float(of(run.result)), float(of(other.result)))
                for name, of in MEASURES.items()
            }
            pairs.append(Pair(point_name(run), run, other, changes))
    return Compared(
        tuple(pairs), tuple(only_a), tuple(there.values()), tuple(failed), _different(pairs)
    )


def point_name(run: Run) -> str:
    """A point as people tell it from others: the values of its axes."""
    parts = [
        _shown(value) if key.endswith(".kind") else f"{key.rpartition('.')[2]} {_shown(value)}"
        for key, value in run.axes.items()
    ]
    if run.repeat:
        parts.append(f"repeat {run.repeat}")
    return ", ".join(parts) or run.origin


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(item) for item in value.values())
    return str(value)


def _identity(a: Sequence[Run], b: Sequence[Run]) -> Callable[[Run], Hashable]:
    """What tells points from each other within both sets: as little as does."""
    if len(a) == len(b) == 1:
        return lambda run: None
    ways: tuple[Callable[[Run], Hashable], ...] = (
        lambda run: (_text(run.axes), run.repeat),
        lambda run: (run.sweep, _text(run.axes), run.repeat),
        lambda run: run.origin,
        lambda run: _text(run.settings),
    )
    for way in ways:
        if _tells_apart(way, a) and _tells_apart(way, b):
            return way
    return lambda run: (run.origin, _text(run.settings))


def _tells_apart(way: Callable[[Run], Hashable], runs: Sequence[Run]) -> bool:
    return len({way(run) for run in runs}) == len(runs)


def _text(values: Any) -> str:
    return json.dumps(values, sort_keys=True, default=str)


def _different(pairs: Iterable[Pair]) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] | None = None
    for pair in pairs:
        keys = pair.a.settings.keys() | pair.b.settings.keys()
        here = {
            key: (pair.a.settings.get(key), pair.b.settings.get(key))
            for key in keys
            if pair.a.settings.get(key) != pair.b.settings.get(key)
        }
        found = here if found is None else {k: v for k, v in found.items() if here.get(k) == v}
    return dict(sorted((found or {}).items()))


def to_json(compared: Compared, a: str, b: str) -> dict[str, Any]:
    """The comparison as one object, ``predump.compare/1``. `a`, `b`: what the two are called."""
    return {
        "schema": COMPARE_SCHEMA,
        "a": a,
        "b": b,
        "settings": {key: {"a": x, "b": y} for key, (x, y) in compared.settings.items()},
        "points": [
            {
                "point": pair.name,
                "axes": dict(pair.a.axes),
                **{
                    name: {"a": change.a, "b": change.b, "ratio": change.ratio}
                    for name, change in pair.changes.items()
                },
            }
            for pair in compared.pairs
        ],
        "failed": [
            {"point": point_name(x), "a": x.error or None, "b": y.error or None}
            for x, y in compared.failed
        ],
        "only_a": [point_name(run) for run in compared.only_a],
        "only_b": [point_name(run) for run in compared.only_b],
    }
