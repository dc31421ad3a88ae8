"""What `predump conform` prints: differences in words, a summary line a file, or JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from predump.conform.check import FileReport
from predump.conform.fuzz import FuzzReport
from predump.conform.guest import GuestInfo
from predump.conform.judge import Difference
from predump.conform.operations import script
from predump.conform.settings import settings_words

SCHEMA = "predump.conform/1"
_MOST_SHOWN_OF_A_SCENARIO = 10


def difference_lines(difference: Difference) -> list[str]:
    """One difference, for people."""
    where = f"{difference.scenario}, step {difference.step}"
    if difference.operation:
        where += f" ({difference.operation})"
    if difference.what in ("pages", "vmas"):
        child = " of the child" if difference.who == "child" else ""
        where += f", region {difference.region}{child}"
    if difference.what == "pages":
        first, last = difference.pages
        where += f" page {first}" if first == last else f" pages {first}-{last}"
    elif difference.what != "regions":
        where += f", {difference.what}"
    lines = [where, f"    kernel {difference.expected or '(none)'}"]
    lines.append(f"    model  {difference.found or '(none)'}")
    if difference.entry:
        lines.append(f"    entry  {difference.entry}; mapping {difference.vma}")
    return lines


def file_lines(report: FileReport) -> Iterator[str]:
    """All lines for one file: its differences, the summary, what was not modelled."""
    shown: Counter[str] = Counter()
    for difference in report.differences:
        shown[difference.scenario] += 1
        if shown[difference.scenario] <= _MOST_SHOWN_OF_A_SCENARIO:
            yield from difference_lines(difference)
    for scenario, count in shown.items():
        if count > _MOST_SHOWN_OF_A_SCENARIO:
            left = count - _MOST_SHOWN_OF_A_SCENARIO
            yield f"{scenario}: {left} more differences (--json has them all)"
    yield summary_line(report)
    for reason, count in Counter(report.not_modelled.values()).most_common():
        yield f"  not modelled: {count:4} {'scenario ' if count == 1 else 'scenarios'}  {reason}"


def summary_line(report: FileReport) -> str:
    """``FILE: 288 scenarios, 5,012 steps, 93,000 pages compared, 0 differences, ...``."""
    counts = [
        _count(report.scenarios, "scenario"),
        _count(report.steps, "step"),
        f"{_count(report.pages_compared, 'page')} compared",
        _count(len(report.differences), "difference"),
    ]
    if report.not_modelled:
        counts.append(f"{len(report.not_modelled):,} not modelled to the end")
    model = settings_words(report.settings)
    made = f"{report.arch} {report.kernel}{'; model with ' + model if model else ''}"
    return f"{report.path.name}: {', '.join(counts)} ({made})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def as_json(reports: Sequence[FileReport]) -> dict[str, Any]:
    """All reports as one JSON object (docs/conform.md)."""
    return {
        "schema": SCHEMA,
        "differences": sum(len(report.differences) for report in reports),
        "files": [_file_json(report) for report in reports],
    }


def _file_json(report: FileReport) -> dict[str, Any]:
    return {
        "file": str(report.path),
        "arch": report.arch,
        "kernel": report.kernel,
        "settings": _settings_json(report.settings),
        "scenarios": report.scenarios,
        "steps": report.steps,
        "pages_compared": report.pages_compared,
        "differences": [asdict(difference) for difference in report.differences],
        "not_modelled": report.not_modelled,
    }


def _settings_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: sorted(value) if isinstance(value, frozenset) else value
        for key, value in settings.items()
    }


def fuzz_lines(report: FuzzReport, info: GuestInfo) -> Iterator[str]:
    """What `predump conform fuzz` found: the shortest sequence, then counts per operation."""
    if report.differences:
        yield f"{report.found_in} differs; shrunk to {_count(len(report.script), 'operation')}:"
        yield from (f"  {number} {line}" for number, line in enumerate(script(report.script)))
        for difference in report.differences:
            yield from difference_lines(difference)
    for difference in report.unrepeated:
        yield "seen once, and not when the kernel ran the same again:"
        yield from difference_lines(difference)
    total = sum(report.operations.values())
    model = settings_words(report.settings)
    made = f"{info.arch} {info.kernel}{'; model with ' + model if model else ''}"
    yield (
        f"{_count(report.sequences, 'sequence')}, {_count(total, 'operation')}, "
        f"{_count(report.pages_compared, 'page')} compared, "
        f"{'a difference' if report.differences else '0 differences'} ({made})"
    )
    for verb, count in report.operations.most_common():
        failed = report.failed[verb]
        yield f"  {verb:18} {count:7,}{f'  {failed:,} with an error or signal' if failed else ''}"
    for reason, count in report.not_modelled.most_common():
        yield f"  not modelled: {count:4}  {reason}"


def fuzz_json(report: FuzzReport, info: GuestInfo) -> dict[str, Any]:
    """The same as one JSON object (docs/conform.md)."""
    return {
        "schema": "predump.conform.fuzz/1",
        "arch": info.arch,
        "kernel": info.kernel,
        "settings": _settings_json(report.settings),
        "sequences": report.sequences,
        "operations": dict(report.operations),
        "failed": {verb: count for verb, count in report.failed.items() if count},
        "pages_compared": report.pages_compared,
        "not_modelled": dict(report.not_modelled),
        "unrepeated": [asdict(difference) for difference in report.unrepeated],
        "found_in": report.found_in,
        "script": script(report.script),
        "differences": [asdict(difference) for difference in report.differences],
    }
