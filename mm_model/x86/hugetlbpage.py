"""Entries of hugetlb pages (include/asm-generic/hugetlb.h).

The counterpart of ``mm_model/arm64/hugetlbpage.py``. Each page, of 2 MiB or 1 GiB, has one entry
with PSE, so that there is never a run (``count`` is 1) and nothing to gather.
"""

from __future__ import annotations

from mm_model._compiled import inlined
from mm_model.arch import U0, Arch, Pte
from mm_model.state import Flag, Int, Phys
from mm_model.x86.fault import ptep_set_access_flags
from mm_model.x86.pgtable import pmd_mkhuge, pte_wrprotect


@inlined
def arch_make_huge_pte(pte: Pte, level: Int, count: Int) -> Pte:
    """The entry as a hugetlb page has it."""
    return pmd_mkhuge(pte)


@inlined
def set_huge_pte_at(arch: Arch, phys: Phys, index: Int, pte: Pte, count: Int, step: Int) -> None:
    """Set the page's entry."""
    phys.tables[index] = pte


@inlined
def huge_ptep_get(arch: Arch, phys: Phys, index: Int, count: Int) -> Pte:
    """The page's entry."""
    return phys.tables[index]


@inlined
def get_clear_contig(arch: Arch, phys: Phys, index: Int, count: Int) -> Pte:
    """Take the page's entry down."""
    pte = phys.tables[index]
    phys.tables[index] = U0
    return pte


@inlined
def huge_ptep_set_access_flags(
    arch: Arch, phys: Phys, index: Int, pte: Pte, count: Int, step: Int
) -> Flag:
    """Set access flags in the entry."""
    return ptep_set_access_flags(arch, phys, index, pte)


@inlined
def huge_ptep_set_wrprotect(arch: Arch, phys: Phys, index: Int, count: Int, step: Int) -> None:
    """Write-protect the entry (fork)."""
    phys.tables[index] = pte_wrprotect(phys.tables[index])
