"""Packets on a SEQPACKET unix socket: one message each, with a limit on their size.

The limit is ours: CRIU takes what the kernel lets through, which is the sender's socket buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from livemigration.criu.rpc.errors import PeerGone

MOST_BYTES = 256 * 1024
"""The longest message: beyond the socket buffers that Linux gives by default (208 KiB)."""

_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, by SO_PEERCRED: who made the connection, or the socket pair."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """The other end of a unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Peer(*_CREDENTIALS.unpack(raw))


class PacketSocket:
    """One connection, from within an event loop. Closes the socket in the end."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self.peer = peer_of(connection)

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    async def receive(self) -> bytes:
        """The next message; raises PeerGone at the end of the connection or if it is too long.

        Descriptors that come with it are not taken: the kernel closes them.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, _, flags, _ = self._socket.recvmsg(MOST_BYTES)
            except BlockingIOError:
                await self._ready(loop.add_reader, loop.remove_reader)
                continue
            except OSError as error:
                raise PeerGone(f"the connection broke: {error.strerror}") from error
            if flags & socket.MSG_TRUNC:
                raise PeerGone(f"a message is longer than {MOST_BYTES} bytes")
            if not data:
                raise PeerGone("the client closed the connection")
            return data

    async def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Sends one message; raises PeerGone if nobody is there to take it."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                socket.send_fds(self._socket, [message], list(descriptors), socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                await self._ready(loop.add_writer, loop.remove_writer)
            except OSError as error:
                raise PeerGone(f"the connection broke: {error.strerror}") from error

    async def _ready(
        self,
        watch: Callable[..., None],
        unwatch: Callable[[int], bool],
    ) -> None:
        ready = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        number = self._socket.fileno()
        if number < 0:
            raise PeerGone("the connection is closed")
        watch(number, wake)
        try:
            await ready
        finally:
            with contextlib.suppress(ValueError, OSError):
                unwatch(number)
