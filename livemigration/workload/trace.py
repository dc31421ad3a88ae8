"""Recorded traces: the file format, its writer and its reader.

A trace is a stream of msgpack maps: header, chunks, footer (docs/workloads.md has the keys).
Records are columns of little-endian integers, at most `CHUNK_RECORDS` to a chunk, each chunk with a
checksum, so that neither writer nor reader ever holds more than a few chunks, and damage is found
where it is. A record says: in the time slice that begins with the instruction ``time``, ``stores``
stores went to ``page``, from byte ``first`` to byte ``last`` of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgpack
import numpy as np
import xxhash

from livemigration.workload.base import WorkloadError
from livemigration.workload.kernels import U64

SCHEMA = "predump.trace/1"
CHUNK_RECORDS = 65536
DEFAULT_RATE = 1_000_000_000
"""Instructions per second that a trace's time assumes unless told otherwise.

Roughly one instruction per nanosecond: a server core of 2 to 3 GHz at 0.3 to 0.5 instructions per
cycle, which memory-bound services reach. What a trace knows is instructions; `speed` scales.
"""

_COLUMNS: Mapping[str, str] = {
    "time": "<u8",
    "page": "<u8",
    "first": "<u2",
    "last": "<u2",
    "stores": "<u4",
}
_MOST_CACHED = 4
_LARGEST_OBJECT = CHUNK_RECORDS * 32
_LONGEST_LIST = 65536
_LARGEST_MAP = 64
_PAGE_SIZES = (4096, 16384, 65536)
_END_OF_MEMORY = 2**48
"""Addresses of a task have 48 bits."""
_MOST = 2**62
"""Instructions, and instructions per second: with room for sums of two in 64 bits."""


class TraceError(WorkloadError):
    """A trace file that cannot be used; one line with the place."""


@dataclass(frozen=True, slots=True)
class Records:
    """Stores by slice and page, in time order; all arrays have one length."""

    time: U64
    """Instruction of the slice's first store to the page, never less than the one before."""
    page: U64
    """Page number: address / page_size."""
    first: U64
    """First byte of the page that was stored to."""
    last: U64
    """Last byte."""
    stores: U64
    """How many stores."""

    def __len__(self) -> int:
        return int(self.time.size)

    @classmethod
    def none(cls) -> Self:
        """No records."""
        return cls(*(np.zeros(0, dtype=np.uint64) for _ in _COLUMNS))

    def part(self, first: int, stop: int) -> Self:
        """Records [first, stop)."""
        return type(self)(*(getattr(self, name)[first:stop] for name in _COLUMNS))

    @classmethod
    def joined(cls, parts: Sequence[Records]) -> Self:
        """All records of all parts."""
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in _COLUMNS))


@dataclass(frozen=True, slots=True)
class Header:
    """What is known before the program runs."""

    command: tuple[str, ...]
    page_size: int
    created_by: str
    instructions_per_second: int
    slice_instructions: int


@dataclass(frozen=True, slots=True)
class Footer:
    """What is known when it has ended."""

    chunks: int
    records: int
    stores: int
    pages: int
    """Distinct pages stored to."""
    instructions: int
    exit_code: int
    """Exit status of the program; negative: ended by that signal."""
    complete: bool
    """False if the recording was stopped before the program's end."""


