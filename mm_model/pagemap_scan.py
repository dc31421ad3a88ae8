"""The PAGEMAP_SCAN ioctl (fs/proc/task_mmu.c: do_pagemap_scan and the walk under it).

It reports runs of pages of the wanted categories and, with PM_SCAN_WP_MATCHING, write-protects for
userfaultfd those that were written since they were last protected: read and reset in one step.

Two short cuts of the kernel show from outside. Without a buffer, PM_SCAN_WP_MATCHING protects every
page whatever the categories. And asked for PAGE_IS_WRITTEN alone, it takes an empty entry of an
existing table for written, which otherwise belongs to no category.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mm_model._compiled import compiled, inlined
from mm_model.asm.pgtable import (
    U0,
    U1,
    Arch,
    Pte,
    pmd_soft_dirty,
    pmd_swp_soft_dirty,
    pte_none,
    pte_pfn,
    pte_present,
    pte_soft_dirty,
    pte_swp_soft_dirty,
    pte_swp_uffd_wp,
    pte_uffd_wp,
)
from mm_model.asm.ptes import ptep_get
from mm_model.huge_memory import uffd_wp_huge_pmd
from mm_model.huge_swapops import is_swap_pmd
from mm_model.hugetlb import hugetlb_change_protection
from mm_model.pagewalk import huge_pmd, walk
from mm_model.state import (
    N_VMAS,
    PG_ANON,
    PGD,
    V_END,
    V_FLAGS,
    V_HUGE,
    V_PROT,
    V_START,
    VM_HUGETLB,
    VM_UFFD_WP,
    Flag,
    Int,
    Phys,
    Space,
)
from mm_model.swapops import is_migration_entry, migration_frame, pte_swp_uffd_wp_any
from mm_model.task_mmu_hugetlb import hugetlb_page_end, pagemap_hugetlb_category
from mm_model.userfaultfd import uffd_wp_pte, uffd_wp_range

# The arguments, as struct pm_scan_arg has them, and what the walk remembers.
SCAN_START: Final = 0
SCAN_END: Final = 1
SCAN_FLAGS: Final = 2
SCAN_VEC_LEN: Final = 3
SCAN_MAX_PAGES: Final = 4
SCAN_INVERTED: Final = 5
SCAN_MASK: Final = 6
SCAN_ANYOF: Final = 7
SCAN_RETURN: Final = 8
SCAN_WALK_END: Final = 9
SCAN_FOUND_PAGES: Final = 10
SCAN_BACKED_OUT: Final = 11

_WPALLOWED: Final = np.uint64(1 << 0)
_WRITTEN: Final = np.uint64(1 << 1)
_FILE: Final = np.uint64(1 << 2)
_PRESENT: Final = np.uint64(1 << 3)
_SWAPPED: Final = np.uint64(1 << 4)
_PFNZERO: Final = np.uint64(1 << 5)
_HUGE: Final = np.uint64(1 << 6)
_SOFT_DIRTY: Final = np.uint64(1 << 7)
_WP_MATCHING: Final = np.uint64(1 << 0)
_CHECK_WPASYNC: Final = np.uint64(1 << 1)

_NOT_TRACKED: Final = -1


@inlined
def pagemap_page_category(arch: Arch, phys: Phys, pte: np.uint64) -> np.uint64:
    """The categories of one entry, those of its mapping aside."""
    categories = U0
    if pte_present(arch, pte):
        categories |= _PRESENT
        if not pte_uffd_wp(pte):
            categories |= _WRITTEN
        frame = np.int64(pte_pfn(arch, pte))
        if frame == 0:
            categories |= _PFNZERO
        elif phys.flags[frame] & PG_ANON == 0:
            categories |= _FILE
        if pte_soft_dirty(arch, pte):
            categories |= _SOFT_DIRTY
    elif not pte_none(pte):
        categories |= _SWAPPED
        if not pte_swp_uffd_wp_any(arch, pte):
            categories |= _WRITTEN
        if is_migration_entry(arch, pte) and phys.flags[migration_frame(arch, pte)] & PG_ANON == 0:
            categories |= _FILE
        if pte_swp_soft_dirty(arch, pte):
            categories |= _SOFT_DIRTY
    return categories


@inlined
def is_interesting_page(args: NDArray[np.uint64], categories: np.uint64) -> Flag:
    categories = categories ^ args[SCAN_INVERTED]
    if categories & args[SCAN_MASK] != args[SCAN_MASK]:
        return False
    return args[SCAN_ANYOF] == U0 or categories & args[SCAN_ANYOF] != U0


@inlined
def is_interesting_vma(args: NDArray[np.uint64], categories: np.uint64) -> Flag:
    required = args[SCAN_MASK] & _WPALLOWED
    return (categories ^ args[SCAN_INVERTED]) & required == required


@compiled
def scan_output(
    arch: Arch,
    args: NDArray[np.uint64],
    regions: NDArray[np.uint64],
    count: Int,
    categories: np.uint64,
    start: np.uint64,
    end: np.uint64,
) -> Int:
    """Report [start, end); returns the number of regions then.

    Where it does not fit, SCAN_WALK_END is set to where the report ends.
    """
    categories &= args[SCAN_RETURN]
    pages = (end - start) >> arch.page_shift
    room = args[SCAN_MAX_PAGES] - args[SCAN_FOUND_PAGES]
    if pages > room:
        pages = room
        end = start + (room << arch.page_shift)
        args[SCAN_WALK_END] = end
        if pages == U0:
            return count
    joins = count > 0 and regions[count - 1, 1] == start and regions[count - 1, 2] == categories
    if joins:
        regions[count - 1, 1] = end
    else:
        if np.uint64(count) >= args[SCAN_VEC_LEN]:
            args[SCAN_WALK_END] = start
            return count
        regions[count, 0] = start
        regions[count, 1] = end
        regions[count, 2] = categories
        count += 1
    args[SCAN_FOUND_PAGES] += pages
    return count


@compiled
def scan_backout(
    args: NDArray[np.uint64],
    regions: NDArray[np.uint64],
    count: Int,
    found: Int,
    pages: np.uint64,
    start: np.uint64,
) -> None:
    """Take back what was reported last, from ``start`` on; ``count`` and ``pages`` from before."""
    if found > count:
        regions[count] = U0
    elif count > 0 and args[SCAN_FOUND_PAGES] != pages:
        regions[count - 1, 1] = start
    args[SCAN_FOUND_PAGES] = pages
    args[SCAN_WALK_END] = U0


@compiled
def scan_hole(
    arch: Arch,
    phys: Phys,
    space: Space,
    vma: Int,
    start: np.uint64,
    end: np.uint64,
    vma_category: np.uint64,
    args: NDArray[np.uint64],
    regions: NDArray[np.uint64],
    count: Int,
) -> Int:
    """A range without a table."""
    if not is_interesting_page(args, vma_category):
        return count
    if args[SCAN_VEC_LEN] != U0:
        count = scan_output(arch, args, regions, count, vma_category, start, end)
        if args[SCAN_WALK_END] != U0:
            end = args[SCAN_WALK_END]
    if end != start and args[SCAN_FLAGS] & _WP_MATCHING != U0:
        flags = space.vmas[vma, V_FLAGS]
        if flags & VM_HUGETLB != U0:
            hugetlb_change_protection(arch, phys, space, vma, start, end, 1, 0)
            return count
        uffd_wp_range(arch, phys, space, start, end, flags, space.vmas[vma, V_PROT], 1, 0)
    return count


@compiled
def pagemap_thp_category(arch: Arch, pmd: Pte) -> np.uint64:
    """The categories of a huge page's entry, those of its mapping aside."""
    if is_swap_pmd(arch, pmd):
        categories = _HUGE | _SWAPPED
        if not pte_swp_uffd_wp(arch, pmd):
            categories |= _WRITTEN
        if pmd_swp_soft_dirty(arch, pmd):
            categories |= _SOFT_DIRTY
        return categories
    categories = _HUGE | _PRESENT
    if not pte_uffd_wp(pmd):
        categories |= _WRITTEN
    if pte_pfn(arch, pmd) == U0:
        categories |= _PFNZERO
    if pmd_soft_dirty(arch, pmd):
        categories |= _SOFT_DIRTY
    return categories


