"""A host in the middle that understands what passes: the destination's service, message by message.

It serves every call of `DestinationNode` and makes the same call at the destination, with the bytes
as they are. It says when a point of the migration is reached (`predump.faults.points`), and may
change frames with pages, of a transfer and of a post-copy after the hand-over: send them twice, in
another order, cut short, damaged, or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from livemigration.channel import SERVER_OPTIONS, open_channel
from livemigration.v1 import destination_node_pb2
from predump.faults.points import CALLS, Frames, Pages

_SERVICE = destination_node_pb2.DESCRIPTOR.services_by_name["DestinationNode"]
_Context = grpc.aio.ServicerContext[Any, Any]
_HOP = ("user-agent", "te", "content-type")
"""Metadata that belongs to one connection."""


class Watcher:
    """What is told of each point, and may change frames; this one does nothing."""

    async def reach(self, point: str) -> None:
        """The message that marks the point is held until this returns."""

    def leave_behind(self, pages: Pages) -> None:
        """The final round of a post-copy is on its way; these come after the hand-over."""

    def frames(self, message: bytes) -> list[bytes]:
        """What is passed on in place of a frame with pages."""
        return [message]

    async def pace(self) -> None:
        """A frame is passed on when this returns."""


class Relay(grpc.GenericRpcHandler):
    """Forwards to `target`; `watcher` may be another one at any time."""

    def __init__(self, target: str) -> None:
        self.watcher = Watcher()
        self._channel = open_channel(target)
        self._pages: dict[str, Pages] = {}  # of the last migration that left pages behind
        self._server: grpc.aio.Server | None = None

    async def open(self) -> str:
        """Listens; returns HOST:PORT."""
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers((self,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def close(self) -> None:
        """Ends all calls."""
        if self._server is not None:
            await self._server.stop(0)
        await self._channel.close()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call, by whether it streams."""
        service, _, name = details.method.removeprefix("/").partition("/")
        method = _SERVICE.methods_by_name.get(name)
        if service != _SERVICE.full_name or method is None:
            return None
        path = details.method

        async def download(request: bytes, context: _Context) -> AsyncIterator[bytes]:
            async for reply in self._download(path, request, context):
                yield reply

        async def both(_: object, context: _Context) -> None:
            await self._both(path, name, context)

        async def single(request: Any, context: _Context) -> bytes:
            forward = self._upload if method.client_streaming else self._unary
            return await forward(path, name, request, context)

        if method.client_streaming and method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(both)
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(single)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(download)
        return grpc.unary_unary_rpc_method_handler(single)

    async def _unary(self, path: str, name: str, request: bytes, context: _Context) -> bytes:
        if name in CALLS:
            await self.watcher.reach(CALLS[name])
        call: Callable[..., Awaitable[bytes]] = self._channel.unary_unary(path)
        reply = await _passed(context, call(request, metadata=_metadata(context)))
        if name == "Commit":
            await self.watcher.reach("taken")
        return reply

    async def _upload(
        self, path: str, name: str, requests: AsyncIterator[bytes], context: _Context
    ) -> bytes:
        if name in CALLS:
            await self.watcher.reach(CALLS[name])
        call: Callable[..., Awaitable[bytes]] = self._channel.stream_unary(path)
        return await _passed(context, call(requests, metadata=_metadata(context)))

    async def _download(self, path: str, request: bytes, context: _Context) -> AsyncIterator[bytes]:
        make: Callable[..., Any] = self._channel.unary_stream(path)
        call = make(request, metadata=_metadata(context))
        try:
            async for reply in call:
                yield reply
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        finally:
            call.cancel()

    async def _both(self, path: str, name: str, context: _Context) -> None:
        make: Callable[..., Any] = self._channel.stream_stream(path)
        call = make(metadata=_metadata(context))
        pump = asyncio.create_task(
            self._transfer(context, call) if name == "Transfer" else self._fetched(context, call)
        )
        try:
            await context.send_initial_metadata(())
            while (reply := await call.read()) is not grpc.aio.EOF:
                if name == "FetchPages" and Pages.over(reply):
                    await self.watcher.reach("pages-over")
                await context.write(reply)
            code = await call.code()
            if code is not grpc.StatusCode.OK:
                await context.abort(code, await call.details() or "")
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        finally:
            pump.cancel()
            call.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _transfer(self, context: _Context, call: Any) -> None:
        frames = Frames()
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            while (message := await context.read()) is not grpc.aio.EOF:
                point = frames.reach(message)
                if frames.pages is not None:
                    self._pages = {_migration(context): frames.pages}
                    self.watcher.leave_behind(frames.pages)
                    frames.pages = None
                if point:
                    await self.watcher.reach(point)
                await self._pass(message, call)
            await call.done_writing()

    async def _fetched(self, context: _Context, call: Any) -> None:
        pages = self._pages.get(_migration(context)) or Pages([])
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            while (message := await context.read()) is not grpc.aio.EOF:
                for point in pages.reach(message):
                    await self.watcher.reach(point)
                await self._pass(message, call)
            await call.done_writing()

    async def _pass(self, message: bytes, call: Any) -> None:
        """What becomes of a frame."""
        for passed in self.watcher.frames(message):
            await self.watcher.pace()
            await call.write(passed)


async def _passed(context: _Context, call: Awaitable[bytes]) -> bytes:
    """The reply, or the same status."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        await context.abort(error.code(), error.details() or "")
        raise AssertionError("abort returned") from error


def _migration(context: _Context) -> str:
    return str(dict(_metadata(context)).get("migration-id", ""))


def _metadata(context: _Context) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(
        (key, value) for key, value in context.invocation_metadata() or () if key not in _HOP
    )
