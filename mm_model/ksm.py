"""Kernel samepage merging: equal anonymous pages become one (mm/ksm.c).

``Machine.ksm_scan`` decides what merges, in the kernel's order; here is what happens to an entry.
Of two pages that are merged for the first time the later one becomes the shared page and keeps its
entry, write-protected; the earlier one, and every page merged later, gets a *new* entry, which has
neither soft-dirty nor uffd-wp. So a page that was written since ``clear_refs`` and merged before
the next look is lost to both trackers.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled
from mm_model.asm.pgtable import (
    U1,
    Arch,
    pfn_pte,
    pte_dirty,
    pte_mkclean,
    pte_pfn,
    pte_present,
    pte_protnone,
    pte_wrprotect,
)
from mm_model.frames import page_remove_rmap
from mm_model.huge_memory import huge_frame
from mm_model.huge_swapops import is_swap_pmd
from mm_model.memory import do_wp_page, wp_page_unshare
from mm_model.pagewalk import huge_pmd, walk
from mm_model.state import (
    OK,
    PG_ANON,
    PG_DIRTY,
    PG_EXCLUSIVE,
    PG_KSM,
    PGD,
    V_PROT,
    Flag,
    Int,
    Phys,
    Space,
)


@compiled
def ksm_write_protect_page(arch: Arch, phys: Phys, index: Int) -> None:
    """Make sure that the page does not change while it is compared (write_protect_page)."""
    pte = phys.tables[index]
    frame = np.int64(pte_pfn(arch, pte))
    if pte_dirty(pte):
        phys.flags[frame] |= PG_DIRTY
    phys.flags[frame] &= ~PG_EXCLUSIVE
    phys.tables[index] = pte_wrprotect(pte_mkclean(pte))


@compiled
def ksm_merge_page(
    arch: Arch, phys: Phys, space: Space, vma: Int, address: np.uint64, shared: Int
) -> None:
    """Let the entry at ``address`` map the frame ``shared`` (try_to_merge_one_page).

    If it does so already, the page becomes the shared one.
    """
    index = walk(arch, phys, space.regs[PGD], address)
    ksm_write_protect_page(arch, phys, index)
    frame = np.int64(pte_pfn(arch, phys.tables[index]))
    if frame == shared:
        phys.flags[frame] |= PG_KSM | PG_DIRTY
        return
    phys.mapcount[shared] += 1
    phys.tables[index] = pfn_pte(arch, np.uint64(shared), space.vmas[vma, V_PROT])
    page_remove_rmap(phys, frame)


@compiled
def break_ksm_range(
    arch: Arch, phys: Phys, space: Space, vma: Int, start: np.uint64, end: np.uint64
) -> Int:
    """Give each merged page of [start, end) a copy of its own; OK or NO_FRAMES.

    Where ``ksm_break_marks``, the copy is made by a write fault, which marks it as written. Where
    ``ksm_skips_protnone``, pages that may not be accessed are not found and stay merged.
    """
    address = start
    while address < end:
        index = walk(arch, phys, space.regs[PGD], address)
        if index < 0:
            address = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
            continue
        pte = phys.tables[index]
        found = arch.ksm_skips_protnone == 0 or not pte_protnone(arch, pte)
        if found and pte_present(arch, pte) and phys.flags[np.int64(pte_pfn(arch, pte))] & PG_KSM:
            if arch.ksm_break_marks != 0:
                status = do_wp_page(arch, phys, space, vma, index)
            else:
                status = wp_page_unshare(arch, phys, space, vma, index)
            if status != OK:
                return status
        address += arch.page_size
    return OK


@compiled
def ksm_candidate(arch: Arch, phys: Phys, space: Space, address: np.uint64, follow: Flag) -> Int:
    """The frame of the anonymous page at ``address``, 0 if there is none that could merge.

    ``follow``: as follow_page() sees it, by which get_mergeable_page() looks at a page again.
    """
    no_access = follow and arch.ksm_skips_protnone != 0
    index = walk(arch, phys, space.regs[PGD], address)
    if index < 0:
        huge = huge_pmd(arch, phys, space, address)
        if huge < 0 or is_swap_pmd(arch, phys.tables[huge]):
            return np.int64(0)
        if no_access and pte_protnone(arch, phys.tables[huge]):
            return np.int64(0)
        return huge_frame(arch, phys, phys.tables[huge], address)
    pte = phys.tables[index]
    if not pte_present(arch, pte) or (no_access and pte_protnone(arch, pte)):
        return np.int64(0)
    frame = np.int64(pte_pfn(arch, pte))
    return frame if phys.flags[frame] & PG_ANON else np.int64(0)
