"""Putting content in from outside, as a restorer does, and taking it out again.

No task faults here; entries end up as after a write by the task, except that a read-only mapping
stays so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mm_model._compiled import compiled
from mm_model.access import write_bytes
from mm_model.asm.pgtable import (
    U0,
    Arch,
    pte_mkdirty,
    pte_mkyoung,
    pte_pfn,
    pte_present,
)
from mm_model.asm.ptes import contpte_try_unfold
from mm_model.frames import alloc_frame, clear_frame
from mm_model.huge_memory import split_huge_pmd_address
from mm_model.hugetlb import huge_pte_offset, hugetlb_fault
from mm_model.memory import (
    map_anon_frame,
    map_cache_frame,
    maybe_mkwrite,
    object_folio,
    object_position,
    zap_pte,
)
from mm_model.mmap import find_vma
from mm_model.pagewalk import pte_alloc, walk
from mm_model.rmap import anon_vma_prepare
from mm_model.state import (
    FAULT_ADDRESS,
    NO_FRAMES,
    NO_TABLES,
    OK,
    PG_ANON,
    PG_DIRTY,
    PG_EXCLUSIVE,
    PG_SWAPBACKED,
    PGD,
    SEGV_MAPERR,
    SIGBUS,
    STATUS,
    V_FLAGS,
    V_HUGE,
    V_START,
    VM_HUGETLB,
    VM_SHARED,
    Int,
    Phys,
    Space,
)


@compiled
def mark_written(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int) -> None:
    """Leave a present entry as a write leaves it."""
    contpte_try_unfold(arch, phys, index)
    entry = pte_mkdirty(arch, pte_mkyoung(phys.tables[index]))
    phys.tables[index] = maybe_mkwrite(entry, space.vmas[vma, V_FLAGS])


@compiled
def install_hugetlb(arch: Arch, phys: Phys, space: Space, vma: Int, address: np.uint64) -> Int:
    """The frame at ``address`` of a hugetlb page, faulted in as for a write; -1 with STATUS set."""
    status = hugetlb_fault(arch, phys, space, vma, address, np.int64(1))
    if status != OK:
        phys.ctr[STATUS] = status
        return np.int64(-1)
    order = np.int64(space.vmas[vma, V_HUGE])
    index = huge_pte_offset(arch, phys, space, address, order)
    inside = (address >> arch.page_shift) & np.uint64((np.int64(1) << order) - 1)
    return np.int64(pte_pfn(arch, phys.tables[index]) + inside)


@compiled
def install_frame(arch: Arch, phys: Phys, space: Space, address: np.uint64) -> Int:
    """A frame of this page's own at ``address``, mapped as after a write; -1 with STATUS set."""
    phys.ctr[FAULT_ADDRESS] = np.int64(address)
    vma = find_vma(space, address)
    if vma < 0 or address < space.vmas[vma, V_START]:
        phys.ctr[STATUS] = SEGV_MAPERR
        return np.int64(-1)
    if space.vmas[vma, V_FLAGS] & VM_HUGETLB != U0:
        return install_hugetlb(arch, phys, space, vma, address)
    split_huge_pmd_address(arch, phys, space, address)
    index = pte_alloc(arch, phys, space, address)
    if index < 0:
        phys.ctr[STATUS] = NO_TABLES
        return np.int64(-1)
    pte = phys.tables[index]
    if space.vmas[vma, V_FLAGS] & VM_SHARED != U0:
        position = object_position(arch, space, vma, address)
        if position < 0:
            phys.ctr[STATUS] = SIGBUS
            return np.int64(-1)
        frame = object_folio(phys, space, vma, position)
        if frame < 0:
            phys.ctr[STATUS] = NO_FRAMES
        elif not pte_present(arch, pte):
            map_cache_frame(arch, phys, space, vma, index, frame, 1, False)
        else:
            phys.flags[frame] |= PG_DIRTY
            mark_written(arch, phys, space, vma, index)
        return frame
    if pte_present(arch, pte):
        frame = np.int64(pte_pfn(arch, pte))
        alone = phys.mapcount[frame] == 1 and phys.slot_of[frame] == 0
        if alone and phys.flags[frame] & PG_ANON:
            phys.flags[frame] |= PG_EXCLUSIVE | PG_SWAPBACKED
            mark_written(arch, phys, space, vma, index)
            return frame
    anon_vma_prepare(arch, phys, space, vma)
    frame = alloc_frame(phys, True)
    if frame < 0:
        phys.ctr[STATUS] = NO_FRAMES
        return frame
    zap_pte(arch, phys, space, index)
    map_anon_frame(arch, phys, space, vma, index, frame)
    return frame


@compiled
def install_pages(
    arch: Arch,
    phys: Phys,
    space: Space,
    content: NDArray[np.uint8],
    addresses: NDArray[np.uint64],
    data: NDArray[np.uint8],
    first: Int,
) -> Int:
    """Install whole pages from ``data``; returns how many are done (see access.py)."""
    size = np.int64(arch.page_size)
    for n in range(first, addresses.shape[0]):
        frame = install_frame(arch, phys, space, addresses[n])
        if frame < 0:
            return n
        write_bytes(phys, content, frame, 0, data, n * size, size)
    return addresses.shape[0]


@compiled
def discard_hugetlb(arch: Arch, phys: Phys, space: Space, vma: Int, address: np.uint64) -> None:
    """A page of hugetlb does not go in part: the base page at ``address`` reads as zeros again."""
    order = np.int64(space.vmas[vma, V_HUGE])
    index = huge_pte_offset(arch, phys, space, address, order)
    if index >= 0 and pte_present(arch, phys.tables[index]):
        frame = install_hugetlb(arch, phys, space, vma, address)
        if frame >= 0:
            clear_frame(phys, frame)


@compiled
def discard_page(arch: Arch, phys: Phys, space: Space, address: np.uint64) -> None:
    """Take down one page's entry."""
    vma = find_vma(space, address)
    if vma >= 0 and space.vmas[vma, V_FLAGS] & VM_HUGETLB != U0:
        if address >= space.vmas[vma, V_START]:
            discard_hugetlb(arch, phys, space, vma, address)
            return
    split_huge_pmd_address(arch, phys, space, address)
    index = walk(arch, phys, space.regs[PGD], address)
    if index >= 0:
        zap_pte(arch, phys, space, index)


@compiled
def discard_pages(arch: Arch, phys: Phys, space: Space, addresses: NDArray[np.uint64]) -> None:
    """Take the entries at ``addresses`` down, wherever there are any."""
    for n in range(addresses.shape[0]):
        discard_page(arch, phys, space, addresses[n])
