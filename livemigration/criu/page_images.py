"""Writes pagemap and pages files piece by piece, as pages arrive, holding no more than one entry.

What a page server makes of a dump (criu/page-xfer.c, criu/image.c): per process or shared segment
a ``pagemap-....img`` with the runs of pages and a ``pages-N.img`` with the bytes of those that are
not left to the parent. Runs that follow one another with the same flags become one.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from livemigration.criu.errors import ImageError
from livemigration.criu.magic import PAGEMAP_MAGIC, PageFlags
from livemigration.criu.page_writer import Flavour
from livemigration.criu.pb.pagemap_pb2 import PagemapEntry, PagemapHead
from livemigration.criu.record_writer import header, record
from livemigration.criu.records import Records

_MOST_COMPAT: Final = (1 << 32) - 1
_MOST_END: Final = (1 << 64) - 1
_DUMP_AGAIN: Final = "dump again"


@dataclass(frozen=True, slots=True, eq=False)
class PageRanges:
    """The pages that a pagemap lists, as ascending ranges; `starts` and `ends` in bytes.

    Compact arrays: whoever sent the pagemap may have cut it into very many entries.
    """

    starts: array[int]
    ends: array[int]

    @classmethod
    def of(cls, pagemap: Path, page_size: int) -> PageRanges:
        """The pages of a pagemap file whose bytes are there or further up. Raises ImageError."""
        records = Records(
            pagemap, PAGEMAP_MAGIC, "give the directory that the parent link leads to"
        )
        records.first(PagemapHead)
        starts, ends = array("Q"), array("Q")
        last = 0
        for entry in records.rest(PagemapEntry):
            start = records.required(entry, "vaddr")
            count = entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages
            end = start + count * page_size
            if start < last or end > _MOST_END:
                raise ImageError(pagemap, f"pages at {start:#x} are out of order", _DUMP_AGAIN)
            last = end
            if entry.flags == PageFlags.LAZY:
                continue  # stayed with the process
            if ends and start == ends[-1]:
                ends[-1] = end
            else:
                starts.append(start)
                ends.append(end)
        return cls(starts, ends)

    def covers(self, start: int, end: int) -> bool:
        """Whether all pages from `start` to `end` are listed."""
        at = bisect_right(self.starts, start) - 1
        return at >= 0 and end <= self.ends[at]


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
        self.entries = 0
        self.end = 0
        """Where the last entry ends: the next one must not begin before."""
        self._flavour = flavour
        self._entry: tuple[int, int, int] | None = None  # start, pages, flags
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
        """Bytes of pages that `present` will list. Raises ImageError."""
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise self._error(error) from None

    def present(self, start: int, pages: int, flags: int = PageFlags.PRESENT) -> None:
        """Lists pages whose bytes were written."""
        self.pages += pages
        self._add(start, pages, flags)

    def in_parent(self, start: int, pages: int) -> None:
        """Lists pages whose bytes the parent has."""
        self.holes += pages
        self._add(start, pages, PageFlags.PARENT)

    def lazy(self, start: int, pages: int) -> None:
        """Lists pages that stayed with the process."""
        self._add(start, pages, PageFlags.LAZY)

    def _add(self, start: int, pages: int, flags: int) -> None:
        if start < self.end or pages <= 0:
            raise ValueError(f"{pages} pages at {start:#x} do not follow {self.end:#x}")
        last = self._entry
        if last is not None and start == self.end and flags == last[2]:
            self._entry = last[0], last[1] + pages, flags
        else:
            self._put_entry()
            self._entry = start, pages, flags
        self.end = start + pages * self.page_size

    def _put_entry(self) -> None:
        if self._entry is None:
            return
        start, pages, flags = self._entry
        self.entries += 1
        entry = PagemapEntry(vaddr=start, flags=int(flags))
        if self._flavour is not Flavour.NEW and pages <= _MOST_COMPAT:
            entry.compat_nr_pages = pages
        else:
            entry.compat_nr_pages = 0
        if self._flavour is not Flavour.OLD:
            entry.nr_pages = pages
        self._entry = None
        self._put(record(entry))

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
            self._put_entry()
            os.ftruncate(self._descriptor, self.pages * self.page_size)
            self._pagemap.close()
        except OSError as error:
            raise self._error(error) from None
        finally:
            os.close(self._descriptor)

    def _error(self, error: OSError) -> ImageError:
        return ImageError(
            self.file, error.strerror or str(error), "make room, or give another directory"
        )
