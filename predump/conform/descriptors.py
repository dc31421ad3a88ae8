"""Page-table entries in words: which bits are set, and what they say.

Bit names are those of arch/arm64/include/asm/pgtable-prot.h and pgtable-hwdef.h, and of
arch/x86/include/asm/pgtable_types.h; the places that differ between kernels (swap entries,
PROT_NONE) come from the machine's own constants.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from mm_model import Machine, Mm
from mm_model.arch import ARM64, X86_64
from mm_model.entry import swp_offset
from mm_model.swapops import (
    MIGRATION_PFN_MASK,
    PTE_MARKER_UFFD_WP,
    SWP_MIGRATION_READ,
    SWP_MIGRATION_WRITE,
    SWP_PTE_MARKER,
)

_PRESENT_BITS: Final = {
    ARM64: (
        (0, "VALID"),
        (6, "USER"),
        (7, "RDONLY"),
        (10, "AF"),
        (51, "WRITE"),
        (52, "CONT"),
        (55, "DIRTY"),
        (56, "SPECIAL"),
        (57, "DEVMAP"),
        (58, "UFFD_WP"),
        (63, "SOFT_DIRTY"),
    ),
    X86_64: (
        (0, "PRESENT"),
        (1, "RW"),
        (2, "USER"),
        (5, "ACCESSED"),
        (6, "DIRTY"),
        (9, "SPECIAL"),
        (10, "UFFD_WP"),
        (11, "SOFT_DIRTY"),
        (58, "SAVED_DIRTY"),
    ),
}
"""Bits that change; those that are the same in every user page are left out."""

PORTABLE: Final = frozenset(
    {"none", "swap", "zero", "marker", "migrating", "PROTNONE", "UFFD_WP", "SOFT_DIRTY"}
)
"""The words that mean the same on every architecture."""


def entry_words(machine: Machine, entry: int) -> str:
    """``VALID USER RDONLY AF SOFT_DIRTY frame 12``, ``swap slot 3 SOFT_DIRTY``, or ``none``."""
    if not entry:
        return "none"
    arch = machine.arch
    if entry & (1 | int(arch.present_invalid)):
        names = [name for bit, name in _PRESENT_BITS[arch.isa] if entry >> bit & 1]
        if not entry & 1:
            names.insert(0, "PROTNONE")
        frame = (entry & int(arch.pfn_mask)) >> int(arch.page_shift)
        return " ".join([*names, f"frame {frame}" if frame else "zero page"])
    return _swap_words(machine, entry)


def _swap_words(machine: Machine, entry: int) -> str:
    """What an entry says that is not present: swapped, on its way elsewhere, or only a mark."""
    arch = machine.arch
    soft_dirty = int(arch.swp_sd_test | arch.swp_sd_set | arch.swp_sd_clear)
    flags = {
        "EXCLUSIVE": int(arch.swp_exclusive),
        "UFFD_WP": int(arch.swp_uffd_wp),
        "SOFT_DIRTY": soft_dirty,
    }
    names = [name for name, bits in flags.items() if entry & bits]
    kind = entry >> int(arch.swp_type_shift) & int(arch.swp_type_mask)
    offset = int(swp_offset(arch, np.uint64(entry & ~soft_dirty)))
    if kind == SWP_PTE_MARKER:
        return "marker UFFD_WP" if offset & int(PTE_MARKER_UFFD_WP) else "marker"
    if SWP_MIGRATION_READ <= kind <= SWP_MIGRATION_WRITE:
        return " ".join([f"migrating frame {offset & int(MIGRATION_PFN_MASK)}", *names])
    return " ".join([f"swap slot {offset}", *names])


def page_words(mm: Mm, address: int, *, raw: bool = True) -> str:
    """The entry of the page at ``address`` in words, with ``raw`` also as hexadecimal."""
    entry = int(mm.ptes(address, 1)[0])
    words = entry_words(mm.machine, entry)
    return f"{entry:#018x} {words}" if entry and raw else words


def vma_words(mm: Mm, address: int) -> str:
    """``rw-p sd`` for the mapping at ``address``, or ``unmapped``."""
    for vma in mm.vmas():
        if vma.start <= address < vma.end:
            letters = (("r", 1), ("w", 2), ("x", 4))
            perms = "".join(letter if vma.prot & bit else "-" for letter, bit in letters)
            words = [perms + ("s" if vma.flags & 1 else "p")]
            words += ["sd"] if vma.soft_dirty else []
            words += ["locked"] if vma.locked else []
            return " ".join(words)
    return "unmapped"
