"""All policies on a few workloads as one Markdown table: what `predump policies` prints.

The grid is the comparison ``policies``. Times are virtual, so the table is the same on every
machine, and a test holds the one in the README to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from predump.report.quantities import mebibytes, quantity, seconds, shown
from predump.runs import Run

COMPARISON = "policies"


def policy_table(runs: Iterable[Run]) -> str:
    """Downtime, total time and bytes sent by policy and workload, in Markdown."""
    cells: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}
    for run in runs:
        column = workload_name(run)
        columns.setdefault(column)
        policy = str(run.settings["policy.kind"])
        cells.setdefault(policy, {}).setdefault(column, _cell(run))
    lines = [
        _line("policy", columns),
        _line("---", ("---" for _ in columns)),
        *(
            _line(f"`{policy}`", (row.get(column, "") for column in columns))
            for policy, row in cells.items()
        ),
    ]
    return "\n".join(lines)


def workload_name(run: Run) -> str:
    """``zipf, 2.5k pages/s``."""
    rate = quantity("workload.rate", run.settings.get("workload.rate"), run.settings["page_size"])
    kind = str(run.settings["workload.kind"])
    return f"{kind}, {shown(*rate)}" if rate is not None else kind


def _cell(run: Run) -> str:
    result = run.result
    if result is None:
        return f"failed: {run.error}"
    return ", ".join(
        (
            seconds(result.downtime_s.total),
            seconds(result.total_time_s),
            mebibytes(result.bytes_wire),
        )
    )


def _line(first: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"
