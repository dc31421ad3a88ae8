"""The trace format: what is written can be read, and what is damaged is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from livemigration.workload import WorkloadError
from livemigration.workload.trace import (
    CHUNK_RECORDS,
    Header,
    Records,
    TraceError,
    TraceFile,
    TraceWriter,
)
from tests.unit.workload.harness import PERL
from tests.unit.workload.raw_traces import (
    RECORDS,
    Record,
    chunk,
    footer,
    good_items,
    header,
    packed,
    write,
)

HEADER = Header(("sort", "a file"), 4096, "by hand", 1_000_000, 100)


def columns(rows: list[Record]) -> Records:
    return Records(*(np.array(column, dtype=np.uint64) for column in zip(*rows, strict=True)))


def rows_of(trace: TraceFile, first: int = 0, stop: int | None = None) -> list[Record]:
    found: list[Record] = []
    for piece in trace.records(first, trace.footer.records if stop is None else stop):
        found += zip(
            *(
                getattr(piece, name).tolist()
                for name in ("time", "page", "first", "last", "stores")
            ),
            strict=True,
        )
    return found


def write_rows(path: Path, *parts: list[Record]) -> Path:
    with path.open("wb") as file:
        writer = TraceWriter(file, HEADER)
        for part in parts:
            writer.add(columns(part) if part else Records.none())
        writer.finish(instructions=1000, exit_code=0, complete=True)
    return path


def test_a_file_written_by_hand_is_read(tmp_path: Path) -> None:
    trace = TraceFile(write(tmp_path / "t", good_items(RECORDS[:2], RECORDS[2:])))
    assert trace.header.command == ("sort", "a file")
    assert trace.header.created_by == "by hand"
    assert trace.header.page_size == 4096
    assert trace.header.instructions_per_second == 1_000_000
    assert trace.header.slice_instructions == 100
    assert trace.footer.stores == 42
    assert trace.footer.instructions == 1000
    assert trace.footer.complete is True
    assert trace.pages.tolist() == [0x4000, 0x4001, 0x7FFF0]
    assert rows_of(trace) == RECORDS


def test_the_writer_writes_what_one_would_write_by_hand(tmp_path: Path) -> None:
    written = write_rows(tmp_path / "t", RECORDS[:1], [], RECORDS[1:]).read_bytes()
    unpacker = msgpack.Unpacker()
    unpacker.feed(written)
    assert list(unpacker) == good_items(RECORDS)


def test_a_trace_without_any_store_is_a_trace(tmp_path: Path) -> None:
    trace = TraceFile(write_rows(tmp_path / "t"))
    assert trace.footer.records == 0
    assert rows_of(trace) == []
    assert trace.records_before(10**9) == 0


def test_how_the_program_ended_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with path.open("wb") as file:
        TraceWriter(file, HEADER).finish(instructions=5, exit_code=-9, complete=False)
    assert TraceFile(path).footer.exit_code == -9
    assert TraceFile(path).footer.complete is False


COUNT = 2 * CHUNK_RECORDS + 1000


@pytest.fixture(scope="module")
def long_trace(tmp_path_factory: pytest.TempPathFactory) -> TraceFile:
    count = np.arange(COUNT, dtype=np.uint64)
    zero = np.zeros_like(count)
    everything = Records(count // np.uint64(3), count % np.uint64(777), zero, zero, zero + 1)
    path = tmp_path_factory.mktemp("traces") / "long"
    with path.open("wb") as file:
        writer = TraceWriter(file, HEADER)
        for at in range(0, COUNT, 10_007):
            writer.add(everything.part(at, at + 10_007))
        writer.finish(instructions=COUNT, exit_code=0, complete=True)
    return TraceFile(path)


class TestManyChunks:
    """Three chunks, the last one not full; added in pieces that do not fit chunks."""

    def test_all_is_there(self, long_trace: TraceFile) -> None:
        assert (long_trace.footer.chunks, long_trace.footer.records) == (3, COUNT)
        assert long_trace.pages.tolist() == list(range(777))
        pages = np.concatenate([piece.page for piece in long_trace.records(0, COUNT)])
        assert (pages == np.arange(COUNT) % 777).all()

    @pytest.mark.parametrize(
        ("first", "stop"),
        [(0, 1), (CHUNK_RECORDS - 1, CHUNK_RECORDS + 2), (CHUNK_RECORDS * 2, COUNT), (5, 5)],
    )
    def test_any_part_can_be_read(self, long_trace: TraceFile, first: int, stop: int) -> None:
        assert [row[:2] for row in rows_of(long_trace, first, stop)] == [
            (i // 3, i % 777) for i in range(first, stop)
        ]

    @pytest.mark.parametrize(
        "time", [0, 1, 2, 21844, 21845, 21846, 43690, 43691, COUNT // 3, COUNT, 10**12]
    )
    def test_records_are_found_by_time(self, long_trace: TraceFile, time: int) -> None:
        assert long_trace.records_before(time) == min(3 * time, COUNT)

    def test_times_are_found_by_record(self, long_trace: TraceFile) -> None:
        for record in (0, 1, CHUNK_RECORDS - 1, CHUNK_RECORDS, 100, COUNT - 1):
            assert long_trace.time_of(record) == record // 3


def refused(path: Path) -> str:
    """What is said of a file, without its name."""
    with pytest.raises(TraceError) as error:
        TraceFile(path)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def test_a_trace_error_is_bad_input() -> None:
    assert issubclass(TraceError, WorkloadError)
    assert issubclass(WorkloadError, ValueError)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == "cannot read the trace: No such file or directory"
    assert refused(tmp_path) == "cannot read the trace: Is a directory"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            b"",
            "not a trace of `predump workload record`: it has no header, not 'predump.trace/1'",
        ),
        (
            packed([header(schema="predump.trace/2")]),
            "not a trace of `predump workload record`: its schema is 'predump.trace/2', "
            "not 'predump.trace/1'",
        ),
        (
            packed([{"hello": 1}]),
            "not a trace of `predump workload record`: it has no header, not 'predump.trace/1'",
        ),
        (b"#!/bin/sh\necho\n", "damaged at byte 0: a map was expected; record it again"),
        (
            packed([header()]),
            "the trace ends at byte {size} without a footer; it was cut short, record it again",
        ),
        (
            packed(good_items(RECORDS)[:-1]),
            "the trace ends at byte {size} without a footer; it was cut short, record it again",
        ),
        (
            packed(good_items(RECORDS))[:-1],
            "the trace ends at byte {size} without a footer; it was cut short, record it again",
        ),
    ],
)
def test_what_is_no_whole_trace(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    assert refused(path) == line.format(size=len(content))


TIMES_BACK = [RECORDS[2], RECORDS[0]]


@pytest.mark.parametrize(
    ("items", "damaged", "why"),
    [
        ([header(page_size=1000)], 0, "page_size cannot be 1000"),
        ([header(page_size="4096")], 0, "'page_size' is missing or not an integer"),
        ([header(instructions_per_second=0)], 0, "instructions_per_second cannot be 0"),
        ([header(slice_instructions=-1)], 0, "slice_instructions cannot be -1"),
        ([header(instructions_per_second=True)], 0, "'instructions_per_second' is missing or not"),
        ([header(command="sort")], 0, "command is not a list of words"),
        ([header(), 7], 1, "a map was expected"),
        ([header(), chunk(1, RECORDS)], 1, "chunk 0 was expected"),
        ([header(), chunk(0, RECORDS, checksum=1)], 1, "the checksum does not fit"),
        ([header(), chunk(0, RECORDS, time=b"")], 1, "column 'time' is missing or has another le"),
        ([header(), chunk(0, RECORDS, page=None)], 1, "column 'page' is missing or has another le"),
        ([header(), chunk(0, [])], 1, "a chunk cannot have 0 records"),
        ([header(), chunk(0, RECORDS, records=-1)], 1, "a chunk cannot have -1 records"),
        ([header(), chunk(0, RECORDS, records=65537)], 1, "a chunk cannot have 65537 records"),
        ([header(), chunk(0, TIMES_BACK)], 1, "its records are not in time order"),
        ([header(), chunk(0, RECORDS), chunk(1, RECORDS)], 2, "its records are not in time order"),
        ([header(), chunk(0, [(1, 1, 9, 8, 1)])], 1, "a record does not lie within its page"),
        ([header(), chunk(0, [(1, 1, 0, 4096, 1)])], 1, "a record does not lie within its page"),
        ([header(), chunk(0, [(1, 2**36, 0, 0, 1)])], 1, "a page lies beyond 48-bit addresses"),
        ([header(), chunk(0, [(1, 2**64 - 1, 0, 0, 1)])], 1, "a page lies beyond 48-bit addresse"),
        ([header(), chunk(0, [(1, 1, 0, 0, 0)])], 1, "a record has no stores"),
        ([header(), footer(chunks=1)], 1, "the footer's counts are not those of the chunks"),
        ([header(), footer(stores=1)], 1, "the footer's counts are not those of the chunks"),
        ([header(), footer(pages=1)], 1, "the footer's counts are not those of the chunks"),
        ([header(), footer(exit_code=None)], 1, "'exit_code' is missing or not an integer"),
        ([header(), footer(instructions=-1)], 1, "instructions = -1 does not fit the records"),
        (
            [header(), footer(instructions=2**64 - 1)],
            1,
            "instructions = 18446744073709551615 does not fit the records",
        ),
        (
            [header(), chunk(0, RECORDS), footer(RECORDS, instructions=998)],
            2,
            "instructions = 998 does not fit the records",
        ),
        ([header(), footer(), header()], 2, "there is more after the footer"),
    ],
)
def test_damage_is_found_where_it_is(
    tmp_path: Path, items: list[Any], damaged: int, why: str
) -> None:
    """``damaged`` is the number of the map whose first byte the message must name."""
    line = refused(write(tmp_path / "t", items))
    assert line.startswith(f"damaged at byte {len(packed(items[:damaged]))}: {why}")
    assert line.endswith("; record it again")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xc1",  # never used in msgpack
        b"\x81\xa1\xff\x00",  # a key that is not UTF-8
        b"\x81\x90\x00",  # a list as key
        b"\x81\x01\x02",  # a number as key
        b"\xdd\xff\xff\xff\xff",  # a list of four thousand million
        b"\xdf\xff\xff\xff\xff",  # a map of as many
        b"\xc6\xff\xff\xff\xff",  # as many bytes
        b"\x91" * 5000,  # lists in lists in lists
        b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # an impossible time
    ],
)
def test_what_is_not_msgpack(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "t"
    path.write_bytes(packed([header()]) + garbage)
    line = refused(path)
    assert line.startswith(("damaged at byte ", "the trace ends at byte "))


@pytest.mark.parametrize("content", [b"", b"\x00" * 3000, packed([header(), footer()])])
def test_a_trace_that_changes_while_it_is_used(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "t", good_items(RECORDS))
    trace = TraceFile(path)
    path.write_bytes(content)
    with pytest.raises(TraceError) as error:
        rows_of(trace)
    assert str(error.value).startswith(f"{path}: the trace has changed since it was opened; ")


def test_a_trace_that_vanishes_while_it_is_used(tmp_path: Path) -> None:
    path = write(tmp_path / "t", good_items(RECORDS))
    trace = TraceFile(path)
    path.unlink()
    with pytest.raises(TraceError, match="has changed since it was opened"):
        trace.time_of(0)


def test_the_recording_in_the_repository_is_sound() -> None:
    trace = TraceFile(PERL)
    assert trace.header.command[0] == "perl"
    assert trace.footer.complete
    assert trace.footer.pages == trace.pages.size > 100
