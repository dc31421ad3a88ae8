"""/proc/PID/clear_refs, /proc/PID/pagemap and its PAGEMAP_SCAN ioctl (fs/proc/task_mmu.c)."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mm_model._compiled import compiled, inlined
from mm_model.arch import CLEAR_REFS_KEEPS_DBM
from mm_model.asm.pgtable import (
    U0,
    U1,
    Arch,
    pfn_pte,
    pmd_soft_dirty,
    pmd_swp_soft_dirty,
    pte_clear_soft_dirty,
    pte_mkold,
    pte_pfn,
    pte_present,
    pte_soft_dirty,
    pte_swp_clear_soft_dirty,
    pte_swp_soft_dirty,
    pte_swp_uffd_wp,
    pte_uffd_wp,
    pte_wrprotect,
    pte_wrprotect_keeping_dbm,
    swp_offset,
)
from mm_model.asm.ptes import contpte_try_fold, contpte_try_unfold, ptep_get
from mm_model.huge_memory import clear_soft_dirty_pmd, clear_young_pmd, huge_frame
from mm_model.huge_swapops import huge_pmd_head, is_swap_pmd
from mm_model.pagewalk import huge_leaf, huge_pmd, walk
from mm_model.state import (
    HUGE_PMDS,
    LARGE_FOLIOS,
    N_VMAS,
    PG_ANON,
    PGD,
    V_CACHE,
    V_END,
    V_FILE,
    V_FLAGS,
    V_LIMIT,
    V_OBJECT,
    V_PGOFF,
    V_START,
    VM_HUGETLB,
    Int,
    Phys,
    Space,
)
from mm_model.swapops import is_migration_entry, migration_frame, non_swap_entry, pte_marker_uffd_wp
from mm_model.task_mmu_hugetlb import hugetlb_frames, pagemap_hugetlb_range
from mm_model.uapi import (
    PM_FILE,
    PM_MMAP_EXCLUSIVE,
    PM_PRESENT,
    PM_SOFT_DIRTY,
    PM_SWAP,
    PM_UFFD_WP,
)

ACCESSED: Final = 0  # clear_refs modes as the walker needs them
SOFT_DIRTY: Final = 1


@compiled
def clear_soft_dirty_wrongly(arch: Arch, phys: Phys, first: Int, last: Int) -> None:
    """The same with one of the mistakes of ``hunks.VARIANTS``."""
    for k in range(first, last):
        pte = phys.tables[k]
        if not pte_present(arch, pte):
            phys.tables[k] = pte_swp_clear_soft_dirty(arch, pte)
            continue
        contpte_try_unfold(arch, phys, k)
        pte = pte_clear_soft_dirty(arch, phys.tables[k])
        if arch.clear_refs_mistake == CLEAR_REFS_KEEPS_DBM:
            pte = pte_wrprotect_keeping_dbm(pte)
        phys.tables[k] = pte
        contpte_try_fold(arch, phys, k, pte)


@inlined
def clear_soft_dirty_range(arch: Arch, phys: Phys, first: Int, last: Int) -> None:
    """Write-protect entries [first, last) of one table and clear their bit, swapped or not."""
    # Through a view from 0 on, the loop has no sign to check and becomes vector code.
    entries = phys.tables[first:last]
    for k in range(entries.shape[0]):
        pte = entries[k]
        present = pte_clear_soft_dirty(arch, pte_wrprotect(pte))
        swapped = pte_swp_clear_soft_dirty(arch, pte)
        entries[k] = present if pte_present(arch, pte) else swapped


@compiled
def clear_soft_dirty_folios(arch: Arch, phys: Phys, first: Int, last: Int) -> None:
    """The same where large folios exist: blocks are unfolded, and folded again when they fit."""
    for k in range(first, last):
        pte = phys.tables[k]
        if not pte_present(arch, pte):
            phys.tables[k] = pte_swp_clear_soft_dirty(arch, pte)
            continue
        contpte_try_unfold(arch, phys, k)
        pte = pte_clear_soft_dirty(arch, pte_wrprotect(phys.tables[k]))
        phys.tables[k] = pte
        contpte_try_fold(arch, phys, k, pte)


@compiled
def clear_refs_vma(
    arch: Arch, phys: Phys, space: Space, start: np.uint64, end: np.uint64, kind: Int
) -> None:
    """One VMA: SOFT_DIRTY as above; ACCESSED clears AF, but not of the zero page."""
    address = start
    while address < end:
        last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
        if last > end:
            last = end
        index = walk(arch, phys, space.regs[PGD], address)
        if index >= 0:
            stop = index + np.int64((last - address) >> arch.page_shift)
            if kind == SOFT_DIRTY and arch.clear_refs_mistake != 0:
                clear_soft_dirty_wrongly(arch, phys, index, stop)
            elif kind == SOFT_DIRTY and phys.ctr[LARGE_FOLIOS] != 0:
                clear_soft_dirty_folios(arch, phys, index, stop)
            elif kind == SOFT_DIRTY:
                clear_soft_dirty_range(arch, phys, index, stop)
            else:
                for k in range(index, stop):
                    pte = phys.tables[k]
                    if pte_present(arch, pte) and pte & arch.pfn_mask != U0:
                        phys.tables[k] = pte_mkold(pte)
        elif space.regs[HUGE_PMDS] != 0:
            if kind == SOFT_DIRTY:
                clear_soft_dirty_pmd(arch, phys, space, address)
            else:
                clear_young_pmd(arch, phys, space, address)
        address = last


@compiled
def clear_refs_walk(arch: Arch, phys: Phys, space: Space, mode: Int) -> None:
    """Every VMA that ``mode`` (1 all, 2 anonymous, 3 mapped, 4 soft-dirty) is about."""
    vmas = space.vmas
    for v in range(space.regs[N_VMAS]):
        if vmas[v, V_FLAGS] & VM_HUGETLB != U0:
            continue  # clear_refs_walk_ops has nothing for hugetlb entries
        shared = vmas[v, V_OBJECT] != U0
        if (mode == 2 and shared) or (mode == 3 and not shared):
            continue
        kind = SOFT_DIRTY if mode == 4 else ACCESSED
        clear_refs_vma(arch, phys, space, vmas[v, V_START], vmas[v, V_END], kind)


@compiled
def pagemap_rare_bits(arch: Arch, phys: Phys, pte: np.uint64) -> np.uint64:
    """What pagemap says of userfaultfd's protection, and of entries neither present nor swapped."""
    if pte_present(arch, pte):
        return PM_UFFD_WP if pte_uffd_wp(pte) else U0
    if pte == U0:
        return U0
    bits = PM_UFFD_WP if pte_swp_uffd_wp(arch, pte) else U0
    if not non_swap_entry(arch, pte):
        return bits
    if pte_marker_uffd_wp(arch, pte):
        return PM_UFFD_WP
    if is_migration_entry(arch, pte) and phys.flags[migration_frame(arch, pte)] & PG_ANON == 0:
        bits |= PM_FILE
    return bits


