"""Mappings: the list of VMAs, and when neighbours become one or one is split (mm/mmap.c, mm/vma.c).

The list is kept in Python, ascending; compiled code sees it as the table ``Space.vmas``. Merging
follows 6.12: VM_SOFTDIRTY never hinders a merge; a *new* mapping makes the whole merged VMA
soft-dirty.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace

import numpy as np

from mm_model._compiled import inlined
from mm_model.errors import MmError
from mm_model.state import N_VMAS, V_END, V_START, VMA_HINT, Int, Space

VM_READ = 0x1
VM_WRITE = 0x2
VM_EXEC = 0x4
VM_SHARED = 0x8
VM_MAYREAD = 0x10
VM_MAYWRITE = 0x20
VM_MAYEXEC = 0x40
VM_MAYSHARE = 0x80
VM_GROWSDOWN = 0x100
VM_UFFD_WP = 0x1000
VM_LOCKED = 0x2000
VM_DONTCOPY = 0x20000
VM_ACCOUNT = 0x100000
VM_NORESERVE = 0x200000
VM_HUGETLB = 0x400000
VM_WIPEONFORK = 0x02000000
VM_MERGEABLE = 0x80000000
VM_SOFTDIRTY = 0x08000000
VM_HUGEPAGE = 0x20000000
VM_NOHUGEPAGE = 0x40000000


@inlined
def find_vma(space: Space, address: np.uint64) -> Int:
    """Index of the first VMA that ends above ``address``, or -1. It may start above it."""
    vmas = space.vmas
    hint = space.regs[VMA_HINT]
    count = space.regs[N_VMAS]
    if hint < count and vmas[hint, V_START] <= address and address < vmas[hint, V_END]:
        return hint
    low = np.int64(0)
    high = count
    while low < high:
        middle = (low + high) >> 1
        if vmas[middle, V_END] > address:
            high = middle
        else:
            low = middle + 1
    if low == count:
        return np.int64(-1)
    space.regs[VMA_HINT] = low
    return low


@dataclass(slots=True)
class VmArea:
    """One mapping, as the kernel's vm_area_struct.

    ``flags``      VM_*; ``page_prot`` is vm_page_prot
    ``pgoff``      in pages
    ``shared_id``  0 for anonymous memory
    ``huge``       hugetlb: log2 of the page size in base pages, else 0
    ``anon_vma``   0 until the first anonymous page; ``chain`` is the length of its chain
    """

    start: int
    end: int
    flags: int
    pgoff: int
    shared_id: int
    name: str
    page_prot: int = 0
    anon_vma: int = 0
    chain: int = 0
    huge: int = 0

    def duplicate(self, start: int, end: int, page_size: int) -> VmArea:
        """The part [start, end) of this mapping as a mapping of its own."""
        return replace(
            self, start=start, end=end, pgoff=self.pgoff + (start - self.start) // page_size
        )


class VmaList:
    """The ascending list of one address space's mappings, with the kernel's merge rules."""

    def __init__(self, page_size: int) -> None:
        self.areas: list[VmArea] = []
        self._page_size = page_size

    def index(self, address: int) -> int:
        """Index of the first mapping that ends above ``address``; the list's length if none."""
        low, high = 0, len(self.areas)
        while low < high:
            middle = (low + high) // 2
            if self.areas[middle].end > address:
                high = middle
            else:
                low = middle + 1
        return low

    def overlapping(self, start: int, end: int) -> list[VmArea]:
        """All mappings that touch [start, end)."""
        found = []
        for area in self.areas[self.index(start) :]:
            if area.start >= end:
                break
            found.append(area)
        return found

    def covers(self, start: int, end: int) -> bool:
        """Whether [start, end) is mapped without a gap."""
        for area in self.overlapping(start, end):
            if area.start > start:
                return False
            start = area.end
        return start >= end

    def split(self, address: int) -> None:
        """Split the mapping that contains ``address`` in its inside; does nothing at a border."""
        k = self.index(address)
        if k == len(self.areas) or self.areas[k].start >= address:
            return
        area = self.areas[k]
        if address % (self._page_size << area.huge):
            raise MmError(errno.EINVAL, f"{address:#x} is inside a huge page (hugetlb)")
        upper = area.duplicate(address, area.end, self._page_size)
        area.end = address
        self.areas.insert(k + 1, upper)

    def remove(self, start: int, end: int) -> list[VmArea]:
        """Take [start, end) out, splitting at its borders; returns what was there."""
        self.split(start)
        self.split(end)
        first = self.index(start)
        gone = self.overlapping(start, end)
        del self.areas[first : first + len(gone)]
        return gone

    def neighbours(self, start: int, end: int) -> tuple[VmArea | None, VmArea | None]:
        """The mappings before and after the empty range [start, end)."""
        k = self.index(start)
        before = self.areas[k - 1] if k > 0 else None
        return before, (self.areas[k] if k < len(self.areas) else None)

    def insert_new(
        self, new: VmArea, *, expand_only: bool = False, next_first: bool = False
    ) -> VmArea:
        """Add a mapping for an empty range, merged with its neighbours if it can be.

        ``expand_only``: with the previous mapping only, as brk does. ``next_first``: as mmap did
        in 6.1, with the next one first; the previous one then must suit that one's anon_vma.
        Returns the mapping that now covers it.
        """
        before, after = self.neighbours(new.start, new.end)
        left = before is not None and before.end == new.start and self._after(before, new)
        right = (
            not expand_only
            and after is not None
            and after.start == new.end
            and self._before(new, after)
            and (next_first or not left or before is None or _anon_compatible(before, after, None))
        )
        if next_first and left and right and before is not None and after is not None:
            left = _anon_compatible(after, before, before)
        if left and before is not None:
            before.end = new.end
            if right and after is not None:
                before.end = after.end
                _dup_anon_vma(before, after)
                self.areas.remove(after)
            return before
        if right and after is not None:
            after.start = new.start
            after.pgoff -= (new.end - new.start) // self._page_size
            return after
        self.areas.insert(self.index(new.start), new)
        return new

    def modify(self, area: VmArea, start: int, end: int, flags: int, name: str) -> VmArea:
        """Prepare [start, end) of ``area`` for new flags or a new name (vma_modify).

        It is merged with its neighbours or split off. Returns the mapping that covers the range;
        the caller sets its flags.
        """
        k = self.areas.index(area)
        before = self.areas[k - 1] if k > 0 else None
        after = self.areas[k + 1] if k + 1 < len(self.areas) else None
        wanted = replace(area.duplicate(start, end, self._page_size), flags=flags, name=name)
        left = (
            start == area.start
            and before is not None
            and before.end == start
            and self._after(before, wanted)
        )
        right = (
            end == area.end
            and after is not None
            and after.start == end
            and self._before(wanted, after)
            and (not left or before is None or _anon_compatible(before, after, None))
        )
        if left and before is not None:
            if right and after is not None:
                _dup_anon_vma(before, after if after.anon_vma else area)
                before.end = after.end
                del self.areas[k : k + 2]
                return before
            _dup_anon_vma(before, area)
            before.end = end
            if end == area.end:
                del self.areas[k]
            else:
                area.pgoff += (end - area.start) // self._page_size
                area.start = end
            return before
        if right and after is not None:
            _dup_anon_vma(after, area)
            after.pgoff -= (after.start - start) // self._page_size
            after.start = start
            if start == area.start:
                del self.areas[k]
            else:
                area.end = start
            return after
        self.split(start)
        self.split(end)
        return self.areas[self.index(start)]

    def _after(self, before: VmArea, new: VmArea) -> bool:
        pages = (before.end - before.start) // self._page_size
        return (
            _mergeable(before, new)
            and _anon_compatible(new, before, before)
            and before.pgoff + pages == new.pgoff
        )

    def _before(self, new: VmArea, after: VmArea) -> bool:
        pages = (new.end - new.start) // self._page_size
        return (
            _mergeable(after, new)
            and _anon_compatible(new, after, after)
            and after.pgoff == new.pgoff + pages
        )


def _mergeable(area: VmArea, new: VmArea) -> bool:
    return (
        not (area.flags | new.flags) & VM_HUGETLB
        and (area.flags ^ new.flags) & ~VM_SOFTDIRTY == 0
        and area.shared_id == new.shared_id
        and area.name == new.name
    )


def _anon_compatible(a: VmArea, b: VmArea, kept: VmArea | None) -> bool:
    """Whether two anon_vmas allow a merge; the chain of ``kept`` must not be a forked one."""
    if (not a.anon_vma or not b.anon_vma) and (kept is None or kept.chain == 1):
        return True
    return a.anon_vma == b.anon_vma


def _dup_anon_vma(target: VmArea, source: VmArea) -> None:
    if source.anon_vma and not target.anon_vma:
        target.anon_vma = source.anon_vma
        target.chain = source.chain
