"""What an x86-64 CPU does on an access, and how a fault writes its entry (arch/x86/mm/pgtable.c).

The CPU always sets ACCESSED and DIRTY itself, never a software bit.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import inlined
from mm_model.arch import U0, Arch
from mm_model.state import Flag, Int, Phys
from mm_model.x86.pgtable import PAGE_ACCESSED, PAGE_DIRTY, PAGE_PRESENT, PAGE_RW, PAGE_USER


@inlined
def hardware_access(arch: Arch, phys: Phys, index: Int, write: Int) -> Flag:
    """Let the CPU in user mode use the entry at ``index``.

    True if it can, with ACCESSED and DIRTY updated; False: fault.
    """
    pte = phys.tables[index]
    if (pte & (PAGE_PRESENT | PAGE_USER)) != (PAGE_PRESENT | PAGE_USER):
        return False
    if write != 0:
        if (pte & PAGE_RW) == U0:
            return False
        phys.tables[index] = pte | PAGE_ACCESSED | PAGE_DIRTY
        return True
    phys.tables[index] = pte | PAGE_ACCESSED
    return True


@inlined
def tlb_permits(pte: np.uint64, write: Int) -> Flag:
    """Whether a CPU that remembers ``pte`` needs nothing more for this access."""
    needed = PAGE_PRESENT | PAGE_USER | PAGE_ACCESSED
    if (pte & needed) != needed:
        return False
    return write == 0 or (pte & (PAGE_RW | PAGE_DIRTY)) == (PAGE_RW | PAGE_DIRTY)


@inlined
def ptep_set_access_flags(arch: Arch, phys: Phys, index: Int, entry: np.uint64) -> Flag:
    """Write the fault's entry whole, soft-dirty bit included. True if it changed."""
    if phys.tables[index] == entry:
        return False
    phys.tables[index] = entry
    return True


ptep_set_access_flags_one = ptep_set_access_flags
