"""The words of CRIU's page-server protocol: commands, headers, and whose pages they are about.

Facts from CRIU's criu/page-xfer.c (v3.17 to v4.2). Every command begins with a header; `ADD_F` with
the flag `PRESENT` (and the old `ADD`) is followed by that many pages of raw bytes. Numbers are
little-endian, and pages have the size of the machine that sends them: nobody says which.

There are two dialects, and no word by which the two sides could agree on one:

========== ========= ====================================================================
CRIU       bytes     layout
========== ========= ====================================================================
to 4.1.1   24        command u32, pages u32, address u64, target u64
from 4.2   32        command u32, 4 bytes of anything, pages u64, address u64, target u64
========== ========= ====================================================================

A server knows a dumping client by its first command, which has no address: the eight bytes at 16
are the target in the short dialect, and zeros (the address) in the long one. A client that asks for
lazy pages is known by the eight bytes at 8: an address is never below a page, and no client asks
for as many pages as a page has bytes.

This module does no I/O.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from livemigration.errors import BadRequest


class PageServerError(BadRequest):
    """What a peer did that ends the connection, in one line."""


class Command(IntEnum):
    """The lower 16 bits of a command; the upper ones are those of a pagemap entry (`PageFlags`)."""

    ADD = 1  # up to 3.x: pages, always with bytes
    HOLE = 2  # up to 3.x: pages that the parent has
    OPEN = 3  # up to 2.x: OPEN2 without an answer
    OPEN2 = 4
    PARENT = 5
    ADD_F = 6
    GET = 7
    CLOSE = 0x1023
    FORCE_CLOSE = 0x1024


class TargetKind(IntEnum):
    """Whose pages: a process', or a shared segment's."""

    PROCESS = 1
    SHARED = 2


_LEGACY_PROCESS: Final = frozenset({10, 11, 16, 17})
_LEGACY_SHARED: Final = frozenset({27, 28, 29, 32, 33, 34})
_MOST_ID: Final = (1 << 56) - 1


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A process by its pid, or a shared segment by its id: one pagemap image."""

    kind: TargetKind
    id: int

    @property
    def pagemap_name(self) -> str:
        """The file that lists its pages."""
        shared = "shmem-" if self.kind is TargetKind.SHARED else ""
        return f"pagemap-{shared}{self.id}.img"

    def to_wire(self) -> int:
        """As a header's last number."""
        if not 0 <= self.id <= _MOST_ID:
            raise ValueError(f"the id {self.id} does not fit into a page-server command")
        return self.id << 8 | self.kind

    @classmethod
    def from_wire(cls, number: int) -> Target:
        """Out of a header. Raises PageServerError for a type that CRIU does not know."""
        kind, identity = number & 0xFF, number >> 8
        if kind == TargetKind.PROCESS or kind in _LEGACY_PROCESS:
            return cls(TargetKind.PROCESS, identity)
        if kind == TargetKind.SHARED or kind in _LEGACY_SHARED:
            return cls(TargetKind.SHARED, identity)
        raise PageServerError(f"{number:#x} names no process and no shared segment (type {kind})")

    def __str__(self) -> str:
        what = "shared segment" if self.kind is TargetKind.SHARED else "process"
        return f"{what} {self.id}"


@dataclass(frozen=True, slots=True)
class Message:
    """One header. `command` may be a number that no `Command` has."""

    command: int
    flags: int = 0
    pages: int = 0
    address: int = 0
    target: int = 0  # as on the wire: `Target.from_wire`, or the plain pid of a GET


class Dialect:
    """How headers are laid out."""

    def __init__(self, name: str, layout: str) -> None:
        self.name = name
        self._struct = struct.Struct(layout)
        self.size = self._struct.size
        self.most_pages = (1 << 32) - 1 if self.size == 24 else (1 << 64) - 1

    def encode(self, message: Message) -> bytes:
        """The header's bytes. Raises ValueError if a number does not fit."""
        number = message.flags << 16 | message.command
        try:
            return self._struct.pack(number, message.pages, message.address, message.target)
        except struct.error:
            raise ValueError(f"{message} does not fit into a header of CRIU {self.name}") from None

    def decode(self, data: bytes | bytearray | memoryview, at: int = 0) -> Message:
        """The header at `at`."""
        number, pages, address, target = self._struct.unpack_from(data, at)
        return Message(number & 0xFFFF, number >> 16, pages, address, target)

    def __repr__(self) -> str:
        return f"<dialect {self.name}>"


SHORT: Final = Dialect("4.1", "<IIQQ")
LONG: Final = Dialect("4.2", "<I4xQQQ")
DIALECTS: Final = {"4.1": SHORT, "4.2": LONG}
"""By the CRIU version that a user names: 4.1 stands for all up to 4.1.1, 4.2 for all from there."""

FIRST_BYTES: Final = SHORT.size
"""What a server reads before it knows the dialect; all of a header in one, most of it in the other.
"""

_U64: Final = struct.Struct("<Q")
_SMALLEST_PAGE: Final = 4096


def detect(first: bytes | bytearray | memoryview) -> Dialect:
    """The dialect of a client whose first command begins with these `FIRST_BYTES` bytes."""
    (number,) = struct.unpack_from("<I", first)
    if number & 0xFFFF == Command.GET:
        return LONG if _U64.unpack_from(first, 8)[0] < _SMALLEST_PAGE else SHORT
    return SHORT if _U64.unpack_from(first, 16)[0] else LONG


class HeaderReader:
    """Makes messages of the bytes of headers, and learns the dialect from the first one.

    Give `take` just `wanted` bytes each time. With a `dialect` nothing is guessed.
    """

    def __init__(self, dialect: Dialect | None = None) -> None:
        self.dialect = dialect
        self.wanted = FIRST_BYTES if dialect is None else dialect.size
        self._begun = b""

    def take(self, data: bytes | bytearray | memoryview) -> Message | None:
        """The next message; None if the header is longer: take `wanted` bytes more."""
        if self.dialect is None:
            self.dialect = detect(data)
        whole = self._begun + bytes(data)
        if len(whole) < self.dialect.size:
            self._begun, self.wanted = whole, self.dialect.size - len(whole)
            return None
        self._begun, self.wanted = b"", self.dialect.size
        return self.dialect.decode(whole)


HAS_PARENT: Final = struct.Struct("<B")
"""The answer to OPEN2."""
ANSWER: Final = struct.Struct("<i")
"""The answer to PARENT (0 or 1), and to CLOSE (a status, 0)."""
