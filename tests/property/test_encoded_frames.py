"""Any pages, in any encoding: the destination gets the source's bytes, or refuses the frame."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from livemigration import batch
from livemigration.costs import CostSpec
from livemigration.encoding.decoder import Decoder
from livemigration.encoding.encoder import EncodedFrame, Encoder, build_encoder
from livemigration.errors import DamagedFrame
from livemigration.packing import pack
from livemigration.spec import (
    AutoEncodingSpec,
    DeltaEncodingSpec,
    EncodingSpec,
    Lz4EncodingSpec,
    ZstdEncodingSpec,
)
from livemigration.v1 import common_pb2

Bytes = NDArray[np.uint8]

KINDS: dict[str, EncodingSpec] = {
    "zstd": ZstdEncodingSpec(level=3),
    "lz4": Lz4EncodingSpec(),
    "delta": DeltaEncodingSpec(),
    "delta-zstd": DeltaEncodingSpec(codec="zstd"),
    "delta-lz4": DeltaEncodingSpec(codec="lz4"),
    "auto": AutoEncodingSpec(),
}
PAGE_SIZES = (4096, 16384, 65536)
PAGES = 8
CACHE = 5  # fewer than there are pages: some are driven out


class Wire:
    """A source's memory, its encoder, and the decoder at the other end."""

    def __init__(self, kind: str, page_size: int, bandwidth: int) -> None:
        self.page_size = page_size
        encoder = build_encoder(
            KINDS[kind],
            CostSpec(),
            bandwidth=bandwidth,
            page_size=page_size,
            memory_pages=CACHE,
        )
        assert encoder is not None
        self.encoder: Encoder = encoder
        self.decoder = Decoder(page_size, encoder.cache_pages)
        self.content = np.zeros((PAGES + 1, page_size), np.uint8)
        self.sequence = 0

    def encode(self, numbers: list[int], round_number: int, *, frozen: bool) -> EncodedFrame:
        """A frame with these pages as they are now."""
        self.sequence += 1
        rows = np.array(numbers, np.int64) + 1
        spread = np.zeros(PAGES, np.int64)
        spread[numbers] = rows
        first = numbers[0]
        packing = pack(
            self.content,
            np.array(numbers, np.uint64) * np.uint64(self.page_size),
            spread[first:],
            np.zeros(PAGES - first, np.uint64),
        )
        pages = self.content[packing.rows].reshape(-1)
        return self.encoder.encode(
            packing,
            pages,
            sequence=self.sequence,
            round_number=round_number,
            pid=1,
            one_after_other=frozen,
        )

    def decode(self, message: bytes) -> tuple[batch.Frame, Bytes]:
        """What the destination makes of a frame, which it remembers."""
        frame = batch.decode(message)
        batch.check(frame, self.page_size)
        pages = self.decoder.decode(frame)
        self.decoder.remember(frame, pages)
        return frame, pages


