"""The same random operations on a real kernel and on the model, until they differ.

The first difference is shrunk to the shortest sequence that shows one of its kind, on the guest and
in the model alike. A kernel is not always the same: what background threads do (kcompactd moves
pages) may fall between an operation and the look at it. So a sequence that differs is run again;
what the kernel does not show again is noted and does not end the run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from livemigration.operations import Op
from mm_model import ModelConfig
from predump.conform.guest import Guest
from predump.conform.initramfs import GuestError
from predump.conform.judge import Difference, Verdict, judge
from predump.conform.operations import Vocabulary, generate, themes_for
from predump.conform.record import usable_on, with_snapshots
from predump.conform.settings import build_config, settings_of
from predump.conform.shrink import shrink
from predump.conform.trace import parse_scenario

Mark = tuple[str, tuple[str, ...]]

_AGAIN = 3
"""How often a sequence that differed is run again."""


@dataclass(slots=True)
class FuzzReport:
    """What was run, and the first difference if there is one.

    ``operations``  verb -> how many were executed on both
    ``failed``      verb -> how many of them returned an error or met a signal, on both
    ``unrepeated``  the first difference of each sequence that did not differ when it ran again
    ``script``      the shortest sequence that shows the difference; ``record`` the kernel's answer
    """

    settings: dict[str, Any]
    sequences: int = 0
    pages_compared: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    not_modelled: Counter[str] = field(default_factory=Counter)
    unrepeated: list[Difference] = field(default_factory=list)
    found_in: str = ""
    script: tuple[Op, ...] = ()
    differences: list[Difference] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)

    def add(self, verdict: Verdict) -> None:
        """Count a sequence in."""
        self.sequences += 1
        self.pages_compared += verdict.pages_compared
        for op in verdict.scenario.ops[: verdict.steps]:
            self.operations[op.verb] += 1
            self.failed[op.verb] += op.rc != 0
        if verdict.not_modelled:
            self.not_modelled[verdict.not_modelled] += 1


def fuzz(
    guest: Guest,
    changes: Mapping[str, Any],
    *,
    seed: int,
    seconds: float | None = None,
    limit: int = 1 << 40,
    on_sequence: Callable[[FuzzReport], None] = lambda report: None,
) -> FuzzReport:
    """Run random sequences for ``seconds``, at most ``limit``, or until one differs.

    ``changes`` override what the guest's own architecture and kernel say about the model.
    """
    info = guest.info
    assert info is not None
    settings = settings_of(info.arch, info.kernel, info.page_size) | dict(changes)
    config = build_config(settings)
    vocabulary = usable_on(info, Vocabulary.of(config))
    themes = themes_for(vocabulary)
    report = FuzzReport(settings)
    end = None if seconds is None else time.monotonic() + seconds
    for number in range(seed, seed + limit):
        if end is not None and time.monotonic() >= end:
            break
        theme = themes[number % len(themes)]
        name = f"random-{theme.name}-{number}"
        ops = generate(number, vocabulary, theme)
        verdict, _ = _meet(guest, config, name, ops)
        report.add(verdict)
        on_sequence(report)
        if not verdict.differences:
            continue
        again = (_meet(guest, config, name, ops)[0] for _ in range(_AGAIN))
        if not any(each.differences for each in again):
            report.unrepeated.append(verdict.differences[0])
            continue
        report.found_in = name
        _shrink(guest, config, ops, verdict, report)
        break
    return report


def _meet(
    guest: Guest, config: ModelConfig, name: str, ops: tuple[Op, ...]
) -> tuple[Verdict, dict[str, Any]]:
    """Run ``ops`` on the guest and judge the model by what it answers."""
    try:
        record = guest.run(name, with_snapshots(ops))
    except GuestError as error:
        raise GuestError(f"in {name}: {error}") from error
    return judge(parse_scenario(record), config), record


def _shrink(
    guest: Guest, config: ModelConfig, ops: tuple[Op, ...], first: Verdict, report: FuzzReport
) -> None:
    wanted = mark(first.differences[0])

    def shows(candidate: tuple[Op, ...]) -> bool:
        verdict, _ = _meet(guest, config, "shrinking", candidate)
        return any(mark(difference) == wanted for difference in verdict.differences)

    steps = first.differences[0].step + 1
    report.script = shrink(ops[:steps] if shows(ops[:steps]) else ops, shows)
    verdict, report.record = _meet(guest, config, "shortest", report.script)
    report.differences = verdict.differences or first.differences


def mark(difference: Difference) -> Mark:
    """What makes two differences of one kind: the sort, and the fields with their values."""
    if difference.what == "pages":
        return difference.what, (difference.expected, difference.found)
    return difference.what, ()
