"""Memory of explicit huge pages, MAP_HUGETLB (mm/hugetlb.c).

A mapping's pages are all of one size, ``V_HUGE``: log2 of it in base pages. They are folios like
others, but are never split, swapped, reclaimed or moved. The pool is the machine's memory: a page
is allocated when it is first touched, in a run of free frames. Every mapping is one of a file of
hugetlbfs, so it has an object; a private one owns its pages (PG_ANON) even when they were only
read.

clear_refs does not walk these mappings, so the soft-dirty bit of an entry never goes, and pagemap
shows VM_SOFTDIRTY only: writes after clear_refs are not seen there (task_mmu_hugetlb.py).

A page is mapped by ``huge_entries`` entries at ``huge_level``; each maps ``huge_step`` base pages.
All functions of generic code that go through a mapping ask for VM_HUGETLB first, as the kernel's
do, and come here.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.asm.hugetlbpage import (
    arch_make_huge_pte,
    get_clear_contig,
    huge_ptep_get,
    huge_ptep_set_access_flags,
    huge_ptep_set_wrprotect,
    set_huge_pte_at,
)
from mm_model.asm.pgtable import (
    U0,
    U1,
    Arch,
    Pte,
    pfn_pte,
    pte_clear_uffd_wp,
    pte_dirty,
    pte_mkdirty,
    pte_mkuffd_wp,
    pte_mkwrite,
    pte_mkyoung,
    pte_modify,
    pte_pfn,
    pte_present,
    pte_uffd_wp,
    pte_write,
    pte_wrprotect,
)
from mm_model.frames import alloc_hugetlb_folio, copy_frame, free_hugetlb_folio
from mm_model.pagewalk import alloc_to, walk_to
from mm_model.rmap import anon_vma_prepare
from mm_model.state import (
    HUGE_PMDS,
    HUGETLB_PAGES,
    N_COW,
    N_WP,
    NO_FRAMES,
    NO_TABLES,
    OK,
    PG_ANON,
    PG_CACHE,
    PG_DIRTY,
    PG_EXCLUSIVE,
    PG_LARGE,
    PGD,
    SIGBUS,
    V_CACHE,
    V_END,
    V_FLAGS,
    V_HUGE,
    V_LIMIT,
    V_PGOFF,
    V_PROT,
    V_START,
    VM_SHARED,
    VM_UFFD_WP,
    VM_WRITE,
    Int,
    Phys,
    Space,
)
from mm_model.swapops import PTE_MARKER_UFFD_WP, make_pte_marker


@inlined
def huge_level(arch: Arch, order: Int) -> Int:
    """The level of the entries that map pages of this order: 0 page entries, 1 and 2 above."""
    return order // np.int64(arch.table_shift)


@inlined
def huge_entries(arch: Arch, order: Int) -> Int:
    """How many entries map one page of this order."""
    return np.int64(1) << (order % np.int64(arch.table_shift))


@inlined
def huge_step(arch: Arch, order: Int) -> Int:
    """How many base pages each of them maps."""
    return np.int64(1) << (huge_level(arch, order) * np.int64(arch.table_shift))


@inlined
def huge_page_size(arch: Arch, order: Int) -> np.uint64:
    """Bytes of a page of this order."""
    return U1 << (arch.page_shift + np.uint64(order))


@compiled
def huge_pte_offset(arch: Arch, phys: Phys, space: Space, address: np.uint64, order: Int) -> Int:
    """Index of the first entry of the page at ``address``, or -1 when a table is missing."""
    base = address & ~(huge_page_size(arch, order) - U1)
    return walk_to(arch, phys, space.regs[PGD], base, huge_level(arch, order))


@compiled
def huge_pte_alloc(arch: Arch, phys: Phys, space: Space, address: np.uint64, order: Int) -> Int:
    """The same, with missing tables allocated; -1 when tables are short."""
    base = address & ~(huge_page_size(arch, order) - U1)
    return alloc_to(arch, phys, space, base, huge_level(arch, order))


@compiled
def map_huge(arch: Arch, phys: Phys, space: Space, index: Int, pte: Pte, order: Int) -> None:
    """Map a page where none is, and count it."""
    pages = np.int64(1) << order
    set_huge_pte_at(arch, phys, index, pte, huge_entries(arch, order), huge_step(arch, order))
    head = np.int64(pte_pfn(arch, pte))
    for frame in range(head, head + pages):
        phys.mapcount[frame] += 1
    space.regs[HUGETLB_PAGES] += pages
    if huge_level(arch, order) > 0:
        space.regs[HUGE_PMDS] += huge_entries(arch, order)


@compiled
def unmap_huge(arch: Arch, phys: Phys, space: Space, index: Int, order: Int) -> Pte:
    """Take a page's entries down and let go of it; what they said together."""
    pages = np.int64(1) << order
    pte = get_clear_contig(arch, phys, index, huge_entries(arch, order))
    head = np.int64(pte_pfn(arch, pte))
    if pte_dirty(pte):
        phys.flags[head] |= PG_DIRTY
    for frame in range(head, head + pages):
        phys.mapcount[frame] -= 1
    space.regs[HUGETLB_PAGES] -= pages
    if huge_level(arch, order) > 0:
        space.regs[HUGE_PMDS] -= huge_entries(arch, order)
    free_hugetlb_folio(phys, head)
    return pte


