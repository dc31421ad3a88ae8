"""Ownership, joined in every possible order: one host owns the task, never two, never none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemigration.errors import WrongState
from livemigration.ownership import Ownership, OwnershipMachine


class _Pair:
    """A source and a destination with messages that may be lost; steps as the nodes take them."""

    def __init__(self) -> None:
        self.source = OwnershipMachine(source=True)
        self.source.to(Ownership.RUNNING)
        self.destination = OwnershipMachine(source=False)
        self.destination.to(Ownership.RECEIVING)

    def freeze(self) -> None:
        self.source.to(Ownership.FROZEN)

    def verify(self) -> None:
        self.source.require(Ownership.FROZEN)
        self.destination.to(Ownership.VERIFIED)

    def commit_arrives(self) -> None:
        self.source.require(Ownership.FROZEN)
        self.destination.require(Ownership.VERIFIED)
        self.source.to(Ownership.IN_DOUBT)
        self.destination.to(Ownership.COMMITTED)

    def commit_is_lost(self) -> None:
        self.destination.require(Ownership.VERIFIED)
        self.source.to(Ownership.IN_DOUBT)

    def ask(self) -> None:
        """The source asks what became of the commit; who is not committed aborts for good."""
        self.source.require(Ownership.IN_DOUBT)
        if self.destination.state is Ownership.COMMITTED:
            self.source.to(Ownership.RELEASED)
        elif self.destination.state is Ownership.LOST:
            raise WrongState("the task was there: the source does not run it by itself")
        else:
            self.destination.to(Ownership.ABORTED)
            self.source.to(Ownership.RUNNING)

    def commit_without_pages_arrives(self) -> None:
        """Post-copy: the task runs over there, and the source keeps what it lacks."""
        self.commit_arrives()
        self.source.to(Ownership.SERVING)

    def last_page_arrives(self) -> None:
        self.source.require(Ownership.SERVING)
        self.destination.require(Ownership.COMMITTED)
        self.source.to(Ownership.RELEASED)

    def destination_is_lost(self) -> None:
        """Its process is gone, and the one that follows knows only that it had the task."""
        self.source.require(Ownership.SERVING)
        self.destination = OwnershipMachine(source=False)
        self.destination.to(Ownership.LOST)
        self.source.to(Ownership.IN_DOUBT)

    def give_up(self) -> None:
        self.source.require(Ownership.FROZEN)
        self.destination.to(Ownership.ABORTED)
        self.source.to(Ownership.RUNNING)

    def late_commit(self) -> None:
        """A commit that was under way when the source gave up arrives after all."""
        self.destination.to(Ownership.COMMITTED)


STEPS = (
    "freeze",
    "verify",
    "commit_arrives",
    "commit_is_lost",
    "ask",
    "give_up",
    "commit_without_pages_arrives",
    "last_page_arrives",
    "destination_is_lost",
)


@given(st.lists(st.sampled_from(STEPS), max_size=12))
def test_never_two_may_run_and_always_one_owns(steps: list[str]) -> None:
    pair = _Pair()
    for step in steps:
        try:
            getattr(pair, step)()
        except WrongState:
            continue
        assert not (pair.source.state.may_run and pair.destination.state.may_run)
        assert pair.source.state.owns or pair.destination.state.owns


def test_an_aborted_migration_never_commits() -> None:
    pair = _Pair()
    pair.freeze()
    pair.verify()
    pair.commit_is_lost()
    pair.ask()
    assert pair.source.state is Ownership.RUNNING
    with pytest.raises(WrongState, match="aborted"):
        pair.late_commit()


def test_in_doubt_the_source_neither_runs_nor_drops_the_task() -> None:
    assert not Ownership.IN_DOUBT.may_run
    assert Ownership.IN_DOUBT.owns


def test_a_step_that_does_not_exist_changes_nothing() -> None:
    machine = OwnershipMachine(source=True)
    with pytest.raises(WrongState):
        machine.to(Ownership.RELEASED)
    assert machine.state is Ownership.NONE


def test_a_serving_source_guards_bytes_that_it_may_not_run() -> None:
    assert not Ownership.SERVING.may_run
    assert not Ownership.SERVING.owns  # the destination does
    machine = OwnershipMachine(source=True)
    for state in (Ownership.RUNNING, Ownership.FROZEN, Ownership.IN_DOUBT, Ownership.SERVING):
        machine.to(state)
    with pytest.raises(WrongState, match="serving here and cannot become running"):
        machine.to(Ownership.RUNNING)


def test_a_destination_that_lost_the_task_never_runs_it_again() -> None:
    machine = OwnershipMachine(source=False)
    machine.to(Ownership.LOST)
    for state in Ownership:
        with pytest.raises(WrongState):
            machine.to(state)
