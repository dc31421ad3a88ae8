"""PMD-sized pages, and splitting large folios (mm/huge_memory.c, mm/migrate.c).

One entry above the page tables maps a whole folio of the size of such a table. Its bits are those
of a page entry, so soft-dirty is one bit for all its pages. Splitting the *entry* keeps the folio
and maps it by page entries; splitting the *folio* makes single pages of it everywhere.

A fault that finds no huge page and may not make one answers FALLBACK. A block with frame 0 is the
huge zero page. ``DEPOSITED`` counts a page table for each huge page, as the kernel sets one aside,
so that splitting never needs memory.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.anon_folio import thp_vma_allowable_orders, thp_vma_suitable_order
from mm_model.arch import CLEAR_REFS_KEEPS_DBM
from mm_model.asm.fault import hardware_access, ptep_set_access_flags_one
from mm_model.asm.pgtable import (
    PMD_TYPE_TABLE,
    PTE_SOFT_DIRTY,
    U0,
    U1,
    Arch,
    Pte,
    pfn_pte,
    pmd_clear_soft_dirty,
    pmd_mkhuge,
    pmd_mksoft_dirty,
    pmd_pte,
    pmd_soft_dirty,
    pmd_swp_clear_soft_dirty,
    pmd_swp_mksoft_dirty,
    pmd_table,
    pte_advance_pfn,
    pte_clear_soft_dirty,
    pte_clear_uffd_wp,
    pte_dirty,
    pte_mkdirty,
    pte_mkdirty_hw,
    pte_mkold,
    pte_mksoft_dirty,
    pte_mkspecial,
    pte_mkuffd_wp,
    pte_mkwrite,
    pte_mkyoung,
    pte_modify,
    pte_pfn,
    pte_present,
    pte_protnone,
    pte_soft_dirty,
    pte_swp_clear_uffd_wp,
    pte_swp_mksoft_dirty,
    pte_swp_mkuffd_wp,
    pte_swp_soft_dirty,
    pte_uffd_wp,
    pte_write,
    pte_wrprotect,
    pte_wrprotect_keeping_dbm,
)
from mm_model.asm.ptes import contpte_try_unfold, set_ptes
from mm_model.frames import (
    alloc_folio,
    folio_head,
    folio_mapcount,
    folio_nr_pages,
    forget_folio,
    put_folio,
)
from mm_model.huge_swapops import (
    huge_pmd_head,
    is_swap_pmd,
    pmd_migration_entry_readable,
    pmd_migration_entry_shared,
    split_pmd_migration_entry,
)
from mm_model.pagewalk import (
    alloc_table,
    huge_leaf,
    huge_pmd,
    pmd_alloc,
    tables_left,
    walk,
    walk_to,
)
from mm_model.rmap import anon_vma_prepare
from mm_model.state import (
    DEPOSITED,
    FALLBACK,
    HUGE_PMDS,
    MIGRATING,
    N_VMAS,
    N_WP,
    N_ZERO,
    NO_TABLES,
    OK,
    PG_ANON,
    PG_DIRTY,
    PG_EXCLUSIVE,
    PG_LARGE,
    PG_SWAPBACKED,
    PGD,
    RSS,
    V_END,
    V_FLAGS,
    V_OBJECT,
    V_PGOFF,
    V_PROT,
    V_START,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYWRITE,
    VM_SHARED,
    VM_UFFD_WP,
    VM_WRITE,
    Flag,
    Int,
    Phys,
    Space,
)

# --- huge page entries ---


@compiled
def set_huge_pmd(phys: Phys, space: Space, index: Int, pmd: Pte) -> None:
    """Put a huge page where nothing is; the caller has made sure that ``tables_left``."""
    phys.tables[index] = pmd
    phys.ctr[DEPOSITED] += 1
    space.regs[HUGE_PMDS] += 1


@compiled
def clear_huge_pmd(phys: Phys, space: Space, index: Int) -> Pte:
    """Take a huge page's entry away."""
    pmd = phys.tables[index]
    phys.tables[index] = U0
    phys.ctr[DEPOSITED] -= 1
    space.regs[HUGE_PMDS] -= 1
    return pmd


