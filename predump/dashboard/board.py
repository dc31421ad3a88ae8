"""What the dashboard knows of every migration, and that as JSON.

`predump.watch_board` believes or refuses messages and keeps a row per migration; here the rounds,
the page map and the rates over time are kept beside it. All of it is bounded: anybody may publish.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from livemigration.telemetry.messages import ENDED_STATES, Topics
from predump.watch_board import ROW_LIMIT, Board, Row, Update, number, plain

MOST_ROUNDS = 1000
MOST_ROUNDS_IN_ALL = 20_000
MOST_EVENTS = 40
MOST_SAMPLES = 400
MOST_STEPS = 300
"""Of rates over time: more than a chart has room for."""
MOST_PAYLOAD = 256 * 1024
"""Bytes of a message; a page map of 1,280 cells has a tenth."""
MOST_CELLS = 4096
MOST_VMAS = 512
MOST_MISMATCHES = 200

_ADDRESS = re.compile(r"0x[0-9a-f]{1,16}")
_ROUND_FIELDS = (
    *("round", "pages_sent", "pages_soft_dirty", "pages_written", "pages_zero", "bytes_wire"),
    *("duration_s", "reason"),
)
_TEXT_FACTS = (
    *("message", "error", "clock", "destination", "host"),
    "ownership",
)
_NUMBER_FACTS = (
    *("memory_bytes", "page_size", "total_time_s", "at_s", "started", "dropped"),
    *("pages_lost", "pages_spurious", "pages_different"),
)
_FLAG_FACTS = ("verified", "continued_equal")
_PARTS = ("freeze", "scan", "dump", "transfer", "restore", "resume")
_LEAST_STEP, _LEAST_BYTES = 0.04, 4 * 2**20
"""A step of the rates is at least this share of the whole time, and has this much in it, unless a
round is shorter: pages go in frames of a MiB, of which one says little of a rate."""
_Point = tuple[float, int, int | None]
_COUNTS = ("soft_dirty", "sent", "pending")
_LATER_COUNTS = (
    *("pages_lazy", "faults", "faults_remote", "pages_prefetched", "pages_dropped"),
    *("pages_missing", "bytes_wire"),
)
_LATER_SECONDS = ("stalled_s", "longest_stall_s", "residual_s")
PARTS = ("facts", "rounds", "rates", "pages", "mismatches", "events")
"""What is told of a migration, in parts that change apart from each other."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How far a round was at one moment."""

    round: int
    at_s: float
    bytes_wire: int  # of all rounds until then
    dirty: int  # pages written since the round's scan
    found: int  # pages that the scan found to send
    serving: bool  # the task runs again, and pages come that were left behind


