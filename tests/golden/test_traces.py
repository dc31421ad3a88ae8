"""The model agrees with real kernels: every collected scenario of every recording, op by op.

One test a scenario. After each operation its result, and in each snapshot pagemap's present,
swap, soft-dirty, file and uffd-wp bits of every page, PAGEMAP_SCAN's soft-dirty, the VMAs
(extent, permissions, VM_SOFTDIRTY) and, where the kernel was instrumented, the descriptors' write,
dirty, soft-dirty, read-only and contiguous bits. Where the kernel hung, the model reports a
livelock at the same operation.
"""

from __future__ import annotations

from typing import Any

import pytest

from mm_model import ModelConfig
from predump.conform.judge import Verdict, judge
from predump.conform.report import difference_lines
from predump.conform.trace import Scenario

from .catalogue import Recording, collected, with_hung_operation
from .recordings import (
    CONTPTE_OFF,
    HUGETLB_OFF,
    HUNKS_OFF,
    KNOWN_VERSION_DIFFERENCES,
    RECORDINGS,
)

FRAMES, SWAP_SLOTS = 8192, 8192
"""More than any collected scenario touches: the recorded kernels were never short of memory."""

CASES = [
    pytest.param(recording, scenario, id=f"{recording.id}-{scenario.name}")
    for recording in RECORDINGS
    for scenario in collected(recording)
    if scenario.name not in (KNOWN_VERSION_DIFFERENCES if recording.kernel == "6.1" else ())
]


def verdict(recording: Recording, scenario: Scenario, **settings: Any) -> Verdict:
    config: dict[str, Any] = {
        "page_size": scenario.page_size,
        "frames": FRAMES,
        "swap_slots": SWAP_SLOTS,
        "dbm": recording.dbm,
        "kernel": recording.kernel,
        "hunks_off": recording.hunks_off,
        "arch": recording.arch,
    }
    return judge(with_hung_operation(scenario), ModelConfig(**(config | settings)))


@pytest.mark.parametrize(("recording", "scenario"), CASES)
def test_model_shows_what_the_kernel_showed(recording: Recording, scenario: Scenario) -> None:
    found = verdict(recording, scenario)
    lines = [line for difference in found.differences for line in difference_lines(difference)]
    assert not lines, "\n" + "\n".join(lines)
    assert found.not_modelled == ""
    assert found.steps == len(scenario.ops) + scenario.killed
    assert found.pages_compared > 0 or not any(snap.regions for snap in scenario.snaps)


@pytest.mark.parametrize(
    "recording",
    [r for r in HUNKS_OFF + CONTPTE_OFF + HUGETLB_OFF if r.hunks_off],
    ids=lambda recording: recording.id,
)
def test_hunk_is_felt_in_exactly_as_many_scenarios_as_on_the_kernel(recording: Recording) -> None:
    """With the hunk left on, the model must *not* meet these recordings: the judge can tell."""
    met = [
        verdict(recording, scenario, hunks_off=frozenset()).agrees
        for scenario in collected(recording)
    ]
    assert met.count(False) == recording.differs
