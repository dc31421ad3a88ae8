"""Lazy pages: a process restored without all of its memory fetches pages when it needs them.

`criu lazy-pages --page-server` asks (GET), and whoever has the pages answers each time with a
header and the pages, fewer than asked for if it likes (criu/page-xfer.c, page_server_get_pages). A
real `criu dump --lazy-pages` answers from the frozen process; `LazyServer` from any `LazySource`.
`LazyClient` is the asking side.
"""

from __future__ import annotations

from typing import Final, Protocol

from livemigration.criu.magic import PageFlags
from livemigration.criu.page_images import PageImage
from livemigration.criu.page_server.channel import Buffer, Channel, PeerLost
from livemigration.criu.page_server.protocol import (
    ANSWER,
    Command,
    Dialect,
    HeaderReader,
    Message,
    PageServerError,
)

MOST_PAGES: Final = 1024
"""What one answer carries at most; `criu lazy-pages` asks for no more either (4 MiB)."""


class LazySource(Protocol):
    """Who has the pages."""

    page_size: int

    def pages(self, pid: int, address: int, most: int) -> Buffer:
        """The bytes of 1 to `most` pages from `address` on; PageServerError if there is none."""
        ...


class LazyServer:
    """Answers one client, until it says that it has what it needs."""

    def __init__(self, channel: Channel, source: LazySource) -> None:
        self._channel = channel
        self._source = source
        self._reader = HeaderReader()
        self.requests = 0
        self.pages = 0

    @property
    def dialect(self) -> Dialect | None:
        """What the client speaks; None until it has said anything."""
        return self._reader.dialect

    def run(self) -> None:
        """Serves until CLOSE, or until the client goes away. Raises PageServerError."""
        while (message := self._channel.message(self._reader)) is not None:
            if message.command == Command.GET:
                self._answer(message)
            elif message.command in (Command.CLOSE, Command.FORCE_CLOSE):
                self._channel.send([ANSWER.pack(0)])
                return
            elif message.command in (Command.OPEN, Command.OPEN2, Command.PARENT, Command.ADD_F):
                raise PageServerError(
                    "the client dumps, and this port serves lazy pages: `criu dump --page-server` "
                    "goes to a page server"
                )
            else:
                raise PageServerError(f"unknown command {message.command:#x}")

    def _answer(self, message: Message) -> None:
        size = self._source.page_size
        if message.pages == 0 or message.address % size:
            raise PageServerError(f"{message.pages} pages asked for at {message.address:#x}")
        most = min(message.pages, MOST_PAGES)
        data = memoryview(self._source.pages(message.target, message.address, most))
        count = len(data) // size
        assert self.dialect is not None
        header = Message(Command.ADD_F, PageFlags.PRESENT, count, message.address, message.target)
        self._channel.send([self.dialect.encode(header), data])
        self.requests += 1
        self.pages += count


class LazyClient:
    """Asks a `criu dump --lazy-pages` for pages."""

    def __init__(self, channel: Channel, dialect: Dialect, page_size: int) -> None:
        self._channel = channel
        self._dialect = dialect
        self._reader = HeaderReader(dialect)
        self._page_size = page_size

    def get(self, pid: int, address: int, pages: int) -> memoryview:
        """Bytes of 1 to `pages` pages from `address` on. Raises PageServerError."""
        data = bytearray(self._ask(pid, address, pages) * self._page_size)
        at = 0

        def take(part: memoryview) -> None:
            nonlocal at
            data[at : at + len(part)] = part
            at += len(part)

        self._channel.copy_to(take, len(data))
        return memoryview(data)

    def get_into(self, image: PageImage, pid: int, address: int, pages: int) -> int:
        """The same, written to the image's pages file; returns how many pages came."""
        count = self._ask(pid, address, pages)
        image.take_from(self._channel, count * self._page_size)
        return count

    def _ask(self, pid: int, address: int, pages: int) -> int:
        """Asks, and returns how many pages follow."""
        asked = Message(Command.GET, 0, pages, address, pid)
        try:
            self._channel.send([self._dialect.encode(asked)])
            answer = self._reader.take(self._channel.exactly(self._dialect.size))
        except PeerLost as error:
            raise PageServerError(
                f"no answer for {pages} pages of process {pid} at {address:#x}: {error}. The log "
                "of the dump says why; --criu-version must be that of the dump"
            ) from None
        assert answer is not None
        if (
            answer.command != Command.ADD_F
            or not answer.flags & PageFlags.PRESENT
            or (answer.address, answer.target) != (address, pid)
            or not 0 < answer.pages <= pages
        ):
            raise PageServerError(
                f"asked for {pages} pages at {address:#x}, answered with {answer}: is the dump of "
                f"CRIU {self._dialect.name}? --criu-version says"
            )
        return answer.pages

    def finish(self) -> None:
        """All pages are here: the dump may end its process."""
        self._channel.send([self._dialect.encode(Message(Command.CLOSE))])
        (status,) = ANSWER.unpack(self._channel.exactly(ANSWER.size))
        if status:
            raise PageServerError(f"the dump ended with status {status}: its log says why")
        self._channel.finish()
