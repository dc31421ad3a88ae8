"""A relay between two hosts whose connections break."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from predump.hosts import LocalHosts
from predump.runner import Hosts


@dataclass
class Cutter:
    """A TCP relay that cuts its connections each time so many bytes have passed."""

    target: str
    cut_after: int
    cuts_left: int
    cuts: int = 0
    passed: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        there, out = await asyncio.open_connection(host, int(port))
        self._writers |= {writer, out}
        await asyncio.gather(self._copy(reader, out, counted=True), self._copy(there, writer))
        self._writers -= {writer, out}

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool = False
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if counted:
                    self.passed += len(data)
                    if self.cuts_left and self.passed >= self.cut_after:
                        self._cut()
                        return
                writer.write(data)
                await writer.drain()
        with suppress(ConnectionError, RuntimeError):
            writer.close()

    def _cut(self) -> None:
        self.passed = 0
        self.cuts += 1
        self.cuts_left -= 1
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def relayed(hosts: LocalHosts, cutter: Cutter) -> AsyncIterator[Hosts]:
    server = await asyncio.start_server(cutter.relay, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield Hosts(hosts.source.address, f"127.0.0.1:{port}")
    finally:
        server.close()
