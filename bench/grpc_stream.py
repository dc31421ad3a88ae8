"""A bare gRPC stream between two processes: the most that pages could travel at.

The client hands over ready messages of random bytes, 64 MiB of them in turn; the server reads each
and drops it, and answers every eighth with one byte. Nothing is encoded: serializers pass bytes on.
Both processes tell malloc to keep what it has, as the nodes do: every message is a new buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from livemigration.service import keep_freed_memory

_METHOD = "/bench.Stream/Send"
_ACK_EVERY = 8
_POOL = 64 << 20
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def _as_is(message: bytes) -> bytes:
    return message


async def _receive(_: object, context: Any) -> None:
    count = 0
    while await context.read() is not grpc.aio.EOF:
        count += 1
        if count % _ACK_EVERY == 0:
            await context.write(b"a")
    await context.write(b"e")


async def serve() -> None:
    """Serves on a free port, which is printed, until the parent closes our standard input."""
    keep_freed_memory()
    server = grpc.aio.server(options=_OPTIONS)
    method = grpc.stream_stream_rpc_method_handler(_receive, _as_is, _as_is)
    service, name = _METHOD[1:].split("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {name: method}),)
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.buffer.read)
    await server.stop(None)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs."""

    address: str
    pid: int


@contextlib.asynccontextmanager
async def server_process() -> AsyncIterator[Server]:
    """Runs the server in a process of its own."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.grpc_stream", stdin=pipe, stdout=pipe
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Server(f"127.0.0.1:{int(await process.stdout.readline())}", process.pid)
    finally:
        process.stdin.close()
        await process.wait()


class Stream:
    """A channel to the server; `send` measures one stream."""

    def __init__(self, address: str) -> None:
        keep_freed_memory()
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._call = self._channel.stream_stream(_METHOD, _as_is, _as_is)

    async def send(self, total: int, message_bytes: int = 1 << 20) -> float:
        """Seconds from the first byte handed over to the last acknowledgement."""
        count = total // message_bytes
        messages = [os.urandom(message_bytes) for _ in range(min(_POOL // message_bytes, count))]
        start = time.perf_counter()
        call = self._call()

        async def acknowledgements() -> None:
            while await call.read() is not grpc.aio.EOF:
                pass

        reader = asyncio.create_task(acknowledgements())
        for i in range(count):
            await call.write(messages[i % len(messages)])
        await call.done_writing()
        await reader
        return time.perf_counter() - start

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


if __name__ == "__main__":
    asyncio.run(serve())