@compiled
def make_huge_pte(arch: Arch, space: Space, vma: Int, head: Int, writable: Int) -> Pte:
    """The entry for a page: dirty and writable, or neither."""
    order = np.int64(space.vmas[vma, V_HUGE])
    pte = pfn_pte(arch, np.uint64(head), space.vmas[vma, V_PROT])
    if writable != 0:
        pte = pte_mkwrite(pte_mkdirty(arch, pte))
    else:
        pte = pte_wrprotect(pte)
    return arch_make_huge_pte(pte_mkyoung(pte), huge_level(arch, order), huge_entries(arch, order))


# --- faults ---


@compiled
def hugetlb_fault(
    arch: Arch, phys: Phys, space: Space, vma: Int, address: np.uint64, write: Int
) -> Int:
    """One fault in a hugetlb mapping; OK, NO_TABLES, NO_FRAMES or SIGBUS."""
    order = np.int64(space.vmas[vma, V_HUGE])
    count, step = huge_entries(arch, order), huge_step(arch, order)
    index = huge_pte_alloc(arch, phys, space, address, order)
    if index < 0:
        return NO_TABLES
    entry = huge_ptep_get(arch, phys, index, count)
    if not pte_present(arch, entry):
        return hugetlb_no_page(arch, phys, space, vma, index, address, write)
    if write != 0:
        if not pte_write(entry):
            if space.vmas[vma, V_FLAGS] & VM_UFFD_WP != U0 and pte_uffd_wp(entry):
                # WP_ASYNC: having lost the bit is what says that the page was written.
                entry = pte_clear_uffd_wp(entry)
                set_huge_pte_at(arch, phys, index, entry, count, step)
            return hugetlb_wp(arch, phys, space, vma, index)
        entry = pte_mkdirty(arch, entry)
    huge_ptep_set_access_flags(arch, phys, index, pte_mkyoung(entry), count, step)
    return OK


