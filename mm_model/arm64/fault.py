"""What the CPU does on an access, and how a fault writes its entry (arch/arm64/mm/fault.c).

With FEAT_HAFDBS (``arch.dbm``) the hardware itself sets AF, and clears RDONLY of an entry that has
WRITE (= DBM). It never touches a software bit: a store that takes no fault leaves soft-dirty as it
was.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import inlined
from mm_model.arm64.pgtable import (
    PTE_AF,
    PTE_DIRTY,
    PTE_RDONLY,
    PTE_USER,
    PTE_VALID,
    PTE_WRITE,
    U0,
    Arch,
)
from mm_model.state import Flag, Int, Phys


@inlined
def hardware_access(arch: Arch, phys: Phys, index: Int, write: Int) -> Flag:
    """Let the CPU at EL0 use the entry at ``index``.

    True if it can, with AF and RDONLY updated; False: fault.
    """
    pte = phys.tables[index]
    if (pte & (PTE_VALID | PTE_USER)) != (PTE_VALID | PTE_USER):
        return False
    if write != 0 and (pte & PTE_RDONLY) != U0:
        if arch.dbm == 0 or (pte & PTE_WRITE) == U0:
            return False
        phys.tables[index] = (pte & ~PTE_RDONLY) | PTE_AF
        return True
    if (pte & PTE_AF) == U0:
        if arch.dbm == 0:
            return False
        phys.tables[index] = pte | PTE_AF
    return True


@inlined
def tlb_permits(pte: np.uint64, write: Int) -> Flag:
    """Whether a CPU that remembers ``pte`` needs nothing more for this access."""
    needed = PTE_VALID | PTE_USER | PTE_AF
    if (pte & needed) != needed:
        return False
    return write == 0 or (pte & PTE_RDONLY) == U0


@inlined
def ptep_set_access_flags_one(arch: Arch, phys: Phys, index: Int, entry: np.uint64) -> Flag:
    """Make the entry at ``index`` at least as permissive, young and dirty as ``entry``.

    True if it changed. This is the kernel's ``__ptep_set_access_flags``; contpte.py has the one
    without underscores.

    Only these bits are taken over: with the patch soft-dirty is one of them (``sd_access_flags``),
    without this hunk it is left behind.
    """
    pte = phys.tables[index]
    if pte == entry:
        return False
    entry = entry & (PTE_RDONLY | PTE_AF | PTE_WRITE | PTE_DIRTY | arch.sd_access_flags)
    # RDONLY is inverted: an entry gains permissions by losing it.
    phys.tables[index] = ((pte ^ PTE_RDONLY) | (entry ^ PTE_RDONLY)) ^ PTE_RDONLY
    return True
