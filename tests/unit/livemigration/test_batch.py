"""Frames: the hand-written wire format is protobuf, and damage is found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemigration import batch
from livemigration.errors import DamagedFrame
from livemigration.v1 import common_pb2

PAGE = 4096
NONE = np.zeros(0, dtype=np.uint64)


_MARKS = (
    batch.encode_begin(5, 3, common_pb2.RoundBegin(final=True, core='{"ops": 1, "base": 4096}')),
    batch.encode_end(6, 3, common_pb2.RoundEnd(pages=9, final=True)),
)


def _content(frames: int, seed: int = 1) -> np.ndarray:
    content = np.random.default_rng(seed).integers(0, 256, (frames, PAGE), dtype=np.uint8)
    content[0] = 0
    return content


def _u64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def _encode(content: np.ndarray, rows: list[int], **columns: object) -> bytes:
    fields: dict[str, object] = {
        "sequence": 7,
        "round_number": 2,
        "pid": 1,
        "run_start": _u64(0x1000),
        "run_pages": _u64(len(rows)),
        "zero_start": NONE,
        "zero_pages": NONE,
    }
    return batch.encode_pages(
        content=content, rows=np.array(rows, dtype=np.int64), **(fields | columns)
    )


@given(
    sequence=st.integers(0, 2**64 - 1),
    number=st.integers(0, 2**32 - 1),
    pid=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(0, 5), max_size=6),
    zeros=st.lists(st.integers(0, 2**51 - 1), max_size=3),
)
def test_generated_code_reads_what_is_written_by_hand(
    sequence: int, number: int, pid: int, rows: list[int], zeros: list[int]
) -> None:
    content = _content(6)
    starts = [0x10_0000 + i * 2 * PAGE for i in range(len(rows))]
    message = _encode(
        content,
        rows,
        sequence=sequence,
        round_number=number,
        pid=pid,
        run_start=_u64(*starts),
        run_pages=_u64(*[1] * len(rows)),
        zero_start=_u64(*[z * PAGE for z in zeros]),
        zero_pages=_u64(*[1] * len(zeros)),
    )
    read = common_pb2.TransferFrame.FromString(message)
    assert (read.sequence, read.round, read.pid) == (sequence, number, pid)
    assert list(read.run_start) == starts
    assert list(read.zero_start) == [z * PAGE for z in zeros]
    assert read.pages == content[rows].tobytes()
    # ... and the other way: what protobuf writes of the same message is these very bytes, except
    # that it leaves out nothing that we write.
    assert common_pb2.TransferFrame.FromString(read.SerializeToString()) == read
    by_hand = batch.decode(read.SerializeToString())
    assert by_hand.sequence == sequence
    assert by_hand.run_start.tolist() == starts
    assert by_hand.pages.tobytes() == read.pages
    batch.check(by_hand, PAGE)


def test_columns_that_are_not_packed_are_read_as_well() -> None:
    message = b"\x31" + (0x2000).to_bytes(8, "little") + b"\x31" + (0x8000).to_bytes(8, "little")
    assert batch.decode(message).run_start.tolist() == [0x2000, 0x8000]


def test_begin_and_end_come_back_as_they_were_sent() -> None:
    begin = common_pb2.RoundBegin(final=True, core='{"ops": 1}')
    begin.processes.add(pid=1, live_start=[0x1000], live_pages=[3])
    frame = batch.decode(batch.encode_begin(5, 3, begin))
    assert (frame.sequence, frame.round, frame.begin, frame.end) == (5, 3, begin, None)
    end = common_pb2.RoundEnd(pages=9)
    assert batch.decode(batch.encode_end(6, 3, end)).end == end


@pytest.mark.parametrize("at", range(len(_MARKS)))
def test_one_flipped_bit_anywhere_in_a_mark_is_found(at: int) -> None:
    """It has the task's own state, of which no digest of pages says anything."""
    whole = _MARKS[at]
    (body,) = (frame.mark for frame in [batch.decode(whole)])
    first = whole.index(body)
    for bit in range(8 * len(body)):
        message = bytearray(whole)
        message[first + bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedFrame):
            batch.check(batch.decode(bytes(message)), PAGE)
    batch.check(batch.decode(whole), PAGE)


def test_one_flipped_bit_anywhere_in_the_pages_is_found() -> None:
    message = bytearray(_encode(_content(4), [1, 2, 3]))
    for at in (len(message) - 1, len(message) - PAGE, len(message) - 3 * PAGE):
        damaged = message.copy()
        damaged[at] ^= 0x10
        with pytest.raises(DamagedFrame, match="checksum"):
            batch.check(batch.decode(bytes(damaged)), PAGE)


def test_an_address_that_was_changed_is_found() -> None:
    good = batch.decode(_encode(_content(4), [1]))
    good.run_start = good.run_start + np.uint64(PAGE)
    with pytest.raises(DamagedFrame, match="checksum"):
        batch.check(good, PAGE)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"run_pages": _u64(2)}, "page bytes for"),
        ({"run_pages": _u64(1, 0)}, "different lengths"),
        ({"run_start": _u64(0x1001)}, "not a multiple of 4096"),
        ({"zero_start": _u64(0x1000)}, "different lengths"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns: dict[str, object], says: str) -> None:
    with pytest.raises(DamagedFrame, match=says):
        batch.check(batch.decode(_encode(_content(3), [1], **columns)), PAGE)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_refused_in_one_line(message: bytes) -> None:
    try:
        frame = batch.decode(message)
        batch.check(frame, PAGE)
    except DamagedFrame as error:
        assert "\n" not in str(error)


