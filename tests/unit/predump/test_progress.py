"""What a run says while it runs."""

import io
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

from predump.progress import describe, make_progress

ROUND_EVENT: Mapping[str, Any] = {
    "phase": "round-done",
    "message": "goal not reached",
    "at_ns": 5,
    "round": {
        "round": 2,
        "pages_sent": 1234,
        "bytes_wire": 5_054_464,
        "duration_ns": 41_000_000,
        "reason": "goal not reached",
    },
}


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    """A console that writes to memory."""
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=120, color_system=None), out


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (ROUND_EVENT, "round 2: 1,234 pages, 4.8 MiB, 41 ms (goal not reached)"),
        (
            {"round": 0, "pages": 10, "bytes": 40960, "duration_s": 1.5},
            "round 0: 10 pages, 40.0 KiB, 1.50 s",
        ),
        ({"round": {"final": True, "pages_sent": 3}}, "final round: 3 pages"),
        ({"round": {"round": 1}}, "round 1: 0 pages"),
        ({"phase": "freeze", "message": "the task is stopped"}, "the task is stopped"),
        ({"message": "hello"}, "hello"),
        ({"phase": "verify"}, "verify"),
        ({"phase": "new", "colour": "blue", "n": 3}, "new: colour blue, n 3"),
        ({"round": 3, "phase": "odd"}, "odd: round 3"),
        ({}, ""),
    ],
)
def test_any_event_is_one_line(event: Mapping[str, Any], line: str) -> None:
    assert describe(event) == line


def test_without_a_terminal_there_is_one_plain_line_for_each_event() -> None:
    target, out = console(terminal=False)
    with make_progress(target) as progress:
        progress({"phase": "start", "message": "[red]not markup[/red]"})
        progress({"phase": "start", "message": "[red]not markup[/red]"})
        progress(ROUND_EVENT)
        progress({})
    assert out.getvalue().splitlines() == [
        "[red]not markup[/red]",
        "round 2: 1,234 pages, 4.8 MiB, 41 ms (goal not reached)",
    ]


def test_lines_are_not_wrapped() -> None:
    target, out = console(terminal=False)
    with make_progress(target) as progress:
        progress({"message": "x" * 500})
    assert out.getvalue() == "x" * 500 + "\n"


def test_a_terminal_gets_a_table_of_rounds() -> None:
    target, out = console(terminal=True)
    with make_progress(target) as progress:
        progress({"phase": "start", "message": "building the task"})
        progress(ROUND_EVENT)
    text = out.getvalue()
    for part in ("round", "sent", "on the wire", "1,234", "4.8 MiB", "41 ms", "building the task"):
        assert part in text


def test_quiet_says_nothing() -> None:
    for terminal in (True, False):
        target, out = console(terminal=terminal)
        with make_progress(target, quiet=True) as progress:
            progress(ROUND_EVENT)
        assert out.getvalue() == ""


def test_an_error_in_the_run_passes_through_the_display() -> None:
    for terminal in (True, False):
        target, _ = console(terminal=terminal)
        with pytest.raises(ValueError, match="from the run"), make_progress(target):
            raise ValueError("from the run")
