"""Writes a pagemap file and the pages file that it names, as pages arrive or all at once.

What CRIU makes of a dump (criu/page-xfer.c, criu/image.c): per process or shared segment a
``pagemap-....img`` with the runs of pages and a ``pages-N.img`` with the bytes of those that are
not left to the parent. Runs that follow one another with the same flags become one. Bytes pass
through, and runs are written some thousand at a time: what is in memory beside the guest is
bounded.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.errors import ImageError
from livemigration.criu.magic import PAGEMAP_MAGIC, PageFlags
from livemigration.criu.pagemap_entries import Bytes, Flavour, entries, joined, runs_of
from livemigration.criu.pb.pagemap_pb2 import PagemapHead
from livemigration.criu.record_writer import header, record

U64 = NDArray[np.uint64]

_RUNS_KEPT: Final = 1 << 12


@dataclass(frozen=True, slots=True, eq=False)
class PageList:
    """The pages that an image lists, and the bytes of those that are present.

    addresses: u64[n] ascending (offsets, of a shared segment); flags: u8[n], `PageFlags` of each;
    content: u8 arrays of whole pages, any number in each, of the present ones in their order.
    """

    addresses: U64
    flags: NDArray[np.uint8]
    content: Iterable[Bytes]


@dataclass(frozen=True, slots=True)
class PageCounts:
    """How many pages an image lists."""

    present: int = 0
    parent: int = 0
    lazy: int = 0  # that stayed where they were, to come later

    def __add__(self, other: PageCounts) -> PageCounts:
        return PageCounts(
            self.present + other.present, self.parent + other.parent, self.lazy + other.lazy
        )


class _Source(Protocol):
    """A connection that bytes can be moved out of."""

    def copy_to_file(self, descriptor: int, write: Callable[[memoryview], None], size: int) -> None:
        """See `livemigration.criu.page_server.channel.Channel`."""
        ...


class PageImage:
    """One pagemap file and its pages file, being written. Leaving the context closes both."""

    def __init__(
        self,
        folder: Path,
        pagemap_name: str,
        pages_id: int,
        page_size: int,
        *,
        flavour: Flavour = Flavour.BOTH,
    ) -> None:
        """Makes the files, which must not be there. Raises ImageError."""
        self.file = folder / pagemap_name
        self._pages_file = folder / f"pages-{pages_id}.img"
        self.page_size = page_size
        self.pages = 0
        self.holes = 0
        self.lazy_pages = 0
        self.entries = 0
        """Runs before the last, which may grow yet."""
        self.end = 0
        """Where the last run ends: the next one must not begin before."""
        self._flavour = flavour
        # Runs that are not written yet: starts, numbers of pages, flags.
        self._runs: tuple[array[int], array[int], array[int]] = (array("Q"), array("Q"), array("Q"))
        try:
            self._pagemap = self.file.open("xb")
            self._descriptor = os.open(
                self._pages_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise self._error(error) from None
        self._put(header(PAGEMAP_MAGIC) + record(PagemapHead(pages_id=pages_id)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def take_from(self, channel: _Source, size: int) -> None:
        """Bytes of pages that `present` will list, out of a connection. Raises ImageError."""
        try:
            channel.copy_to_file(self._descriptor, self.write, size)
        except OSError as error:
            raise self._error(error) from None

    def write(self, data: memoryview) -> None:
        """Bytes of pages that will be listed. Raises ImageError."""
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise self._error(error) from None

    def present(self, start: int, pages: int, flags: int = PageFlags.PRESENT) -> None:
        """Lists pages whose bytes were written."""
        self._add(start, pages, flags)
        self.pages += pages

    def in_parent(self, start: int, pages: int) -> None:
        """Lists pages whose bytes the parent has."""
        self._add(start, pages, PageFlags.PARENT)
        self.holes += pages

    def lazy(self, start: int, pages: int) -> None:
        """Lists pages that stayed with the process."""
        self._add(start, pages, PageFlags.LAZY)
        self.lazy_pages += pages

    def _add(self, start: int, pages: int, flags: int) -> None:
        if start < self.end or pages <= 0:
            raise ValueError(f"{pages} pages at {start:#x} do not follow {self.end:#x}")
        starts, counts, kinds = self._runs
        if starts and start == self.end and flags == kinds[-1]:
            counts[-1] += pages
        else:
            self.entries += bool(starts)
            starts.append(start)
            counts.append(pages)
            kinds.append(flags)
        self.end = start + pages * self.page_size
        if len(starts) > _RUNS_KEPT:
            self._put_runs(len(starts) - 1)

    def add(self, starts: U64, pages: U64, flags: U64) -> None:
        """Lists many runs at once, ascending, u64[r] each; the bytes of present ones were written.

        Raises ValueError if they do not follow one another, or what is listed already; ImageError.
        """
        if starts.size == 0:
            return
        ends = starts + pages * np.uint64(self.page_size)
        if int(starts[0]) < self.end or (starts[1:] < ends[:-1]).any() or not pages.all():
            raise ValueError(f"{starts.size} runs from {int(starts[0]):#x} on are out of order")
        self._put_runs(len(self._runs[0]) - 1)  # the last one may go on
        before = [np.array(column, np.uint64) for column in self._runs]
        columns = joined(
            np.concatenate((before[0], starts)),
            np.concatenate((before[1], pages)),
            np.concatenate((before[2], flags)),
            self.page_size,
        )
        self._runs = _columns(columns)
        self._put_runs(len(self._runs[0]) - 1)
        self.entries += columns[0].size - 1
        self.end = int(ends[-1])
        here = (flags & np.uint64(PageFlags.PRESENT)) != 0
        there = ~here & ((flags & np.uint64(PageFlags.PARENT)) != 0)
        self.pages += int(pages[here].sum())
        self.holes += int(pages[there].sum())
        self.lazy_pages += int(pages[~here & ~there].sum())

    def _put_runs(self, count: int) -> None:
        """Writes the first of the runs that are kept."""
        if count <= 0:
            return
        try:
            columns = [np.array(column[:count], np.uint64) for column in self._runs]
            for piece in entries(columns[0], columns[1], columns[2], self._flavour):
                self._put(piece)
        except ValueError as error:
            raise ImageError(self.file, str(error), "write the new flavour, or both") from None
        for column in self._runs:
            del column[:count]

    def _put(self, data: bytes) -> None:
        try:
            self._pagemap.write(data)
        except OSError as error:
            raise self._error(error) from None

    def close(self) -> None:
        """Writes what is left; of pages that no entry lists nothing stays. Raises ImageError."""
        if self._pagemap.closed:
            return
        try:
            self._put_runs(len(self._runs[0]))
            os.ftruncate(self._descriptor, self.pages * self.page_size)
            self._pagemap.close()
        except OSError as error:
            raise self._error(error) from None
        finally:
            self._pagemap.close()
            os.close(self._descriptor)

    def _error(self, error: OSError) -> ImageError:
        return ImageError(
            self.file, error.strerror or str(error), "make room, or give another directory"
        )


def _columns(runs: tuple[U64, U64, U64]) -> tuple[array[int], array[int], array[int]]:
    starts, pages, flags = (array("Q", column.tobytes()) for column in runs)
    return starts, pages, flags


def write_pages(
    folder: Path, name: str, pages_id: int, pages: PageList, page_size: int, flavour: Flavour
) -> PageCounts:
    """Writes ``name`` (pagemap-ID.img) and ``pages-N.img`` into `folder`.

    Raises ImageError, and ValueError if the content is not that of the present pages.
    """
    with PageImage(folder, name, pages_id, page_size, flavour=flavour) as image:
        written = 0
        for part in pages.content:
            image.write(part.data)
            written += part.size
        image.add(*runs_of(pages.addresses, pages.flags, page_size))
        if written != image.pages * page_size:
            raise ValueError(f"{written} bytes for {image.pages} pages of {page_size} bytes")
        return PageCounts(image.pages, image.holes, image.lazy_pages)
