"""Figures of a trace: duration, distinct pages per window, hottest pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from livemigration.workload import WorkloadError
from livemigration.workload.summary import HotPage, duration_ns, round_part, summarize
from livemigration.workload.trace import TraceFile
from tests.unit.workload.raw_traces import RECORDS, Record, chunk, footer, good_items, header, write

US = 1000


def trace(path: Path, *chunks: list[Record]) -> TraceFile:
    return TraceFile(write(path / "t", good_items(*(chunks or [RECORDS]))))


def test_duration_is_that_of_all_instructions(tmp_path: Path) -> None:
    """One run ends with instruction 1000; the next one's first comes a microsecond later."""
    assert duration_ns(trace(tmp_path)) == 1_001_000


def test_pages_are_counted_once_in_each_window(tmp_path: Path) -> None:
    summary = summarize(trace(tmp_path), window_ns=500 * US)
    assert summary.pages_per_window == (3, 1, 0)
    assert summary.peak_rate == 3 / 500e-6
    assert summary.mean_rate == pytest.approx(4 / 1500e-6)


@pytest.mark.parametrize("window", [1, 7, 10, 99, 100, 250, 251, 1000, 10**6])
def test_windows_against_a_plain_count_wherever_chunks_end(tmp_path: Path, window: int) -> None:
    rows: list[Record] = [(at * at // 7, at % 13, 0, 7, 1) for at in range(80)]
    summary = summarize(
        trace(tmp_path, rows[:3], rows[3:40], rows[40:41], rows[41:]), window_ns=window * US
    )
    expected = [set() for _ in range(-(-1001 // window))]
    for time, page, *_ in rows:
        expected[time // window].add(page)
    assert summary.pages_per_window == tuple(map(len, expected))


def test_the_hottest_pages_come_first(tmp_path: Path) -> None:
    hottest = summarize(trace(tmp_path), top=2).hottest
    assert hottest == (HotPage(0x4000_000, 36, 3), HotPage(0x7FFF0_000, 4, 1))
    assert summarize(trace(tmp_path), top=0).hottest == ()


def test_without_stores_there_are_no_pages_and_no_rates(tmp_path: Path) -> None:
    summary = summarize(TraceFile(write(tmp_path / "t", [header(), footer()])))
    assert summary.hottest == ()
    assert set(summary.pages_per_window) == {0}
    assert (summary.mean_rate, summary.peak_rate) == (0, 0)


@pytest.mark.parametrize(
    ("duration", "part"),
    [(1, 1), (10, 1), (11, 2), (21, 5), (50, 5), (51, 10), (1001, 200), (10**9, 10**8)],
)
def test_about_a_tenth_is_a_round_number(duration: int, part: int) -> None:
    assert round_part(duration) == part


def long_trace(path: Path, seconds: int) -> TraceFile:
    row: Record = (seconds * 10**6, 1, 0, 7, 1)
    items = [header(), chunk(0, [row]), footer([row], instructions=seconds * 10**6)]
    return TraceFile(write(path / "t", items))


def test_windows_of_long_traces_are_a_second_and_of_very_long_ones_longer(tmp_path: Path) -> None:
    assert summarize(long_trace(tmp_path, 60)).window_ns == 10**9
    longest = summarize(long_trace(tmp_path, 10**12))
    assert longest.window_ns == 2 * 10**20
    assert sum(longest.pages_per_window) == 1


def test_too_many_windows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError) as error:
        summarize(long_trace(tmp_path, 60), window_ns=100 * US)
    assert str(error.value) == (
        "a window of 100us cuts the trace into more than 100000 pieces; use a longer one"
    )


def test_a_window_longer_than_any_trace_is_one_window(tmp_path: Path) -> None:
    fast = [
        header(instructions_per_second=2**62),
        chunk(0, [(2**62, 1, 0, 7, 1)]),
        footer([(2**62, 1, 0, 7, 1)], instructions=2**62),
    ]
    summary = summarize(TraceFile(write(tmp_path / "t", fast)), window_ns=2**63 - 1)
    assert summary.pages_per_window == (1,)
