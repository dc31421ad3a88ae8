"""Colours and fonts of figures, for light and dark pages and for print.

Series have the palette of Okabe and Ito ("Color Universal Design", 2008), which readers without red
or green vision tell apart, with its blue and black lightened on dark ground. Shapes say the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ROUNDS = ("#08519c", "#2f7fbf", "#6baed6", "#9ecae1", "#c6dbef")
"""Pre-dumps from the first on: one hue, ever lighter."""
FINAL = "#d55e00"
"""The final round, frozen."""
LAZY = "#e69f00"
"""Pages that come while the task runs at the destination."""
PARTS = ("#999999", "#56b4e9", "#e69f00", "#0072b2", "#009e73", "#cc79a7")
"""Parts of the downtime, in their order."""

SERIF = "DejaVu Sans, Arial, sans-serif"
SCREEN = "system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif"


@dataclass(frozen=True, slots=True)
class Theme:
    """What a page or an image is drawn with."""

    series: tuple[str, ...]
    text: str
    muted: str
    grid: str
    ground: str


LIGHT = Theme(
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a8a8a"),
    text="#1b1f24",
    muted="#57606a",
    grid="#e4e7eb",
    ground="#ffffff",
)
DARK = Theme(
    ("#4aa3df", "#f0813a", "#2fc79a", "#e29ac4", "#f0b429", "#8fd0f5", "#f2f2f2", "#9a9a9a"),
    text="#e6e9ed",
    muted="#a3acb7",
    grid="#333a42",
    ground="#15191e",
)


def config(theme: Theme, font: str, *, size: int = 12) -> dict[str, Any]:
    """The Vega-Lite configuration of a theme; `size`: of text, in pixels."""
    words = {"labelFont": font, "titleFont": font, "labelFontSize": size, "titleFontSize": size}
    return {
        "background": "transparent",
        "font": font,
        "range": {"category": list(theme.series)},
        "view": {"stroke": None},
        "axis": {
            **words,
            "labelColor": theme.muted,
            "titleColor": theme.text,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "gridColor": theme.grid,
            "domainColor": theme.muted,
            "tickColor": theme.muted,
        },
        "legend": {
            **words,
            "labelColor": theme.text,
            "titleColor": theme.text,
            "titleFontWeight": "normal",
            "symbolSize": 80,
            "symbolOpacity": 1,
            "labelLimit": 320,
            "titleLimit": 320,
        },
        "title": {"font": font, "fontSize": size + 1, "color": theme.text, "anchor": "start"},
        "rule": {"color": theme.text},
        "point": {"color": theme.text},
        "bar": {"stroke": theme.ground, "strokeWidth": 0.5},
    }
