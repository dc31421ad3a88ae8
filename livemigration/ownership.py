"""Who may run the task: one host, always exactly one.

Two state machines, one on each host, and the rule that joins them:

    source       RUNNING -> FROZEN -> IN_DOUBT -> RELEASED <-+
                    ^          |         | ^  |              |
                    +----------+---------+ |  +-> SERVING ---+
                     (abort, or never      |         |
                     taken over)           +---------+ (the destination is lost)

    destination  RECEIVING -> VERIFIED -> COMMITTED
                     |            |
                     +------------+---> ABORTED    (for good: an aborted migration never commits)

The source sends Commit only when the destination is VERIFIED, and is IN_DOUBT from the moment it
sends it until it knows the answer. In doubt it neither runs nor drops the task. The answer is the
reply to Commit, or what the destination - the same process, or a new one started with the same
state directory - says when it is asked. A destination that is asked and is not COMMITTED aborts for
good before it answers, so the source can take the task back. Only silence leaves the doubt, and
then the task stands still with all its bytes at the source until somebody settles it.

With post-copy the destination commits before it has the pages. The source is SERVING from then on:
the task is not its own any more and never runs here by itself, but its bytes stay until the
destination has said that it needs no more of them. A destination that is lost meanwhile took what
the task did since with it. The source has the state of the freeze and is IN_DOUBT: going back to it
undoes what others may have seen, so that is for somebody to decide. A destination that comes back
and knows that it had the task, but not all of it, says LOST.
"""

from __future__ import annotations

from enum import Enum

from livemigration.errors import WrongState
from livemigration.v1 import common_pb2


class Ownership(Enum):
    """State of a migration at one host; values are those of the wire enum."""

    NONE = common_pb2.OWNERSHIP_STATE_NONE
    RUNNING = common_pb2.OWNERSHIP_STATE_RUNNING
    FROZEN = common_pb2.OWNERSHIP_STATE_FROZEN
    IN_DOUBT = common_pb2.OWNERSHIP_STATE_IN_DOUBT
    RELEASED = common_pb2.OWNERSHIP_STATE_RELEASED
    RECEIVING = common_pb2.OWNERSHIP_STATE_RECEIVING
    VERIFIED = common_pb2.OWNERSHIP_STATE_VERIFIED
    COMMITTED = common_pb2.OWNERSHIP_STATE_COMMITTED
    ABORTED = common_pb2.OWNERSHIP_STATE_ABORTED
    SERVING = common_pb2.OWNERSHIP_STATE_SERVING
    LOST = common_pb2.OWNERSHIP_STATE_LOST

    @property
    def may_run(self) -> bool:
        """Whether the host in this state may run the task."""
        return self in (Ownership.RUNNING, Ownership.COMMITTED)

    @property
    def owns(self) -> bool:
        """Whether the host in this state owns the task's bytes (in doubt: it guards them)."""
        return self in (
            Ownership.RUNNING,
            Ownership.FROZEN,
            Ownership.IN_DOUBT,
            Ownership.COMMITTED,
        )


_SOURCE = {
    Ownership.NONE: {Ownership.RUNNING},
    Ownership.RUNNING: {Ownership.FROZEN, Ownership.NONE},
    Ownership.FROZEN: {Ownership.RUNNING, Ownership.IN_DOUBT},
    Ownership.IN_DOUBT: {Ownership.RUNNING, Ownership.RELEASED, Ownership.SERVING},
    Ownership.SERVING: {Ownership.RELEASED, Ownership.IN_DOUBT},
    Ownership.RELEASED: {Ownership.NONE},
}
_DESTINATION = {
    # COMMITTED, LOST: from the journal
    Ownership.NONE: {Ownership.RECEIVING, Ownership.COMMITTED, Ownership.LOST},
    Ownership.RECEIVING: {Ownership.VERIFIED, Ownership.ABORTED, Ownership.RECEIVING},
    Ownership.VERIFIED: {Ownership.COMMITTED, Ownership.ABORTED, Ownership.RECEIVING},
    Ownership.COMMITTED: set(),
    Ownership.ABORTED: set(),
    Ownership.LOST: set(),
}


class OwnershipMachine:
    """Holds one host's state and refuses every step that the diagram does not have."""

    def __init__(self, *, source: bool) -> None:
        self._steps = _SOURCE if source else _DESTINATION
        self.state = Ownership.NONE

    def to(self, state: Ownership) -> None:
        """Takes a step; `WrongState` if there is no such step."""
        if state not in self._steps.get(self.state, set()):
            raise WrongState(
                f"the task is {self.state.name.lower().replace('_', ' ')} here and cannot become "
                f"{state.name.lower().replace('_', ' ')}"
            )
        self.state = state

    def require(self, *states: Ownership) -> None:
        """`WrongState` unless the state is one of these."""
        if self.state not in states:
            wanted = " or ".join(s.name.lower().replace("_", " ") for s in states)
            raise WrongState(
                f"the task is {self.state.name.lower().replace('_', ' ')} here, not {wanted}"
            )
