"""Large folios of anonymous memory where page entries map them: the batches of mm/memory.c.

A fault may map a whole folio at once (alloc_anon_folio), and fork, unmapping and swap-in treat
entries that map one folio in a row alike as one. The common functions of memory.py come here only
when the page at hand is part of a large folio, or large folios are switched on.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled
from mm_model.asm.pgtable import (
    PTE_SOFT_DIRTY,
    U0,
    U1,
    Arch,
    pfn_pte,
    pte_clear_uffd_wp,
    pte_mkdirty,
    pte_mkold,
    pte_mkwrite,
    pte_mkyoung,
    pte_move_swp_offset,
    pte_pfn,
    pte_present,
    pte_write,
    pte_wrprotect,
    swp_offset,
)
from mm_model.asm.ptes import (
    get_and_clear_full_ptes,
    ptep_get,
    set_ptes,
    wrprotect_ptes,
)
from mm_model.frames import alloc_folio, copy_frame, free_frame, free_slot, page_remove_rmap
from mm_model.internal import folio_pte_batch
from mm_model.state import (
    LARGE_FOLIOS,
    PG_ANON,
    PG_EXCLUSIVE,
    PG_LARGE,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    RSS,
    THP_ALWAYS,
    THP_MADVISE,
    V_END,
    V_FLAGS,
    V_PROT,
    V_START,
    VM_HUGEPAGE,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_SHARED,
    VM_UFFD_WP,
    VM_WRITE,
    Flag,
    Int,
    Phys,
    Space,
)

_NEW_LARGE_ANON = PG_ANON | PG_EXCLUSIVE | PG_SWAPBACKED | PG_LARGE


@compiled
def thp_vma_allowable_orders(phys: Phys, flags: np.uint64) -> Int:
    """The orders (bit n: 2**n pages) that a fault in this mapping may use, PMD order included."""
    if flags & VM_NOHUGEPAGE != U0:
        return np.int64(0)
    orders = phys.ctr[THP_ALWAYS]
    if flags & VM_HUGEPAGE != U0:
        orders |= phys.ctr[THP_MADVISE]
    return orders


@compiled
def thp_vma_suitable_order(
    arch: Arch, space: Space, vma: Int, address: np.uint64, order: Int
) -> Flag:
    """Whether the naturally aligned folio around ``address`` lies wholly in the mapping."""
    span = U1 << (arch.page_shift + np.uint64(order))
    start = address & ~(span - U1)
    return start >= space.vmas[vma, V_START] and start + span <= space.vmas[vma, V_END]


@compiled
def alloc_anon_folio(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, address: np.uint64, orders: Int
) -> Flag:
    """First write to anonymous memory with a large folio, the largest that fits; False: none does.

    Every page of the folio is mapped as if it had been written. A mapping that userfaultfd watches
    gets page by page.
    """
    if space.vmas[vma, V_FLAGS] & VM_UFFD_WP != U0:
        return False
    for order in range(np.int64(arch.table_shift) - 1, 1, -1):
        if (orders >> order) & 1 == 0:
            continue
        if not thp_vma_suitable_order(arch, space, vma, address, order):
            continue
        pages = np.int64(1) << order
        first = index - (np.int64(address >> arch.page_shift) & (pages - 1))
        empty = True
        for k in range(first, first + pages):
            if phys.tables[k] != U0:
                empty = False
                break
        if not empty:
            continue
        head = alloc_folio(phys, order, True)
        if head < 0:
            continue
        entry = pte_mkyoung(pfn_pte(arch, np.uint64(head), space.vmas[vma, V_PROT]))
        if space.vmas[vma, V_FLAGS] & VM_WRITE != U0:
            entry = pte_mkwrite(pte_mkdirty(arch, entry))
        for frame in range(head, head + pages):
            phys.flags[frame] = _NEW_LARGE_ANON
            phys.mapcount[frame] = 1
        space.regs[RSS] += pages
        set_ptes(arch, phys, first, entry, pages)
        return True
    return False


@compiled
def copy_present_ptes(
    arch: Arch,
    phys: Phys,
    child: Space,
    source: Int,
    target: Int,
    most: Int,
    flags: np.uint64,
) -> Int:
    """Fork: copy the entries from ``source`` on that map one folio alike; returns how many.

    They get the first one's dirty bit, and its soft-dirty bit too where VM_SOFTDIRTY covers the
    mapping: there the bits may differ within one batch.
    """
    pte = ptep_get(arch, phys, source)
    tracked = arch.vm_softdirty != U0 and flags & arch.vm_softdirty == U0
    count = folio_pte_batch(arch, phys, source, most, U0 if tracked else PTE_SOFT_DIRTY, False)
    writable = False
    frame = np.int64(pte_pfn(arch, pte))
    for k in range(count):
        writable = writable or pte_write(phys.tables[source + k])
        phys.flags[frame + k] &= ~PG_EXCLUSIVE
        phys.mapcount[frame + k] += 1
    child.regs[RSS] += count
    if writable and flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE:
        wrprotect_ptes(arch, phys, source, count)
        pte = pte_wrprotect(pte)
    set_ptes(arch, phys, target, pte_clear_uffd_wp(pte_mkold(pte)), count)
    return count


@compiled
def zap_present_ptes(arch: Arch, phys: Phys, space: Space, index: Int, most: Int) -> Int:
    """Take down the entries from ``index`` on that map one folio in a row; returns how many."""
    frame = np.int64(pte_pfn(arch, phys.tables[index]))
    count = folio_pte_batch(arch, phys, index, most, PTE_SOFT_DIRTY, True)
    get_and_clear_full_ptes(arch, phys, index, count)
    space.regs[RSS] -= count
    for k in range(frame, frame + count):
        page_remove_rmap(phys, k)
    return count


@compiled
def swap_pte_batch(arch: Arch, phys: Phys, index: Int, count: Int) -> Flag:
    """Whether ``count`` entries from ``index`` on name slots in a row, with the same flags.

    Soft-dirty is one of the flags. The first slot is aligned like the entries.
    """
    pte = phys.tables[index]
    if pte == U0 or pte_present(arch, pte):
        return False
    slot = np.int64(swp_offset(arch, pte))
    if (slot ^ index) & (count - 1) != 0:
        return False
    for k in range(count):
        if phys.tables[index + k] != pte_move_swp_offset(arch, pte, np.uint64(k)):
            return False
        if phys.slot_count[slot + k] != 1 or (
            phys.flags[phys.slot_frame[slot + k]] & PG_SWAPCACHE != 0
        ):
            return False
    return True


@compiled
def alloc_swap_folio(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, address: np.uint64
) -> Int:
    """Log2 of the pages that one swap-in fault at ``address`` may bring back as one folio."""
    if arch.swapin_folio == 0 or space.vmas[vma, V_FLAGS] & VM_UFFD_WP != U0:
        return np.int64(0)
    orders = thp_vma_allowable_orders(phys, space.vmas[vma, V_FLAGS])
    for order in range(np.int64(arch.table_shift) - 1, 1, -1):
        if (orders >> order) & 1 == 0:
            continue
        if not thp_vma_suitable_order(arch, space, vma, address, order):
            continue
        pages = np.int64(1) << order
        first = index - (np.int64(address >> arch.page_shift) & (pages - 1))
        if swap_pte_batch(arch, phys, first, pages):
            return np.int64(order)
    return np.int64(0)


@compiled
def swapin_folio(arch: Arch, phys: Phys, slot: Int, order: Int) -> Int:
    """The first frame of a folio with the content of 2**order slots, which become free; or -1.

    Content comes back where it was if these frames still make up a folio.
    """
    pages = np.int64(1) << order
    head = phys.slot_frame[slot]
    together = head & (pages - 1) == 0
    for k in range(pages):
        together = together and phys.slot_frame[slot + k] == head + k
    if together:
        for k in range(pages):
            free_slot(phys, slot + k)
            phys.slot_count[slot + k] = 0
            phys.flags[head + k] = PG_LARGE
            phys.order[head + k] = order
        phys.ctr[LARGE_FOLIOS] += 1
        return head
    head = alloc_folio(phys, order, False)
    if head < 0:
        return head
    for k in range(pages):
        frame = phys.slot_frame[slot + k]
        copy_frame(phys, frame, head + k)
        phys.slot_count[slot + k] = 0
        free_slot(phys, slot + k)
        free_frame(phys, frame)
    return head
