"""One connection to an MQTT broker, as the publisher and `predump watch` use it.

aiomqtt connects in a worker thread that nothing can interrupt, and leaves a half-open session
behind when the broker takes the connection and never answers. So the address is tried first with a
plain asyncio connection, which can be given up at any time, and a session that was not answered is
closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiomqtt

from livemigration.telemetry.address import BrokerAddress

CONNECT_TIMEOUT_S = 3.0
CALL_TIMEOUT_S = 5.0
KEEPALIVE_S = 30
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0

# The client library reports every socket error; the callers here report each loss once.
_LIBRARY_LOG = logging.getLogger(__name__ + ".aiomqtt")
_LIBRARY_LOG.setLevel(logging.CRITICAL)


class BrokerLostError(Exception):
    """No connection, or not any more; `str()` is a few words that say why."""


class _Client(aiomqtt.Client):
    """aiomqtt's client, safe where connections end at inconvenient moments (seen in 2.5.1)."""

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:
        # The library lets the event loop watch the socket a little later, by when the socket can
        # be closed and its number given to another file: the loop would then call the writer of a
        # dead connection for ever. Done at once, closing the socket undoes it.
        if self._in_loop():
            self._loop.add_writer(sock.fileno(), self._write, client)
        else:
            super()._on_socket_register_write(client, userdata, sock)

    def _on_disconnect(self, *arguments: Any) -> None:
        if self._connected.cancelled():
            return  # given up while connecting; the library would stumble over it
        if self._in_loop() and not self._connected.done():
            # The library would wait for the answer of a broker that has hung up.
            self._connected.set_exception(aiomqtt.MqttError("the connection ended"))
            # Looked at here: when nobody waits for it any more, asyncio would complain of that.
            self._connected.exception()
            return
        super()._on_disconnect(*arguments)

    def _in_loop(self) -> bool:
        """Whether this is the event loop's thread, and not the one that connects."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _write(self, client: Any) -> None:
        try:
            client.loop_write()
        except Exception as error:  # noqa: BLE001 - whatever it is, the connection is broken
            if not self._disconnected.done():
                self._disconnected.set_exception(error)


@asynccontextmanager
async def connected(
    address: BrokerAddress, *, identifier: str, will: aiomqtt.Will | None = None
) -> AsyncIterator[aiomqtt.Client]:
    """A session with the broker.

    identifier: the MQTT client identifier; the broker ends an older session of the same one.
    Raises BrokerLostError when there is no session to be had or it ends unasked (which the
    client's calls and its message iterator notice).
    """
    client = await _connect(address, identifier, will)
    try:
        try:
            yield client
        finally:
            await client.__aexit__(None, None, None)
    except aiomqtt.MqttError as error:
        raise BrokerLostError(_reason(error)) from error


def next_delay(delay: float) -> float:
    """Seconds to wait before the next attempt after having waited `delay` before the last one."""
    return min(max(FIRST_DELAY_S, delay * 2), LONGEST_DELAY_S)


async def _connect(
    address: BrokerAddress, identifier: str, will: aiomqtt.Will | None
) -> aiomqtt.Client:
    try:
        await _reach(address)
        # Reads the system's certificates from disk.
        tls = await asyncio.to_thread(ssl.create_default_context) if address.tls else None
        client = _Client(
            address.host,
            address.port,
            username=address.user,
            password=address.password,
            identifier=identifier,
            will=will,
            keepalive=KEEPALIVE_S,
            timeout=CONNECT_TIMEOUT_S,
            tls_context=tls,
            logger=_LIBRARY_LOG,
        )
        await _enter(client)
    except TimeoutError:
        raise BrokerLostError(f"no answer in {CONNECT_TIMEOUT_S:g} s") from None
    except aiomqtt.MqttError as error:
        raise BrokerLostError(_reason(error)) from error
    except OSError as error:
        raise BrokerLostError(_system_reason(error)) from error
    except UnicodeError:
        raise BrokerLostError(f"{address.host!r} is no host name") from None
    return client


async def _reach(address: BrokerAddress) -> None:
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        writer = await _open(await _resolve(address))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _open(addresses: list[tuple[str, int]]) -> asyncio.StreamWriter:
    """Connects to the first of the addresses that answers."""
    for ip, port in addresses[:-1]:
        with contextlib.suppress(OSError):
            return (await asyncio.open_connection(ip, port))[1]
    return (await asyncio.open_connection(*addresses[-1]))[1]


async def _resolve(address: BrokerAddress) -> list[tuple[str, int]]:
    """The broker's IP addresses, at least one, and port. OSError if the name has none.

    In a thread that nobody waits for: the event loop's own would hold up a host that is told to
    stop for as long as a name server does not answer.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[tuple[str, int]]] = loop.create_future()

    def settle(result: list[tuple[str, int]] | Exception) -> None:
        if found.done():
            return
        if isinstance(result, Exception):
            found.set_exception(result)
        else:
            found.set_result(result)

    def look_up() -> None:
        result: list[tuple[str, int]] | Exception
        try:
            infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            result = [(str(info[4][0]), int(info[4][1])) for info in infos]
        except (OSError, UnicodeError) as error:
            result = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants it any more
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    return await found


async def _enter(client: aiomqtt.Client) -> None:
    try:
        await client.__aenter__()
    except (aiomqtt.MqttError, asyncio.CancelledError):
        # The socket may be open still, and nobody would answer a farewell.
        client.timeout = 0.05
        with contextlib.suppress(aiomqtt.MqttError):
            await client.__aexit__(None, None, None)
        raise
    client.timeout = CALL_TIMEOUT_S


def _reason(error: aiomqtt.MqttError) -> str:
    """`error` in a few words: without "[Errno 111]", "[code:135]" and the like."""
    if isinstance(error.__cause__, OSError):
        return _system_reason(error.__cause__)
    text = str(error.__cause__ or error)
    text = text.split("] ", 1)[-1] if text.startswith("[") else text
    # What the protocol's version 3 has to say of a connection that just ended.
    return "the connection ended" if text in ("", "Unspecified error") else text


def _system_reason(error: OSError) -> str:
    if error.errno is not None and error.errno > 0 and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return error.strerror or str(error)
