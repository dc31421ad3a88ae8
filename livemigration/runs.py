"""Sets of pages as runs: (first address, number of pages), the form in which sets travel and print.

All functions work on whole arrays; none loops over pages in Python.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

NEAR_PAGES = 2048


def to_runs(addresses: U64, page_size: int) -> tuple[U64, U64]:
    """Ascending page addresses uint64[n] -> (starts uint64[r], pages uint64[r])."""
    if addresses.size == 0:
        empty = np.zeros(0, dtype=np.uint64)
        return empty, empty.copy()
    breaks = np.flatnonzero(addresses[1:] - addresses[:-1] != np.uint64(page_size)) + 1
    first = np.concatenate((np.zeros(1, dtype=np.int64), breaks))
    last = np.concatenate((breaks, np.array([addresses.size], dtype=np.int64)))
    return addresses[first], (last - first).astype(np.uint64)


def from_runs(starts: U64, pages: U64, page_size: int) -> U64:
    """(starts uint64[r], pages uint64[r]) -> page addresses uint64[n], in the order of the runs."""
    total = int(pages.sum())
    if starts.size == 1:
        first = int(starts[0])
        return page_addresses(first, first + total * page_size, page_size)
    counts = pages.astype(np.int64)
    before = np.cumsum(counts) - counts
    within = np.arange(total, dtype=np.int64) - np.repeat(before, counts)
    return np.repeat(starts, counts) + within.astype(np.uint64) * np.uint64(page_size)


def page_addresses(start: int, end: int, page_size: int) -> U64:
    """Every page address in [start, end): uint64[(end - start) / page_size]."""
    return np.arange(start, end, page_size, dtype=np.uint64)


def near_pieces(addresses: U64, page_size: int) -> list[U64]:
    """Page addresses cut where one is below the one before, or more than `NEAR_PAGES` above it.

    What is close together is looked up in one walk of the page tables.
    """
    # A step down wraps around to a large number.
    far = addresses[1:] - addresses[:-1] > np.uint64((NEAR_PAGES + 1) * page_size)
    return np.split(addresses, np.flatnonzero(far) + 1)
