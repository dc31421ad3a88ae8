"""What the dashboard knows of every migration, and that as JSON.

`predump.watch_board` believes or refuses messages and keeps a row per migration; here the rounds,
the page map and the rates over time are kept beside it. All of it is bounded: anybody may publish.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from livemigration.telemetry.messages import ENDED_STATES, Topics
from predump.watch_board import ROW_LIMIT, Board, Row, Update, number, plain

MOST_ROUNDS = 1000
MOST_SAMPLES = 400
MOST_CELLS = 4096
MOST_VMAS = 512
MOST_MISMATCHES = 200

_ADDRESS = re.compile(r"0x[0-9a-f]{1,16}")
_ROUND_FIELDS = (
    *("round", "pages_sent", "pages_soft_dirty", "pages_written", "pages_zero", "bytes_wire"),
    *("duration_s", "reason"),
)
_TEXT_FACTS = ("message", "error", "policy", "workload", "clock", "destination", "host")
_NUMBER_FACTS = (
    *("memory_bytes", "page_size", "total_time_s", "at_s", "started", "dropped"),
    *("pages_lost", "pages_spurious", "pages_different"),
)
_FLAG_FACTS = ("verified", "continued_equal")
_PARTS = ("freeze", "scan", "dump", "transfer", "restore", "resume")
_LEAST_STEP = 0.04
"""A step of the rates is at least this share of the whole time, unless a round is shorter."""
_Point = tuple[float, int, int | None]
_COUNTS = ("soft_dirty", "sent", "pending")


@dataclass(frozen=True, slots=True)
class Sample:
    """How far a round was at one moment."""

    round: int
    at_s: float
    bytes_wire: int  # of all rounds until then
    dirty: int  # pages written since the round's scan
    found: int  # pages that the scan found to send


@dataclass(slots=True)
class Detail:
    """What is known of one migration beyond its row. `version` changes with it."""

    version: int = 0
    rounds: dict[int, dict[str, Any]] = field(default_factory=dict)
    pages: dict[str, Any] | None = None
    samples: list[Sample] = field(default_factory=list)

    def take_round(self, record: Mapping[str, object]) -> None:
        """Keeps a finished round; one that is heard twice is kept once."""
        kept = {name: record.get(name) for name in _ROUND_FIELDS}
        kept["reason"] = plain(record.get("reason") or "", 200)
        if len(self.rounds) < MOST_ROUNDS or kept["round"] in self.rounds:
            self.rounds[int(number(record, "round"))] = kept

    def take_pages(self, pages: dict[str, Any]) -> None:
        """Keeps the newest page map, and a point of the rates over time."""
        self.pages = pages
        sample = Sample(
            pages["round"],
            pages["at_s"],
            pages["bytes_wire"],
            pages["pages_soft_dirty"],
            pages["pages_sent"] + pages["pages_pending"],
        )
        if self.samples and self.samples[-1].at_s >= sample.at_s:
            return
        self.samples.append(sample)
        if len(self.samples) > MOST_SAMPLES:
            del self.samples[1::2]

    def rates(self) -> list[dict[str, float | int | None]]:
        """Steps of time with bytes sent per second and pages dirtied per second.

        A page counts as dirtied once per round, as QEMU and CRIU count it. None: the task stood
        still, or nobody knows yet. Moments that are very close to each other say little of a rate.
        """
        least = _LEAST_STEP * max((sample.at_s for sample in self.samples), default=0.0)
        steps: list[dict[str, float | int | None]] = []
        for n in sorted({*self.rounds, *(sample.round for sample in self.samples)}):
            points = _apart(self._points(n), least)
            for before, after in pairwise(points):
                took = after[0] - before[0]
                if took <= 0:
                    continue
                dirty = None
                if before[2] is not None and after[2] is not None:
                    dirty = max(0, after[2] - before[2]) / took
                steps.append(
                    {
                        "round": n,
                        "from": before[0],
                        "to": after[0],
                        "transfer": max(0, after[1] - before[1]) / took,
                        "dirty": dirty,
                    }
                )
        return steps

    def _points(self, n: int) -> list[_Point]:
        """(time, bytes of all rounds, pages dirtied in this one) at moments of a round."""
        known = all(k in self.rounds for k in range(n))
        start = sum(number(self.rounds[k], "duration_s") for k in range(n)) if known else 0.0
        sent = sum(int(number(self.rounds[k], "bytes_wire")) for k in range(n)) if known else 0
        last = bool(self.pages and self.pages["final"] and self.pages["round"] == n)
        points: list[_Point] = []
        if known:
            points.append((start, sent, None if last else 0))
        end = start + number(self.rounds[n], "duration_s") if known and n in self.rounds else None
        for sample in self.samples:
            if sample.round == n and (end is None or start < sample.at_s < end):
                dirty = None if last else sample.dirty
                points.append((sample.at_s, sample.bytes_wire, dirty))
        if end is not None:
            then = self.rounds.get(n + 1, {}).get("pages_soft_dirty")
            if then is None:  # the next round is under way
                then = next((s.found for s in self.samples if s.round == n + 1), None)
            total = sent + int(number(self.rounds[n], "bytes_wire"))
            points.append((end, total, None if last else then))
        return points


def _apart(points: list[_Point], least_s: float) -> list[_Point]:
    """Without the points between the first and the last that are closer than `least_s` to another.

    What comes first of a round and last stays.
    """
    if len(points) < 3:
        return points
    kept = [points[0]]
    for point in points[1:-1]:
        if point[0] - kept[-1][0] >= least_s and points[-1][0] - point[0] >= least_s:
            kept.append(point)
    return [*kept, points[-1]]


class LiveBoard:
    """The board of a dashboard. For one event loop."""

    def __init__(self, topics: Topics) -> None:
        self.board = Board(topics, with_pages=True)
        self.version = 0
        self._details: OrderedDict[str, Detail] = OrderedDict()
        self._changed = asyncio.Event()

    def apply(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """Takes in one message; what has the wrong shape is counted and otherwise ignored."""
        update = self.board.apply(topic, payload, retained=retained)
        if update is not None:
            try:
                self._take(update)
            except ValueError:
                self.board.malformed += 1
        self.touch()

    def touch(self) -> None:
        """Something changed: who waits is woken."""
        self.version += 1
        self._changed.set()

    async def changed(self, since: int, timeout_s: float) -> bool:
        """Returns when the version is not `since` any more (True), or after a while (False)."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.version == since:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _take(self, update: Update) -> None:
        if update.kind == "presence" or not update.payload:
            return
        # A broker gives the pages that it kept before the state, so there may be no row yet.
        detail = self._details.setdefault(update.name, Detail())
        self._details.move_to_end(update.name)
        while len(self._details) > ROW_LIMIT:
            self._details.popitem(last=False)
        detail.version += 1
        if update.kind == "round":
            detail.take_round(update.payload)
        elif update.kind == "pages":
            detail.take_pages(checked_pages(update.payload))

    def rows(self) -> list[dict[str, Any]]:
        """One short object per migration, the newest first."""
        return [self._summary(row) for row in reversed(self.board.rows.values())]

    def hosts(self) -> list[dict[str, str]]:
        """Who is there, and who was."""
        return [
            {
                "host": plain(name),
                "role": plain(presence.get("role", "")),
                "status": plain(presence.get("status", "")),
            }
            for name, presence in self.board.hosts.items()
        ]

    def detail(self, migration_id: str) -> dict[str, Any] | None:
        """All that is known of a migration; None if nothing is."""
        row = self.board.rows.get(migration_id)
        if row is None:
            return None
        there = self._details.get(migration_id, Detail())
        source = row.states.get("source", {})
        facts: dict[str, Any] = {
            name: plain(source[name], 400) for name in _TEXT_FACTS if source.get(name)
        }
        facts |= {name: source[name] for name in _NUMBER_FACTS if _is_number(source.get(name))}
        facts |= {name: source[name] for name in _FLAG_FACTS if isinstance(source.get(name), bool)}
        hunks = source.get("hunks_off")
        return {
            **self._summary(row),
            **facts,
            "hunks_off": [plain(h) for h in hunks[:20]] if isinstance(hunks, list) else [],
            "states": {plain(role): plain(s.get("state", "")) for role, s in row.states.items()},
            "downtime_parts_s": _parts(source.get("downtime_parts_s")),
            "mismatches": _mismatches(source.get("mismatches")),
            "rounds": [there.rounds[n] for n in sorted(there.rounds)],
            "rates": there.rates(),
            "pages": there.pages,
            "events": [
                {
                    "kind": plain(event.payload.get("kind", "")),
                    "role": plain(event.role),
                    "message": plain(event.payload.get("message") or "", 200),
                }
                for event in self.board.events
                if event.name == migration_id
            ],
        }

    def _summary(self, row: Row) -> dict[str, Any]:
        source = row.states.get("source", {})
        newest = source or next(iter(row.states.values()), {})
        return {
            "id": row.migration_id,
            "state": plain(newest.get("state", "")),
            "ended": newest.get("state") in ENDED_STATES,
            "host_lost": any(self.board.is_lost(state) for state in row.states.values()),
            "owner": plain(row.owner),
            "round": row.round,
            "pages_sent": row.pages_sent,
            "bytes_wire": row.bytes_wire,
            "downtime_s": row.downtime_s,
            "verified": source.get("verified") if source.get("verified") in (True, False) else None,
            "failed": bool(source.get("error")),
        }