@compiled
def huge_frame(arch: Arch, phys: Phys, pmd: Pte, address: np.uint64) -> Int:
    """The frame that a huge page's entry maps at ``address``; 0: the huge zero page.

    Of a hugetlb page it may be one entry of several: the folio says how far it reaches.
    """
    frame = np.int64(pte_pfn(arch, pmd))
    pages = folio_nr_pages(phys, frame)
    return (frame & -pages) + (np.int64(address >> arch.page_shift) & (pages - 1))


@compiled
def hardware_access_huge(
    arch: Arch, phys: Phys, space: Space, address: np.uint64, write: Int
) -> Int:
    """Let the CPU use the huge page at ``address``: its entry's index, or -1 for a fault."""
    index = huge_leaf(arch, phys, space, address)
    if index >= 0 and hardware_access(arch, phys, index, write):
        return index
    return np.int64(-1)


@compiled
def handle_pmd_fault(
    arch: Arch, phys: Phys, space: Space, vma: Int, address: np.uint64, write: Int
) -> Int:
    """A fault where no page table is: on a huge page, or where one may be made.

    OK, FALLBACK, NO_TABLES, or MIGRATING.
    """
    index = walk_to(arch, phys, space.regs[PGD], address, 1)
    if index >= 0 and phys.tables[index] != U0:
        if pmd_table(phys.tables[index]):
            return FALLBACK
        if is_swap_pmd(arch, phys.tables[index]):
            return MIGRATING
        if write != 0 and not pte_write(phys.tables[index]):
            return do_huge_pmd_wp_page(arch, phys, space, vma, index)
        entry = pte_mkyoung(phys.tables[index])
        if write != 0:
            entry = pte_mkdirty(arch, entry)
        ptep_set_access_flags_one(arch, phys, index, entry)
        return OK
    if space.vmas[vma, V_OBJECT] != U0:
        return FALLBACK
    order = np.int64(arch.table_shift)
    orders = thp_vma_allowable_orders(phys, space.vmas[vma, V_FLAGS])
    if (orders >> order) & 1 == 0 or not thp_vma_suitable_order(arch, space, vma, address, order):
        return FALLBACK
    return do_huge_pmd_anonymous_page(arch, phys, space, vma, address, write)


@compiled
def do_huge_pmd_anonymous_page(
    arch: Arch, phys: Phys, space: Space, vma: Int, address: np.uint64, write: Int
) -> Int:
    """First touch: the huge zero page for a read, a huge page of zeros for a write."""
    index = pmd_alloc(arch, phys, space, address)
    if index < 0 or not tables_left(phys):
        return NO_TABLES
    anon_vma_prepare(arch, phys, space, vma)
    prot = space.vmas[vma, V_PROT]
    if write == 0:
        set_huge_pmd(phys, space, index, pmd_mkhuge(pfn_pte(arch, U0, prot)))
        phys.ctr[N_ZERO] += 1
        return OK
    head = alloc_folio(phys, np.int64(arch.table_shift), True)
    if head < 0:
        return FALLBACK
    map_anon_folio_pmd(arch, phys, space, vma, index, head)
    return OK


@compiled
def map_anon_folio_pmd(
    arch: Arch, phys: Phys, space: Space, vma: Int, index: Int, head: Int
) -> None:
    """Map a new huge page, as written."""
    entry = pmd_mkhuge(pfn_pte(arch, np.uint64(head), space.vmas[vma, V_PROT]))
    entry = pte_mkdirty(arch, entry)
    if space.vmas[vma, V_FLAGS] & VM_WRITE != U0:
        entry = pte_mkwrite(entry)
    for frame in range(head, head + folio_nr_pages(phys, head)):
        phys.flags[frame] = PG_ANON | PG_EXCLUSIVE | PG_SWAPBACKED | PG_LARGE
        phys.mapcount[frame] = 1
    space.regs[RSS] += folio_nr_pages(phys, head)
    set_huge_pmd(phys, space, index, entry)


