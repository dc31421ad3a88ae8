"""The cable between the hosts: two TCP gates that are cut, silent or slow together.

One gate lies between the source and the relay, the other between the relay and the destination, so
that each host sees of the cable what it would see.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

CHUNK = 65536
_POLL_S = 0.01


@dataclass
class Link:
    """Open, cut (connections end, new ones are refused), silent (nothing passes), or slow."""

    cut: bool = False
    rate: int = 0  # bytes per second; 0: as fast as it goes
    passed: int = 0  # bytes, both ways
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._open.set()

    def sever(self) -> None:
        """Ends all connections and lets none be made."""
        self.cut = True
        self.abort()

    def abort(self) -> None:
        """Ends all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def silence(self) -> None:
        """Nothing passes, and nobody is told: as when a cable is pulled."""
        self._open.clear()

    def slow(self, rate: int) -> None:
        """So many bytes per second, in each direction of each connection."""
        self.rate = rate

    def heal(self) -> None:
        """All is well again; what stood still in a silent cable goes on, as TCP makes it."""
        self.cut = False
        self.rate = 0
        self._open.set()

    async def admit(self, size: int, *, towards: bool) -> None:
        """Returns when so many bytes may pass, `towards` the target or back from it.

        Raises ConnectionError if they may not.
        """
        await self._open.wait()
        if self.rate:
            await asyncio.sleep(size / self.rate)
        self.passed += size

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, towards: bool
    ) -> None:
        """One direction of a connection."""
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK):
                await self.admit(len(data), towards=towards)
                writer.write(data)
                await writer.drain()
        with suppress(ConnectionError, RuntimeError):
            writer.close()

    def hold(self, *writers: asyncio.StreamWriter) -> None:
        """These belong to a connection."""
        self._writers.update(writers)

    def drop(self, *writers: asyncio.StreamWriter) -> None:
        """They do not any more."""
        self._writers.difference_update(writers)

    async def idle(self) -> None:
        """Returns when nothing belongs to a connection."""
        while self._writers:
            await asyncio.sleep(_POLL_S)


class Gate:
    """A listening port whose connections lead to `target` through the link.

    `target` (HOST:PORT) may be another one at any time, for connections from then on.
    """

    def __init__(self, link: Link, target: str) -> None:
        self._link = link
        self.target = target
        self._server: asyncio.Server | None = None

    async def open(self, host: str = "127.0.0.1") -> str:
        """Listens on an address of this host; returns HOST:PORT."""
        self._server = await asyncio.start_server(self._accept, host, 0)
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._link.cut:
            writer.transport.abort()
            return
        host, _, port = self.target.rpartition(":")
        try:
            back, out = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._link.hold(writer, out)
        try:
            await asyncio.gather(
                self._link.carry(reader, out, towards=True),
                self._link.carry(back, writer, towards=False),
            )
        finally:
            for end in (writer, out):
                end.transport.abort()
            await asyncio.gather(writer.wait_closed(), out.wait_closed(), return_exceptions=True)
            self._link.drop(writer, out)

    async def close(self) -> None:
        """Ends what is left."""
        if self._server is not None:
            self._server.close()
        self._link.heal()
        self._link.sever()
        await self._link.idle()
