"""A figure of a report: one or more panels side by side, with one legend and one caption."""

from __future__ import annotations

from dataclasses import dataclass, field

from predump.report.vega import Spec

MOST_PANELS = 12
"""A figure with more cannot be read; the caption says how many are left out."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot: a Vega-Lite specification, and what sets it apart from the others."""

    title: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a legend. `color`: number in the theme's palette, or a colour of its own."""

    label: str
    color: int | str
    shape: str  # a point's shape, "bar" or "dashes"
    series: bool = True  # whether looking at it alone makes sense


@dataclass(frozen=True, slots=True)
class Ramp:
    """The legend of a continuous colour: evenly spaced labels, from one end to the other."""

    title: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """`name` is what files are called; `caption` says what is seen and how to read it."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    keys: tuple[Key, ...] = field(default=())
    ramp: Ramp | None = None
