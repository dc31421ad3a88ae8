"""Swap: pushing pages out, reading ahead, and taking the device away.

Follows mm/vmscan.c, mm/rmap.c and mm/swapfile.c.

A swapped anonymous page leaves a swap entry that carries its soft-dirty bit; a swapped shared page
leaves nothing.
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
    pte_dirty,
    pte_mkold,
    pte_mksoft_dirty,
    pte_mkuffd_wp,
    pte_none,
    pte_pfn,
    pte_present,
    pte_swp_clear_flags,
    pte_swp_exclusive,
    pte_swp_soft_dirty,
    pte_swp_uffd_wp,
    pte_uffd_wp,
    swp_entry_to_pte,
    swp_offset,
)
from mm_model.asm.ptes import (
    clear_young_dirty_ptes,
    contpte_try_unfold,
    ptep_get_and_clear,
)
from mm_model.frames import (
    folio_free_swap,
    folio_head,
    folio_mapcount,
    folio_nr_pages,
    free_frame,
    free_slot,
    page_remove_rmap,
)
from mm_model.huge_memory import (
    huge_frame,
    leave_or_split_folio,
    split_folio,
    split_huge_pmd,
    split_huge_pmd_address,
    zap_huge_pmd,
)
from mm_model.huge_swapops import is_swap_pmd
from mm_model.internal import folio_pte_batch
from mm_model.memory import object_position
from mm_model.pagewalk import huge_pmd, walk
from mm_model.state import (
    FALLBACK,
    FAULT_ADDRESS,
    FREE_SLOTS,
    LARGE_FOLIOS,
    LIVELOCK,
    N_LIVELOCKS,
    N_SWAPIN,
    NEXT_SLOT,
    OK,
    PG_ANON,
    PG_CACHE,
    PG_DIRTY,
    PG_EXCLUSIVE,
    PG_LARGE,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PGD,
    RECLAIM_EVERYWHERE,
    RSS,
    SPLIT_EVERYWHERE,
    SWAP_ON,
    USED_SLOTS,
    V_FILE,
    V_PROT,
    Int,
    Phys,
    Space,
)
from mm_model.swapops import PTE_MARKER_UFFD_WP, make_pte_marker, non_swap_entry, set_swap_pte


@compiled
def alloc_slot(phys: Phys, frame: Int) -> Int:
    """Give the frame a swap slot; 0 when there is none."""
    ctr = phys.ctr
    if ctr[SWAP_ON] == 0:
        return np.int64(0)
    if ctr[FREE_SLOTS] > 0:
        ctr[FREE_SLOTS] -= 1
        slot = phys.free_slots[ctr[FREE_SLOTS]]
    elif ctr[NEXT_SLOT] < phys.slot_frame.shape[0]:
        slot = ctr[NEXT_SLOT]
        ctr[NEXT_SLOT] += 1
    else:
        return np.int64(0)
    ctr[USED_SLOTS] += 1
    phys.slot_frame[slot] = frame
    phys.slot_count[slot] = 0
    phys.slot_of[frame] = slot
    return slot


@compiled
def alloc_slots(phys: Phys, head: Int, count: Int) -> Int:
    """Give ``count`` frames from ``head`` on slots in a row, aligned to their number; 0: none."""
    ctr = phys.ctr
    if ctr[SWAP_ON] == 0:
        return np.int64(0)
    first = (ctr[NEXT_SLOT] + count - 1) & ~(count - 1)
    if first + count <= phys.slot_frame.shape[0]:
        for slot in range(ctr[NEXT_SLOT], first):
            phys.free_slots[ctr[FREE_SLOTS]] = slot
            ctr[FREE_SLOTS] += 1
        ctr[NEXT_SLOT] = first + count
    else:
        first = take_free_slots(phys, count)
        if first == 0:
            return first
    ctr[USED_SLOTS] += count
    for k in range(count):
        phys.slot_frame[first + k] = head + k
        phys.slot_count[first + k] = 0
        phys.slot_of[head + k] = first + k
    return first


@compiled
def take_free_slots(phys: Phys, count: Int) -> Int:
    """Find an aligned run of free slots and take it off the stack; 0 if there is none."""
    ctr = phys.ctr
    for run in range(count, ctr[NEXT_SLOT] - count + 1, count):
        free = np.int64(0)
        while free < count and phys.slot_frame[run + free] == 0:
            free += 1
        if free == count:
            kept = 0
            for k in range(ctr[FREE_SLOTS]):
                slot = phys.free_slots[k]
                if slot < run or slot >= run + count:
                    phys.free_slots[kept] = slot
                    kept += 1
            ctr[FREE_SLOTS] = kept
            return np.int64(run)
    return np.int64(0)


@compiled
def reclaim_folio(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, address: np.uint64, head: Int
) -> None:
    """Push a whole large folio out that only the entries from ``index`` on map.

    ``index`` is -1 if it is mapped as a huge page: then the entry is split on the way. The folio
    goes to slots in a row; without such, it is split and its pages go one by one.
    """
    pages = folio_nr_pages(phys, head)
    if phys.flags[head] & PG_SWAPBACKED == 0:
        reclaim_lazyfree_folio(arch, phys, space, index, address, head)
        return
    slot = alloc_slots(phys, head, pages)
    if slot == 0:
        split_folio(arch, phys, space, vma, address, head)
    elif index < 0:
        split_huge_pmd_address(arch, phys, space, address)
    if index < 0:
        index = walk(arch, phys, space.regs[PGD], address)
    if slot == 0:
        for k in range(pages):
            frame = np.int64(pte_pfn(arch, phys.tables[index + k]))
            if frame != 0:
                reclaim_anon(arch, phys, space, index + k, frame)
        return
    for k in range(pages):
        pte = ptep_get_and_clear(arch, phys, index + k)
        set_swap_pte(arch, phys, index + k, pte, head + k, slot + k)
        phys.mapcount[head + k] = 0
        phys.flags[head + k] = PG_ANON | PG_SWAPBACKED
    space.regs[RSS] -= pages
    phys.ctr[LARGE_FOLIOS] -= 1


@compiled
def reclaim_lazyfree_folio(
    arch: Arch, phys: Phys, space: Space, index: Int, address: np.uint64, head: Int
) -> None:
    """Drop the pages of a folio that MADV_FREE was given to, up to the first one written since."""
    pages = folio_nr_pages(phys, head)
    dirty = False
    for k in range(pages):
        dirty = dirty or phys.flags[head + k] & PG_DIRTY != 0
    if index < 0:
        huge = huge_pmd(arch, phys, space, address)
        if arch.lazyfree_splits_pmd == 0 and not dirty and not pte_dirty(phys.tables[huge]):
            zap_huge_pmd(arch, phys, space, huge)
            return
        dirty = dirty or pte_dirty(phys.tables[huge])
        index = split_huge_pmd(arch, phys, space, huge, False)
    for k in range(pages):
        contpte_try_unfold(arch, phys, index + k)
        if dirty or pte_dirty(phys.tables[index + k]):
            for frame in range(head, head + pages):
                phys.flags[frame] |= PG_SWAPBACKED | PG_DIRTY
            return
        phys.tables[index + k] = U0
        space.regs[RSS] -= 1
        page_remove_rmap(phys, head + k)


@compiled
def reclaim_anon(arch: Arch, phys: Phys, space: Space, index: Int, frame: Int) -> None:
    """Push one anonymous page out that only the entry at ``index`` maps."""
    pte = phys.tables[index]
    if phys.flags[frame] & PG_SWAPBACKED == 0:
        if pte_dirty(pte) or phys.flags[frame] & PG_DIRTY:
            # Written again since MADV_FREE: it stays.
            phys.flags[frame] |= PG_SWAPBACKED | PG_DIRTY
            return
        phys.tables[index] = U0
        space.regs[RSS] -= 1
        page_remove_rmap(phys, frame)
        return
    slot = np.int64(phys.slot_of[frame])
    if slot == 0:
        slot = alloc_slot(phys, frame)
        if slot == 0:
            return
    set_swap_pte(arch, phys, index, pte, frame, slot)
    phys.mapcount[frame] = 0
    phys.flags[frame] = PG_ANON | PG_SWAPBACKED
    space.regs[RSS] -= 1


@compiled
def reclaim_cache(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, frame: Int, position: Int
) -> None:
    """Push one page of an object out that only the entry at ``index`` maps."""
    pte = phys.tables[index]
    if pte_dirty(pte):
        phys.flags[frame] |= PG_DIRTY
    phys.tables[index] = make_pte_marker(arch, PTE_MARKER_UFFD_WP) if pte_uffd_wp(pte) else U0
    phys.mapcount[frame] = 0
    space.regs[RSS] -= 1
    if phys.flags[frame] & PG_DIRTY == 0:
        # Shared memory never written is zeros again when next asked for; a file has it on disk.
        phys.cache[position] = U0
        free_frame(phys, frame)
        return
    if space.vmas[vma, V_FILE] != U0:
        # Reclaim leaves writing to the flusher: unmapped, the page stays in the cache.
        return
    slot = alloc_slot(phys, frame)
    if slot == 0:
        return
    phys.slot_count[slot] = 1
    phys.flags[frame] = np.uint8(0)
    phys.cache[position] = (np.uint64(slot) << U1) | U1


@compiled
def cold_or_pageout_folio(
    arch: Arch,
    phys: Phys,
    space: Space,
    vma: Int,
    index: Int,
    address: np.uint64,
    most: Int,
    pageout: Int,
) -> Int:
    """The entries from ``index`` on that map one large folio; returns how many are done with.

    0: it was not wholly in the range and has been split, so look again.
    """
    frame = np.int64(pte_pfn(arch, phys.tables[index]))
    pages = folio_nr_pages(phys, frame)
    head = folio_head(phys, frame)
    count = folio_pte_batch(arch, phys, index, most, PTE_SOFT_DIRTY, True)
    if count < pages:
        return leave_or_split_folio(arch, phys, space, vma, address, frame, count)
    if folio_mapcount(phys, head) == pages:
        if pageout != 0:
            reclaim_folio(arch, phys, space, vma, index, address, head)
        else:
            clear_young_dirty_ptes(arch, phys, index, count, False)
    return count


@compiled
def cold_or_pageout_huge_pmd(
    arch: Arch,
    phys: Phys,
    space: Space,
    vma: Int,
    address: np.uint64,
    end: np.uint64,
    pageout: Int,
) -> Int:
    """The huge page at ``address``, if there is one and nobody shares it.

    OK; FALLBACK: it was not wholly in the range and has been split, so look again. Where the kernel
    asks for the mappings of the first page only, others may map the rest by page entries:
    SPLIT_EVERYWHERE or RECLAIM_EVERYWHERE.
    """
    huge = huge_pmd(arch, phys, space, address)
    if huge < 0 or is_swap_pmd(arch, phys.tables[huge]):
        return OK
    head = np.int64(pte_pfn(arch, phys.tables[huge]))
    if head == 0:
        return OK
    shared = folio_mapcount(phys, head) != folio_nr_pages(phys, head)
    if shared and (arch.advice_asks_page == 0 or phys.mapcount[head] != 1):
        return OK
    span = U1 << arch.pmd_shift
    if address & (span - U1) != U0 or end - address < span:
        if shared:
            return SPLIT_EVERYWHERE
        frame = huge_frame(arch, phys, phys.tables[huge], address)
        split_folio(arch, phys, space, vma, address, frame)
        return FALLBACK
    if pageout == 0:
        phys.tables[huge] = pte_mkold(phys.tables[huge])
    elif shared:
        return RECLAIM_EVERYWHERE
    else:
        reclaim_folio(arch, phys, space, vma, np.int64(-1), address, head)
    return OK


@compiled
def madvise_cold_or_pageout(
    arch: Arch, phys: Phys, space: Space, vma: Int, start: np.uint64, end: np.uint64, pageout: Int
) -> tuple[np.uint64, int]:
    """MADV_COLD (``pageout`` 0) or MADV_PAGEOUT (1) over part of one VMA.

    Pages that are mapped elsewhere too are left alone. Answers (``end``, OK), or where it stopped
    for what the caller has to do there: SPLIT_EVERYWHERE or RECLAIM_EVERYWHERE.
    """
    address = start
    while address < end:
        index = walk(arch, phys, space.regs[PGD], address)
        if index < 0:
            last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
            result = cold_or_pageout_huge_pmd(arch, phys, space, vma, address, end, pageout)
            if result == OK:
                address = last
            elif result != FALLBACK:
                return address, result
            continue
        pte = phys.tables[index]
        if pte_present(arch, pte):
            frame = np.int64(pte_pfn(arch, pte))
            if phys.flags[frame] & PG_LARGE:
                table_end = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
                if table_end > end:
                    table_end = end
                if arch.advice_asks_page != 0:
                    if phys.mapcount[frame] == 1:
                        return address, SPLIT_EVERYWHERE
                    address = table_end
                    continue
                most = np.int64((table_end - address) >> arch.page_shift)
                done = cold_or_pageout_folio(arch, phys, space, vma, index, address, most, pageout)
                address += np.uint64(done) << arch.page_shift
                continue
            if frame != 0 and phys.mapcount[frame] == 1:
                if pageout == 0:
                    phys.tables[index] = pte_mkold(pte)
                elif phys.flags[frame] & PG_CACHE:
                    position = object_position(arch, space, vma, address)
                    reclaim_cache(arch, phys, space, vma, index, frame, position)
                else:
                    reclaim_anon(arch, phys, space, index, frame)
        address += arch.page_size
    return end, OK


@compiled
def swapin_willneed(arch: Arch, phys: Phys, space: Space, start: np.uint64, end: np.uint64) -> None:
    """MADV_WILLNEED: read swapped anonymous pages into the swap cache. No entry changes."""
    address = start
    while address < end:
        index = walk(arch, phys, space.regs[PGD], address)
        if index < 0:
            address = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
            continue
        pte = phys.tables[index]
        if not pte_none(pte) and not pte_present(arch, pte) and not non_swap_entry(arch, pte):
            phys.flags[phys.slot_frame[np.int64(swp_offset(arch, pte))]] |= PG_SWAPCACHE
        address += arch.page_size


@compiled
def unuse_range(
    arch: Arch, phys: Phys, space: Space, vma: Int, start: np.uint64, end: np.uint64
) -> Int:
    """swapoff over one VMA: map every swapped page again, read-only and old; OK or LIVELOCK.

    The kernel compares the entry, less its flags, with the slot it looks for. When a flag cannot be
    cleared the comparison never holds and it searches for ever.
    """
    address = start
    while address < end:
        index = walk(arch, phys, space.regs[PGD], address)
        if index < 0:
            address = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
            continue
        pte = phys.tables[index]
        if not pte_none(pte) and not pte_present(arch, pte) and not non_swap_entry(arch, pte):
            slot = swp_offset(arch, pte)
            if pte_swp_clear_flags(arch, pte) != swp_entry_to_pte(arch, slot):
                phys.ctr[FAULT_ADDRESS] = np.int64(address)
                phys.ctr[N_LIVELOCKS] += 1
                return LIVELOCK
            unuse_pte(arch, phys, space, vma, index, np.int64(slot))
        address += arch.page_size
    return OK


@compiled
def unuse_pte(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, slot: Int) -> None:
    """Replace one swap entry by its page."""
    orig = phys.tables[index]
    frame = phys.slot_frame[slot]
    pte = pte_mkold(pfn_pte(arch, np.uint64(frame), space.vmas[vma, V_PROT]))
    if pte_swp_soft_dirty(arch, orig):
        pte = pte_mksoft_dirty(arch, pte)
    if pte_swp_uffd_wp(arch, orig):
        pte = pte_mkuffd_wp(pte)
    phys.tables[index] = pte
    phys.flags[frame] |= PG_ANON | PG_SWAPBACKED | PG_SWAPCACHE
    if pte_swp_exclusive(arch, orig):
        phys.flags[frame] |= PG_EXCLUSIVE
    phys.mapcount[frame] += 1
    space.regs[RSS] += 1
    phys.ctr[N_SWAPIN] += 1
    phys.slot_count[slot] -= 1
    folio_free_swap(phys, frame)


@compiled
def drop_swap_cache(phys: Phys) -> None:
    """Free the slots that only the swap cache still holds, at the end of swapoff."""
    for slot in range(1, phys.ctr[NEXT_SLOT]):
        frame = phys.slot_frame[slot]
        if frame != 0 and phys.slot_count[slot] == 0:
            if phys.mapcount[frame] > 0:
                folio_free_swap(phys, frame)
            else:
                free_slot(phys, slot)
                free_frame(phys, frame)
