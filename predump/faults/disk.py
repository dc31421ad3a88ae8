"""A file system that is really full: every block of it taken by a file of ours."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from livemigration.errors import MigrationError

LARGEST = 4 << 30
"""Bytes; a file system that is larger is hardly one that was made to be filled."""

_CHUNK = 1 << 20
_SMALLEST = 512


class NoSmallDisk(MigrationError):
    """Filling it would harm others."""


class FullDisk:
    """The file system of `folder`, to be filled and freed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._filler = folder / "filler"

    def fill(self) -> int:
        """Until not one block is left; returns the bytes that were left.

        `NoSmallDisk`, and nothing is written, if it is that of ``/`` or larger than `LARGEST`.
        """
        size = os.statvfs(self._folder)
        if self._folder.stat().st_dev == Path("/").stat().st_dev:
            raise NoSmallDisk(f"{self._folder} is no file system of its own; it is not filled")
        if size.f_blocks * size.f_frsize > LARGEST:
            raise NoSmallDisk(
                f"{self._folder} has {size.f_blocks * size.f_frsize >> 30} GiB; more than "
                f"{LARGEST >> 30} GiB are not filled"
            )
        written = 0
        chunk = _CHUNK
        with self._filler.open("ab", buffering=0) as file:
            while chunk >= _SMALLEST:
                try:
                    written += file.write(bytes(chunk))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    chunk //= 2
        return written

    def free(self) -> None:
        """As it was; nothing if it was not filled."""
        self._filler.unlink(missing_ok=True)
