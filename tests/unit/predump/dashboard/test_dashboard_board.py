"""The dashboard's board: what it makes of messages, true and invented ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from livemigration.telemetry.messages import Topics, encode
from predump.dashboard import board as module
from predump.dashboard.board import (
    MOST_PAYLOAD,
    MOST_SAMPLES,
    MOST_STEPS,
    LiveBoard,
    checked_pages,
)
from predump.watch_board import ROW_LIMIT

TOPICS = Topics()
MIB = 2**20
PAGES: dict[str, Any] = {
    "round": 0,
    "final": False,
    "over": False,
    "at_s": 0.5,
    "bytes_wire": 500,
    "page_size": 4096,
    "cell_bytes": 8192,
    "pages_soft_dirty": 3,
    "pages_sent": 3,
    "pages_pending": 1,
    "vmas_left_out": 0,
    "vmas": [
        {
            "pid": 1,
            "start": "0x1000000000",
            "end": "0x1000005000",
            "name": "[heap]",
            "prot": 3,
            "flags": 34,
            "soft_dirty": [2, 1, 0],
            "sent": [2, 1, 0],
            "pending": [0, 1, 0],
        }
    ],
}


def a_round(number: int, *, sent: int, dirty: int, wire: int, took: float) -> dict[str, object]:
    return {
        "round": number,
        "pages_sent": sent,
        "pages_soft_dirty": dirty,
        "pages_written": sent,
        "pages_zero": 0,
        "bytes_wire": wire,
        "duration_s": took,
        "reason": "on and on",
    }


class Told:
    """A board, and hosts that tell it things."""

    def __init__(self) -> None:
        self.board = LiveBoard(TOPICS)

    def tell(self, kind: Any, fields: dict[str, Any], migration_id: str = "m1") -> None:
        topic = TOPICS.of(kind, migration_id, "source")
        self.board.apply(topic, encode(fields), retained=kind in ("state", "pages"))

    def detail(self, migration_id: str = "m1") -> dict[str, Any]:
        found = self.board.detail(migration_id)
        assert found is not None
        json.dumps(found, allow_nan=False)  # what a browser gets
        return found


@pytest.fixture
def told() -> Told:
    told = Told()
    told.tell("state", {"state": "round", "owner": "source", "host": "alpha"})
    return told


def test_rates_are_what_was_sent_and_dirtied_between_two_moments(told: Told) -> None:
    told.tell("pages", PAGES | {"at_s": 1.0, "bytes_wire": 400 * MIB, "pages_soft_dirty": 30})
    told.tell("pages", PAGES | {"at_s": 3.0, "bytes_wire": 1000 * MIB, "pages_soft_dirty": 40})
    told.tell("round", a_round(0, sent=100, dirty=100, wire=1600 * MIB, took=4.0))
    told.tell("round", a_round(1, sent=50, dirty=50, wire=800 * MIB, took=2.0))
    told.tell("pages", PAGES | {"round": 2, "final": True, "at_s": 6.5, "bytes_wire": 2800 * MIB})
    told.tell("round", a_round(2, sent=20, dirty=20, wire=800 * MIB, took=1.0))
    rates = told.detail()["rates"]
    assert [(step["round"], step["from"], step["to"]) for step in rates] == [
        *[(0, 0.0, 1.0), (0, 1.0, 3.0), (0, 3.0, 4.0)],
        (1, 4.0, 6.0),
        *[(2, 6.0, 6.5), (2, 6.5, 7.0)],
    ]
    assert [step["transfer"] / MIB for step in rates] == [400, 300, 600, 400, 800, 800]
    # 50 pages were dirty when round 1 began; the task stands still in the final round.
    assert [step["dirty"] for step in rates] == [30, 5, 10, 10, None, None]


def test_what_the_next_round_found_to_send_was_dirtied_in_this_one(told: Told) -> None:
    told.tell("round", a_round(0, sent=100, dirty=100, wire=1600, took=4.0))
    assert told.detail()["rates"][0]["dirty"] is None
    told.tell("pages", PAGES | {"round": 1, "at_s": 4.5, "pages_sent": 10, "pages_pending": 30})
    assert told.detail()["rates"][0]["dirty"] == 10
    told.tell("round", a_round(1, sent=41, dirty=44, wire=600, took=1.0))
    assert told.detail()["rates"][0]["dirty"] == 11


def test_what_was_sent_is_all_there_however_the_moments_fall(told: Told) -> None:
    for k in range(3000):
        told.tell("pages", PAGES | {"at_s": 0.01 * k, "bytes_wire": 7 * k})
    told.tell("round", a_round(0, sent=1, dirty=1, wire=7 * 3000, took=30.0))
    rates = told.detail()["rates"]
    assert len(rates) <= MOST_SAMPLES + 1
    total = sum((step["to"] - step["from"]) * step["transfer"] for step in rates)
    assert total == pytest.approx(7 * 3000)


def test_who_comes_late_sees_what_can_be_known(told: Told) -> None:
    told.tell("round", a_round(5, sent=50, dirty=50, wire=800, took=2.0))
    assert told.detail()["rates"] == []
    assert [r["round"] for r in told.detail()["rounds"]] == [5]
    told.tell("pages", PAGES | {"round": 6, "at_s": 9.0, "bytes_wire": 100})
    told.tell("pages", PAGES | {"round": 6, "at_s": 11.0, "bytes_wire": 300})
    ((at, rate),) = [(step["from"], step["transfer"]) for step in told.detail()["rates"]]
    assert (at, rate) == (9.0, 100)


def test_a_page_map_that_a_broker_kept_may_come_before_the_state() -> None:
    told = Told()
    told.tell("pages", PAGES)
    assert told.board.detail("m1") is None
    told.tell("state", {"state": "done"})
    assert told.detail()["pages"]["vmas"][0]["sent"] == [2, 1, 0]


def test_the_end_says_what_differs_and_what_the_downtime_was(told: Told) -> None:
    ranges = [{"pid": 1, "start": "0x1000", "pages": 2, "last_round": None}]
    parts = {"total": 6.0, **dict.fromkeys(("freeze", "scan", "dump"), 1.0)}
    told.tell(
        "state",
        {
            "state": "done",
            "verified": False,
            "pages_different": 2,
            "mismatches": [*ranges, {"pid": 1, "start": "nowhere", "pages": 2}, 7],
            "downtime_s": 6.0,
            "downtime_parts_s": parts,
            "hunks_off": ["pte_modify"],
        },
    )
    detail = told.detail()
    assert (detail["verified"], detail["pages_different"]) == (False, 2)
    assert detail["mismatches"] == ranges
    assert detail["downtime_parts_s"] == {
        **dict.fromkeys(("freeze", "scan", "dump"), 1.0),
        **dict.fromkeys(("transfer", "restore", "resume"), 0.0),
    }
    assert detail["hunks_off"] == ["pte_modify"]
    assert told.board.board.malformed == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"round": "7"}, "round must be a whole number"),
        ({"pages_sent": True}, "pages_sent must be a whole number"),
        ({"cell_bytes": 512}, "smaller than pages"),
        ({"at_s": float("nan")}, "at_s must be"),
        ({"vmas": "all"}, "vmas must be a list"),
        ({"vmas": PAGES["vmas"] * 1000}, "vmas must be a list of at most"),
        ({"vmas": [PAGES["vmas"][0] | {"sent": [1]}]}, "sent must have 3 counts"),
        ({"vmas": [PAGES["vmas"][0] | {"sent": [1, 2, -1]}]}, "sent must be counts"),
        ({"vmas": [PAGES["vmas"][0] | {"end": "0x0"}]}, "no size"),
        ({"vmas": [PAGES["vmas"][0] | {"end": "0xfffffffffffffff0"}]}, "too many cells"),
        ({"vmas": [PAGES["vmas"][0] | {"start": 4096}]}, "an address is text"),
    ],
)
def test_a_page_map_with_a_wrong_shape_is_counted_and_not_shown(
    told: Told, change: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        checked_pages(PAGES | change)
    told.tell("pages", PAGES | change)
    assert told.board.board.malformed == 1
    assert told.detail()["pages"] is None


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


_EVERY_NAME = [
    *(*PAGES, "state", "kind", "reason", "error", "mismatches", "downtime_parts_s", "hunks_off"),
    *("pages_written", "pages_zero", "duration_s", "post_copy", "name", "started", "time", "at_s"),
]


@given(
    kind=st.sampled_from(["state", "round", "event", "pages"]),
    name=st.sampled_from(_EVERY_NAME),
    value=_ANYTHING,
)
@example("round", "pages_written", float("nan"))
@example("round", "pages_zero", {"a": []})
@example("round", "duration_s", 5e-324)
@example("state", "post_copy", {"stalled_s": float("inf"), "faults": "7"})
def test_whatever_is_published_the_browser_gets_valid_json(
    kind: Any, name: str, value: object
) -> None:
    told = Told()
    told.tell("state", {"state": "round"})
    told.tell(
        kind,
        PAGES
        | {"state": "round", "kind": "x", "round": 0, "reason": "", "bytes_wire": 2**62}
        | {name: value},
    )
    told.detail()
    json.dumps(told.board.rows(), allow_nan=False)


def test_a_flood_of_invented_migrations_pushes_out_the_oldest_and_nothing_grows() -> None:
    told = Told()
    for number in range(3 * ROW_LIMIT):
        told.tell("pages", PAGES, f"m{number}")
        told.tell("state", {"state": "done"}, f"m{number}")
    assert len(told.board.rows()) == ROW_LIMIT
    assert told.board.rows()[0]["id"] == f"m{3 * ROW_LIMIT - 1}"
    assert len(told.board._details) == ROW_LIMIT


def test_what_is_kept_stays_small_whatever_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Days of migrations, and strangers who publish as much as they may."""
    monkeypatch.setattr(module, "MOST_ROUNDS_IN_ALL", 1000)
    told = Told()
    much = {f"k{n}": ["x" * 50] * 40 for n in range(60)} | {"text": "y" * 60_000}
    payload = encode({"state": "round", **much})
    for number in range(2 * ROW_LIMIT):
        for role in range(10 if number % 50 == 0 else 1):
            topic = TOPICS.of("state", f"m{number}", f"role{role}")
            told.board.apply(topic, payload, retained=True)
        told.tell("pages", PAGES, f"m{number}")
        for n in range(10):
            told.tell("round", a_round(n, sent=1, dirty=1, wire=1, took=1.0), f"m{number}")
        told.tell("event", {"kind": "x", "message": "z" * 5000}, f"m{number}")
    board = told.board
    assert sum(len(d.rounds) for d in board._details.values()) <= 1000
    kept = sum(len(str(row.states)) for row in board.board.rows.values())
    assert kept < ROW_LIMIT * 8 * 3000
    assert len(told.detail(f"m{2 * ROW_LIMIT - 1}")["rounds"]) == 10
    assert told.board.board.malformed == 0


