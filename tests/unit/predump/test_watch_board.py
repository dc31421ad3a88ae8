"""What `predump watch` believes of what it hears, and what it makes of it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from livemigration.telemetry.messages import Topics, encode
from predump.watch_board import EVENT_LIMIT, ROW_LIMIT, Board
from predump.watch_view import line, snapshot_json, table

TOPICS = Topics()


def _tell(
    board: Board,
    what: str,
    given: Mapping[str, object] = MappingProxyType({}),
    /,
    *,
    name: str = "m",
    by: str = "source",
    **more: object,
) -> str:
    """Apply a message as a host sends it; the line that is printed for it, "" if it is ignored."""
    fields = {**given, **more}
    topic = TOPICS.presence(name)
    if what in ("state", "round", "event"):
        topic = TOPICS.of(what, name, by)  # type: ignore[arg-type]
    update = board.apply(topic, encode(fields) if fields else b"", retained=False)
    return line(update) if update is not None else ""


def _shown(board: Board) -> str:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(table(board))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_row_joins_what_both_hosts_say() -> None:
    board = Board(TOPICS)
    _tell(board, "state", state="round", owner="source", host="a", time=1.0)
    _tell(board, "round", round=0, pages_sent=65536, bytes_wire=10**9, duration_s=2.0)
    _tell(board, "round", round=1, pages_sent=1000, pages_soft_dirty=990, bytes_wire=10**8,
          duration_s=0.5)  # fmt: skip
    _tell(board, "state", by="dest", state="committed", owner="destination", time=3.0)
    _tell(board, "state", state="done", owner="destination", downtime_s=0.1234, time=4.0)
    row = board.rows["m"]
    assert (row.round, row.pages_sent, row.bytes_wire) == (1, 66536, 11 * 10**8)
    shown = _shown(board)
    for text in ("source done, dest committed", "destination", "66,536", "990", "1.1 GB",
                 "200.0 MB/s", "123.4 ms"):  # fmt: skip
        assert text in shown


def test_a_round_that_arrives_twice_counts_once() -> None:
    board = Board(TOPICS)
    for number in (0, 1, 1, 0):
        _tell(board, "round", round=number, pages_sent=10, bytes_wire=100)
    assert board.rows["m"].pages_sent == 20


def test_a_round_of_next_to_no_time_has_no_rate() -> None:
    board = Board(TOPICS)
    for number, duration in enumerate((0, 0.0, 5e-324)):
        _tell(board, "round", round=number, bytes_wire=10, duration_s=duration)
        assert board.rows["m"].rate is None
        assert _shown(board)


def test_who_comes_late_takes_the_sums_from_the_state() -> None:
    board = Board(TOPICS)
    _tell(board, "state", state="round", total_pages_sent=500, total_bytes_wire=5000, round=7)
    _tell(board, "round", round=8, pages_sent=10, bytes_wire=100)
    row = board.rows["m"]
    assert (row.round, row.pages_sent, row.bytes_wire) == (8, 500, 5000)


def test_a_migration_whose_host_is_gone_is_marked_until_it_had_ended() -> None:
    board = Board(TOPICS)
    _tell(board, "state", state="round", host="a", name="running")
    _tell(board, "state", state="done", host="a", name="over")
    assert "lost" not in _shown(board)
    assert _tell(board, "presence", name="a", status="offline", reason="lost") == (
        "host a offline (lost)"
    )
    shown = _shown(board)
    assert "source round (host lost)" in shown
    assert shown.count("lost") == 1


def test_taking_the_retained_state_away_takes_the_row_away() -> None:
    board = Board(TOPICS)
    _tell(board, "state", state="done")
    _tell(board, "state", by="dest", state="done")
    assert _tell(board, "state") == "m source state cleared"
    assert list(board.rows["m"].states) == ["dest"]
    _tell(board, "state", by="dest")
    assert (board.rows, board.malformed) == ({}, 0)


def test_one_migration_can_be_singled_out() -> None:
    board = Board(TOPICS, "m")
    assert _tell(board, "state", name="other", state="round") == ""
    assert _tell(board, "state", name="m", state="round") == "m source state=round"
    assert _tell(board, "presence", name="a", status="online") == "host a online"
    assert (list(board.rows), board.malformed) == (["m"], 0)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("state", {"owner": "source"}),
        ("state", {"state": None}),
        ("state", {"state": 3}),
        ("state", {"state": "round", "round": "many"}),
        ("state", {"state": "round", "round": -1}),
        ("state", {"state": "round", "round": True}),
        ("state", {"state": "round", "total_bytes_wire": 1.5}),
        ("state", {"state": "round", "downtime_s": math.nan}),
        ("state", {"state": "round", "time": math.inf}),
        ("state", {"state": "round", "host": ["a"]}),
        ("round", {"pages_sent": 3}),
        ("round", {"round": 2**63}),
        ("event", {"message": "x"}),
        ("presence", {"host": "a"}),
    ],
)
def test_what_is_not_as_documented_is_counted_and_changes_nothing(
    kind: str, fields: dict[str, object]
) -> None:
    board = Board(TOPICS)
    assert _tell(board, kind, fields) == ""
    assert board.malformed == 1
    assert not board.rows and not board.hosts and not board.events


@given(st.sampled_from(["state", "round", "event", "presence", "x"]), st.binary(max_size=40))
def test_no_payload_upsets_the_board(kind: str, payload: bytes) -> None:
    board = Board(TOPICS)
    update = board.apply(f"predump/v1/m/source/{kind}", payload, retained=True)
    assert (update is None) == (board.malformed == 1)
    if update is not None:
        assert line(update)
    assert _shown(board)
    json.loads(snapshot_json(board))


_ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
_NAMES = st.sampled_from(
    ["state", "kind", "status", "round", "owner", "host", "time", "pages_sent", "duration_s",
     "downtime_s", "total_bytes_wire", "pages_soft_dirty", "bytes_wire", "reason", "x"]
)  # fmt: skip


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["state", "round", "event"]),
            st.dictionaries(_NAMES, _ODD | st.integers(0, 99) | st.just("round"), max_size=8),
        ),
        max_size=4,
    )
)
def test_any_map_is_shown_or_counted(messages: list[tuple[str, dict[str, object]]]) -> None:
    board = Board(TOPICS)
    told = [_tell(board, kind, fields) for kind, fields in messages if fields]
    assert told.count("") == board.malformed
    shown = [*told, _shown(board).replace("\n", "")]
    assert all(character.isprintable() for text in shown for character in text)
    json.loads(snapshot_json(board), parse_constant=pytest.fail)


def test_text_cannot_steer_the_terminal_or_the_layout() -> None:
    board = Board(TOPICS)
    evil = "\x1b[2J[bold]x\n" + "y" * 1000
    told = _tell(board, "state", name=evil, state=evil, owner=evil)
    _tell(board, "event", kind=evil)
    assert "\x1b" not in told + _shown(board)
    assert "\n" not in told
    assert "[bold]" in told
    assert len(told) < 300


def test_a_flood_of_migrations_pushes_out_the_quietest() -> None:
    board = Board(TOPICS)
    for number in range(ROW_LIMIT + 50):
        _tell(board, "state", name=f"m{number}", state="round")
        _tell(board, "state", name="busy", state="round")
        _tell(board, "event", name=f"m{number}", kind="x")
    assert len(board.rows) == ROW_LIMIT
    assert "busy" in board.rows and "m0" not in board.rows
    assert len(board.events) == EVENT_LIMIT


def test_lines_say_what_happened() -> None:
    board = Board(TOPICS)
    assert _tell(
        board,
        "round",
        round=2,
        pages_sent=1234,
        pages_soft_dirty=1200,
        bytes_wire=5_000_000,
        duration_s=0.25,
    ) == ("m source round 2: 1,234 pages sent, 1,200 soft-dirty, 5.0 MB in 0.25 s")
    assert _tell(board, "event", kind="freeze", migration_id="m", role="source", host="a", seq=1,
                 time=2.0, message="now") == "m source freeze message=now"  # fmt: skip
    assert _tell(board, "state", state="round", owner="source", round=2, message="x") == (
        "m source state=round owner=source round=2"
    )


def test_a_host_that_began_anew_has_lost_what_it_said_before() -> None:
    board = Board(TOPICS)
    _tell(board, "presence", name="a", status="online", started=10.0)
    _tell(board, "state", name="old", state="round", host="a", time=20.0)
    _tell(board, "state", name="over", state="done", host="a", time=21.0)
    _tell(board, "presence", name="a", status="online", started=30.0)
    _tell(board, "state", name="new", state="round", host="a", time=31.0)
    lost = {name: board.is_lost(row.states["source"]) for name, row in board.rows.items()}
    assert lost == {"old": True, "over": False, "new": False}
    _tell(board, "state", name="old", state="commit", host="a", time=32.0)  # it took it up again
    assert not board.is_lost(board.rows["old"].states["source"])


def test_names_that_no_host_of_ours_has_are_not_believed() -> None:
    board = Board(TOPICS)
    board.apply(f"predump/v1/{'m' * 300}/source/state", encode({"state": "round"}), retained=True)
    assert (len(board.rows), board.malformed) == (0, 1)
