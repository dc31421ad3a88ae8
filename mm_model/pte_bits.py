"""What page-table entries say alike on every architecture, given where its ``Arch`` has the bits.

The kernel writes these helpers once for each architecture, with the bits as constants
(arch/*/include/asm/pgtable.h). Here positions and masks are fields of the machine's ``Arch``, since
they differ between kernel profiles and with hunks off as well, so one copy serves all. Each
architecture's ``pgtable.py`` has them among its own, under the kernel's names.
"""

from __future__ import annotations

from typing import Any

from mm_model._compiled import elementwise
from mm_model.arch import U0, Arch, Pte


@elementwise
def pte_none(pte: Pte) -> Any:
    """Nothing there at all."""
    return pte == U0


@elementwise
def pte_soft_dirty(arch: Arch, pte: Pte) -> Any:
    return (pte & arch.sd_test) != U0


@elementwise
def pte_advance_pfn(arch: Arch, pte: Pte, pages: Any) -> Pte:
    """The same entry for the frame ``pages`` further on."""
    return pte + (pages << arch.page_shift)


@elementwise
def pte_pfn(arch: Arch, pte: Pte) -> Any:
    """Page frame number: the content row, as ``numpy.uint64``."""
    return (pte & arch.pfn_mask) >> arch.page_shift


@elementwise
def pfn_pte(arch: Arch, pfn: Any, prot: Any) -> Any:
    """A page entry for frame ``pfn`` (``numpy.uint64``) with the protection bits ``prot``."""
    return (pfn << arch.page_shift) | prot


@elementwise
def pte_mksoft_dirty(arch: Arch, pte: Pte) -> Pte:
    return pte | arch.sd_set


@elementwise
def pte_clear_soft_dirty(arch: Arch, pte: Pte) -> Pte:
    return pte & ~arch.sd_clear


@elementwise
def pte_swp_exclusive(arch: Arch, pte: Pte) -> Any:
    return (pte & arch.swp_exclusive) != U0


@elementwise
def pte_swp_mkexclusive(arch: Arch, pte: Pte) -> Pte:
    return pte | arch.swp_exclusive


@elementwise
def pte_swp_clear_exclusive(arch: Arch, pte: Pte) -> Pte:
    return pte & ~arch.swp_exclusive


@elementwise
def pte_swp_soft_dirty(arch: Arch, pte: Pte) -> Any:
    return (pte & arch.swp_sd_test) != U0


@elementwise
def pte_swp_mksoft_dirty(arch: Arch, pte: Pte) -> Pte:
    return pte | arch.swp_sd_set


@elementwise
def pte_swp_clear_soft_dirty(arch: Arch, pte: Pte) -> Pte:
    return pte & ~arch.swp_sd_clear


@elementwise
def pte_swp_uffd_wp(arch: Arch, pte: Pte) -> Any:
    return (pte & arch.swp_uffd_wp) != U0


@elementwise
def pte_swp_mkuffd_wp(arch: Arch, pte: Pte) -> Pte:
    return pte | arch.swp_uffd_wp


@elementwise
def pte_swp_clear_uffd_wp(arch: Arch, pte: Pte) -> Pte:
    return pte & ~arch.swp_uffd_wp


@elementwise
def pte_swp_clear_flags(arch: Arch, pte: Pte) -> Pte:
    """A swap entry without its flags: what swapoff compares (include/linux/swapops.h)."""
    pte = pte_swp_clear_soft_dirty(arch, pte_swp_clear_exclusive(arch, pte))
    return pte_swp_clear_uffd_wp(arch, pte)


@elementwise
def swp_type(arch: Arch, pte: Pte) -> Any:
    return (pte >> arch.swp_type_shift) & arch.swp_type_mask


@elementwise
def pmd_soft_dirty(arch: Arch, pmd: Pte) -> Any:
    return (pmd & arch.pmd_sd_test) != U0


@elementwise
def pmd_mksoft_dirty(arch: Arch, pmd: Pte) -> Pte:
    return pmd | arch.pmd_sd_set


@elementwise
def pmd_clear_soft_dirty(arch: Arch, pmd: Pte) -> Pte:
    return pmd & ~arch.pmd_sd_clear


@elementwise
def pmd_swp_soft_dirty(arch: Arch, pmd: Pte) -> Any:
    return (pmd & arch.pmd_swp_sd_test) != U0


@elementwise
def pmd_swp_mksoft_dirty(arch: Arch, pmd: Pte) -> Pte:
    return pmd | arch.pmd_swp_sd_set


@elementwise
def pmd_swp_clear_soft_dirty(arch: Arch, pmd: Pte) -> Pte:
    return pmd & ~arch.pmd_swp_sd_clear
