"""A connection to a peer of the page-server protocol: plain or TLS, with a limit on silence.

Reads go through one window of memory, whatever the peer announces. A peer that keeps us waiting for
a header, an answer or the next window longer than `patience_s` is given up, so one that sends a
byte now and then does not hold a connection for ever.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Self, TypeVar

from livemigration.criu.page_server.protocol import HeaderReader, Message, PageServerError

Buffer = bytes | bytearray | memoryview

WINDOW_BYTES: Final = 1 << 20
_MOST_BUFFERS: Final = min(1024, os.sysconf("SC_IOV_MAX"))
_FAREWELL_S: Final = 5.0
_WORTH_A_PIPE: Final = 64 << 10
_Result = TypeVar("_Result")


class PeerLost(PageServerError):
    """The peer went away, or keeps silent."""


class Channel:
    """A connected stream socket. Belongs to one thread; closes the socket with itself."""

    def __init__(self, connection: socket.socket, patience_s: float) -> None:
        self._socket = connection
        self._patience_s = patience_s
        self._window = bytearray(WINDOW_BYTES)
        self._view = memoryview(self._window)
        self._from = self._to = 0  # what of the window was received and not taken yet
        self._pipe: tuple[int, int] | None = None
        self.received = 0
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()
        pipe, self._pipe = self._pipe, None
        for end in pipe or ():
            os.close(end)

    def shutdown(self, how: int) -> None:
        """Ends the connection from another thread, which lets the owner's calls fail."""
        socket.socket.shutdown(self._socket, how)  # TLS's own would leave a socket without TLS

    # -- reading

    def header(self, size: int) -> memoryview | None:
        """The next `size` bytes (at most a window), good until the next read; None at the end.

        Raises PeerLost if the end is within them.
        """
        deadline = self._deadline()
        while self._to - self._from < size:
            if self._from + size > len(self._window):
                self._to -= self._from
                self._view[: self._to] = bytes(self._view[self._from : self._from + self._to])
                self._from = 0
            if self._receive(deadline) == 0:
                if self._from == self._to:
                    return None
                raise PeerLost(
                    f"the connection ended after {self._to - self._from} of {size} bytes"
                )
        self._from += size
        return self._view[self._from - size : self._from]

    def exactly(self, size: int) -> memoryview:
        """As `header`, but the end of the connection is an error."""
        data = self.header(size)
        if data is None:
            raise PeerLost("the peer closed the connection")
        return data

    def message(self, reader: HeaderReader) -> Message | None:
        """The next message, by the headers that `reader` knows; None at the end."""
        data = self.header(reader.wanted)
        if data is None:
            return None
        message = reader.take(data)
        return message or reader.take(self.exactly(reader.wanted))

    def copy_to(self, write: Callable[[memoryview], None], size: int) -> None:
        """Hands the next `size` bytes to `write`, window by window. Raises PeerLost."""
        while size:
            if self._from == self._to:
                self._from = self._to = 0
                if self._receive(self._deadline()) == 0:
                    raise PeerLost(f"the connection ended {size} bytes before the end of its pages")
            count = min(size, self._to - self._from)
            write(self._view[self._from : self._from + count])
            self._from += count
            size -= count

    def copy_to_file(self, descriptor: int, write: Callable[[memoryview], None], size: int) -> None:
        """As `copy_to`, for a `write` to an open file: the kernel moves what it can by itself."""
        here = min(size, self._to - self._from)
        self.copy_to(write, here)
        size -= here
        if size < _WORTH_A_PIPE or isinstance(self._socket, ssl.SSLSocket):
            self.copy_to(write, size)
            return
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_CLOEXEC)
            with suppress(OSError):  # a smaller one works as well
                fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, WINDOW_BYTES)
        source, sink = self._pipe
        while size:
            count = self._timed(
                partial(self._splice, sink, min(size, WINDOW_BYTES)), self._deadline()
            )
            if count == 0:
                raise PeerLost(f"the connection ended {size} bytes before the end of its pages")
            self.received += count
            size -= count
            while count:
                count -= os.splice(source, descriptor, count)

    def _splice(self, sink: int, size: int) -> int:
        """Moves what the socket has to a pipe, waiting for it as long as the socket's limit is."""
        try:
            return os.splice(self._socket.fileno(), sink, size)
        except BlockingIOError:
            limit = self._socket.gettimeout() or 0.0
            if not select.select([self._socket], [], [], limit)[0]:
                raise TimeoutError from None
            return os.splice(self._socket.fileno(), sink, size)

    def at_end(self) -> bool:
        """Waits for the end; False if there is a byte more."""
        return self._from == self._to and self._receive(self._deadline(), fresh=True) == 0

    def _deadline(self) -> float:
        return time.monotonic() + self._patience_s

    def _receive(self, deadline: float, *, fresh: bool = False) -> int:
        """Receives into the free part of the window; 0 at the end."""
        if fresh or self._from == self._to:
            self._from = self._to = 0
        count = self._timed(lambda: self._socket.recv_into(self._view[self._to :]), deadline)
        self._to += count
        self.received += count
        return count

    def _timed(self, action: Callable[[], _Result], deadline: float) -> _Result:
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            return action()
        except TimeoutError:
            raise PeerLost(f"the peer kept silent for {self._patience_s:g} s") from None
        except ssl.SSLEOFError:
            raise PeerLost("the connection ended without TLS's farewell") from None
        except ssl.SSLError as error:
            raise PeerLost(f"TLS failed: {error.reason or error}") from None
        except OSError as error:
            raise PeerLost(f"the connection broke: {error.strerror or error}") from None

    # -- writing

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Sends the buffers, one after the other. Raises PeerLost."""
        if isinstance(self._socket, ssl.SSLSocket):
            for buffer in buffers:
                self._timed(partial(self._socket.sendall, buffer), self._deadline())
            return
        for at in range(0, len(buffers), _MOST_BUFFERS):
            self._send_some(list(buffers[at : at + _MOST_BUFFERS]))

    def _send_some(self, buffers: list[Buffer]) -> None:
        left = sum(len(buffer) for buffer in buffers)
        while left:
            sent = self._timed(partial(self._socket.sendmsg, buffers), self._deadline())
            left -= sent
            if left:
                buffers = _after(buffers, sent)

    def finish(self) -> None:
        """Tells the peer that nothing more comes, and waits for a moment until it hangs up too.

        CRIU 4.2 writes the last of its images only when the client has ended the connection; it
        hangs up when that is done, and not before may another server rely on them.
        """
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(min(self._patience_s, _FAREWELL_S))
            with suppress(OSError, ValueError):
                self._socket = self._socket.unwrap()
        with suppress(OSError, PeerLost):
            self.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + min(self._patience_s, _FAREWELL_S)
            while self._receive(deadline, fresh=True):
                pass


def _after(buffers: list[Buffer], sent: int) -> list[Buffer]:
    """The buffers without the first `sent` bytes."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *buffers[index + 1 :]]
        sent -= len(buffer)
    return []
