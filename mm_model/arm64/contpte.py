"""Contiguous blocks of page entries (arch/arm64/mm/contpte.c and the ptep_* of pgtable.h over it).

CONT_PTES entries that map one aligned stretch of a folio alike may all bear CONT: the CPU then
needs one TLB entry for the block, and may note access and dirtiness in any of its entries. So
whoever reads one of them must gather AF and dirty over the block, and whoever changes one alone
must first unfold the block. A block is folded again when the last of its entries is set and all are
alike.

Functions without underscores in the kernel are the ones for generic code; they take the position of
an entry in ``Phys.tables``, whose alignment is that of the address.

What the patch changes here: gathering dirty bits makes the result dirty, but not soft-dirty. The
``sd_contpte_*`` fields of ``Arch`` hold the bit that is set where such a hunk is off.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.arm64.fault import ptep_set_access_flags_one
from mm_model.arm64.pgtable import (
    PTE_AF,
    PTE_DIRTY,
    PTE_RDONLY,
    PTE_SOFT_DIRTY,
    PTE_SPECIAL,
    PTE_VALID,
    PTE_WRITE,
    U0,
    U1,
    Arch,
    Pte,
    pte_advance_pfn,
    pte_dirty,
    pte_mkclean,
    pte_mkcont,
    pte_mkdirty_hw,
    pte_mknoncont,
    pte_mkold,
    pte_mkyoung,
    pte_pfn,
    pte_valid_cont,
    pte_write,
    pte_wrprotect,
    pte_young,
)
from mm_model.frames import folio_nr_pages
from mm_model.state import PG_LARGE, Flag, Int, Phys

AS_PORTED: Final = 0
"""6.12.117 with the patch: "nothing to do" is decided by flags that do not include soft-dirty."""
MASK_ONLY: Final = 1
"""The same with soft-dirty among these flags."""
AS_IN_69: Final = 2
"""The whole entry, gathered, is compared."""
FIXED: Final = 3
"""MASK_ONLY, and a difference in soft-dirty unfolds the block."""

_ACCESS_FLAGS: Final = PTE_RDONLY | PTE_AF | PTE_WRITE | PTE_DIRTY


@inlined
def contpte_align_down(arch: Arch, index: Int) -> Int:
    """Position of the first entry of the block."""
    return index & ~np.int64(arch.cont_mask)


@compiled
def contpte_gather(arch: Arch, phys: Phys, index: Int, pte: Pte, soft_dirty: np.uint64) -> Pte:
    """``pte`` with AF and dirty of all entries of its block; dirty sets ``soft_dirty`` too."""
    first = contpte_align_down(arch, index)
    for k in range(first, first + np.int64(arch.cont_mask) + 1):
        other = phys.tables[k]
        if pte_dirty(other):
            pte = pte_mkdirty_hw(pte | soft_dirty)
        if pte_young(other):
            pte = pte_mkyoung(pte)
    return pte


@inlined
def ptep_get(arch: Arch, phys: Phys, index: Int) -> Pte:
    """The entry as generic code sees it."""
    pte = phys.tables[index]
    if pte_valid_cont(pte):
        return contpte_gather(arch, phys, index, pte, arch.sd_contpte_get)
    return pte


@compiled
def contpte_convert(arch: Arch, phys: Phys, index: Int, pte: Pte) -> None:
    """Rewrite a block from one of its entries (with or without CONT), gathering AF and dirty."""
    first = contpte_align_down(arch, index)
    pte = contpte_gather(arch, phys, index, pte, arch.sd_contpte_convert)
    pte = pte - ((pte_pfn(arch, pte) & arch.cont_mask) << arch.page_shift)
    for k in range(first, first + np.int64(arch.cont_mask) + 1):
        phys.tables[k] = pte
        pte = pte_advance_pfn(arch, pte, U1)


@compiled
def contpte_unfold(arch: Arch, phys: Phys, index: Int) -> None:
    """The kernel's ``__contpte_try_unfold``."""
    contpte_convert(arch, phys, index, pte_mknoncont(phys.tables[index]))


