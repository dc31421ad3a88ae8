"""The versions of pages that were sent last, as far as there is room: the bases of deltas.

Source and destination each keep one of these and give it the same frames in the same order, so
they are always equal, whatever the address spaces look like meanwhile: a page that was unmapped,
moved, or reached through another mapping is still the page that was sent. That is why the
destination does not take bases from its page tables. The room is bounded and announced by the
source before round 0.

A page has one place, by its address, as in QEMU's cache (migration/page_cache.c); and as there, a
page that was sent in this round or the one before is not driven out, so that a sweep over much
memory does not empty what a small working set is served from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from livemigration.compiled import compiled
from livemigration.digest import page_words

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_LIFETIME = 2
"""Rounds for which a page keeps its place against others (QEMU: CACHED_PAGE_LIFETIME)."""

_OWNER_STRIDE = np.uint64(40_503)
"""Places between the same address of two owners (2^16 divided by the golden ratio)."""


def owner_of(pid: int, object_id: int) -> int:
    """What tells pages of the same address apart: the process, or the file."""
    return object_id << 32 | pid


class RememberedPages:
    """`slots` pages of `page_size` bytes. `pages` is uint64[slots, words].

    The memory is the kernel's until it is written: few pages sent take little of it. Raises
    MemoryError if there is not even that.
    """

    def __init__(self, slots: int, page_size: int) -> None:
        self.pages: U64 = np.empty((slots, page_size // 8), np.uint64)
        self._owners = np.zeros(slots, np.uint64)
        self._addresses = np.zeros(slots, np.uint64)
        self._rounds = np.full(slots, -1, np.int64)  # -1: the place is free
        self._page_size = page_size

    def find(self, owner: int, addresses: U64) -> I64:
        """Where the versions sent last are, int64[n]: rows of `pages`, -1 where there is none."""
        slots = np.empty(addresses.size, np.int64)
        _find(
            self._owners,
            self._addresses,
            self._rounds,
            np.uint64(owner),
            addresses,
            np.uint64(self._page_size),
            slots,
        )
        return slots

    def remember(
        self, owner: int, addresses: U64, pages: NDArray[np.uint8], round_number: int
    ) -> int:
        """These pages (uint8[n * page_size]) were sent in this round; returns how many are kept."""
        kept: int = _remember(
            self._owners,
            self._addresses,
            self._rounds,
            self.pages,
            np.uint64(owner),
            addresses,
            page_words(pages, self._page_size),
            round_number,
        )
        return kept


@compiled
def _slot(owner: np.uint64, number: np.uint64, slots: np.uint64) -> np.int64:
    return np.int64((number % slots + owner % slots * _OWNER_STRIDE) % slots)


@compiled
def _find(
    owners: U64,
    known: U64,
    rounds: I64,
    owner: np.uint64,
    addresses: U64,
    page_size: np.uint64,
    out: I64,
) -> None:
    slots = np.uint64(owners.size)
    for i in range(addresses.size):
        slot = _slot(owner, addresses[i] // page_size, slots)
        there = rounds[slot] >= 0 and owners[slot] == owner and known[slot] == addresses[i]
        out[i] = slot if there else -1


@compiled
def _remember(
    owners: U64,
    known: U64,
    rounds: I64,
    kept: U64,
    owner: np.uint64,
    addresses: U64,
    pages: U64,
    round_number: int,
) -> int:
    slots = np.uint64(owners.size)
    page_size = np.uint64(8 * pages.shape[1])
    count = 0
    for i in range(addresses.size):
        slot = _slot(owner, addresses[i] // page_size, slots)
        same = owners[slot] == owner and known[slot] == addresses[i]
        if rounds[slot] >= 0 and not same and rounds[slot] + _LIFETIME > round_number:
            continue
        owners[slot], known[slot], rounds[slot] = owner, addresses[i], round_number
        for j in range(pages.shape[1]):
            kept[slot, j] = pages[i, j]
        count += 1
    return count
