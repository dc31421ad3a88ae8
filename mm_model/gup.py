"""Getting at another process' pages by force: /proc/PID/mem, populating, mlock (mm/gup.c).

A forced write into a read-only private mapping breaks copy-on-write and then looks at the entry
again: it accepts a page that is not writable only if it is exclusively ours and, where writes are
tracked, already soft-dirty. If the fault did not set that bit, the two never agree.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.asm.pgtable import U0, Arch, Pte, pte_dirty, pte_pfn, pte_present, pte_write
from mm_model.asm.ptes import ptep_get
from mm_model.huge_memory import follow_huge_pmd
from mm_model.memory import (
    handle_mm_fault,
    is_cow_mapping,
    pte_needs_soft_dirty_wp,
    userfaultfd_pte_wp,
)
from mm_model.mmap import find_vma
from mm_model.pagewalk import walk
from mm_model.state import (
    FAULT_ADDRESS,
    GROW_STACK,
    GUP_EFAULT,
    HUGE_PMDS,
    LIVELOCK,
    N_LIVELOCKS,
    OK,
    PG_ANON,
    PG_DIRTY,
    PG_EXCLUSIVE,
    PGD,
    RETRY_LIMIT,
    STATUS,
    V_FLAGS,
    V_START,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    Flag,
    Int,
    Phys,
    Space,
)

_PRIVATE_MAYWRITE = VM_SHARED | VM_MAYWRITE | VM_WRITE


@inlined
def check_vma_flags(flags: np.uint64, write: Int, force: Int) -> Flag:
    """Whether the mapping may be accessed at all."""
    if write != 0:
        if flags & VM_WRITE != U0:
            return True
        if flags & VM_HUGETLB != U0:
            return False
        return force != 0 and is_cow_mapping(flags)
    if flags & VM_READ != U0:
        return True
    return force != 0 and flags & VM_MAYREAD != U0


@inlined
def can_follow_write_pte(arch: Arch, phys: Phys, flags: np.uint64, pte: Pte, force: Int) -> Flag:
    """Whether a write may go through this entry."""
    if pte_write(pte):
        return True
    if force == 0 or flags & _PRIVATE_MAYWRITE != VM_MAYWRITE:
        return False
    own = PG_ANON | PG_EXCLUSIVE
    if phys.flags[np.int64(pte_pfn(arch, pte))] & own != own:
        return False
    return not pte_needs_soft_dirty_wp(arch, flags, pte) and not userfaultfd_pte_wp(flags, pte)


@compiled
def get_user_page(
    arch: Arch, phys: Phys, space: Space, address: np.uint64, write: Int, force: Int
) -> Int:
    """The frame behind ``address``, faulted in for reading or writing; -1 with STATUS set."""
    ctr = phys.ctr
    ctr[FAULT_ADDRESS] = np.int64(address)
    ctr[STATUS] = GUP_EFAULT
    vma = find_vma(space, address)
    if vma < 0:
        return np.int64(-1)
    flags = space.vmas[vma, V_FLAGS]
    if address < space.vmas[vma, V_START]:
        if flags & VM_GROWSDOWN != U0:
            ctr[STATUS] = GROW_STACK
        return np.int64(-1)
    if not check_vma_flags(flags, write, force):
        return np.int64(-1)
    for _ in range(RETRY_LIMIT):
        index = walk(arch, phys, space.regs[PGD], address)
        if index >= 0:
            pte = ptep_get(arch, phys, index)
            if pte_present(arch, pte) and (
                write == 0 or can_follow_write_pte(arch, phys, flags, pte, force)
            ):
                frame = np.int64(pte_pfn(arch, pte))
                if write != 0 and not pte_dirty(pte):
                    phys.flags[frame] |= PG_DIRTY
                return frame
        elif space.regs[HUGE_PMDS] != 0:
            frame = follow_huge_pmd(arch, phys, space, address, flags, write, force)
            if frame >= 0:
                return frame
        status = handle_mm_fault(arch, phys, space, vma, index, address, write)
        if status != OK:
            ctr[STATUS] = status
            return np.int64(-1)
    ctr[STATUS] = LIVELOCK
    ctr[N_LIVELOCKS] += 1
    return np.int64(-1)


@compiled
def populate_range(
    arch: Arch,
    phys: Phys,
    space: Space,
    start: np.uint64,
    end: np.uint64,
    write: Int,
    force: Int,
) -> np.uint64:
    """Fault pages of [start, end) in.

    Returns where it stopped: ``end``, or the address STATUS is about.
    """
    address = start
    while address < end:
        if get_user_page(arch, phys, space, address, write, force) < 0:
            return address
        address += arch.page_size
    return end