@compiled
def hugetlb_no_page(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, address: np.uint64, write: Int
) -> Int:
    """First touch: the object's page, or a page of zeros; a marker says that it is protected."""
    vmas = space.vmas
    flags = vmas[vma, V_FLAGS]
    order = np.int64(vmas[vma, V_HUGE])
    pages = np.int64(1) << order
    page = vmas[vma, V_PGOFF] + ((address - vmas[vma, V_START]) >> arch.page_shift)
    if page >= vmas[vma, V_LIMIT]:
        return SIGBUS
    shared = flags & VM_SHARED != U0
    position = np.int64(vmas[vma, V_CACHE] + (page & ~np.uint64(pages - 1)))
    head = np.int64(phys.cache[position] >> U1)
    if head == 0:
        if not shared:
            anon_vma_prepare(arch, phys, space, vma)
        head = alloc_hugetlb_folio(phys, order, True)
        if head < 0:
            return NO_FRAMES
        kind = PG_CACHE | PG_DIRTY if shared else PG_ANON | PG_EXCLUSIVE
        for k in range(pages):
            phys.flags[head + k] = PG_LARGE | kind
            if shared:
                phys.cache[position + k] = np.uint64(head + k) << U1
    writable = 1 if shared and flags & VM_WRITE != U0 else 0
    pte = make_huge_pte(arch, space, vma, head, writable)
    if phys.tables[index] != U0:
        pte = pte_mkuffd_wp(pte)
    map_huge(arch, phys, space, index, pte, order)
    if write != 0 and not shared:
        return hugetlb_wp(arch, phys, space, vma, index)
    return OK


@compiled
def hugetlb_wp(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int) -> Int:
    """A write to a write-protected page: made writable if it is ours or shared, else copied.

    A page that is protected for userfaultfd faults again, and has its bit dropped then.
    """
    flags = space.vmas[vma, V_FLAGS]
    order = np.int64(space.vmas[vma, V_HUGE])
    pages = np.int64(1) << order
    count, step = huge_entries(arch, order), huge_step(arch, order)
    entry = huge_ptep_get(arch, phys, index, count)
    if pte_uffd_wp(entry):
        return OK
    head = np.int64(pte_pfn(arch, entry))
    ours = phys.flags[head] & PG_ANON != 0 and phys.mapcount[head] == 1
    if flags & VM_SHARED != U0 or ours:
        if ours:
            for frame in range(head, head + pages):
                phys.flags[frame] |= PG_EXCLUSIVE
        entry = pte_mkdirty(arch, entry)
        if flags & VM_WRITE != U0:
            entry = pte_mkwrite(entry)
        huge_ptep_set_access_flags(arch, phys, index, entry, count, step)
        phys.ctr[N_WP] += 1
        return OK
    anon_vma_prepare(arch, phys, space, vma)
    copy = alloc_hugetlb_folio(phys, order, True)
    if copy < 0:
        return NO_FRAMES
    for k in range(pages):
        if phys.version[head + k] != U0:
            copy_frame(phys, head + k, copy + k)
        phys.flags[copy + k] = PG_LARGE | PG_ANON | PG_EXCLUSIVE
    unmap_huge(arch, phys, space, index, order)
    writable = 1 if flags & VM_WRITE != U0 else 0
    map_huge(arch, phys, space, index, make_huge_pte(arch, space, vma, copy, writable), order)
    phys.ctr[N_COW] += pages
    return OK


# --- whole ranges of one mapping ---


@compiled
def unmap_hugepage_range(
    arch: Arch,
    phys: Phys,
    space: Space,
    start: np.uint64,
    end: np.uint64,
    order: Int,
    keep_markers: Int,
) -> None:
    """Unmap every page of [start, end), which are whole ones.

    ``keep_markers``: the mapping stays, and what was write-protected for userfaultfd is marked.
    """
    marker = make_pte_marker(arch, PTE_MARKER_UFFD_WP)
    count, step = huge_entries(arch, order), huge_step(arch, order)
    address = start
    while address < end:
        index = huge_pte_offset(arch, phys, space, address, order)
        if index >= 0 and phys.tables[index] != U0:
            if pte_present(arch, phys.tables[index]):
                marked = pte_uffd_wp(unmap_huge(arch, phys, space, index, order))
            else:
                get_clear_contig(arch, phys, index, count)
                marked = True
            if marked and keep_markers != 0:
                set_huge_pte_at(arch, phys, index, marker, count, step)
        address += huge_page_size(arch, order)


