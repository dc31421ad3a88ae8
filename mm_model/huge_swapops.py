"""Entries of huge pages that are moving (include/linux/swapops.h: pmd_to_swp_entry and its like).

They are migration entries one level up: offset, type and flags as in a page entry's, the frame that
of the huge page's first page. Whoever changes the type makes a new entry and takes the marks over,
soft-dirty by the ``pmd_swp_*`` helpers of the patch.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.asm.pgtable import (
    U0,
    Arch,
    Pte,
    pmd_swp_mksoft_dirty,
    pmd_swp_soft_dirty,
    pmd_table,
    pte_pfn,
    pte_present,
    pte_swp_mksoft_dirty,
    pte_swp_mkuffd_wp,
    pte_swp_uffd_wp,
    swp_offset,
    swp_type,
    swp_typed_entry_to_pte,
)
from mm_model.state import PG_ANON, Flag, Int, Phys
from mm_model.swapops import (
    SWP_MIGRATION_READ,
    SWP_MIGRATION_READ_EXCLUSIVE,
    SWP_MIGRATION_WRITE,
    migration_frame,
)


@inlined
def is_swap_pmd(arch: Arch, pmd: Pte) -> Flag:
    """Whether an entry above page entries stands for a huge page that is moving."""
    return pmd != U0 and not pmd_table(pmd) and not pte_present(arch, pmd)


@compiled
def huge_pmd_head(arch: Arch, pmd: Pte) -> Int:
    """The first frame of the huge page that an entry maps, or stands for; 0: the huge zero page."""
    if pte_present(arch, pmd):
        return np.int64(pte_pfn(arch, pmd))
    return migration_frame(arch, pmd)


@compiled
def pmd_migration_entry_as(arch: Arch, pmd: Pte, kind: np.uint64) -> Pte:
    """The same entry of another kind, with the marks taken over."""
    entry = swp_typed_entry_to_pte(arch, kind, swp_offset(arch, pmd))
    if pmd_swp_soft_dirty(arch, pmd):
        entry = pmd_swp_mksoft_dirty(arch, entry)
    if pte_swp_uffd_wp(arch, pmd):
        entry = pte_swp_mkuffd_wp(arch, entry)
    return entry


@compiled
def pmd_migration_entry_readable(arch: Arch, phys: Phys, pmd: Pte) -> Pte:
    """mprotect: a moving huge page is no longer to be writable without being asked for."""
    if swp_type(arch, pmd) != SWP_MIGRATION_WRITE:
        return pmd
    anon = phys.flags[migration_frame(arch, pmd)] & PG_ANON
    kind = SWP_MIGRATION_READ_EXCLUSIVE if anon else SWP_MIGRATION_READ
    return pmd_migration_entry_as(arch, pmd, kind)


@compiled
def pmd_migration_entry_shared(arch: Arch, pmd: Pte) -> Pte:
    """Fork: it will be shared, and so read-only."""
    if swp_type(arch, pmd) == SWP_MIGRATION_READ:
        return pmd
    return pmd_migration_entry_as(arch, pmd, SWP_MIGRATION_READ)


@compiled
def split_pmd_migration_entry(arch: Arch, pmd: Pte, page: Int) -> Pte:
    """The entry of one page, where the huge page's is split (__split_huge_pmd_locked)."""
    offset = swp_offset(arch, pmd) + np.uint64(page)
    entry = swp_typed_entry_to_pte(arch, swp_type(arch, pmd), offset)
    if pmd_swp_soft_dirty(arch, pmd):
        entry = pte_swp_mksoft_dirty(arch, entry)
    if pte_swp_uffd_wp(arch, pmd):
        entry = pte_swp_mkuffd_wp(arch, entry)
    return entry
