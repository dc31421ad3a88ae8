"""Dirty pages over time and address: what each round found, for runs that recorded page maps."""

from __future__ import annotations

from typing import Any

from predump.report.bars import places
from predump.report.figure import Figure, Panel, Ramp
from predump.report.quantities import seconds
from predump.report.study import Done, Study
from predump.report.vega import Spec, axis_of, tooltips, view

_MOST = 6
_HEIGHT = 240
_SHARE = "pages of the block (%)"


def pages(study: Study) -> list[Figure]:
    """One panel for each of a few runs; none if no run recorded where its pages are."""
    chosen = []
    for place in places(study):
        for done in place.runs:
            if any(entry.page_map is not None for entry in done.result.rounds):
                title = ", ".join(text for text in (done.series, place.title) if text)
                chosen.append((title, done))
    # Spread over what there is: neighbours are alike.
    step = max(1, -(-len(chosen) // _MOST))
    shown = chosen[::step][:_MOST]
    if not shown:
        return []
    caption = (
        "Each column is a round, as wide as it took; each row is a block of addresses, low ones "
        "at the bottom, without the gaps between mappings. Colour: how much of the block the round "
        "found to send. The last column is the final round."
    )
    return [
        Figure(
            "pages",
            "Dirty pages over time and address",
            caption,
            tuple(Panel(title, _panel(done)) for title, done in shown),
            ramp=Ramp(_SHARE, ("0", "25", "50", "75", "100")),
        )
    ]


def _panel(done: Done) -> Spec:
    cells, marks = _cells(done)
    ends = [cell["to"] for cell in cells]
    x = axis_of(ends, "time since the start", "s", zero=True)
    x["scale"] |= {"nice": False, "domain": [0, max(ends)]}
    rows = 1 + max(cell["row"] for cell in cells)
    y = {
        "type": "quantitative",
        "scale": {"domain": [0, rows], "nice": False, "zero": False},
        "axis": {
            "title": "address",
            "values": [mark for mark, _ in marks],
            "labelExpr": _labels(marks),
            "grid": False,
        },
    }
    color = {
        "field": "share",
        "type": "quantitative",
        "scale": {"domain": [0, 100], "scheme": "viridis"},
        "title": _SHARE,
        "legend": None,
    }
    spec = view(
        data={"values": cells},
        mark={"type": "rect", "clip": True},
        encoding={
            "x": {"field": "from", **x},
            "x2": {"field": "to"},
            "y": {"field": "row", **y},
            "y2": {"field": "above"},
            "color": color,
            "tooltip": tooltips(
                round="round", block="block", dirty="pages", at="from", took="took"
            ),
        },
    )
    spec["height"] = rows * max(1, round(_HEIGHT / rows))  # whole pixels: no seams between rows
    return spec


def _cells(done: Done) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """The cells, and a few rows with the address that begins there."""
    rounds = done.result.rounds
    blocks = sorted(
        {
            (process.pid, int(start, 16))
            for entry in rounds
            if entry.page_map is not None
            for process in entry.page_map.processes
            for start in process.start
        }
    )
    row_of = {block: row for row, block in enumerate(blocks)}
    several = len({pid for pid, _ in blocks}) > 1
    cells = []
    began = 0.0
    for entry in rounds:
        ended = began + entry.duration_s
        page_map = entry.page_map
        for process in page_map.processes if page_map is not None else ():
            assert page_map is not None
            size = max(1, page_map.bin_bytes // done.result.page_size)
            for start, count in zip(process.start, process.pages, strict=True):
                row = row_of[process.pid, int(start, 16)]
                cells.append(
                    {
                        "from": began,
                        "to": ended,
                        "row": row,
                        "above": row + 1,
                        "share": min(100.0, 100 * count / size),
                        "round": "final" if entry is rounds[-1] else str(entry.round),
                        "block": start + (f" of process {process.pid}" if several else ""),
                        "dirty": f"{count:,} of {size:,}",
                        "at": seconds(began),
                        "took": seconds(entry.duration_s),
                    }
                )
        began = ended
    step = max(1, len(blocks) // 4)
    marks = [
        (row, f"{pid}: {start:#x}" if several else f"{start:#x}")
        for row, (pid, start) in enumerate(blocks)
        if row % step == 0
    ]
    return cells, marks


def _labels(marks: list[tuple[int, str]]) -> str:
    """A Vega expression that names the marked rows."""
    text = "''"
    for row, name in reversed(marks):
        text = f"datum.value === {row} ? '{name}' : {text}"
    return text