@compiled
def do_huge_pmd_wp_page(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int) -> Int:
    """A write to a write-protected huge page: all of it becomes writable, or it is split.

    Nothing is copied as a whole: after the split, only the page that is written.
    """
    pmd = phys.tables[index]
    head = np.int64(pte_pfn(arch, pmd))
    # WP_ASYNC drops the mark of the page that is written, and of no other.
    watched = space.vmas[vma, V_FLAGS] & VM_UFFD_WP != U0 and pte_uffd_wp(pmd)
    if head != 0 and not watched and huge_page_is_ours(phys, head):
        for frame in range(head, head + folio_nr_pages(phys, head)):
            phys.flags[frame] |= PG_EXCLUSIVE
        entry = pte_mkdirty(arch, pte_mkyoung(pmd))
        if space.vmas[vma, V_FLAGS] & VM_WRITE != U0:
            entry = pte_mkwrite(entry)
        ptep_set_access_flags_one(arch, phys, index, entry)
        phys.ctr[N_WP] += 1
        return OK
    split_huge_pmd(arch, phys, space, index, False)
    return FALLBACK


@compiled
def huge_page_is_ours(phys: Phys, head: Int) -> Flag:
    """Whether the huge page is exclusive, or this one mapping holds it alone."""
    if phys.flags[head] & PG_EXCLUSIVE:
        return True
    for frame in range(head, head + folio_nr_pages(phys, head)):
        if phys.mapcount[frame] != 1 or phys.slot_of[frame] != 0:
            return False
    return True


@compiled
def split_huge_pmd(arch: Arch, phys: Phys, space: Space, index: Int, freeze: Flag) -> Int:
    """Map a huge page by page entries instead (__split_huge_pmd); index of the first of them.

    Making the new entries dirty makes them soft-dirty; older kernels note it in the folio instead.
    ``freeze``: the entries are on the way to be remapped one by one and keep their bits. Where the
    page is moving, its pages are.
    """
    pmd = clear_huge_pmd(phys, space, index)
    table = alloc_table(arch, phys)
    phys.tables[index] = (np.uint64(table) << arch.page_shift) | PMD_TYPE_TABLE
    first = table << np.int64(arch.table_shift)
    count = np.int64(arch.table_mask) + 1
    if is_swap_pmd(arch, pmd):
        for k in range(count):
            phys.tables[first + k] = split_pmd_migration_entry(arch, pmd, k)
        return first
    head = np.int64(pte_pfn(arch, pmd))
    if head == 0:
        zero = pte_mkspecial(pte_mkyoung(pmd_pte(pmd)))
        for k in range(first, first + count):
            phys.tables[k] = zero
        return first
    pte = pmd_pte(pmd)
    if pte_write(pmd):
        pte = pte_mkwrite(pte)
    if pte_dirty(pmd):
        if freeze:
            pte = pte_mkdirty_hw(pte)
        elif arch.pmd_split_dirty != 0:
            pte = pte_mkdirty(arch, pte)
        else:
            for frame in range(head, head + count):
                phys.flags[frame] |= PG_DIRTY
    if freeze:
        if pmd_soft_dirty(arch, pmd):
            pte = pte | PTE_SOFT_DIRTY
        for k in range(count):
            phys.tables[first + k] = pte_advance_pfn(arch, pte, np.uint64(k))
        return first
    if pmd_soft_dirty(arch, pmd):
        pte = pte_mksoft_dirty(arch, pte)
    set_ptes(arch, phys, first, pte, count)
    return first


@compiled
def split_huge_pmd_address(arch: Arch, phys: Phys, space: Space, address: np.uint64) -> None:
    """Split the entry of the huge page at ``address``, if one is mapped there."""
    index = huge_pmd(arch, phys, space, address)
    if index >= 0:
        split_huge_pmd(arch, phys, space, index, False)