@inlined
def contpte_try_unfold(arch: Arch, phys: Phys, index: Int) -> None:
    """Before one entry changes alone."""
    if pte_valid_cont(phys.tables[index]):
        contpte_unfold(arch, phys, index)


@compiled
def contpte_try_unfold_partial(arch: Arch, phys: Phys, index: Int, count: Int) -> None:
    """Before ``count`` entries change: unfold the blocks at both ends that they cover in part."""
    mask = np.int64(arch.cont_mask)
    if index & mask != 0 or count <= mask:
        contpte_try_unfold(arch, phys, index)
    last = index + count - 1
    if last & mask != mask:
        contpte_try_unfold(arch, phys, last)


@compiled
def contpte_fold(arch: Arch, phys: Phys, index: Int, pte: Pte) -> None:
    """The kernel's ``__contpte_try_fold``: fold the block if it is one folio's and all alike.

    ``pte`` is its last entry. AF and dirty may differ.
    """
    frame = np.int64(pte_pfn(arch, pte))
    mask = np.int64(arch.cont_mask)
    if phys.flags[frame] & PG_LARGE == 0 or folio_nr_pages(phys, frame) <= mask:
        return
    alike = ~arch.fold_ignores
    expected = pte_mkold(pte_mkclean(pte)) - (np.uint64(mask) << arch.page_shift)
    for k in range(index - mask, index + 1):
        if (pte_mkold(pte_mkclean(phys.tables[k])) ^ expected) & alike != U0:
            return
        expected = pte_advance_pfn(arch, expected, U1)
    contpte_convert(arch, phys, index, pte_mkcont(pte))


@inlined
def contpte_try_fold(arch: Arch, phys: Phys, index: Int, pte: Pte) -> None:
    """After an entry was set: if it is the last of a block, the block may be folded."""
    mask = np.int64(arch.cont_mask)
    if index & mask == mask and pte_pfn(arch, pte) & arch.cont_mask == arch.cont_mask:
        if pte & (PTE_VALID | PTE_SPECIAL) == PTE_VALID and arch.contpte != 0:
            contpte_fold(arch, phys, index, pte)


@compiled
def set_pte(arch: Arch, phys: Phys, index: Int, pte: Pte) -> None:
    """Set one entry (set_ptes for one)."""
    pte = pte_mknoncont(pte)
    contpte_try_unfold(arch, phys, index)
    phys.tables[index] = pte
    contpte_try_fold(arch, phys, index, pte)


@compiled
def set_pte_at(arch: Arch, phys: Phys, index: Int, pte: Pte) -> None:
    """Set an entry that may be of any kind; only a valid one can be part of a block."""
    if pte & PTE_VALID != U0:
        set_pte(arch, phys, index, pte)
    else:
        phys.tables[index] = pte


@compiled
def set_ptes(arch: Arch, phys: Phys, index: Int, pte: Pte, count: Int) -> None:
    """Map ``count`` frames in a row from that of ``pte`` on (contpte_set_ptes).

    The entries are empty, or not contiguous. Whole aligned blocks are folded at once.
    """
    pte = pte_mknoncont(pte)
    if count == 1:
        set_pte(arch, phys, index, pte)
        return
    mask = np.int64(arch.cont_mask)
    aligned = (index ^ np.int64(pte_pfn(arch, pte))) & mask == 0 and arch.contpte != 0
    first_whole = (index + mask) & ~mask
    last_whole = (index + count) & ~mask
    for k in range(index, index + count):
        if aligned and first_whole <= k < last_whole and pte & PTE_VALID != U0:
            phys.tables[k] = pte_mkcont(pte)
        else:
            phys.tables[k] = pte
        pte = pte_advance_pfn(arch, pte, U1)


@inlined
def ptep_get_and_clear(arch: Arch, phys: Phys, index: Int) -> Pte:
    """Take one entry down."""
    contpte_try_unfold(arch, phys, index)
    pte = phys.tables[index]
    phys.tables[index] = U0
    return pte


