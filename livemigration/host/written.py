"""Which pages of a region are there, and which were written since the last reset.

Two kernels' ways to say it behind one interface. `open_written` takes the first that works here.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from livemigration.compiled import compiled
from livemigration.errors import BadRequest
from livemigration.host.pagemap_scan import PagemapScan, Question
from livemigration.host.region import Region
from livemigration.host.soft_dirty import SoftDirty
from livemigration.host.userfaultfd import Userfaultfd
from mm_model import (
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    PAGE_IS_WRITTEN,
    PM_PRESENT,
    PM_SCAN_WP_MATCHING,
    PM_SOFT_DIRTY,
    PM_SWAP,
)

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]

THERE = 1
"""The page has content: in memory or on swap, and not the zero page."""
WRITTEN = 2
"""It was written since the last reset, or there was none."""

_THERE = np.uint8(THERE)
_WRITTEN = np.uint8(WRITTEN)
_ANY = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
_LOOK = Question(0, _ANY, PAGE_IS_WRITTEN | PAGE_IS_PFNZERO)
# Only pages that are there are protected. An absent one needs no mark: it comes unprotected, which
# is written; and the mark would look like a page on swap.
_PROTECT = Question(PAGE_IS_WRITTEN, _ANY, PAGE_IS_WRITTEN, PM_SCAN_WP_MATCHING)
_IS_WRITTEN = np.uint64(PAGE_IS_WRITTEN)
_IS_ZERO = np.uint64(PAGE_IS_PFNZERO)


class WrittenPages(Protocol):
    """What the kernel knows of one region's pages."""

    method: str

    def look(self, first: int, pages: int) -> U8:
        """Flags `THERE` and `WRITTEN` of `pages` pages from number `first` on: uint8[pages]."""
        ...

    def reset(self) -> None:
        """From now on only what is written anew counts; nothing may write meanwhile."""
        ...

    def stop(self) -> None:
        """Writes cost nothing any more, until the next `reset`."""
        ...

    def close(self) -> None:
        """Ends all tracking; once is enough."""
        ...


@compiled
def _paint(regions: U64, start: np.uint64, page_size: np.uint64, out: U8) -> None:
    """Regions as PAGEMAP_SCAN reports them, as flags per page."""
    for k in range(regions.shape[0]):
        flags = np.uint8(0)
        if regions[k, 2] & _IS_ZERO == 0:
            flags |= _THERE
        if regions[k, 2] & _IS_WRITTEN != 0:
            flags |= _WRITTEN
        first = (regions[k, 0] - start) // page_size
        last = (regions[k, 1] - start) // page_size
        for page in range(np.int64(first), np.int64(last)):
            out[page] = flags


class WpAsync:
    """userfaultfd write-protection that the kernel takes off by itself, and PAGEMAP_SCAN."""

    method = "wp-async"

    def __init__(self, region: Region) -> None:
        """`BadRequest` with one line where the kernel cannot do it."""
        # Not the region: whoever has it decides how long its memory stays.
        self._start, self._end, self._page_size = region.start, region.end, region.page_size
        self._scan = PagemapScan()
        try:
            self._uffd = Userfaultfd()
        except BadRequest:
            self._scan.close()
            raise
        self._registered = False

    def look(self, first: int, pages: int) -> U8:
        """See `WrittenPages.look`."""
        size = self._page_size
        start = self._start + first * size
        flags = np.zeros(pages, np.uint8)
        for found in self._scan.scan(start, start + pages * size, _LOOK):
            _paint(found, np.uint64(start), np.uint64(size), flags)
        return flags

    def reset(self) -> None:
        """See `WrittenPages.reset`: what was written is protected again."""
        if not self._registered:
            self._uffd.register(self._start, self._end - self._start)
            self._registered = True
        for _ in self._scan.scan(self._start, self._end, _PROTECT):
            pass

    def stop(self) -> None:
        """See `WrittenPages.stop`."""
        if self._registered:
            self._uffd.unregister(self._start, self._end - self._start)
            self._registered = False

    def close(self) -> None:
        """See `WrittenPages.close`."""
        self._uffd.close()
        self._scan.close()


class SoftDirtyBits:
    """clear_refs and the soft-dirty bit of pagemap. A read of an absent page makes it there."""

    method = "soft-dirty"

    def __init__(self, region: Region) -> None:
        """`BadRequest` with one line where the kernel cannot do it."""
        self._start, self._page_size = region.start, region.page_size
        self._bits = SoftDirty()

    def look(self, first: int, pages: int) -> U8:
        """See `WrittenPages.look`."""
        start = self._start + first * self._page_size
        entries = self._bits.entries(start, pages)
        there = ((entries & (PM_PRESENT | PM_SWAP)) != 0).astype(np.uint8)
        written = ((entries & PM_SOFT_DIRTY) != 0).astype(np.uint8)
        flags: U8 = there * (_THERE + written * _WRITTEN)
        return flags

    def reset(self) -> None:
        """See `WrittenPages.reset`."""
        self._bits.clear()

    def stop(self) -> None:
        """Nothing: what is still protected costs one fault each, and there is no way to undo it."""

    def close(self) -> None:
        """See `WrittenPages.close`."""
        self._bits.close()


def open_written(region: Region, method: str = "auto") -> WrittenPages:
    """Tracking of a region by `method` ("wp-async", "soft-dirty"), or by the first that works.

    `BadRequest`: what is missing, in one line.
    """
    if method == "wp-async":
        return _asked(WpAsync, region)
    if method == "soft-dirty":
        return _asked(SoftDirtyBits, region)
    try:
        return WpAsync(region)
    except BadRequest as no_wp:
        try:
            return SoftDirtyBits(region)
        except BadRequest as no_bits:
            raise BadRequest(
                f'tracker = "host" cannot work on this kernel: {no_wp}; {no_bits}; '
                'write tracker = "uffd-wp" for the model'
            ) from no_bits


def _asked(kind: type[WpAsync | SoftDirtyBits], region: Region) -> WrittenPages:
    try:
        return kind(region)
    except BadRequest as error:
        raise BadRequest(f'host.method = "{kind.method}" cannot work here: {error}') from error


class Forgetful:
    """A drill: another's word on writes, but never a word on those to the first pages."""

    def __init__(self, true: WrittenPages, pages: int) -> None:
        self._true = true
        self._pages = pages
        self._armed = False
        self.method = true.method

    def look(self, first: int, pages: int) -> U8:
        """See `WrittenPages.look`."""
        flags = self._true.look(first, pages)
        if self._armed and first < self._pages:
            flags[: self._pages - first] &= _THERE
        return flags

    def reset(self) -> None:
        """See `WrittenPages.reset`; what was written before the first one is told."""
        self._true.reset()
        self._armed = True

    def stop(self) -> None:
        """See `WrittenPages.stop`."""
        self._true.stop()

    def close(self) -> None:
        """See `WrittenPages.close`."""
        self._true.close()
