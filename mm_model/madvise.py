"""MADV_FREE on page-table entries (mm/madvise.c).

MADV_DONTNEED is ``zap_page_range`` of memory.py; pushing pages out is in swap.py.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled
from mm_model.arm64.mmu import walk
from mm_model.arm64.pgtable import (
    U1,
    Arch,
    pte_mkclean,
    pte_mkold,
    pte_none,
    pte_pfn,
    pte_present,
)
from mm_model.frames import folio_free_swap
from mm_model.memory import zap_pte
from mm_model.state import PG_ANON, PG_DIRTY, PG_SWAPBACKED, PG_SWAPCACHE, PGD, Int, Phys, Space


@compiled
def madvise_free(arch: Arch, phys: Phys, space: Space, start: np.uint64, end: np.uint64) -> None:
    """MADV_FREE: clean pages that may be dropped until they are written again.

    Swapped ones go at once.
    """
    address = start
    while address < end:
        index = walk(arch, phys, space.regs[PGD], address)
        if index < 0:
            address = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
            continue
        pte = phys.tables[index]
        if not pte_none(pte):
            if pte_present(arch, pte):
                madvise_free_pte(arch, phys, index, np.int64(pte_pfn(arch, pte)))
            else:
                zap_pte(arch, phys, space, index)
        address += arch.page_size


@compiled
def madvise_free_pte(arch: Arch, phys: Phys, index: Int, frame: Int) -> None:
    """MADV_FREE of one present page."""
    if frame == 0 or phys.flags[frame] & PG_ANON == 0:
        return
    if phys.slot_of[frame] != 0 or phys.flags[frame] & PG_DIRTY:
        if phys.mapcount[frame] != 1:
            return
        if phys.slot_of[frame] != 0 and not folio_free_swap(phys, frame):
            return
        phys.flags[frame] &= ~PG_DIRTY
    phys.tables[index] = pte_mkclean(pte_mkold(phys.tables[index]))
    phys.flags[frame] &= ~(PG_SWAPBACKED | PG_SWAPCACHE)
