"""Faults, copy-on-write, fork and unmapping (mm/memory.c).

``handle_mm_fault`` is entered with the VMA found and the access checked, as by the architecture's
fault handler. Each function answers OK, or one of the SIGBUS/NO_* states of ``state.py``.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.anon_folio import (
    alloc_anon_folio,
    alloc_swap_folio,
    copy_present_ptes,
    swapin_folio,
    thp_vma_allowable_orders,
    zap_present_ptes,
)
from mm_model.asm.fault import hardware_access, ptep_set_access_flags_one
from mm_model.asm.pgtable import (
    U0,
    U1,
    Arch,
    Pte,
    arch_wants_old_prefaulted_pte,
    pfn_pte,
    pte_clear_uffd_wp,
    pte_dirty,
    pte_maps_one_page,
    pte_mkclean,
    pte_mkdirty,
    pte_mkold,
    pte_mksoft_dirty,
    pte_mkspecial,
    pte_mkuffd_wp,
    pte_mkwrite,
    pte_mkyoung,
    pte_none,
    pte_pfn,
    pte_present,
    pte_soft_dirty,
    pte_swp_clear_exclusive,
    pte_swp_clear_uffd_wp,
    pte_swp_exclusive,
    pte_swp_soft_dirty,
    pte_swp_uffd_wp,
    pte_uffd_wp,
    pte_valid_cont,
    pte_write,
    pte_wrprotect,
    swp_offset,
)
from mm_model.asm.ptes import (
    contpte_orig_pte_is_same,
    contpte_try_unfold,
    ptep_get,
    ptep_set_access_flags,
    set_pte_at,
    set_ptes,
)
from mm_model.frames import (
    alloc_frame,
    copy_frame,
    folio_free_swap,
    folio_head,
    folio_mapcount,
    free_slot,
    page_remove_rmap,
    put_frame,
)
from mm_model.huge_memory import (
    copy_huge_pmd,
    handle_pmd_fault,
    hardware_access_huge,
    zap_huge_range,
)
from mm_model.hugetlb import copy_hugetlb_page_range, hugetlb_fault
from mm_model.mmap import find_vma
from mm_model.pagewalk import pte_alloc, walk
from mm_model.rmap import anon_vma_prepare
from mm_model.shmem import shmem_get_folio
from mm_model.state import (
    FALLBACK,
    FAULT_ADDRESS,
    GROW_STACK,
    HIWATER_RSS,
    HUGE_PMDS,
    LARGE_FOLIOS,
    LIVELOCK,
    MIGRATING,
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
    PG_KSM,
    PG_LARGE,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PGD,
    RETRY_LIMIT,
    RSS,
    SEGV_ACCERR,
    SEGV_MAPERR,
    SIGBUS,
    STATUS,
    THP_ALWAYS,
    USED_SLOTS,
    V_ANON,
    V_CACHE,
    V_END,
    V_FILE,
    V_FLAGS,
    V_LIMIT,
    V_OBJECT,
    V_PGOFF,
    V_PROT,
    V_START,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYWRITE,
    VM_READ,
    VM_SHARED,
    VM_UFFD_WP,
    VM_WRITE,
    Flag,
    Int,
    Phys,
    Space,
)
from mm_model.swapops import (
    SWP_MIGRATION_READ,
    is_migration_entry,
    migration_entry_as,
    migration_frame,
    non_swap_entry,
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
def userfaultfd_pte_wp(flags: np.uint64, pte: Pte) -> Flag:
    """A page of a registered mapping that must stay write-protected for userfaultfd's sake."""
    return pte_uffd_wp(pte) and flags & VM_UFFD_WP != U0


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
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, address: np.uint64, write: Int
) -> Int:
    """First touch of anonymous memory: the zero page for a read, zeros of its own for a write."""
    if write == 0:
        phys.tables[index] = pte_mkspecial(pfn_pte(arch, U0, space.vmas[vma, V_PROT]))
        phys.ctr[N_ZERO] += 1
        return OK
    anon_vma_prepare(arch, phys, space, vma)
    if phys.ctr[THP_ALWAYS] != 0 or space.vmas[vma, V_FLAGS] & VM_HUGEPAGE != U0:
        orders = thp_vma_allowable_orders(phys, space.vmas[vma, V_FLAGS])
        if alloc_anon_folio(arch, phys, space, vma, index, address, orders):
            return OK
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


