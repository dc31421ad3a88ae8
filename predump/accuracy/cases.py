"""Which migrations are predicted and measured: one scenario over sizes, rates and bandwidths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from livemigration.machine_file import MachineFile
from predump.overrides import Override, parse_override
from predump.scenario import Scenario, load_scenario, scenario_from_mapping

DEFAULT: dict[str, Any] = {
    "schema": "predump.scenario/1",
    "name": "accuracy",
    "workload": {"kind": "hotspot"},
    "policy": {"kind": "downtime-limit", "downtime_limit": "300ms", "max_rounds": 5},
    "migration": {"run_after": "0s"},
}
"""A fifth of the pages gets four fifths of the writes; QEMU's rule with its default limit."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What is varied, as people write it; `base`: a scenario file, or None for `DEFAULT`."""

    memories: Sequence[str]
    rates: Sequence[str]
    bandwidths: Sequence[str]
    base: Path | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One migration: in the model, and on this host."""

    memory: str
    rate: str
    bandwidth: str
    predicted: Scenario
    measured: Scenario

    def __str__(self) -> str:
        return f"{self.memory}, {self.bandwidth}, {self.rate}"


def make_cases(grid: Grid, machine: MachineFile) -> list[Case]:
    """Every combination. `ScenarioError` for a value that is none, before anything runs."""
    made = []
    for memory, bandwidth, rate in product(grid.memories, grid.bandwidths, grid.rates):
        varied = [
            parse_override(f"memory={memory}"),
            parse_override(f"workload.rate={rate}"),
            parse_override(f"link.bandwidth={bandwidth}"),
            Override("page_size", "this host's", os.sysconf("SC_PAGE_SIZE")),
        ]
        in_model = [
            Override("tracker", "uffd-wp", "uffd-wp"),
            Override("clock", "virtual", "virtual"),
            Override("costs", machine.name, machine.cost_table()),
        ]
        on_host = [Override("tracker", "host", "host"), Override("clock", "wall", "wall")]
        made.append(
            Case(
                memory,
                rate,
                bandwidth,
                _scenario(grid.base, [*varied, *in_model]),
                _scenario(grid.base, [*varied, *on_host]),
            )
        )
    return made


def _scenario(base: Path | None, overrides: list[Override]) -> Scenario:
    if base is None:
        return scenario_from_mapping(DEFAULT, overrides, origin="accuracy")
    return load_scenario(base, overrides)