@compiled
def zap_huge_pmd(arch: Arch, phys: Phys, space: Space, index: Int) -> None:
    """Unmap a whole huge page."""
    head = huge_pmd_head(arch, clear_huge_pmd(phys, space, index))
    if head == 0:
        return
    pages = folio_nr_pages(phys, head)
    for frame in range(head, head + pages):
        phys.mapcount[frame] -= 1
    space.regs[RSS] -= pages
    put_folio(phys, head)


@compiled
def zap_huge_range(
    arch: Arch, phys: Phys, space: Space, address: np.uint64, end: np.uint64
) -> Flag:
    """Unmap the huge page at ``address`` if [address, end) is all of it; else split its entry.

    True: it was split, so there are page entries to unmap now.
    """
    index = huge_pmd(arch, phys, space, address)
    if index < 0:
        return False
    if end - address != U1 << arch.pmd_shift:
        split_huge_pmd(arch, phys, space, index, False)
        return True
    zap_huge_pmd(arch, phys, space, index)
    return False


@compiled
def copy_huge_pmd(
    arch: Arch, phys: Phys, parent: Space, child: Space, address: np.uint64, end: np.uint64
) -> Int:
    """Fork: let the child share the huge page at ``address``, if there is one; OK or NO_TABLES."""
    source = huge_pmd(arch, phys, parent, address)
    if source < 0:
        return OK
    target = pmd_alloc(arch, phys, child, address)
    if target < 0 or not tables_left(phys):
        return NO_TABLES
    pmd = phys.tables[source]
    moving = is_swap_pmd(arch, pmd)
    pmd = pmd_migration_entry_shared(arch, pmd) if moving else pte_wrprotect(pmd)
    head = huge_pmd_head(arch, pmd)
    if head != 0:
        pages = folio_nr_pages(phys, head)
        for frame in range(head, head + pages):
            phys.flags[frame] &= ~PG_EXCLUSIVE
            phys.mapcount[frame] += 1
        child.regs[RSS] += pages
    phys.tables[source] = pmd
    pmd = pte_swp_clear_uffd_wp(arch, pmd) if moving else pte_clear_uffd_wp(pte_mkold(pmd))
    set_huge_pmd(phys, child, target, pmd)
    return OK


@compiled
def change_huge_pmd(
    arch: Arch,
    phys: Phys,
    space: Space,
    address: np.uint64,
    end: np.uint64,
    flags: np.uint64,
    newprot: np.uint64,
    try_writable: Int,
) -> Flag:
    """mprotect of the huge page at ``address``; True: only a part of it, so it was split."""
    index = huge_pmd(arch, phys, space, address)
    if index < 0:
        return False
    if end - address != U1 << arch.pmd_shift:
        split_huge_pmd(arch, phys, space, index, False)
        return True
    if is_swap_pmd(arch, phys.tables[index]):
        phys.tables[index] = pmd_migration_entry_readable(arch, phys, phys.tables[index])
        return False
    pmd = pmd_mkhuge(pte_modify(arch, phys.tables[index], newprot))
    if try_writable != 0 and not pte_write(pmd) and can_change_pmd_writable(arch, phys, flags, pmd):
        pmd = pte_mkwrite(pmd)
    phys.tables[index] = pmd
    return False


@compiled
def can_change_pmd_writable(arch: Arch, phys: Phys, flags: np.uint64, pmd: Pte) -> Flag:
    """Whether the huge page may become writable at once, because its next write needs no fault."""
    if pte_protnone(arch, pmd) or (flags & VM_UFFD_WP != U0 and pte_uffd_wp(pmd)):
        return False
    tracked = arch.vm_softdirty != U0 and flags & arch.vm_softdirty == U0
    own = PG_ANON | PG_EXCLUSIVE
    ours = phys.flags[np.int64(pte_pfn(arch, pmd))] & own == own
    return ours and (not tracked or pmd_soft_dirty(arch, pmd))


