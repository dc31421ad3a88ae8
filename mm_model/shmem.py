"""Shared objects (mm/shmem.c): anonymous shared memory and tmpfs files.

Each is a run of ``Phys.cache``. An entry of the run is 0 (hole), ``frame << 1`` (page in memory) or
``slot << 1 | 1`` (page on swap). A shared page that is swapped out leaves nothing in the page
tables, so its soft-dirty bit is gone with the entry, as on Linux.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled
from mm_model.arch import U0, U1
from mm_model.frames import (
    alloc_frame,
    folio_head,
    folio_nr_pages,
    free_frame,
    free_hugetlb_folio,
    free_slot,
    put_frame,
)
from mm_model.state import N_SWAPIN, PG_CACHE, PG_DIRTY, PG_LARGE, PG_SWAPBACKED, Int, Phys

_CACHE_PAGE = PG_CACHE | PG_SWAPBACKED


@compiled
def shmem_get_folio(phys: Phys, position: Int) -> Int:
    """The frame of the object page at ``position``, brought in or made; -1 out of frames."""
    entry = phys.cache[position]
    if entry == U0:
        frame = alloc_frame(phys, True)
        if frame < 0:
            return frame
        phys.flags[frame] = _CACHE_PAGE
        phys.cache[position] = np.uint64(frame) << U1
        return frame
    if entry & U1 != U0:
        return shmem_swapin_folio(phys, position)
    return np.int64(entry >> U1)


@compiled
def shmem_swapin_folio(phys: Phys, position: Int) -> Int:
    """Bring a swapped object page back; its slot is freed."""
    slot = np.int64(phys.cache[position] >> U1)
    frame = phys.slot_frame[slot]
    phys.slot_count[slot] = 0
    free_slot(phys, slot)
    phys.flags[frame] = _CACHE_PAGE | PG_DIRTY
    phys.cache[position] = np.uint64(frame) << U1
    phys.ctr[N_SWAPIN] += 1
    return frame


@compiled
def shmem_frame(phys: Phys, position: Int) -> Int:
    """The frame with the object page's content wherever it is, -1 for a hole. Changes nothing."""
    entry = phys.cache[position]
    if entry == U0:
        return np.int64(-1)
    if entry & U1 != U0:
        return phys.slot_frame[np.int64(entry >> U1)]
    return np.int64(entry >> U1)


@compiled
def shmem_truncate_page(phys: Phys, position: Int) -> None:
    """Remove one page from the object. Nothing may map it any more, or the last unmap frees it."""
    entry = phys.cache[position]
    phys.cache[position] = U0
    if entry == U0:
        return
    if entry & U1 != U0:
        slot = np.int64(entry >> U1)
        frame = phys.slot_frame[slot]
        phys.slot_count[slot] = 0
        free_slot(phys, slot)
        free_frame(phys, frame)
        return
    frame = np.int64(entry >> U1)
    phys.flags[frame] = phys.flags[frame] & ~PG_CACHE
    if phys.flags[frame] & PG_LARGE == 0:
        put_frame(phys, frame)
    elif frame == folio_head(phys, frame) + folio_nr_pages(phys, frame) - 1:
        # A page of hugetlb goes as a whole, with its last base page.
        free_hugetlb_folio(phys, folio_head(phys, frame))


@compiled
def shmem_truncate(phys: Phys, first: Int, count: Int) -> None:
    """Remove ``count`` pages from cache position ``first`` on."""
    for position in range(first, first + count):
        shmem_truncate_page(phys, position)


@compiled
def shmem_unuse(phys: Phys, first: Int, count: Int) -> None:
    """swapoff: bring every swapped page of the run back into memory."""
    for position in range(first, first + count):
        if phys.cache[position] & U1 != U0:
            shmem_swapin_folio(phys, position)
