"""A network between two hosts that misbehaves after so many bytes: it cuts, falls silent, is slow.

It works on TCP, below whatever is spoken over it: what the hosts make of it is theirs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

from predump.faults.link import Gate, Link

_OPEN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with the network, counted on the bytes that go towards the target.

    `cut_after`: bytes after which all connections break, `cuts` times in all, each so many bytes
    after the last. `silent`: they do not break, they only carry nothing any more, as when a cable
    is pulled. `bytes_per_s`: how much passes at most; 0 for as much as can. `spared`: bytes that
    pass before any are counted.
    """

    cut_after: int = 0
    cuts: int = 1
    silent: bool = False
    bytes_per_s: float = 0.0
    spared: int = 0

    def __post_init__(self) -> None:
        for name in ("cut_after", "cuts", "bytes_per_s", "spared"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative: {getattr(self, name)}")


@dataclass
class Network(Link):
    """A link that goes wrong by itself, at `address`, and what it has done so far."""

    faults: Faults = field(default_factory=Faults)
    address: str = ""
    cuts: int = 0
    bytes_passed: int = 0
    _since_cut: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._since_cut = -self.faults.spared

    async def admit(self, size: int, *, towards: bool) -> None:
        """Counts what goes towards the target, and breaks, falls silent or waits when it is due."""
        if towards:
            if self.faults.bytes_per_s:
                await asyncio.sleep(size / self.faults.bytes_per_s)
            self.bytes_passed += size
            self._since_cut += size
            if self._due():
                self._cut()
        await self._open.wait()

    def _due(self) -> bool:
        after = self.faults.cut_after
        return bool(after) and self.cuts < self.faults.cuts and self._since_cut >= after

    def _cut(self) -> None:
        self._since_cut = 0
        self.cuts += 1
        if self.faults.silent:
            self.silence()
            return
        self.abort()
        raise ConnectionAbortedError


@asynccontextmanager
async def between(target: str, faults: Faults) -> AsyncIterator[Network]:
    """A network to `target` (HOST:PORT) while the context lasts, in this event loop."""
    network = Network(faults=faults)
    gate = Gate(network, target)
    network.address = await gate.open()
    try:
        yield network
    finally:
        await gate.close()


@contextmanager
def faulty_network(target: str, faults: Faults) -> Iterator[Network]:
    """The same for tests without an event loop: a thread of its own relays."""
    opened = threading.Event()
    found: list[tuple[Network, asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        async with between(target, faults) as network:
            over = asyncio.Event()
            found.append((network, asyncio.get_running_loop(), over))
            opened.set()
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="faulty-network")
    thread.start()
    try:
        if not opened.wait(_OPEN_S):
            raise OSError("the relay of the faulty network did not start")
        yield found[0][0]
    finally:
        for _, loop, over in found:
            loop.call_soon_threadsafe(over.set)
        thread.join()
