"""Asking the source for pages over a stream that breaks, is replaced, or never comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import pytest

from dest_node.page_channel import PageRequest, StreamChannel
from livemigration import batch
from livemigration.errors import DamagedFrame, SourceLost, WrongState
from livemigration.packing import encode, pack_from
from livemigration.v1 import common_pb2, destination_node_pb2
from tests.unit.dest_node.lazy import PAGE, addresses, task_of

MS = 1_000_000
SOON_S = 5.0


@dataclass
class Stream:
    """The source's end of one stream."""

    asked: asyncio.Queue[PageRequest] = field(default_factory=asyncio.Queue)
    frames: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    ended: asyncio.Task[None] | None = None

    async def next_request(self) -> PageRequest:
        async with asyncio.timeout(SOON_S):
            return await self.asked.get()

    def answer(self, number: int, page: int = 0) -> None:
        """With a page of some memory."""
        task = task_of(4)
        packing = pack_from(task.processes[1], addresses(page))
        content = task.machine.content
        self.frames.put_nowait(encode(packing, content, sequence=number, round_number=0, pid=1))


@asynccontextmanager
async def opened(channel: StreamChannel, seen: int = 0) -> AsyncIterator[Stream]:
    """A stream that breaks at the end."""
    stream = Stream()
    work = asyncio.create_task(channel.hold(stream.frames.get, stream.asked.put, seen))
    stream.ended = work
    await asyncio.sleep(0)
    try:
        yield stream
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError, DamagedFrame, SourceLost):
            await work


def channel(lost_after_ms: int = 60_000, bandwidth: int = 0) -> StreamChannel:
    return StreamChannel(PAGE, lost_after_ms * MS, bandwidth)


def request(number: int, *, urgent: bool = False) -> PageRequest:
    return PageRequest(id=number, pid=1, run_start=[0], run_pages=[1], urgent=urgent)


async def taken(pages: StreamChannel) -> batch.Frame:
    async with asyncio.timeout(SOON_S):
        return (await asyncio.to_thread(pages.take))[0]


async def test_a_request_goes_out_and_its_answer_comes_in() -> None:
    pages = channel()
    async with opened(pages) as stream:
        pages.ask(request(7))
        assert (await stream.next_request()).id == 7
        stream.answer(7, page=2)
        frame = await taken(pages)
    assert (frame.sequence, frame.run_start.tolist()) == (7, addresses(2).tolist())
    assert pages.poll() is None


async def test_what_was_not_answered_is_asked_for_again_on_the_next_stream() -> None:
    pages = channel()
    async with opened(pages) as stream:
        for number in (1, 2):
            pages.ask(request(number))
            await stream.next_request()
        stream.answer(1)
        await taken(pages)
    assert not pages.held
    pages.ask(request(3))  # while there is no stream
    async with opened(pages) as stream:
        assert [(await stream.next_request()).id for _ in range(2)] == [2, 3]


async def test_an_answer_counts_once() -> None:
    pages = channel()
    async with opened(pages) as stream:
        pages.ask(request(1))
        await stream.next_request()
        stream.answer(1)
        stream.answer(1)
        pages.ask(request(2))
        stream.answer(2)
        assert [(await taken(pages)).sequence for _ in range(2)] == [1, 2]
    assert pages.poll() is None


