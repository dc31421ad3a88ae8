"""What /proc files and the model's own views show of hugetlb mappings (fs/proc/task_mmu.c).

Here pagemap and PAGEMAP_SCAN disagree: pagemap_hugetlb_range() does not look at the entry's own
soft-dirty bit, pagemap_hugetlb_category() looks at nothing else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mm_model._compiled import compiled
from mm_model.asm.hugetlbpage import huge_ptep_get
from mm_model.asm.pgtable import U0, Arch, pte_pfn, pte_present, pte_soft_dirty, pte_uffd_wp
from mm_model.hugetlb import huge_entries, huge_page_size, huge_pte_offset
from mm_model.state import PG_ANON, V_HUGE, Int, Phys, Space
from mm_model.uapi import (
    PAGE_IS_FILE,
    PAGE_IS_HUGE,
    PAGE_IS_PRESENT,
    PAGE_IS_SOFT_DIRTY,
    PAGE_IS_SWAPPED,
    PAGE_IS_WRITTEN,
    PM_FILE,
    PM_MMAP_EXCLUSIVE,
    PM_PRESENT,
    PM_UFFD_WP,
)

_HUGE = np.uint64(PAGE_IS_HUGE)
_PRESENT = np.uint64(PAGE_IS_PRESENT)
_FILE = np.uint64(PAGE_IS_FILE)
_WRITTEN = np.uint64(PAGE_IS_WRITTEN)
_SWAPPED = np.uint64(PAGE_IS_SWAPPED)
_SOFT_DIRTY = np.uint64(PAGE_IS_SOFT_DIRTY)


@compiled
def hugetlb_page_end(arch: Arch, address: np.uint64, end: np.uint64, order: Int) -> np.uint64:
    """Where the page at ``address`` ends, or the range does (hugetlb_entry_end)."""
    size = huge_page_size(arch, order)
    last = (address & ~(size - np.uint64(1))) + size
    return min(end, last)


@compiled
def pagemap_hugetlb_range(
    arch: Arch,
    phys: Phys,
    space: Space,
    vma: Int,
    start: np.uint64,
    end: np.uint64,
    vma_bits: np.uint64,
    out: NDArray[np.uint64],
    position: Int,
) -> None:
    """pagemap of part of one mapping: of the entries' soft-dirty bits nothing is seen."""
    order = np.int64(space.vmas[vma, V_HUGE])
    count = huge_entries(arch, order)
    address = start
    while address < end:
        last = hugetlb_page_end(arch, address, end, order)
        bits = vma_bits
        index = huge_pte_offset(arch, phys, space, address, order)
        if index >= 0 and phys.tables[index] != U0:
            pte = huge_ptep_get(arch, phys, index, count)
            if pte_present(arch, pte):
                head = np.int64(pte_pfn(arch, pte))
                bits |= PM_PRESENT
                if phys.flags[head] & PG_ANON == 0:
                    bits |= PM_FILE
                if phys.mapcount[head] == 1:
                    bits |= PM_MMAP_EXCLUSIVE
                if pte_uffd_wp(pte):
                    bits |= PM_UFFD_WP
            else:
                bits |= PM_UFFD_WP
        while address < last:
            out[position] = bits
            position += 1
            address += arch.page_size


@compiled
def hugetlb_frames(
    arch: Arch,
    phys: Phys,
    space: Space,
    vma: Int,
    start: np.uint64,
    end: np.uint64,
    out: NDArray[np.int64],
    position: Int,
) -> None:
    """The frame that each base page of part of one mapping is, where one is mapped."""
    order = np.int64(space.vmas[vma, V_HUGE])
    inside = (np.int64(1) << order) - 1
    address = start
    while address < end:
        last = hugetlb_page_end(arch, address, end, order)
        index = huge_pte_offset(arch, phys, space, address, order)
        head = np.int64(-1)
        if index >= 0 and pte_present(arch, phys.tables[index]):
            head = np.int64(pte_pfn(arch, phys.tables[index]))
        while address < last:
            if head >= 0:
                out[position] = head + (np.int64(address >> arch.page_shift) & inside)
            position += 1
            address += arch.page_size


@compiled
def pagemap_hugetlb_category(
    arch: Arch, phys: Phys, space: Space, vma: Int, address: np.uint64
) -> np.uint64:
    """The categories of the page at ``address`` that its entry tells; 0 where no table is."""
    order = np.int64(space.vmas[vma, V_HUGE])
    index = huge_pte_offset(arch, phys, space, address, order)
    if index < 0:
        return U0
    categories = _HUGE
    pte = huge_ptep_get(arch, phys, index, huge_entries(arch, order))
    if pte_present(arch, pte):
        categories |= _PRESENT
        if not pte_uffd_wp(pte):
            categories |= _WRITTEN
        if phys.flags[np.int64(pte_pfn(arch, pte))] & PG_ANON == 0:
            categories |= _FILE
        if pte_soft_dirty(arch, pte):
            categories |= _SOFT_DIRTY
    elif pte != U0:
        categories |= _SWAPPED
    return categories
