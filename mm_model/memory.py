"""Faults, copy-on-write, fork and unmapping (mm/memory.c).

``handle_mm_fault`` is entered with the VMA found and the access checked, as by the architecture's
fault handler. Each function answers OK, or one of the SIGBUS/NO_* states of ``state.py``.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.arm64.fault import hardware_access, ptep_set_access_flags
from mm_model.arm64.mmu import pte_alloc, walk
from mm_model.arm64.pgtable import (
    U0,
    U1,
    Arch,
    Pte,
    pfn_pte,
    pte_dirty,
    pte_mkclean,
    pte_mkdirty,
    pte_mkdirty_hw,
    pte_mkold,
    pte_mksoft_dirty,
    pte_mkspecial,
    pte_mkwrite,
    pte_mkyoung,
    pte_none,
    pte_pfn,
    pte_present,
    pte_soft_dirty,
    pte_swp_clear_exclusive,
    pte_swp_exclusive,
    pte_swp_soft_dirty,
    pte_write,
    pte_wrprotect,
    pte_young,
    swp_offset,
)
from mm_model.frames import (
    alloc_frame,
    copy_frame,
    folio_free_swap,
    free_slot,
    page_remove_rmap,
    put_frame,
)
from mm_model.mmap import find_vma
from mm_model.rmap import anon_vma_prepare
from mm_model.shmem import shmem_get_folio
from mm_model.state import (
    FAULT_ADDRESS,
    GROW_STACK,
    HIWATER_RSS,
    LIVELOCK,
    N_COW,
    N_FAULTS,
    N_LIVELOCKS,
    N_SWAPIN,
    N_WP,
    N_ZERO,
    NO_FRAMES,
    NO_TABLES,
    OK,
    PG_ANON,
    PG_CACHE,
    PG_DIRTY,
    PG_EXCLUSIVE,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PGD,
    RETRY_LIMIT,
    RSS,
    SEGV_ACCERR,
    SEGV_MAPERR,
    SIGBUS,
    STATUS,
    USED_SLOTS,
    V_ANON,
    V_CACHE,
    V_END,
    V_FLAGS,
    V_LIMIT,
    V_OBJECT,
    V_PGOFF,
    V_PROT,
    V_START,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_MAYWRITE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    Flag,
    Int,
    Phys,
    Space,
)

_NEW_ANON = PG_ANON | PG_EXCLUSIVE | PG_SWAPBACKED
_FAULT_AROUND_BYTES = np.uint64(65536)


@inlined
def vma_soft_dirty_enabled(arch: Arch, flags: np.uint64) -> Flag:
    """Whether writes must be noticed by faults.

    Tracking exists, and VM_SOFTDIRTY does not cover the mapping.
    """
    return arch.vm_softdirty != U0 and flags & arch.vm_softdirty == U0


@inlined
def pte_needs_soft_dirty_wp(arch: Arch, flags: np.uint64, pte: Pte) -> Flag:
    """A page that must stay write-protected because nobody has noted a write to it yet."""
    return vma_soft_dirty_enabled(arch, flags) and not pte_soft_dirty(arch, pte)


@inlined
def maybe_mkwrite(pte: Pte, flags: np.uint64) -> Pte:
    """Writable only if the mapping is: a forced write into a read-only mapping stays read-only."""
    return pte_mkwrite(pte) if flags & VM_WRITE != U0 else pte


@inlined
def is_cow_mapping(flags: np.uint64) -> Flag:
    return flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE


@inlined
def map_anon_frame(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, frame: Int) -> None:
    """Map a new anonymous frame because of a write."""
    entry = pfn_pte(arch, np.uint64(frame), space.vmas[vma, V_PROT])
    entry = maybe_mkwrite(pte_mkdirty(arch, pte_mkyoung(entry)), space.vmas[vma, V_FLAGS])
    phys.flags[frame] = _NEW_ANON
    phys.mapcount[frame] = 1
    space.regs[RSS] += 1
    phys.tables[index] = entry


@inlined
def do_anonymous_page(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, write: Int
) -> Int:
    """First touch of anonymous memory: the zero page for a read, a frame of zeros for a write."""
    if write == 0:
        phys.tables[index] = pte_mkspecial(pfn_pte(arch, U0, space.vmas[vma, V_PROT]))
        phys.ctr[N_ZERO] += 1
        return OK
    anon_vma_prepare(arch, phys, space, vma)
    frame = alloc_frame(phys, True)
    if frame < 0:
        return NO_FRAMES
    map_anon_frame(arch, phys, space, vma, index, frame)
    return OK


@inlined
def object_position(arch: Arch, space: Space, vma: Int, address: np.uint64) -> Int:
    """Position in ``Phys.cache`` of the object page behind ``address``; -1 beyond its end."""
    vmas = space.vmas
    page = vmas[vma, V_PGOFF] + ((address - vmas[vma, V_START]) >> arch.page_shift)
    if page >= vmas[vma, V_LIMIT]:
        return np.int64(-1)
    return np.int64(vmas[vma, V_CACHE] + page)


@inlined
def map_cache_frame(
    arch: Arch,
    phys: Phys,
    space: Space,
    vma: Int,
    index: Int,
    frame: Int,
    write: Int,
    prefault: Flag,
) -> None:
    """Map a page of a shared object (set_pte_range)."""
    entry = pfn_pte(arch, np.uint64(frame), space.vmas[vma, V_PROT])
    if prefault and arch.dbm != 0:
        # The CPU tells by itself which of the pages mapped on suspicion is used.
        entry = pte_mkold(entry)
    if write != 0:
        entry = maybe_mkwrite(pte_mkdirty(arch, entry), space.vmas[vma, V_FLAGS])
        phys.flags[frame] |= PG_DIRTY
    phys.mapcount[frame] += 1
    space.regs[RSS] += 1
    phys.tables[index] = entry


@compiled
def do_fault_around(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, address: np.uint64
) -> None:
    """A read fault also maps the object's neighbouring pages that are in memory, 64 KiB at most."""
    vmas = space.vmas
    page = address >> arch.page_shift
    window = _FAULT_AROUND_BYTES >> arch.page_shift
    first = page - (page % window)
    start = vmas[vma, V_START] >> arch.page_shift
    if first < start:
        first = start
    table_end = (page | arch.table_mask) + U1
    last = first + window
    if last > table_end:
        last = table_end
    end = vmas[vma, V_END] >> arch.page_shift
    if last > end:
        last = end
    while first < last:
        position = object_position(arch, space, vma, first << arch.page_shift)
        if position < 0:
            return
        cached = phys.cache[position]
        target = index + np.int64(first) - np.int64(page)
        if cached != U0 and cached & U1 == U0 and pte_none(phys.tables[target]):
            frame = np.int64(cached >> U1)
            map_cache_frame(arch, phys, space, vma, target, frame, 0, first != page)
        first += U1


