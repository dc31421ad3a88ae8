"""Collapsing page entries into a huge page, as MADV_COLLAPSE asks for it (mm/khugepaged.c)."""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled
from mm_model.asm.pgtable import U0, Arch, pte_pfn, pte_present, pte_uffd_wp, pte_write
from mm_model.asm.ptes import contpte_try_unfold
from mm_model.frames import alloc_folio, clear_frame, copy_frame, page_remove_rmap
from mm_model.huge_memory import map_anon_folio_pmd
from mm_model.memory import do_swap_page
from mm_model.pagewalk import free_table, huge_pmd, tables_left, walk, walk_to
from mm_model.state import (
    FALLBACK,
    NO_FRAMES,
    NO_TABLES,
    OK,
    PG_ANON,
    PGD,
    RSS,
    V_FLAGS,
    VM_UFFD_WP,
    Int,
    Phys,
    Space,
)
from mm_model.swapops import pte_swp_uffd_wp_any


@compiled
def collapse_pmd(arch: Arch, phys: Phys, space: Space, vma: Int, address: np.uint64) -> Int:
    """Make one huge page of what is mapped at ``address``; OK also if it is one already.

    FALLBACK: refused, for there is no table, or no entry in it that may be written, or userfaultfd
    watches one of them. Swapped pages
    are brought back first. The huge page is mapped as written.
    """
    if huge_pmd(arch, phys, space, address) >= 0:
        return OK
    first = walk(arch, phys, space.regs[PGD], address)
    if first < 0:
        return FALLBACK
    count = np.int64(arch.table_mask) + 1
    writable = False
    watched = space.vmas[vma, V_FLAGS] & VM_UFFD_WP != U0
    for k in range(first, first + count):
        pte = phys.tables[k]
        if not pte_present(arch, pte):
            if pte_swp_uffd_wp_any(arch, pte) or (watched and pte == U0):
                return FALLBACK
            continue
        frame = np.int64(pte_pfn(arch, pte))
        if pte_uffd_wp(pte) or (watched and frame == 0):
            return FALLBACK
        if frame != 0:
            if phys.flags[frame] & PG_ANON == 0:
                return FALLBACK
            writable = writable or pte_write(pte)
    if not writable:
        return FALLBACK
    if not tables_left(phys):
        return NO_TABLES
    head = alloc_folio(phys, np.int64(arch.table_shift), False)
    if head < 0:
        return NO_FRAMES
    for k in range(count):
        pte = phys.tables[first + k]
        if pte != U0 and not pte_present(arch, pte):
            where = address + (np.uint64(k) << arch.page_shift)
            do_swap_page(arch, phys, space, vma, first + k, where, 0)
    for k in range(count):
        contpte_try_unfold(arch, phys, first + k)
        pte = phys.tables[first + k]
        phys.tables[first + k] = U0
        frame = np.int64(pte_pfn(arch, pte))
        if pte == U0 or frame == 0:
            clear_frame(phys, head + k)
            continue
        copy_frame(phys, frame, head + k)
        space.regs[RSS] -= 1
        page_remove_rmap(phys, frame)
    index = walk_to(arch, phys, space.regs[PGD], address, 1)
    free_table(phys, np.int64(phys.tables[index] >> arch.page_shift))
    phys.tables[index] = U0
    map_anon_folio_pmd(arch, phys, space, vma, index, head)
    return OK
