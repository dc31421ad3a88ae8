"""Write-protecting pages for userfaultfd (mm/userfaultfd.c, and mm/mprotect.c's part of it).

A protected page carries a bit of its own beside being read-only; the bit survives swapping. Where
there is no page, a pte marker remembers it, always in file and shared memory, in anonymous memory
since WP_UNPOPULATED (a mapping registered with the model's userfaultfd has it). With WP_ASYNC the
write fault itself drops the bit: what has lost it was written.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled
from mm_model.asm.pgtable import (
    U0,
    U1,
    Arch,
    pte_clear_uffd_wp,
    pte_mkuffd_wp,
    pte_mkwrite,
    pte_modify,
    pte_none,
    pte_present,
    pte_swp_clear_uffd_wp,
    pte_swp_mkuffd_wp,
    pte_uffd_wp,
    pte_write,
)
from mm_model.asm.ptes import contpte_try_unfold, set_pte_at
from mm_model.huge_memory import uffd_wp_huge_pmd
from mm_model.memory import zap_pte
from mm_model.mprotect import can_change_pte_writable, change_migration_entry
from mm_model.pagewalk import pte_alloc, walk
from mm_model.state import HUGE_PMDS, NO_TABLES, OK, PGD, Int, Phys, Space
from mm_model.swapops import (
    PTE_MARKER_UFFD_WP,
    is_pte_marker,
    make_pte_marker,
    pte_swp_uffd_wp_any,
)


@compiled
def uffd_wp_pte(
    arch: Arch, phys: Phys, index: Int, flags: np.uint64, newprot: np.uint64, try_writable: Int
) -> None:
    """Write-protect one entry, whatever it is (MM_CP_UFFD_WP)."""
    pte = phys.tables[index]
    if pte_none(pte):
        phys.tables[index] = make_pte_marker(arch, PTE_MARKER_UFFD_WP)
    elif pte_present(arch, pte):
        contpte_try_unfold(arch, phys, index)
        pte = pte_mkuffd_wp(pte_modify(arch, phys.tables[index], newprot))
        set_pte_at(arch, phys, index, pte)
    elif not is_pte_marker(arch, pte):
        change_migration_entry(arch, phys, index)
        pte = phys.tables[index]
        phys.tables[index] = pte_swp_mkuffd_wp(arch, pte)


@compiled
def uffd_unprotect_pte(
    arch: Arch, phys: Phys, index: Int, flags: np.uint64, newprot: np.uint64, try_writable: Int
) -> None:
    """Undo it (MM_CP_UFFD_WP_RESOLVE); a page whose writes nobody tracks becomes writable."""
    pte = phys.tables[index]
    if pte_none(pte):
        return
    if pte_present(arch, pte):
        contpte_try_unfold(arch, phys, index)
        pte = pte_clear_uffd_wp(pte_modify(arch, phys.tables[index], newprot))
        if (
            try_writable != 0
            and not pte_write(pte)
            and can_change_pte_writable(arch, phys, flags, pte)
        ):
            pte = pte_mkwrite(pte)
        set_pte_at(arch, phys, index, pte)
    elif is_pte_marker(arch, pte):
        phys.tables[index] = U0
    else:
        phys.tables[index] = pte_swp_clear_uffd_wp(arch, pte)


@compiled
def uffd_wp_range(
    arch: Arch,
    phys: Phys,
    space: Space,
    start: np.uint64,
    end: np.uint64,
    flags: np.uint64,
    newprot: np.uint64,
    enable: Int,
    try_writable: Int,
) -> Int:
    """Write-protect [start, end) of one mapping, or undo it; OK or NO_TABLES.

    Protecting allocates tables where there are none: markers need a place.
    """
    address = start
    while address < end:
        last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
        if last > end:
            last = end
        if space.regs[HUGE_PMDS] != 0 and uffd_wp_huge_pmd(
            arch, phys, space, address, last, flags, newprot, enable, try_writable
        ):
            address = last
            continue
        if enable != 0:
            index = pte_alloc(arch, phys, space, address)
            if index < 0:
                return NO_TABLES
        else:
            index = walk(arch, phys, space.regs[PGD], address)
        if index >= 0:
            for k in range(index, index + np.int64((last - address) >> arch.page_shift)):
                if enable != 0:
                    uffd_wp_pte(arch, phys, k, flags, newprot, try_writable)
                else:
                    uffd_unprotect_pte(arch, phys, k, flags, newprot, try_writable)
        address = last
    return OK


@compiled
def zap_page_range_keep_markers(
    arch: Arch, phys: Phys, space: Space, start: np.uint64, end: np.uint64
) -> None:
    """Unmap pages of a file or shared object, leaving a marker where one was write-protected.

    The object's page may come back, and would then be unprotected
    (zap_install_uffd_wp_if_needed).
    """
    address = start
    while address < end:
        last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
        if last > end:
            last = end
        index = walk(arch, phys, space.regs[PGD], address)
        if index >= 0:
            for k in range(index, index + np.int64((last - address) >> arch.page_shift)):
                pte = phys.tables[k]
                if pte_none(pte):
                    continue
                protected = (pte_present(arch, pte) and pte_uffd_wp(pte)) or (
                    pte_swp_uffd_wp_any(arch, pte)
                )
                zap_pte(arch, phys, space, k)
                if protected:
                    phys.tables[k] = make_pte_marker(arch, PTE_MARKER_UFFD_WP)
        address = last
