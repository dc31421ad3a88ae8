"""Reads what valgrind's lackey tool prints with ``--trace-mem=yes``.

One line per instruction and per data access: ``I  04001090,3`` (address, size), `` L addr,size``
(load), `` S addr,size`` (store), `` M addr,size`` (load and store of one instruction); addresses
are hexadecimal, sizes decimal. Lines of valgrind itself begin with ``==``. A second of a program
prints tens of gigabytes, so lines are parsed by compiled code and never kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from livemigration.compiled import compiled
from livemigration.workload.kernels import U8, U32, U64
from livemigration.workload.trace import Records

_NEWLINE = 10
_COMMA = 44
_SPACE = 32
_I, _M, _S = 73, 77, 83
_SHORTEST_LINE = 7  # " S 0,8" and its end


@compiled
def parse(
    text: U8, start: int, instructions: int, times: U64, addresses: U64, sizes: U32
) -> tuple[int, int, int]:
    """Stores in the whole lines of ``text`` from ``start`` on.

    ``instructions`` counts those before. Returns (first byte not parsed, instructions, stores);
    stops early when the three columns are full. Lines of another form are passed over.
    """
    end = text.size
    at = start
    stores = 0
    while stores < times.size:
        stop = at
        while stop < end and text[stop] != _NEWLINE:
            stop += 1
        if stop == end:
            break
        if stop - at >= 4 and text[at] == _I:
            instructions += 1
        elif stop - at >= 6 and text[at] == _SPACE and (text[at + 1] == _S or text[at + 1] == _M):
            address = np.uint64(0)
            i = at + 3
            good = True
            while i < stop and text[i] != _COMMA:
                digit = int(text[i])
                if 48 <= digit <= 57:
                    digit -= 48
                elif 97 <= digit <= 102:
                    digit -= 87
                else:
                    good = False
                address = (address << np.uint64(4)) | np.uint64(digit & 15)
                i += 1
            size = 0
            good = good and i > at + 3
            i += 1
            while i < stop:
                digit = int(text[i]) - 48
                good = good and 0 <= digit <= 9
                size = size * 10 + digit
                i += 1
            if good and size > 0:
                times[stores] = np.uint64(instructions)
                addresses[stores] = address
                sizes[stores] = np.uint32(size)
                stores += 1
        at = stop + 1
    return at, instructions, stores


@dataclass(frozen=True, slots=True)
class Stores:
    """Stores in time order: times and addresses uint64[n], sizes uint32[n]."""

    times: U64
    addresses: U64
    sizes: U32


class LackeyParser:
    """Feeds on lackey's output in pieces of any size."""

    def __init__(self) -> None:
        self.instructions = 0
        """Instructions seen so far."""
        self._rest = b""

    def feed(self, piece: bytes) -> Stores:
        """The stores of the lines that ``piece`` completes."""
        whole = self._rest + piece
        text = np.frombuffer(whole, dtype=np.uint8)
        most = text.size // _SHORTEST_LINE + 1
        times = np.empty(most, dtype=np.uint64)
        addresses = np.empty(most, dtype=np.uint64)
        sizes = np.empty(most, dtype=np.uint32)
        at, self.instructions, stores = parse(text, 0, self.instructions, times, addresses, sizes)
        self._rest = whole[at:]
        return Stores(times[:stores], addresses[:stores], sizes[:stores])


class Coalescer:
    """Makes one record of all stores to a page within one slice of instructions."""

    def __init__(self, page_size: int, slice_instructions: int) -> None:
        self._page_size = np.uint64(page_size)
        self._slice = np.uint64(slice_instructions)
        self._open: list[Stores] = []
        self._open_slice = np.uint64(0)

    def feed(self, stores: Stores) -> Records:
        """Records of the slices that ``stores`` (later than all before) end."""
        if stores.times.size == 0:
            return Records.none()
        self._open.append(stores)
        slice_now = stores.times[-1] // self._slice
        if slice_now == self._open_slice:
            return Records.none()
        self._open_slice = slice_now
        times, addresses, sizes = self._joined()
        ended = int(np.searchsorted(times, slice_now * self._slice))
        self._open = [Stores(times[ended:], addresses[ended:], sizes[ended:])]
        return self._records(times[:ended], addresses[:ended], sizes[:ended])

    def finish(self) -> Records:
        """Records of the slice that is still open."""
        if not self._open:
            return Records.none()
        times, addresses, sizes = self._joined()
        self._open = []
        return self._records(times, addresses, sizes)

    def _joined(self) -> tuple[U64, U64, U32]:
        return (
            np.concatenate([part.times for part in self._open]),
            np.concatenate([part.addresses for part in self._open]),
            np.concatenate([part.sizes for part in self._open]),
        )

    def _records(self, times: U64, addresses: U64, sizes: U32) -> Records:
        if times.size == 0:
            return Records.none()
        times, pages, firsts, lasts = self._by_page(times, addresses, sizes)
        slices = times // self._slice
        order = np.lexsort((pages, slices))  # stable: time order within a group
        times, pages, slices = times[order], pages[order], slices[order]
        news = (pages[1:] != pages[:-1]) | (slices[1:] != slices[:-1])
        starts = np.flatnonzero(np.concatenate((np.ones(1, dtype=np.bool_), news)))
        counts = np.diff(np.append(starts, times.size)).astype(np.uint64)
        begun = np.argsort(times[starts], kind="stable")
        return Records(
            times[starts][begun],
            pages[starts][begun],
            np.minimum.reduceat(firsts[order], starts)[begun],
            np.maximum.reduceat(lasts[order], starts)[begun],
            counts[begun],
        )

    def _by_page(self, times: U64, addresses: U64, sizes: U32) -> tuple[U64, U64, U64, U64]:
        """Time, page, first and last byte of each store; one that crosses pages becomes several."""
        ends = addresses + sizes.astype(np.uint64) - np.uint64(1)
        first_pages = addresses // self._page_size
        spans = (ends // self._page_size - first_pages).astype(np.int64) + 1
        index = np.repeat(np.arange(times.size), spans)
        nth = np.arange(index.size) - np.repeat(np.cumsum(spans) - spans, spans)
        pages = first_pages[index] + nth.astype(np.uint64)
        starts = pages * self._page_size
        firsts = np.maximum(addresses[index], starts) - starts
        lasts = np.minimum(ends[index], starts + self._page_size - np.uint64(1)) - starts
        return times[index], pages, firsts, lasts
