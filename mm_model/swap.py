"""Swap: pushing pages out, reading ahead, and taking the device away.

Follows mm/vmscan.c, mm/rmap.c and mm/swapfile.c.

A swapped anonymous page leaves a swap entry that carries its soft-dirty bit; a swapped shared page
leaves nothing.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled
from mm_model.arm64.mmu import walk
from mm_model.arm64.pgtable import (
    U0,
    U1,
    Arch,
    pfn_pte,
    pte_dirty,
    pte_mkold,
    pte_mksoft_dirty,
    pte_none,
    pte_pfn,
    pte_present,
    pte_soft_dirty,
    pte_swp_clear_flags,
    pte_swp_exclusive,
    pte_swp_mkexclusive,
    pte_swp_mksoft_dirty,
    pte_swp_soft_dirty,
    swp_entry_to_pte,
    swp_offset,
)
from mm_model.frames import folio_free_swap, free_frame, free_slot, page_remove_rmap
from mm_model.memory import object_position
from mm_model.state import (
    FAULT_ADDRESS,
    FREE_SLOTS,
    LIVELOCK,
    N_LIVELOCKS,
    N_SWAPIN,
    NEXT_SLOT,
    OK,
    PG_ANON,
    PG_CACHE,
    PG_DIRTY,
    PG_EXCLUSIVE,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PGD,
    RSS,
    SWAP_ON,
    USED_SLOTS,
    V_PROT,
    Int,
    Phys,
    Space,
)


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
    entry = swp_entry_to_pte(arch, np.uint64(slot))
    if phys.flags[frame] & PG_EXCLUSIVE:
        entry = pte_swp_mkexclusive(arch, entry)
    if pte_soft_dirty(arch, pte):
        entry = pte_swp_mksoft_dirty(arch, entry)
    phys.tables[index] = entry
    phys.slot_count[slot] += 1
    phys.mapcount[frame] = 0
    phys.flags[frame] = PG_ANON | PG_SWAPBACKED
    space.regs[RSS] -= 1


@compiled
def reclaim_cache(
    arch: Arch, phys: Phys, space: Space, index: Int, frame: Int, position: Int
) -> None:
    """Push one page of a shared object out that only the entry at ``index`` maps."""
    if pte_dirty(phys.tables[index]):
        phys.flags[frame] |= PG_DIRTY
    phys.tables[index] = U0
    phys.mapcount[frame] = 0
    space.regs[RSS] -= 1
    if phys.flags[frame] & PG_DIRTY == 0:
        # Never written: zeros again when it is next asked for.
        phys.cache[position] = U0
        free_frame(phys, frame)
        return
    slot = alloc_slot(phys, frame)
    if slot == 0:
        return
    phys.slot_count[slot] = 1
    phys.flags[frame] = np.uint8(0)
    phys.cache[position] = (np.uint64(slot) << U1) | U1


@compiled
def madvise_cold_or_pageout(
    arch: Arch, phys: Phys, space: Space, vma: Int, start: np.uint64, end: np.uint64, pageout: Int
) -> None:
    """MADV_COLD (``pageout`` 0) or MADV_PAGEOUT (1) over part of one VMA.

    Pages that are mapped elsewhere too are left alone.
    """
    address = start
    while address < end:
        index = walk(arch, phys, space.regs[PGD], address)
        if index < 0:
            address = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
            continue
        pte = phys.tables[index]
        if pte_present(arch, pte):
            frame = np.int64(pte_pfn(arch, pte))
            if frame != 0 and phys.mapcount[frame] == 1:
                if pageout == 0:
                    phys.tables[index] = pte_mkold(pte)
                elif phys.flags[frame] & PG_CACHE:
                    position = object_position(arch, space, vma, address)
                    reclaim_cache(arch, phys, space, index, frame, position)
                else:
                    reclaim_anon(arch, phys, space, index, frame)
        address += arch.page_size


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
        if not pte_none(pte) and not pte_present(arch, pte):
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
        if not pte_none(pte) and not pte_present(arch, pte):
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
