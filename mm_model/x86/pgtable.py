"""x86-64 page-table entries (arch/x86/include/asm/pgtable.h, pgtable_types.h, pgtable_64.h).

Bits of a present page entry::

     0 PRESENT    1 RW    2 USER    5 ACCESSED   6 DIRTY    8 GLOBAL; PROTNONE where not PRESENT
     9 SPECIAL   10 UFFD_WP        11 SOFT_DIRTY            12-51 PFN    58 SAVED_DIRTY   63 NX

An entry that is dirty and not writable would be a shadow stack page, so that the dirty bit moves
to SAVED_DIRTY as long as RW is clear (6.6 and later; before, it stayed where it was, and no
interface shows the difference).

A swap entry has its type in bits 59-63 and the *inverted* offset in 9-58, so that a CPU that reads
ahead through it never meets real memory; 1 is soft-dirty, 2 uffd-wp, 3 exclusive.

The functions are those of ``mm_model/arm64/pgtable.py``; generic code takes either file for
``mm_model.asm.pgtable``. What both would say alike is in ``mm_model/pte_bits.py``. There is no
patch to take hunks from: what the arm64 patch brings is here since 3.11, so no ``*_sd`` field is
ever 0.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mm_model._compiled import elementwise
from mm_model.arch import U0 as U0
from mm_model.arch import U1 as U1
from mm_model.arch import Arch as Arch
from mm_model.arch import Pte as Pte
from mm_model.pte_bits import *  # noqa: F403
from mm_model.pte_bits import pte_swp_clear_flags

PAGE_PRESENT: Final = np.uint64(1 << 0)
PAGE_RW: Final = np.uint64(1 << 1)
PAGE_USER: Final = np.uint64(1 << 2)
PAGE_PWT: Final = np.uint64(1 << 3)
PAGE_PCD: Final = np.uint64(1 << 4)
PAGE_ACCESSED: Final = np.uint64(1 << 5)
PAGE_DIRTY: Final = np.uint64(1 << 6)
PAGE_PSE: Final = np.uint64(1 << 7)
PAGE_PROTNONE: Final = np.uint64(1 << 8)
PAGE_SPECIAL: Final = np.uint64(1 << 9)
PAGE_UFFD_WP: Final = np.uint64(1 << 10)
PAGE_SOFT_DIRTY: Final = np.uint64(1 << 11)
PTE_SOFT_DIRTY: Final = PAGE_SOFT_DIRTY
PAGE_SAVED_DIRTY: Final = np.uint64(1 << 58)
PAGE_NX: Final = np.uint64(1 << 63)

PMD_TYPE_TABLE: Final = np.uint64(0x67)  # _PAGE_TABLE: present, writable, user, accessed, dirty

_RW_SHIFT: Final = np.uint64(1)
_DIRTY_SHIFT: Final = np.uint64(6)
_SAVED_DIRTY_SHIFT: Final = np.uint64(58)
_DIRTY_BITS: Final = np.uint64(int(PAGE_DIRTY | PAGE_SAVED_DIRTY))

PFN_MASK: Final = np.uint64(((1 << 52) - 1) & ~0xFFF)
# What mprotect keeps is _PAGE_CHG_MASK; this is the rest.
MODIFY_MASK: Final = np.uint64(
    ~int(
        PFN_MASK
        | PAGE_PWT
        | PAGE_PCD
        | PAGE_ACCESSED
        | _DIRTY_BITS
        | PAGE_SPECIAL
        | PAGE_UFFD_WP
        | PAGE_SOFT_DIRTY
    )
    & (1 << 64) - 1
)
SWP_SOFT_DIRTY: Final = 1 << 1
SWP_UFFD_WP: Final = 1 << 2
SWP_EXCLUSIVE: Final = 1 << 3
SWP_TYPE_SHIFT: Final = 59
SWP_OFFSET_SHIFT: Final = 9
SWP_OFFSET_BITS: Final = 50

_USER_PAGE: Final = int(PAGE_PRESENT | PAGE_USER | PAGE_ACCESSED)


@elementwise
def pte_present(arch: Arch, pte: Pte) -> Any:
    """Present, or PROT_NONE with its page kept."""
    return (pte & (PAGE_PRESENT | PAGE_PROTNONE)) != U0


@elementwise
def pte_protnone(arch: Arch, pte: Pte) -> Any:
    return (pte & (PAGE_PRESENT | PAGE_PROTNONE)) == PAGE_PROTNONE


@elementwise
def pte_write(pte: Pte) -> Any:
    return (pte & PAGE_RW) != U0


@elementwise
def pte_young(pte: Pte) -> Any:
    return (pte & PAGE_ACCESSED) != U0


@elementwise
def pte_special(pte: Pte) -> Any:
    return (pte & PAGE_SPECIAL) != U0


@elementwise
def pte_dirty(pte: Pte) -> Any:
    return (pte & _DIRTY_BITS) != U0


@elementwise
def pte_maps_one_page(pte: Pte) -> Any:
    """Present: the page entries that most faults are about."""
    return (pte & PAGE_PRESENT) != U0


@elementwise
def pte_valid_cont(pte: Pte) -> Any:
    """There are no contiguous blocks."""
    return False


@elementwise
def _mksaveddirty_shift(pte: Pte) -> Pte:
    """The dirty bit of an entry that is not writable moves to SAVED_DIRTY."""
    move = (pte >> _DIRTY_SHIFT) & ~(pte >> _RW_SHIFT) & U1
    return (pte | (move << _SAVED_DIRTY_SHIFT)) & ~(move << _DIRTY_SHIFT)


@elementwise
def _clear_saveddirty_shift(pte: Pte) -> Pte:
    """And back, when it is writable."""
    move = (pte >> _SAVED_DIRTY_SHIFT) & (pte >> _RW_SHIFT) & U1
    return (pte | (move << _DIRTY_SHIFT)) & ~(move << _SAVED_DIRTY_SHIFT)


@elementwise
def pte_mkold(pte: Pte) -> Pte:
    return pte & ~PAGE_ACCESSED


@elementwise
def pte_mkyoung(pte: Pte) -> Pte:
    return pte | PAGE_ACCESSED


@elementwise
def pte_mkspecial(pte: Pte) -> Pte:
    return pte | PAGE_SPECIAL


@elementwise
def pte_mkclean(pte: Pte) -> Pte:
    return pte & ~_DIRTY_BITS


@elementwise
def pte_mkdirty_hw(pte: Pte) -> Pte:
    """Dirty as the CPU makes it: soft-dirty is not touched."""
    return _mksaveddirty_shift(pte | PAGE_DIRTY)


@elementwise
def pte_mkdirty(arch: Arch, pte: Pte) -> Pte:
    """Dirty because of a write: soft-dirty as well."""
    return pte_mkdirty_hw(pte | arch.sd_mkdirty)


@elementwise
def pte_mkwrite(pte: Pte) -> Pte:
    return _clear_saveddirty_shift(pte | PAGE_RW)


@elementwise
def pte_wrprotect(pte: Pte) -> Pte:
    return _mksaveddirty_shift(pte & ~PAGE_RW)


@elementwise
def pte_wrprotect_keeping_dbm(pte: Pte) -> Pte:
    """There is no DBM here that could be kept."""
    return pte_wrprotect(pte)


@elementwise
def pte_uffd_wp(pte: Pte) -> Any:
    return (pte & PAGE_UFFD_WP) != U0


@elementwise
def pte_mkuffd_wp(pte: Pte) -> Pte:
    """Marked, and write-protected so that the next write faults."""
    return pte_wrprotect(pte | PAGE_UFFD_WP)


@elementwise
def pte_clear_uffd_wp(pte: Pte) -> Pte:
    return pte & ~PAGE_UFFD_WP


@elementwise
def pte_modify(arch: Arch, pte: Pte, newprot: Any) -> Pte:
    """The same page under another protection; dirty, young and soft-dirty state stay."""
    pte = (pte & ~arch.modify_mask) | (newprot & arch.modify_mask)
    return _clear_saveddirty_shift(_mksaveddirty_shift(pte))


@elementwise
def swp_typed_entry_to_pte(arch: Arch, kind: Any, offset: Any) -> Any:
    """An entry of swap type ``kind`` at ``offset`` (both ``numpy.uint64``)."""
    inverted = (offset ^ arch.swp_offset_mask) & arch.swp_offset_mask
    return (kind << arch.swp_type_shift) | (inverted << arch.swp_offset_shift)


@elementwise
def swp_entry_to_pte(arch: Arch, offset: Any) -> Any:
    """A swap entry of type 0 at ``offset`` (``numpy.uint64``, > 0: slot 0 is the swap header)."""
    return ((offset ^ arch.swp_offset_mask) & arch.swp_offset_mask) << arch.swp_offset_shift


@elementwise
def pte_move_swp_offset(arch: Arch, pte: Pte, slots: Any) -> Pte:
    """The same entry for the swap slot ``slots`` (``numpy.uint64``) further on."""
    return pte - (slots << arch.swp_offset_shift)


@elementwise
def swp_offset(arch: Arch, pte: Pte) -> Any:
    """The swap slot of a swap entry, as ``numpy.uint64``."""
    pte = pte_swp_clear_flags(arch, pte)
    return ((pte >> arch.swp_offset_shift) & arch.swp_offset_mask) ^ arch.swp_offset_mask


@elementwise
def arch_wants_old_prefaulted_pte(arch: Arch) -> Any:
    """No: entries mapped on suspicion count as used."""
    return False


def page_prot(arch: Arch, prot: int, shared: bool) -> np.uint64:
    """Protection bits of a mapping (``vm_get_page_prot``): private writable pages start read-only.

    ``prot`` is PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    """
    if prot & 7 == 0:
        return np.uint64(int(PAGE_PROTNONE | PAGE_ACCESSED))
    bits = _USER_PAGE
    if prot & 2 and shared:
        bits |= int(PAGE_RW)
    if not prot & 4:
        bits |= int(PAGE_NX)
    return np.uint64(bits)


# --- huge page entries: the same bits one level up, and PSE ---


@elementwise
def pmd_mkhuge(pmd: Pte) -> Pte:
    """A huge page instead of a table."""
    return pmd | PAGE_PSE


@elementwise
def pmd_leaf(arch: Arch, pmd: Pte) -> Any:
    """Whether an entry above the last level maps memory itself."""
    return (pmd & PAGE_PSE) != U0


@elementwise
def pmd_table(pmd: Pte) -> Any:
    """Whether an entry above the last level names a table."""
    return (pmd & (PAGE_PRESENT | PAGE_PSE)) == PAGE_PRESENT


@elementwise
def pmd_maps_block(entry: Pte) -> Any:
    """Of an entry that maps memory, of the last level or above: whether it is a huge page's."""
    return (entry & PAGE_PSE) != U0


@elementwise
def pmd_pte(pmd: Pte) -> Pte:
    """A page entry like the huge page's, but clean, write-protected and not soft-dirty."""
    return pmd & ~(PAGE_SOFT_DIRTY | _DIRTY_BITS | PAGE_RW | PAGE_PSE)


pmd_wrprotect = pte_wrprotect
pmd_mkdirty = pte_mkdirty
pmd_mkwrite = pte_mkwrite
pmd_mkyoung = pte_mkyoung
