"""Figures as PNG and SVG: the panels of each beside each other, with one legend, on white.

The same specifications that a report's page draws, converted by vl-convert without a browser.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predump.report.figure import Figure
from predump.report.theme import LIGHT, SERIF, config
from predump.report.vega import Spec

if TYPE_CHECKING:
    from types import ModuleType

WIDTH = 330
"""Of a panel, in pixels; a figure has at most two in a row."""
DOTS_PER_INCH = 288
VEGA_LITE = "6.4"


class NoConverter(ValueError):
    """vl-convert is not installed; ``str()`` is one line."""


def converter() -> ModuleType:
    """The vl-convert library. NoConverter if it is missing."""
    try:
        import vl_convert
    except ImportError as error:
        raise NoConverter(
            "reports need the package vl-convert-python: pip install predump[report]"
        ) from error
    return vl_convert


def library() -> str:
    """The JavaScript that a page draws with: Vega, Vega-Lite and Vega-Embed, as one script."""
    made: str = converter().javascript_bundle(vl_version=VEGA_LITE)
    return made


def write_images(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Writes NAME.svg and NAME.png of each figure into `folder`, which is made if need be."""
    convert: Any = converter()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in figures:
        svg = convert.vegalite_to_svg(
            together(figure), vl_version=VEGA_LITE, config=config(LIGHT, SERIF)
        )
        for suffix, content in (
            (".svg", svg.encode()),
            (".png", convert.svg_to_png(svg, scale=1, ppi=DOTS_PER_INCH)),
        ):
            path = folder / f"{figure.name}{suffix}"
            path.write_bytes(content)
            written.append(path)
    return written


def together(figure: Figure) -> Spec:
    """One specification of all panels. Legends, which a page draws itself, are drawn by Vega."""
    panels = [_still(panel.spec, panel.title, figure) for panel in figure.panels]
    spec: Spec = {
        "$schema": panels[0].pop("$schema"),
        "background": "white",
        "concat": panels,
        "columns": min(2, len(panels)),
        "spacing": 24,
        "padding": 8,
        "resolve": {"scale": {"color": "shared", "shape": "shared"}},
    }
    for panel in panels[1:]:
        panel.pop("$schema")
    return spec


def _still(spec: Spec, title: str, figure: Figure) -> Spec:
    """A panel without what only a reader at a screen can do."""
    still = copy.deepcopy(spec)
    del still["params"]
    still["width"] = WIDTH
    if title:
        still["title"] = title
    encoding = still.get("encoding", {})
    encoding.pop("opacity", None)
    color = encoding.get("color", {})
    if color.get("type") == "nominal":
        dashed = any(key.shape == "dashes" for key in figure.keys)
        note = "points: simulated; dashed: closed form" if dashed else None
        color["legend"] = {"orient": "bottom", "columns": 4, "title": note}
        for layer in still.get("layer", ()):
            if "shape" in layer["encoding"]:
                layer["encoding"]["shape"]["legend"] = color["legend"]
        if figure.keys and figure.keys[0].shape == "bar":
            # All parts in their order, also those that this panel has none of.
            parts = [(key.label, key.color) for key in figure.keys]
            color["scale"] = {"domain": [p for p, _ in parts], "range": [c for _, c in parts]}
    if figure.ramp is not None:
        _add_ramp(still)
    return still


def _add_ramp(still: Spec) -> None:
    """The legend of a continuous colour, wherever in the panel that is."""
    for part in (still, *still.get("layer", ())):
        color = part.get("encoding", {}).get("color", {})
        if color.get("type") == "quantitative":
            color["legend"] = {
                "orient": "bottom",
                "direction": "horizontal",
                "gradientLength": 200,
                "format": "~g",
            }
            if color["scale"].get("type") == "log":
                color["legend"]["values"] = [0.1, 1, 10, 100]