@inlined
def pagemap_range(
    arch: Arch,
    phys: Phys,
    first: Int,
    count: Int,
    vma_bits: np.uint64,
    out: NDArray[np.uint64],
    position: Int,
) -> None:
    """Entries [first, first + count) of one table as pagemap entries, from out[position] on."""
    entries = phys.tables[first : first + count]
    result = out[position : position + count]
    # Two loops: the first has no look-up by frame and becomes vector code.
    here, away = U0, U0
    for k in range(entries.shape[0]):
        pte = entries[k]
        entry = vma_bits
        if pte_present(arch, pte):
            entry |= PM_PRESENT
            soft_dirty = pte_soft_dirty(arch, pte)
            here |= pte
        else:
            soft_dirty = pte_swp_soft_dirty(arch, pte)
            if pte != U0:
                entry |= PM_SWAP
            away |= pte
        if soft_dirty:
            entry |= PM_SOFT_DIRTY
        result[k] = entry
    if arch.sd_contpte_get != U0:
        # This hunk off, a block that is dirty reads as soft-dirty.
        for k in range(entries.shape[0]):
            if pte_soft_dirty(arch, ptep_get(arch, phys, first + k)):
                if pte_present(arch, entries[k]):
                    result[k] |= PM_SOFT_DIRTY
    for k in range(entries.shape[0]):
        pte = entries[k]
        frame = pte_pfn(arch, pte)
        if frame != U0 and pte_present(arch, pte):
            entry = result[k]
            if phys.mapcount[frame] == 1:
                entry |= PM_MMAP_EXCLUSIVE
            if phys.flags[frame] & PG_ANON == 0:
                entry |= PM_FILE
            result[k] = entry
    if away != U0 or pte_uffd_wp(here):
        for k in range(entries.shape[0]):
            result[k] |= pagemap_rare_bits(arch, phys, entries[k])


