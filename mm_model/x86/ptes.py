"""Reading and changing entries where they are: nothing but loops (include/linux/pgtable.h).

The counterpart of ``mm_model/arm64/contpte.py``. x86-64 has no contiguous blocks, so what folds and
unfolds them there has nothing to do here.
"""

from __future__ import annotations

from mm_model._compiled import compiled, inlined
from mm_model.state import Flag, Int, Phys
from mm_model.x86.fault import ptep_set_access_flags as ptep_set_access_flags
from mm_model.x86.pgtable import (
    U0,
    U1,
    Arch,
    Pte,
    pte_advance_pfn,
    pte_dirty,
    pte_mkclean,
    pte_mkdirty_hw,
    pte_mkold,
    pte_mkyoung,
    pte_wrprotect,
    pte_young,
)


@inlined
def ptep_get(arch: Arch, phys: Phys, index: Int) -> Pte:
    """The entry as generic code sees it."""
    return phys.tables[index]


@inlined
def contpte_unfold(arch: Arch, phys: Phys, index: Int) -> None:
    """Nothing to unfold."""


@inlined
def contpte_try_unfold(arch: Arch, phys: Phys, index: Int) -> None:
    """Nothing to unfold."""


@inlined
def contpte_try_fold(arch: Arch, phys: Phys, index: Int, pte: Pte) -> None:
    """Nothing to fold."""


@inlined
def contpte_orig_pte_is_same(arch: Arch, phys: Phys, index: Int) -> Flag:
    """There is one way only to read an entry."""
    return True


@inlined
def set_pte_at(arch: Arch, phys: Phys, index: Int, pte: Pte) -> None:
    """Set one entry."""
    phys.tables[index] = pte


@compiled
def set_ptes(arch: Arch, phys: Phys, index: Int, pte: Pte, count: Int) -> None:
    """Map ``count`` frames in a row from that of ``pte`` on."""
    for k in range(index, index + count):
        phys.tables[k] = pte
        pte = pte_advance_pfn(arch, pte, U1)


@inlined
def ptep_get_and_clear(arch: Arch, phys: Phys, index: Int) -> Pte:
    """Take one entry down."""
    pte = phys.tables[index]
    phys.tables[index] = U0
    return pte


@compiled
def get_and_clear_full_ptes(arch: Arch, phys: Phys, index: Int, count: Int) -> Pte:
    """Take down ``count`` entries of one folio and gather dirty and young into the first.

    The generic version calls pte_mkdirty(), which sets soft-dirty; nobody looks at it afterwards.
    """
    pte = phys.tables[index]
    phys.tables[index] = U0
    for k in range(index + 1, index + count):
        other = phys.tables[k]
        phys.tables[k] = U0
        if pte_dirty(other):
            pte = pte_mkdirty_hw(pte | arch.sd_mkdirty)
        if pte_young(other):
            pte = pte_mkyoung(pte)
    return pte


@compiled
def wrprotect_ptes(arch: Arch, phys: Phys, index: Int, count: Int) -> None:
    """Write-protect ``count`` entries."""
    for k in range(index, index + count):
        phys.tables[k] = pte_wrprotect(phys.tables[k])


@compiled
def clear_young_dirty_ptes(arch: Arch, phys: Phys, index: Int, count: Int, dirty: Flag) -> None:
    """Make ``count`` entries old and, if ``dirty``, clean."""
    for k in range(index, index + count):
        pte = pte_mkold(phys.tables[k])
        if dirty:
            pte = pte_mkclean(pte)
        phys.tables[k] = pte
