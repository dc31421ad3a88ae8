"""Moving page-table entries to another address (mm/mremap.c).

Entries that move one by one become soft-dirty. Where a whole last-level table can move, the kernel
moves the table instead (CONFIG_HAVE_MOVE_PMD) and its entries stay as they are, soft-dirty bits
included.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.asm.pgtable import (
    U0,
    U1,
    Arch,
    Pte,
    pte_clear_uffd_wp,
    pte_mksoft_dirty,
    pte_present,
    pte_swp_clear_uffd_wp,
    pte_swp_mksoft_dirty,
)
from mm_model.asm.ptes import ptep_get_and_clear, set_pte_at
from mm_model.huge_memory import move_huge_pmd
from mm_model.pagewalk import huge_pmd, pte_alloc, walk, walk_to
from mm_model.state import LARGE_FOLIOS, NO_TABLES, OK, PGD, Flag, Int, Phys, Space
from mm_model.swapops import is_pte_marker


@inlined
def move_soft_dirty_pte(arch: Arch, pte: Pte) -> Pte:
    """A page at another address counts as written."""
    if pte_present(arch, pte):
        return pte_mksoft_dirty(arch, pte)
    return pte_swp_mksoft_dirty(arch, pte)


@inlined
def clear_uffd_wp_of(arch: Arch, pte: Pte) -> Pte:
    """What is left of an entry that moves out of a registered mapping: a marker is nothing."""
    if pte_present(arch, pte):
        return pte_clear_uffd_wp(pte)
    if is_pte_marker(arch, pte):
        return U0
    return pte_swp_clear_uffd_wp(arch, pte)


@compiled
def move_normal_pmd(
    arch: Arch, phys: Phys, space: Space, source: np.uint64, target: np.uint64
) -> Flag:
    """Move one whole table of entries; False if the target already has one."""
    old = walk_to(arch, phys, space.regs[PGD], source, 1)
    if old < 0 or phys.tables[old] == U0:
        return True
    new = walk_to(arch, phys, space.regs[PGD], target, 1)
    if new >= 0 and phys.tables[new] != U0:
        return False
    if new < 0:
        # Allocating the path makes an empty table at the end of it, which gives way to the moved
        # one.
        if pte_alloc(arch, phys, space, target) < 0:
            return False
        new = walk_to(arch, phys, space.regs[PGD], target, 1)
        free = phys.tables[new]
        phys.tables[new] = phys.tables[old]
        phys.tables[old] = free
        return True
    phys.tables[new] = phys.tables[old]
    phys.tables[old] = U0
    return True


@compiled
def move_page_tables(
    arch: Arch,
    phys: Phys,
    space: Space,
    source: np.uint64,
    target: np.uint64,
    length: np.uint64,
    clear_uffd_wp: Int,
) -> Int:
    """Move the entries of ``length`` bytes at ``source`` to ``target``; OK or NO_TABLES.

    ``clear_uffd_wp``: the mapping is registered with a userfaultfd that is not told of moves: its
    entries lose their protection, so that they must be moved one by one.

    The caller has made sure that tables suffice and the target range is empty.
    """
    span = U1 << arch.pmd_shift
    end = source + length
    while source < end:
        extent = span - (source & (span - U1))
        room = span - (target & (span - U1))
        if room < extent:
            extent = room
        if end - source < extent:
            extent = end - source
        if huge_pmd(arch, phys, space, source) >= 0:
            moved = move_huge_pmd(arch, phys, space, source, target, extent, clear_uffd_wp)
        else:
            whole = extent == span and clear_uffd_wp == 0
            moved = whole and move_normal_pmd(arch, phys, space, source, target)
        if not moved:
            index = walk(arch, phys, space.regs[PGD], source)
            if index >= 0:
                new = pte_alloc(arch, phys, space, target)
                if new < 0:
                    return NO_TABLES
                for k in range(np.int64(extent >> arch.page_shift)):
                    pte = phys.tables[index + k]
                    if pte == U0:
                        continue
                    pte = move_soft_dirty_pte(arch, ptep_get_and_clear(arch, phys, index + k))
                    if clear_uffd_wp != 0:
                        pte = clear_uffd_wp_of(arch, pte)
                    if phys.ctr[LARGE_FOLIOS] != 0:
                        set_pte_at(arch, phys, new + k, pte)
                    else:
                        phys.tables[new + k] = pte
        source += extent
        target += extent
    return OK
