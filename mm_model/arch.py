"""What generic code may know of an architecture: ``Arch``, the constants of one machine."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

Pte: TypeAlias = Any
"""One entry (``numpy.uint64``), or an array of entries."""

U0: Final = np.uint64(0)
U1: Final = np.uint64(1)

ARM64: Final = 0
X86_64: Final = 1

CLEAR_REFS_NO_WRPROTECT: Final = 1
CLEAR_REFS_KEEPS_DBM: Final = 2


class Arch(NamedTuple):
    """Constants of one machine that compiled code reads: geometry, swap layout, and hunks.

    The fields from ``levels`` on are ``int``, all others ``numpy.uint64``, so that one compiled
    copy serves every configuration of an architecture. Those from ``swapin_writable`` on are the
    properties of a kernel profile that compiled code asks for; ``mm_model/config.py`` says what
    each is.
    """

    page_shift: np.uint64
    page_size: np.uint64
    page_mask: np.uint64
    table_shift: np.uint64  # log2 of entries per table
    table_mask: np.uint64
    pmd_shift: np.uint64  # log2 of the bytes that one last-level table spans
    pfn_mask: np.uint64
    top_shift: np.uint64  # address bits below the top table's index
    present_invalid: np.uint64
    modify_mask: np.uint64
    sd_test: np.uint64
    sd_set: np.uint64
    sd_clear: np.uint64
    sd_mkdirty: np.uint64
    sd_access_flags: np.uint64
    sd_modify: np.uint64
    sd_gather: np.uint64
    sd_huge_get: np.uint64
    sd_huge_clear: np.uint64
    sd_huge_access_flags: np.uint64
    pmd_sd_test: np.uint64
    pmd_sd_set: np.uint64
    pmd_sd_clear: np.uint64
    sd_contpte_convert: np.uint64
    sd_contpte_get: np.uint64
    sd_contpte_get_lockless: np.uint64
    fold_ignores: np.uint64  # bits in which the entries of a block that is folded may differ
    cont_mask: np.uint64  # CONT_PTES - 1
    swp_sd_test: np.uint64
    swp_sd_set: np.uint64
    swp_sd_clear: np.uint64
    pmd_swp_sd_test: np.uint64
    pmd_swp_sd_set: np.uint64
    pmd_swp_sd_clear: np.uint64
    swp_exclusive: np.uint64
    swp_uffd_wp: np.uint64
    swp_type_shift: np.uint64
    swp_type_mask: np.uint64
    swp_offset_shift: np.uint64
    swp_offset_mask: np.uint64
    vm_softdirty: np.uint64
    levels: int
    dbm: int
    isa: int  # ARM64 or X86_64
    kernel: int  # 601, 609 (seed) or 612
    swapin_writable: int
    ksm_break_marks: int
    ksm_skips_protnone: int
    clear_refs_mistake: int  # 0, or CLEAR_REFS_*
    pmd_split_dirty: int  # this and the next six: see folio_profile.py
    remap_keeps_clean: int
    remap_zero_page: int
    swapin_folio: int
    wp_reuses_large: int
    lazyfree_splits_pmd: int
    advice_asks_page: int
    contpte: int  # CONFIG_ARM64_CONTPTE
    contpte_access_flags: int  # AS_PORTED and so on, see arm64/contpte.py
