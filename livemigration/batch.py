"""Frames of the transfer stream: page batches of about 1 MiB and the marks around a round.

A frame is the protobuf message `TransferFrame` (proto/livemigration/v1/common.proto). Frames that
carry pages are written and read by hand, byte for byte as protobuf would, because the generated
code copies the page block more than once: the sender gathers pages straight from the frames of
physical memory into the message's own bytes, and the receiver uses the block where it lies in the
message received. A test holds the hand-written encoding and the generated one equal.

The checksum is XXH3-64 over the run columns, the encodings and the page block, so that a batch
damaged or mixed up on its way is refused before any of its pages is applied. Pages that are encoded
(`livemigration.encoding`) have a second one, over their bytes once decoded. In a frame that opens
or closes a round it is over that message, which has what a task is beside its memory: no digest of
pages would show a bit of it that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from livemigration.digest import gather_pages, new_bytes
from livemigration.errors import DamagedFrame
from livemigration.v1 import common_pb2

U64 = NDArray[np.uint64]

BATCH_BYTES = 1 << 20
"""Page bytes in one frame: gRPC in Python is fastest near 1 MiB (docs/benchmarks.md)."""

MOST_ZERO_PAGES = 4096
"""Pages of zeros that one frame may name: they take no room in it, but they do at the receiver."""

_NO_ADDRESS = 1 << 63
"""Beyond all addresses of processes; runs that begin below it never reach the end of 64 bits."""

_BLOCK_ENCODINGS = 6
"""PageEncodings that a frame may have: all but ZERO, which has columns of its own."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


def _empty() -> U64:
    return np.zeros(0, dtype=np.uint64)


def _no_bytes() -> NDArray[np.uint8]:
    return np.zeros(0, dtype=np.uint8)


