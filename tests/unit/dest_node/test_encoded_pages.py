"""Encoded pages at the destination: in place as the source had them, or refused as a whole.

Frames are made of the generated messages and of zstd and XOR as docs/protocol.md has them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import xxhash
import zstandard

from dest_node.incoming import IncomingTask, Request
from livemigration.errors import DamagedFrame
from livemigration.v1 import common_pb2
from tests.unit.dest_node.sender import PAGE, Sender, page, sealed, u64

Frame = common_pb2.TransferFrame
ZSTD = common_pb2.PAGE_ENCODING_ZSTD
DELTA = common_pb2.PAGE_ENCODING_DELTA
DELTA_ZSTD = common_pb2.PAGE_ENCODING_DELTA_ZSTD


@pytest.fixture
def sender() -> Iterator[Sender]:
    """A source with four written pages."""
    sender = Sender().map(0, 4).write(0, 1, 2, 3)
    yield sender
    sender.task.release()


@pytest.fixture
def incoming(sender: Sender) -> Iterator[IncomingTask]:
    incoming = IncomingTask.prepare(Request("m", sender.struct, "", "virtual"), None)
    yield incoming
    incoming.give_up()


def seal(frame: Frame) -> Frame:
    """With the checksum that common.proto asks for."""
    columns = (frame.run_start, frame.run_pages, frame.zero_start, frame.zero_pages)
    whole = b"".join(np.array(column, dtype="<u8").tobytes() for column in columns)
    whole += frame.encodings + np.array(frame.block_bytes, dtype="<u8").tobytes()
    whole += frame.content_checksum.to_bytes(8, "little")
    frame.checksum = xxhash.xxh3_64_intdigest(whole + frame.pages)
    return frame


def encoded(sender: Sender, number: int, kind: int, block: bytes) -> Frame:
    """One page of the sender's, encoded so; the checksum of its content is that of the page now."""
    return seal(
        sender.frame(
            pid=1,
            run_start=[page(number)],
            run_pages=[1],
            encodings=bytes([kind]),
            block_bytes=[len(block)],
            content_checksum=xxhash.xxh3_64_intdigest(sender.mm.peek(page(number), PAGE)),
            pages=block,
        )
    )


def one_word(offset: int, difference: int) -> bytes:
    """The delta of a page in which one word changed."""
    run = np.array([1, offset, 1], "<u2").tobytes()
    return run + difference.to_bytes(8, "little")


def begin(sender: Sender, cache_pages: int = 4) -> Frame:
    frame = sender.begin()
    frame.begin.delta_cache_pages = cache_pages
    return frame


def apply(incoming: IncomingTask, *frames: Frame) -> None:
    for frame in frames:
        incoming.apply(sealed(frame))


def refusal(incoming: IncomingTask, frame: Frame) -> str:
    before = incoming.sequence
    with pytest.raises(DamagedFrame) as refused:
        apply(incoming, frame)
    assert incoming.sequence == before
    assert "\n" not in str(refused.value)
    return str(refused.value)


def equal(sender: Sender, incoming: IncomingTask) -> bool:
    return incoming.digest().memory_digest == sender.memory_digest()


def test_a_delta_of_a_page_that_was_sent_raw_makes_the_page_that_it_is_now(
    sender: Sender, incoming: IncomingTask
) -> None:
    apply(incoming, begin(sender), sender.pages(), sender.end(4))
    sender.write(2, value=1 ^ 0xABC)
    apply(incoming, sender.begin(), encoded(sender, 2, DELTA, one_word(0, 0xABC)), sender.end(1))
    assert equal(sender, incoming)


def test_a_delta_of_a_delta_and_of_a_compressed_page(
    sender: Sender, incoming: IncomingTask
) -> None:
    compress = zstandard.ZstdCompressor().compress
    whole = sender.mm.peek(page(3), PAGE)
    apply(incoming, begin(sender), sender.pages(u64(page(0), page(1), page(2))))
    apply(incoming, encoded(sender, 3, ZSTD, compress(whole)), sender.end(4))
    apply(incoming, sender.begin())
    sender.write(3, value=1 ^ 2)
    apply(incoming, encoded(sender, 3, DELTA, one_word(0, 2)))
    sender.write(3, value=1 ^ 2 ^ 4)
    change = (4).to_bytes(8, "little") + bytes(PAGE - 8)
    apply(incoming, encoded(sender, 3, DELTA_ZSTD, compress(change)), sender.end(2))
    assert equal(sender, incoming)


def test_a_delta_outlives_memory_that_was_given_back_meanwhile(
    sender: Sender, incoming: IncomingTask
) -> None:
    """Its base is what was sent, not what the page tables have now."""
    apply(incoming, begin(sender), sender.pages(), sender.end(4))
    sender.mm.munmap(page(2), PAGE)
    apply(incoming, sender.begin(), sender.end(0))
    sender.map(2, 1).write(2, value=1 ^ 0xABC)
    apply(incoming, sender.begin(), encoded(sender, 2, DELTA, one_word(0, 0xABC)), sender.end(1))
    assert equal(sender, incoming)


def test_a_delta_of_another_version_is_found_and_nothing_of_it_applied(
    sender: Sender, incoming: IncomingTask
) -> None:
    apply(incoming, begin(sender), sender.pages(), sender.end(4))
    before = incoming.digest().memory_digest
    apply(incoming, sender.begin())
    sender.write(2, value=7)  # the delta takes it for granted that 5 was sent before
    frame = encoded(sender, 2, DELTA, one_word(0, 5 ^ 7))
    assert "not those that were encoded" in refusal(incoming, frame)
    assert incoming.digest().memory_digest == before


@pytest.mark.parametrize("cache_pages", [0, 4])
def test_a_delta_without_a_version_to_start_from_is_refused(
    sender: Sender, incoming: IncomingTask, cache_pages: int
) -> None:
    apply(incoming, begin(sender, cache_pages))
    line = refusal(incoming, encoded(sender, 2, DELTA, one_word(0, 1)))
    assert line.endswith(f"{page(2):#x}, of which no version is remembered here")


def test_a_block_that_decodes_to_another_page_is_found(
    sender: Sender, incoming: IncomingTask
) -> None:
    apply(incoming, begin(sender))
    block = zstandard.ZstdCompressor().compress(bytes(PAGE))
    assert "not those that were" in refusal(incoming, encoded(sender, 1, ZSTD, block))


def test_nobody_can_ask_for_more_memory_than_the_task_was_announced_with(
    sender: Sender, incoming: IncomingTask
) -> None:
    frame = begin(sender, sender.spec.pages + 1)
    assert "65 pages to be remembered of a task that has 64" in refusal(incoming, frame)


def test_only_the_first_round_says_what_is_remembered(
    sender: Sender, incoming: IncomingTask
) -> None:
    apply(incoming, begin(sender), sender.pages(), sender.end(4))
    assert "only the first round" in refusal(incoming, begin(sender))
