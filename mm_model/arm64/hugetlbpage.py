"""Entries of hugetlb pages, one or several per page (arch/arm64/mm/hugetlbpage.c).

A hugetlb page is mapped at the level whose entries are next below its size: by one entry, or by a
run of them that all bear CONT (64 KiB at 4K by 16 page entries, 32 MiB by 16 huge page entries).
``count`` is the length of the run, ``step`` the pages that one entry maps.

What the patch changes: gathering dirty bits over the run makes the result dirty, but not
soft-dirty. The ``sd_huge_*`` fields of ``Arch`` hold the bit that is set where such a hunk is off.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled
from mm_model.arm64.fault import ptep_set_access_flags_one
from mm_model.arm64.pgtable import (
    PMD_TABLE_BIT,
    U0,
    Arch,
    Pte,
    pte_advance_pfn,
    pte_dirty,
    pte_mkcont,
    pte_mkdirty_hw,
    pte_mkyoung,
    pte_present,
    pte_write,
    pte_wrprotect,
    pte_young,
)
from mm_model.state import Flag, Int, Phys


@compiled
def arch_make_huge_pte(pte: Pte, level: Int, count: Int) -> Pte:
    """The entry as a hugetlb page at ``level`` has it."""
    if level > 0:
        pte = pte & ~PMD_TABLE_BIT
    return pte_mkcont(pte) if count > 1 else pte


@compiled
def set_huge_pte_at(arch: Arch, phys: Phys, index: Int, pte: Pte, count: Int, step: Int) -> None:
    """Write the run from the entry for its first page; what is not present is the same in all."""
    for k in range(index, index + count):
        phys.tables[k] = pte
        if pte_present(arch, pte):
            pte = pte_advance_pfn(arch, pte, np.uint64(step))


@compiled
def huge_ptep_get(arch: Arch, phys: Phys, index: Int, count: Int) -> Pte:
    """The first entry with AF and dirty of the whole run."""
    pte = phys.tables[index]
    if count == 1 or not pte_present(arch, pte):
        return pte
    for k in range(index, index + count):
        if pte_dirty(phys.tables[k]):
            pte = pte_mkdirty_hw(pte | arch.sd_huge_get)
        if pte_young(phys.tables[k]):
            pte = pte_mkyoung(pte)
    return pte


@compiled
def get_clear_contig(arch: Arch, phys: Phys, index: Int, count: Int) -> Pte:
    """Take the run down; the first entry with AF and dirty of all.

    A single entry is taken as it is (huge_ptep_get_and_clear).
    """
    pte = phys.tables[index]
    present = pte_present(arch, pte)
    for k in range(index, index + count):
        if count > 1 and present:
            if pte_dirty(phys.tables[k]):
                pte = pte_mkdirty_hw(pte | arch.sd_huge_clear)
            if pte_young(phys.tables[k]):
                pte = pte_mkyoung(pte)
        phys.tables[k] = U0
    return pte


@compiled
def cont_access_flags_changed(phys: Phys, index: Int, pte: Pte, count: Int) -> Flag:
    """Whether any entry of the run differs from ``pte`` in write, dirty or young."""
    if pte_write(pte) != pte_write(phys.tables[index]):
        return True
    for k in range(index, index + count):
        if pte_dirty(pte) != pte_dirty(phys.tables[k]):
            return True
        if pte_young(pte) != pte_young(phys.tables[k]):
            return True
    return False


@compiled
def huge_ptep_set_access_flags(
    arch: Arch, phys: Phys, index: Int, pte: Pte, count: Int, step: Int
) -> Flag:
    """Set access flags in the run; soft-dirty alone is no change to it."""
    if count == 1:
        return ptep_set_access_flags_one(arch, phys, index, pte)
    if not cont_access_flags_changed(phys, index, pte, count):
        return False
    orig = get_clear_contig(arch, phys, index, count)
    if pte_dirty(orig):
        pte = pte_mkdirty_hw(pte | arch.sd_huge_access_flags)
    if pte_young(orig):
        pte = pte_mkyoung(pte)
    set_huge_pte_at(arch, phys, index, pte, count, step)
    return True


@compiled
def huge_ptep_set_wrprotect(arch: Arch, phys: Phys, index: Int, count: Int, step: Int) -> None:
    """Write-protect the run (fork)."""
    pte = pte_wrprotect(get_clear_contig(arch, phys, index, count))
    set_huge_pte_at(arch, phys, index, pte, count, step)