@compiled
def do_fault(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, address: np.uint64, write: Int
) -> Int:
    """First touch of a page of a shared object: read, copy-on-write or shared write."""
    position = object_position(arch, space, vma, address)
    if position < 0:
        return SIGBUS
    if write == 0:
        if _FAULT_AROUND_BYTES >> arch.page_shift > U1:
            do_fault_around(arch, phys, space, vma, index, address)
            if not pte_none(phys.tables[index]):
                return OK
        frame = shmem_get_folio(phys, position)
        if frame < 0:
            return NO_FRAMES
        map_cache_frame(arch, phys, space, vma, index, frame, 0, False)
        return OK
    frame = shmem_get_folio(phys, position)
    if frame < 0:
        return NO_FRAMES
    if space.vmas[vma, V_FLAGS] & VM_SHARED != U0:
        map_cache_frame(arch, phys, space, vma, index, frame, 1, False)
        return OK
    anon_vma_prepare(arch, phys, space, vma)
    copy = alloc_frame(phys, False)
    if copy < 0:
        return NO_FRAMES
    copy_frame(phys, frame, copy)
    map_anon_frame(arch, phys, space, vma, index, copy)
    phys.ctr[N_COW] += 1
    return OK


@inlined
def wp_can_reuse_anon_folio(phys: Phys, frame: Int) -> Flag:
    """Whether this mapping is the page's only holder, an unused swap cache aside."""
    if phys.mapcount[frame] != 1:
        return False
    return phys.slot_of[frame] == 0 or folio_free_swap(phys, frame)


