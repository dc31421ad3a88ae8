"""A task's pages in a file, as far as the file has room for them, and in memory beyond that.

A store to a mapped page of a file for which the file system has no block ends the process (SIGBUS;
mm/shmem.c and every file system's page_mkwrite say so by VM_FAULT_SIGBUS). So no more of the file
is mapped than there are blocks for, taken with fallocate(2), which refuses in a way that can be
told; the rest of the buffer is anonymous memory, which pages move out of when room is taken.

A private mapping is no better where the file has holes: a tmpfs gives even a page that is only read
a block. The private buffer therefore has the file as far as it is used, and is memory beyond, too.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_PROT = mmap.PROT_READ | mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value
_COPY = 16 << 20
"""Bytes that are written at once: what a signal may interrupt."""

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_long,  # off_t
)


class PageFile:
    """uint8[frames, page_size], all zeros at first; the first rows are those of the file."""

    def __init__(self, path: Path, frames: int, page_size: int) -> None:
        """An empty file in place of the one that is there; OSError."""
        self._path = path
        self._page_size = page_size
        self._size = frames * page_size
        self._room = 0  # bytes of the buffer that are the file's
        self._bytes = _memory(self._size)
        self.content = self._bytes.reshape(frames, page_size)
        with path.open("wb"):
            pass

    @property
    def room(self) -> int:
        """Rows that are the file's."""
        return self._room // self._page_size

    def take_room(self, rows: int, used: int) -> None:
        """Puts blocks of the file behind the first `rows`, of which the first `used` may have
        content; that stays as it is.

        OSError if there is no room. The file then has what it had, and no more.
        """
        wanted = min(_whole_pages(rows * self._page_size), self._size)
        if wanted <= self._room:
            return
        with self._path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), self._room, wanted - self._room)
                self._write(file.fileno(), min(used * self._page_size, wanted))
                _map(self._bytes, self._room, file.fileno(), wanted, mmap.MAP_SHARED)
            except BaseException:
                file.truncate(self._room)
                raise
        self._room = wanted

    def _write(self, file: int, end: int) -> None:
        at = self._room
        while at < end:
            at += os.pwrite(file, self._bytes[at : min(at + _COPY, end)].data, at)

    def private(self, used: int) -> NDArray[np.uint8]:
        """Another buffer with the same bytes, whose stores stay in this process: the file's first
        `used` rows copy-on-write, zeros beyond. OSError.
        """
        content = _memory(self._size)
        with self._path.open("rb") as file:
            end = min(_whole_pages(used * self._page_size), self._room)
            _map(content, 0, file.fileno(), end, mmap.MAP_PRIVATE | _MAP_NORESERVE)
        return content.reshape(self.content.shape)


def _whole_pages(size: int) -> int:
    """In pages of this machine, which may be larger than the task's."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _memory(size: int) -> NDArray[np.uint8]:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, size, flags=flags, prot=_PROT), dtype=np.uint8)


def _map(content: NDArray[np.uint8], start: int, file: int, end: int, flags: int) -> None:
    """Bytes [start, end) of the file in place of those of a buffer of `_memory`."""
    if end <= start:
        return
    where = content.ctypes.data + start
    if _mmap(where, end - start, _PROT, flags | _MAP_FIXED, file, start) == _FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
