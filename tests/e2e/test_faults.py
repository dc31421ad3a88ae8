"""Every file of scenarios/faults, with real nodes: each case ends as its file says.

`predump faults run all` does the same, and says how each case ended.
"""

import asyncio
from dataclasses import replace

import pytest

from predump.faults.soak import LEAST_TRIALS, soak
from predump.faults.spec import FOLDER, Fault, load_all, load_fault
from predump.faults.suite import run_faults
from predump.faults.trial import Trial

FAULTS = load_all()


def run(faults: list[Fault]) -> list[Trial]:
    return asyncio.run(run_faults(faults))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))  # each has its nodes, so that they share the processors
def test_every_fault_ends_as_its_file_says(part: int) -> None:
    trials = run(FAULTS[part::2])
    wrong = [f"{t.fault} at {t.at}: {'; '.join(t.problems)}" for t in trials if not t.good]
    assert not wrong, "\n".join(wrong)
    assert len(trials) == sum(len(fault.spec.case) for fault in FAULTS[part::2])


def _expecting(name: str, point: str, **changes: object) -> Fault:
    """A fault with its case at that point changed."""
    fault = load_fault(FOLDER / f"{name}.toml")
    case = next(c for c in fault.spec.case if c.at == point).model_copy(update=changes)
    return replace(fault, spec=fault.spec.model_copy(update={"case": (case,)}))


def test_a_case_that_ends_otherwise_is_told() -> None:
    trials = run(
        [
            _expecting("disk-full", "commit", outcome="migrated"),
            _expecting("frames-duplicated", "final", outcome="rolled-back"),
            _expecting("frames-duplicated", "final", at="pages"),
            _expecting("disk-full", "commit", says="no such words"),
            _expecting("frames-truncated", "pages", outcome="stranded"),
            _expecting("link-cut-for-good", "pages-50%", doubt=False),
        ]
    )
    assert [t.outcome for t in trials] == [
        *("rolled-back", "migrated", "migrated", "rolled-back"),
        *("migrated", "migrated"),
    ]
    assert "it ended rolled-back, not migrated" in trials[0].problems[0]
    assert "it ended migrated, not rolled-back" in trials[1].problems[0]
    assert trials[2].problems == ["the migration never came to the point pages"]
    assert "does not say 'no such words'" in trials[3].problems[0]
    assert "it ended migrated, not stranded" in trials[4].problems[0]
    assert trials[5].problems == ["the source is in doubt"]


def test_a_short_soak() -> None:
    """Ten minutes of it: `make soak`."""
    report = asyncio.run(soak(0, seed=5))
    assert report.problems == []
    assert report.migrations >= LEAST_TRIALS
    assert report.bytes_compared > 0
    assert len(report.growth) == 4
    assert "seed 5" in report.lines()[0]