@inlined
def wp_page_reuse(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, pte: Pte) -> None:
    """Make the page writable where it is."""
    entry = maybe_mkwrite(pte_mkdirty(arch, pte_mkyoung(pte)), space.vmas[vma, V_FLAGS])
    ptep_set_access_flags(arch, phys, index, entry)
    phys.ctr[N_WP] += 1


@compiled
def wp_page_copy(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, frame: Int) -> Int:
    """Copy-on-write; the zero page (frame 0) is "copied" by allocating zeros."""
    anon_vma_prepare(arch, phys, space, vma)
    copy = alloc_frame(phys, frame == 0)
    if copy < 0:
        return NO_FRAMES
    if frame != 0:
        copy_frame(phys, frame, copy)
        space.regs[RSS] -= 1
        phys.ctr[N_COW] += 1
    else:
        phys.ctr[N_WP] += 1
    map_anon_frame(arch, phys, space, vma, index, copy)
    if frame != 0:
        page_remove_rmap(phys, frame)
    return OK


@inlined
def do_wp_page(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int) -> Int:
    """A write to a page that is present and write-protected."""
    pte = phys.tables[index]
    frame = np.int64(pte_pfn(arch, pte))
    if space.vmas[vma, V_FLAGS] & VM_SHARED != U0:
        wp_page_reuse(arch, phys, space, vma, index, pte)
        phys.flags[frame] |= PG_DIRTY
        return OK
    if phys.flags[frame] & PG_ANON and (
        phys.flags[frame] & PG_EXCLUSIVE or wp_can_reuse_anon_folio(phys, frame)
    ):
        phys.flags[frame] |= PG_EXCLUSIVE
        wp_page_reuse(arch, phys, space, vma, index, pte)
        return OK
    return wp_page_copy(arch, phys, space, vma, index, frame)


@compiled
def do_swap_page(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, write: Int) -> Int:
    """Bring an anonymous page back from swap.

    A slot that only this entry names is read past the swap cache (the device is synchronous) and
    the page is certainly ours; otherwise the page is in the swap cache, and ours if the entry says
    so.
    """
    orig = phys.tables[index]
    flags = space.vmas[vma, V_FLAGS]
    slot = np.int64(swp_offset(arch, orig))
    frame = phys.slot_frame[slot]
    if phys.flags[frame] & PG_SWAPCACHE == 0 and phys.slot_count[slot] == 1:
        exclusive = True
        phys.slot_count[slot] = 0
        free_slot(phys, slot)
    else:
        phys.flags[frame] |= PG_SWAPCACHE
        exclusive = pte_swp_exclusive(arch, orig)
        phys.slot_count[slot] -= 1
        full = phys.ctr[USED_SLOTS] * 2 > phys.slot_frame.shape[0]
        if full or flags & VM_LOCKED != U0 or (write != 0 and phys.mapcount[frame] == 0):
            folio_free_swap(phys, frame)
    pte = pfn_pte(arch, np.uint64(frame), space.vmas[vma, V_PROT])
    if pte_swp_soft_dirty(arch, orig):
        pte = pte_mksoft_dirty(arch, pte)
    if exclusive or (phys.mapcount[frame] == 0 and phys.slot_of[frame] == 0):
        if arch.kernel < 612:
            # Older kernels make the page writable only for a write fault, and then ask no further.
            if write != 0:
                pte = maybe_mkwrite(pte_mkdirty(arch, pte), flags)
                write = 0
        elif flags & VM_WRITE != U0 and not pte_needs_soft_dirty_wp(arch, flags, pte):
            pte = pte_mkwrite(pte)
            if write != 0:
                pte = pte_mkdirty(arch, pte)
                write = 0
        phys.flags[frame] |= PG_EXCLUSIVE
    phys.flags[frame] |= PG_ANON | PG_SWAPBACKED
    phys.mapcount[frame] += 1
    space.regs[RSS] += 1
    phys.tables[index] = pte
    phys.ctr[N_SWAPIN] += 1
    if write != 0:
        return do_wp_page(arch, phys, space, vma, index)
    return OK


