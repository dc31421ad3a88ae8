"""One modelled host seen page by page, so that tests can speak of "page 3" and of rows of bits.

A row of bits has one character a page: the bit's letter where it is set, a dot where it is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mm_model import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    ModelConfig,
)

BASE = 0x10_0000_0000
RW = PROT_READ | PROT_WRITE
ANON_PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
PAGE_SIZES = (4096, 16384, 65536)

# Documentation/admin-guide/mm/pagemap.rst, by number.
PAGEMAP_BITS = {"soft-dirty": 55, "exclusive": 56, "uffd-wp": 57, "file": 61, "swap": 62}
PAGEMAP_BITS |= {"present": 63}


def make_machine(
    page_size: int = 4096,
    *,
    dbm: bool = True,
    off: Iterable[str] = (),
    kernel: str = "6.12",
    frames: int = 256,
    swap_slots: int = 64,
) -> Machine:
    return Machine(
        ModelConfig(
            page_size=page_size,
            frames=frames,
            swap_slots=swap_slots,
            dbm=dbm,
            kernel=kernel,
            hunks_off=frozenset(off),
        )
    )


def addresses(values: Iterable[int]) -> NDArray[np.uint64]:
    return np.array(list(values), np.uint64)


@dataclass(slots=True)
class Region:
    """``pages`` pages from ``start`` on in one address space."""

    mm: Mm
    start: int
    pages: int

    @property
    def page_size(self) -> int:
        return self.mm.machine.page_size

    @property
    def length(self) -> int:
        return self.pages * self.page_size

    def at(self, page: int) -> int:
        return self.start + page * self.page_size

    def part(self, first: int, count: int) -> tuple[int, int]:
        """Address and length of some pages, as system calls take them."""
        return self.at(first), count * self.page_size

    def seen_by(self, mm: Mm) -> Region:
        """The same addresses in another address space."""
        return Region(mm, self.start, self.pages)

    def moved_to(self, start: int) -> Region:
        return Region(self.mm, start, self.pages)

    def write(self, *pages: int, value: int = 0x5EED) -> int:
        """The task stores a word at the start of each page; returns how many faults it took."""
        where = addresses(self.at(page) for page in pages)
        return self.mm.store_words(where, np.full(len(pages), value, np.uint64))

    def write_all(self, value: int = 0x5EED) -> int:
        return self.write(*range(self.pages), value=value)

    def read(self, *pages: int) -> int:
        """The task reads each page; returns how many faults it took."""
        return self.mm.touch(addresses(self.at(page) for page in pages))

    def word(self, page: int) -> int:
        """The word at the start of a page, looked at without any access."""
        return int.from_bytes(self.mm.peek(self.at(page), 8), "little")

    def row(self, bit: str) -> str:
        """One of pagemap's bits for every page."""
        mask = np.uint64(1 << PAGEMAP_BITS[bit])
        return _row(self.mm.pagemap(self.start, self.pages) & mask, bit[0])

    @property
    def soft_dirty(self) -> str:
        return self.row("soft-dirty")

    @property
    def present(self) -> str:
        return self.row("present")

    @property
    def swapped(self) -> str:
        return _row(self.mm.pagemap(self.start, self.pages) & np.uint64(1 << 62), "w")

    def entry(self, page: int) -> int:
        """The page-table entry itself."""
        return int(self.mm.ptes(self.at(page), 1)[0])

    def entry_bit(self, page: int, bit: int) -> bool:
        return bool(self.entry(page) >> bit & 1)


def _row(flags: NDArray[np.uint64], letter: str) -> str:
    return "".join(letter if flag else "." for flag in flags.tolist())


def map_region(
    mm: Mm,
    pages: int,
    *,
    prot: int = RW,
    flags: int = ANON_PRIVATE,
    start: int = BASE,
    shared_id: int = 0,
    pgoff: int = 0,
    name: str = "",
) -> Region:
    length = pages * mm.machine.page_size
    where = mm.mmap(
        start, length, prot, flags | MAP_FIXED, shared_id=shared_id, pgoff=pgoff, name=name
    )
    return Region(mm, where, pages)


def new_region(machine: Machine, pages: int, *, prot: int = RW) -> Region:
    """Anonymous private memory in an address space of its own, nothing touched yet."""
    return map_region(machine.create_mm(), pages, prot=prot)


def tracked_region(machine: Machine, pages: int) -> Region:
    """The same, every page written once, then ``clear_refs``: as after a pre-dump round."""
    region = new_region(machine, pages)
    region.write_all(value=1)
    region.mm.clear_refs()
    return region


def map_object(
    mm: Mm, shared_id: int, pages: int, *, private: bool = False, prot: int = RW, start: int = BASE
) -> Region:
    """Pages of a shared object: themselves, or copies on write."""
    kind = MAP_PRIVATE if private else MAP_SHARED
    return map_region(mm, pages, prot=prot, flags=kind, start=start, shared_id=shared_id)


def extents(mm: Mm) -> list[tuple[int, int]]:
    """All mappings as (first page, pages), counted from BASE."""
    size = mm.machine.page_size
    return [((vma.start - BASE) // size, (vma.end - vma.start) // size) for vma in mm.vmas()]


def vma_soft_dirty(mm: Mm) -> list[bool]:
    return [vma.soft_dirty for vma in mm.vmas()]
