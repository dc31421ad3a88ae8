"""What waits for the broker: no I/O, no clock of its own.

Two kinds of things wait here. A *state* is retained by the broker, so only the newest of its topic
matters: a newer one replaces it and goes to the end of the line. A *message* (a round or an event)
is one of a series: messages keep their order, and when too many wait the oldest goes. Each state
says how many messages of its migration were dropped.

Nothing leaves the outbox before the broker has acknowledged it, so after a lost connection the same
thing goes out again: a reader can see a message twice, never out of order.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from livemigration.telemetry.messages import encode

PATIENCE_S = 1.0
"""How long a state lets messages go first; then it overtakes them."""


@dataclass(frozen=True, slots=True)
class Item:
    """One publication: `key` and `version` say what `done` crosses off."""

    key: object
    version: int
    topic: str
    payload: bytes
    retain: bool


@dataclass(slots=True)
class _State:
    group: str
    fields: Mapping[str, object]
    ended: bool
    version: int


@dataclass(frozen=True, slots=True)
class _Message:
    group: str
    topic: str
    payload: bytes


class Outbox:
    """States and messages in the order in which they are to be published.

    A `group` is what drops are counted by: a migration's id, or "" for the host itself.
    """

    def __init__(self, *, message_limit: int = 1024, state_limit: int = 256) -> None:
        self._message_limit = message_limit
        self._state_limit = state_limit
        self._states: dict[str, _State] = {}
        self._line: OrderedDict[str | int, _Message | None] = OrderedDict()
        self._waiting_since: dict[str, float] = {}
        self._messages = 0
        self._number = 0
        self.dropped: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many publications wait."""
        return len(self._line)

    def put_state(
        self,
        topic: str,
        fields: Mapping[str, object],
        *,
        group: str = "",
        ended: bool = False,
        now: float = 0.0,
        first: bool = False,
    ) -> None:
        """Replace the state of `topic`. One that has ended may be forgotten when many are held."""
        self._number += 1
        self._states.pop(topic, None)
        self._states[topic] = _State(group, fields, ended, self._number)
        self._enqueue_state(topic, now)
        if first:
            self._line.move_to_end(topic, last=False)
        self._forget_ended()

    def put_message(self, topic: str, payload: bytes, *, group: str = "", now: float = 0.0) -> None:
        """Append a message; when the limit is passed, the oldest one is dropped and counted."""
        self._number += 1
        self._line[self._number] = _Message(group, topic, payload)
        self._messages += 1
        if self._messages > self._message_limit:
            self._drop_oldest(now)

    def fields(self, topic: str) -> Mapping[str, object]:
        """The newest state of `topic`; empty if there is none or it was forgotten."""
        state = self._states.get(topic)
        return state.fields if state is not None else {}

    def connected(self, now: float) -> None:
        """A new connection, perhaps to a broker that has forgotten everything.

        All states wait again, in front; those that were waiting anyway keep their place, so that
        a migration's last state still comes after its rounds.
        """
        waiting = self._line
        self._line = OrderedDict()
        for topic in self._states:
            if topic not in waiting:
                self._line[topic] = None
        self._line.update(waiting)
        self._waiting_since = dict.fromkeys(self._states, now)

    def next(self, now: float) -> Item | None:
        """What to publish next; it stays here until `done`. None: nothing waits."""
        if not self._line:
            return None
        impatient = self._impatient(now)
        key = next(iter(self._line)) if impatient is None else impatient
        message = self._line[key]
        if message is not None:
            return Item(key, 0, message.topic, message.payload, retain=False)
        assert isinstance(key, str)
        state = self._states[key]
        fields = dict(state.fields)
        if state.group:
            fields["dropped"] = self.dropped[state.group]
        return Item(key, state.version, key, encode(fields), retain=True)

    def done(self, item: Item) -> None:
        """The broker has `item`. A state that changed in the meantime goes on waiting."""
        if isinstance(item.key, int):
            if self._line.pop(item.key, None) is not None:
                self._messages -= 1
        elif isinstance(item.key, str):
            state = self._states.get(item.key)
            if state is not None and state.version == item.version:
                self._line.pop(item.key, None)
                self._waiting_since.pop(item.key, None)
                self._forget_ended()

    def _enqueue_state(self, topic: str, now: float) -> None:
        self._line[topic] = None
        self._line.move_to_end(topic)
        self._waiting_since.setdefault(topic, now)

    def _impatient(self, now: float) -> str | None:
        for topic, since in self._waiting_since.items():
            if topic in self._line and now - since > PATIENCE_S:
                return topic
        return None

    def _drop_oldest(self, now: float) -> None:
        oldest = next(key for key, message in self._line.items() if message is not None)
        message = self._line.pop(oldest)
        assert message is not None
        self._messages -= 1
        self.dropped[message.group] += 1
        for topic, state in self._states.items():
            if state.group == message.group:
                self._number += 1
                state.version = self._number
                # It keeps its place if it waits already: what it says about the rest is not newer.
                self._line.setdefault(topic, None)
                self._waiting_since.setdefault(topic, now)

    def _forget_ended(self) -> None:
        """Keep the number of states bounded: ended ones go, those the broker has go first."""
        excess = len(self._states) - self._state_limit
        if excess <= 0:
            return
        ended = [topic for topic, state in self._states.items() if state.ended]
        ended.sort(key=lambda topic: topic in self._line)
        for topic in ended[:excess]:
            self.dropped.pop(self._states.pop(topic).group, None)
            self._line.pop(topic, None)
            self._waiting_since.pop(topic, None)