@inlined
def handle_mm_fault(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, address: np.uint64, write: Int
) -> Int:
    """One fault on a mapping that allows the access (or is forced to).

    ``index`` is the entry's position, -1 when its table is missing and must be allocated.
    """
    phys.ctr[N_FAULTS] += 1
    if index < 0:
        index = pte_alloc(arch, phys, space, address)
        if index < 0:
            return NO_TABLES
    pte = phys.tables[index]
    if pte_none(pte):
        if space.vmas[vma, V_OBJECT] != U0:
            return do_fault(arch, phys, space, vma, index, address, write)
        return do_anonymous_page(arch, phys, space, vma, index, write)
    if not pte_present(arch, pte):
        return do_swap_page(arch, phys, space, vma, index, write)
    if write != 0:
        if not pte_write(pte):
            return do_wp_page(arch, phys, space, vma, index)
        # Only without DBM: the CPU could not clear RDONLY of a writable page.
        pte = pte_mkdirty(arch, pte)
    ptep_set_access_flags(arch, phys, index, pte_mkyoung(pte))
    return OK


@inlined
def do_page_fault(
    arch: Arch, phys: Phys, space: Space, index: Int, address: np.uint64, write: Int
) -> Int:
    """The architecture's fault handler: find the mapping, check its rights, handle the fault."""
    vma = find_vma(space, address)
    if vma < 0:
        return SEGV_MAPERR
    flags = space.vmas[vma, V_FLAGS]
    if address < space.vmas[vma, V_START]:
        return GROW_STACK if flags & VM_GROWSDOWN != U0 else SEGV_MAPERR
    needed = VM_WRITE if write != 0 else VM_READ | VM_WRITE | VM_EXEC
    if flags & needed == U0:
        return SEGV_ACCERR
    return handle_mm_fault(arch, phys, space, vma, index, address, write)


@inlined
def access_page(
    arch: Arch, phys: Phys, space: Space, index: Int, address: np.uint64, write: Int
) -> Int:
    """The CPU's access to one page, faulting until it goes through; ``index`` is what walk() says.

    Returns the entry's position, or -1 with STATUS set.
    """
    for _ in range(RETRY_LIMIT):
        if index >= 0 and hardware_access(arch, phys, index, write):
            return index
        status = do_page_fault(arch, phys, space, index, address, write)
        if status != OK:
            phys.ctr[STATUS] = status
            phys.ctr[FAULT_ADDRESS] = np.int64(address)
            return np.int64(-1)
        if index < 0:
            index = walk(arch, phys, space.regs[PGD], address)
    phys.ctr[N_LIVELOCKS] += 1
    phys.ctr[STATUS] = LIVELOCK
    phys.ctr[FAULT_ADDRESS] = np.int64(address)
    return np.int64(-1)


# --- unmapping ---


@inlined
def get_and_clear_full_ptes(arch: Arch, phys: Phys, index: Int, count: Int) -> Pte:
    """Take down ``count`` entries of one folio and gather dirty and young into the first.

    The model's folios are single pages, so ``count`` is 1; the gathering is here for the patch's
    hunk, without which a gathered dirty bit also sets soft-dirty.
    """
    pte = phys.tables[index]
    phys.tables[index] = U0
    for k in range(1, count):
        other = phys.tables[index + k]
        phys.tables[index + k] = U0
        if pte_dirty(other):
            pte = pte_mkdirty_hw(pte | arch.sd_gather)
        if pte_young(other):
            pte = pte_mkyoung(pte)
    return pte


