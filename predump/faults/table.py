"""Fault, point and outcome as Markdown tables: what `predump faults table` prints."""

from __future__ import annotations

from collections.abc import Sequence

from predump.faults.points import order
from predump.faults.spec import MODES, Fault, Mode


def fault_tables(faults: Sequence[Fault]) -> str:
    """A table for each mode that has cases, under a heading of its own."""
    return "\n\n".join(
        f"### {mode.capitalize()}\n\n{fault_table(faults, mode)}"
        for mode in MODES
        if any(case.mode == mode for fault in faults for case in fault.spec.case)
    )


def fault_table(faults: Sequence[Fault], mode: Mode) -> str:
    """A row for each fault, a column for each point at which any of them strikes in this mode."""
    cases = {
        fault.name: {case.at: case for case in fault.spec.case if case.mode == mode}
        for fault in faults
    }
    points = sorted({point for row in cases.values() for point in row}, key=order)
    lines = [
        _line(["fault", "lasts", *points]),
        _line(["---"] * (2 + len(points))),
    ]
    for fault in faults:
        cells = {
            point: case.outcome + (", after doubt" if case.doubt else "")
            for point, case in cases[fault.name].items()
        }
        if cells:
            lasts = fault.spec.lasts if fault.lasts_s else "on"
            lines.append(_line([f"`{fault.name}`", lasts, *(cells.get(p, "") for p in points)]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
