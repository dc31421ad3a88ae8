"""Log lines of a node: text for people or JSON for machines, with the migration's id in each.

A node has at most one migration at a time, so the id of the one that last spoke is put into every
line, also into those of modules that know nothing of it, until that migration has ended.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TextIO

from livemigration.telemetry import Telemetry
from livemigration.telemetry.messages import ENDED_STATES

LogFormat = Literal["text", "json"]

OURS: Final = ("livemigration", "source_node", "dest_node", "predump")
"""Loggers that follow the chosen level. What libraries log is shown from warnings on."""

_UNLUCKY: Final = ("failed", "differs", "source-lost", "aborted")
_FIGURES: Final = ("round", "pages_sent", "pages_soft_dirty", "bytes_wire", "duration_s")
_IN_MESSAGE: Final = ("state", "ownership", "sequence", "at_s")
"""Fields that a person reads in the message already, or does not miss."""


@dataclass(slots=True)
class LogContext:
    """What every line of a node says, beside its message."""

    role: str
    host_id: str = ""
    migration_id: str = ""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """How a node logs. `context` is filled in by the node."""

    format: LogFormat = "text"
    level: str = "info"
    context: LogContext = field(default_factory=lambda: LogContext(role=""))


class _Lines(logging.Formatter):
    """What both forms have: the moment as UTC with milliseconds, and one line."""

    def __init__(self, context: LogContext) -> None:
        super().__init__()
        self.context = context

    def moment(self, record: logging.LogRecord) -> str:
        """RFC 3339."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{seconds}.{int(record.msecs):03d}Z"

    def migration(self, record: logging.LogRecord) -> str:
        """The one that the record names, else the node's."""
        return getattr(record, "migration_id", "") or self.context.migration_id

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        """What the caller gave as ``extra={"fields": ...}``."""
        given = getattr(record, "fields", None)
        return dict(given) if isinstance(given, Mapping) else {}


class JsonLines(_Lines):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Own fields first; a caller's field never replaces one of them."""
        own: dict[str, object] = {
            "time": self.moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "role": self.context.role,
            "host": self.context.host_id,
            "migration_id": self.migration(record) or None,
            "message": record.getMessage(),
        }
        if record.exc_info:
            own["exception"] = self.formatException(record.exc_info)
        # Whatever is in a field: a line is written, with its text if JSON has no form for it.
        return json.dumps({**self.fields(record), **own}, default=str, ensure_ascii=False)


class TextLines(_Lines):
    """``TIME level [migration] message key=value ...``."""

    def format(self, record: logging.LogRecord) -> str:
        """Line breaks in a message would make lines without an id: they become blanks."""
        about = f"[{self.migration(record) or '-'}]"
        message = " ".join(record.getMessage().split("\n"))
        fields = self.fields(record).items()
        shown = " ".join(f"{key}={value}" for key, value in fields if key not in _IN_MESSAGE)
        line = f"{self.moment(record)} {record.levelname.lower()} {about} {message} {shown}"
        line = line.rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def start_logging(config: LogConfig, stream: TextIO | None = None) -> None:
    """Sends the log of this process to `stream` (standard error), in the form asked for."""
    handler = logging.StreamHandler(stream or sys.stderr)
    kind = JsonLines if config.format == "json" else TextLines
    handler.setFormatter(kind(config.context))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(config.level.upper())


class LoggedTelemetry:
    """Telemetry that is also written to the log: a line for each step and round, and the result."""

    def __init__(self, onward: Telemetry, context: LogContext) -> None:
        self._onward = onward
        self._context = context
        self._log = logging.getLogger("predump.migration")

    def state(self, migration_id: str, **fields: object) -> None:
        """A step, or without one what the migration has come to; totals are not worth a line."""
        self._onward.state(migration_id, **fields)
        state = fields.get("state")
        if state is None:
            if "verified" in fields:
                self._write(logging.INFO, migration_id, "result", fields)
            return
        self._context.migration_id = "" if state in ENDED_STATES else migration_id
        level = logging.WARNING if state in _UNLUCKY else logging.INFO
        message = str(fields.get("message") or fields.get("reason") or "")
        if not message.startswith(str(state)):
            message = f"{state}: {message}" if message else str(state)
        self._write(level, migration_id, message, fields)

    def round(self, migration_id: str, record: Mapping[str, object]) -> None:
        """One line with the figures of the round."""
        self._onward.round(migration_id, record)
        shown = {key: record[key] for key in _FIGURES if key in record}
        message = f"round {record.get('round')} is over: {record.get('reason')}"
        self._write(logging.INFO, migration_id, message, shown)

    def event(self, migration_id: str, kind: str, **fields: object) -> None:
        """Passed on: the state that comes with it is logged."""
        self._onward.event(migration_id, kind, **fields)

    def pages(self, migration_id: str, record: Mapping[str, object]) -> None:
        """Passed on: too much for a line."""
        self._onward.pages(migration_id, record)

    @property
    def wants_pages(self) -> bool:
        """Whether anybody but the log may read `pages`."""
        return self._onward.wants_pages

    def _write(
        self, level: int, migration_id: str, message: str, fields: Mapping[str, object]
    ) -> None:
        rest = {key: value for key, value in fields.items() if key not in ("message", "reason")}
        extra = {"fields": rest, "migration_id": migration_id}
        self._log.log(level, "%s", message, extra=extra)