@compiled
def object_folio(phys: Phys, space: Space, vma: Int, position: Int) -> Int:
    """The frame of an object's page, brought in if need be: -1 out of frames."""
    count = np.int64(space.vmas[vma, V_FILE])
    if count == 0:
        return shmem_get_folio(phys, position)
    entry = phys.cache[position]
    if entry != U0:
        return np.int64(entry >> U1)
    stored = np.int64(phys.cache[position + count] >> U1)
    frame = alloc_frame(phys, stored == 0)
    if frame >= 0:
        if stored != 0:
            copy_frame(phys, stored, frame)
        phys.flags[frame] = PG_CACHE
        phys.cache[position] = np.uint64(frame) << U1
    return frame


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
    if prefault and arch_wants_old_prefaulted_pte(arch):
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
    """First touch of a page of a shared object: read, copy-on-write or shared write.

    Before the object is asked for the page, beyond whose end the access fails, a read maps the
    neighbours (do_fault_around) and a private write gives the mapping its anon_vma, which a later
    fork looks at (do_cow_fault).
    """
    flags = space.vmas[vma, V_FLAGS]
    if flags & VM_HUGETLB != U0:
        return hugetlb_fault(arch, phys, space, vma, address, write)
    private = write != 0 and flags & VM_SHARED == U0
    # A marker may be anywhere in the window: registered mappings get one page a time.
    around = write == 0 and flags & VM_UFFD_WP == U0
    if around and _FAULT_AROUND_BYTES >> arch.page_shift > U1:
        do_fault_around(arch, phys, space, vma, index, address)
        if not pte_none(phys.tables[index]):
            return OK
    if private:
        anon_vma_prepare(arch, phys, space, vma)
    position = object_position(arch, space, vma, address)
    if position < 0:
        return SIGBUS
    frame = object_folio(phys, space, vma, position)
    if frame < 0:
        return NO_FRAMES
    if not private:
        map_cache_frame(arch, phys, space, vma, index, frame, write, False)
        return OK
    copy = alloc_frame(phys, False)
    if copy < 0:
        return NO_FRAMES
    copy_frame(phys, frame, copy)
    map_anon_frame(arch, phys, space, vma, index, copy)
    phys.ctr[N_COW] += 1
    return OK


@inlined
def wp_can_reuse_anon_folio(arch: Arch, phys: Phys, frame: Int) -> Flag:
    """Whether this mapping is the page's only holder, an unused swap cache aside.

    Pages of large folios are not taken over; in older kernels the last mapped one may be.
    """
    if phys.mapcount[frame] != 1 or phys.flags[frame] & PG_KSM:
        return False
    if phys.flags[frame] & PG_LARGE and (
        arch.wp_reuses_large == 0 or folio_mapcount(phys, folio_head(phys, frame)) != 1
    ):
        return False
    return phys.slot_of[frame] == 0 or folio_free_swap(phys, frame)


@inlined
def wp_page_reuse(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, pte: Pte) -> None:
    """Make the page writable where it is."""
    entry = maybe_mkwrite(pte_mkdirty(arch, pte_mkyoung(pte)), space.vmas[vma, V_FLAGS])
    ptep_set_access_flags_one(arch, phys, index, entry)
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


@compiled
def wp_page_unshare(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int) -> Int:
    """A copy of one's own of a page that one does not mean to write (FAULT_FLAG_UNSHARE).

    It stays clean and read-only, and keeps the marks of the page that it copies.
    """
    anon_vma_prepare(arch, phys, space, vma)
    orig = phys.tables[index]
    frame = np.int64(pte_pfn(arch, orig))
    copy = alloc_frame(phys, False)
    if copy < 0:
        return NO_FRAMES
    copy_frame(phys, frame, copy)
    pte = pte_mkyoung(pfn_pte(arch, np.uint64(copy), space.vmas[vma, V_PROT]))
    if pte_soft_dirty(arch, orig):
        pte = pte_mksoft_dirty(arch, pte)
    if pte_uffd_wp(orig):
        pte = pte_mkuffd_wp(pte)
    phys.flags[copy] = _NEW_ANON
    phys.mapcount[copy] = 1
    phys.tables[index] = pte
    page_remove_rmap(phys, frame)
    phys.ctr[N_COW] += 1
    return OK