def most_pages(page_size: int) -> int:
    """Pages with content in one frame of a sender, at most."""
    return max(1, BATCH_BYTES // page_size)


@dataclass(slots=True)
class Frame:
    """One frame as received. `pages` is uint8[n], a view into the message: n * page_size bytes, or
    the blocks of encoded pages, with an encoding (uint8) for each page.
    """

    sequence: int = 0
    round: int = 0
    checksum: int = 0
    pid: int = 0
    object_id: int = 0  # not 0: pages of this file, at offsets
    run_start: U64 = field(default_factory=_empty)
    run_pages: U64 = field(default_factory=_empty)
    zero_start: U64 = field(default_factory=_empty)
    zero_pages: U64 = field(default_factory=_empty)
    begin: common_pb2.RoundBegin | None = None
    end: common_pb2.RoundEnd | None = None
    mark: bytes = b""  # of these two, the one that there is, as it came
    encodings: NDArray[np.uint8] = field(default_factory=_no_bytes)
    block_bytes: U64 = field(default_factory=_empty)
    content_checksum: int = 0
    pages: NDArray[np.uint8] = field(default_factory=_no_bytes)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(tag: int, value: int) -> bytes:
    return _varint(tag << 3 | _VARINT) + _varint(value) if value else b""


def _fixed64(tag: int, value: int) -> bytes:
    return _varint(tag << 3 | _FIXED64) + value.to_bytes(8, "little")


def _column(tag: int, values: U64) -> bytes:
    if values.size == 0:
        return b""
    raw = values.astype("<u8", copy=False).tobytes()
    return _varint(tag << 3 | _BYTES) + _varint(len(raw)) + raw


def checksum(
    run_start: U64,
    run_pages: U64,
    zero_start: U64,
    zero_pages: U64,
    pages: NDArray[np.uint8],
    encoded: bytes = b"",
) -> int:
    """XXH3-64 of the four columns (as little-endian uint64), `encoded` (see `_encoded`) and the
    page block."""
    state = xxhash.xxh3_64()
    for column in (run_start, run_pages, zero_start, zero_pages):
        if column.size:
            state.update(column.astype("<u8", copy=False).tobytes())
    state.update(encoded)
    if pages.size:
        state.update(pages.data)
    return state.intdigest()


def _encoded(encodings: NDArray[np.uint8], block_bytes: U64, content_checksum: int) -> bytes:
    """What the checksum covers of fields 12 to 14; nothing if the pages are not encoded."""
    if encodings.size == 0:
        return b""
    sizes = block_bytes.astype("<u8", copy=False).tobytes()
    return encodings.tobytes() + sizes + content_checksum.to_bytes(8, "little")


def encode_pages(
    *,
    sequence: int,
    round_number: int,
    pid: int,
    run_start: U64,
    run_pages: U64,
    zero_start: U64,
    zero_pages: U64,
    content: NDArray[np.uint8],
    rows: NDArray[np.int64],
    object_id: int = 0,
) -> bytes:
    """A frame with the pages ``content[rows]`` (uint8[frames, page_size], int64[n]) for the runs
    given: of a process, or at offsets of the file ``object_id``.

    The pages are copied once, from physical memory into the message.
    """
    head = _Head(sequence, round_number, pid, run_start, run_pages, zero_start, zero_pages)
    message, pages = head.message(object_id, int(rows.size) * int(content.shape[1]))
    if pages.size:
        gather_pages(content, rows, pages)
    head.seal(checksum(run_start, run_pages, zero_start, zero_pages, pages))
    return message


def encode_blocks(
    *,
    sequence: int,
    round_number: int,
    pid: int,
    run_start: U64,
    run_pages: U64,
    zero_start: U64,
    zero_pages: U64,
    encodings: NDArray[np.uint8],
    content_checksum: int,
    blocks: Sequence[Sequence[Any]],
    object_id: int = 0,
) -> bytes:
    """A frame with pages that are encoded already.

    encodings: uint8[n], of each page, or uint8[0] if all are raw; blocks: one for each encoding
    that there is, ascending, each as buffers to be written one after the other; content_checksum:
    XXH3-64 of the pages before they were encoded.
    """
    block_bytes = np.zeros(0, np.uint64)
    if encodings.size:
        sizes = [sum(memoryview(part).nbytes for part in parts) for parts in blocks]
        block_bytes = np.array(sizes, dtype=np.uint64)
    parts = [np.frombuffer(part, dtype=np.uint8) for block in blocks for part in block]
    head = _Head(sequence, round_number, pid, run_start, run_pages, zero_start, zero_pages)
    message, space = head.message(
        object_id, sum(part.size for part in parts), encodings, block_bytes, content_checksum
    )
    if parts:
        np.concatenate(parts, out=space)
    encoded = _encoded(encodings, block_bytes, content_checksum)
    head.seal(checksum(run_start, run_pages, zero_start, zero_pages, space, encoded))
    return message


class _Head:
    """All of a frame before its page block, written by hand."""

    def __init__(
        self,
        sequence: int,
        round_number: int,
        pid: int,
        run_start: U64,
        run_pages: U64,
        zero_start: U64,
        zero_pages: U64,
    ) -> None:
        start = _number(1, sequence) + _number(2, round_number)
        # The checksum is known only after the pages are in place: leave its eight bytes open.
        self._checksum_at = len(start) + 1
        self._bytes = (
            start
            + _fixed64(3, 0)
            + _number(5, pid)
            + _column(6, run_start)
            + _column(7, run_pages)
            + _column(9, zero_start)
            + _column(10, zero_pages)
        )
        self._space = _no_bytes()

    def message(
        self,
        object_id: int,
        size: int,
        encodings: NDArray[np.uint8] | None = None,
        block_bytes: U64 | None = None,
        content_checksum: int = 0,
    ) -> tuple[bytes, NDArray[np.uint8]]:
        """The whole message, and the room for `size` bytes of pages in it, to be filled."""
        head = self._bytes + _number(11, object_id)
        if encodings is not None and block_bytes is not None and encodings.size:
            head += _varint(12 << 3 | _BYTES) + _varint(encodings.size) + encodings.tobytes()
            head += _column(13, block_bytes) + _fixed64(14, content_checksum)
        if size:
            head += _varint(15 << 3 | _BYTES) + _varint(size)
        message, self._space = new_bytes(len(head) + size)
        self._space[: len(head)] = np.frombuffer(head, dtype=np.uint8)
        return message, self._space[len(head) :]

    def seal(self, value: int) -> None:
        """Writes the checksum: the last thing that changes in the message."""
        at = self._checksum_at
        self._space[at : at + 8] = np.frombuffer(value.to_bytes(8, "little"), dtype=np.uint8)


def encode_begin(sequence: int, round_number: int, begin: common_pb2.RoundBegin) -> bytes:
    """The frame that opens a round."""
    body = begin.SerializeToString(deterministic=True)
    return common_pb2.TransferFrame(
        sequence=sequence, round=round_number, begin=begin, checksum=xxhash.xxh3_64_intdigest(body)
    ).SerializeToString(deterministic=True)


def encode_end(sequence: int, round_number: int, end: common_pb2.RoundEnd) -> bytes:
    """The frame that closes a round."""
    body = end.SerializeToString(deterministic=True)
    return common_pb2.TransferFrame(
        sequence=sequence, round=round_number, end=end, checksum=xxhash.xxh3_64_intdigest(body)
    ).SerializeToString(deterministic=True)


def _read_varint(buffer: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    for _ in range(_MAX_VARINT_BYTES):
        if at >= len(buffer):
            raise DamagedFrame("a frame of the transfer stream ends in the middle of a number")
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise DamagedFrame("a frame of the transfer stream has a number of more than 64 bits")


def _fields(buffer: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The top-level fields of a protobuf message: (field number, number or bytes)."""
    at = 0
    while at < len(buffer):
        key, at = _read_varint(buffer, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _read_varint(buffer, at)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            size, at = _read_varint(buffer, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise DamagedFrame(f"a frame of the transfer stream has wire type {wire}")
        if at + size > len(buffer):
            raise DamagedFrame("a frame of the transfer stream is cut short")
        body = buffer[at : at + size]
        at += size
        if wire == _BYTES:
            yield key >> 3, body
        else:
            yield key >> 3, int.from_bytes(body, "little")


def _append(column: U64, value: int | memoryview) -> U64:
    """A repeated fixed64, packed (as we write it) or element by element (as protobuf allows)."""
    if isinstance(value, int):
        more = np.array([value], dtype=np.uint64)
    elif len(value) % 8:
        raise DamagedFrame("a column of a frame is not a whole number of 64-bit values")
    else:
        more = np.frombuffer(value, dtype="<u8").astype(np.uint64, copy=False)
    return more if column.size == 0 else np.concatenate((column, more))


def _need_bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise DamagedFrame("a frame of the transfer stream has a number where bytes belong")
    return value


def _need_number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise DamagedFrame("a frame of the transfer stream has bytes where a number belongs")
    return value


def decode(message: bytes) -> Frame:
    """Reads one frame. `DamagedFrame` if it is not one; its checksum is not checked here."""
    frame = Frame()
    for number, value in _fields(memoryview(message)):
        match number:
            case 1:
                frame.sequence = _need_number(value)
            case 2:
                frame.round = _need_number(value)
            case 3:
                frame.checksum = _need_number(value)
            case 4:
                frame.begin = common_pb2.RoundBegin()
                frame.mark = _parse(frame.begin, _need_bytes(value))
            case 5:
                frame.pid = _need_number(value)
            case 6:
                frame.run_start = _append(frame.run_start, value)
            case 7:
                frame.run_pages = _append(frame.run_pages, value)
            case 8:
                frame.end = common_pb2.RoundEnd()
                frame.mark = _parse(frame.end, _need_bytes(value))
            case 9:
                frame.zero_start = _append(frame.zero_start, value)
            case 10:
                frame.zero_pages = _append(frame.zero_pages, value)
            case 11:
                frame.object_id = _need_number(value)
            case 12:
                frame.encodings = np.frombuffer(_need_bytes(value), dtype=np.uint8)
            case 13:
                frame.block_bytes = _append(frame.block_bytes, value)
            case 14:
                frame.content_checksum = _need_number(value)
            case 15:
                frame.pages = np.frombuffer(_need_bytes(value), dtype=np.uint8)
            case _:
                pass  # a newer peer may send more
    return frame


def _parse(message: common_pb2.RoundBegin | common_pb2.RoundEnd, body: memoryview) -> bytes:
    whole = bytes(body)
    try:
        message.ParseFromString(whole)
        return whole
    except Exception as error:  # protobuf's DecodeError lives in different modules by version
        raise DamagedFrame(f"a frame of the transfer stream does not parse: {error}") from error


def check(frame: Frame, page_size: int) -> None:
    """Raises `DamagedFrame` unless checksum, columns and page block agree with each other."""
    if frame.begin is not None or frame.end is not None:
        _check_sum(frame, xxhash.xxh3_64_intdigest(frame.mark))
        return
    if frame.run_start.size != frame.run_pages.size:
        raise DamagedFrame(f"frame {frame.sequence}: run columns of different lengths")
    if frame.zero_start.size != frame.zero_pages.size:
        raise DamagedFrame(f"frame {frame.sequence}: zero columns of different lengths")
    _check_sizes(frame, page_size)
    if frame.zero_start.size:
        zeros = int(frame.zero_pages.sum())
        if zeros > MOST_ZERO_PAGES or int(frame.zero_pages.max()) > MOST_ZERO_PAGES:
            raise DamagedFrame(
                f"frame {frame.sequence}: {zeros} pages of zeros; "
                f"at most {MOST_ZERO_PAGES} in a frame"
            )
    for starts in (frame.run_start, frame.zero_start):
        bits = int(np.bitwise_or.reduce(starts)) if starts.size else 0
        if bits % page_size:
            raise DamagedFrame(
                f"frame {frame.sequence}: an address is not a multiple of {page_size}"
            )
        if bits >= _NO_ADDRESS:
            raise DamagedFrame(f"frame {frame.sequence}: an address that no process has")
    found = checksum(
        frame.run_start,
        frame.run_pages,
        frame.zero_start,
        frame.zero_pages,
        frame.pages,
        _encoded(frame.encodings, frame.block_bytes, frame.content_checksum),
    )
    _check_sum(frame, found)


def _check_sum(frame: Frame, found: int) -> None:
    if found != frame.checksum:
        raise DamagedFrame(
            f"frame {frame.sequence}: checksum {found:016x} of what arrived is not the "
            f"{frame.checksum:016x} that was sent"
        )


def _check_sizes(frame: Frame, page_size: int) -> None:
    """That the page block has what the runs, the encodings and the block sizes say."""
    size = frame.pages.size
    # Added up by Python: hostile counts do not wrap around.
    pages = sum(frame.run_pages.tolist())
    if frame.encodings.size == 0:
        if pages * page_size != size or frame.block_bytes.size:
            raise DamagedFrame(
                f"frame {frame.sequence}: {size} page bytes for {pages} pages of {page_size}"
            )
        return
    if pages != frame.encodings.size:
        raise DamagedFrame(
            f"frame {frame.sequence}: {frame.encodings.size} encodings for {pages} pages"
        )
    if pages > most_pages(page_size):
        raise DamagedFrame(
            f"frame {frame.sequence}: {pages} encoded pages; at most {most_pages(page_size)} "
            "in a frame"
        )
    counts = np.bincount(frame.encodings)
    if counts.size > _BLOCK_ENCODINGS:
        raise DamagedFrame(f"frame {frame.sequence}: encoding {counts.size - 1} is unknown here")
    here = np.flatnonzero(counts)
    sizes = frame.block_bytes.tolist()
    limits = (counts[here] * page_size).tolist()
    if len(sizes) != len(limits) or sum(sizes) != size:
        raise DamagedFrame(f"frame {frame.sequence}: block sizes that are not those of its blocks")
    for kind, block, limit in zip(here.tolist(), sizes, limits, strict=True):
        if block > limit or (kind == common_pb2.PAGE_ENCODING_RAW and block != limit):
            raise DamagedFrame(
                f"frame {frame.sequence}: a block of {block} bytes for {limit} bytes of pages"
            )
