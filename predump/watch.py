"""`predump watch`: the migrations that a broker knows of, live.

A table on a terminal, one line per message otherwise, JSON lines on request. It only listens.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from contextlib import AsyncExitStack

import aiomqtt
from rich.console import Console

from livemigration.telemetry.address import parse_broker_url
from livemigration.telemetry.connection import BrokerLostError, connected, next_delay
from livemigration.telemetry.messages import Topics
from predump.watch_board import Board, plain
from predump.watch_view import (
    View,
    make_view,
    malformed_line,
    say,
    snapshot_json,
    state_line,
    table,
    write,
)

ONCE_TIMEOUT_S = 5.0
_QUIET_S = 0.5
"""Retained messages come right after the subscription: silence this long means that was all."""
_SNAPSHOT_S = 3.0
_REFUSED = 0x80


def run_watch(
    url: str,
    *,
    migration_id: str | None = None,
    once: bool = False,
    timeout: float | None = None,
    as_json: bool = False,
    out: Console | None = None,
    err: Console | None = None,
) -> int:
    """Watch until Ctrl-C and return the exit status.

    once: print what the broker retains and end.
    timeout: seconds without a broker after which to give up with status 1; None waits for ever,
    or five seconds with `once`.
    Status 0 after Ctrl-C and when `once` has printed, 1 without a broker or when the migration
    asked for is unknown to it, 2 for a bad `url`.
    """
    out = Console() if out is None else out
    err = Console(stderr=True) if err is None else err
    try:
        return asyncio.run(
            watch(
                url,
                migration_id=migration_id,
                once=once,
                give_up_s=timeout,
                as_json=as_json,
                out=out,
                err=err,
            )
        )
    except ValueError as error:
        say(err, str(error))
        return 2
    except KeyboardInterrupt:
        return 0


async def watch(
    url: str,
    *,
    migration_id: str | None,
    once: bool = False,
    give_up_s: float | None = None,
    as_json: bool = False,
    out: Console,
    err: Console,
) -> int:
    """See `run_watch`, whose timeout is `give_up_s`; runs until cancelled unless `once`.

    Raises ValueError for a bad `url`.
    """
    address = parse_broker_url(url)
    topics = Topics(address.prefix)
    board = Board(topics, migration_id)
    view = make_view(board, address, once=once, as_json=as_json, out=out, err=err)
    patience = give_up_s if give_up_s is not None else (ONCE_TIMEOUT_S if once else math.inf)
    loop = asyncio.get_running_loop()
    delay, give_up = 0.0, loop.time() + patience
    identifier = f"predump-watch-{secrets.token_hex(4)}"
    with view.shown():
        while True:
            try:
                async with AsyncExitStack() as stack:
                    async with asyncio.timeout_at(give_up if give_up < math.inf else None):
                        session = connected(address, identifier=identifier)
                        client = await stack.enter_async_context(session)
                    if not await _subscribe(client, topics.filters(migration_id)):
                        say(err, f"the broker at {address} refuses the subscription")
                        return 1
                    view.connected()  # from here on nothing is missed
                    delay, give_up = 0.0, loop.time() + patience
                    if once:
                        await _snapshot(client, board)
                        return _print_once(board, migration_id, as_json=as_json, out=out, err=err)
                    await _follow(client, board, view)
            except BrokerLostError as lost:
                view.lost(str(lost))
                give_up = min(give_up, loop.time() + patience)
            except TimeoutError:
                view.lost("no answer")
            delay = next_delay(delay)
            if loop.time() + delay > give_up:
                say(err, f"gave up after {patience:g} s without the broker at {address}")
                return 1
            await asyncio.sleep(delay)


async def _subscribe(client: aiomqtt.Client, filters: list[str]) -> bool:
    codes = await client.subscribe([(topic, 1) for topic in filters])
    return all(getattr(code, "value", code) < _REFUSED for code in codes)


async def _follow(client: aiomqtt.Client, board: Board, view: View) -> None:
    async for message in client.messages:
        update = board.apply(message.topic.value, message.payload, retained=message.retain)
        view.heard(update)


async def _snapshot(client: aiomqtt.Client, board: Board) -> None:
    messages = aiter(client.messages)
    loop = asyncio.get_running_loop()
    end = loop.time() + _SNAPSHOT_S
    while (left := min(_QUIET_S, end - loop.time())) > 0:
        try:
            async with asyncio.timeout(left):
                message = await anext(messages)
        except TimeoutError:
            return
        board.apply(message.topic.value, message.payload, retained=message.retain)


def _print_once(
    board: Board, migration_id: str | None, *, as_json: bool, out: Console, err: Console
) -> int:
    if as_json:
        write(out, snapshot_json(board))
    elif out.is_terminal:
        out.print(table(board))
    else:
        for row in board.rows.values():
            for role, state in row.states.items():
                say(out, state_line(row.migration_id, role, state))
    if board.malformed:
        say(err, malformed_line(board))
    if migration_id is not None and migration_id not in board.rows:
        say(err, f"the broker knows no migration {plain(migration_id)!r}")
        return 1
    if not board.rows and not as_json:
        say(err, "the broker knows no migration")
    return 0
