"""Whole trace files against the model: `predump conform TRACE...`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from predump.conform.judge import Difference, Verdict, judge
from predump.conform.settings import build_config, settings_of
from predump.conform.trace import Scenario, TraceError, completed, read_trace


@dataclass(slots=True)
class FileReport:
    """What came of one trace file.

    ``settings``     keywords of the `mm_model.ModelConfig` that met it
    ``not_modelled`` scenario -> why the model could not go on in it
    """

    path: Path
    arch: str
    kernel: str
    settings: dict[str, Any]
    scenarios: int = 0
    steps: int = 0
    pages_compared: int = 0
    differences: list[Difference] = field(default_factory=list)
    not_modelled: dict[str, str] = field(default_factory=dict)

    def add(self, verdict: Verdict) -> None:
        """Count one scenario's verdict in."""
        self.scenarios += 1
        self.steps += verdict.steps
        self.pages_compared += verdict.pages_compared
        self.differences += verdict.differences
        if verdict.not_modelled:
            self.not_modelled[verdict.scenario.name] = verdict.not_modelled


def check_file(
    path: Path,
    changes: Mapping[str, Any],
    *,
    only: re.Pattern[str] | None = None,
    given: Sequence[Path] = (),
    on_scenario: Callable[[str], None] = lambda name: None,
) -> FileReport:
    """Replay the scenarios of ``path`` whose name ``only`` matches.

    ``changes`` override the settings that the trace itself asks for. The operations that hung are
    looked up in ``given`` and in the traces beside and above ``path``.
    """
    scenarios = [s for s in read_trace(path).values() if only is None or only.search(s.name)]
    if not scenarios:
        pattern = only.pattern if only else ""
        raise TraceError(f"{path}: --only {pattern!r} matches none of its scenarios")
    first = scenarios[0]
    settings = settings_of(first.arch, first.kernel, first.page_size) | dict(changes)
    report = FileReport(path, first.arch, first.kernel, settings)
    for scenario in scenarios:
        if _make(scenario) != _make(first):
            raise TraceError(f"{path}: scenario {scenario.name!r} comes from another machine")
        on_scenario(scenario.name)
        whole = completed(scenario, _neighbours(path, given)) if scenario.killed else scenario
        report.add(judge(whole, build_config(settings)))
    return report


def _make(scenario: Scenario) -> tuple[str, str, int]:
    return scenario.arch, scenario.kernel, scenario.page_size


def _neighbours(path: Path, given: Sequence[Path]) -> Iterator[Path]:
    yield from given
    folder = path.resolve().parent
    for place in (folder.parent, folder):
        yield from sorted(place.glob("*.jsonl.gz"))
        yield from sorted(place.glob("*.jsonl"))
