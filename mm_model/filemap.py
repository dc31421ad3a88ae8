"""The page cache of files (mm/filemap.c, mm/page-writeback.c) and holes in them (mm/truncate.c).

A file is a run of ``Phys.cache`` like a shared object, followed by a second run of the same length
for what is stored on its disk: the frame with a page's stored bytes, 0 for a hole. A page comes
into the cache by a fault (without readahead), is made dirty by a write through a shared mapping or
by write(2), and is stored by writeback.

File systems want to know of the first write to a page after each writeback (page_mkwrite, dirty
accounting), so a shared mapping of a file is write-protected by default, and again by writeback.
That fault also sets soft-dirty; writeback leaves the bit as it is. A page that leaves the cache or
the page table takes its soft-dirty bit along, like one of shared memory.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.asm.pgtable import (
    U0,
    U1,
    Arch,
    pte_dirty,
    pte_mkclean,
    pte_none,
    pte_pfn,
    pte_present,
    pte_uffd_wp,
    pte_write,
    pte_wrprotect,
)
from mm_model.frames import alloc_frame, copy_frame, free_frame
from mm_model.memory import object_folio, zap_pte
from mm_model.pagewalk import walk
from mm_model.state import (
    NO_FRAMES,
    OK,
    PG_ANON,
    PG_CACHE,
    PG_DIRTY,
    PGD,
    V_CACHE,
    V_END,
    V_FLAGS,
    V_PGOFF,
    V_START,
    VM_UFFD_WP,
    Int,
    Phys,
    Space,
)
from mm_model.swapops import PTE_MARKER_UFFD_WP, make_pte_marker


@inlined
def position_of(arch: Arch, space: Space, vma: Int, address: np.uint64) -> Int:
    vmas = space.vmas
    page = vmas[vma, V_PGOFF] + ((address - vmas[vma, V_START]) >> arch.page_shift)
    return np.int64(vmas[vma, V_CACHE] + page)


@compiled
def filemap_read_ahead(
    arch: Arch, phys: Phys, space: Space, vma: Int, start: np.uint64, end: np.uint64
) -> Int:
    """MADV_WILLNEED: bring the pages behind [start, end) of one VMA into the cache."""
    address = start
    while address < end:
        if object_folio(phys, space, vma, position_of(arch, space, vma, address)) < 0:
            return NO_FRAMES
        address += arch.page_size
    return OK


@compiled
def page_mkclean(arch: Arch, phys: Phys, space: Space, vma: Int) -> None:
    """Write-protect what a shared mapping has of dirty pages, before they are stored."""
    address = space.vmas[vma, V_START]
    end = space.vmas[vma, V_END]
    while address < end:
        last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
        if last > end:
            last = end
        index = walk(arch, phys, space.regs[PGD], address)
        if index >= 0:
            for k in range(index, index + np.int64((last - address) >> arch.page_shift)):
                pte = phys.tables[k]
                if not pte_present(arch, pte) or not (pte_dirty(pte) or pte_write(pte)):
                    continue
                if phys.flags[np.int64(pte_pfn(arch, pte))] & PG_DIRTY:
                    phys.tables[k] = pte_mkclean(pte_wrprotect(pte))
        address = last


@compiled
def filemap_writeback(phys: Phys, first: Int, count: Int) -> Int:
    """Store the dirty pages of a file at cache position ``first``; OK or NO_FRAMES."""
    for position in range(first, first + count):
        frame = np.int64(phys.cache[position] >> U1)
        if frame == 0 or phys.flags[frame] & PG_DIRTY == 0:
            continue
        stored = np.int64(phys.cache[position + count] >> U1)
        if stored == 0:
            stored = alloc_frame(phys, False)
            if stored < 0:
                return NO_FRAMES
            phys.flags[stored] = PG_CACHE
            phys.cache[position + count] = np.uint64(stored) << U1
        copy_frame(phys, frame, stored)
        phys.flags[frame] &= ~PG_DIRTY
    return OK


@compiled
def filemap_drop(phys: Phys, first: Int, count: Int) -> None:
    """drop_caches: clean pages that nobody maps leave the cache."""
    for position in range(first, first + count):
        frame = np.int64(phys.cache[position] >> U1)
        if frame != 0 and phys.mapcount[frame] == 0 and phys.flags[frame] & PG_DIRTY == 0:
            phys.cache[position] = U0
            free_frame(phys, frame)


@compiled
def unmap_mapping_range(
    arch: Arch, phys: Phys, space: Space, vma: Int, start: np.uint64, end: np.uint64
) -> None:
    """Take the object's own pages down from [start, end) of one VMA; private copies stay.

    A page that was write-protected for userfaultfd leaves a marker.
    """
    keep = space.vmas[vma, V_FLAGS] & VM_UFFD_WP != U0
    address = start
    while address < end:
        last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
        if last > end:
            last = end
        index = walk(arch, phys, space.regs[PGD], address)
        if index >= 0:
            for k in range(index, index + np.int64((last - address) >> arch.page_shift)):
                pte = phys.tables[k]
                if pte_none(pte) or not pte_present(arch, pte):
                    continue
                if phys.flags[np.int64(pte_pfn(arch, pte))] & PG_ANON == 0:
                    zap_pte(arch, phys, space, k)
                    if keep and pte_uffd_wp(pte):
                        phys.tables[k] = make_pte_marker(arch, PTE_MARKER_UFFD_WP)
        address = last
