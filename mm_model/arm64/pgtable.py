"""arm64 page-table entries: bit layout and ``pte_*`` helpers (arch/arm64/include/asm/pgtable.h).

An entry is a real 64-bit descriptor. Bits of a present page entry::

     0 VALID      1 page (TYPE)   6 USER     7 RDONLY (AP[2])   8-9 SHARED   10 AF      11 NG
    12-47 PFN    51 WRITE = DBM  52 CONT    53 PXN             54 UXN       55 DIRTY (software)
    56 SPECIAL   58 UFFD_WP      63 SOFT_DIRTY

RDONLY clear together with WRITE means dirty by hardware: with FEAT_HAFDBS (DBM) the CPU clears
RDONLY at the first store and takes no fault. A page is dirty when either the hardware or the
software bit says so.

An entry that is neither zero nor present is a swap entry: soft-dirty, exclusive marker, type and
offset sit where the profile (``Arch``) says. ``PROT_NONE`` pages are present but not valid: bit
``present_invalid``.

Helpers keep the kernel's names and are free of branches, so that they work on one entry
(``numpy.uint64``) and on arrays of entries alike. Those that the patch changes take the ``Arch`` of
the machine, whose ``*_sd`` fields hold the soft-dirty bit, or 0 where a hunk is off. Those that
only ask the ``Arch`` where a bit is are in ``mm_model/pte_bits.py``, for every architecture.
``__pte_mkdirty`` of the patch is ``pte_mkdirty_hw`` here (two leading underscores would be mangled
inside classes).
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

PTE_VALID: Final = np.uint64(1 << 0)
PTE_TYPE_PAGE: Final = np.uint64(3)
PMD_TYPE_TABLE: Final = np.uint64(3)
PMD_TABLE_BIT: Final = np.uint64(2)
"""Clear in an entry above the last level: a block (huge page), or nothing."""
PTE_USER: Final = np.uint64(1 << 6)
PTE_RDONLY: Final = np.uint64(1 << 7)
PTE_SHARED: Final = np.uint64(3 << 8)
PTE_AF: Final = np.uint64(1 << 10)
PTE_NG: Final = np.uint64(1 << 11)
PTE_WRITE: Final = np.uint64(1 << 51)
PTE_CONT: Final = np.uint64(1 << 52)
PTE_PXN: Final = np.uint64(1 << 53)
PTE_UXN: Final = np.uint64(1 << 54)
PTE_DIRTY: Final = np.uint64(1 << 55)
PTE_SPECIAL: Final = np.uint64(1 << 56)
PTE_DEVMAP: Final = np.uint64(1 << 57)
PTE_UFFD_WP: Final = np.uint64(1 << 58)
PTE_SOFT_DIRTY: Final = np.uint64(1 << 63)

_WRITE_SHIFT: Final = np.uint64(51)
_RDONLY_SHIFT: Final = np.uint64(7)
_DIRTY_SHIFT: Final = np.uint64(55)
_DIRTY_TO_RDONLY: Final = np.uint64(55 - 7)
_WRITE_TO_RDONLY: Final = np.uint64(51 - 7)

# What mprotect replaces (pte_modify's mask, less PRESENT_INVALID, which the profile places). GP is
# bit 50, the memory attribute index bits 2-4, the permission overlay index bits 60-62.
MODIFY_MASK: Final = np.uint64(
    int(PTE_USER | PTE_PXN | PTE_UXN | PTE_RDONLY | PTE_VALID | PTE_WRITE)
    | 1 << 50
    | 0x1C
    | 7 << 60
)
# pte_modify of the seed's kernel (6.9) knows no permission overlays.
MODIFY_MASK_SEED: Final = np.uint64(int(MODIFY_MASK) & ~(7 << 60))

_PROT_DEFAULT: Final = int(PTE_TYPE_PAGE | PTE_AF | PTE_SHARED)
PAGE_READONLY_EXEC: Final = np.uint64(_PROT_DEFAULT | int(PTE_USER | PTE_RDONLY | PTE_NG | PTE_PXN))
PAGE_READONLY: Final = np.uint64(int(PAGE_READONLY_EXEC | PTE_UXN))
PAGE_SHARED: Final = np.uint64(int(PAGE_READONLY | PTE_WRITE))
PAGE_SHARED_EXEC: Final = np.uint64(int(PAGE_READONLY_EXEC | PTE_WRITE))
_PAGE_NONE: Final = np.uint64(
    (_PROT_DEFAULT & ~int(PTE_VALID)) | int(PTE_RDONLY | PTE_NG | PTE_PXN | PTE_UXN)
)


@elementwise
def pte_present(arch: Arch, pte: Pte) -> Any:
    """Valid, or PROT_NONE with its page kept."""
    return (pte & (PTE_VALID | arch.present_invalid)) != U0


@elementwise
def pte_protnone(arch: Arch, pte: Pte) -> Any:
    """Present but not valid: the page of a PROT_NONE mapping."""
    return (pte & (PTE_VALID | arch.present_invalid)) == arch.present_invalid


@elementwise
def pte_write(pte: Pte) -> Any:
    return (pte & PTE_WRITE) != U0


@elementwise
def pte_young(pte: Pte) -> Any:
    return (pte & PTE_AF) != U0


@elementwise
def pte_special(pte: Pte) -> Any:
    return (pte & PTE_SPECIAL) != U0


@elementwise
def pte_hw_dirty(pte: Pte) -> Any:
    """WRITE set and RDONLY clear, as the hardware leaves a page that was stored to."""
    return (pte & (PTE_WRITE | PTE_RDONLY)) == PTE_WRITE


@elementwise
def pte_sw_dirty(pte: Pte) -> Any:
    return (pte & PTE_DIRTY) != U0


@elementwise
def pte_dirty(pte: Pte) -> Any:
    """Dirty by hardware or by software."""
    return ((pte >> _DIRTY_SHIFT) | ((pte >> _WRITE_SHIFT) & ~(pte >> _RDONLY_SHIFT))) & U1 != U0


@elementwise
def pte_valid_cont(pte: Pte) -> Any:
    """One entry of a contiguous block."""
    return (pte & (PTE_VALID | PTE_CONT)) == (PTE_VALID | PTE_CONT)


@elementwise
def pte_maps_one_page(pte: Pte) -> Any:
    """Valid and in no contiguous block: the page entries that most faults are about."""
    return (pte & (PTE_VALID | PTE_CONT)) == PTE_VALID


@elementwise
def pte_mkcont(pte: Pte) -> Pte:
    return pte | PTE_CONT


@elementwise
def pte_mknoncont(pte: Pte) -> Pte:
    return pte & ~PTE_CONT


@elementwise
def pte_mkold(pte: Pte) -> Pte:
    return pte & ~PTE_AF


@elementwise
def pte_mkyoung(pte: Pte) -> Pte:
    return pte | PTE_AF


@elementwise
def pte_mkspecial(pte: Pte) -> Pte:
    return pte | PTE_SPECIAL


@elementwise
def pte_mkclean(pte: Pte) -> Pte:
    return (pte & ~PTE_DIRTY) | PTE_RDONLY


@elementwise
def pte_mkdirty_hw(pte: Pte) -> Pte:
    """The patch's ``__pte_mkdirty``: dirty for writeback's sake, without touching soft-dirty."""
    return (pte | PTE_DIRTY) & ~((pte & PTE_WRITE) >> _WRITE_TO_RDONLY)


@elementwise
def pte_mkdirty(arch: Arch, pte: Pte) -> Pte:
    """Dirty because of a write: soft-dirty as well."""
    return pte_mkdirty_hw(pte | arch.sd_mkdirty)


@elementwise
def pte_mkwrite(pte: Pte) -> Pte:
    """Writable; a page that is already dirty by software becomes so by hardware.

    A clean page stays RDONLY until the first store (6.18 and the stable kernels since "avoid always
    making PTE dirty in pte_mkwrite()").
    """
    return (pte | PTE_WRITE) & ~((pte & PTE_DIRTY) >> _DIRTY_TO_RDONLY)


@elementwise
def pte_wrprotect(pte: Pte) -> Pte:
    """Not writable; the hardware's dirty state moves to the software bit."""
    hw_dirty = (pte >> _WRITE_SHIFT) & ~(pte >> _RDONLY_SHIFT) & U1
    return ((pte | (hw_dirty << _DIRTY_SHIFT)) & ~PTE_WRITE) | PTE_RDONLY


@elementwise
def pte_wrprotect_keeping_dbm(pte: Pte) -> Pte:
    """A mistake: read-only for now, but hardware with DBM makes it writable by itself."""
    hw_dirty = (pte >> _WRITE_SHIFT) & ~(pte >> _RDONLY_SHIFT) & U1
    return pte | (hw_dirty << _DIRTY_SHIFT) | PTE_RDONLY


@elementwise
def pte_uffd_wp(pte: Pte) -> Any:
    return (pte & PTE_UFFD_WP) != U0


@elementwise
def pte_mkuffd_wp(pte: Pte) -> Pte:
    """Marked, and write-protected so that the next write faults."""
    return pte_wrprotect(pte | PTE_UFFD_WP)


@elementwise
def pte_clear_uffd_wp(pte: Pte) -> Pte:
    return pte & ~PTE_UFFD_WP


@elementwise
def pte_modify(arch: Arch, pte: Pte, newprot: Any) -> Pte:
    """The same page under another protection; dirty, young and soft-dirty state stay.

    A page that was dirty is made dirty again under the new protection: with the patch by
    ``__pte_mkdirty`` (``sd_modify`` is 0), without this hunk by ``pte_mkdirty``, which sets
    soft-dirty too.
    """
    hw_dirty = (pte >> _WRITE_SHIFT) & ~(pte >> _RDONLY_SHIFT) & U1
    pte = pte | (hw_dirty << _DIRTY_SHIFT)
    pte = (pte & ~arch.modify_mask) | (newprot & arch.modify_mask)
    dirty = (pte >> _DIRTY_SHIFT) & U1
    pte = pte & ~(((pte >> _WRITE_SHIFT) & dirty) << _RDONLY_SHIFT)
    return pte | (arch.sd_modify * dirty)


@elementwise
def swp_typed_entry_to_pte(arch: Arch, kind: Any, offset: Any) -> Any:
    """An entry of swap type ``kind`` at ``offset`` (both ``numpy.uint64``)."""
    return (kind << arch.swp_type_shift) | (
        (offset & arch.swp_offset_mask) << arch.swp_offset_shift
    )


@elementwise
def swp_entry_to_pte(arch: Arch, offset: Any) -> Any:
    """A swap entry of type 0 at ``offset`` (``numpy.uint64``, > 0: slot 0 is the swap header)."""
    return (offset & arch.swp_offset_mask) << arch.swp_offset_shift


@elementwise
def pte_move_swp_offset(arch: Arch, pte: Pte, slots: Any) -> Pte:
    """The same entry for the swap slot ``slots`` (``numpy.uint64``) further on."""
    return pte + (slots << arch.swp_offset_shift)


@elementwise
def swp_offset(arch: Arch, pte: Pte) -> Any:
    """The swap slot of a swap entry, as ``numpy.uint64``.

    Its flags are cleared first (pte_to_swp_entry).
    """
    return (pte_swp_clear_flags(arch, pte) >> arch.swp_offset_shift) & arch.swp_offset_mask


@elementwise
def arch_wants_old_prefaulted_pte(arch: Arch) -> Any:
    """With hardware that sets AF, the CPU tells by itself which of the pages is used."""
    return arch.dbm != 0


def page_prot(arch: Arch, prot: int, shared: bool) -> np.uint64:
    """Protection bits of a mapping (``vm_get_page_prot``): private writable pages start read-only.

    ``prot`` is PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    """
    if prot & 7 == 0:
        return np.uint64(int(_PAGE_NONE) | int(arch.present_invalid))
    if prot & 2 and shared:
        return PAGE_SHARED_EXEC if prot & 4 else PAGE_SHARED
    return PAGE_READONLY_EXEC if prot & 4 else PAGE_READONLY


# --- huge page entries: the same bits one level up (pte_pmd and pmd_pte are the identity here) ---


@elementwise
def pmd_mkhuge(pmd: Pte) -> Pte:
    """A block instead of a table."""
    return pmd & ~PMD_TABLE_BIT


@elementwise
def pmd_leaf(arch: Arch, pmd: Pte) -> Any:
    """Whether an entry above the last level maps memory itself."""
    return ((pmd & PMD_TABLE_BIT) == U0) & ((pmd & (PTE_VALID | arch.present_invalid)) != U0)


@elementwise
def pmd_table(pmd: Pte) -> Any:
    """Whether an entry above the last level names a table."""
    return (pmd & PMD_TABLE_BIT) != U0


@elementwise
def pmd_maps_block(entry: Pte) -> Any:
    """Of an entry that maps memory, of the last level or above: whether it is a huge page's."""
    return (entry & PMD_TABLE_BIT) == U0


@elementwise
def pmd_pte(pmd: Pte) -> Pte:
    """A page entry like the huge page's, but clean, write-protected and not soft-dirty."""
    return (pmd & ~(PTE_SOFT_DIRTY | PTE_DIRTY | PTE_WRITE)) | PTE_RDONLY | PMD_TABLE_BIT


pmd_wrprotect = pte_wrprotect
pmd_mkdirty = pte_mkdirty
pmd_mkwrite = pte_mkwrite
pmd_mkyoung = pte_mkyoung
