"""Fault, point and outcome as one Markdown table: what `predump faults table` prints."""

from __future__ import annotations

from collections.abc import Sequence

from predump.faults.points import POINTS
from predump.faults.spec import Fault


def fault_table(faults: Sequence[Fault]) -> str:
    """A row for each fault, a column for each point at which any of them strikes."""
    points = [p for p in POINTS if any(case.at == p for f in faults for case in f.spec.case)]
    lines = [
        _line(["fault", "lasts", *points]),
        _line(["---"] * (2 + len(points))),
    ]
    for fault in faults:
        cells = {
            case.at: case.outcome + (", after doubt" if case.doubt else "")
            for case in fault.spec.case
        }
        lasts = fault.spec.lasts if fault.lasts_s else "on"
        lines.append(_line([f"`{fault.name}`", lasts, *(cells.get(p, "") for p in points)]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
