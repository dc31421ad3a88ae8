"""What a set of runs is about: what varies between them, and what to draw against what.

A sweep may vary any keys of a scenario. One that is a quantity becomes the horizontal axis (the
dirty rate before all others), bandwidth, memory and the workload make panels, and the rest,
policies first, are the series that panels compare. Repeats with other seeds are one point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from predump.report.quantities import Unit, quantity, shown
from predump.result import Result
from predump.runs import Run

_ACROSS = ("workload.rate", "link.bandwidth", "memory")
"""Keys that become the horizontal axis, the first that varies."""

_PANELS = ("workload.kind", "workload.content", "link.bandwidth", "memory", "page_size")
"""Keys that make panels unless they are the axis."""

_BARE = ("workload.kind", "link.bandwidth", "encoding.kind", "encoding.codec")
"""Keys whose values say enough without a name beside them."""

_NAMES: Mapping[str, str] = {
    "workload.rate": "page writes per second",
    "link.bandwidth": "bandwidth",
    "memory": "memory",
    "link.latency": "latency",
    "workload.working_set": "working set",
}


@dataclass(frozen=True, slots=True)
class Done:
    """A run with a result, and where it belongs in figures. `x` is None without an axis."""

    run: Run
    result: Result
    panel: str
    series: str
    x: float | None


@dataclass(frozen=True, slots=True)
class Axis:
    """The horizontal axis: a key, what it is called, and its unit."""

    key: str
    title: str
    unit: Unit


@dataclass(frozen=True, slots=True)
class Study:
    """Runs, sorted out. `series` and `panels` are in the order of the runs."""

    done: tuple[Done, ...]
    failed: tuple[Run, ...]
    axis: Axis | None
    panels: tuple[str, ...]
    series: tuple[str, ...]
    varying: Mapping[str, tuple[Any, ...]]
    fixed: Mapping[str, Any]

    def of_panel(self, panel: str) -> list[Done]:
        """The runs of one panel."""
        return [done for done in self.done if done.panel == panel]

    def points(self, panel: str, series: str) -> dict[float, list[Done]]:
        """Runs of one curve by where they are on the axis, ascending; repeats together."""
        found: dict[float, list[Done]] = {}
        for done in self.done:
            if done.panel == panel and done.series == series and done.x is not None:
                found.setdefault(done.x, []).append(done)
        return dict(sorted(found.items()))


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and range of some runs."""

    mean: float
    least: float
    most: float


def spread(runs: Sequence[Done], value: Callable[[Done], float]) -> Spread:
    """Mean and range of a value over runs, of which there is at least one."""
    values = [value(run) for run in runs]
    return Spread(sum(values) / len(values), min(values), max(values))


def study(runs: Iterable[Run]) -> Study:
    """Sorts runs out. Runs that failed have no place in figures and are only listed."""
    runs = list(runs)
    varying = _varying(runs)
    fixed = {
        key: value
        for key, value in (runs[0].settings.items() if runs else ())
        if key not in varying and all(run.settings.get(key) == value for run in runs)
    }
    axis = _axis(varying)
    across = axis.key if axis else ""
    panel_keys = [key for key in _PANELS if key in varying and key != across]
    rest = [key for key in varying if key not in (*panel_keys, across, "seed", "policy.kind")]
    done = [
        Done(
            run,
            run.result,
            ", ".join(_value(key, run) for key in panel_keys if key in run.settings),
            _series(run, rest, with_policy="policy.kind" in varying or not rest),
            _number(across, run),
        )
        for run in runs
        if run.result is not None
    ]
    return Study(
        done=tuple(done),
        failed=tuple(run for run in runs if run.result is None),
        axis=axis,
        panels=tuple(dict.fromkeys(d.panel for d in done)),
        series=tuple(dict.fromkeys(d.series for d in done)),
        varying=varying,
        fixed=fixed,
    )


def _varying(runs: Sequence[Run]) -> dict[str, tuple[Any, ...]]:
    """Keys with several values. A key of a table with kinds must have them within one kind:
    ``policy.max_rounds`` of two policies are two keys, each with its own default.
    """
    values: dict[str, dict[Any, list[Any]]] = {}
    for run in runs:
        for key, value in run.settings.items():
            seen = values.setdefault(key, {}).setdefault(_kind(key, run), [])
            if value not in seen:
                seen.append(value)
    return {
        key: tuple(value for seen in of_kinds.values() for value in seen)
        for key, of_kinds in values.items()
        if any(len(seen) > 1 for seen in of_kinds.values())
    }


def _kind(key: str, run: Run) -> Any:
    """The kind that a key belongs to; None for a kind itself and where there are none."""
    table = key.partition(".")[0]
    return None if key == f"{table}.kind" else run.settings.get(f"{table}.kind")


def _axis(varying: Mapping[str, tuple[Any, ...]]) -> Axis | None:
    others = [key for key in varying if key not in (*_ACROSS, *_PANELS, "seed")]
    for key in (*_ACROSS, *others):
        numbers = [quantity(key, value) for value in varying.get(key, ())]
        units = {number[1] for number in numbers if number is not None}
        if numbers and None not in numbers and len(units) == 1:
            return Axis(key, _NAMES.get(key, _words(key)), units.pop())
    return None


def _words(key: str) -> str:
    """``policy.throttle_increment`` as ``throttle increment``."""
    return key.rpartition(".")[2].replace("_", " ")


def _number(key: str, run: Run) -> float | None:
    found = quantity(key, run.settings.get(key), run.settings.get("page_size", 4096))
    return found[0] if found is not None else None


def _value(key: str, run: Run) -> str:
    value = run.settings[key]
    found = quantity(key, value)
    text = shown(*found) if found is not None else str(value)
    return text if key in _BARE else f"{text} {_words(key)}"


def _series(run: Run, keys: Sequence[str], *, with_policy: bool) -> str:
    """Whatever is different between runs, the policy first."""
    named = [
        _plain(key, run) if key in _BARE else f"{_words(key)} {_plain(key, run)}"
        for key in keys
        if key in run.settings
    ]
    if with_policy or not named:
        named.insert(0, run.result.policy.kind if run.result is not None else "")
    return ", ".join(named)


def _plain(key: str, run: Run) -> str:
    found = quantity(key, run.settings[key])
    return shown(*found) if found is not None else str(run.settings[key])