@compiled
def scan_huge_page(
    arch: Arch,
    phys: Phys,
    space: Space,
    vma: Int,
    start: np.uint64,
    end: np.uint64,
    vma_category: np.uint64,
    args: NDArray[np.uint64],
    regions: NDArray[np.uint64],
    count: Int,
) -> Int:
    """[start, end) of one huge page (pagemap_scan_thp_entry); -1: it was split, scan the table.

    That is where only a part of it is to be write-protected.
    """
    index = huge_pmd(arch, phys, space, start)
    pmd = phys.tables[index]
    categories = vma_category | pagemap_thp_category(arch, pmd)
    if not is_interesting_page(args, categories):
        return count
    found, pages = count, args[SCAN_FOUND_PAGES]
    last = end
    if args[SCAN_VEC_LEN] != U0:
        found = scan_output(arch, args, regions, count, categories, start, end)
        if args[SCAN_WALK_END] != U0:
            last = args[SCAN_WALK_END]
    if start == last or args[SCAN_FLAGS] & _WP_MATCHING == U0 or categories & _WRITTEN == U0:
        return found
    flags, prot = space.vmas[vma, V_FLAGS], space.vmas[vma, V_PROT]
    if not uffd_wp_huge_pmd(arch, phys, space, start, last, flags, prot, 1, 0):
        scan_backout(args, regions, count, found, pages, start)
        return np.int64(-1)
    return found


