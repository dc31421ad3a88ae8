"""Changing the protection of present pages (mm/mprotect.c)."""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.asm.pgtable import (
    U0,
    U1,
    Arch,
    Pte,
    pte_dirty,
    pte_mkwrite,
    pte_modify,
    pte_pfn,
    pte_present,
    pte_protnone,
    pte_valid_cont,
    pte_write,
    swp_type,
)
from mm_model.asm.ptes import contpte_try_fold, contpte_unfold
from mm_model.huge_memory import change_huge_pmd
from mm_model.memory import pte_needs_soft_dirty_wp, userfaultfd_pte_wp
from mm_model.pagewalk import walk
from mm_model.state import (
    HUGE_PMDS,
    LARGE_FOLIOS,
    PG_ANON,
    PG_EXCLUSIVE,
    PGD,
    VM_SHARED,
    Flag,
    Int,
    Phys,
    Space,
)
from mm_model.swapops import (
    SWP_MIGRATION_READ,
    SWP_MIGRATION_READ_EXCLUSIVE,
    SWP_MIGRATION_WRITE,
    migration_entry_as,
    migration_frame,
)


@inlined
def can_change_pte_writable(arch: Arch, phys: Phys, flags: np.uint64, pte: Pte) -> Flag:
    """Whether the page may become writable at once, because its next write needs no fault."""
    if pte_protnone(arch, pte) or pte_needs_soft_dirty_wp(arch, flags, pte):
        return False
    if userfaultfd_pte_wp(flags, pte):
        return False
    if flags & VM_SHARED != U0:
        return pte_dirty(pte)
    own = PG_ANON | PG_EXCLUSIVE
    return phys.flags[np.int64(pte_pfn(arch, pte))] & own == own


@compiled
def change_migration_entry(arch: Arch, phys: Phys, index: Int) -> None:
    """A moving page is no longer to be writable without being asked for."""
    pte = phys.tables[index]
    if swp_type(arch, pte) == SWP_MIGRATION_WRITE:
        anon = phys.flags[migration_frame(arch, pte)] & PG_ANON
        kind = SWP_MIGRATION_READ_EXCLUSIVE if anon else SWP_MIGRATION_READ
        phys.tables[index] = migration_entry_as(arch, pte, kind)


@inlined
def change_pte(
    arch: Arch,
    phys: Phys,
    index: Int,
    flags: np.uint64,
    newprot: np.uint64,
    try_writable: Int,
) -> None:
    """Give one present page its new protection."""
    pte = pte_modify(arch, phys.tables[index], newprot)
    if try_writable != 0 and not pte_write(pte) and can_change_pte_writable(arch, phys, flags, pte):
        pte = pte_mkwrite(pte)
    phys.tables[index] = pte


@compiled
def change_folios(
    arch: Arch,
    phys: Phys,
    index: Int,
    stop: Int,
    flags: np.uint64,
    newprot: np.uint64,
    try_writable: Int,
) -> None:
    """Entries [index, stop) of one table where large folios exist: blocks unfold and fold."""
    for k in range(index, stop):
        if not pte_present(arch, phys.tables[k]):
            if phys.tables[k] != U0:
                change_migration_entry(arch, phys, k)
            continue
        if pte_valid_cont(phys.tables[k]):
            contpte_unfold(arch, phys, k)
        change_pte(arch, phys, k, flags, newprot, try_writable)
        contpte_try_fold(arch, phys, k, phys.tables[k])


@compiled
def change_protection(
    arch: Arch,
    phys: Phys,
    space: Space,
    start: np.uint64,
    end: np.uint64,
    flags: np.uint64,
    newprot: np.uint64,
    try_writable: Int,
) -> None:
    """Give every present page of [start, end) the protection ``newprot``.

    ``flags`` are those of the mapping, already changed.

    ``try_writable``: MM_CP_TRY_CHANGE_WRITABLE. Swap entries carry no protection and stay as they
    are; migration entries do.
    """
    address = start
    while address < end:
        last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
        if last > end:
            last = end
        index = walk(arch, phys, space.regs[PGD], address)
        if index < 0 and space.regs[HUGE_PMDS] != 0:
            if change_huge_pmd(arch, phys, space, address, last, flags, newprot, try_writable):
                index = walk(arch, phys, space.regs[PGD], address)
        if index >= 0:
            stop = index + np.int64((last - address) >> arch.page_shift)
            if phys.ctr[LARGE_FOLIOS] != 0:
                change_folios(arch, phys, index, stop, flags, newprot, try_writable)
            else:
                for k in range(index, stop):
                    if pte_present(arch, phys.tables[k]):
                        change_pte(arch, phys, k, flags, newprot, try_writable)
                    elif phys.tables[k] != U0:
                        change_migration_entry(arch, phys, k)
        address = last