def checked_pages(fields: Mapping[str, object]) -> dict[str, Any]:
    """A page map as docs/telemetry.md describes it; ValueError, one line, if it is something else.

    Only what is described comes through, so that a browser need not check it again.
    """
    pages: dict[str, Any] = {}
    for name in ("round", "bytes_wire", "page_size", "cell_bytes", "vmas_left_out"):
        pages[name] = _count(fields, name)
    for name in ("pages_soft_dirty", "pages_sent", "pages_pending"):
        pages[name] = _count(fields, name)
    if not 0 < pages["page_size"] <= pages["cell_bytes"]:
        raise ValueError("cells are smaller than pages")
    at = fields.get("at_s")
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < 2**53:
        raise ValueError("at_s must be a number from 0")
    pages["at_s"] = float(at)
    pages["final"], pages["over"] = fields.get("final") is True, fields.get("over") is True
    vmas = fields.get("vmas")
    if not isinstance(vmas, list) or len(vmas) > MOST_VMAS:
        raise ValueError(f"vmas must be a list of at most {MOST_VMAS}")
    pages["vmas"] = [_vma(vma, pages["cell_bytes"]) for vma in vmas]
    if sum(len(vma["sent"]) for vma in pages["vmas"]) > MOST_CELLS:
        raise ValueError(f"there must be at most {MOST_CELLS} cells")
    return pages