@inlined
def do_wp_page(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int) -> Int:
    """A write to a page that is present and write-protected."""
    pte = phys.tables[index]
    if userfaultfd_pte_wp(space.vmas[vma, V_FLAGS], pte):
        # WP_ASYNC: having lost the bit is what says that the page was written.
        pte = pte_clear_uffd_wp(pte)
        phys.tables[index] = pte
    frame = np.int64(pte_pfn(arch, pte))
    if space.vmas[vma, V_FLAGS] & VM_SHARED != U0:
        wp_page_reuse(arch, phys, space, vma, index, pte)
        phys.flags[frame] |= PG_DIRTY
        return OK
    if phys.flags[frame] & PG_ANON and (
        phys.flags[frame] & PG_EXCLUSIVE or wp_can_reuse_anon_folio(arch, phys, frame)
    ):
        phys.flags[frame] |= PG_EXCLUSIVE
        wp_page_reuse(arch, phys, space, vma, index, pte)
        return OK
    return wp_page_copy(arch, phys, space, vma, index, frame)


@compiled
def do_wp_page_contpte(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, pte: Pte) -> Int:
    """do_wp_page for an entry that may be one of a contiguous block of anonymous memory."""
    if userfaultfd_pte_wp(space.vmas[vma, V_FLAGS], pte):
        pte = pte_clear_uffd_wp(pte)
        set_pte_at(arch, phys, index, pte)
        pte = ptep_get(arch, phys, index)
    frame = np.int64(pte_pfn(arch, pte))
    if phys.flags[frame] & PG_EXCLUSIVE or wp_can_reuse_anon_folio(arch, phys, frame):
        phys.flags[frame] |= PG_EXCLUSIVE
        entry = maybe_mkwrite(pte_mkdirty(arch, pte_mkyoung(pte)), space.vmas[vma, V_FLAGS])
        ptep_set_access_flags(arch, phys, index, entry)
        phys.ctr[N_WP] += 1
        return OK
    contpte_try_unfold(arch, phys, index)
    return wp_page_copy(arch, phys, space, vma, index, frame)


@compiled
def do_swap_folio(
    arch: Arch,
    phys: Phys,
    space: Space,
    vma: Int,
    index: Int,
    address: np.uint64,
    write: Int,
    order: Int,
) -> Int:
    """Bring 2**order pages back from swap as one folio, past the swap cache; -1 if none is free.

    All of them get the same entry, so a write fault makes all of them dirty that may be writable.
    """
    pages = np.int64(1) << order
    offset = np.int64(address >> arch.page_shift) & (pages - 1)
    first = index - offset
    flags = space.vmas[vma, V_FLAGS]
    orig = phys.tables[first]
    head = swapin_folio(arch, phys, np.int64(swp_offset(arch, orig)), order)
    if head < 0:
        return np.int64(-1)
    pte = pfn_pte(arch, np.uint64(head), space.vmas[vma, V_PROT])
    if pte_swp_soft_dirty(arch, orig):
        pte = pte_mksoft_dirty(arch, pte)
    if pte_swp_uffd_wp(arch, orig):
        pte = pte_mkuffd_wp(pte)
    if (
        flags & VM_WRITE != U0
        and not userfaultfd_pte_wp(flags, pte)
        and not pte_needs_soft_dirty_wp(arch, flags, pte)
    ):
        pte = pte_mkwrite(pte)
        if write != 0:
            pte = pte_mkdirty(arch, pte)
            write = 0
    for frame in range(head, head + pages):
        phys.flags[frame] |= _NEW_ANON
        phys.mapcount[frame] = 1
    space.regs[RSS] += pages
    set_ptes(arch, phys, first, pte, pages)
    phys.ctr[N_SWAPIN] += pages
    if write != 0:
        return do_wp_page_contpte(arch, phys, space, vma, index, ptep_get(arch, phys, index))
    return OK


