"""Repeats of one measurement."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from livemigration.machine_file import Measured


@dataclass(frozen=True, slots=True)
class Sample:
    """`values`: one per repeat, in `unit`; `what`: what was measured, and how."""

    what: str
    unit: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        """The middle of the values."""
        return statistics.median(self.values)

    def measured(self) -> Measured:
        """As a machine file has it: the median, both quartiles and the number of repeats."""
        low, high = min(self.values), max(self.values)
        if len(self.values) > 1:
            low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return Measured(
            what=self.what,
            unit=self.unit,
            median=_shown(self.median),
            low=_shown(low),
            high=_shown(high),
            repeats=len(self.values),
        )


def _shown(value: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{value:.4g}")
