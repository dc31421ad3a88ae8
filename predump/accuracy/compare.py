"""How far what was predicted lies from what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from predump.accuracy.cases import Case
from predump.result import Result

PARTS = ("freeze", "scan", "dump", "transfer", "restore", "resume")


@dataclass(frozen=True, slots=True)
class Pair:
    """One case's results: `measured` in the order of the repeats, `waits` beside it.

    `waits`: the share of the time in which some process of the machine waited for a processor (the
    kernel's pressure stall information); None where it does not say.
    """

    case: Case
    predicted: Result
    measured: Sequence[Result]
    waits: Sequence[float | None]

    @property
    def typical(self) -> Result:
        """The measured run whose downtime is the median (the lower of two)."""
        ranked = sorted(self.measured, key=lambda result: result.downtime_s.total)
        return ranked[(len(ranked) - 1) // 2]

    @property
    def downtime_error(self) -> float:
        """Of the predicted downtime, relative to the measured one; below 0: too short."""
        return _relative(self.predicted.downtime_s.total, self.typical.downtime_s.total)

    @property
    def total_error(self) -> float:
        """The same for the total time."""
        return _relative(self.predicted.total_time_s, self.typical.total_time_s)

    @property
    def same_rounds(self) -> bool:
        """Whether there were as many rounds as predicted."""
        return len(self.predicted.rounds) == len(self.typical.rounds)

    @property
    def page_errors(self) -> list[float]:
        """Of the pages of each round after round 0 that both have: relative, with sign.

        Where the numbers of rounds differ, the final rounds are no match for each other.
        """
        ours, theirs = self.predicted.rounds, self.typical.rounds
        common = min(len(ours), len(theirs)) - (not self.same_rounds)
        return [_relative(ours[k].pages_sent, theirs[k].pages_sent) for k in range(1, common)]

    def __str__(self) -> str:
        ours, theirs = self.predicted, self.typical
        return (
            f"{self.case}: downtime {ours.downtime_s.total * 1e3:.0f} ms predicted, "
            f"{theirs.downtime_s.total * 1e3:.0f} measured ({self.downtime_error:+.1%}); rounds "
            f"{len(ours.rounds)} and {len(theirs.rounds)}"
        )


def _relative(ours: float, theirs: float) -> float:
    """(ours - theirs) / theirs; equal zeros do not differ."""
    if ours == theirs:
        return 0.0
    return (ours - theirs) / theirs if theirs else float("inf")


@dataclass(frozen=True, slots=True)
class Summary:
    """Over all cases: medians and the worst of the errors, all without sign."""

    cases: int
    same_rounds: int
    verified: bool
    downtime_median: float
    downtime_worst: float
    pages_median: float
    pages_worst: float
    total_median: float
    total_worst: float


def summarize(pairs: Sequence[Pair]) -> Summary:
    """The figures of at least one pair."""
    downtimes = [abs(pair.downtime_error) for pair in pairs]
    totals = [abs(pair.total_error) for pair in pairs]
    pages = [abs(error) for pair in pairs for error in pair.page_errors]
    return Summary(
        cases=len(pairs),
        same_rounds=sum(pair.same_rounds for pair in pairs),
        verified=all(
            result.exit_code == 0 for pair in pairs for result in (pair.predicted, *pair.measured)
        ),
        downtime_median=statistics.median(downtimes),
        downtime_worst=max(downtimes),
        pages_median=_median(pages),
        pages_worst=max(pages, default=0.0),
        total_median=statistics.median(totals),
        total_worst=max(totals),
    )


def _median(values: Iterable[float]) -> float:
    listed = list(values)
    return statistics.median(listed) if listed else 0.0
