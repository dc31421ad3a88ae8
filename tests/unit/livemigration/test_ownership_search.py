"""Every state that two hosts can get to, and wrong steps that the search must find."""

import pytest

from livemigration.ownership import DESTINATION, SOURCE, Event, Ownership, Table, fate
from livemigration.ownership_model import Bounds, Model, Rules
from livemigration.ownership_search import Searched, search

ONE = Bounds(attempts=1, destination_crashes=1, source_crashes=1)
TWO = Bounds(attempts=2, destination_crashes=1, source_crashes=0, streams=1)
SMALL = Bounds(attempts=1, destination_crashes=1, source_crashes=0)


def test_nothing_that_can_happen_breaks_a_rule() -> None:
    """`predump ownership` searches further: two crashes beside two attempts."""
    for bounds in (ONE, TWO):
        found = search(Model(bounds=bounds))
        assert found.counterexample is None, str(found.counterexample)
    assert found.states > 5_000
    assert found.steps > 3 * found.states


def source(*key: Ownership | Event, to: Ownership | None) -> Rules:
    return Rules(source=_changed(SOURCE, key, to))


def destination(*key: Ownership | Event, to: Ownership | None) -> Rules:
    return Rules(destination=_changed(DESTINATION, key, to))


def _changed(table: Table, key: tuple[Ownership | Event, ...], to: Ownership | None) -> Table:
    """The table with one entry another one; None takes it away."""
    state, event = key
    assert isinstance(state, Ownership) and isinstance(event, Event)
    changed = {k: v for k, v in table.items() if k != (state, event)}
    return changed if to is None else changed | {(state, event): to}


O, E = Ownership, Event
TWO_RUN = "two hosts may run the task"
FORGETS = "the home directory forgets a task that was taken over"
STALE = "the destination takes over memory that the source has gone on from"
NONE_EVER = "no host runs the task, and none ever will"
PAUSED = "the task is paused for ever, though both hosts have what it takes"
LET_GO = "the source let go of a task that the destination has not"

WRONG = {
    "the source runs on while it offers the task": (
        source(O.FROZEN, E.SEND_COMMIT, to=O.RUNNING), TWO_RUN),
    "the source keeps running what the destination took": (
        source(O.IN_DOUBT, E.TAKEN, to=O.RUNNING), TWO_RUN),
    "the source runs what it serves pages of": (
        source(O.IN_DOUBT, E.TAKEN_WITHOUT_PAGES, to=O.RUNNING), TWO_RUN),
    "the source lets go at a refusal": (
        source(O.IN_DOUBT, E.REFUSED, to=O.RELEASED), LET_GO),
    "the source lets go of what was never taken": (
        source(O.IN_DOUBT, E.NEVER_TAKEN, to=O.RELEASED), LET_GO),
    "the source takes back what it lost sight of": (
        source(O.SERVING, E.LOSE_SIGHT, to=O.RUNNING), TWO_RUN),
    "a failed migration stays frozen": (
        source(O.FROZEN, E.GIVE_UP, to=O.FROZEN), NONE_EVER),
    "nobody may take back what was never taken": (
        source(O.IN_DOUBT, E.NEVER_TAKEN, to=None), NONE_EVER),
    "nobody may settle what was lost": (
        source(O.IN_DOUBT, E.KEEP, to=None), NONE_EVER),
    "an aborted task commits": (
        destination(O.ABORTED, E.COMMIT, to=O.COMMITTED), TWO_RUN),
    "a task commits that was not compared": (
        destination(O.RECEIVING, E.EQUAL, to=O.COMMITTED), STALE),
    "a committed task is aborted": (
        destination(O.COMMITTED, E.ABORT, to=O.ABORTED), FORGETS),
    "a question aborts nothing": (
        destination(O.VERIFIED, E.ABORT, to=O.VERIFIED), TWO_RUN),
    "a refusal is not for good": (
        destination(O.VERIFIED, E.REFUSE, to=O.VERIFIED), TWO_RUN),
    "a restart does not find what was committed": (
        destination(O.NONE, E.FIND_COMMITTED, to=None), TWO_RUN),
    "a task without its pages is run after a restart": (
        destination(O.NONE, E.FIND_TAKEN, to=O.COMMITTED), TWO_RUN),
    "the word of any destination counts": (
        Rules(counts=lambda known, answering: True), TWO_RUN),
    "pages count that come over a stream that was given up": (
        Rules(page_counts=lambda held, over: True), TWO_RUN),
    "a task is said to stand still while a page may be under way": (
        Rules(stands_still=lambda *, halted, over, held: halted or over), TWO_RUN),
    "a task is said to stand still that only lacks a stream": (
        Rules(stands_still=lambda *, halted, over, held: over or held == 0), TWO_RUN),
    "nobody may say that a task stands still": (
        Rules(stands_still=lambda *, halted, over, held: False), NONE_EVER),
    "the source serves no more pages once it has lost sight": (
        source(O.IN_DOUBT, E.TAKEN_WITHOUT_PAGES, to=None), PAUSED),
    "pages count over the first stream alone": (
        Rules(page_counts=lambda held, over: held == over == 1), PAUSED),
    "a source that lost sight never asks again": (
        Rules(fate=lambda says, served: E.LOSE_SIGHT if served else fate(says, served=served)),
        PAUSED),
    "a lost task is taken back by itself": (
        Rules(fate=lambda says, served: E.TAKEN if says is O.COMMITTED else E.NEVER_TAKEN),
        "goes back to the freeze by itself"),
}  # fmt: skip


def _found(rules: Rules) -> Searched:
    """In the smallest world in which it shows."""
    for bounds in (SMALL, TWO):
        found = search(Model(rules, bounds))
        if found.counterexample is not None:
            return found
    return found


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_step_is_found(name: str) -> None:
    rules, wrong = WRONG[name]
    found = _found(rules).counterexample
    assert found is not None, "not found"
    assert wrong in found.wrong, str(found)


def test_a_counterexample_reads_like_a_story() -> None:
    found = _found(WRONG["a refusal is not for good"][0]).counterexample
    assert str(found).splitlines()[0] == "two hosts may run the task:"
    assert [what for what, _ in found.trace] == [
        "the task runs at the source",
        "the source begins attempt 1 (pre-copy)",
        "prepare of attempt 1 arrives",
        "the destination is prepared; the source sends all pages and freezes the task",
        "pages of attempt 1 arrives",
        "all pages are there; the source asks for a comparison",
        "verify of attempt 1 arrives",
        "the memory is equal; the source sends Commit",
        "commit of attempt 1 arrives: refused",
        "Commit is answered: refused; the source goes on with the task",
        "commit of attempt 1 arrives: taken over",
    ]
    last = str(found).splitlines()[-1]
    assert "source: running" in last
    assert "attempt 1 committed" in last