@compiled
def do_swap_page(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, address: np.uint64, write: Int
) -> Int:
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
        if phys.ctr[THP_ALWAYS] != 0 or flags & VM_HUGEPAGE != U0:
            order = alloc_swap_folio(arch, phys, space, vma, index, address)
            if order > 0:
                status = do_swap_folio(arch, phys, space, vma, index, address, write, order)
                if status >= 0:
                    return status
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
    if pte_swp_uffd_wp(arch, orig):
        pte = pte_mkuffd_wp(pte)
    if (exclusive or (phys.mapcount[frame] == 0 and phys.slot_of[frame] == 0)) and phys.flags[
        frame
    ] & PG_KSM == 0:
        if arch.swapin_writable == 0:
            # Only for a write fault, and then asking no further.
            if write != 0:
                pte = maybe_mkwrite(pte_mkdirty(arch, pte), flags)
                if pte_uffd_wp(pte):
                    pte = pte_mkuffd_wp(pte)
                write = 0
        elif (
            flags & VM_WRITE != U0
            and not userfaultfd_pte_wp(flags, pte)
            and not pte_needs_soft_dirty_wp(arch, flags, pte)
        ):
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


@compiled
def do_non_swap_entry(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, address: np.uint64, write: Int
) -> Int:
    """A fault on an entry that is neither present nor swapped.

    A moving page is waited for (migration_entry_wait), a marker is followed (handle_pte_marker).
    """
    if is_migration_entry(arch, phys.tables[index]):
        return MIGRATING
    if space.vmas[vma, V_FLAGS] & VM_HUGETLB != U0:
        return hugetlb_fault(arch, phys, space, vma, address, write)
    marker = phys.tables[index]
    phys.tables[index] = U0
    if space.vmas[vma, V_FLAGS] & VM_UFFD_WP == U0:
        # Left over from a mapping that is no longer registered: cleared, and the fault comes again.
        return OK
    if space.vmas[vma, V_OBJECT] != U0:
        status = do_fault(arch, phys, space, vma, index, address, write)
    else:
        status = do_anonymous_page(arch, phys, space, vma, index, address, write)
    phys.tables[index] = pte_mkuffd_wp(phys.tables[index]) if status == OK else marker
    return status


@compiled
def handle_fault_without_table(
    arch: Arch, phys: Phys, space: Space, vma: Int, address: np.uint64, write: Int
) -> Int:
    """The start of handle_mm_fault where no page table is: a huge page, or a new table.

    The entry's position in it, or -1 less the answer that ends the fault.
    """
    flags = space.vmas[vma, V_FLAGS]
    if flags & VM_HUGETLB != U0:
        return np.int64(-1) - hugetlb_fault(arch, phys, space, vma, address, write)
    if space.regs[HUGE_PMDS] != 0 or phys.ctr[THP_ALWAYS] != 0 or flags & VM_HUGEPAGE != U0:
        status = handle_pmd_fault(arch, phys, space, vma, address, write)
        if status != FALLBACK:
            return np.int64(-1 - status)
    index = pte_alloc(arch, phys, space, address)
    return index if index >= 0 else np.int64(-1 - NO_TABLES)


@inlined
def handle_mm_fault(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, address: np.uint64, write: Int
) -> Int:
    """One fault on a mapping that allows the access (or is forced to).

    ``index`` is the entry's position, -1 when its table is missing and must be allocated.
    """
    phys.ctr[N_FAULTS] += 1
    if index < 0:
        index = handle_fault_without_table(arch, phys, space, vma, address, write)
        if index < 0:
            return -1 - index
    pte = phys.tables[index]
    # One test tells the page entries that most faults are about from all others.
    if not pte_maps_one_page(pte):
        if pte_none(pte):
            if space.vmas[vma, V_OBJECT] != U0:
                return do_fault(arch, phys, space, vma, index, address, write)
            return do_anonymous_page(arch, phys, space, vma, index, address, write)
        if not pte_present(arch, pte):
            if non_swap_entry(arch, pte):
                return do_non_swap_entry(arch, phys, space, vma, index, address, write)
            return do_swap_page(arch, phys, space, vma, index, address, write)
        if pte_valid_cont(pte):
            return handle_contpte_fault(arch, phys, space, vma, index, address, write)
    if write != 0:
        if not pte_write(pte):
            return do_wp_page(arch, phys, space, vma, index)
        # Only without DBM: the CPU could not clear RDONLY of a writable page.
        pte = pte_mkdirty(arch, pte)
    ptep_set_access_flags_one(arch, phys, index, pte_mkyoung(pte))
    return OK


