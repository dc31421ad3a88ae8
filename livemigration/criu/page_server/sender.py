"""The dumping end: what `criu dump --page-server` says to a page server.

There is no word by which a server says what went wrong: it closes the connection, and its log has
the reason. The errors here name what is known of such ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.magic import PageFlags
from livemigration.criu.page_server.channel import Buffer, Channel, PeerLost
from livemigration.criu.page_server.protocol import (
    ANSWER,
    DIALECTS,
    HAS_PARENT,
    LONG,
    SHORT,
    Command,
    Dialect,
    Message,
    PageServerError,
    Target,
)

U64 = NDArray[np.uint64]

_HEADERS: Final = {
    SHORT.size: np.dtype(
        [("command", "<u4"), ("pages", "<u4"), ("address", "<u8"), ("target", "<u8")]
    ),
    LONG.size: np.dtype(
        [
            ("command", "<u4"),
            ("unused", "<u4"),
            ("pages", "<u8"),
            ("address", "<u8"),
            ("target", "<u8"),
        ]
    ),
}


class Sender:
    """One round to one page server. Leaving the context without `finish` breaks the dump off."""

    def __init__(self, channel: Channel, dialect: Dialect, page_size: int) -> None:
        self._channel = channel
        self._dialect = dialect
        self._page_size = page_size
        self._target = Target.from_wire(1)
        self._spoken = False
        self.bytes_sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def has_parent(self, target: Target) -> bool:
        """Whether the server's parent images have pages of it (PARENT). Raises PageServerError."""
        return bool(ANSWER.unpack(self._ask(Command.PARENT, target.to_wire(), ANSWER.size))[0])

    def open(self, target: Target) -> bool:
        """What follows are pages of `target`; returns `has_parent` (OPEN2)."""
        self._target = target
        answer = self._ask(Command.OPEN2, target.to_wire(), HAS_PARENT.size)
        return bool(HAS_PARENT.unpack(answer)[0])

    def add(self, starts: U64, pages: U64, flags: U64, data: Buffer | Iterable[memoryview]) -> None:
        """Ranges of pages of the target that is open, ascending, with the bytes of those present.

        starts, pages, flags: u64[n], in bytes, pages and `PageFlags`; data: the bytes of all ranges
        with PRESENT, one after the other, in one piece or in many.
        """
        headers = np.zeros(starts.size, _HEADERS[self._dialect.size])
        headers["command"] = flags << np.uint64(16) | np.uint64(Command.ADD_F)
        headers["pages"] = pages
        headers["address"] = starts
        headers["target"] = self._target.to_wire()
        present = (flags & np.uint64(PageFlags.PRESENT)) != 0
        sizes = np.where(present, pages.astype(np.int64) * self._page_size, 0)
        ends = np.cumsum(sizes).tolist()
        pieces = [memoryview(data)] if isinstance(data, bytes | bytearray | memoryview) else data
        words, rest = memoryview(headers.tobytes()), iter(pieces)
        step = self._dialect.size
        buffers: list[Buffer] = []
        began = before = 0
        piece = memoryview(b"")
        for index, end in enumerate(ends):
            # Headers of holes, which nothing follows, go together.
            if end == before:
                continue
            buffers.append(words[began : (index + 1) * step])
            began = (index + 1) * step
            while before < end:
                piece = piece or next(rest, piece)
                if not piece:
                    raise ValueError(f"no bytes for the last {ends[-1] - before} bytes of pages")
                part, piece = piece[: end - before], piece[end - before :]
                buffers.append(part)
                before += len(part)
        if began < len(words):
            buffers.append(words[began:])
        self._send(buffers)

    def finish(self, *, lent: bool = False) -> None:
        """All is sent; returns when the server has it all. Raises PageServerError.

        lent: the connection is somebody else's, who goes on to use it: CRIU says FORCE_CLOSE then.
        """
        command = Command.FORCE_CLOSE if lent else Command.CLOSE
        (status,) = ANSWER.unpack(self._ask(command, 0, ANSWER.size))
        if status:
            raise PageServerError(f"the page server ended with status {status}: its log says why")
        if not lent:
            self._channel.finish()

    def _ask(self, command: Command, target: int, size: int) -> bytes:
        self._send([self._dialect.encode(Message(command, target=target))])
        try:
            answer = bytes(self._channel.exactly(size))
        except PeerLost as error:
            raise self._explained(error) from None
        self._spoken = True
        return answer

    def _send(self, buffers: list[Buffer]) -> None:
        try:
            self._channel.send(buffers)
        except PeerLost as error:
            raise self._explained(error) from None
        self.bytes_sent += sum(len(buffer) for buffer in buffers)

    def _explained(self, error: PeerLost) -> PageServerError:
        if self._spoken:
            return PageServerError(
                f"the page server gave up: {error}. Its log says why; a page that it was told to "
                "have in its parent images, and has not, is one reason"
            )
        other = next(name for name, dialect in DIALECTS.items() if dialect is not self._dialect)
        return PageServerError(
            f"the page server did not understand the first command: {error}. Nothing in the "
            f"protocol tells of which CRIU a server is: if not of {self._dialect.name}, give "
            f"--criu-version {other}"
        )
