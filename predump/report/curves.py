"""Downtime, total time and bytes against what varies, by policy, with theory through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from predump.report.expected import Expected, expected
from predump.report.figure import MOST_PANELS, Figure, Key, Panel
from predump.report.quantities import mebibytes, seconds, shown
from predump.report.study import Done, Study, spread
from predump.report.vega import SHAPES, axis_of, by_series, shape_of, tooltips, view

MIB = float(2**20)
_THEORY = (
    " Dashed lines are the closed form of pre-copy with the run's own costs and number of rounds, "
    "computed without the simulation; where there is none, a policy slows the task down or the "
    "workload has no simple distribution."
)
_RANGE = " Bars span runs that differ in their seed alone."


@dataclass(frozen=True, slots=True)
class _Measure:
    name: str
    title: str
    axis: str
    unit: str
    of: Callable[[Done], float]
    of_theory: Callable[[Expected], float]
    text: Callable[[float], str]
    caption: str


def _standstill(done: Done) -> float:
    later = done.result.post_copy
    return done.result.downtime_s.total + (later.stalled_s if later is not None else 0.0)


_MEASURES = (
    _Measure(
        "downtime",
        "Downtime",
        "downtime",
        "s",
        lambda done: done.result.downtime_s.total,
        lambda theory: theory.downtime_s,
        seconds,
        "From the freeze at the source to the task runnable at the destination.",
    ),
    _Measure(
        "standstill",
        "Time in which the task stands still",
        "downtime and waiting for pages",
        "s",
        _standstill,
        lambda theory: theory.downtime_s,
        seconds,
        "The downtime, and all that the task waits for pages after the hand-over.",
    ),
    _Measure(
        "total-time",
        "Total time",
        "total migration time",
        "s",
        lambda done: done.result.total_time_s,
        lambda theory: theory.total_s,
        seconds,
        "From the start of round 0 to the task runnable at the destination, with post-copy to its "
        "last page.",
    ),
    _Measure(
        "bytes",
        "Bytes on the wire",
        "sent (MiB)",
        "MiB",
        lambda done: done.result.bytes_wire / MIB,
        lambda theory: theory.bytes_wire / MIB,
        lambda size: mebibytes(size * MIB),
        "All rounds, with what is around the pages.",
    ),
)


def curves(study: Study) -> list[Figure]:
    """A figure for each measure; none if nothing varies that could be an axis."""
    if study.axis is None or not any(done.x is not None for done in study.done):
        return []
    theory = {id(done): expected(done) for done in study.done}
    # Without post-copy a task stands still in the downtime alone.
    later = any(done.result.post_copy is not None for done in study.done)
    measures = [each for each in _MEASURES if later or each.of is not _standstill]
    return [_figure(study, measure, theory) for measure in measures]


def _figure(study: Study, measure: _Measure, theory: dict[int, Expected | None]) -> Figure:
    rows = {panel: _rows(study, panel, measure, theory) for panel in study.panels}
    every = [row for panel in rows.values() for row in panel]
    heights = [row[key] for row in every for key in ("y", "lo", "hi", "m") if row[key] is not None]
    axis = study.axis
    assert axis is not None
    x = axis_of((row["x"] for row in every), axis.title, axis.unit, exact=axis.unit != "pages/s")
    y = axis_of(heights, measure.axis, measure.unit)
    panels = tuple(
        Panel(panel, _panel(study, rows[panel], x, y)) for panel in study.panels[:MOST_PANELS]
    )
    keys = tuple(
        Key(name, number, SHAPES[number % len(SHAPES)]) for number, name in enumerate(study.series)
    )
    caption = measure.caption
    if any(row["m"] is not None for row in every):
        caption += _THEORY
        keys += (Key("closed form", "text", "dashes", series=False),)
    if any(row["lo"] != row["hi"] for row in every):
        caption += _RANGE
    if len(study.panels) > MOST_PANELS:
        caption += f" {len(study.panels) - MOST_PANELS} more panels are not shown."
    what = "dirty rate" if axis.unit == "pages/s" else axis.title
    return Figure(measure.name, f"{measure.title} against {what}", caption, panels, keys)


def _rows(
    study: Study, panel: str, measure: _Measure, theory: dict[int, Expected | None]
) -> list[dict[str, Any]]:
    rows = []
    axis = study.axis
    assert axis is not None
    for series in study.series:
        for x, runs in study.points(panel, series).items():
            value = spread(runs, measure.of)
            models = [measure.of_theory(t) for run in runs if (t := theory[id(run)]) is not None]
            model = sum(models) / len(models) if models else None
            rounds = spread(runs, lambda done: float(len(done.result.rounds)))
            rows.append(
                {
                    "x": x,
                    "y": value.mean,
                    "lo": value.least,
                    "hi": value.most,
                    "m": model,
                    "s": series,
                    "at": shown(x, axis.unit),
                    "value": measure.text(value.mean),
                    "model": measure.text(model) if model is not None else "",
                    "rounds": f"{rounds.mean:g}",
                }
            )
    return rows


def _panel(
    study: Study, rows: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any]
) -> dict[str, Any]:
    axis = study.axis
    assert axis is not None
    tips = tooltips(
        s="policy", at=axis.title, value="simulated", model="closed form", rounds="rounds"
    )
    series = by_series(study.series)
    layers: list[dict[str, Any]] = []
    # Without theory to lead the eye from point to point, a thin line does.
    if any(row["m"] is None for row in rows):
        layers.append(
            {
                "transform": [{"filter": "!isValid(datum.m)"}],
                "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.7},
                "encoding": {"y": {"field": "y", **y}},
            }
        )
    if any(row["m"] is not None for row in rows):
        layers.append(
            {
                "transform": [{"filter": "isValid(datum.m)"}],
                "mark": {"type": "line", "strokeDash": [5, 4], "strokeWidth": 1.25},
                "encoding": {"y": {"field": "m", **y}},
            }
        )
    if any(row["lo"] < row["hi"] for row in rows):
        layers.append(
            {
                "transform": [{"filter": "datum.lo < datum.hi"}],
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {"y": {"field": "lo", **y}, "y2": {"field": "hi"}},
            }
        )
    layers.append(
        {
            "mark": {"type": "point", "filled": True, "size": 64, "opacity": 1},
            "encoding": {
                "y": {"field": "y", **y},
                "shape": shape_of(study.series),
                "tooltip": tips,
            },
        }
    )
    return view(data={"values": rows}, layer=layers, encoding={"x": {"field": "x", **x}, **series})