@compiled
def pagemap_huge(
    arch: Arch,
    phys: Phys,
    index: Int,
    address: np.uint64,
    count: Int,
    vma_bits: np.uint64,
    out: NDArray[np.uint64],
    position: Int,
) -> None:
    """``count`` pages of one huge page, from ``address`` on. Its zero page is a file's, it says."""
    pmd = phys.tables[index]
    if is_swap_pmd(arch, pmd):
        bits = vma_bits | PM_SWAP
        if pmd_swp_soft_dirty(arch, pmd):
            bits |= PM_SOFT_DIRTY
        if pte_swp_uffd_wp(arch, pmd):
            bits |= PM_UFFD_WP
        for k in range(count):
            out[position + k] = bits
        return
    bits = vma_bits | PM_PRESENT
    if pmd_soft_dirty(arch, pmd):
        bits |= PM_SOFT_DIRTY
    if pte_uffd_wp(pmd):
        bits |= PM_UFFD_WP
    for k in range(count):
        frame = huge_frame(arch, phys, pmd, address + (np.uint64(k) << arch.page_shift))
        entry = bits
        if frame != 0 and phys.mapcount[frame] == 1:
            entry |= PM_MMAP_EXCLUSIVE
        if phys.flags[frame] & PG_ANON == 0:
            entry |= PM_FILE
        out[position + k] = entry


@compiled
def pagemap_read(
    arch: Arch, phys: Phys, space: Space, start: np.uint64, out: NDArray[np.uint64]
) -> None:
    """Fill ``out`` with the pagemap entries of the pages from ``start`` on."""
    done = np.int64(0)
    end = start + (np.uint64(out.shape[0]) << arch.page_shift)
    for v in range(space.regs[N_VMAS]):
        address = space.vmas[v, V_START]
        vma_end = space.vmas[v, V_END]
        if vma_end <= start:
            continue
        if address >= end:
            break
        if address < start:
            address = start
        if vma_end > end:
            vma_end = end
        bits = PM_SOFT_DIRTY if space.vmas[v, V_FLAGS] & arch.vm_softdirty != U0 else U0
        if space.vmas[v, V_FLAGS] & VM_HUGETLB != U0:
            position = np.int64((address - start) >> arch.page_shift)
            for k in range(done, position):
                out[k] = U0
            done = position + np.int64((vma_end - address) >> arch.page_shift)
            pagemap_hugetlb_range(arch, phys, space, v, address, vma_end, bits, out, position)
            continue
        while address < vma_end:
            last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
            if last > vma_end:
                last = vma_end
            position = np.int64((address - start) >> arch.page_shift)
            count = np.int64((last - address) >> arch.page_shift)
            for k in range(done, position):
                out[k] = U0
            done = position + count
            index = walk(arch, phys, space.regs[PGD], address)
            if index >= 0:
                pagemap_range(arch, phys, index, count, bits, out, position)
            else:
                huge = huge_pmd(arch, phys, space, address)
                if huge >= 0:
                    pagemap_huge(arch, phys, huge, address, count, bits, out, position)
                else:
                    for k in range(position, position + count):
                        out[k] = bits
            address = last
    for k in range(done, out.shape[0]):
        out[k] = U0


@compiled
def object_frames(
    arch: Arch,
    phys: Phys,
    space: Space,
    vma: Int,
    address: np.uint64,
    count: Int,
    out: NDArray[np.int64],
    position: Int,
) -> None:
    """Where ``out`` has no frame yet, take the shared object's page."""
    vmas = space.vmas
    page = vmas[vma, V_PGOFF] + ((address - vmas[vma, V_START]) >> arch.page_shift)
    for k in range(count):
        if page + np.uint64(k) >= vmas[vma, V_LIMIT]:
            return
        if out[position + k] < 0:
            cached = phys.cache[np.int64(vmas[vma, V_CACHE] + page) + k]
            file_pages = np.int64(vmas[vma, V_FILE])
            if cached == U0 and file_pages != 0:
                # Not in the page cache: its bytes are on the disk.
                cached = phys.cache[np.int64(vmas[vma, V_CACHE] + page) + k + file_pages]
            if cached != U0:
                entry = np.int64(cached >> U1)
                out[position + k] = phys.slot_frame[entry] if cached & U1 != U0 else entry


