"""Sizes of huge pages, and what system calls do otherwise on them (fs/hugetlbfs/inode.c).

The calls of ``Mm`` ask ``area.huge`` and come here; mm_model/hugetlb.py has the page tables.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from mm_model import state, uapi
from mm_model.arch import X86_64
from mm_model.entry import (
    hugetlb_change_protection,
    move_hugetlb_page_tables,
    unmap_hugepage_range,
)
from mm_model.errors import MmError
from mm_model.frames import clear_frame
from mm_model.mmap import VmArea
from mm_model.shmem import shmem_truncate

if TYPE_CHECKING:
    from mm_model.arch import Arch
    from mm_model.machine import Machine, SharedObject
    from mm_model.mm import Mm

_CONT_PMD_SHIFT = {4096: 4, 16384: 5, 65536: 5}
"""log2 of CONT_PMDS: 32 MiB with 4K pages, 1 GiB with 16K, 16 GiB with 64K."""


def huge_orders(arch: Arch) -> list[int]:
    """log2 of each size of huge pages in base pages, ascending.

    arm64: a run of page entries, a block, a run of blocks, and with 4K pages a block another level
    up. x86-64: 2 MiB and 1 GiB.
    """
    table = int(arch.table_shift)
    if arch.isa == X86_64:
        return [table, 2 * table]
    orders = [int(arch.cont_mask).bit_length(), table]
    orders.append(table + _CONT_PMD_SHIFT[int(arch.page_size)])
    return [*orders, 2 * table] if arch.page_size == 4096 else orders


def check_order(arch: Arch, order: int) -> None:
    """``MmError`` EINVAL for a size that there is none of."""
    orders = huge_orders(arch)
    if order not in orders:
        known = ", ".join(str(int(arch.page_size) << each) for each in orders)
        raise MmError(errno.EINVAL, f"there are no huge pages of that size, but of {known} bytes")


def order_of_flags(arch: Arch, flags: int) -> int:
    """log2 of the page size that the flags of mmap ask for; without one, that of a PMD."""
    shift = (flags & uapi.MAP_HUGE_MASK) >> uapi.MAP_HUGE_SHIFT
    order = shift - int(arch.page_shift) if shift else int(arch.table_shift)
    check_order(arch, order)
    return order


def map_flags(arch: Arch, area: VmArea) -> int:
    """MAP_HUGETLB and the size, as mmap would be given them."""
    if not area.huge:
        return 0
    return uapi.MAP_HUGETLB | (area.huge + int(arch.page_shift)) << uapi.MAP_HUGE_SHIFT


def unmap(mm: Mm, area: VmArea, start: int, end: int, *, keep_markers: bool = False) -> None:
    """Unmap whole pages of a mapping."""
    unmap_hugepage_range(
        mm.machine.arch,
        mm.machine.phys,
        mm.space,
        np.uint64(start),
        np.uint64(end),
        np.int64(area.huge),
        np.int64(keep_markers),
    )


def change_protection(
    mm: Mm, area: VmArea, start: int, end: int, *, uffd_wp: bool = False, resolve: bool = False
) -> None:
    """Give the pages the protection that the mapping has by now, or userfaultfd's, or undo that."""
    hugetlb_change_protection(
        mm.machine.arch,
        mm.machine.phys,
        mm.space,
        np.int64(mm.areas.index(area)),
        np.uint64(start),
        np.uint64(end),
        np.int64(uffd_wp),
        np.int64(resolve),
    )


def move(mm: Mm, area: VmArea, old: int, new: int, length: int, *, clear_uffd_wp: bool) -> None:
    """mremap: ``area`` is the mapping at the new place."""
    move_hugetlb_page_tables(
        mm.machine.arch,
        mm.machine.phys,
        mm.space,
        np.int64(mm.areas.index(area)),
        np.uint64(old),
        np.uint64(new),
        np.uint64(length),
        np.int64(clear_uffd_wp),
    )


def dontneed_range(area: VmArea, start: int, end: int, page_size: int) -> tuple[int, int]:
    """What MADV_DONTNEED drops: no page of which a part only is named at the end.

    ``MmError`` EINVAL where it starts inside one.
    """
    unit = page_size << area.huge
    if start % unit:
        raise MmError(errno.EINVAL, f"madvise: {start:#x} is inside a huge page (hugetlb)")
    return start, max(start, end - end % unit)


def punch_hole(machine: Machine, shared_id: int, first: int, count: int) -> None:
    """Remove whole pages from an object; of those at both ends only the named part is zeroed."""
    found: SharedObject = machine.shared(shared_id)
    pages = 1 << found.huge
    stop = first + count
    hole = -(-first // pages) * pages
    hole_end = max(hole, stop // pages * pages)
    for page in [*range(first, min(hole, stop)), *range(max(hole_end, first), stop)]:
        frame = int(machine.phys.cache[found.first + page]) >> 1
        if frame:
            clear_frame(machine.phys, frame)
    if hole == hole_end:
        return
    for mm in machine.mms:
        for area in mm.areas:
            if area.shared_id == shared_id:
                base = area.start - area.pgoff * machine.page_size
                start = max(area.start, base + hole * machine.page_size)
                end = min(area.end, base + hole_end * machine.page_size)
                unmap(mm, area, start, end, keep_markers=True)
    shmem_truncate(machine.phys, found.first + hole, hole_end - hole)


def status_pages(mm: Mm) -> int:
    """Base pages of hugetlb mapped (HugetlbPages of /proc/PID/status)."""
    return int(mm.space.regs[state.HUGETLB_PAGES])
