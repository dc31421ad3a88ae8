"""MADV_FREE on page-table entries (mm/madvise.c).

MADV_DONTNEED is ``zap_page_range`` of memory.py; pushing pages out is in swap.py.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled
from mm_model.asm.pgtable import (
    PTE_SOFT_DIRTY,
    U0,
    U1,
    Arch,
    pte_mkclean,
    pte_mkold,
    pte_none,
    pte_pfn,
    pte_present,
)
from mm_model.asm.ptes import clear_young_dirty_ptes
from mm_model.frames import folio_free_swap, folio_head, folio_mapcount, folio_nr_pages
from mm_model.huge_memory import huge_frame, leave_or_split_folio, split_folio
from mm_model.huge_swapops import is_swap_pmd
from mm_model.internal import folio_pte_batch
from mm_model.memory import zap_pte
from mm_model.pagewalk import huge_pmd, walk
from mm_model.state import (
    OK,
    PG_ANON,
    PG_DIRTY,
    PG_LARGE,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PGD,
    SPLIT_EVERYWHERE,
    Flag,
    Int,
    Phys,
    Space,
)
from mm_model.swapops import non_swap_entry


@compiled
def madvise_free(
    arch: Arch, phys: Phys, space: Space, vma: Int, start: np.uint64, end: np.uint64
) -> tuple[np.uint64, int]:
    """MADV_FREE: clean pages that may be dropped until they are written again.

    Swapped ones go at once. Answers (``end``, OK), or where the caller has to split a large folio
    in all address spaces, and SPLIT_EVERYWHERE.
    """
    address = start
    while address < end:
        index = walk(arch, phys, space.regs[PGD], address)
        if index < 0:
            if not madvise_free_huge_pmd(arch, phys, space, vma, address, end):
                address = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
            continue
        pte = phys.tables[index]
        if not pte_none(pte):
            if pte_present(arch, pte):
                frame = np.int64(pte_pfn(arch, pte))
                if phys.flags[frame] & PG_LARGE:
                    table_end = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
                    if table_end > end:
                        table_end = end
                    if arch.advice_asks_page != 0:
                        if phys.mapcount[frame] == 1:
                            return address, SPLIT_EVERYWHERE
                        address = table_end
                        continue
                    most = np.int64((table_end - address) >> arch.page_shift)
                    done = madvise_free_folio(arch, phys, space, vma, index, address, most)
                    address += np.uint64(done) << arch.page_shift
                    continue
                madvise_free_pte(arch, phys, index, frame)
            elif not non_swap_entry(arch, pte):
                zap_pte(arch, phys, space, index)
        address += arch.page_size
    return end, OK


@compiled
def madvise_free_huge_pmd(
    arch: Arch, phys: Phys, space: Space, vma: Int, address: np.uint64, end: np.uint64
) -> Flag:
    """MADV_FREE of the huge page at ``address``, if there is one and nobody shares it.

    True: it was not wholly in the range and has been split, so look again.
    """
    huge = huge_pmd(arch, phys, space, address)
    if huge < 0 or is_swap_pmd(arch, phys.tables[huge]):
        return False
    head = np.int64(pte_pfn(arch, phys.tables[huge]))
    if head == 0 or folio_mapcount(phys, head) != folio_nr_pages(phys, head):
        return False
    span = U1 << arch.pmd_shift
    if address & (span - U1) != U0 or end - address < span:
        frame = huge_frame(arch, phys, phys.tables[huge], address)
        split_folio(arch, phys, space, vma, address, frame)
        return True
    phys.tables[huge] = pte_mkclean(pte_mkold(phys.tables[huge]))
    for k in range(head, head + folio_nr_pages(phys, head)):
        phys.flags[k] &= ~(PG_SWAPBACKED | PG_DIRTY)
    return False


@compiled
def madvise_free_folio(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, address: np.uint64, most: Int
) -> Int:
    """MADV_FREE of the entries from ``index`` on that map one large folio; how many are done with.

    0: it was not wholly in the range and has been split, so look again.
    """
    frame = np.int64(pte_pfn(arch, phys.tables[index]))
    head = folio_head(phys, frame)
    pages = folio_nr_pages(phys, frame)
    count = folio_pte_batch(arch, phys, index, most, PTE_SOFT_DIRTY, True)
    if count < pages:
        return leave_or_split_folio(arch, phys, space, vma, address, frame, count)
    dirty = False
    for k in range(head, head + pages):
        dirty = dirty or phys.flags[k] & PG_DIRTY != 0
    if dirty and folio_mapcount(phys, head) != pages:
        return count
    clear_young_dirty_ptes(arch, phys, index, count, True)
    for k in range(head, head + pages):
        phys.flags[k] &= ~(PG_SWAPBACKED | PG_DIRTY)
    return count


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
