"""A broker whose name resolves slowly, or to several addresses."""

import asyncio
import socket
import threading
import time
from typing import Any

import pytest

from livemigration.telemetry import connection
from livemigration.telemetry.address import BrokerAddress
from livemigration.telemetry.connection import BrokerLostError, connected


async def _try(address: BrokerAddress) -> None:
    async with connected(address, identifier="test"):
        pass


def test_a_name_server_that_does_not_answer_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled in the middle of it, the event loop closes at once."""
    asked, answer = threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        asked.set()
        answer.wait(60)
        raise OSError("too late")

    async def cancelled() -> None:
        attempt = asyncio.create_task(_try(BrokerAddress("broker.invalid", 1883)))
        await asyncio.to_thread(asked.wait, 30)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    began = time.monotonic()
    asyncio.run(cancelled())
    assert time.monotonic() - began < 30
    answer.set()


async def test_a_name_without_an_address_is_a_broker_lost() -> None:
    with pytest.raises(BrokerLostError):
        await _try(BrokerAddress("no-such-broker.invalid", 1883))


async def test_the_next_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with localhost, which is ::1 first, and a broker that listens on 127.0.0.1 only."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    free = socket.socket()
    free.bind(("127.0.0.1", 0))  # bound and not listening: it refuses
    async with server:
        writer = await connection._open([("127.0.0.1", free.getsockname()[1]), ("127.0.0.1", port)])
        assert writer.get_extra_info("peername")[1] == port
        writer.close()
    free.close()
