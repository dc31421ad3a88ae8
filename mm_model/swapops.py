"""Entries that are neither present nor swapped (include/linux/swapops.h, include/linux/swap.h).

They have a swap type of their own: a page on its way to another frame (migration entry, its offset
is the frame), or a mark on a place that has no page (pte marker, its offset is a set of marks).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mm_model._compiled import inlined
from mm_model.asm.pgtable import (
    U0,
    Arch,
    Pte,
    pte_none,
    pte_present,
    pte_soft_dirty,
    pte_swp_mkexclusive,
    pte_swp_mksoft_dirty,
    pte_swp_mkuffd_wp,
    pte_swp_uffd_wp,
    pte_uffd_wp,
    swp_entry_to_pte,
    swp_offset,
    swp_type,
    swp_typed_entry_to_pte,
)
from mm_model.state import PG_EXCLUSIVE, Flag, Int, Phys

SWP_MIGRATION_READ: Final = np.uint64(24)
SWP_MIGRATION_READ_EXCLUSIVE: Final = np.uint64(25)
SWP_MIGRATION_WRITE: Final = np.uint64(26)
SWP_PTE_MARKER: Final = np.uint64(31)
MIGRATION_PFN_MASK: Final = np.uint64((1 << 40) - 1)  # above it: was the page young, dirty
PTE_MARKER_UFFD_WP: Final = np.uint64(1)


@inlined
def set_swap_pte(arch: Arch, phys: Phys, index: Int, pte: Pte, frame: Int, slot: Int) -> None:
    """Let a swap slot's entry take the place of ``pte``, with its marks (try_to_unmap_one)."""
    entry = swp_entry_to_pte(arch, np.uint64(slot))
    if phys.flags[frame] & PG_EXCLUSIVE:
        entry = pte_swp_mkexclusive(arch, entry)
    if pte_soft_dirty(arch, pte):
        entry = pte_swp_mksoft_dirty(arch, entry)
    if pte_uffd_wp(pte):
        entry = pte_swp_mkuffd_wp(arch, entry)
    phys.tables[index] = entry
    phys.slot_count[slot] += 1


@inlined
def non_swap_entry(arch: Arch, pte: Pte) -> Flag:
    """Whether an entry that is neither none nor present names no swap slot."""
    return swp_type(arch, pte) != U0


@inlined
def is_migration_entry(arch: Arch, pte: Pte) -> Flag:
    kind = swp_type(arch, pte)
    return kind >= SWP_MIGRATION_READ and kind <= SWP_MIGRATION_WRITE


@inlined
def migration_frame(arch: Arch, pte: Pte) -> Any:
    """The frame of the page that a migration entry stands for."""
    return np.int64(swp_offset(arch, pte) & MIGRATION_PFN_MASK)


@inlined
def migration_entry_as(arch: Arch, pte: Pte, kind: np.uint64) -> Pte:
    """The same migration entry, marks included, of another kind."""
    return (pte & ~(arch.swp_type_mask << arch.swp_type_shift)) | (kind << arch.swp_type_shift)


@inlined
def is_pte_marker(arch: Arch, pte: Pte) -> Flag:
    return swp_type(arch, pte) == SWP_PTE_MARKER


@inlined
def make_pte_marker(arch: Arch, marks: np.uint64) -> Pte:
    return swp_typed_entry_to_pte(arch, SWP_PTE_MARKER, marks)


@inlined
def pte_marker_uffd_wp(arch: Arch, pte: Pte) -> Flag:
    return is_pte_marker(arch, pte) and swp_offset(arch, pte) & PTE_MARKER_UFFD_WP != U0


@inlined
def pte_swp_uffd_wp_any(arch: Arch, pte: Pte) -> Flag:
    """Whether something that is not present is write-protected: swapped, migrating or marked."""
    if pte_none(pte) or pte_present(arch, pte):
        return False
    return pte_swp_uffd_wp(arch, pte) or pte_marker_uffd_wp(arch, pte)
