"""What `predump watch` knows: the telemetry heard so far, one row per migration.

Anybody may publish below our topics, so everything is checked before it is believed: what has the
wrong shape is counted and otherwise ignored, text is made harmless for a terminal, and a flood of
invented migrations only pushes out the rows that were quiet longest.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from livemigration.telemetry.messages import ENDED_STATES, Kind, Topics, decode

ROW_LIMIT = 200
EVENT_LIMIT = 8
LONGEST_NAME = 256
"""Of a migration, a host, a role: what `Topics` makes of longer ones."""
_MOST_ROLES = 8
_MOST_FIELDS = 64
_LONGEST_TEXT = 1000
_TEXTS = ("state", "owner", "host", "kind", "status", "reason")
_COUNTS = (
    "round",
    "pages_sent",
    "pages_soft_dirty",
    "bytes_wire",
    "total_pages_sent",
    "total_bytes_wire",
)
_SECONDS = ("duration_s", "downtime_s", "time")
_REQUIRED: Mapping[Kind, str] = {
    "state": "state",
    "round": "round",
    "event": "kind",
    "pages": "round",
    "presence": "status",
}


@dataclass(frozen=True, slots=True)
class Update:
    """A message that was believed. `payload` is empty when a retained one was cleared."""

    kind: Kind
    name: str
    role: str
    payload: Mapping[str, object]
    retained: bool


@dataclass(slots=True)
class Row:
    """One migration, as both of its hosts tell it."""

    migration_id: str
    states: dict[str, Mapping[str, object]] = field(default_factory=dict)
    last_round: Mapping[str, object] = field(default_factory=dict)
    heard_pages: int = 0
    heard_bytes: int = 0
    heard_at: float = field(default_factory=time.time)

    @property
    def started(self) -> float:
        """When the first of its hosts spoke of it, seconds since 1970; of none: when we heard."""
        told = [number(state, "started") for state in self.states.values()]
        return min((at for at in told if at), default=self.heard_at)

    def take_round(self, record: Mapping[str, object]) -> None:
        """Add a round; one that was heard before (QoS 1, or by the other host) counts once."""
        if number(record, "round", -1) > number(self.last_round, "round", -1):
            self.last_round = record
            self.heard_pages += int(number(record, "pages_sent"))
            self.heard_bytes += int(number(record, "bytes_wire"))

    def newest(self, key: str) -> object:
        """`key` of the newest state that has it, or None."""
        states = sorted(self.states.values(), key=lambda state: number(state, "time"))
        return next((s[key] for s in reversed(states) if s.get(key) is not None), None)

    @property
    def owner(self) -> str:
        owner = self.newest("owner")
        return owner if isinstance(owner, str) else ""

    @property
    def round(self) -> int | None:
        known = [s["round"] for s in (self.last_round, *self.states.values()) if "round" in s]
        return max((n for n in known if isinstance(n, int)), default=None)

    @property
    def pages_sent(self) -> int | None:
        """All rounds together; from the state, since who came late has not heard all rounds."""
        return self._total("total_pages_sent", self.heard_pages)

    @property
    def bytes_wire(self) -> int | None:
        return self._total("total_bytes_wire", self.heard_bytes)

    @property
    def pages_soft_dirty(self) -> int | None:
        """Of the last round."""
        value = self.last_round.get("pages_soft_dirty")
        value = self.newest("pages_soft_dirty") if value is None else value
        return value if isinstance(value, int) else None

    @property
    def rate(self) -> float | None:
        """Bytes per second of the last round."""
        duration = number(self.last_round, "duration_s")
        rate = number(self.last_round, "bytes_wire") / duration if duration else math.inf
        return rate if math.isfinite(rate) else None

    @property
    def downtime_s(self) -> float | None:
        value = self.newest("downtime_s")
        return float(value) if isinstance(value, int | float) else None

    def _total(self, key: str, heard: int) -> int | None:
        value = self.newest(key)
        return value if isinstance(value, int) else (heard if self.last_round else None)


class Board:
    """Rows, hosts and recent events; `migration_id` limits it to one migration.

    `with_pages`: where pages are is believed as well, for readers that draw it; the board itself
    keeps nothing of it. `slim`: of what is believed, only numbers and short texts are kept, for
    readers that run for days; `apply` still returns all of it.
    """

    def __init__(
        self,
        topics: Topics,
        migration_id: str | None = None,
        *,
        with_pages: bool = False,
        slim: bool = False,
    ) -> None:
        self._topics = topics
        self._only = migration_id
        self._with_pages = with_pages
        self._slim = slim
        self.rows: OrderedDict[str, Row] = OrderedDict()
        self.hosts: OrderedDict[str, Mapping[str, object]] = OrderedDict()
        self.events: deque[Update] = deque(maxlen=EVENT_LIMIT)
        self.malformed = 0

    def apply(self, topic: str, payload: bytes, *, retained: bool) -> Update | None:
        """Take in one message. None: it was malformed (and counted) or is of no interest."""
        subject = self._topics.subject(topic)
        if subject is None or max(len(subject.name), len(subject.role)) > LONGEST_NAME:
            self.malformed += 1
            return None
        if subject.kind != "presence" and self._only not in (None, subject.name):
            return None
        if subject.kind == "pages" and not self._with_pages:
            return None
        try:
            fields = decode(payload) if payload else {}
            if payload:
                check(subject.kind, fields)
        except ValueError:
            self.malformed += 1
            return None
        update = Update(subject.kind, subject.name, subject.role, fields, retained)
        self._take(replace(update, payload=_slim(fields)) if self._slim else update)
        return update

    def is_lost(self, state: Mapping[str, object]) -> bool:
        """Whether the host that said `state` is gone without having ended the migration."""
        host = self.hosts.get(str(state.get("host")), {})
        # One that came back has begun anew, unless it has said since that it took the task up.
        began, said = _seconds(host, "started"), _seconds(state, "time")
        gone = host.get("status") == "offline" or (0 < said < began)
        return gone and state.get("state") not in ENDED_STATES

    def _take(self, update: Update) -> None:
        if update.kind == "presence":
            self.hosts.pop(update.name, None)
            if update.payload:
                self.hosts[update.name] = update.payload
            while len(self.hosts) > ROW_LIMIT:
                self.hosts.popitem(last=False)
        elif update.kind == "event":
            if update.payload:
                self.events.append(update)
        elif update.kind == "pages":
            pass
        elif not update.payload:
            self._clear(update)
        else:
            row = self.rows.setdefault(update.name, Row(update.name))
            self.rows.move_to_end(update.name)
            if update.kind == "round":
                row.take_round(update.payload)
            elif len(row.states) < _MOST_ROLES or update.role in row.states:
                row.states[update.role] = update.payload
            while len(self.rows) > ROW_LIMIT:
                self.rows.popitem(last=False)

    def _clear(self, update: Update) -> None:
        """The retained state was taken from the broker; the last one takes the row with it."""
        row = self.rows.get(update.name)
        if row is None or update.kind != "state":
            return
        row.states.pop(update.role, None)
        if not row.states:
            del self.rows[update.name]


def check(kind: Kind, fields: Mapping[str, object]) -> None:
    """Raise ValueError, one line, if a field that is documented for `kind` has a wrong value."""
    if fields.get(_REQUIRED[kind]) is None:
        raise ValueError(f"a {kind} needs {_REQUIRED[kind]!r}")
    for name, value in fields.items():
        if value is None:
            continue
        if name in _TEXTS and not isinstance(value, str):
            raise ValueError(f"{name} must be text")
        if name in _COUNTS and not _is_count(value):
            raise ValueError(f"{name} must be a whole number from 0")
        if name in _SECONDS and not _is_number(value):
            raise ValueError(f"{name} must be a number from 0")


def _slim(fields: Mapping[str, object]) -> Mapping[str, object]:
    plain_ones = {
        name[:LONGEST_NAME]: value[:_LONGEST_TEXT] if isinstance(value, str) else value
        for name, value in fields.items()
        if value is None or isinstance(value, str | int | float)
    }
    return dict(list(plain_ones.items())[:_MOST_FIELDS])


def _seconds(fields: Mapping[str, object], key: str) -> float:
    value = fields.get(key)
    return float(value) if _is_number(value) else 0.0  # type: ignore[arg-type]


def number(fields: Mapping[str, object], key: str, default: int = 0) -> int | float:
    """The number at `key` of checked fields."""
    value = fields.get(key)
    return value if isinstance(value, int | float) else default


def plain(text: object, limit: int = 60) -> str:
    """`text` without anything that could steer a terminal, cut to `limit` characters."""
    cleaned = "".join(c if c.isprintable() else "?" for c in str(text)[: limit + 1])
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value < 2**63


def _is_count(value: object) -> bool:
    return isinstance(value, int) and _is_number(value)
