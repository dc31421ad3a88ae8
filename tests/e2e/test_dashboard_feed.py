"""The dashboard's two feeds bring the same to its board."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from livemigration.telemetry import open_telemetry, parse_broker_url
from livemigration.telemetry.messages import Topics
from predump.dashboard.board import LiveBoard
from predump.dashboard.feed import FeedState, follow_broker, follow_node
from predump.overrides import parse_override
from predump.runner import Hosts, run_scenario
from predump.scenario import scenario_from_mapping
from predump.testing.broker import Broker
from predump.testing.pair import Pair, running_pair


async def until(board: LiveBoard, holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(120):
        while not holds():
            await board.changed(board.version, 1)


async def test_a_broker_that_is_lost_is_said_and_found_again(predump_broker: Broker) -> None:
    board, state = LiveBoard(Topics()), FeedState("MQTT")
    url, address = predump_broker.url, f"127.0.0.1:{predump_broker.port}"
    following = asyncio.create_task(follow_broker(parse_broker_url(url), board, state))
    async with open_telemetry(url, role="source", host_id="alpha") as telemetry:
        telemetry.state("m1", state="round", owner="source")
        telemetry.round("m1", {"round": 0, "pages_sent": 10, "bytes_wire": 40960, "duration_s": 1})
        await until(board, lambda: (board.detail("m1") or {}).get("rounds"))
        predump_broker.kill()
        await until(board, state.line)
        assert state.line().startswith(f"no connection to the broker at {address}: ")
        predump_broker.start()
        telemetry.state("m1", state="done", verified=True)
        await until(board, lambda: (board.detail("m1") or {}).get("verified"))
        assert state.line() == ""
    await until(board, lambda: board.hosts()[0]["status"] == "offline")
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


async def test_nodes_tell_the_same_and_one_that_dies_is_offline(tmp_path: Any) -> None:
    board, state = LiveBoard(Topics()), FeedState("gRPC")
    with running_pair(tmp_path) as pair:
        following = [
            asyncio.create_task(follow_node(node.address, None, board, state))
            for node in (pair.source, pair.destination)
        ]
        await until(board, lambda: len(board.hosts()) == 2)
        result = await run_scenario(_small(), hosts=_hosts(pair))
        await until(board, lambda: (board.detail(result.migration_id) or {}).get("verified"))
        ended = {"source": "done", "dest": "ended"}
        await until(board, lambda: (board.detail(result.migration_id) or {}).get("states") == ended)
        detail = board.detail(result.migration_id)
        assert detail is not None
        rounds = [(r["pages_sent"], r["bytes_wire"], r["duration_s"]) for r in detail["rounds"]]
        assert rounds == [(r.pages_sent, r.bytes_wire, r.duration_s) for r in result.rounds]
        assert detail["downtime_s"] == result.downtime_s.total
        pair.destination.kill()
        await until(board, lambda: {"online", "offline"} == {h["status"] for h in board.hosts()})
        assert state.line().startswith(f"no connection to {pair.destination.address}: ")
        for task in following:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def _hosts(pair: Pair) -> Hosts:
    return Hosts(pair.source.address, pair.destination.address)


def _small() -> Any:
    small = {"schema": "predump.scenario/1", "memory": "2MiB", "workload": {"kind": "uniform"}}
    return scenario_from_mapping(small, [parse_override("migration.run_after=10ms")])
