"""How a destination asks for pages: the stream that the source of a post-copy holds open.

Requests go out, a frame with just those pages comes back for each. What was not answered when the
stream broke is asked for again when the source opens the next one; a frame counts once. A source
that is away for too long, or keeps silent for too long over a request, is lost.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from livemigration import batch
from livemigration.errors import SourceLost, WrongState
from livemigration.v1 import common_pb2, destination_node_pb2

NS = 1_000_000_000
_POLL_S = 0.1

PageRequest = destination_node_pb2.PageRequest


class PageChannel(Protocol):
    """The source, as those see it who need pages."""

    def ask(self, request: PageRequest) -> None:
        """Asks; any thread may."""
        ...

    def take(self) -> tuple[batch.Frame, int]:
        """The next frame that answers a request, checked, and its size on the wire; waits for it.

        Raises `SourceLost`.
        """
        ...

    def poll(self) -> tuple[batch.Frame, int] | None:
        """The same without waiting; None if there is none."""
        ...

    def tell(self, pages: destination_node_pb2.MemoryChunk) -> None:
        """Shows pages as they are here; any thread may. If the stream breaks, it may be in vain."""
        ...

    def over(self, record: common_pb2.PostCopyRecord) -> None:
        """Nothing more will be asked for."""
        ...


class StreamChannel:
    """`PageChannel` over `DestinationNode.FetchPages`."""

    def __init__(self, page_size: int, lost_after_ns: int, bandwidth_bps: int) -> None:
        """bandwidth_bps: how slow the link may be (0: no limit), which is no silence."""
        self._loop = asyncio.get_running_loop()
        self._page_size = page_size
        self._lost_after_s = lost_after_ns / NS
        self._bandwidth_bps = bandwidth_bps
        self._open: dict[int, PageRequest] = {}  # by id, not answered yet
        self._inbox: queue.SimpleQueue[tuple[batch.Frame, int]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._outgoing: asyncio.Queue[PageRequest | None] | None = None
        self._over: PageRequest | None = None
        self._heard = time.monotonic()  # when the source last said something, or was asked
        self._lost: SourceLost | None = None
        self.on_frame: Callable[[], None] | None = None
        self.on_lost: Callable[[SourceLost], None] | None = None

    @property
    def connected(self) -> bool:
        """Whether the source holds the stream open."""
        return self._outgoing is not None

    @property
    def lost(self) -> SourceLost | None:
        """Why nothing more will come; None while it may."""
        return self._lost

    # -- for those who need pages

    def ask(self, request: PageRequest) -> None:
        """See `PageChannel.ask`."""
        with self._lock:
            if not self._open:
                self._heard = time.monotonic()
            self._open[request.id] = request
        self._loop.call_soon_threadsafe(self._send, request)

    def _send(self, request: PageRequest) -> None:
        # Without a stream it goes out with the others when there is one.
        if self._outgoing is not None and (request.id in self._open or not request.id):
            self._outgoing.put_nowait(request)

    def tell(self, pages: destination_node_pb2.MemoryChunk) -> None:
        """See `PageChannel.tell`."""
        self._loop.call_soon_threadsafe(self._send, PageRequest(read_back=pages))

    def take(self) -> tuple[batch.Frame, int]:
        """See `PageChannel.take`."""
        while True:
            try:
                return self._inbox.get(timeout=_POLL_S)
            except queue.Empty:
                if self._lost is not None:
                    raise self._lost from None

    def poll(self) -> tuple[batch.Frame, int] | None:
        """See `PageChannel.poll`."""
        try:
            return self._inbox.get_nowait()
        except queue.Empty:
            return None

    def over(self, record: common_pb2.PostCopyRecord) -> None:
        """See `PageChannel.over`."""
        self._over = PageRequest(over=record)
        self._loop.call_soon_threadsafe(self._send, self._over)

    # -- the stream

    async def hold(
        self,
        read: Callable[[], Awaitable[bytes | None]],
        write: Callable[[PageRequest], Awaitable[None]],
    ) -> None:
        """One stream, until the source ends it or it breaks. `read`: the next message, None: ended.

        A newer stream takes the place of one that nobody has noticed yet to be broken.
        """
        if self._lost is not None:
            raise WrongState(f"{self._lost}; it comes too late")
        if self._outgoing is not None:
            self._outgoing.put_nowait(None)
        outgoing: asyncio.Queue[PageRequest | None] = asyncio.Queue()
        self._outgoing, self._heard = outgoing, time.monotonic()
        with self._lock:
            for request in self._open.values():
                outgoing.put_nowait(request)
        if self._over is not None:
            outgoing.put_nowait(self._over)
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write(outgoing, write))
                while (message := await read()) is not None:
                    self._receive(message)
                writer.cancel()
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            if self._outgoing is outgoing:
                self._outgoing, self._heard = None, time.monotonic()

    @staticmethod
    async def _write(
        outgoing: asyncio.Queue[PageRequest | None], write: Callable[[PageRequest], Awaitable[None]]
    ) -> None:
        while (request := await outgoing.get()) is not None:
            await write(request)
        raise WrongState("the source opened another page stream")

    def _receive(self, message: bytes) -> None:
        frame = batch.decode(message)
        batch.check(frame, self._page_size)
        with self._lock:
            self._heard = time.monotonic()
            if self._open.pop(frame.sequence, None) is None:
                return  # answered twice around a break: once is enough
        self._inbox.put((frame, len(message)))
        if self.on_frame is not None:
            self.on_frame()

    def stop(self, why: str) -> None:
        """Whoever waits for a page waits no longer, and the stream ends."""
        if self._lost is None and self._over is None:
            self._lost = SourceLost(why)
        if self._outgoing is not None:
            self._outgoing.put_nowait(None)

    # -- a source that does not come back

    async def watch(self) -> None:
        """Runs until the source is lost, and tells everybody."""
        while self._lost is None:
            await asyncio.sleep(_POLL_S)
            if self._over is not None:
                return
            self._lost = self._judge()
        if self.on_lost is not None and self._lost is not None:
            self.on_lost(self._lost)

    def _judge(self) -> SourceLost | None:
        silent = time.monotonic() - self._heard
        if self._outgoing is None:
            if silent > self._lost_after_s:
                return SourceLost(f"the source is lost: no page stream for {silent:.1f} s")
            return None
        with self._lock:
            pages = sum(sum(request.run_pages) for request in self._open.values())
        if not pages:
            return None
        patience = self._lost_after_s
        if self._bandwidth_bps:
            patience += 2 * pages * self._page_size * 8 / self._bandwidth_bps
        if silent > patience:
            return SourceLost(f"the source is lost: it did not answer for {silent:.1f} s")
        return None