@compiled
def uffd_wp_huge_pmd(
    arch: Arch,
    phys: Phys,
    space: Space,
    address: np.uint64,
    end: np.uint64,
    flags: np.uint64,
    newprot: np.uint64,
    enable: Int,
    try_writable: Int,
) -> Flag:
    """Write-protect the huge page at ``address`` for userfaultfd, or undo it (change_huge_pmd).

    True: it is done; else there is none, or [address, end) is only a part of it and it was split.
    """
    index = huge_pmd(arch, phys, space, address)
    if index < 0:
        return False
    if end - address != U1 << arch.pmd_shift:
        split_huge_pmd(arch, phys, space, index, False)
        return False
    if is_swap_pmd(arch, phys.tables[index]):
        pmd = pmd_migration_entry_readable(arch, phys, phys.tables[index])
        marked = pte_swp_mkuffd_wp(arch, pmd)
        phys.tables[index] = marked if enable != 0 else pte_swp_clear_uffd_wp(arch, pmd)
        return True
    pmd = pmd_mkhuge(pte_modify(arch, phys.tables[index], newprot))
    if enable != 0:
        pmd = pte_mkuffd_wp(pmd)
    else:
        pmd = pte_clear_uffd_wp(pmd)
        if try_writable != 0 and not pte_write(pmd):
            if can_change_pmd_writable(arch, phys, flags, pmd):
                pmd = pte_mkwrite(pmd)
    phys.tables[index] = pmd
    return True


@compiled
def move_huge_pmd(
    arch: Arch,
    phys: Phys,
    space: Space,
    source: np.uint64,
    target: np.uint64,
    extent: np.uint64,
    clear_uffd_wp: Int,
) -> Flag:
    """mremap of the huge page at ``source``: moved whole, or split and False."""
    old = huge_pmd(arch, phys, space, source)
    if extent == U1 << arch.pmd_shift:
        new = pmd_alloc(arch, phys, space, target)
        if new >= 0 and phys.tables[new] == U0:
            pmd = clear_huge_pmd(phys, space, old)
            if is_swap_pmd(arch, pmd):
                pmd = pmd_swp_mksoft_dirty(arch, pmd)
                if clear_uffd_wp != 0:
                    pmd = pte_swp_clear_uffd_wp(arch, pmd)
            else:
                pmd = pmd_mksoft_dirty(arch, pmd)
                if clear_uffd_wp != 0:
                    pmd = pte_clear_uffd_wp(pmd)
            set_huge_pmd(phys, space, new, pmd)
            return True
    split_huge_pmd(arch, phys, space, old, False)
    return False


@compiled
def clear_soft_dirty_pmd(arch: Arch, phys: Phys, space: Space, address: np.uint64) -> None:
    """clear_refs of the huge page at ``address``, if there is one."""
    index = huge_pmd(arch, phys, space, address)
    if index >= 0:
        pmd = phys.tables[index]
        if is_swap_pmd(arch, pmd):
            phys.tables[index] = pmd_swp_clear_soft_dirty(arch, pmd)
            return
        if pte_dirty(pmd):
            pmd = pte_mkdirty(arch, pmd)
        if arch.clear_refs_mistake == CLEAR_REFS_KEEPS_DBM:
            pmd = pte_wrprotect_keeping_dbm(pmd)
        elif arch.clear_refs_mistake == 0:
            pmd = pte_wrprotect(pmd)
        phys.tables[index] = pmd_clear_soft_dirty(arch, pmd)


@compiled
def clear_young_pmd(arch: Arch, phys: Phys, space: Space, address: np.uint64) -> None:
    """The same for the access flag alone."""
    index = huge_pmd(arch, phys, space, address)
    if index >= 0 and pte_present(arch, phys.tables[index]):
        phys.tables[index] = pte_mkold(phys.tables[index])