@compiled
def scan_hugetlb_range(
    arch: Arch,
    phys: Phys,
    space: Space,
    vma: Int,
    start: np.uint64,
    end: np.uint64,
    vma_category: np.uint64,
    args: NDArray[np.uint64],
    regions: NDArray[np.uint64],
    count: Int,
) -> Int:
    """[start, end) of a hugetlb mapping, page by page (pagemap_scan_hugetlb_entry).

    A page is write-protected only as a whole, and the kernel takes only one of PMD size for whole:
    of any other the report is taken back, the end of the walk noted, and the walk goes on.
    """
    order = np.int64(space.vmas[vma, V_HUGE])
    protect = args[SCAN_FLAGS] & _WP_MATCHING != U0
    address = start
    while address < end and args[SCAN_WALK_END] == U0:
        last = hugetlb_page_end(arch, address, end, order)
        first, address = address, last
        categories = pagemap_hugetlb_category(arch, phys, space, vma, first)
        if categories == U0:
            count = scan_hole(
                arch, phys, space, vma, first, last, vma_category, args, regions, count
            )
            continue
        categories |= vma_category
        if not is_interesting_page(args, categories):
            continue
        found, pages = count, args[SCAN_FOUND_PAGES]
        if args[SCAN_VEC_LEN] != U0:
            found = scan_output(arch, args, regions, count, categories, first, last)
            if args[SCAN_WALK_END] != U0:
                last = args[SCAN_WALK_END]
        if not protect or first == last or categories & _WRITTEN == U0:
            count = found
        elif last - first != U1 << arch.pmd_shift:
            scan_backout(args, regions, count, found, pages, first)
            args[SCAN_BACKED_OUT] = first
        else:
            hugetlb_change_protection(arch, phys, space, vma, first, last, 1, 0)
            count = found
    return count