@compiled
def handle_contpte_fault(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, address: np.uint64, write: Int
) -> Int:
    """The rest of handle_mm_fault for an entry of a contiguous block."""
    if space.vmas[vma, V_FLAGS] & VM_HUGETLB != U0:
        return hugetlb_fault(arch, phys, space, vma, address, write)
    if not contpte_orig_pte_is_same(arch, phys, index):
        return OK
    pte = ptep_get(arch, phys, index)
    if write != 0 and not pte_write(pte):
        return do_wp_page_contpte(arch, phys, space, vma, index, pte)
    if write != 0:
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


@compiled
def access_anywhere(arch: Arch, phys: Phys, space: Space, address: np.uint64, write: Int) -> Int:
    """The CPU's access to a page that a page or a huge page maps, faulting until it goes through.

    Returns the position of the entry that maps it, or -1 with STATUS set.
    """
    for _ in range(RETRY_LIMIT):
        index = hardware_access_huge(arch, phys, space, address, write)
        if index >= 0:
            return index
        index = walk(arch, phys, space.regs[PGD], address)
        if index >= 0 and hardware_access(arch, phys, index, write):
            return index
        status = do_page_fault(arch, phys, space, index, address, write)
        if status != OK:
            phys.ctr[STATUS] = status
            phys.ctr[FAULT_ADDRESS] = np.int64(address)
            return np.int64(-1)
    phys.ctr[N_LIVELOCKS] += 1
    phys.ctr[STATUS] = LIVELOCK
    phys.ctr[FAULT_ADDRESS] = np.int64(address)
    return np.int64(-1)


@inlined
def access_page(
    arch: Arch, phys: Phys, space: Space, index: Int, address: np.uint64, write: Int
) -> Int:
    """The same where no huge page is: ``index`` is what walk() says."""
    if index < 0:
        # There will be a table, or even a huge page.
        return access_anywhere(arch, phys, space, address, write)
    for _ in range(RETRY_LIMIT):
        if hardware_access(arch, phys, index, write):
            return index
        status = do_page_fault(arch, phys, space, index, address, write)
        if status != OK:
            phys.ctr[STATUS] = status
            phys.ctr[FAULT_ADDRESS] = np.int64(address)
            return np.int64(-1)
    phys.ctr[N_LIVELOCKS] += 1
    phys.ctr[STATUS] = LIVELOCK
    phys.ctr[FAULT_ADDRESS] = np.int64(address)
    return np.int64(-1)


# --- unmapping ---


@inlined
def zap_small_pte(arch: Arch, phys: Phys, space: Space, index: Int) -> None:
    """Take one entry down that maps no page of a large folio, and let go of what it names."""
    pte = phys.tables[index]
    if pte_none(pte):
        return
    phys.tables[index] = U0
    if pte_present(arch, pte):
        frame = np.int64(pte_pfn(arch, pte))
        if frame != 0:
            if phys.flags[frame] & PG_CACHE and pte_dirty(pte):
                phys.flags[frame] |= PG_DIRTY
            space.regs[RSS] -= 1
            page_remove_rmap(phys, frame)
        return
    if non_swap_entry(arch, pte):
        if is_migration_entry(arch, pte):
            space.regs[RSS] -= 1
            page_remove_rmap(phys, migration_frame(arch, pte))
        return
    free_swap_and_cache(phys, np.int64(swp_offset(arch, pte)))


@inlined
def zap_pte(arch: Arch, phys: Phys, space: Space, index: Int, most: Int = 1) -> Int:
    """The same for any entry: of a large folio, up to ``most`` entries at once.

    Returns how many entries are done.
    """
    pte = phys.tables[index]
    if pte_present(arch, pte) and phys.flags[np.int64(pte_pfn(arch, pte))] & PG_LARGE:
        return zap_present_ptes(arch, phys, space, index, most)
    zap_small_pte(arch, phys, space, index)
    return 1