@compiled
def follow_huge_pmd(
    arch: Arch,
    phys: Phys,
    space: Space,
    address: np.uint64,
    flags: np.uint64,
    write: Int,
    force: Int,
) -> Int:
    """The frame at ``address`` if a huge page there lets GUP have it, or -1 (follow_huge_pmd).

    As for a page entry: a forced write needs the page to be ours and, where writes are tracked,
    soft-dirty already.
    """
    index = huge_leaf(arch, phys, space, address)
    if index < 0:
        return np.int64(-1)
    pmd = phys.tables[index]
    if write != 0 and not pte_write(pmd):
        if force == 0 or flags & (VM_SHARED | VM_MAYWRITE | VM_WRITE) != VM_MAYWRITE:
            return np.int64(-1)
        own = PG_ANON | PG_EXCLUSIVE
        if phys.flags[np.int64(pte_pfn(arch, pmd))] & own != own:
            return np.int64(-1)
        tracked = arch.vm_softdirty != U0 and flags & arch.vm_softdirty == U0
        if tracked and not pmd_soft_dirty(arch, pmd):
            return np.int64(-1)
        if flags & VM_UFFD_WP != U0 and pte_uffd_wp(pmd):
            return np.int64(-1)
    return huge_frame(arch, phys, pmd, address)


# --- splitting folios ---


@compiled
def folio_index(
    arch: Arch, phys: Phys, space: Space, vma: Int, address: np.uint64, frame: Int
) -> Int:
    """Page offset at which the folio of ``frame``, mapped at ``address``, starts (folio->index)."""
    vmas = space.vmas
    page = vmas[vma, V_PGOFF] + ((address - vmas[vma, V_START]) >> arch.page_shift)
    return np.int64(page) - (frame - folio_head(phys, frame))


@compiled
def folio_likely_mapped_shared(phys: Phys, head: Int) -> Flag:
    """The kernel's guess whether other address spaces map the folio as well."""
    mapped = folio_mapcount(phys, head)
    if mapped <= 1:
        return False
    return mapped > folio_nr_pages(phys, head) or phys.mapcount[head] > 1


@compiled
def leave_or_split_folio(
    arch: Arch, phys: Phys, space: Space, vma: Int, address: np.uint64, frame: Int, count: Int
) -> Int:
    """What advice does with a folio of which it is about ``count`` mapped pages only.

    A folio that others may map is left alone: ``count`` entries are done with. Else it is split: 0,
    look again.
    """
    if folio_likely_mapped_shared(phys, folio_head(phys, frame)):
        return count
    split_folio(arch, phys, space, vma, address, frame)
    return np.int64(0)


@compiled
def page_is_zero_filled(phys: Phys, frame: Int) -> Flag:
    """Whether all bytes of the page are 0."""
    if phys.version[frame] == U0:
        return True
    used = U0
    for word in range(phys.content.shape[1]):
        used |= phys.content[frame, word]
    return used == U0


@compiled
def remap_pte(arch: Arch, phys: Phys, space: Space, vma: Int, index: Int) -> None:
    """What is left of one entry once its folio was split.

    The kernel replaces the entry by a migration entry, which carries soft-dirty as a swap entry
    does, and that by a new one (try_to_migrate, remove_migration_pte). Making the new entry dirty
    also makes it soft-dirty, which newer kernels take back. They also map the zero page in place of
    a page that holds zeros only (try_to_map_unused_to_zeropage).
    """
    contpte_try_unfold(arch, phys, index)
    pte = phys.tables[index]
    frame = np.int64(pte_pfn(arch, pte))
    migrating = pte_swp_mksoft_dirty(arch, U0) if pte_soft_dirty(arch, pte) else U0
    soft_dirty = pte_swp_soft_dirty(arch, migrating)
    if arch.remap_zero_page != 0:
        if space.vmas[vma, V_FLAGS] & VM_LOCKED == U0 and page_is_zero_filled(phys, frame):
            zero = pte_mkspecial(pfn_pte(arch, U0, space.vmas[vma, V_PROT]))
            if soft_dirty:
                zero = pte_mksoft_dirty(arch, zero)
            phys.tables[index] = zero
            phys.mapcount[frame] -= 1
            space.regs[RSS] -= 1
            return
    pte = pte & ~PTE_SOFT_DIRTY
    if pte_dirty(pte):
        pte = pte_mkdirty(arch, pte)
    if soft_dirty:
        pte = pte_mksoft_dirty(arch, pte)
    elif arch.remap_keeps_clean != 0:
        pte = pte_clear_soft_dirty(arch, pte)
    phys.tables[index] = pte


