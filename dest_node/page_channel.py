"""How a destination asks for pages: the stream that the source of a post-copy holds open.

Requests go out, a frame with just those pages comes back for each. What was not answered when the
stream broke is asked for again when the source opens the next one; a frame counts once. A stream
over which nothing comes for too long is ended, so that the source opens another one: something
between the hosts may have swallowed a frame.

A source that stays away for too long is lost, and a task that needs a page of it stands still. It
may come back all the same, as a paused post-copy of QEMU is recovered over a new connection
(migration/migration.c, postcopy_pause): the next stream is served like any other, and the task goes
on where it stood. What comes over a stream that was given up never counts: who was told that the
task stands still may have let the source go on with it (`livemigration.ownership_model`).
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from livemigration import batch
from livemigration.errors import DamagedFrame, MigrationError, SourceLost, WrongState
from livemigration.ownership import page_counts
from livemigration.v1 import common_pb2, destination_node_pb2

NS = 1_000_000_000
_POLL_S = 0.1

_KEPT_BYTES = 8 << 20
"""Of pages that were shown, so much is kept to be shown again: more than a connection holds."""

PageRequest = destination_node_pb2.PageRequest

_Outgoing = asyncio.Queue[PageRequest | MigrationError]
"""What goes out over a stream; an error ends it."""


class PageChannel(Protocol):
    """The source, as those see it who need pages."""

    @property
    def held(self) -> int:
        """The stream that is open, by its number; 0: none is, and no page is under way."""
        ...

    @property
    def lost(self) -> SourceLost | None:
        """Why nothing comes now; None while it may."""
        ...

    def ask(self, request: PageRequest) -> None:
        """Asks; any thread may. Without a source, it is asked when there is one."""
        ...

    def take(self) -> tuple[batch.Frame, int]:
        """The next frame that answers a request, checked, and its size on the wire; waits for it.

        Raises `SourceLost` if there is none and the source is lost.
        """
        ...

    def wait_for_source(self) -> None:
        """Returns when the source is not lost any more; `SourceLost` if nobody waits for it."""
        ...

    def poll(self) -> tuple[batch.Frame, int] | None:
        """`take` without waiting; None if there is none."""
        ...

    def tell(self, pages: destination_node_pb2.MemoryChunk) -> None:
        """Shows pages as they are here; any thread may."""
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
        self._streams = 0
        self._held = 0
        self._outgoing: _Outgoing = asyncio.Queue()  # of the stream held
        self._ended_by_us = False  # the last stream, since nothing came over it
        self._over: PageRequest | None = None
        self._told: deque[PageRequest] = deque()  # pages shown, which the source may not have seen
        self._told_bytes = 0
        self._told_last = 0
        self._heard = time.monotonic()  # when the source last said something, or was asked
        self._wait_until = self._heard + self._lost_after_s  # for a stream, while there is none
        self._lost: SourceLost | None = None
        self._stopped = False
        self._hope = threading.Event()  # the source is not lost, or nobody waits for it
        self._hope.set()
        self.on_frame: Callable[[], None] | None = None
        self.on_lost: Callable[[SourceLost], None] | None = None
        self.on_back: Callable[[], None] | None = None

    @property
    def held(self) -> int:
        """See `PageChannel.held`."""
        return self._held

    @property
    def lost(self) -> SourceLost | None:
        """See `PageChannel.lost`."""
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
        known = request.id in self._open or request.HasField("over")
        if self._held and (known or request.HasField("read_back")):
            self._outgoing.put_nowait(request)

    def tell(self, pages: destination_node_pb2.MemoryChunk) -> None:
        """See `PageChannel.tell`. If the stream breaks, they are shown again over the next one."""
        with self._lock:
            self._told_last += 1
            request = PageRequest(id=self._told_last, read_back=pages)
            self._told.append(request)
            self._told_bytes += len(pages.pages)
            while self._told_bytes > _KEPT_BYTES and len(self._told) > 1:
                self._told_bytes -= len(self._told.popleft().read_back.pages)
        self._loop.call_soon_threadsafe(self._send, request)

    def take(self) -> tuple[batch.Frame, int]:
        """See `PageChannel.take`."""
        while True:
            try:
                return self._inbox.get(timeout=_POLL_S)
            except queue.Empty:
                if self._lost is not None:
                    raise self._lost from None

    def wait_for_source(self) -> None:
        """See `PageChannel.wait_for_source`."""
        self._hope.wait()
        if self._stopped and self._lost is not None:
            raise self._lost

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
        seen: int = 0,
    ) -> None:
        """One stream, until the source ends it or it breaks. `read`: the next message, None: ended.

        A newer stream takes the place of one that nobody has noticed yet to be broken. `seen`: the
        last of the messages with pages to compare that the source has got.
        """
        if self._stopped:
            raise WrongState("nobody needs pages of this task any more")
        self._give_up(WrongState("the source opened another page stream"))
        stream = self._begin(seen)
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write(self._outgoing, write))
                while (message := await read()) is not None:
                    if page_counts(self._held, stream):
                        self._receive(message)
                writer.cancel()
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            if self._held == stream:
                self._held, self._heard = 0, time.monotonic()
                self._wait_until = self._heard + self._lost_after_s
                self._ended_by_us = False

    def _begin(self, seen: int) -> int:
        """A new stream; first goes out what the one before may not have carried."""
        outgoing: _Outgoing = asyncio.Queue()
        with self._lock:
            while self._told and self._told[0].id <= seen:
                self._told_bytes -= len(self._told.popleft().read_back.pages)
            for request in (*self._told, *self._open.values()):
                outgoing.put_nowait(request)
            self._heard = time.monotonic()
        if self._over is not None:
            outgoing.put_nowait(self._over)
        self._outgoing = outgoing
        self._streams += 1
        self._held = self._streams
        if self._lost is not None:
            self._lost = None
            self._hope.set()
            if self.on_back is not None:
                self.on_back()
        return self._held

    @staticmethod
    async def _write(outgoing: _Outgoing, write: Callable[[PageRequest], Awaitable[None]]) -> None:
        while not isinstance(request := await outgoing.get(), MigrationError):
            await write(request)
        raise request

    def _give_up(self, why: MigrationError) -> None:
        """Ends the stream that there is; what it may still bring does not count."""
        if self._held:
            self._held = 0
            self._outgoing.put_nowait(why)

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
        self._stopped = True
        if self._over is None:
            self._lost = SourceLost(why)
        self._give_up(SourceLost(why))
        self._hope.set()

    # -- a source that does not answer

    async def watch(self) -> None:
        """Looks after the source until nothing more is asked for, and tells when it is lost."""
        while self._over is None and not self._stopped:
            await asyncio.sleep(min(_POLL_S, self._lost_after_s / 8))
            if self._lost is None and self._over is None:
                self._look()

    def _look(self) -> None:
        now = time.monotonic()
        if not self._held:
            if now > self._wait_until:
                self._lose()
            return
        with self._lock:
            pages = sum(sum(request.run_pages) for request in self._open.values())
            silent = now - self._heard
        patience = self._lost_after_s
        if self._bandwidth_bps:
            patience += 2 * pages * self._page_size * 8 / self._bandwidth_bps
        if pages and silent > patience / 2:
            self._give_up(DamagedFrame(f"no page came for {silent:.1f} s; they are asked for anew"))
            self._wait_until = now + patience / 2
            self._ended_by_us = True

    def _lose(self) -> None:
        silent = time.monotonic() - self._heard
        what = "it did not answer" if self._ended_by_us else "no page stream"
        self._hope.clear()
        self._lost = SourceLost(f"the source is lost: {what} for {silent:.1f} s")
        if self.on_lost is not None:
            self.on_lost(self._lost)