@compiled
def zap_folios(arch: Arch, phys: Phys, space: Space, index: Int, stop: Int) -> None:
    """Take down entries [index, stop) of one table where large folios exist."""
    while index < stop:
        if phys.tables[index] != U0:
            index += zap_pte(arch, phys, space, index, stop - index)
        else:
            index += 1


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
        if index < 0 and regs[HUGE_PMDS] != 0 and zap_huge_range(arch, phys, space, address, last):
            index = walk(arch, phys, regs[PGD], address)
        if index >= 0:
            stop = index + np.int64((last - address) >> arch.page_shift)
            if phys.ctr[LARGE_FOLIOS] != 0:
                zap_folios(arch, phys, space, index, stop)
            else:
                for k in range(index, stop):
                    zap_small_pte(arch, phys, space, k)
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
    if flags & VM_HUGETLB != U0:
        return copy_hugetlb_page_range(arch, phys, parent, child, vma)
    address = parent.vmas[vma, V_START]
    end = parent.vmas[vma, V_END]
    while address < end:
        last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
        if last > end:
            last = end
        source = walk(arch, phys, parent.regs[PGD], address)
        if source >= 0:
            count = np.int64((last - address) >> arch.page_shift)
            first = np.int64(0)
            while first < count and phys.tables[source + first] == U0:
                first += 1
            if first < count:
                target = pte_alloc(arch, phys, child, address)
                if target < 0:
                    return NO_TABLES
                if phys.ctr[LARGE_FOLIOS] != 0:
                    copy_folios(arch, phys, child, source, target, first, count, flags)
                else:
                    for k in range(first, count):
                        if phys.tables[source + k] != U0:
                            copy_pte(arch, phys, child, source + k, target + k, flags)
        elif parent.regs[HUGE_PMDS] != 0:
            if copy_huge_pmd(arch, phys, parent, child, address, last) != OK:
                return NO_TABLES
        address = last
    return OK


@compiled
def copy_folios(
    arch: Arch,
    phys: Phys,
    child: Space,
    source: Int,
    target: Int,
    first: Int,
    count: Int,
    flags: np.uint64,
) -> None:
    """Copy entries [first, count) of one table where large folios exist."""
    k = first
    while k < count:
        pte = phys.tables[source + k]
        if pte_present(arch, pte) and phys.flags[np.int64(pte_pfn(arch, pte))] & PG_LARGE:
            k += copy_present_ptes(arch, phys, child, source + k, target + k, count - k, flags)
            continue
        if pte != U0:
            copy_pte(arch, phys, child, source + k, target + k, flags)
        k += 1


@compiled
def copy_migration_entry(
    arch: Arch, phys: Phys, child: Space, source: Int, target: Int, flags: np.uint64
) -> None:
    """Fork while a page moves: in both it will be shared, and so read-only."""
    pte = phys.tables[source]
    frame = migration_frame(arch, pte)
    if is_cow_mapping(flags):
        pte = migration_entry_as(arch, pte, SWP_MIGRATION_READ)
        phys.tables[source] = pte
        phys.flags[frame] &= ~PG_EXCLUSIVE
    phys.mapcount[frame] += 1
    child.regs[RSS] += 1
    phys.tables[target] = pte_swp_clear_uffd_wp(arch, pte)


@inlined
def copy_pte(
    arch: Arch, phys: Phys, child: Space, source: Int, target: Int, flags: np.uint64
) -> None:
    """Copy one entry at fork.

    Both sides lose exclusiveness and write permission, soft-dirty is copied. The child is not
    registered with userfaultfd (no UFFD_FEATURE_EVENT_FORK), so its pages are not protected.
    """
    pte = phys.tables[source]
    if not pte_present(arch, pte):
        if non_swap_entry(arch, pte):
            if is_migration_entry(arch, pte):
                copy_migration_entry(arch, phys, child, source, target, flags)
            return
        phys.slot_count[np.int64(swp_offset(arch, pte))] += 1
        pte = pte_swp_clear_exclusive(arch, pte)
        phys.tables[source] = pte
        phys.tables[target] = pte_swp_clear_uffd_wp(arch, pte)
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
    phys.tables[target] = pte_clear_uffd_wp(pte_mkold(pte))
