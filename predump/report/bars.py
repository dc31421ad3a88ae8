"""What migrations are made of: rounds by time and by bytes, and the parts of the downtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from predump.report.figure import Figure, Key, Panel
from predump.report.quantities import mebibytes, seconds, shown
from predump.report.study import Done, Study
from predump.report.theme import FINAL, LAZY, PARTS, ROUNDS
from predump.report.vega import Spec, axis_of, tooltips, view
from predump.result import PostCopy, RoundResult

MIB = float(2**20)
_MOST_PLACES = 8
_BAR = 22
"""Height of a bar and its gap in pixels."""

_GROUPS = ((0, "round 0"), (1, "round 1"), (2, "round 2"), (5, "rounds 3 to 5"))
_LATER = "later rounds"
_FINAL = "final round, frozen"
_AFTERWARDS = "pages after the hand-over"
_ROUND_NAMES = (*(name for _, name in _GROUPS), _LATER, _FINAL)
_PART_NAMES = ("freeze", "scan", "dump", "transfer", "restore", "resume")


@dataclass(frozen=True, slots=True)
class Place:
    """Where bars are compared: one panel and one point of the axis."""

    title: str
    runs: tuple[Done, ...]  # one for each series


def places(study: Study) -> list[Place]:
    """A few places that show what changes: in the middle and at the end of the axis."""
    chosen: list[Place] = []
    each = 2 if len(study.panels) <= _MOST_PLACES // 2 else 1
    for panel in study.panels[:_MOST_PLACES]:
        points = sorted({done.x for done in study.of_panel(panel) if done.x is not None})
        wanted = [points[(len(points) - 1) // 2], points[-1]][:each] if points else [None]
        for x in dict.fromkeys(wanted):
            runs: dict[str, Done] = {}
            for done in study.of_panel(panel):
                if done.x == x:
                    runs.setdefault(done.series, done)
            at = shown(x, study.axis.unit) if study.axis is not None and x is not None else ""
            title = ", ".join(text for text in (panel, at) if text)
            chosen.append(Place(title, tuple(runs.values())))
    return chosen


def bars(study: Study) -> list[Figure]:
    """Three figures over the same places; none if there are no runs."""
    chosen = places(study)
    if not chosen:
        return []
    repeats = " Of repeats with other seeds the first is shown." if _has_repeats(study) else ""
    frozen = "the last one is sent while the task is frozen (its restore is not in here)"
    rounds = [
        Key(name, color, "bar", series=False)
        for name, color in zip(_ROUND_NAMES, (*ROUNDS, FINAL), strict=True)
    ]
    if any(done.result.post_copy is not None for place in chosen for done in place.runs):
        rounds.append(Key(_AFTERWARDS, LAZY, "bar", series=False))
        frozen += "; afterwards, with post-copy, come the pages that the task had to do without"
    parts = [
        Key(name, color, "bar", series=False)
        for name, color in zip(_PART_NAMES, PARTS, strict=True)
    ]
    return [
        Figure(
            "rounds-time",
            "Rounds, by time",
            f"How long each round took, one after the other; {frozen}.{repeats}",
            _panels(chosen, _round_times, "time", "s"),
            tuple(rounds),
        ),
        Figure(
            "rounds-bytes",
            "Rounds, by bytes on the wire",
            f"What each round sent.{repeats}",
            _panels(chosen, _round_bytes, "sent (MiB)", "MiB"),
            tuple(rounds),
        ),
        Figure(
            "downtime-parts",
            "What the downtime is made of",
            "Stopping the task, finding the pages of the final round, copying them out, sending "
            f"them, rebuilding the task around them, and the last step to runnable.{repeats}",
            _panels(chosen, _parts, "downtime", "s"),
            tuple(parts),
        ),
    ]


def _has_repeats(study: Study) -> bool:
    return any(
        len(runs) > 1
        for panel in study.panels
        for series in study.series
        for runs in study.points(panel, series).values()
    )


Piece = dict[str, Any]


def _panels(
    chosen: Sequence[Place], pieces: Callable[[Done], Iterator[Piece]], title: str, unit: str
) -> tuple[Panel, ...]:
    made = []
    for place in chosen:
        rows = [
            {"s": run.series, "order": order, **piece}
            for run in place.runs
            for order, piece in enumerate(pieces(run))
        ]
        made.append(Panel(place.title, _panel(place, rows, title, unit)))
    return tuple(made)


def _panel(place: Place, rows: list[Piece], title: str, unit: str) -> Spec:
    names = [run.series for run in place.runs]
    totals = [sum(row["v"] for row in rows if row["s"] == name) for name in names]
    colors = list(dict.fromkeys((row["part"], row["color"]) for row in rows))
    spec = view(
        data={"values": rows},
        mark={"type": "bar", "height": {"band": 0.75}},
        encoding={
            "y": {
                "field": "s",
                "type": "nominal",
                "sort": names,
                "title": None,
                "axis": {"ticks": False, "domain": False, "labelLimit": 190},
            },
            "x": {"field": "v", "aggregate": "sum", **axis_of(totals, title, unit, zero=True)},
            "color": {
                "field": "part",
                "type": "nominal",
                "scale": {"domain": [p for p, _ in colors], "range": [c for _, c in colors]},
                "legend": None,
            },
            "order": {"field": "order", "type": "quantitative"},
            "detail": {"field": "order"},
            "tooltip": tooltips(s="policy", name="part", value="is", more="with"),
        },
    )
    spec["height"] = _BAR * len(names) + 10
    return spec


def _group(entry: RoundResult, *, last: bool) -> tuple[str, str]:
    """What a round is called in the legend, and its colour."""
    if last:
        return _FINAL, FINAL
    for (most, name), color in zip(_GROUPS, ROUNDS, strict=False):
        if entry.round <= most:
            return name, color
    return _LATER, ROUNDS[-1]


def _round_pieces(
    done: Done,
    value: Callable[[RoundResult], float],
    afterwards: Callable[[PostCopy], float],
    text: Callable[[float], str],
) -> Iterator[Piece]:
    rounds = done.result.rounds
    for entry in rounds:
        name, color = _group(entry, last=entry is rounds[-1])
        yield {
            "v": value(entry),
            "part": name,
            "color": color,
            "name": "final round" if entry is rounds[-1] else f"round {entry.round}",
            "value": text(value(entry)),
            "more": f"{entry.pages_sent:,} pages, {mebibytes(entry.bytes_wire)}",
        }
    later = done.result.post_copy
    if later is not None:
        yield {
            "v": afterwards(later),
            "part": _AFTERWARDS,
            "color": LAZY,
            "name": _AFTERWARDS,
            "value": text(afterwards(later)),
            "more": f"{later.pages_lazy:,} pages, {seconds(later.stalled_s)} waited for them",
        }


def _round_times(done: Done) -> Iterator[Piece]:
    return _round_pieces(
        done, lambda entry: entry.duration_s, lambda later: later.residual_s, seconds
    )


def _round_bytes(done: Done) -> Iterator[Piece]:
    return _round_pieces(
        done,
        lambda entry: entry.bytes_wire / MIB,
        lambda later: later.bytes_wire / MIB,
        lambda size: mebibytes(size * MIB),
    )


def _parts(done: Done) -> Iterator[Piece]:
    down = done.result.downtime_s
    for name, color in zip(_PART_NAMES, PARTS, strict=True):
        value = getattr(down, name)
        yield {
            "v": value,
            "part": name,
            "color": color,
            "name": name,
            "value": seconds(value),
            "more": f"{seconds(down.total)} in all",
        }
