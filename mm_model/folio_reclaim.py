"""Reclaim of a huge page that several address spaces map (mm/rmap.c, mm/vmscan.c).

Only kernels that ask for the mappings of its first page alone (``advice_asks_page``) come here: all
others leave what is shared. ``reclaim_folio`` of swap.py is for what one address space maps.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled
from mm_model.asm.pgtable import (
    U0,
    Arch,
    pte_dirty,
    pte_pfn,
    pte_present,
)
from mm_model.asm.ptes import ptep_get_and_clear
from mm_model.frames import folio_nr_pages, put_folio
from mm_model.huge_memory import folio_pmd, split_huge_pmd
from mm_model.pagewalk import walk
from mm_model.state import (
    LARGE_FOLIOS,
    N_VMAS,
    PG_ANON,
    PG_DIRTY,
    PG_SWAPBACKED,
    PGD,
    RSS,
    V_END,
    V_OBJECT,
    V_PGOFF,
    V_START,
    Flag,
    Int,
    Phys,
    Space,
)
from mm_model.swapops import set_swap_pte


@compiled
def try_to_unmap(
    arch: Arch, phys: Phys, space: Space, head: Int, first_page: Int, slot: Int
) -> Flag:
    """Replace every entry of one address space that maps a page of the folio (try_to_unmap_one).

    By swap entries from ``slot`` on; with ``slot`` 0 by nothing, for the folio was MADV_FREE'd.
    That one may have been written since: then it stays, and the answer is False. ``first_page`` is
    the folio's index.
    """
    vmas = space.vmas
    pages = folio_nr_pages(phys, head)
    for v in range(space.regs[N_VMAS]):
        if vmas[v, V_OBJECT] != U0:
            continue
        start = np.int64(vmas[v, V_PGOFF])
        stop = start + np.int64((vmas[v, V_END] - vmas[v, V_START]) >> arch.page_shift)
        for page in range(max(start, first_page), min(stop, first_page + pages)):
            address = vmas[v, V_START] + (np.uint64(page - start) << arch.page_shift)
            index = walk(arch, phys, space.regs[PGD], address)
            if index < 0:
                huge = folio_pmd(arch, phys, space, address, head)
                if huge < 0:
                    continue
                if pte_dirty(phys.tables[huge]):
                    phys.flags[head] |= PG_DIRTY
                split_huge_pmd(arch, phys, space, huge, False)
                index = walk(arch, phys, space.regs[PGD], address)
            pte = phys.tables[index]
            frame = head + page - first_page
            if not pte_present(arch, pte) or np.int64(pte_pfn(arch, pte)) != frame:
                continue
            if slot == 0 and (pte_dirty(pte) or phys.flags[head] & PG_DIRTY != 0):
                for k in range(head, head + pages):
                    phys.flags[k] |= PG_SWAPBACKED | PG_DIRTY
                return False
            unmap_page(arch, phys, space, index, frame, slot + page - first_page if slot else slot)
    return True


@compiled
def unmap_page(arch: Arch, phys: Phys, space: Space, index: Int, frame: Int, slot: Int) -> None:
    """Replace one entry by that of a slot; slot 0: by nothing."""
    pte = ptep_get_and_clear(arch, phys, index)
    if slot != 0:
        set_swap_pte(arch, phys, index, pte, frame, slot)
    phys.mapcount[frame] -= 1
    space.regs[RSS] -= 1


@compiled
def forget_reclaimed_folio(phys: Phys, head: Int) -> None:
    """What is left of a folio that nobody maps any more: free frames, or the pages of its slots."""
    if phys.slot_of[head] == 0:
        put_folio(phys, head)
        return
    for frame in range(head, head + folio_nr_pages(phys, head)):
        phys.flags[frame] = PG_ANON | PG_SWAPBACKED
    phys.ctr[LARGE_FOLIOS] -= 1
