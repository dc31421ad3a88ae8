"""Dropping page bytes that a later directory of a chain has as well, as `criu dedup` does.

Pages that a directory has itself are never looked up in its parents, so their bytes there can be
given back: a hole is punched in the parent's pages file where they were (fallocate, keeping the
size), up the whole chain (criu/cr-dedup.c, criu/pagemap.c: dedup_one_iovec). What is left restores
from the last directory as before; the earlier ones are no complete images any more.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.errors import ImageError
from livemigration.criu.magic import PageFlags
from livemigration.criu.pagemap import PagemapRuns, chain_of, read_pagemap

U64 = NDArray[np.uint64]

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_NO_ROOM_SAVED: Final = "dedup needs a file system that can punch holes, such as ext4, xfs or tmpfs"


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """What was given back in one pages file."""

    file: Path
    pages: int
    bytes_before: int  # that the file took on the disk
    bytes_after: int


def dedup(folder: Path | str, page_size: int, *, chain: bool = False) -> list[Deduplicated]:
    """Punches holes in the parents of `folder`, nearest first; the directory itself stays.

    As CRIU's, this is for a directory that was just written: the holes are where it has pages
    itself. With `chain` also what its parents have is taken from theirs, as if dedup had been
    called after each dump. Shared segments are deduplicated as well, which CRIU's leaves alone.

    Raises ImageError if there is no parent, or images are damaged; what was punched before that
    stays, and loses nothing: those pages are in a later directory.
    """
    folder = Path(folder)
    levels = chain_of(folder)
    if len(levels) == 1:
        raise ImageError(
            folder / "parent", "no such directory", "name a directory that has a parent"
        )
    done: list[Deduplicated] = []
    for file in sorted(folder.glob("pagemap-*.img")):
        covered = _Covered()
        for level in levels:
            image = level / file.name
            if not image.exists():
                break  # the process or the segment is younger than that
            pages_id, runs = read_pagemap(image, page_size)
            if level is not folder:
                pages_file = level / f"pages-{pages_id}.img"
                done.append(_punch(pages_file, runs, covered, page_size))
            if chain or level is folder:
                covered.add(runs, page_size)
    return done


class _Covered:
    """The ranges of pages that some later directory has itself."""

    def __init__(self) -> None:
        self.starts: U64 = np.zeros(0, np.uint64)
        self.ends: U64 = np.zeros(0, np.uint64)

    def add(self, runs: PagemapRuns, page_size: int) -> None:
        """Those of one more directory."""
        here = (runs.flags & int(PageFlags.PRESENT)) != 0
        starts = np.concatenate((self.starts, runs.starts[here]))
        ends = np.concatenate(
            (self.ends, runs.starts[here] + runs.pages[here] * np.uint64(page_size))
        )
        if starts.size == 0:
            return
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], np.maximum.accumulate(ends[order])
        first = np.concatenate((np.ones(1, np.bool_), starts[1:] > ends[:-1]))
        last = np.append(np.flatnonzero(first)[1:] - 1, starts.size - 1)
        self.starts, self.ends = starts[first], ends[last]

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The covered parts of a range."""
        at = int(np.searchsorted(self.ends, np.uint64(start), side="right"))
        while at < self.starts.size and self.starts[at] < end:
            yield max(start, int(self.starts[at])), min(end, int(self.ends[at]))
            at += 1


def _punch(file: Path, runs: PagemapRuns, covered: _Covered, page_size: int) -> Deduplicated:
    """Gives back what is covered of the pages that `runs` has in `file`."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(file, error.strerror or str(error), "make it writable") from None
    try:
        before = os.fstat(descriptor).st_blocks * 512
        pages = 0
        offset = 0  # in the pages file
        here = (runs.flags & int(PageFlags.PRESENT)) != 0
        punch = _puncher(descriptor, file)
        for first, count in zip(runs.starts[here].tolist(), runs.pages[here].tolist(), strict=True):
            for start, end in covered.within(first, first + count * page_size):
                punch(offset + start - first, end - start)
                pages += (end - start) // page_size
            offset += count * page_size
        return Deduplicated(file, pages, before, os.fstat(descriptor).st_blocks * 512)
    finally:
        os.close(descriptor)


def _puncher(descriptor: int, file: Path) -> Callable[[int, int], None]:
    """What punches a hole at an offset, of a length; Python's own call has no flags."""
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

    def punch(offset: int, length: int) -> None:
        if call(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
            number = ctypes.get_errno()
            raise ImageError(file, os.strerror(number), _NO_ROOM_SAVED)

    return punch
