"""A client of the page server in a test: says what it is told to, and keeps what it hears."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from livemigration.criu.page_server.channel import Channel
from livemigration.criu.page_server.checkpoint import Checkpoint, ImageCount, Limits
from livemigration.criu.page_server.protocol import (
    Command,
    Dialect,
    Message,
    Target,
    TargetKind,
)
from livemigration.criu.page_server.receiver import Receiver

PAGE = 4096


def process(pid: int) -> Target:
    """A process."""
    return Target(TargetKind.PROCESS, pid)


@dataclass(slots=True)
class Conversation:
    """How a conversation with the receiver went."""

    complete: bool = False
    heard: bytes = b""
    counts: tuple[ImageCount, ...] = ()
    dialect: Dialect | None = None
    received: int = 0
    buffers: list[int] = field(default_factory=list)


def converse(
    said: bytes,
    folder: Path,
    parent: Path | None = None,
    *,
    limits: Limits | None = None,
    make: Callable[[], Checkpoint] | None = None,
) -> Conversation:
    """Says all of it to a receiver and hangs up. Raises what the receiver raises."""
    client, server = socket.socketpair()
    told = Conversation()

    def talk() -> None:
        try:
            client.sendall(said)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the receiver has hung up
        try:
            while data := client.recv(4096):
                told.heard += data
        except OSError:
            pass

    talking = threading.Thread(target=talk)
    talking.start()
    begin = make or (lambda: Checkpoint(folder, parent, page_size=PAGE, limits=limits))
    try:
        with Channel(server, 5) as channel, Receiver(channel, begin) as receiver:
            try:
                told.complete = receiver.run()
                receiver.confirm()
            finally:
                told.counts, told.dialect = receiver.counts, receiver.dialect
                told.received = channel.received
    finally:
        server.close()
        talking.join(10)
        client.close()
    return told


def opening(dialect: Dialect, target: Target) -> bytes:
    """OPEN2."""
    return dialect.encode(Message(Command.OPEN2, target=target.to_wire()))


def adding(
    dialect: Dialect,
    target: Target,
    address: int,
    data: bytes = b"",
    *,
    pages: int | None = None,
    flags: int = 4,
) -> bytes:
    """ADD_F, with the bytes of its pages."""
    count = len(data) // PAGE if pages is None else pages
    header = Message(Command.ADD_F, flags, count, address, target.to_wire())
    return dialect.encode(header) + data


def closing(dialect: Dialect) -> bytes:
    """CLOSE."""
    return dialect.encode(Message(Command.CLOSE))
