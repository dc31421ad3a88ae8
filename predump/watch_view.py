"""How `predump watch` shows what it knows: a live table, lines, or JSON lines."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from livemigration.telemetry.address import BrokerAddress
from livemigration.telemetry.messages import ENDED_STATES
from predump.watch_board import Board, Row, Update, number, plain

WATCH_SCHEMA = "predump.watch/1"
_REFRESH_S = 0.25
_COLUMNS = ("migration", "state", "owner", "round", "pages sent", "soft-dirty", "bytes", "rate")


class View(Protocol):
    """How the board is shown while it changes."""

    def shown(self) -> AbstractContextManager[object]:
        """For as long as something is to be seen."""

    def connected(self) -> None: ...

    def lost(self, why: str) -> None: ...

    def heard(self, update: Update | None) -> None:
        """The board changed by `update`; None: by nothing, or only the count of malformed ones."""


def make_view(
    board: Board, address: BrokerAddress, *, once: bool, as_json: bool, out: Console, err: Console
) -> View:
    if out.is_terminal and not once and not as_json:
        return _TableView(board, address, out)
    return _LineView(board, address, as_json=as_json, out=out, err=err)


class _LineView:
    """One line per message on `out`; what concerns the connection goes to `err`, once a change."""

    def __init__(
        self, board: Board, address: BrokerAddress, *, as_json: bool, out: Console, err: Console
    ) -> None:
        self._board = board
        self._address = address
        self._as_json = as_json
        self._out = out
        self._err = err
        self._lost = False
        self._malformed = 0

    def shown(self) -> AbstractContextManager[object]:
        return nullcontext()

    def connected(self) -> None:
        if self._lost:
            say(self._err, f"connected to the broker at {self._address}")
        self._lost = False

    def lost(self, why: str) -> None:
        if not self._lost:
            say(self._err, lost_line(self._address, why))
        self._lost = True

    def heard(self, update: Update | None) -> None:
        if update is None:
            if self._board.malformed and not self._malformed:
                say(self._err, malformed_line(self._board))
            self._malformed = self._board.malformed
        elif self._as_json:
            write(self._out, _update_json(update))
        else:
            say(self._out, line(update))


class _TableView:
    """A table that is drawn anew a few times a second, if anything changed."""

    def __init__(self, board: Board, address: BrokerAddress, out: Console) -> None:
        self._board = board
        self._address = address
        self._status = f"connecting to the broker at {address}"
        self._live = Live(console=out, auto_refresh=False)
        self._redraw: asyncio.TimerHandle | None = None

    def shown(self) -> AbstractContextManager[object]:
        return self._live

    def connected(self) -> None:
        self._status = f"connected to the broker at {self._address}"
        self._draw()

    def lost(self, why: str) -> None:
        self._status = lost_line(self._address, why)
        self._draw()

    def heard(self, update: Update | None) -> None:
        if self._redraw is None:
            loop = asyncio.get_running_loop()
            self._redraw = loop.call_later(_REFRESH_S, self._draw)

    def _draw(self) -> None:
        if self._redraw is not None:
            self._redraw.cancel()
            self._redraw = None
        parts: list[Table | Text] = [
            table(self._board),
            *(Text(line(event)) for event in self._board.events),
        ]
        status = [self._status, malformed_line(self._board) if self._board.malformed else ""]
        parts.append(Text("; ".join(filter(None, status)), style="dim"))
        self._live.update(Group(*parts), refresh=True)


def table(board: Board) -> Table:
    """The board as a table, the migration that changed last at the bottom."""
    shown = Table()
    for name in (*_COLUMNS, "downtime"):
        text = name in ("migration", "state", "owner")
        shown.add_column(name, justify="left" if text else "right")
    for row in board.rows.values():
        shown.add_row(
            Text(plain(row.migration_id)),
            _state_cell(board, row),
            Text(plain(row.owner)),
            _count(row.round),
            _count(row.pages_sent),
            _count(row.pages_soft_dirty),
            "" if row.bytes_wire is None else decimal(row.bytes_wire),
            "" if row.rate is None else f"{decimal(int(row.rate))}/s",
            "" if row.downtime_s is None else f"{row.downtime_s * 1000:,.1f} ms",
        )
    return shown


def line(update: Update) -> str:
    """One message as one line."""
    payload, name = update.payload, plain(update.name)
    if update.kind == "presence":
        why = f" ({plain(payload['reason'])})" if payload.get("reason") else ""
        return f"host {name} {plain(payload.get('status', 'forgotten'))}{why}"
    if not payload:
        return f"{name} {plain(update.role)} {update.kind} cleared"
    if update.kind == "state":
        return state_line(update.name, update.role, payload)
    head = f"{name} {plain(update.role)}"
    if update.kind == "round":
        return (
            f"{head} round {payload['round']}: "
            f"{_count(number(payload, 'pages_sent'))} pages sent, "
            f"{_count(number(payload, 'pages_soft_dirty'))} soft-dirty, "
            f"{decimal(int(number(payload, 'bytes_wire')))} in "
            f"{number(payload, 'duration_s'):.3g} s"
        )
    own = ("kind", "migration_id", "role", "host", "seq", "time")
    rest = "".join(f" {plain(k)}={plain(v)}" for k, v in payload.items() if k not in own)
    return f"{head} {plain(payload['kind'])}{rest}"


def state_line(migration_id: str, role: str, state: Mapping[str, object]) -> str:
    names = ("owner", "round", "pages_sent", "pages_soft_dirty", "bytes_wire", "downtime_s")
    known = "".join(f" {k}={plain(state[k])}" for k in names if state.get(k) is not None)
    return f"{plain(migration_id)} {plain(role)} state={plain(state['state'])}{known}"


def _state_cell(board: Board, row: Row) -> Text:
    cell = Text()
    for role, state in sorted(row.states.items(), reverse=True):
        name = str(state["state"])
        lost = board.is_lost(state)
        style = "red" if lost or name in ("failed", "aborted") else ""
        style = style or ("green" if name in ENDED_STATES else "")
        cell.append(", " if cell else "")
        cell.append(f"{plain(role, 12)} {plain(name, 20)}{' (host lost)' if lost else ''}", style)
    return cell


def _count(value: float | None) -> str:
    return "" if value is None else f"{int(value):,}"


def lost_line(address: BrokerAddress, why: str) -> str:
    return f"no broker at {address} ({plain(why)}); trying again"


def malformed_line(board: Board) -> str:
    return f"ignored {board.malformed:,} malformed message{'s' if board.malformed > 1 else ''}"


def snapshot_json(board: Board) -> str:
    migrations = [
        {
            "migration_id": row.migration_id,
            "owner": row.owner or None,
            "round": row.round,
            "pages_sent": row.pages_sent,
            "pages_soft_dirty": row.pages_soft_dirty,
            "bytes_wire": row.bytes_wire,
            "downtime_s": row.downtime_s,
            "states": _json(row.states),
        }
        for row in board.rows.values()
    ]
    snapshot = {"schema": WATCH_SCHEMA, "migrations": migrations, "hosts": _json(board.hosts)}
    return json.dumps({**snapshot, "malformed": board.malformed})


def _update_json(update: Update) -> str:
    name = "host" if update.kind == "presence" else "migration_id"
    return json.dumps(
        {
            "kind": update.kind,
            name: update.name,
            "role": update.role,
            "retained": update.retained,
            "payload": _json(update.payload),
        }
    )


def _json(value: object, depth: int = 0) -> object:
    """`value` as JSON has it: no NaN, no bytes, text keys, not endlessly deep."""
    if depth > 16:
        return "..."
    if isinstance(value, Mapping):
        return {str(key): _json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)


def say(console: Console, text: str) -> None:
    """A line for people: not wrapped, no markup in it."""
    console.print(Text(text), soft_wrap=True, highlight=False)


def write(console: Console, text: str) -> None:
    """A line for machines: not wrapped, not coloured."""
    console.file.write(text + "\n")
    console.file.flush()
