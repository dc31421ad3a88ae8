"""A network in memory between the real source and the real destination, on which all goes wrong.

`MemoryChannel` is as much of a gRPC channel as `source_node.grpc_transport` uses. Each request goes
straight to the handlers of a real `DestinationNode`, unless the schedule says otherwise: it is
lost, or its answer is, it arrives twice, or again much later; the destination dies before or
after it, and a new one starts with the same state directory, or with another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from dest_node.server import _Handlers
from dest_node.servicer import DestinationNode
from dest_node.store import StateDirectory
from livemigration.drill import Drill
from livemigration.observe.metrics import DestinationMetrics
from livemigration.ownership import Ownership
from livemigration.telemetry import Telemetry
from livemigration.v1 import destination_node_pb2_grpc

CALLS = (
    "ok", "lose-request", "lose-answer", "silence", "twice", "late", "hang-up",
    "crash-before", "crash-after", "crash-before-other", "crash-after-other",
)  # fmt: skip
FRAMES = ("ok", "twice", "swap", "swallow", "damage", "break", "crash")
_RAW = ("Transfer", "FetchPages")


class _Refused(Exception):
    """What `context.abort` ends a handler with."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


def _error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


class _Context:
    """A handler's side of one call."""

    def __init__(self, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._metadata = metadata
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.outbox: asyncio.Queue[Any] = asyncio.Queue()
        self.begun = asyncio.Event()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise _Refused(code, details)

    async def read(self) -> Any:
        return await self.inbox.get()

    async def write(self, message: Any) -> None:
        self.outbox.put_nowait(message)

    async def send_initial_metadata(self, metadata: Any) -> None:
        self.begun.set()


class Silent(Telemetry):
    """No broker."""

    def state(self, migration_id: str, **fields: object) -> None: ...

    def round(self, migration_id: str, fields: Any) -> None: ...

    def event(self, migration_id: str, event: str, **fields: object) -> None: ...


class Network:
    """The destination's processes, one after the other, and what becomes of each message."""

    def __init__(self, folder: Path, calls: Iterator[str], frames: Iterator[str]) -> None:
        self._folder = folder
        self.calls, self.frames = calls, frames
        self.node: DestinationNode | None = None
        self._methods: dict[str, Any] = {}
        self._store: StateDirectory | None = None
        self._streams: set[MemoryStream] = set()
        self.again: list[tuple[str, bytes]] = []  # requests that may arrive once more
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Future[None]] = set()
        self.check: Callable[[], None] = lambda: None
        self.log: list[str] = []

    async def start(self, directory: str = "home") -> None:
        """A new process, unless there is one."""
        await self._to_its_end(self._start(directory))

    async def _start(self, directory: str) -> None:
        async with self._changing:
            if self.node is not None:
                return
            store = StateDirectory(self._folder / directory)
            node = DestinationNode(
                host_id="dest",
                version="",
                store=store,
                telemetry=Silent(),
                drill=Drill(),
                metrics=DestinationMetrics(host_id="dest", version=""),
            )
            node._warm.wait = lambda: None  # type: ignore[method-assign]  # warm already
            node._warm.start = lambda: None  # type: ignore[method-assign]
            await node.start()
            handlers = _Handlers()
            destination_node_pb2_grpc.add_DestinationNodeServicer_to_server(
                node, cast("grpc.aio.Server", handlers)
            )
            self.node, self._store, self._methods = node, store, handlers.methods

    async def crash(self) -> None:
        """The process is gone: what it had in memory, its connections, its lock."""
        await self._to_its_end(self._crash())

    async def _crash(self) -> None:
        async with self._changing:
            node, self.node = self.node, None
            for stream in list(self._streams):
                await stream.cut(_error(grpc.StatusCode.UNAVAILABLE, "the process died"))
            if node is not None and self._store is not None:
                steps = list(node._steps)
                for step in steps:
                    step.cancel()
                await asyncio.gather(*steps, return_exceptions=True)
                await node._stop_post_copy()  # its threads
                await asyncio.to_thread(node._pool.shutdown)
                self._store.close()

    async def _to_its_end(self, change: Coroutine[Any, Any, None]) -> None:
        """Whoever waits for it: a caller that loses its patience cannot keep a process half dead.

        What else changes the process waits for this one.
        """
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    @property
    def state(self) -> Ownership:
        """Of the destination's task."""
        if self.node is None or self.node._incoming is None:
            return Ownership.NONE
        return self.node._incoming.ownership.state

    async def call(self, name: str, request: bytes | AsyncIterator[bytes]) -> bytes:
        """One request and its answer; AioRpcError."""
        fate = next(self.calls, "ok")
        self.log.append(f"{name}: {fate}")
        if self.node is None:
            await self.start("home" if "other" not in fate else "other")
        if isinstance(request, bytes):
            self.again.append((name, request))
        if fate.startswith("crash-before"):
            await self.crash()
            await self.start("other" if fate.endswith("other") else "home")
            raise _error(grpc.StatusCode.UNAVAILABLE, "the process died")
        if fate == "lose-request":
            raise _error(grpc.StatusCode.UNAVAILABLE, "lost")
        if fate == "silence":
            raise _error(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer")
        if fate == "late" and isinstance(request, bytes):
            asyncio.get_running_loop().call_later(0.02, self._arrives_late, name, request)
            raise _error(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer")
        if fate == "hang-up" and isinstance(request, bytes):
            # The connection breaks while the destination is at it.
            work = asyncio.ensure_future(self._deliver(name, request))
            await asyncio.sleep(0.001)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            raise _error(grpc.StatusCode.UNAVAILABLE, "broken")
        if fate == "twice" and isinstance(request, bytes):
            await self.deliver_once_more(name, request)
        try:
            answer = await self._deliver(name, request)
        finally:
            self.check()
        if fate.startswith("crash-after"):
            await self.crash()
            await self.start("other" if fate.endswith("other") else "home")
            raise _error(grpc.StatusCode.UNAVAILABLE, "the process died")
        if fate == "lose-answer":
            raise _error(grpc.StatusCode.UNAVAILABLE, "lost")
        return answer

    def _arrives_late(self, name: str, request: bytes) -> None:
        self._late = asyncio.ensure_future(self.deliver_once_more(name, request))

    async def deliver_once_more(self, name: str, request: bytes) -> None:
        """To whoever is there now; nobody hears the answer."""
        if self.node is not None:
            try:
                await self._deliver(name, request)
            except grpc.aio.AioRpcError:
                pass
            finally:
                self.check()

    async def _deliver(self, name: str, request: bytes | AsyncIterator[bytes]) -> bytes:
        node, method = self.node, self._methods[name]
        context = _Context()
        try:
            if isinstance(request, bytes):
                reply = await method.unary_unary(method.request_deserializer(request), context)
            else:
                chunks = (method.request_deserializer(part) async for part in request)
                reply = await method.stream_unary(chunks, context)
        except _Refused as refused:
            raise _error(refused.code, refused.details) from refused
        except (RuntimeError, asyncio.CancelledError) as error:
            if self.node is node:
                raise
            raise _error(grpc.StatusCode.UNAVAILABLE, "the process died") from error
        return cast("bytes", method.response_serializer(reply))

    def open(self, name: str, metadata: tuple[tuple[str, str], ...]) -> MemoryStream:
        """A stream both ways."""
        if self.node is None:
            return MemoryStream(self, None, metadata, "the process died")
        handler = getattr(self.node, name)
        stream = MemoryStream(self, handler, metadata)
        self._streams.add(stream)
        return stream

    def closed(self, stream: MemoryStream) -> None:
        """It is over."""
        self._streams.discard(stream)


class MemoryStream:
    """The caller's side of a transfer."""

    def __init__(
        self,
        network: Network,
        handler: Any,
        metadata: tuple[tuple[str, str], ...],
        broken: str = "",
    ) -> None:
        self._network = network
        self._context = _Context(metadata)
        self._held: list[bytes] = []
        self._end: grpc.aio.AioRpcError | None = None
        self._cancelled = False
        self._work: asyncio.Task[None] | None = None
        if handler is None:
            self._end = _error(grpc.StatusCode.UNAVAILABLE, broken)
            self._context.begun.set()
            self._context.outbox.put_nowait(grpc.aio.EOF)
        else:
            self._work = asyncio.ensure_future(handler(None, self._context))
            self._work.add_done_callback(self._ended)

    def _ended(self, work: asyncio.Task[None]) -> None:
        """The handler is over, or was cancelled before it began."""
        if work.cancelled():
            end = _error(grpc.StatusCode.UNAVAILABLE, "broken")
        else:
            error = work.exception()
            if isinstance(error, _Refused):
                end = _error(error.code, error.details)
            else:
                end = _error(
                    grpc.StatusCode.OK if error is None else grpc.StatusCode.UNKNOWN, repr(error)
                )
        self._end = self._end or end
        self._network.closed(self)
        self._context.begun.set()
        self._context.outbox.put_nowait(grpc.aio.EOF)
        self._network.check()

    async def cut(self, error: grpc.aio.AioRpcError) -> None:
        """The connection is gone."""
        self._end = self._end or error
        if self._work is not None and not self._work.done():
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    async def write(self, message: bytes) -> None:
        if self._end is not None:
            raise asyncio.InvalidStateError("the call is over")
        fate = next(self._network.frames, "ok")
        if fate != "ok":
            self._network.log.append(f"frame: {fate}")
        inbox = self._context.inbox
        match fate:
            case "twice":
                inbox.put_nowait(message)
            case "swap":
                self._held.append(message)
                return
            case "swallow":
                return
            case "damage":
                damaged = bytearray(message)
                damaged[len(damaged) // 2] ^= 1
                message = bytes(damaged)
            case "break":
                await self.cut(_error(grpc.StatusCode.UNAVAILABLE, "broken"))
                raise _error(grpc.StatusCode.UNAVAILABLE, "broken")
            case "crash":
                await self._network.crash()
                await self._network.start()
                raise _error(grpc.StatusCode.UNAVAILABLE, "the process died")
        inbox.put_nowait(message)
        while self._held:
            inbox.put_nowait(self._held.pop())

    async def done_writing(self) -> None:
        self._context.inbox.put_nowait(grpc.aio.EOF)

    def cancel(self) -> None:
        self._cancelled = True
        if self._work is not None:
            self._work.cancel()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self._context.outbox.get()) is not grpc.aio.EOF:
            yield message
        if self._cancelled:
            raise asyncio.CancelledError
        assert self._end is not None
        if self._end.code() is not grpc.StatusCode.OK:
            raise self._end

    async def initial_metadata(self) -> None:
        await self._context.begun.wait()

    def done(self) -> bool:
        return self._end is not None

    async def code(self) -> grpc.StatusCode:
        assert self._end is not None
        return self._end.code()

    async def details(self) -> str:
        assert self._end is not None
        return self._end.details() or ""


class MemoryChannel:
    """As much of `grpc.aio.Channel` as the source uses."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def unary_unary(self, path: str, *serializers: Any, **options: Any) -> Any:
        name, encode, decode = _method(path, options)

        async def call(request: Any, **options: Any) -> Any:
            return decode(await self._network.call(name, encode(request)))

        return call

    def stream_unary(self, path: str, *serializers: Any, **options: Any) -> Any:
        name, encode, decode = _method(path, options)

        async def call(requests: AsyncIterator[Any], **options: Any) -> Any:
            chunks = (encode(part) async for part in requests)
            return decode(await self._network.call(name, chunks))

        return call

    def unary_stream(self, path: str, *serializers: Any, **options: Any) -> Any:
        return None  # reading memory back is not part of this

    def stream_stream(self, path: str, *serializers: Any, **options: Any) -> Any:
        name = path.rpartition("/")[2]

        def call(metadata: Any = ()) -> MemoryStream:
            return self._network.open(name, tuple(metadata))

        return call

    async def close(self) -> None: ...


def _method(path: str, options: dict[str, Any]) -> tuple[str, Any, Any]:
    return (
        path.rpartition("/")[2],
        options["request_serializer"],
        options["response_deserializer"],
    )