class TraceWriter:
    """Writes a trace to an open binary file, chunk by chunk."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file = file
        self._waiting: list[Records] = []
        self._waiting_records = 0
        self._chunks = self._records = self._stores = 0
        self._pages = np.zeros(0, dtype=np.uint64)
        self._put(
            {
                "schema": SCHEMA,
                "command": list(header.command),
                "page_size": header.page_size,
                "created_by": header.created_by,
                "instructions_per_second": header.instructions_per_second,
                "slice_instructions": header.slice_instructions,
            }
        )

    def add(self, records: Records) -> None:
        """Append records, which must not be earlier than those before."""
        if not len(records):
            return
        self._waiting.append(records)
        self._waiting_records += len(records)
        if self._waiting_records >= CHUNK_RECORDS:
            self._flush(CHUNK_RECORDS)

    def finish(self, *, instructions: int, exit_code: int, complete: bool) -> Footer:
        """Write what is left and the footer."""
        self._flush(1)
        footer = Footer(
            self._chunks,
            self._records,
            self._stores,
            int(self._pages.size),
            instructions,
            exit_code,
            complete,
        )
        self._put(
            {
                "end": True,
                "chunks": footer.chunks,
                "records": footer.records,
                "stores": footer.stores,
                "pages": footer.pages,
                "instructions": footer.instructions,
                "exit_code": footer.exit_code,
                "complete": footer.complete,
            }
        )
        return footer

    def _flush(self, at_least: int) -> None:
        """Write chunks while ``at_least`` records wait."""
        if self._waiting_records < at_least:
            return
        waiting = Records.joined(self._waiting)
        at = 0
        while len(waiting) - at >= at_least:
            chunk = waiting.part(at, at + CHUNK_RECORDS)
            self._put_chunk(chunk)
            at += len(chunk)
        self._waiting = [waiting.part(at, len(waiting))]
        self._waiting_records = len(waiting) - at

    def _put_chunk(self, chunk: Records) -> None:
        columns = {
            name: getattr(chunk, name).astype(kind).tobytes() for name, kind in _COLUMNS.items()
        }
        self._put(
            {
                "chunk": self._chunks,
                "records": len(chunk),
                **columns,
                "checksum": _checksum(columns),
            }
        )
        self._chunks += 1
        self._records += len(chunk)
        self._stores += int(chunk.stores.sum())
        self._pages = np.union1d(self._pages, chunk.page)

    def _put(self, item: dict[str, Any]) -> None:
        self._file.write(msgpack.packb(item))


def _checksum(columns: Mapping[str, bytes]) -> int:
    """XXH3-64 of a chunk's columns, in the order of the format."""
    digest = xxhash.xxh3_64()
    for name in _COLUMNS:
        digest.update(columns[name])
    return digest.intdigest()


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Where a chunk lies in the file."""

    offset: int
    length: int
    first_record: int
    first_time: int


class TraceFile:
    """A trace for reading. Opening checks all of it once; chunks are then read when needed.

    Raises TraceError, with the place in the file, for what is not a whole, undamaged trace.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: OrderedDict[int, Records] = OrderedDict()
        self._chunks: list[_Chunk] = []
        self._pages: U64 = np.zeros(0, dtype=np.uint64)
        try:
            with path.open("rb") as file:
                self.header, self.footer = self._check(file)
        except OSError as error:
            raise TraceError(f"{path}: cannot read the trace: {error.strerror}") from error
        self._first_records = [chunk.first_record for chunk in self._chunks]
        self._first_times = [chunk.first_time for chunk in self._chunks]

    @property
    def pages(self) -> U64:
        """Numbers of all pages stored to, ascending, uint64[footer.pages]."""
        return self._pages

    @property
    def period(self) -> int:
        """Instructions of one run of the program, more than any record's time."""
        return self.footer.instructions + 1

    def time_of(self, record: int) -> int:
        """The time of a record, in instructions."""
        chunk = bisect_right(self._first_records, record) - 1
        return int(self._load(chunk).time[record - self._first_records[chunk]])

    def records_before(self, time: int) -> int:
        """How many records are earlier than ``time``."""
        # The last chunk that begins earlier; those after it are not earlier at all.
        chunk = bisect_right(self._first_times, time - 1) - 1
        if chunk < 0:
            return 0
        times = self._load(chunk).time
        return self._first_records[chunk] + int(np.searchsorted(times, np.uint64(time)))

    def records(self, first: int, stop: int) -> Iterator[Records]:
        """Records [first, stop), in pieces."""
        while first < stop:
            chunk = bisect_right(self._first_records, first) - 1
            start = self._first_records[chunk]
            piece = self._load(chunk).part(first - start, stop - start)
            yield piece
            first += len(piece)

    def _load(self, number: int) -> Records:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        records = self._read(self._chunks[number])
        self._cache[number] = records
        if len(self._cache) > _MOST_CACHED:
            self._cache.popitem(last=False)
        return records

    def _read(self, chunk: _Chunk) -> Records:
        """A chunk, which was sound when the trace was opened."""
        try:
            with self.path.open("rb") as file:
                file.seek(chunk.offset)
                item = msgpack.unpackb(file.read(chunk.length))
            return self._records_of(item, chunk.offset)
        except (OSError, ValueError, AttributeError, msgpack.UnpackException) as error:
            raise TraceError(
                f"{self.path}: the trace has changed since it was opened; start again, "
                f"and leave the file alone meanwhile"
            ) from error

    # -- checking

    def _check(self, file: BinaryIO) -> tuple[Header, Footer]:
        items = self._items(file)
        header = self._header(next(items, None))
        records, stores, latest = 0, 0, 0
        for offset, item, end in items:
            if "end" in item:
                footer = self._footer(item, offset, end)
                self._check_counts(footer, records, stores, latest, offset)
                return header, footer
            chunk = self._records_of(item, offset)
            if item.get("chunk") != len(self._chunks):
                raise self._damaged(offset, f"chunk {len(self._chunks)} was expected")
            self._check_chunk(chunk, latest, header.page_size, offset)
            first_time = int(chunk.time[0])
            self._chunks.append(_Chunk(offset, end - offset, records, first_time))
            self._pages = np.union1d(self._pages, chunk.page)
            records += len(chunk)
            stores += int(chunk.stores.sum())
            latest = int(chunk.time[-1])
        raise TraceError(
            f"{self.path}: the trace ends at byte {file.seek(0, 2)} without a footer; "
            f"it was cut short, record it again"
        )

    def _items(self, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any], int]]:
        """The maps of the stream, each with its place (first byte, byte after)."""
        unpacker = msgpack.Unpacker(
            file,
            max_buffer_size=4 * _LARGEST_OBJECT,
            max_array_len=_LONGEST_LIST,
            max_map_len=_LARGEST_MAP,
        )
        while True:
            offset = unpacker.tell()
            try:
                item = unpacker.unpack()
            except msgpack.OutOfData:
                return
            except (ValueError, TypeError, msgpack.UnpackException) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise self._damaged(offset, f"not msgpack ({reason})") from error
            if not isinstance(item, dict):
                raise self._damaged(offset, "a map was expected")
            yield offset, item, unpacker.tell()

    def _header(self, first: tuple[int, dict[str, Any], int] | None) -> Header:
        item = first[1] if first is not None else {}
        schema = item.get("schema")
        if schema != SCHEMA:
            said = f"its schema is {schema!r}" if schema is not None else "it has no header"
            raise TraceError(
                f"{self.path}: not a trace of `predump workload record`: {said}, not {SCHEMA!r}"
            )
        command = item.get("command")
        if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
            raise self._damaged(0, "command is not a list of words")
        header = Header(
            tuple(command),
            self._integer(item, "page_size", 0),
            str(item.get("created_by", "")),
            self._integer(item, "instructions_per_second", 0),
            self._integer(item, "slice_instructions", 0),
        )
        if header.page_size not in _PAGE_SIZES:
            raise self._damaged(0, f"page_size cannot be {header.page_size}")
        for name in ("instructions_per_second", "slice_instructions"):
            if not 0 < getattr(header, name) <= _MOST:
                raise self._damaged(0, f"{name} cannot be {getattr(header, name)}")
        return header

    def _footer(self, item: dict[str, Any], offset: int, end: int) -> Footer:
        names = ("chunks", "records", "stores", "pages", "instructions", "exit_code")
        numbers = {name: self._integer(item, name, offset) for name in names}
        footer = Footer(complete=item.get("complete") is True, **numbers)
        if self.path.stat().st_size != end:
            raise self._damaged(end, "there is more after the footer")
        return footer

    def _check_counts(
        self, footer: Footer, records: int, stores: int, latest: int, offset: int
    ) -> None:
        found = (len(self._chunks), records, stores, int(self._pages.size))
        if found != (footer.chunks, footer.records, footer.stores, footer.pages):
            raise self._damaged(offset, "the footer's counts are not those of the chunks")
        if not latest <= footer.instructions <= _MOST:
            raise self._damaged(
                offset, f"instructions = {footer.instructions} does not fit the records"
            )

    def _check_chunk(self, chunk: Records, latest: int, page_size: int, offset: int) -> None:
        times = chunk.time
        if int(times[0]) < latest or bool((times[1:] < times[:-1]).any()):
            raise self._damaged(offset, "its records are not in time order")
        if bool((chunk.last < chunk.first).any()) or int(chunk.last.max()) >= page_size:
            raise self._damaged(offset, "a record does not lie within its page")
        if int(chunk.page.max()) >= _END_OF_MEMORY // page_size:
            raise self._damaged(offset, "a page lies beyond 48-bit addresses")
        if int(chunk.stores.min()) == 0:
            raise self._damaged(offset, "a record has no stores")

    def _records_of(self, item: dict[str, Any], offset: int) -> Records:
        """The columns of a chunk, checked."""
        count = self._integer(item, "records", offset)
        if not 0 < count <= CHUNK_RECORDS:
            raise self._damaged(offset, f"a chunk cannot have {count} records")
        columns: dict[str, bytes] = {}
        for name, kind in _COLUMNS.items():
            column = item.get(name)
            if not isinstance(column, bytes) or len(column) != count * np.dtype(kind).itemsize:
                raise self._damaged(offset, f"column {name!r} is missing or has another length")
            columns[name] = column
        if item.get("checksum") != _checksum(columns):
            raise self._damaged(offset, "the checksum does not fit")
        return Records(
            *(
                np.frombuffer(columns[name], dtype=kind).astype(np.uint64)
                for name, kind in _COLUMNS.items()
            )
        )

    def _integer(self, item: dict[str, Any], name: str, offset: int) -> int:
        value = item.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._damaged(offset, f"{name!r} is missing or not an integer")
        return value

    def _damaged(self, offset: int, why: str) -> TraceError:
        return TraceError(f"{self.path}: damaged at byte {offset}: {why}; record it again")