def _vma(fields: object, cell_bytes: int) -> dict[str, Any]:
    if not isinstance(fields, Mapping):
        raise ValueError("a mapping must be a map")
    start, end = (_address(fields.get(name)) for name in ("start", "end"))
    cells = -(-(end - start) // cell_bytes)
    if not 0 < cells <= MOST_CELLS:
        raise ValueError("a mapping has no size, or too many cells")
    vma: dict[str, Any] = {"start": f"{start:#x}", "end": f"{end:#x}"}
    vma |= {name: _count(fields, name) for name in ("pid", "prot", "flags")}
    vma["name"] = plain(fields.get("name") or "")
    for name in _COUNTS:
        counts = fields.get(name)
        if not isinstance(counts, list) or len(counts) != cells:
            raise ValueError(f"{name} must have {cells} counts")
        if not all(type(n) is int and 0 <= n <= cell_bytes for n in counts):
            raise ValueError(f"{name} must be counts of pages")
        vma[name] = counts
    return vma


def _address(value: object) -> int:
    if not isinstance(value, str) or not _ADDRESS.fullmatch(value):
        raise ValueError('an address is text such as "0x1000"')
    return int(value, 16)


def _count(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{name} must be a whole number from 0")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def _parts(value: object) -> dict[str, float] | None:
    if not isinstance(value, Mapping):
        return None
    parts = {name: value.get(name) for name in _PARTS}
    return {n: float(v) if _is_number(v) else 0.0 for n, v in parts.items()}  # type: ignore[arg-type]


def _mismatches(value: object) -> list[dict[str, Any]]:
    found = []
    for entry in value[:MOST_MISMATCHES] if isinstance(value, list) else []:
        if not isinstance(entry, Mapping):
            continue
        try:
            start = _address(entry.get("start"))
            pages, pid = _count(entry, "pages"), _count(entry, "pid")
        except ValueError:
            continue
        last = entry.get("last_round")
        found.append(
            {
                "pid": pid,
                "start": f"{start:#x}",
                "pages": pages,
                "last_round": last if type(last) is int else None,
            }
        )
    return found
