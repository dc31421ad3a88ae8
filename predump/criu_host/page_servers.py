"""Page servers that clients ask for: each receives one dump into a directory and ends.

As `criu page-server`: bound to the address that was asked for, a port of the system's choice where
that is 0, or one connection that the client has already.
"""

from __future__ import annotations

import asyncio
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from livemigration.criu.dedup import dedup
from livemigration.criu.page_server.channel import Channel
from livemigration.criu.page_server.checkpoint import Checkpoint
from livemigration.criu.page_server.endpoint import accept, listen
from livemigration.criu.page_server.receiver import Receiver
from livemigration.criu.rpc.errors import RpcFailure
from livemigration.criu.rpc.options import Request
from livemigration.errors import MigrationError
from livemigration.service import CannotListen
from predump.criu_host.descriptors import borrowed_socket

_PATIENCE_S = 60.0
FAILED = 1 << 8
"""What waitpid gives for exit status 1."""


@dataclass(slots=True)
class PageServer:
    """One that serves, or has served."""

    pid: int
    port: int
    folder: Path
    auto_dedup: bool
    listening: socket.socket | None
    channel: Channel | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0
    why: str = ""
    task: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Ends it, whatever it does: closing alone would not wake a thread that waits."""
        self.why = "ended before its client came or was done"
        with suppress(OSError):
            if self.listening is not None:
                self.listening.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            if self.channel is not None:
                self.channel.shutdown(socket.SHUT_RDWR)


def open_page_server(pid: int, request: Request) -> PageServer:
    """A page server that listens, and serves when `serve` runs. Raises RpcFailure."""
    asked = request.page_server
    # The request's directory is open only as long as the request is served.
    folder = Path(os.path.realpath(request.images))
    if asked is not None and asked.fd >= 0:
        channel = Channel(borrowed_socket(asked.pid, asked.fd), _PATIENCE_S)
        return PageServer(pid, 0, folder, request.auto_dedup, None, channel)
    address = asked.address if asked is not None and asked.address else "0.0.0.0"
    port = asked.port if asked is not None else 0
    host = f"[{address}]" if ":" in address else address
    try:
        listening = listen(f"{host}:{port}")
    except CannotListen as error:
        raise RpcFailure(str(error)) from error
    port = listening.getsockname()[1]
    return PageServer(pid, port, folder, request.auto_dedup, listening)


async def serve(server: PageServer, parent: str, page_size: int) -> None:
    """One dump; afterwards `status` says how it went."""
    loop = asyncio.get_running_loop()
    # A thread of its own: it may wait for a client that never comes.
    with ThreadPoolExecutor(1, thread_name_prefix="page-server") as pool:
        try:
            await loop.run_in_executor(pool, _serve, server, parent, page_size)
        except (MigrationError, OSError) as error:
            server.status, server.why = FAILED, server.why or str(error)
        finally:
            for opened in (server.listening, server.channel):
                if opened is not None:
                    opened.close()
            server.ended.set()


def _serve(server: PageServer, parent: str, page_size: int) -> None:
    folder = server.folder

    def begin() -> Checkpoint:
        return Checkpoint(
            folder, folder / parent if parent else None, page_size=page_size, link=parent
        )

    if server.channel is None:
        assert server.listening is not None
        server.channel, _ = accept(server.listening, _PATIENCE_S, None)
        server.listening.close()  # a real one serves one client
    with server.channel as channel, Receiver(channel, begin) as receiver:
        if not receiver.run():
            raise MigrationError("the client went away without a dump")
        if server.auto_dedup and parent:
            dedup(folder, page_size)
        receiver.confirm(lent=server.listening is None)
