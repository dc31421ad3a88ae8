"""Where pre-copy converges: how much of memory is left for the final round, by rate and link."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from predump.report.figure import MOST_PANELS, Figure, Key, Panel, Ramp
from predump.report.quantities import quantity, seconds, shown
from predump.report.study import Done, Study, spread
from predump.report.vega import Spec, axis_of, tooltips, view

_ROW = 30
_SHARE = "sent while frozen (% of memory)"
_X = "M-1,-1L1,1M1,-1L-1,1"
"""A cross, as the path of a symbol."""
_NO_LONGER = 0.01
"""Shares of memory below this are few pages, whose numbers say nothing about convergence."""


def region(study: Study) -> list[Figure]:
    """One heat map for each series; none unless the dirty rate varies."""
    if study.axis is None or study.axis.key != "workload.rate" or len(study.done) < 4:
        return []
    by_panel = len(study.panels) > 1
    names = study.series if by_panel else ("",)
    made: list[tuple[str, list[dict[str, Any]]]] = []
    for name in names[:MOST_PANELS]:
        cells = _cells(study, name)
        if cells:
            made.append((name, cells))
    if not made:
        return []
    edges = [cell[edge] for _, cells in made for cell in cells for edge in ("from", "to")]
    span = (min(edges), max(edges))
    caption = (
        "Colour: the share of memory that was still to be sent when the task was frozen. Left of "
        "the line the link carries pages faster than the task writes them. Crosses: the final "
        "round was no smaller than the one before it, so that more rounds would not have helped."
    )
    return [
        Figure(
            "convergence",
            "Where pre-copy converges",
            caption,
            tuple(Panel(name, _panel(cells, span)) for name, cells in made),
            (Key("rounds no longer shrink", "text", "x", series=False),),
            Ramp(_SHARE, ("0.1", "1", "10", "100")),
        )
    ]


def _cells(study: Study, name: str) -> list[dict[str, Any]]:
    """One cell for each place; rows are panels, or series where there is one panel."""
    cells = []
    for panel in study.panels:
        for series in (name,) if name else study.series:
            points = study.points(panel, series)
            ratios = {x: ratio for x, runs in points.items() if (ratio := _ratio(runs[0]))}
            step = _step(list(ratios.values()))
            for x, ratio in ratios.items():
                runs = points[x]
                share = spread(runs, _share).mean
                down = spread(runs, lambda done: done.result.downtime_s.total).mean
                cells.append(
                    {
                        "row": (panel or "all") if name else series,
                        "r": ratio,
                        "from": ratio / step,
                        "to": ratio * step,
                        "share": max(100 * share, 1e-3),
                        "stuck": sum(_stuck(run) for run in runs) * 2 > len(runs),
                        "at": f"{ratio:.3g}, {shown(x, 'pages/s')}",
                        "left": f"{100 * share:.3g} % of memory",
                        "down": seconds(down),
                        "policy": series,
                    }
                )
    return cells


def _ratio(done: Done) -> float | None:
    """Dirty rate over bandwidth, as if no page were written twice; None without a bandwidth."""
    bandwidth = quantity("link.bandwidth", done.run.settings.get("link.bandwidth"))
    if done.x is None or bandwidth is None or bandwidth[0] == 0:
        return None
    return done.x * done.result.page_size * 8 / bandwidth[0]


def _step(ratios: list[float]) -> float:
    """Half of the distance from one cell to the next, as a factor."""
    if len(ratios) < 2:
        return 1.3
    ordered = sorted(ratios)
    return math.sqrt(min(b / a for a, b in pairwise(ordered)))


def _share(done: Done) -> float:
    """Share of memory that the final round sent."""
    final = done.result.rounds[-1]
    return final.pages_sent * done.result.page_size / done.result.memory_bytes


def _stuck(done: Done) -> bool:
    rounds = done.result.rounds
    if len(rounds) < 2 or _share(done) <= _NO_LONGER:
        return False
    return rounds[-1].pages_sent >= rounds[-2].pages_sent


def _panel(cells: list[dict[str, Any]], span: tuple[float, float]) -> Spec:
    rows = list(dict.fromkeys(cell["row"] for cell in cells))
    x = axis_of(span, "dirty rate / bandwidth", "")
    x["scale"] |= {"domain": list(span)}
    y = {
        "field": "row",
        "type": "nominal",
        "sort": rows,
        "title": None,
        "axis": {"ticks": False, "domain": False, "labelLimit": 190},
    }
    tips = tooltips(policy="policy", row="", at="ratio, rate", left="frozen", down="downtime")
    color = {
        "field": "share",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [0.1, 100], "clamp": True, "scheme": "viridis"},
        "title": _SHARE,
        "legend": None,
    }
    spec = view(
        data={"values": cells},
        layer=[
            {
                "mark": {"type": "bar", "height": {"band": 0.94}},
                "encoding": {
                    "x": {"field": "from", **x},
                    "x2": {"field": "to"},
                    "y": y,
                    "color": color,
                    "tooltip": [tip for tip in tips if tip["title"]],
                },
            },
            *_stuck_layer(cells, x, y),
            {
                "data": {"values": [{"one": 1}]},
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {"x": {"field": "one", **x}},
            },
        ],
    )
    spec["height"] = _ROW * len(rows) + 10
    return spec


def _stuck_layer(cells: list[dict[str, Any]], x: Spec, y: Spec) -> list[Spec]:
    """Crosses on the cells that have one; no layer if none has."""
    if not any(cell["stuck"] for cell in cells):
        return []
    return [
        {
            "transform": [{"filter": "datum.stuck"}],
            "mark": {"type": "point", "shape": _X, "size": 36, "strokeWidth": 1.75},
            "encoding": {"x": {"field": "r", **x}, "y": y},
        }
    ]
