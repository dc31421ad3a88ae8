"""Telemetry for those who look on over gRPC (`NodeTelemetry.Watch`), and on to the broker.

Whoever looks on gets what a broker would give: first the states that it would have kept, then
everything as it happens, each reader through an outbox of its own. What is kept for those who come
later is bounded, and a reader that does not read costs its outbox and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from livemigration.telemetry import Telemetry
from livemigration.telemetry.messages import (
    ENDED_STATES,
    TOTALS,
    MigrationKind,
    Topics,
    added,
    encode,
    full_state,
)
from livemigration.telemetry.outbox import Item, Outbox

KEPT_MIGRATIONS = 16
KEPT_ROUNDS = 200
MOST_WATCHERS = 32


class TooManyWatchersError(Exception):
    """Somebody forgot to stop looking on; `str()` is one line."""


@dataclass(slots=True)
class _Story:
    """What is kept of one migration."""

    state: Mapping[str, object] = field(default_factory=dict)
    rounds: deque[Mapping[str, object]] = field(default_factory=lambda: deque(maxlen=KEPT_ROUNDS))
    pages: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Watcher:
    outbox: Outbox = field(default_factory=Outbox)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def state(self, topic: str, fields: Mapping[str, object], migration_id: str = "") -> None:
        # Where pages are is of no migration's state: it is forgotten first.
        ended = fields.get("state", "done") in ENDED_STATES
        now = time.monotonic()
        self.outbox.put_state(topic, fields, group=migration_id, ended=ended, now=now)
        self.wake.set()

    def message(self, topic: str, fields: Mapping[str, object], migration_id: str) -> None:
        now = time.monotonic()
        self.outbox.put_message(topic, encode(fields), group=migration_id, now=now)
        self.wake.set()


class Watched:
    """`livemigration.telemetry.Telemetry` with any number of readers. For one event loop."""

    def __init__(self, broker: Telemetry, *, role: str, host_id: str) -> None:
        """`broker` gets everything as well."""
        self._broker = broker
        self._topics = Topics()
        self._role = role
        self._host: dict[str, object] = {"host": host_id, "role": role}
        self._presence = {**self._host, "status": "online", "started": time.time()}
        self._stories: OrderedDict[str, _Story] = OrderedDict()
        self._watchers: set[_Watcher] = set()
        self._events = 0
        self._closed = False

    @property
    def wants_pages(self) -> bool:
        return bool(self._watchers) or self._broker.wants_pages

    def state(self, migration_id: str, **fields: object) -> None:
        self._put_state(migration_id, fields)
        self._broker.state(migration_id, **fields)

    def round(self, migration_id: str, record: Mapping[str, object]) -> None:
        story = self._story(migration_id)
        story.rounds.append(record)
        for watcher in self._watchers:
            watcher.message(self._topic("round", migration_id), record, migration_id)
        if story.state:
            totals = {t: added(story.state.get(t), record.get(of)) for t, of in TOTALS}
            self._put_state(migration_id, totals)
        self._broker.round(migration_id, record)

    def event(self, migration_id: str, kind: str, **fields: object) -> None:
        self._events += 1
        head = {"migration_id": migration_id, "kind": kind, "time": time.time()}
        event = {**fields, **self._host, **head, "seq": self._events}
        for watcher in self._watchers:
            watcher.message(self._topic("event", migration_id), event, migration_id)
        self._broker.event(migration_id, kind, **fields)

    def pages(self, migration_id: str, record: Mapping[str, object]) -> None:
        self._story(migration_id).pages = record
        for watcher in self._watchers:
            watcher.state(self._topic("pages", migration_id), record)
        self._broker.pages(migration_id, record)

    async def watch(self) -> AsyncIterator[Item]:
        """Everything that is told, until the host ends. `TooManyWatchersError`."""
        if len(self._watchers) >= MOST_WATCHERS:
            raise TooManyWatchersError(f"{MOST_WATCHERS} readers look on already; close one")
        watcher = _Watcher()
        self._catch_up(watcher)
        self._watchers.add(watcher)
        try:
            while True:
                watcher.wake.clear()
                item = watcher.outbox.next(time.monotonic())
                if item is not None:
                    yield item
                    watcher.outbox.done(item)
                elif self._closed:
                    return
                else:
                    await watcher.wake.wait()
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """The host ends in good order: says so, and lets every reader go."""
        self._closed = True
        self._presence |= {"status": "offline", "reason": "closed"}
        for watcher in self._watchers:
            watcher.state(self._topics.presence(str(self._host["host"])), self._presence)

    def _catch_up(self, watcher: _Watcher) -> None:
        watcher.state(self._topics.presence(str(self._host["host"])), self._presence)
        for migration_id, story in self._stories.items():
            if story.state:
                topic = self._topic("state", migration_id)
                watcher.state(topic, story.state, migration_id)
            for record in story.rounds:
                watcher.message(self._topic("round", migration_id), record, migration_id)
            if story.pages:
                watcher.state(self._topic("pages", migration_id), story.pages)

    def _put_state(self, migration_id: str, fields: Mapping[str, object]) -> None:
        story = self._story(migration_id)
        story.state = full_state(story.state, fields, self._host, migration_id)
        for watcher in self._watchers:
            watcher.state(self._topic("state", migration_id), story.state, migration_id)

    def _story(self, migration_id: str) -> _Story:
        story = self._stories.setdefault(migration_id, _Story())
        self._stories.move_to_end(migration_id)
        while len(self._stories) > KEPT_MIGRATIONS:
            self._stories.popitem(last=False)
        return story

    def _topic(self, kind: MigrationKind, migration_id: str) -> str:
        return self._topics.of(kind, migration_id, self._role)
