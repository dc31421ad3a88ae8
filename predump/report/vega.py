"""Pieces of Vega-Lite specifications that figures share: scales, axes, layers.

Specifications are plain JSON objects (https://vega.github.io/vega-lite/). They have neither colours
nor fonts: `theme` has those, once for light and once for dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from predump.report.quantities import Unit

Spec = dict[str, Any]

_LABELS: dict[Unit, str] = {
    "s": "datum.value === 0 ? '0' : "
    "datum.value < 9.99e-4 ? format(datum.value * 1e6, '~g') + ' µs' : "
    "datum.value < 0.999 ? format(datum.value * 1e3, '~g') + ' ms' : "
    "format(datum.value, ',~g') + ' s'",
    "MiB": "datum.value < 1024 ? format(datum.value, '~g') : format(datum.value, ',~f')",
    "pages/s": "format(datum.value, '~s')",
    "bit/s": "replace(format(datum.value, '~s'), /([kMGT]?)$/, ' $1bit/s')",
    "B": "datum.value < 1048576 ? format(datum.value / 1024, '~g') + ' KiB' : "
    "datum.value < 1073741824 ? format(datum.value / 1048576, '~g') + ' MiB' : "
    "format(datum.value / 1073741824, '~g') + ' GiB'",
    "": "format(datum.value, '~g')",
}
_LOG_FROM = 8.0
"""Values that are further apart than this get a logarithmic axis."""
_MOST_TICKS = 6

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
HEIGHT = 260
"""Height of a panel in pixels; its width is that of its container."""


def axis_of(
    values: Iterable[float], title: str, unit: Unit, *, exact: bool = False, zero: bool = False
) -> Spec:
    """Scale and axis of a channel for `values`, logarithmic where they are far apart.

    `exact`: ticks are at the values themselves, if there are few. `zero`: begin at zero, linear.
    """
    found = sorted({value for value in values if math.isfinite(value)}) or [0.0, 1.0]
    least, most = found[0], found[-1]
    axis: Spec = {"title": title, "labelExpr": _LABELS[unit], "labelOverlap": "parity"}
    axis["labelSeparation"] = 8
    if zero or least <= 0 or most / least < _LOG_FROM:
        scale: Spec = {"zero": zero, "nice": not exact}
        if exact and len(found) <= _MOST_TICKS:
            axis["values"] = found
        axis.setdefault("tickCount", 4)
        return {"type": "quantitative", "scale": scale, "axis": axis}
    margin = (most / least) ** 0.03
    domain = [least / margin, most * margin]
    axis["values"] = found if exact and len(found) <= _MOST_TICKS else _ticks(*domain)
    return {
        "type": "quantitative",
        "scale": {"type": "log", "domain": domain, "nice": False},
        "axis": axis,
    }


def _ticks(least: float, most: float) -> list[float]:
    """Powers of ten; where they are few, 2 and 5 times these as well; where many, every second."""
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    steps = (1, 2, 5) if math.log10(most / least) < 2 else (1,)
    ticks = [
        float(f"{step}e{decade}")
        for decade in decades
        for step in steps
        if least <= float(f"{step}e{decade}") <= most
    ]
    return ticks[:: max(1, math.ceil(len(ticks) / 9))]


def by_series(names: Sequence[str]) -> Spec:
    """Colour and shape of series; dimmed while the reader looks at another one."""
    return {
        "color": {
            "field": "s",
            "type": "nominal",
            "title": None,
            "scale": {"domain": list(names)},
            "legend": None,
        },
        "opacity": {
            "condition": {"test": "shown === null || shown === datum.s", "value": 1},
            "value": 0.12,
        },
    }


def shape_of(names: Sequence[str]) -> Spec:
    """The shape channel of points, so that series are told apart without colours as well."""
    shapes = [SHAPES[k % len(SHAPES)] for k in range(len(names))]
    return {
        "field": "s",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(names), "range": shapes},
        "legend": None,
    }


def tooltips(**fields: str) -> list[Spec]:
    """Tooltip entries of text fields: field name to title."""
    return [{"field": field, "type": "nominal", "title": title} for field, title in fields.items()]


def view(**parts: Any) -> Spec:
    """A specification with what all have: schema, size, and the series that the reader looks at."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": HEIGHT,
        "params": [{"name": "shown", "value": None}],
        **parts,
    }