@inlined
def zap_pte(arch: Arch, phys: Phys, space: Space, index: Int) -> None:
    """Take one entry down and let go of what it names."""
    pte = phys.tables[index]
    if pte_none(pte):
        return
    if pte_present(arch, pte):
        pte = get_and_clear_full_ptes(arch, phys, index, 1)
        frame = np.int64(pte_pfn(arch, pte))
        if frame != 0:
            if phys.flags[frame] & PG_CACHE and pte_dirty(pte):
                phys.flags[frame] |= PG_DIRTY
            space.regs[RSS] -= 1
            page_remove_rmap(phys, frame)
        return
    phys.tables[index] = U0
    free_swap_and_cache(phys, np.int64(swp_offset(arch, pte)))


@compiled
def free_swap_and_cache(phys: Phys, slot: Int) -> None:
    """One swap entry less names the slot.

    The last one frees it unless the page is still mapped somewhere.
    """
    phys.slot_count[slot] -= 1
    if phys.slot_count[slot] == 0:
        frame = phys.slot_frame[slot]
        if phys.mapcount[frame] == 0:
            free_slot(phys, slot)
            put_frame(phys, frame)


@compiled
def zap_page_range(arch: Arch, phys: Phys, space: Space, start: np.uint64, end: np.uint64) -> None:
    """Unmap every page of [start, end)."""
    regs = space.regs
    if regs[RSS] > regs[HIWATER_RSS]:
        regs[HIWATER_RSS] = regs[RSS]
    address = start
    while address < end:
        last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
        if last > end:
            last = end
        index = walk(arch, phys, regs[PGD], address)
        if index >= 0:
            for k in range(np.int64((last - address) >> arch.page_shift)):
                if phys.tables[index + k] != U0:
                    zap_pte(arch, phys, space, index + k)
        address = last


# --- fork ---


@compiled
def copy_page_range(arch: Arch, phys: Phys, parent: Space, child: Space, vma: Int) -> Int:
    """Give the child the parent's pages of one VMA (by its index in the parent); OK or NO_TABLES.

    A VMA without an anon_vma has nothing that a fault would not bring back, and is not copied: so
    shared memory starts with empty tables, and its soft-dirty bits stay behind.
    """
    if parent.vmas[vma, V_ANON] == U0:
        return OK
    flags = parent.vmas[vma, V_FLAGS]
    address = parent.vmas[vma, V_START]
    end = parent.vmas[vma, V_END]
    while address < end:
        last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
        if last > end:
            last = end
        source = walk(arch, phys, parent.regs[PGD], address)
        if source >= 0:
            target = np.int64(-1)
            for k in range(np.int64((last - address) >> arch.page_shift)):
                if phys.tables[source + k] == U0:
                    continue
                if target < 0:
                    target = pte_alloc(arch, phys, child, address)
                    if target < 0:
                        return NO_TABLES
                copy_pte(arch, phys, child, source + k, target + k, flags)
        address = last
    return OK


@inlined
def copy_pte(
    arch: Arch, phys: Phys, child: Space, source: Int, target: Int, flags: np.uint64
) -> None:
    """Copy one entry at fork.

    Both sides lose exclusiveness and write permission, soft-dirty is copied.
    """
    pte = phys.tables[source]
    if not pte_present(arch, pte):
        phys.slot_count[np.int64(swp_offset(arch, pte))] += 1
        pte = pte_swp_clear_exclusive(arch, pte)
        phys.tables[source] = pte
        phys.tables[target] = pte
        return
    frame = np.int64(pte_pfn(arch, pte))
    if frame != 0:
        phys.flags[frame] &= ~PG_EXCLUSIVE
        phys.mapcount[frame] += 1
        child.regs[RSS] += 1
    if is_cow_mapping(flags) and pte_write(pte):
        pte = pte_wrprotect(pte)
        phys.tables[source] = pte
    if flags & VM_SHARED != U0:
        pte = pte_mkclean(pte)
    phys.tables[target] = pte_mkold(pte)
