"""The entries of a ``pagemap-ID.img``: pages as runs, and runs as protobuf records, by NumPy.

Three flavours of an entry (criu/pagemap.c, images/pagemap.proto): up to CRIU 4.1.1 the number of
pages is field 2, from 4.2 it is field 5 and field 2 is 0. An entry with both is read by all of
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

_VARINT_BYTES: Final = 10
_RUNS_AT_ONCE: Final = 1 << 15
_SIZE_BYTES: Final = 4
_MOST_OLD: Final = np.uint64((1 << 32) - 1)


class Flavour(StrEnum):
    """Where a pagemap entry has its number of pages."""

    OLD = "old"  # CRIU up to 4.1.1
    NEW = "new"  # CRIU from 4.2
    BOTH = "both"


def runs_of(addresses: U64, flags: NDArray[np.uint8], page_size: int) -> tuple[U64, U64, U64]:
    """Neighbouring pages with equal flags as (starts, pages, flags), u64[r] each."""
    one = np.ones(addresses.size, np.uint64)
    return joined(addresses, one, flags.astype(np.uint64), page_size)


def joined(starts: U64, pages: U64, flags: U64, page_size: int) -> tuple[U64, U64, U64]:
    """Ascending runs, those that follow one another with equal flags made one; u64[r] each."""
    if starts.size == 0:
        return starts, pages, flags
    ends = starts + pages * np.uint64(page_size)
    breaks = (starts[1:] != ends[:-1]) | (flags[1:] != flags[:-1])
    first = np.flatnonzero(np.concatenate((np.ones(1, np.bool_), breaks)))
    return starts[first], np.add.reduceat(pages, first), flags[first]


def entries(starts: U64, pages: U64, flags: U64, flavour: Flavour) -> Iterator[bytes]:
    """The records of runs, some ten thousand at a time."""
    compat = np.zeros_like(pages) if flavour is Flavour.NEW else pages
    if flavour is Flavour.OLD and (pages > _MOST_OLD).any():
        raise ValueError("a run of 2**32 pages cannot be written in the old flavour")
    fields = [(1, starts), (2, np.where(compat > _MOST_OLD, 0, compat)), (4, flags)]
    if flavour is not Flavour.OLD:
        fields.append((5, pages))
    for at in range(0, starts.size, _RUNS_AT_ONCE):
        window = slice(at, at + _RUNS_AT_ONCE)
        yield _records([(number, values[window]) for number, values in fields])


def _records(fields: list[tuple[int, U64]]) -> bytes:
    """One record for each row of the fields' values: number and varint of each, size before."""
    rows = fields[0][1].size
    body: list[Bytes] = []
    used: list[NDArray[np.bool_]] = []
    for number, values in fields:
        body.append(np.full((rows, 1), number << 3, np.uint8))
        used.append(np.ones((rows, 1), np.bool_))
        varint, inside = _varints(values)
        body.append(varint)
        used.append(inside)
    inside = np.concatenate(used, axis=1)
    sizes = np.count_nonzero(inside, axis=1).astype("<u4").view(np.uint8)
    table = np.concatenate([sizes.reshape(rows, _SIZE_BYTES), *body], axis=1)
    keep = np.concatenate([np.ones((rows, _SIZE_BYTES), np.bool_), inside], axis=1)
    packed: Bytes = table[keep]
    return packed.tobytes()


def _varints(values: U64) -> tuple[Bytes, NDArray[np.bool_]]:
    """Protobuf's varints, u8[n, 10], and which of the bytes belong to each."""
    shifts = np.arange(0, 7 * _VARINT_BYTES, 7, dtype=np.uint64)
    rest = values[:, None] >> shifts[None, :]
    inside = rest != 0
    inside[:, 0] = True
    more = np.zeros_like(inside)
    more[:, :-1] = inside[:, 1:]
    digits = (rest & np.uint64(0x7F)).astype(np.uint8)
    return digits | (more.astype(np.uint8) << np.uint8(7)), inside
