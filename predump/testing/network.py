"""A network between two hosts that misbehaves: a relay that cuts, stalls or slows connections.

It works on TCP, below whatever is spoken over it: what the hosts make of it is theirs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

_PIECE: Final = 65536
_OPEN_S: Final = 10.0
_POLL_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with the network, counted on the bytes that go towards the target.

    `cut_after`: bytes after which all connections break, `cuts` times in all, each so many bytes
    after the last. `silent`: they do not break, they only carry nothing any more, as when a cable
    is pulled. `bytes_per_s`: how much passes at most; 0 for as much as can.
    """

    cut_after: int = 0
    cuts: int = 1
    silent: bool = False
    bytes_per_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("cut_after", "cuts", "bytes_per_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative: {getattr(self, name)}")


@dataclass(slots=True)
class Network:
    """A relay that listens at `address`, and what it has done so far."""

    target: str
    faults: Faults
    address: str = ""
    cuts: int = 0
    bytes_passed: int = 0
    _since_cut: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries one connection until either side ends it, or the network does."""
        host, _, port = self.target.rpartition(":")
        self._writers.add(writer)
        try:
            there, out = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(out)
        try:
            await asyncio.gather(self._copy(reader, out, towards=True), self._copy(there, writer))
        finally:
            self._writers -= {writer, out}
            for end in (writer, out):
                end.transport.abort()
            await asyncio.gather(*(e.wait_closed() for e in (writer, out)), return_exceptions=True)

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, towards: bool = False
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(_PIECE):
                if self.faults.silent and self.cuts:
                    continue
                if towards:
                    if self.faults.bytes_per_s:
                        await asyncio.sleep(len(data) / self.faults.bytes_per_s)
                    self.bytes_passed += len(data)
                    self._since_cut += len(data)
                    if self._due():
                        self._cut()
                        return
                writer.write(data)
                await writer.drain()
        with suppress(ConnectionError, RuntimeError):
            writer.close()

    def _due(self) -> bool:
        after = self.faults.cut_after
        return bool(after) and self.cuts < self.faults.cuts and self._since_cut >= after

    def _cut(self) -> None:
        self._since_cut = 0
        self.cuts += 1
        if not self.faults.silent:
            self._abort()

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Relays until `stop`."""
        server = await asyncio.start_server(self.relay, "127.0.0.1", 0)
        async with server:
            self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            ready.set()
            await stop.wait()
            self._abort()
            while self._writers:
                await asyncio.sleep(_POLL_S)


@contextmanager
def faulty_network(target: str, faults: Faults) -> Iterator[Network]:
    """A network to `target` (HOST:PORT), relayed by a thread of its own while the context lasts."""
    network = Network(target, faults)
    ready, loops = threading.Event(), list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]()

    async def serve() -> None:
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        await network.serve(ready, stop)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="faulty-network")
    thread.start()
    try:
        if not ready.wait(_OPEN_S):
            raise OSError("the relay of the faulty network did not start")
        yield network
    finally:
        for loop, stop in loops:
            loop.call_soon_threadsafe(stop.set)
        thread.join()