@inlined
def folio_pmd(arch: Arch, phys: Phys, space: Space, address: np.uint64, head: Int) -> Int:
    """Index of the huge entry at ``address`` that maps this folio, or -1."""
    huge = huge_pmd(arch, phys, space, address)
    if huge >= 0 and not is_swap_pmd(arch, phys.tables[huge]):
        if np.int64(pte_pfn(arch, phys.tables[huge])) == head:
            return huge
    return np.int64(-1)


@compiled
def remap_folio(arch: Arch, phys: Phys, space: Space, head: Int, first_page: Int) -> None:
    """Rewrite every entry of one address space that maps a page of the folio.

    ``first_page`` is the folio's index; the mappings are searched by it (rmap_walk_anon).
    """
    vmas = space.vmas
    pages = folio_nr_pages(phys, head)
    for v in range(space.regs[N_VMAS]):
        if vmas[v, V_OBJECT] != U0:
            continue
        start = np.int64(vmas[v, V_PGOFF])
        stop = start + np.int64((vmas[v, V_END] - vmas[v, V_START]) >> arch.page_shift)
        for page in range(max(start, first_page), min(stop, first_page + pages)):
            address = vmas[v, V_START] + (np.uint64(page - start) << arch.page_shift)
            index = walk(arch, phys, space.regs[PGD], address)
            if index < 0:
                huge = folio_pmd(arch, phys, space, address, head)
                if huge < 0:
                    continue
                split_huge_pmd(arch, phys, space, huge, True)
                index = walk(arch, phys, space.regs[PGD], address)
            pte = phys.tables[index]
            if pte_present(arch, pte) and np.int64(pte_pfn(arch, pte)) == head + page - first_page:
                remap_pte(arch, phys, space, v, index)


@compiled
def split_folio(
    arch: Arch, phys: Phys, space: Space, vma: Int, address: np.uint64, frame: Int
) -> None:
    """Split the large folio of ``frame``, mapped at ``address``, into pages.

    Only this address space's entries are rewritten: the callers leave folios alone that others
    share.
    """
    head = folio_head(phys, frame)
    first_page = folio_index(arch, phys, space, vma, address, frame)
    remap_folio(arch, phys, space, head, first_page)
    forget_folio(phys, head)


@compiled
def next_large_folio(
    arch: Arch, phys: Phys, space: Space, vma: Int, start: np.uint64, end: np.uint64
) -> np.uint64:
    """The first address in [start, end) of one VMA where a large folio is mapped; ``end`` if none.

    Page by page, as the debugfs file split_huge_pages looks for them, by follow_page() in 6.1.
    Hugetlb pages never split.
    """
    if space.vmas[vma, V_FLAGS] & VM_HUGETLB != U0:
        return end
    address = start
    while address < end:
        index = walk(arch, phys, space.regs[PGD], address)
        if index >= 0:
            pte = phys.tables[index]
            if pte_present(arch, pte) and phys.flags[np.int64(pte_pfn(arch, pte))] & PG_LARGE:
                if arch.ksm_skips_protnone == 0 or not pte_protnone(arch, pte):
                    return address
        else:
            huge = huge_pmd(arch, phys, space, address)
            if huge >= 0 and not is_swap_pmd(arch, phys.tables[huge]):
                found = pte_pfn(arch, phys.tables[huge]) != U0
                if found and (
                    arch.ksm_skips_protnone == 0 or not pte_protnone(arch, phys.tables[huge])
                ):
                    return address
        address += arch.page_size
    return end
