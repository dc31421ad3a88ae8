"""The log file that a client asks for, in the form that CRIU gives its own.

Tools look into it when a request fails: runc and crun quote the lines with "Error" and those before
them. A line is ``(seconds.microseconds) text``; errors begin ``Error (predump): ``, warnings
``Warn  (predump): ``.
"""

from __future__ import annotations

import os
import time
from enum import IntEnum
from typing import BinaryIO

MOST_BYTES = 16 << 20
"""A log does not grow beyond this, whatever a client makes happen."""


class Level(IntEnum):
    """How much is written; CRIU's numbers, as ``log_level`` and ``-v`` have them."""

    MESSAGE = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    DEBUG = 4


class RequestLog:
    """The log of one request; remembers the first error, which goes into the answer too."""

    def __init__(self, level: int = Level.WARNING, file: BinaryIO | None = None) -> None:
        self.first_error = ""
        self._level = level
        self._file = file
        self._began = time.monotonic_ns()
        self._written = 0

    @classmethod
    def create(cls, directory: int, name: str, level: int) -> RequestLog:
        """A log in the file `name` of an open directory, begun anew. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        number = os.open(name, flags, 0o600, dir_fd=directory)
        return cls(level, os.fdopen(number, "wb", buffering=0))

    def close(self) -> None:
        """Nothing more is written."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def error(self, text: str) -> None:
        """What made the request fail."""
        readable = text.encode(errors="backslashreplace").decode()
        line = f"Error (predump): {' '.join(readable.split())}"
        self.first_error = self.first_error or line
        self._write(Level.ERROR, line)

    def warning(self, text: str) -> None:
        """What may be wrong."""
        self._write(Level.WARNING, f"Warn  (predump): {text}")

    def info(self, text: str) -> None:
        """What is done."""
        self._write(Level.INFO, text)

    def debug(self, text: str) -> None:
        """Details."""
        self._write(Level.DEBUG, text)

    def _write(self, level: Level, line: str) -> None:
        if self._file is None or level > self._level or self._written > MOST_BYTES:
            return
        elapsed = (time.monotonic_ns() - self._began) // 1000
        data = f"({elapsed // 1_000_000:02d}.{elapsed % 1_000_000:06d}) {line}\n".encode(
            errors="backslashreplace"
        )
        self._written += len(data)
        try:
            self._file.write(data)
        except OSError:
            # A full disk must not end a dump that can still say so in its answer.
            self._file.close()
            self._file = None
