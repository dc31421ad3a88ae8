"""What `predump accuracy` found: JSON (``predump.accuracy/1``) and Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from livemigration.machine_file import MachineFile
from predump.accuracy.compare import PARTS, Pair, summarize
from predump.accuracy.measure import Found
from predump.result import Result

ACCURACY_SCHEMA = "predump.accuracy/1"


def to_json(found: Found, machine: MachineFile) -> str:
    """One object: the machine, every case with both results, and the summary."""
    return json.dumps(
        {
            "schema": ACCURACY_SCHEMA,
            "machine": {
                "name": machine.name,
                "host": machine.host,
                "costs": machine.cost_table(),
            },
            "cases": [_case(pair) for pair in found.pairs],
            "failed": [
                {
                    "memory": case.memory,
                    "rate": case.rate,
                    "bandwidth": case.bandwidth,
                    "error": reason,
                }
                for case, reason in found.failed
            ],
            "summary": asdict(summarize(found.pairs)),
        },
        indent=2,
    )


def _case(pair: Pair) -> dict[str, Any]:
    case = pair.case
    return {
        "memory": case.memory,
        "rate": case.rate,
        "bandwidth": case.bandwidth,
        "downtime_error": pair.downtime_error,
        "total_error": pair.total_error,
        "page_errors": pair.page_errors,
        "predicted": pair.predicted.model_dump(mode="json", by_alias=True),
        "measured": [result.model_dump(mode="json", by_alias=True) for result in pair.measured],
        "cpu_waits": list(pair.waits),
    }


def to_markdown(found: Found, machine: MachineFile) -> str:
    """Three tables: the summary, downtime with its parts, and pages by round."""
    pairs = found.pairs
    return "\n".join(
        [
            *_summary(pairs),
            *(f"{case}: failed: {reason}" for case, reason in found.failed),
            "",
            f"Costs of machine `{machine.name}`"
            + (f" ({_host(machine)})" if machine.host else "")
            + ". Each cell: predicted / measured.",
            "",
            *_downtimes(pairs),
            "",
            *_rounds(pairs),
            "",
        ]
    )


def _host(machine: MachineFile) -> str:
    host = machine.host
    shown = [str(host[key]) for key in ("cpu", "system", "date") if key in host]
    if "cpus" in host:
        shown.insert(1, f"{host['cpus']} processors")
    return ", ".join(shown)


def _summary(pairs: Sequence[Pair]) -> list[str]:
    found = summarize(pairs)
    waits = [wait for pair in pairs for wait in pair.waits if wait is not None]
    rows = [
        ("error of the downtime", found.downtime_median, found.downtime_worst),
        ("error of a round's pages", found.pages_median, found.pages_worst),
        ("error of the total time", found.total_median, found.total_worst),
    ]
    lines = ["| | median | worst |", "| --- | --- | --- |"]
    lines += [f"| {what} | {median:.1%} | {worst:.1%} |" for what, median, worst in rows]
    lines += [
        "",
        f"{found.cases} cases, in {found.same_rounds} of them as many rounds as predicted; "
        + ("every run verified." if found.verified else "NOT every run verified."),
    ]
    if waits:
        lines.append(
            f"Somebody waited for a processor {min(waits):.0%} to {max(waits):.0%} of the time."
        )
    return lines


def _downtimes(pairs: Sequence[Pair]) -> list[str]:
    head = ["memory", "bandwidth", "rate", "rounds", "downtime ms", "error", *PARTS, "total s"]
    lines = [_row(head), _row(["---"] * len(head))]
    for pair in pairs:
        ours, theirs = pair.predicted, pair.typical
        parts = [_both(_ms(ours, part), _ms(theirs, part)) for part in PARTS]
        lines.append(
            _row(
                [
                    *_name(pair),
                    f"{len(ours.rounds)} / {len(theirs.rounds)}",
                    _both(_ms(ours, "total"), _ms(theirs, "total")),
                    f"{pair.downtime_error:+.1%}",
                    *parts,
                    f"{ours.total_time_s:.2f} / {theirs.total_time_s:.2f}",
                ]
            )
        )
    return lines


def _rounds(pairs: Sequence[Pair]) -> list[str]:
    most = max(len(r.rounds) for pair in pairs for r in (pair.predicted, pair.typical))
    head = ["memory", "bandwidth", "rate", *(f"pages of round {k}" for k in range(most))]
    lines = [_row(head), _row(["---"] * len(head))]
    for pair in pairs:
        ours, theirs = _sent(pair.predicted), _sent(pair.typical)
        cells = [f"{_at(ours, k)} / {_at(theirs, k)}" for k in range(max(len(ours), len(theirs)))]
        lines.append(_row([*_name(pair), *cells, *[""] * (most - len(cells))]))
    return lines


def _name(pair: Pair) -> list[str]:
    return [pair.case.memory, pair.case.bandwidth, pair.case.rate]


def _sent(result: Result) -> list[int]:
    return [r.pages_sent for r in result.rounds]


def _at(values: list[int], k: int) -> str:
    return f"{values[k]:,}" if k < len(values) else "-"


def _ms(result: Result, part: str) -> float:
    value: float = getattr(result.downtime_s, part)
    return value * 1e3


def _both(ours: float, theirs: float) -> str:
    figures = ".3g" if max(ours, theirs) < 1000 else ".0f"
    return f"{ours:{figures}} / {theirs:{figures}}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
