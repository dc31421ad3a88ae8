"""What is held against the model, counted, so that coverage cannot shrink unseen."""

from __future__ import annotations

import pytest

from .catalogue import (
    COMPLETE_SCRIPTS,
    DATA_DIR,
    Recording,
    collected,
    complete,
    load,
    why_not_modelled,
)
from .recordings import KNOWN_VERSION_DIFFERENCES, RECORDINGS, WHOLE

WHOLE_GROUPS = {
    "hand": 88,
    "anon": 25,
    "vma": 25,
    "shmem": 25,
    "fork": 25,
    "mix": 25,
    "mthp": 25,
    "thp": 25,
    "hugetlb": 25,
}


def test_every_recording_in_the_data_folder_is_in_the_table() -> None:
    stored = {str(path.relative_to(DATA_DIR)) for path in DATA_DIR.rglob("*.jsonl.gz")}
    assert {recording.file for recording in RECORDINGS} == stored
    assert len(RECORDINGS) == len(stored)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.id)
def test_exact_number_of_scenarios_is_collected(recording: Recording) -> None:
    assert len(list(collected(recording))) == recording.scenarios


@pytest.mark.parametrize("recording", WHOLE, ids=lambda recording: recording.id)
def test_exact_number_of_scenarios_is_collected_from_each_group(recording: Recording) -> None:
    groups = [scenario.group for scenario in collected(recording)]
    assert {group: groups.count(group) for group in sorted(set(groups))} == WHOLE_GROUPS


def test_no_scenario_is_left_out() -> None:
    scenarios = load(COMPLETE_SCRIPTS).values()
    assert [why_not_modelled(scenario) for scenario in scenarios] == [""] * 288


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.id)
def test_every_recording_ran_the_same_scripts(recording: Recording) -> None:
    """A killed scenario is completed from another recording, so the scripts must be the same."""
    reference = load(COMPLETE_SCRIPTS)
    for scenario in load(recording.file).values():
        script = [op.script() for op in scenario.ops]
        whole = [op.script() for op in reference[scenario.name].ops]
        assert script == whole[: len(script)], scenario.name
        # The operation that hung is on the record's script, and not among the completed ones.
        assert (len(script) < len(whole)) == scenario.killed, scenario.name
        assert len(complete(scenario).ops) == len(whole)


def test_known_version_differences_name_scenarios_that_are_collected() -> None:
    names = {scenario.name for recording in WHOLE for scenario in collected(recording)}
    assert set(KNOWN_VERSION_DIFFERENCES) <= names
    assert all(reason.strip() for reason in KNOWN_VERSION_DIFFERENCES.values())
