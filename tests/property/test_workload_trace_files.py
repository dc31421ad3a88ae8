"""Trace files: any records survive a round trip, any damage is a TraceError or does no harm."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from livemigration.workload.lackey import LackeyParser
from livemigration.workload.summary import summarize
from livemigration.workload.trace import Header, Records, TraceError, TraceFile, TraceWriter
from tests.unit.workload.harness import empty_task, make, spec
from tests.unit.workload.raw_traces import (
    RECORDS,
    Record,
    chunk,
    footer,
    good_items,
    header,
    packed,
)

NAMES = ("time", "page", "first", "last", "stores")
WHOLE = packed(good_items(RECORDS[:2], RECORDS[2:]))


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    times = sorted(draw(st.lists(st.integers(0, 2**62), max_size=30)))
    rows: list[Record] = []
    for time in times:
        first, last = sorted((draw(st.integers(0, 4095)), draw(st.integers(0, 4095))))
        page = draw(st.integers(0, 20) | st.integers(0, 2**36 - 1))
        rows.append((time, page, first, last, draw(st.integers(1, 2**32 - 1))))
    return rows


def columns(rows: list[Record]) -> Records:
    table = np.array(rows, dtype=np.uint64).reshape(-1, len(NAMES))
    return Records(*(table[:, at].copy() for at in range(len(NAMES))))


def opened(content: bytes, folder: str) -> TraceFile:
    path = Path(folder) / "t"
    path.write_bytes(content)
    return TraceFile(path)


@given(
    rows=records(),
    cuts=st.lists(st.integers(0, 30), max_size=4).map(sorted),
    command=st.lists(st.text(), min_size=1, max_size=5),
    exit_code=st.integers(-64, 255),
    complete=st.booleans(),
)
def test_what_is_written_is_read(
    rows: list[Record], cuts: list[int], command: list[str], exit_code: int, complete: bool
) -> None:
    file = io.BytesIO()
    head = Header(tuple(command), 4096, "a test", 10**9, 1000)
    writer = TraceWriter(file, head)
    for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        writer.add(columns(rows[begin:end]))
    end_of_run = rows[-1][0] if rows else 0
    written = writer.finish(instructions=end_of_run, exit_code=exit_code, complete=complete)
    with tempfile.TemporaryDirectory() as folder:
        trace = opened(file.getvalue(), folder)
        assert trace.header == head
        assert trace.footer == written
        assert (written.exit_code, written.complete) == (exit_code, complete)
        assert trace.pages.tolist() == sorted({row[1] for row in rows})
        found = list(trace.records(0, len(rows)))
        read = [
            tuple(row)
            for piece in found
            for row in zip(*(getattr(piece, name).tolist() for name in NAMES), strict=True)
        ]
        assert read == rows
        for time in {0, 1, 2**62, *(row[0] for row in rows[:5])}:
            assert trace.records_before(time) == sum(row[0] < time for row in rows)


def use(content: bytes) -> None:
    """Opens a trace and does all that is done with one."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            trace = opened(content, folder)
        except TraceError as error:
            assert "\n" not in str(error)
            assert str(error).startswith(f"{folder}/t: ")
            return
        summary = summarize(trace)
        assert len(summary.pages_per_window) <= 100_000
        workload = make(spec("trace", file=f"{folder}/t", loop=False), memory=2**22, page_size=4096)
        task = empty_task(workload)
        workload.setup(task, populate=True)
        stats = workload.run_until(task, 2**120)
        assert stats.ops == trace.footer.records
        task.release()


@given(keep=st.integers(0, len(WHOLE) - 1))
def test_cut_files_are_refused(keep: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(TraceError):
        opened(WHOLE[:keep], folder)


@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4
    )
)
def test_changed_bytes_do_no_harm(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(WHOLE)
    for place, value in changes:
        damaged[place] = value
    use(bytes(damaged))


@given(keep=st.integers(0, len(WHOLE)), garbage=st.binary(max_size=100))
@example(keep=len(packed([header()])), garbage=b"\xdd\xff\xff\xff\xff")
def test_garbage_does_no_harm(keep: int, garbage: bytes) -> None:
    use(WHOLE[:keep] + garbage)


NUMBERS = st.integers(-2, 70) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64 - 1, -(2**63)])
VALUES = st.one_of(
    NUMBERS,
    st.none(),
    st.booleans(),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.binary(max_size=40),
    st.lists(st.integers(0, 5) | st.text(max_size=3), max_size=3),
)


@given(
    which=st.integers(0, 3),
    key=st.integers(0, 8),
    value=VALUES,
    remove=st.booleans(),
)
def test_impossible_values_do_no_harm(which: int, key: int, value: Any, remove: bool) -> None:
    """One value of one map is another, of any type, or is missing."""
    items = good_items(RECORDS[:2], RECORDS[2:])
    item = items[which]
    name = list(item)[key % len(item)]
    if remove:
        del item[name]
    else:
        item[name] = value
    use(packed(items))


@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 2**64 - 1) | st.integers(0, 50),
            st.integers(0, 2**64 - 1) | st.integers(0, 50),
            st.integers(0, 2**16 - 1),
            st.integers(0, 2**16 - 1),
            st.integers(0, 2**32 - 1),
        ),
        max_size=4,
    ),
    instructions=NUMBERS,
    rate=NUMBERS,
    page_size=st.sampled_from([4096, 16384, 65536]),
)
def test_impossible_records_with_right_checksums_do_no_harm(
    rows: list[Record], instructions: int, rate: int, page_size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            trace = opened(
                packed(
                    [
                        header(instructions_per_second=rate, page_size=page_size),
                        *([chunk(0, rows)] if rows else []),
                        footer(*([rows] if rows else []), instructions=instructions),
                    ]
                ),
                folder,
            )
        except TraceError:
            return
        # Only sound ones get here.
        assert all(first <= last < page_size for _, _, first, last, _ in rows)
        assert [row[0] for row in rows] == sorted(row[0] for row in rows)
        workload = make(spec("trace", file=f"{folder}/t"), memory=2**20, page_size=65536)
        task = empty_task(workload)
        workload.setup(task, populate=True)
        assert workload.run_until(task, 2**120, max_ops=20).ops == (20 if rows else 0)
        assert summarize(trace).window_ns > 0
        task.release()


@given(
    text=st.lists(
        st.sampled_from([b"I  04,3", b" S 1f,8", b" M ff,4", b" L 1,1", b"==1== x", b"\xff", b" S"])
        | st.binary(max_size=12)
    ).map(b"\n".join),
    cuts=st.lists(st.integers(0, 300), max_size=6).map(sorted),
)
def test_lackeys_output_may_come_in_any_pieces(text: bytes, cuts: list[int]) -> None:
    whole, pieces = LackeyParser(), LackeyParser()
    expected = whole.feed(text + b"\n")
    parts = [
        pieces.feed((text + b"\n")[begin:end])
        for begin, end in zip([0, *cuts], [*cuts, None], strict=True)
    ]
    for name in ("times", "addresses", "sizes"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert joined.tolist() == getattr(expected, name).tolist()
    assert pieces.instructions == whole.instructions