@dataclass(slots=True)
class Detail:
    """What is known of one migration beyond its row."""

    rounds: dict[int, dict[str, Any]] = field(default_factory=dict)
    pages: str = "null"  # as JSON: made once, however many look on, and small
    samples: list[Sample] = field(default_factory=list)
    bytes_wire: int = 0  # until the newest page map
    final: int | None = None  # the frozen round, once it has begun
    ended: dict[str, Any] = field(default_factory=dict)  # what the source's states list
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))

    def take_event(self, role: str, event: Mapping[str, object]) -> None:
        """Keeps what happened; with QoS 1 it may be heard twice."""
        at = event.get("at_s")
        kept = {
            "kind": plain(event.get("kind", "")),
            "role": plain(role),
            "message": plain(event.get("message") or "", 200),
            "at_s": at if _is_number(at) else None,
            "seq": _whole(event.get("seq")),
        }
        if kept not in self.events:
            self.events.append(kept)

    def take_state(self, state: Mapping[str, object]) -> None:
        """Keeps what the source's newest state lists: the board keeps its numbers and texts."""
        hunks = state.get("hunks_off")
        self.ended = {
            "hunks_off": [plain(h) for h in hunks[:20]] if isinstance(hunks, list) else [],
            "downtime_parts_s": _parts(state.get("downtime_parts_s")),
            "post_copy": _post_copy(state.get("post_copy")),
            "mismatches": _mismatches(state.get("mismatches")),
        }

    def take_round(self, record: Mapping[str, object]) -> None:
        """Keeps a finished round; one that is heard twice is kept once."""
        kept: dict[str, Any] = {name: _whole(record.get(name)) for name in _ROUND_FIELDS}
        kept["duration_s"] = number(record, "duration_s")
        kept["reason"] = plain(record.get("reason") or "", 200)
        if len(self.rounds) < MOST_ROUNDS or kept["round"] in self.rounds:
            self.rounds[kept["round"]] = kept

    def take_pages(self, pages: dict[str, Any]) -> None:
        """Keeps the newest page map, and a point of the rates over time."""
        self.pages = _json(pages)
        self.bytes_wire = pages["bytes_wire"]
        self.final = pages["round"] if pages["final"] else None
        sample = Sample(
            pages["round"],
            pages["at_s"],
            pages["bytes_wire"],
            pages["pages_soft_dirty"],
            pages["pages_sent"] + pages["pages_pending"],
            pages["serving"],
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
        starts = self._starts()
        steps: list[_Step] = []
        for n in sorted({*self.rounds, *(sample.round for sample in self.samples)}):
            steps += _steps(n, _apart(self._points(n, starts.get(n)), least))
        later: list[_Point] = [(s.at_s, s.bytes_wire, None) for s in self.samples if s.serving]
        if later:
            steps += _steps(None, _apart(later, least))
        while len(steps) > MOST_STEPS:
            steps = [_joined(steps[k : k + 2]) for k in range(0, len(steps), 2)]
        return [
            {
                "round": step.round,
                "from": step.from_,
                "to": step.to,
                "transfer": step.transfer,
                "dirty": step.dirty,
            }
            for step in steps
        ]

    def _starts(self) -> dict[int, tuple[float, int]]:
        """(time, bytes of all rounds before) at which a round began, where that is known."""
        starts, at, sent = {0: (0.0, 0)}, 0.0, 0
        for n in range(len(self.rounds)):
            if n not in self.rounds:
                break
            at += number(self.rounds[n], "duration_s")
            sent += int(number(self.rounds[n], "bytes_wire"))
            starts[n + 1] = at, sent
        return starts

    def _points(self, n: int, began: tuple[float, int] | None) -> list[_Point]:
        """(time, bytes of all rounds, pages dirtied in this one) at moments of a round."""
        start, sent = began or (0.0, 0)
        last = self.final == n
        points: list[_Point] = []
        if began is not None:
            points.append((start, sent, None if last else 0))
        end = (
            start + number(self.rounds[n], "duration_s")
            if began is not None and n in self.rounds
            else None
        )
        for sample in self.samples:
            if (
                sample.round == n
                and not sample.serving
                and (end is None or start < sample.at_s < end)
            ):
                dirty = None if last else sample.dirty
                points.append((sample.at_s, sample.bytes_wire, dirty))
        if end is not None:
            then = self.rounds.get(n + 1, {}).get("pages_soft_dirty")
            if then is None:  # the next round is under way
                then = next((s.found for s in self.samples if s.round == n + 1), None)
            total = sent + int(number(self.rounds[n], "bytes_wire"))
            points.append((end, total, None if last else then))
        return points


@dataclass(frozen=True, slots=True)
class _Step:
    """Rates between two moments. `to` of one is `from_` of the next, within a round."""

    round: int | None  # None: after the last one, pages that come later
    from_: float
    to: float
    transfer: float  # bytes/s
    dirty: float | None  # pages/s; None: the task stood still, or nobody knows yet


def _steps(n: int | None, points: list[_Point]) -> list[_Step]:
    steps = []
    for before, after in pairwise(points):
        took = after[0] - before[0]
        if took <= 0:
            continue
        transfer = max(0, after[1] - before[1]) / took
        dirty = None
        if before[2] is not None and after[2] is not None:
            dirty = max(0, after[2] - before[2]) / took
        if math.isfinite(transfer) and math.isfinite(dirty or 0.0):
            steps.append(_Step(n, before[0], after[0], transfer, dirty))
    return steps


def _joined(steps: list[_Step]) -> _Step:
    """Two steps as one, with what was sent and dirtied in both."""
    first, last = steps[0], steps[-1]
    took = sum(step.to - step.from_ for step in steps)
    transfer = sum((step.to - step.from_) * step.transfer for step in steps) / took
    known = [step for step in steps if step.dirty is not None]
    dirty = None
    if known:
        dirty = sum((s.to - s.from_) * (s.dirty or 0.0) for s in known)
        dirty /= sum(s.to - s.from_ for s in known)
    return _Step(first.round, first.from_, last.to, transfer, dirty)


def _apart(points: list[_Point], least_s: float) -> list[_Point]:
    """Without the points between the first and the last that are too close to another.

    What comes first of a round and last stays.
    """
    if len(points) < 3:
        return points
    kept = [points[0]]
    for point in points[1:-1]:
        took = min(point[0] - kept[-1][0], points[-1][0] - point[0])
        sent = min(point[1] - kept[-1][1], points[-1][1] - point[1])
        if took >= least_s and sent >= _LEAST_BYTES:
            kept.append(point)
    return [*kept, points[-1]]


class LiveBoard:
    """The board of a dashboard. For one event loop."""

    def __init__(self, topics: Topics) -> None:
        self.board = Board(topics, with_pages=True, slim=True)
        self.version = 0
        self._details: OrderedDict[str, Detail] = OrderedDict()
        self._changed = asyncio.Event()

    def apply(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """Takes in one message; what has the wrong shape is counted and otherwise ignored."""
        if len(payload) > MOST_PAYLOAD:
            self.board.malformed += 1
            self.touch()
            return
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
        if update.kind == "round":
            detail.take_round(update.payload)
            self._forget_rounds()
        elif update.kind == "pages":
            detail.take_pages(checked_pages(update.payload))
        elif update.kind == "event":
            detail.take_event(update.role, update.payload)
        elif update.role == "source":  # a state
            detail.take_state(update.payload)

    def _forget_rounds(self) -> None:
        """Those of the migrations that were quiet longest, if there are too many in all."""
        excess = sum(len(detail.rounds) for detail in self._details.values()) - MOST_ROUNDS_IN_ALL
        for detail in self._details.values():
            if excess <= 0:
                return
            excess -= len(detail.rounds)
            detail.rounds.clear()

    def rows(self) -> list[dict[str, Any]]:
        """One short object per migration, the one that began last first."""
        newest_first = sorted(self.board.rows.values(), key=lambda row: row.started, reverse=True)
        return [self._summary(row) for row in newest_first]

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
        parts = self.parts(migration_id)
        if parts is None:
            return None
        told = {name: json.loads(text) for name, text in parts.items()}
        return {**told.pop("facts"), **told}

    def parts(self, migration_id: str) -> dict[str, str] | None:
        """The same as JSON, by `PARTS`."""
        row = self.board.rows.get(migration_id)
        if row is None:
            return None
        there = self._details.get(migration_id, Detail())
        return {
            "facts": _json(self._facts(row, there)),
            "rounds": _json([there.rounds[n] for n in sorted(there.rounds)]),
            "rates": _json(there.rates()),
            "pages": there.pages,
            "mismatches": _json(there.ended.get("mismatches", [])),
            "events": _json(list(there.events)),
        }

    def _facts(self, row: Row, there: Detail) -> dict[str, Any]:
        source = row.states.get("source", {})
        facts: dict[str, Any] = {
            name: plain(source[name], 400) for name in _TEXT_FACTS if source.get(name)
        }
        facts |= {name: source[name] for name in _NUMBER_FACTS if _is_number(source.get(name))}
        facts |= {name: source[name] for name in _FLAG_FACTS if isinstance(source.get(name), bool)}
        return {
            **self._summary(row),
            **facts,
            "states": {plain(role): plain(s.get("state", "")) for role, s in row.states.items()},
            "hunks_off": there.ended.get("hunks_off", []),
            "downtime_parts_s": there.ended.get("downtime_parts_s"),
            "post_copy": there.ended.get("post_copy"),
        }

    def _summary(self, row: Row) -> dict[str, Any]:
        source = row.states.get("source", {})
        newest = source or next(iter(row.states.values()), {})
        there = self._details.get(row.migration_id, Detail())
        later = (there.ended.get("post_copy") or {}).get("bytes_wire", 0)
        return {
            "id": row.migration_id,
            "label": plain(row.migration_id),
            "name": plain(source.get("name") or ""),
            "policy": plain(source.get("policy") or ""),
            "workload": plain(source.get("workload") or ""),
            "started": row.started,
            "state": plain(newest.get("state", "")),
            "ended": newest.get("state") in ENDED_STATES,
            "host_lost": any(self.board.is_lost(state) for state in row.states.values()),
            "owner": plain(row.owner),
            "round": row.round,
            "pages_sent": row.pages_sent,
            "bytes_wire": max((row.bytes_wire or 0) + later, there.bytes_wire),
            "downtime_s": row.downtime_s,
            "verified": source.get("verified") if source.get("verified") in (True, False) else None,
            "failed": bool(source.get("error")),
            "aborted": str(source.get("error") or "").startswith("aborted:"),
            "in_doubt": source.get("ownership") == "in_doubt",
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
    for name in ("final", "serving", "over"):
        pages[name] = fields.get(name) is True
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
    for name in (*_COUNTS, *(["different"] if "different" in fields else [])):
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


def _whole(value: object) -> int | None:
    """A count, or None for what is none."""
    return value if type(value) is int and 0 <= value < 2**63 else None


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _post_copy(value: object) -> dict[str, Any] | None:
    if not isinstance(value, Mapping):
        return None
    told: dict[str, Any] = {name: _whole(value.get(name)) or 0 for name in _LATER_COUNTS}
    for name in _LATER_SECONDS:
        told[name] = value.get(name) if _is_number(value.get(name)) else 0.0
    return {**told, "halted": plain(value.get("halted") or "", 200)}


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
