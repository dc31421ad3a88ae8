"""Topics and payloads of telemetry. docs/telemetry.md describes them for their readers.

A payload is one msgpack map. Encoding never fails, whatever a host puts in, because telemetry may
not fail a migration; decoding refuses everything that is not such a map, because anybody can
publish.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, SupportsIndex, cast
from urllib.parse import quote, unquote

import msgpack

ROOT = "predump/v1"
ENDED_STATES = frozenset({"done", "aborted", "failed", "ended"})
"""States after which a migration changes no more on this host."""

TOTALS = (("total_pages_sent", "pages_sent"), ("total_bytes_wire", "bytes_wire"))
"""What a state adds up over the rounds, for those who come late and have not heard them."""

MigrationKind = Literal["state", "round", "event", "pages"]
Kind = Literal["state", "round", "event", "pages", "presence"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What a topic is about: `name` is a migration, or for presence a host."""

    kind: Kind
    name: str
    role: str = ""


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics below one prefix. Characters that MQTT reserves are percent-encoded in names."""

    prefix: str = ""

    @property
    def root(self) -> str:
        return f"{self.prefix}/{ROOT}" if self.prefix else ROOT

    def filters(self, migration_id: str | None = None) -> list[str]:
        """What to subscribe to for one migration, or all, and for the presence of the hosts."""
        if migration_id is None:
            return [f"{self.root}/#"]
        return [f"{self.root}/{_level(migration_id)}/+/+", f"{self.root}/host/+/presence"]

    def of(self, kind: MigrationKind, migration_id: str, role: str) -> str:
        return f"{self.root}/{_level(migration_id)}/{_level(role)}/{kind}"

    def presence(self, host_id: str) -> str:
        return f"{self.root}/host/{_level(host_id)}/presence"

    def subject(self, topic: str) -> Subject | None:
        """What `topic` is about; None if it is none of ours."""
        root, levels = self.root + "/", topic.removeprefix(self.root + "/").split("/")
        if not topic.startswith(root) or len(levels) != 3:
            return None
        first, second, last = (unquote(level) for level in levels)
        if last == "presence":
            return Subject("presence", second) if first == "host" else None
        if last in ("state", "round", "event", "pages"):
            return Subject(cast("Kind", last), first, second)
        return None


def _level(name: str) -> str:
    # Lone surrogates cannot be encoded; a topic level may not be endless (64 KiB for the topic).
    return quote(name[:256], safe="", errors="replace")


def full_state(
    old: Mapping[str, object],
    fields: Mapping[str, object],
    host: Mapping[str, object],
    migration_id: str,
) -> dict[str, object]:
    """The state after `old`: what `fields` bring along, the rest as it was, and who says it."""
    now = time.time()
    new = {"started": now, "since": now, **old, **fields}
    if new.get("state") != old.get("state"):
        new["since"] = now
    new.update(host, migration_id=migration_id, time=now)
    return new


def added(total: object, more: object) -> int:
    """Their sum as far as they are whole numbers, NumPy's too."""
    return sum(int(n) for n in (total, more) if isinstance(n, SupportsIndex))


def encode(payload: Mapping[str, object]) -> bytes:
    """`payload` as a msgpack map. What msgpack has no type for is written as text."""
    try:
        return _pack({str(key): value for key, value in payload.items()})
    except Exception:  # noqa: BLE001 - an object may raise anything while it is looked at
        return _pack({_text(key): _text(value) for key, value in payload.items()})


def _pack(payload: dict[str, object]) -> bytes:
    return cast("bytes", msgpack.packb(payload, default=_plain))


def _plain(value: object) -> object:
    """NumPy scalars as Python's, sets as lists, everything else (paths, enums, ...) as text."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, Mapping):
        return dict(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        return item()
    return _text(value)


def _text(value: object) -> str:
    try:
        return str(value).encode("ascii", "backslashreplace").decode("ascii")
    except Exception:  # noqa: BLE001 - __str__ may raise anything
        return f"<{type(value).__name__}>"


def decode(payload: bytes) -> dict[str, object]:
    """The map in `payload`. Raises ValueError, one line, if there is none."""
    try:
        value = msgpack.unpackb(payload, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"payload is not msgpack: {error}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("payload is not a msgpack map with text keys")
    return value