def numbers_of(frame: batch.Frame, page_size: int) -> Iterator[int]:
    """The pages of a frame's runs by number."""
    for start, count in zip(frame.run_start.tolist(), frame.run_pages.tolist(), strict=True):
        yield from range(start // page_size, start // page_size + count)


@st.composite
def stores(draw: st.DrawFn, page_size: int) -> tuple[int, int, bytes]:
    """(page, offset, bytes) of a store: a few bytes, or a whole page of some kind."""
    page = draw(st.integers(0, PAGES - 1))
    kind = draw(st.sampled_from(["few", "zero", "random", "text", "words"]))
    if kind == "few":
        data = draw(st.binary(min_size=1, max_size=64))
        return page, draw(st.integers(0, page_size - len(data))), data
    made = np.random.default_rng(draw(st.integers(0, 2**16)))
    if kind == "zero":
        return page, 0, bytes(page_size)
    if kind == "random":
        return page, 0, made.bytes(page_size)
    if kind == "text":
        return page, 0, made.integers(97, 105, page_size, dtype=np.uint8).tobytes()
    words = made.integers(0, 2**63, page_size // 8) * (made.random(page_size // 8) < 0.5)
    return page, 0, words.tobytes()


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_pages_arrive_as_they_were_sent(kind: str, page_size: int) -> None:
    @settings(max_examples=max(1, settings().max_examples // 5))
    @given(
        st.sampled_from([10**6, 10**9, 10**10]),
        st.lists(
            st.tuples(
                st.lists(stores(page_size), max_size=6),
                st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=PAGES, unique=True),
                st.integers(0, 1),
                st.booleans(),
            ),
            min_size=1,
            max_size=6,
        ),
    )
    def holds(
        bandwidth: int,
        frames: list[tuple[list[tuple[int, int, bytes]], list[int], int, bool]],
    ) -> None:
        wire = Wire(kind, page_size, bandwidth)
        round_number = 0
        for changes, numbers, more, frozen in frames:
            round_number += more
            for page, at, data in changes:
                wire.content[page + 1, at : at + len(data)] = np.frombuffer(data, np.uint8)
            made = wire.encode(sorted(numbers), round_number, frozen=frozen)
            frame, pages = wire.decode(made.message)
            sent = [number + 1 for number in numbers_of(frame, page_size)]
            assert pages.tobytes() == wire.content[sent].tobytes()
            zero = common_pb2.PAGE_ENCODING_ZERO
            assert sum(made.tally.pages) - made.tally.pages[zero] == len(sent)
            assert made.tally.pages[zero] == len(numbers) - len(sent)
            assert sum(made.tally.bytes) == frame.pages.size <= len(sent) * page_size

    holds()


# -- hostile frames


def seal(frame: common_pb2.TransferFrame) -> bytes:
    """The frame with the checksum that common.proto asks for."""
    columns = (frame.run_start, frame.run_pages, frame.zero_start, frame.zero_pages)
    whole = b"".join(np.array(column, dtype="<u8").tobytes() for column in columns)
    if frame.encodings:
        whole += frame.encodings + np.array(frame.block_bytes, dtype="<u8").tobytes()
        whole += frame.content_checksum.to_bytes(8, "little")
    frame.checksum = xxhash.xxh3_64_intdigest(whole + frame.pages)
    return frame.SerializeToString()


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """A frame of any encodings, sizes and bytes, with a checksum that is right."""
    count = draw(st.integers(1, 6))
    kinds = draw(st.lists(st.integers(0, 7), min_size=count, max_size=count))
    blocks = [
        draw(st.one_of(st.binary(max_size=60), st.binary(min_size=4096, max_size=4096)))
        for _ in sorted(set(kinds))
    ]
    frame = common_pb2.TransferFrame(
        sequence=1,
        pid=1,
        run_start=[0],
        run_pages=[draw(st.sampled_from([count, count + 1, 2**63, 2**64 - 1]))],
        encodings=bytes(kinds),
        block_bytes=[
            draw(st.sampled_from([len(block), 0, 2**64 - 1, len(block) + 1])) for block in blocks
        ],
        content_checksum=draw(st.integers(0, 2**64 - 1)),
        pages=b"".join(blocks),
    )
    return seal(frame)


def refused(wire: Wire, message: bytes) -> bool:
    try:
        wire.decode(message)
    except DamagedFrame as error:
        assert str(error) and "\n" not in str(error)
        return True
    return False


@given(hostile())
def test_a_hostile_frame_is_refused_in_one_line(message: bytes) -> None:
    wire = Wire("delta", 4096, 10**9)
    wire.content[1:] = np.random.default_rng(1).integers(0, 256, (PAGES, 4096), dtype=np.uint8)
    wire.decode(wire.encode(list(range(PAGES)), 0, frozen=False).message)
    assert refused(wire, message)


@st.composite
def delta_blocks(draw: st.DrawFn) -> bytes:
    """Runs of any lengths: a block of deltas of two pages that may or may not be one."""
    counts = draw(st.lists(st.integers(0, 3), min_size=2, max_size=2))
    if draw(st.booleans()):
        counts[0] = draw(st.sampled_from([4, 600, 65535]))
    runs = draw(st.integers(0, 7)) if draw(st.booleans()) else min(sum(counts), 9)
    pairs = [draw(st.sampled_from([0, 1, 2, 511, 512, 513, 65535])) for _ in range(2 * runs)]
    words = draw(st.one_of(st.just(sum(pairs[1::2]) % 1024), st.integers(0, 8)))
    return (
        np.array(counts, "<u2").tobytes()
        + np.array(pairs, "<u2").tobytes()
        + np.arange(words, dtype="<u8").tobytes()
        + bytes(draw(st.integers(0, 1)))
    )


@given(delta_blocks(), st.integers(0, 2**64 - 1))
def test_runs_of_a_hostile_delta_stay_within_their_page(block: bytes, checksum: int) -> None:
    wire = Wire("delta", 4096, 10**9)
    wire.content[1:] = np.random.default_rng(1).integers(0, 256, (PAGES, 4096), dtype=np.uint8)
    wire.decode(wire.encode(list(range(PAGES)), 0, frozen=False).message)
    frame = common_pb2.TransferFrame(
        sequence=2,
        pid=1,
        run_start=[0],
        run_pages=[2],
        encodings=bytes([common_pb2.PAGE_ENCODING_DELTA] * 2),
        block_bytes=[len(block)],
        content_checksum=checksum,
        pages=block,
    )
    assert refused(wire, seal(frame))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_no_bit_of_an_encoded_frame_can_change_unnoticed(kind: str, data: st.DataObject) -> None:
    wire = Wire(kind, 4096, 10**7)
    made = np.random.default_rng(2).integers(0, 9, (PAGES, 4096), dtype=np.uint8)
    wire.content[1:] = made
    wire.decode(wire.encode(list(range(PAGES)), 0, frozen=False).message)
    wire.content[1:, 8:16] ^= np.uint8(255)
    good = bytearray(wire.encode(list(range(PAGES)), 1, frozen=False).message)
    frame = batch.decode(bytes(good))
    assert frame.encodings.any()
    # Sequence, round, and process number are the stream's, not the batch's.
    body = len(good) - frame.pages.size
    at = data.draw(st.integers(body, len(good) - 1))
    good[at] ^= 1 << data.draw(st.integers(0, 7))
    assert refused(wire, bytes(good))
