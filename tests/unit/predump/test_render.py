"""Results as text: what a reader finds there, within 100 columns."""

import io

import pytest
from rich.console import Console

from predump.render import first_addresses, print_result, show_bytes, show_seconds, verdict
from predump.result import Result
from tests.unit.predump.make_result import FINAL, MISMATCH, ROUND, lossy_result, result_of


def shown(result: Result, *, terminal: bool = False, width: int = 120) -> str:
    """The report of ``result`` as it is printed."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    print_result(console, result)
    return out.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (268_435_456, "256.0 MiB"),
        (2**41, "2.0 TiB"),
    ],
)
def test_bytes_for_reading(count: int, text: str) -> None:
    assert show_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (87e-6, "87 us"), (0.0142, "14.2 ms"), (2.314, "2.31 s"), (61.0, "61.00 s")],
)
def test_seconds_for_reading(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


def test_a_verified_result_shows_rounds_downtime_and_verdict() -> None:
    text = shown(result_of())
    assert "test: 256.0 MiB, 65,536 pages of 4096 bytes, policy threshold, seed 1" in text
    assert "simulated time" in text
    for part in ("freeze", "scan", "dump", "transfer", "restore", "resume", "total"):
        assert part in text
    assert "51.2 ms" in text
    assert "goal reached" in text
    assert "total 2.20 s, downtime 51.2 ms" in text
    final_row = next(line for line in text.splitlines() if "790" in line)
    assert "final" in final_row and "800" in final_row and "3.1 MiB" in final_row
    assert (
        "Verified: every page is equal, and the workload went on as if it had never moved" in text
    )
    assert "differ" not in text


def test_a_lossy_result_shows_where_pages_differ_and_what_was_left_out() -> None:
    text = shown(lossy_result())
    assert "0x100000fe000" in text and "0x100000fffff" in text
    assert "without these hunks of the patch: ptep_set_access_flags" in text
    assert "2 pages lost" in text
    assert "frozen for 51.2 ms" in text and "total 0" not in text
    assert "Memory differs: 2 pages differ at the destination; the source has the task." in text


@pytest.mark.parametrize("result", [result_of(), lossy_result()])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_line_is_wider_than_100_columns(result: Result, terminal: bool) -> None:
    long = "a reason that goes on and on, longer than any column could ever be made, and further"
    result = result.model_copy(
        update={"rounds": (result.rounds[0].model_copy(update={"reason": long}), result.rounds[1])}
    )
    lines = shown(result, terminal=terminal).splitlines()
    assert max(len(line) for line in lines) <= 100


def test_a_narrow_terminal_gets_narrow_tables() -> None:
    lines = shown(result_of(), terminal=True, width=80).splitlines()
    assert max(len(line) for line in lines) <= 80


def test_very_many_rounds_are_cut_in_the_middle() -> None:
    rounds = [{**ROUND, "round": number} for number in range(99)] + [{**FINAL, "round": 99}]
    text = shown(result_of(rounds=tuple(rounds)))
    assert "60 more rounds" in text
    assert len(text.splitlines()) < 70
    assert "final" in text


def test_very_many_mismatches_are_counted_not_listed() -> None:
    ranges = [{**MISMATCH, "start": f"{0x10000 * (n + 1):#x}", "pages": 3} for n in range(100)]
    text = shown(lossy_result(mismatches=tuple(ranges), pages_different=900))
    assert "Pages that differ at the destination: 900" in text
    assert "864" in text  # 900 less the 12 ranges of 3 that are listed
    assert len(text.splitlines()) < 50


def test_processes_are_told_apart_only_where_there_are_several() -> None:
    assert "process" not in shown(lossy_result())
    several = lossy_result(mismatches=(MISMATCH, {**MISMATCH, "pid": 2, "last_round": None}))
    text = shown(several)
    assert "process" in text and "never" in text


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (
            result_of(continued_equal=None),
            "Verified: every page is equal; the destination has the task.",
        ),
        (
            result_of(continued_equal=False),
            "Memory differs: after the restore the workload went another way; "
            "the destination has the task.",
        ),
        (
            result_of(verified=False, error="the destination was lost", owner="source"),
            "Not migrated: the destination was lost; the source has the task.",
        ),
        (
            result_of(verified=False, error="no answer to commit", owner="in-doubt"),
            "Not migrated: no answer to commit; "
            "the source holds the task frozen until it knows what the destination did.",
        ),
        (
            lossy_result(pages_different=1, mismatches=({**MISMATCH, "pages": 1},)),
            "Memory differs: 1 page differs at the destination; the source has the task.",
        ),
    ],
)
def test_the_verdict_says_what_became_of_the_task(result: Result, sentence: str) -> None:
    assert verdict(result).plain == sentence


def test_text_from_outside_is_not_markup() -> None:
    text = shown(result_of(rounds=({**ROUND, "reason": "[bold]x[/bold] [red"},)))
    assert "[bold]x[/bold] [red" in text


def test_first_addresses_go_page_by_page() -> None:
    result = lossy_result(mismatches=(MISMATCH, {**MISMATCH, "start": "0x200000000000"}))
    assert first_addresses(result, 3) == ["0x100000fe000", "0x100000ff000", "0x200000000000"]


def test_encodings_are_told_in_two_lines_unless_all_is_raw() -> None:
    assert "encoding" not in shown(result_of())
    text = shown(
        result_of(
            encoding={"kind": "auto"},
            encodings=(
                {"encoding": "raw", "pages": 20, "bytes": 81_920},
                {"encoding": "delta", "pages": 1200, "bytes": 2048},
            ),
            encode_s=0.0125,
            delta_cache={"hits": 1203, "misses": 17, "overflows": 3},
        )
    )
    lines = " ".join(text.split())
    assert "encoding auto: raw 20 pages in 80.0 KiB, delta 1,200 pages in 2.0 KiB; " in lines
    assert "259.1 MiB of content, 12.5 ms to encode" in lines
    assert "1,203 remembered, 17 not; 3 changed too much for a delta" in lines