@inlined
def swapped_frame(arch: Arch, phys: Phys, pte: np.uint64) -> Int:
    """The frame with the content that an entry that is not present stands for; -1 none."""
    if not non_swap_entry(arch, pte):
        return phys.slot_frame[np.int64(swp_offset(arch, pte))]
    return migration_frame(arch, pte) if is_migration_entry(arch, pte) else np.int64(-1)


@compiled
def frames_read(
    arch: Arch, phys: Phys, space: Space, start: np.uint64, out: NDArray[np.int64]
) -> None:
    """Fill ``out`` with the frame that holds each page's content; -1 none.

    It is found through the entry, the swap slot it names, or the shared object.
    """
    for k in range(out.shape[0]):
        out[k] = -1
    end = start + (np.uint64(out.shape[0]) << arch.page_shift)
    for v in range(space.regs[N_VMAS]):
        address = space.vmas[v, V_START]
        vma_end = space.vmas[v, V_END]
        if vma_end <= start:
            continue
        if address >= end:
            break
        if address < start:
            address = start
        if vma_end > end:
            vma_end = end
        if space.vmas[v, V_FLAGS] & VM_HUGETLB != U0:
            position = np.int64((address - start) >> arch.page_shift)
            count = np.int64((vma_end - address) >> arch.page_shift)
            hugetlb_frames(arch, phys, space, v, address, vma_end, out, position)
            object_frames(arch, phys, space, v, address, count, out, position)
            continue
        while address < vma_end:
            last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
            if last > vma_end:
                last = vma_end
            position = np.int64((address - start) >> arch.page_shift)
            count = np.int64((last - address) >> arch.page_shift)
            index = walk(arch, phys, space.regs[PGD], address)
            if index >= 0:
                for k in range(count):
                    pte = phys.tables[index + k]
                    if pte_present(arch, pte):
                        out[position + k] = np.int64((pte & arch.pfn_mask) >> arch.page_shift)
                    elif pte != U0:
                        out[position + k] = swapped_frame(arch, phys, pte)
            else:
                huge = huge_pmd(arch, phys, space, address)
                if huge >= 0:
                    pmd = phys.tables[huge]
                    # Of a page that is moving, an entry that is present would have the same frame.
                    if is_swap_pmd(arch, pmd):
                        pmd = pfn_pte(arch, np.uint64(huge_pmd_head(arch, pmd)), U0)
                    for k in range(count):
                        where = address + (np.uint64(k) << arch.page_shift)
                        out[position + k] = huge_frame(arch, phys, pmd, where)
            if space.vmas[v, V_OBJECT] != U0:
                object_frames(arch, phys, space, v, address, count, out, position)
            address = last


@compiled
def ptes_read(
    arch: Arch, phys: Phys, space: Space, start: np.uint64, out: NDArray[np.uint64]
) -> None:
    """Fill ``out`` with the entries of the pages from ``start`` on, as ptep_get says.

    A huge page's entry shows for each of its pages.
    """
    for k in range(out.shape[0]):
        address = start + (np.uint64(k) << arch.page_shift)
        index = walk(arch, phys, space.regs[PGD], address)
        if index >= 0:
            out[k] = ptep_get(arch, phys, index)
            continue
        huge = huge_leaf(arch, phys, space, address)
        out[k] = U0
        if huge < 0 and huge_pmd(arch, phys, space, address) >= 0:
            out[k] = phys.tables[huge_pmd(arch, phys, space, address)]
        if huge >= 0:
            pmd = phys.tables[huge] & ~arch.pfn_mask
            frame = np.uint64(huge_frame(arch, phys, phys.tables[huge], address))
            out[k] = pmd | (frame << arch.page_shift)


@compiled
def versions_read(
    arch: Arch,
    phys: Phys,
    space: Space,
    start: np.uint64,
    frames: NDArray[np.int64],
    out: NDArray[np.uint64],
) -> None:
    """Fill ``frames`` as frames_read does, and ``out`` with those frames' content stamps."""
    frames_read(arch, phys, space, start, frames)
    for k in range(frames.shape[0]):
        frame = frames[k]
        out[k] = phys.version[frame] if frame > 0 else U0