@compiled
def get_and_clear_full_ptes(arch: Arch, phys: Phys, index: Int, count: Int) -> Pte:
    """Take down ``count`` entries of one folio and gather dirty and young into the first.

    Without the patch's hunk a gathered dirty bit also sets soft-dirty.
    """
    contpte_try_unfold_partial(arch, phys, index, count)
    pte = phys.tables[index]
    phys.tables[index] = U0
    for k in range(index + 1, index + count):
        other = phys.tables[k]
        phys.tables[k] = U0
        if pte_dirty(other):
            pte = pte_mkdirty_hw(pte | arch.sd_gather)
        if pte_young(other):
            pte = pte_mkyoung(pte)
    return pte


@compiled
def wrprotect_ptes(arch: Arch, phys: Phys, index: Int, count: Int) -> None:
    """Write-protect ``count`` entries; blocks that lie wholly in them stay folded."""
    contpte_try_unfold_partial(arch, phys, index, count)
    for k in range(index, index + count):
        phys.tables[k] = pte_wrprotect(phys.tables[k])


@compiled
def clear_young_dirty_ptes(arch: Arch, phys: Phys, index: Int, count: Int, dirty: Flag) -> None:
    """Make ``count`` entries old and, if ``dirty``, clean; whole blocks even at the ends.

    A block is one folio's, so its neighbours in the block may lose the bits as well.
    """
    first, last = index, index + count - 1
    if pte_valid_cont(phys.tables[first]):
        first = contpte_align_down(arch, first)
    if pte_valid_cont(phys.tables[last]):
        last = contpte_align_down(arch, last) + np.int64(arch.cont_mask)
    for k in range(first, last + 1):
        pte = pte_mkold(phys.tables[k])
        if dirty:
            pte = pte_mkclean(pte)
        phys.tables[k] = pte


@compiled
def contpte_all_subptes_match(arch: Arch, phys: Phys, index: Int, entry: Pte) -> Flag:
    """Whether each entry of the block already has the access flags of ``entry``."""
    mask = _ACCESS_FLAGS
    if arch.contpte_access_flags != AS_PORTED:
        mask = mask | PTE_SOFT_DIRTY
    first = contpte_align_down(arch, index)
    for k in range(first, first + np.int64(arch.cont_mask) + 1):
        if (phys.tables[k] ^ entry) & mask != U0:
            return False
    return True


@compiled
def contpte_ptep_set_access_flags(arch: Arch, phys: Phys, index: Int, entry: Pte) -> Flag:
    """Set access flags in a block: in all of it, unless the write bit changes.

    What counts as no change at all is where kernels differ, and where the patch meets a fault on
    6.12: a block that is dirty, young and read-only, and only lacks soft-dirty.
    """
    orig = pte_mknoncont(ptep_get(arch, phys, index))
    if arch.contpte_access_flags == AS_IN_69:
        if orig == entry:
            return False
    elif contpte_all_subptes_match(arch, phys, index, entry):
        return False
    alone = pte_write(orig) != pte_write(entry)
    if arch.contpte_access_flags == FIXED and (orig ^ entry) & PTE_SOFT_DIRTY != U0:
        alone = True
    if alone:
        contpte_unfold(arch, phys, index)
        return ptep_set_access_flags_one(arch, phys, index, entry)
    first = contpte_align_down(arch, index)
    for k in range(first, first + np.int64(arch.cont_mask) + 1):
        ptep_set_access_flags_one(arch, phys, k, entry)
    return True


@inlined
def ptep_set_access_flags(arch: Arch, phys: Phys, index: Int, entry: Pte) -> Flag:
    """Make the entry at ``index`` at least as permissive, young and dirty as ``entry``."""
    if pte_valid_cont(phys.tables[index]):
        return contpte_ptep_set_access_flags(arch, phys, index, pte_mknoncont(entry))
    return ptep_set_access_flags_one(arch, phys, index, pte_mknoncont(entry))


@compiled
def contpte_orig_pte_is_same(arch: Arch, phys: Phys, index: Int) -> Flag:
    """Whether what the fault handler first read without the lock holds under it (pte_same).

    Nobody else runs here, so it always does, unless the two ways of reading differ by a hunk.
    """
    pte = phys.tables[index]
    lockless = contpte_gather(arch, phys, index, pte, arch.sd_contpte_get_lockless)
    return lockless == ptep_get(arch, phys, index)
