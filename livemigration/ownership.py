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
good before it answers, and one that refuses a Commit likewise, so the source can take the task
back. Only silence leaves the doubt, and then the task stands still with all its bytes at the source
until somebody settles it.

With post-copy the destination commits before it has the pages. The source is SERVING from then on:
the task is not its own any more and never runs here by itself, but its bytes stay until the
destination has said that it needs no more of them. If the two lose each other, the task stands
still there at a page that is missing, and the source, IN_DOUBT, asks and is SERVING again when they
have found each other. A destination that is lost meanwhile took what the task did since with it.
The source has the state of the freeze and is IN_DOUBT: going back to it undoes what others may have
seen, so that is for somebody to decide. A destination that comes back and knows that it had the
task, but not all of it, says LOST.

`SOURCE` and `DESTINATION` are these diagrams as tables: what becomes of a state by an event. The
nodes take every step through them, and `livemigration.ownership_model` searches all that can happen
between two hosts with the same tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

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

    @property
    def word(self) -> str:
        """As people read it: ``in doubt``."""
        return self.name.lower().replace("_", " ")


class Event(Enum):
    """What happens to a migration at one host; the value says it in words."""

    # at the source
    START = "be started"
    FREEZE = "be frozen for the final round"
    GIVE_UP = "be kept: the migration failed before the hand-over"
    SEND_COMMIT = "be offered to the destination"
    TAKEN = "be let go: the destination has it"
    TAKEN_WITHOUT_PAGES = "be let go: the destination has it, but not its pages"
    REFUSED = "be taken back: the destination refused it for good"
    NEVER_TAKEN = "be taken back: the destination says that it never had it"
    LOSE_SIGHT = "be given up for lost"
    PAGES_OVER = "be let go: the destination needs no more of it"
    KEEP = "be taken back on somebody's word"
    RELEASE = "be let go on somebody's word"
    # at the destination
    PREPARE = "be received"
    FRAME = "get more pages"
    EQUAL = "be found equal"
    COMMIT = "be taken over"
    ABORT = "be forgotten"
    REFUSE = "be refused"
    FIND_COMMITTED = "be found in the state directory"
    FIND_TAKEN = "be found lost"


Table = Mapping[tuple[Ownership, Event], Ownership]

SOURCE: Table = MappingProxyType(
    {
        (Ownership.NONE, Event.START): Ownership.RUNNING,
        (Ownership.RUNNING, Event.FREEZE): Ownership.FROZEN,
        (Ownership.RUNNING, Event.GIVE_UP): Ownership.RUNNING,
        (Ownership.FROZEN, Event.GIVE_UP): Ownership.RUNNING,
        (Ownership.FROZEN, Event.SEND_COMMIT): Ownership.IN_DOUBT,
        (Ownership.IN_DOUBT, Event.TAKEN): Ownership.RELEASED,
        (Ownership.IN_DOUBT, Event.TAKEN_WITHOUT_PAGES): Ownership.SERVING,
        (Ownership.IN_DOUBT, Event.REFUSED): Ownership.RUNNING,
        (Ownership.IN_DOUBT, Event.NEVER_TAKEN): Ownership.RUNNING,
        (Ownership.IN_DOUBT, Event.LOSE_SIGHT): Ownership.IN_DOUBT,
        (Ownership.IN_DOUBT, Event.KEEP): Ownership.RUNNING,
        (Ownership.IN_DOUBT, Event.RELEASE): Ownership.RELEASED,
        (Ownership.SERVING, Event.LOSE_SIGHT): Ownership.IN_DOUBT,
        (Ownership.SERVING, Event.PAGES_OVER): Ownership.RELEASED,
    }
)
DESTINATION: Table = MappingProxyType(
    {
        (Ownership.NONE, Event.PREPARE): Ownership.RECEIVING,
        (Ownership.NONE, Event.FIND_COMMITTED): Ownership.COMMITTED,
        (Ownership.NONE, Event.FIND_TAKEN): Ownership.LOST,
        (Ownership.RECEIVING, Event.FRAME): Ownership.RECEIVING,
        (Ownership.RECEIVING, Event.EQUAL): Ownership.VERIFIED,
        (Ownership.RECEIVING, Event.ABORT): Ownership.ABORTED,
        (Ownership.RECEIVING, Event.REFUSE): Ownership.ABORTED,
        (Ownership.VERIFIED, Event.COMMIT): Ownership.COMMITTED,
        (Ownership.VERIFIED, Event.ABORT): Ownership.ABORTED,
        (Ownership.VERIFIED, Event.REFUSE): Ownership.ABORTED,
        (Ownership.COMMITTED, Event.COMMIT): Ownership.COMMITTED,  # asked again
        (Ownership.COMMITTED, Event.ABORT): Ownership.COMMITTED,  # too late, and says so
        (Ownership.ABORTED, Event.ABORT): Ownership.ABORTED,
        (Ownership.ABORTED, Event.REFUSE): Ownership.ABORTED,
        (Ownership.LOST, Event.ABORT): Ownership.LOST,
    }
)


def counts(known: str, answering: str) -> bool:
    """Whether a destination's word on a hand-over counts, by the names of state directories.

    `known`: where the destination keeps tasks that was asked to take this one over. Another
    directory than that knows nothing of the task, whatever became of it.
    """
    return known == answering


def fate(says: Ownership, *, served: bool) -> Event:
    """What a destination's answer to the question after the hand-over is for the source.

    `says`: its state once it has been told to abort. `served`: whether the source knows that the
    task ran there, without all its pages.
    """
    if says is Ownership.COMMITTED:
        return Event.TAKEN
    if says is Ownership.LOST or served:
        return Event.LOSE_SIGHT
    return Event.NEVER_TAKEN


def page_counts(held: int, over: int) -> bool:
    """Whether a page of a post-copy counts that came over a stream.

    `held`: the stream that the destination holds (0: none); `over`: the one it came over. Pages of
    a stream that was given up are late: the task may stand still since, and the source have been
    told so.
    """
    return held == over


def stands_still(*, halted: bool, over: bool, held: int) -> bool:
    """Whether a destination may say that a task whose pages are missing does nothing any more.

    `halted`: it stands at a page that is missing; `over`: nothing can make it go on. With a stream
    that is open a page may be under way, and it goes on when that is here.
    """
    return over or (halted and held == 0)


class OwnershipMachine:
    """Holds one host's state and refuses every step that the table does not have."""

    def __init__(self, *, source: bool) -> None:
        self._table = SOURCE if source else DESTINATION
        self.state = Ownership.NONE

    def allows(self, event: Event) -> bool:
        """Whether there is such a step from here."""
        return (self.state, event) in self._table

    def check(self, event: Event) -> None:
        """`WrongState` if there is no such step from here."""
        if not self.allows(event):
            raise WrongState(f"the task is {self.state.word} here and cannot {event.value}")

    def on(self, event: Event) -> None:
        """Takes the step; `WrongState` if there is none."""
        self.check(event)
        self.state = self._table[self.state, event]

    def require(self, *states: Ownership) -> None:
        """`WrongState` unless the state is one of these."""
        if self.state not in states:
            wanted = " or ".join(s.word for s in states)
            raise WrongState(f"the task is {self.state.word} here, not {wanted}")