@compiled
def copy_hugetlb_page_range(arch: Arch, phys: Phys, parent: Space, child: Space, vma: Int) -> Int:
    """Fork: the child shares the pages of one private mapping; OK or NO_TABLES.

    It is not registered with userfaultfd, so its pages are not protected and markers stay behind.
    """
    vmas = parent.vmas
    order = np.int64(vmas[vma, V_HUGE])
    pages = np.int64(1) << order
    count, step = huge_entries(arch, order), huge_step(arch, order)
    address = vmas[vma, V_START]
    while address < vmas[vma, V_END]:
        source = huge_pte_offset(arch, phys, parent, address, order)
        if source >= 0 and pte_present(arch, phys.tables[source]):
            target = huge_pte_alloc(arch, phys, child, address, order)
            if target < 0:
                return NO_TABLES
            entry = huge_ptep_get(arch, phys, source, count)
            head = np.int64(pte_pfn(arch, entry))
            for frame in range(head, head + pages):
                phys.flags[frame] &= ~PG_EXCLUSIVE
            huge_ptep_set_wrprotect(arch, phys, source, count, step)
            entry = pte_clear_uffd_wp(pte_wrprotect(entry))
            map_huge(arch, phys, child, target, entry, order)
        address += huge_page_size(arch, order)
    return OK


@compiled
def hugetlb_change_protection(
    arch: Arch,
    phys: Phys,
    space: Space,
    vma: Int,
    start: np.uint64,
    end: np.uint64,
    uffd_wp: Int,
    uffd_wp_resolve: Int,
) -> Int:
    """mprotect of whole pages of one mapping, whose flags and protection have changed already.

    Or write-protecting them for userfaultfd (``uffd_wp``), which marks those that are not there,
    and undoing it (``uffd_wp_resolve``). OK or NO_TABLES.
    """
    order = np.int64(space.vmas[vma, V_HUGE])
    count, step = huge_entries(arch, order), huge_step(arch, order)
    level = huge_level(arch, order)
    marker = make_pte_marker(arch, PTE_MARKER_UFFD_WP)
    address = start
    while address < end:
        index = huge_pte_offset(arch, phys, space, address, order)
        if index < 0 and uffd_wp != 0:
            index = huge_pte_alloc(arch, phys, space, address, order)
            if index < 0:
                return NO_TABLES
        if index >= 0:
            if pte_present(arch, phys.tables[index]):
                pte = get_clear_contig(arch, phys, index, count)
                pte = pte_modify(arch, pte, space.vmas[vma, V_PROT])
                pte = arch_make_huge_pte(pte, level, count)
                if uffd_wp != 0:
                    pte = pte_mkuffd_wp(pte)
                elif uffd_wp_resolve != 0:
                    pte = pte_clear_uffd_wp(pte)
                set_huge_pte_at(arch, phys, index, pte, count, step)
            elif uffd_wp != 0:
                set_huge_pte_at(arch, phys, index, marker, count, step)
            elif uffd_wp_resolve != 0:
                get_clear_contig(arch, phys, index, count)
        address += huge_page_size(arch, order)
    return OK


@compiled
def move_hugetlb_page_tables(
    arch: Arch,
    phys: Phys,
    space: Space,
    vma: Int,
    source: np.uint64,
    target: np.uint64,
    length: np.uint64,
    clear_uffd_wp: Int,
) -> Int:
    """mremap: move the pages as they are, soft-dirty bits included; OK or NO_TABLES.

    ``vma`` is the mapping at ``target``. ``clear_uffd_wp`` as for move_page_tables.
    """
    order = np.int64(space.vmas[vma, V_HUGE])
    count, step = huge_entries(arch, order), huge_step(arch, order)
    end = source + length
    while source < end:
        old = huge_pte_offset(arch, phys, space, source, order)
        if old >= 0 and phys.tables[old] != U0:
            new = huge_pte_alloc(arch, phys, space, target, order)
            if new < 0:
                return NO_TABLES
            pte = get_clear_contig(arch, phys, old, count)
            if clear_uffd_wp != 0:
                pte = pte_clear_uffd_wp(pte) if pte_present(arch, pte) else U0
            set_huge_pte_at(arch, phys, new, pte, count, step)
        source += huge_page_size(arch, order)
        target += huge_page_size(arch, order)
    return OK