def test_a_message_that_is_far_too_long_is_not_even_read() -> None:
    told = Told()
    told.tell("state", {"state": "round", "x": "y" * MOST_PAYLOAD})
    assert (told.board.rows(), told.board.board.malformed) == ([], 1)


def test_rows_are_in_the_order_in_which_they_began_whoever_speaks(told: Told) -> None:
    for name, started in (("b", 20.0), ("c", 30.0), ("a", 10.0)):
        told.tell("state", {"state": "round", "started": started}, name)
    told.tell("round", a_round(0, sent=1, dirty=1, wire=1, took=1.0), "a")
    assert [row["id"] for row in told.board.rows()] == ["m1", "c", "b", "a"]


def test_pages_that_come_later_are_part_of_the_rates(told: Told) -> None:
    told.tell("round", a_round(0, sent=100, dirty=100, wire=100 * MIB, took=4.0))
    told.tell("round", a_round(1, sent=0, dirty=50, wire=0, took=0.5))
    for k in range(4):
        later = {"round": 1, "final": True, "serving": True}
        told.tell("pages", PAGES | later | {"at_s": 5.0 + k, "bytes_wire": (100 + 20 * k) * MIB})
    rates = told.detail()["rates"]
    assert [(r["round"], r["from"], r["to"]) for r in rates][-3:] == [
        *[(None, 5.0, 6.0), (None, 6.0, 7.0), (None, 7.0, 8.0)]
    ]
    assert [r["transfer"] / MIB for r in rates][-3:] == [20, 20, 20]
    assert rates[-1]["dirty"] is None
    assert told.board.rows()[0]["bytes_wire"] == 160 * MIB


def test_of_very_many_rounds_the_rates_stay_few_and_whole(told: Told) -> None:
    for n in range(900):
        told.tell("round", a_round(n, sent=1, dirty=1, wire=(n + 1) * 1000, took=0.1))
    rates = told.detail()["rates"]
    assert len(rates) <= MOST_STEPS
    total = sum((step["to"] - step["from"]) * step["transfer"] for step in rates)
    assert total == pytest.approx(sum((n + 1) * 1000 for n in range(900)))


async def test_who_waits_for_a_change_is_woken_by_it_or_after_a_while(told: Told) -> None:
    seen = told.board.version
    assert not await told.board.changed(seen, 0.01)
    told.tell("event", {"kind": "freeze"})
    assert await told.board.changed(seen, 10)
