"""The ownership tables: what each host may do with the task, step by step."""

import pytest

from livemigration.errors import WrongState
from livemigration.ownership import (
    DESTINATION,
    SOURCE,
    Event,
    Ownership,
    OwnershipMachine,
    counts,
    fate,
)


def machine(*events: Event, source: bool) -> OwnershipMachine:
    made = OwnershipMachine(source=source)
    for event in events:
        made.on(event)
    return made


def test_an_aborted_migration_never_commits() -> None:
    aborted = machine(Event.PREPARE, Event.EQUAL, Event.ABORT, source=False)
    with pytest.raises(WrongState, match="aborted here and cannot be taken over"):
        aborted.on(Event.COMMIT)


def test_a_commit_that_was_refused_is_refused_for_good() -> None:
    refused = machine(Event.PREPARE, Event.EQUAL, Event.REFUSE, source=False)
    assert not refused.allows(Event.COMMIT)


def test_a_committed_task_is_never_aborted_and_may_be_asked_for_again() -> None:
    committed = machine(Event.PREPARE, Event.EQUAL, Event.COMMIT, source=False)
    for event in (Event.ABORT, Event.COMMIT):
        committed.on(event)
        assert committed.state is Ownership.COMMITTED


def test_in_doubt_the_source_neither_runs_nor_drops_the_task() -> None:
    assert not Ownership.IN_DOUBT.may_run
    assert Ownership.IN_DOUBT.owns


def test_a_step_that_does_not_exist_changes_nothing() -> None:
    fresh = OwnershipMachine(source=True)
    with pytest.raises(WrongState):
        fresh.on(Event.TAKEN)
    assert fresh.state is Ownership.NONE


def test_a_serving_source_guards_bytes_that_it_may_not_run() -> None:
    assert not Ownership.SERVING.may_run
    assert not Ownership.SERVING.owns  # the destination does
    serving = machine(
        Event.START, Event.FREEZE, Event.SEND_COMMIT, Event.TAKEN_WITHOUT_PAGES, source=True
    )
    for event in (Event.NEVER_TAKEN, Event.KEEP, Event.GIVE_UP, Event.REFUSED):
        with pytest.raises(WrongState, match="serving here and cannot be"):
            serving.on(event)


def test_a_destination_that_lost_the_task_never_runs_it_again() -> None:
    lost = machine(Event.FIND_TAKEN, source=False)
    for event in Event:
        if lost.allows(event):
            lost.on(event)
            assert lost.state is Ownership.LOST


def test_each_host_has_events_of_its_own() -> None:
    assert not {event for _, event in SOURCE} & {event for _, event in DESTINATION}
    assert {event for _, event in (*SOURCE, *DESTINATION)} == set(Event)


@pytest.mark.parametrize("served", [False, True])
def test_what_a_destination_says_after_the_hand_over(served: bool) -> None:
    assert fate(Ownership.COMMITTED, served=served) is Event.TAKEN
    assert fate(Ownership.LOST, served=served) is Event.LOSE_SIGHT
    # Whoever has run there is not run here by itself.
    gone = Event.LOSE_SIGHT if served else Event.NEVER_TAKEN
    assert fate(Ownership.ABORTED, served=served) is gone
    assert fate(Ownership.NONE, served=served) is gone


def test_the_word_of_another_state_directory_does_not_count() -> None:
    assert counts("a", "a") and counts("", "")
    assert not counts("a", "b") and not counts("a", "")