@compiled
def scan_table(
    arch: Arch,
    phys: Phys,
    space: Space,
    vma: Int,
    index: Int,
    start: np.uint64,
    end: np.uint64,
    vma_category: np.uint64,
    args: NDArray[np.uint64],
    regions: NDArray[np.uint64],
    count: Int,
) -> Int:
    """The entries of one table from ``index`` on."""
    vec = args[SCAN_VEC_LEN] != U0
    protect = args[SCAN_FLAGS] & _WP_MATCHING != U0
    only_written = (
        args[SCAN_ANYOF] == U0
        and args[SCAN_INVERTED] == U0
        and args[SCAN_MASK] == _WRITTEN
        and args[SCAN_RETURN] == _WRITTEN
    )
    flags = space.vmas[vma, V_FLAGS]
    prot = space.vmas[vma, V_PROT]
    for k in range(np.int64((end - start) >> arch.page_shift)):
        pte = ptep_get(arch, phys, index + k)
        if only_written or (protect and not vec):
            if pte_present(arch, pte):
                written = not pte_uffd_wp(pte)
            else:
                written = not pte_swp_uffd_wp_any(arch, pte)
            if not written:
                continue
            categories = vma_category | _WRITTEN
        else:
            categories = vma_category | pagemap_page_category(arch, phys, pte)
            if not is_interesting_page(args, categories):
                continue
        address = start + (np.uint64(k) << arch.page_shift)
        if vec:
            before = args[SCAN_FOUND_PAGES]
            page_end = address + arch.page_size
            count = scan_output(arch, args, regions, count, categories, address, page_end)
            if args[SCAN_FOUND_PAGES] == before:
                return count
        if protect and categories & _WRITTEN != U0:
            uffd_wp_pte(arch, phys, index + k, flags, prot, 0)
    return count


@compiled
def pagemap_scan(
    arch: Arch,
    phys: Phys,
    space: Space,
    args: NDArray[np.uint64],
    regions: NDArray[np.uint64],
) -> Int:
    """Scan; the number of ``regions`` (start, end, categories) found, -1 for EPERM.

    ``args[SCAN_WALK_END]`` is where the scan ended. The caller has made sure that tables suffice.
    """
    vmas = space.vmas
    count = np.int64(0)
    for v in range(space.regs[N_VMAS]):
        address = vmas[v, V_START]
        end = vmas[v, V_END]
        if end <= args[SCAN_START]:
            continue
        if address >= args[SCAN_END]:
            break
        if address < args[SCAN_START]:
            address = args[SCAN_START]
        if end > args[SCAN_END]:
            end = args[SCAN_END]
        category = U0
        if vmas[v, V_FLAGS] & VM_UFFD_WP != U0:
            category |= _WPALLOWED
        elif args[SCAN_FLAGS] & _CHECK_WPASYNC != U0:
            return np.int64(_NOT_TRACKED)
        if vmas[v, V_FLAGS] & arch.vm_softdirty != U0:
            category |= _SOFT_DIRTY
        if not is_interesting_vma(args, category):
            continue
        if vmas[v, V_FLAGS] & VM_HUGETLB != U0:
            count = scan_hugetlb_range(
                arch, phys, space, v, address, end, category, args, regions, count
            )
            if args[SCAN_WALK_END] != U0:
                return count
            continue
        while address < end:
            last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
            if last > end:
                last = end
            index = walk(arch, phys, space.regs[PGD], address)
            if index < 0 and huge_pmd(arch, phys, space, address) >= 0:
                found = scan_huge_page(
                    arch, phys, space, v, address, last, category, args, regions, count
                )
                if found >= 0:
                    count = found
                    if args[SCAN_WALK_END] != U0:
                        return count
                    address = last
                    continue
                index = walk(arch, phys, space.regs[PGD], address)
            if index >= 0:
                count = scan_table(
                    arch, phys, space, v, index, address, last, category, args, regions, count
                )
            else:
                count = scan_hole(
                    arch, phys, space, v, address, last, category, args, regions, count
                )
            if args[SCAN_WALK_END] != U0:
                return count
            address = last
    args[SCAN_WALK_END] = args[SCAN_END]
    if args[SCAN_BACKED_OUT] != U0:
        args[SCAN_WALK_END] = args[SCAN_BACKED_OUT]
    return count