async def test_a_damaged_answer_ends_the_stream_and_is_asked_for_again() -> None:
    pages = channel()
    stream = Stream()
    pages.ask(request(1))
    stream.answer(1)
    good = stream.frames.get_nowait()
    assert good is not None
    stream.frames.put_nowait(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(DamagedFrame, match="checksum"):
        await pages.hold(stream.frames.get, stream.asked.put)
    async with opened(pages) as again:
        assert (await again.next_request()).id == 1


async def test_a_newer_stream_takes_the_place_of_one_that_hangs() -> None:
    pages = channel()
    old = Stream()
    hanging = asyncio.create_task(pages.hold(old.frames.get, old.asked.put))
    await asyncio.sleep(0)
    async with opened(pages) as stream:
        with pytest.raises(WrongState, match="another page stream"):
            await hanging
        pages.ask(request(1))
        assert (await stream.next_request()).id == 1


async def test_a_source_that_stays_away_is_lost_and_whoever_waits_hears_of_it() -> None:
    pages = channel(lost_after_ms=200)
    heard: list[SourceLost] = []
    pages.on_lost = heard.append
    watching = asyncio.create_task(pages.watch())
    async with opened(pages):
        pages.ask(request(1))
    with pytest.raises(SourceLost, match="no page stream"):
        await taken(pages)
    assert heard == [pages.lost]
    watching.cancel()


async def test_a_source_that_comes_back_is_asked_for_all_that_is_missing() -> None:
    pages = channel(lost_after_ms=200)
    told: list[str] = []
    pages.on_lost = lambda lost: told.append("lost")
    pages.on_back = lambda: told.append("back")
    watching = asyncio.create_task(pages.watch())
    pages.ask(request(1))
    with pytest.raises(SourceLost):
        await taken(pages)
    pages.ask(request(2))  # by a thread that had not heard of it
    waiting = asyncio.create_task(asyncio.to_thread(pages.wait_for_source))
    async with opened(pages) as stream:
        async with asyncio.timeout(SOON_S):
            await waiting
        assert pages.lost is None
        assert [(await stream.next_request()).id for _ in range(2)] == [1, 2]
        stream.answer(1)
        assert (await taken(pages)).sequence == 1
    assert told == ["lost", "back"]
    watching.cancel()


async def test_nothing_counts_that_comes_over_a_stream_that_was_given_up() -> None:
    """Whoever heard that the task stands still may have let the source go on with it."""
    pages = channel(lost_after_ms=200)
    watching = asyncio.create_task(pages.watch())
    async with opened(pages) as stream:
        pages.ask(request(1))
        with pytest.raises(SourceLost):
            await taken(pages)
        stream.answer(1)
        assert stream.ended is not None
        with pytest.raises(DamagedFrame, match="no page came"):
            await stream.ended
    assert pages.lost is not None
    assert pages.poll() is None
    watching.cancel()


async def test_a_frame_that_never_comes_is_asked_for_over_another_stream() -> None:
    pages = channel(lost_after_ms=400)
    watching = asyncio.create_task(pages.watch())
    pages.ask(request(1))
    async with opened(pages) as stream:
        await stream.next_request()
        assert stream.ended is not None
        with pytest.raises(DamagedFrame, match="asked for anew"):
            await stream.ended
    assert pages.lost is None
    async with opened(pages) as stream:
        assert (await stream.next_request()).id == 1
        stream.answer(1)
        assert (await taken(pages)).sequence == 1
    watching.cancel()


async def test_nobody_waits_any_more_for_pages_of_a_task_that_was_ended() -> None:
    pages = channel(lost_after_ms=200)
    pages.ask(request(1))
    waiting = asyncio.create_task(taken(pages))
    await asyncio.sleep(0)
    pages.stop("the task was ended")
    with pytest.raises(SourceLost, match="the task was ended"):
        await waiting
    with pytest.raises(SourceLost, match="the task was ended"):
        pages.wait_for_source()
    with pytest.raises(WrongState, match="nobody needs pages"):
        await pages.hold(Stream().frames.get, Stream().asked.put)


def shown(number: int) -> destination_node_pb2.MemoryChunk:
    return destination_node_pb2.MemoryChunk(pid=1, run_start=[number], run_pages=[1], pages=b"x")


async def test_pages_shown_for_comparison_are_shown_again_if_the_source_has_not_got_them() -> None:
    pages = channel()
    async with opened(pages) as stream:
        for number in (1, 2, 3):
            pages.tell(shown(number))
            await stream.next_request()
    pages.tell(shown(4))  # while there is no stream
    async with opened(pages, seen=2) as stream:
        seen = [await stream.next_request() for _ in range(2)]
        assert [(s.id, list(s.read_back.run_start)) for s in seen] == [(3, [3]), (4, [4])]
        pages.tell(shown(5))
        assert (await stream.next_request()).id == 5
        assert stream.asked.empty()


async def test_a_source_that_does_not_answer_is_lost_though_connected() -> None:
    pages = channel(lost_after_ms=200)
    async with opened(pages) as stream:
        watching = asyncio.create_task(pages.watch())
        pages.ask(request(1))
        await stream.next_request()
        with pytest.raises(SourceLost, match="did not answer"):
            await taken(pages)
        watching.cancel()


async def test_a_slow_link_is_not_a_lost_source() -> None:
    """One page of 4 KiB at 1 kbit/s takes 33 s."""
    pages = channel(lost_after_ms=200, bandwidth=1000)
    async with opened(pages):
        watching = asyncio.create_task(pages.watch())
        pages.ask(request(1))
        await asyncio.sleep(0.6)
        assert pages.lost is None
        watching.cancel()


async def test_a_quiet_source_is_not_lost_while_nothing_is_asked() -> None:
    pages = channel(lost_after_ms=200)
    async with opened(pages):
        watching = asyncio.create_task(pages.watch())
        await asyncio.sleep(0.6)
        assert pages.lost is None
        watching.cancel()


async def test_the_last_word_is_said_again_to_a_source_that_missed_it() -> None:
    pages = channel()
    record = common_pb2.PostCopyRecord(pages_lazy=np.int64(3).item())
    pages.over(record)
    for _ in range(2):
        async with opened(pages) as stream:
            assert (await stream.next_request()).over == record
