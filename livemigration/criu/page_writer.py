"""Writing ``pagemap-ID.img`` and the ``pages-N.img`` that it names, for millions of pages.

Runs and the protobuf records of runs are made by NumPy, some ten thousand at once, and page bytes
pass through in windows: what is in memory beside the guest is bounded.

Three flavours of a pagemap entry (criu/pagemap.c, images/pagemap.proto): up to CRIU 4.1.1 the
number of pages is field 2, from 4.2 it is field 5 and field 2 is 0. An entry with both is read by
all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.magic import PAGEMAP_MAGIC, PageFlags
from livemigration.criu.pb.pagemap_pb2 import PagemapHead
from livemigration.criu.record_writer import header, record

U64 = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

_VARINT_BYTES: Final = 10
_RUNS_AT_ONCE: Final = 1 << 15
_SIZE_BYTES: Final = 4


class Flavour(StrEnum):
    """Where a pagemap entry has its number of pages."""

    OLD = "old"  # CRIU up to 4.1.1
    NEW = "new"  # CRIU from 4.2
    BOTH = "both"


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


def runs_of(addresses: U64, flags: NDArray[np.uint8], page_size: int) -> tuple[U64, U64, U64]:
    """Neighbouring pages with equal flags as (starts, pages, flags), u64[r] each."""
    if addresses.size == 0:
        return addresses, addresses, addresses
    breaks = (np.diff(addresses) != np.uint64(page_size)) | (np.diff(flags) != 0)
    first = np.flatnonzero(np.concatenate((np.ones(1, np.bool_), breaks)))
    count = np.diff(first, append=addresses.size)
    return addresses[first], count.astype(np.uint64), flags[first].astype(np.uint64)


def entries(starts: U64, pages: U64, flags: U64, flavour: Flavour) -> Iterator[bytes]:
    """The records of runs, some ten thousand at a time."""
    if flavour is not Flavour.NEW and pages.size and int(pages.max()) >> 32:
        raise ValueError("a run of 2**32 pages cannot be written in the old flavour")
    compat = np.zeros_like(pages) if flavour is Flavour.NEW else pages
    fields = [(1, starts), (2, compat), (4, flags)]
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


def write_pages(
    folder: Path, name: str, pages_id: int, pages: PageList, page_size: int, flavour: Flavour
) -> PageCounts:
    """Writes ``name`` (pagemap-ID.img) and ``pages-N.img`` into `folder`.

    Raises OSError, and ValueError if the content is not that of the present pages.
    """
    present = (pages.flags & int(PageFlags.PRESENT)) != 0
    counts = PageCounts(
        int(np.count_nonzero(present)),
        int(np.count_nonzero(pages.flags & int(PageFlags.PARENT))),
        int(np.count_nonzero(pages.flags == int(PageFlags.LAZY))),
    )
    with (folder / f"pages-{pages_id}.img").open("wb") as file:
        written = 0
        for part in pages.content:
            file.write(part.data)
            written += part.size
    if written != counts.present * page_size:
        raise ValueError(f"{written} bytes for {counts.present} pages of {page_size} bytes")
    with (folder / name).open("wb") as file:
        file.write(header(PAGEMAP_MAGIC) + record(PagemapHead(pages_id=pages_id)))
        for piece in entries(*runs_of(pages.addresses, pages.flags, page_size), flavour):
            file.write(piece)
    return counts