@given(st.data())
def test_a_truncated_frame_never_passes(data: st.DataObject) -> None:
    message = _encode(_content(3), [1, 2])
    cut = message[: -data.draw(st.integers(1, len(message) - 1))]
    try:
        frame = batch.decode(cut)
        batch.check(frame, PAGE)
    except DamagedFrame:
        return
    # Cut at the border of two fields it may parse: then nothing is left that could be applied.
    assert frame.run_start.size == frame.zero_start.size == frame.pages.size == 0


@pytest.mark.parametrize("counts", [(batch.MOST_ZERO_PAGES + 1,), (2**63, 2**63), (4000, 4000)])
def test_a_frame_cannot_ask_for_more_zeros_than_a_sender_ever_puts_in_one(
    counts: tuple[int, ...],
) -> None:
    """They take no room in the message, so its size does not bound what they cost."""
    starts = _u64(*(0x1000 * (i + 1) << 32 for i in range(len(counts))))
    message = _encode(_content(2), [1], zero_start=starts, zero_pages=_u64(*counts))
    with pytest.raises(DamagedFrame, match="pages of zeros; at most 4096"):
        batch.check(batch.decode(message), PAGE)


@pytest.mark.parametrize("column", ["run", "zero"])
def test_a_run_cannot_reach_the_end_of_64_bits(column: str) -> None:
    runs = {f"{column}_start": _u64(2**64 - PAGE), f"{column}_pages": _u64(2)}
    message = _encode(_content(3), [1, 2] if column == "run" else [1], **runs)
    with pytest.raises(DamagedFrame, match="an address that no process has"):
        batch.check(batch.decode(message), PAGE)


def test_counts_of_a_run_cannot_wrap_around() -> None:
    runs = {"run_start": _u64(0, PAGE), "run_pages": _u64(2**63, 2**63 + 1)}
    with pytest.raises(DamagedFrame, match="page bytes for"):
        batch.check(batch.decode(_encode(_content(3), [1], **runs)), PAGE)


# -- encoded pages


def _encode_blocks(encodings: list[int], blocks: list[bytes], **columns: object) -> bytes:
    fields: dict[str, object] = {
        "sequence": 7,
        "round_number": 2,
        "pid": 1,
        "run_start": _u64(0x1000),
        "run_pages": _u64(len(encodings)),
        "zero_start": NONE,
        "zero_pages": NONE,
        "encodings": np.array(encodings, np.uint8),
        "content_checksum": 2**63 + 5,
        "blocks": [[block] for block in blocks],
    }
    return batch.encode_blocks(**(fields | columns))  # type: ignore[arg-type]


@given(
    blocks=st.lists(st.binary(max_size=300), max_size=4),
    encodings=st.binary(max_size=9),
    checksum=st.integers(0, 2**64 - 1),
    file=st.integers(0, 2**32 - 1),
)
def test_generated_code_reads_encoded_pages_as_they_are_written_by_hand(
    blocks: list[bytes], encodings: bytes, checksum: int, file: int
) -> None:
    message = _encode_blocks(
        list(encodings), blocks, content_checksum=checksum, object_id=file, zero_start=_u64(0x9000)
    )
    read = common_pb2.TransferFrame.FromString(message)
    assert (read.object, read.pages, read.encodings) == (file, b"".join(blocks), encodings)
    if encodings:
        assert list(read.block_bytes) == [len(block) for block in blocks]
        assert read.content_checksum == checksum
    by_hand = batch.decode(read.SerializeToString())
    assert by_hand.encodings.tobytes() == encodings
    assert by_hand.block_bytes.tolist() == list(read.block_bytes)
    assert by_hand.content_checksum == read.content_checksum
    assert by_hand.pages.tobytes() == read.pages


RAW, ZSTD, DELTA = 0, 1, 3


def test_encoded_pages_that_fit_pass() -> None:
    frame = batch.decode(_encode_blocks([DELTA, RAW, ZSTD, RAW], [bytes(2 * PAGE), b"z", b""]))
    batch.check(frame, PAGE)
    assert frame.block_bytes.tolist() == [2 * PAGE, 1, 0]


@pytest.mark.parametrize(
    ("encodings", "blocks", "columns", "says"),
    [
        ([ZSTD], [b"z"], {"run_pages": _u64(2)}, "1 encodings for 2 pages"),
        ([ZSTD] * 257, [b"z"], {}, "257 encoded pages; at most 256 in a frame"),
        ([6], [b"z"], {}, "encoding 6 is unknown here"),
        ([255], [b"z"], {}, "encoding 255 is unknown here"),
        ([ZSTD], [b"z", b"y"], {}, "block sizes that are not those of its blocks"),
        ([ZSTD, DELTA], [b"z"], {}, "block sizes that are not those of its blocks"),
        ([ZSTD], [bytes(PAGE + 1)], {}, "4097 bytes for 4096 bytes of pages"),
        ([RAW, ZSTD], [bytes(PAGE - 1), b"z"], {}, "4095 bytes for 4096 bytes of pages"),
    ],
)
def test_encoded_pages_that_do_not_fit_are_refused(
    encodings: list[int], blocks: list[bytes], columns: dict[str, object], says: str
) -> None:
    with pytest.raises(DamagedFrame, match=says):
        batch.check(batch.decode(_encode_blocks(encodings, blocks, **columns)), PAGE)


@pytest.mark.parametrize("field", ["encodings", "block_bytes", "content_checksum"])
def test_what_says_how_to_decode_is_under_the_checksum(field: str) -> None:
    frame = batch.decode(_encode_blocks([ZSTD, 2], [b"zz", b"yy"]))
    batch.check(frame, PAGE)
    value = {"encodings": np.array([2, ZSTD], np.uint8), "block_bytes": _u64(1, 3)}.get(field, 4)
    setattr(frame, field, value)
    with pytest.raises(DamagedFrame, match="checksum"):
        batch.check(frame, PAGE)
