"""Telemetry for readers over gRPC: what they get, in which order, and what they cannot disturb."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import pytest

from livemigration.telemetry import open_telemetry
from livemigration.telemetry.messages import decode
from livemigration.telemetry.outbox import Item
from livemigration.telemetry.watched import (
    KEPT_MIGRATIONS,
    MOST_WATCHERS,
    TooManyWatchersError,
    Watched,
)

ROUND = {"round": 0, "pages_sent": 10, "bytes_wire": 40960}


@pytest.fixture
async def host() -> AsyncIterator[Watched]:
    async with open_telemetry("", role="source", host_id="alpha") as nobody:
        yield Watched(nobody, role="source", host_id="alpha")


async def heard(reader: AsyncIterator[Item], number: int) -> list[tuple[str, dict[str, Any]]]:
    """The next so many messages: (topic without its root, payload)."""
    async with asyncio.timeout(5):
        items = [await anext(reader) for _ in range(number)]
    return [(item.topic.removeprefix("predump/v1/"), decode(item.payload)) for item in items]


async def test_a_reader_who_comes_late_gets_what_a_broker_would_have_and_the_rounds(
    host: Watched,
) -> None:
    host.state("m1", state="round", owner="source")
    host.round("m1", ROUND)
    host.event("m1", "round", message="gone by")
    host.pages("m1", {"round": 0, "pages_pending": 5})
    async with aclosing(host.watch()) as reader:
        told = await heard(reader, 4)
        by_topic = dict(told)
        assert set(by_topic) == {
            "host/alpha/presence",
            "m1/source/state",
            "m1/source/round",
            "m1/source/pages",
        }
        assert by_topic["host/alpha/presence"]["status"] == "online"
        state = by_topic["m1/source/state"]
        assert (state["state"], state["host"], state["dropped"]) == ("round", "alpha", 0)
        assert (state["total_pages_sent"], state["total_bytes_wire"]) == (10, 40960)
        assert by_topic["m1/source/round"] == ROUND
        host.event("m1", "freeze", message="now")
        ((topic, event),) = await heard(reader, 1)
        assert (topic, event["kind"], event["seq"]) == ("m1/source/event", "freeze", 2)


async def test_only_the_newest_state_and_the_newest_pages_wait_for_a_slow_reader(
    host: Watched,
) -> None:
    async with aclosing(host.watch()) as reader:
        await heard(reader, 1)
        for number in range(1000):
            host.state("m1", state="round", number=number)
            host.pages("m1", {"round": number})
        told = dict(await heard(reader, 2))
        assert told["m1/source/state"]["number"] == 999
        assert told["m1/source/pages"] == {"round": 999}


async def test_a_reader_that_does_not_read_is_told_how_many_rounds_it_missed(
    host: Watched,
) -> None:
    async with aclosing(host.watch()) as reader:
        await heard(reader, 1)
        host.state("m1", state="round")
        for number in range(3000):
            host.round("m1", {**ROUND, "round": number})
        seen: list[Mapping[str, Any]] = []
        dropped = 0
        # A state that says so comes among the rounds that are left, or after them.
        while not dropped or not seen or seen[-1]["round"] != 2999:
            ((topic, fields),) = await heard(reader, 1)
            if topic.endswith("/round"):
                seen.append(fields)
            else:
                dropped = fields["dropped"]
        assert len(seen) + dropped == 3000
        assert [fields["round"] for fields in seen] == list(range(dropped, 3000))


async def test_what_is_kept_for_late_readers_is_bounded(host: Watched) -> None:
    for number in range(100):
        host.state(f"m{number}", state="done")
        host.round(f"m{number}", ROUND)
    async with aclosing(host.watch()) as reader:
        told = await heard(reader, 1 + 2 * KEPT_MIGRATIONS)
        assert {topic.split("/")[0] for topic, _ in told} == {
            "host",
            *(f"m{number}" for number in range(100 - KEPT_MIGRATIONS, 100)),
        }
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(reader)


async def test_there_is_an_end_to_how_many_may_read_and_places_become_free(host: Watched) -> None:
    readers = [host.watch() for _ in range(MOST_WATCHERS)]
    for reader in readers:
        await heard(reader, 1)
    assert host.wants_pages
    one_more = host.watch()
    with pytest.raises(TooManyWatchersError, match="32 readers look on already"):
        await anext(one_more)
    for reader in readers:
        await reader.aclose()  # type: ignore[attr-defined]
    assert not host.wants_pages
    async with aclosing(host.watch()) as reader:
        await heard(reader, 1)


async def test_a_host_that_ends_says_so_and_lets_readers_go(host: Watched) -> None:
    async with aclosing(host.watch()) as reader:
        await heard(reader, 1)
        host.close()
        ((_, presence),) = await heard(reader, 1)
        assert (presence["status"], presence["reason"]) == ("offline", "closed")
        with pytest.raises(StopAsyncIteration):
            await anext(reader)
