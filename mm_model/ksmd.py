"""What ksmd does in a full scan: which pages merge, and into which (mm/ksm.c)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mm_model import state
from mm_model.entry import break_ksm_range, ksm_candidate, ksm_merge_page
from mm_model.errors import MmError
from mm_model.frames import folio_head
from mm_model.mmap import VM_HUGETLB, VM_MERGEABLE, VM_SHARED, VmArea

if TYPE_CHECKING:
    from mm_model.machine import Machine
    from mm_model.mm import Mm

MAX_PAGE_SHARING = 256
"""Mappings of one shared page; further equal pages start another (max_page_sharing's default)."""

_MOST_DIGESTS = 1 << 16


@dataclass(slots=True)
class _Page:
    """A page in the unstable tree: where it was seen."""

    mm: Mm
    vma: int
    address: int
    frame: int


@dataclass(slots=True)
class Ksmd:
    """One machine's scanner. ``mms`` are the processes that advised MADV_MERGEABLE, in order."""

    machine: Machine
    mms: list[Mm] = field(default_factory=list)
    _checksums: dict[tuple[Mm, int], bytes] = field(default_factory=dict)
    _digests: dict[int, bytes] = field(default_factory=dict)
    _same: dict[int, int] = field(default_factory=dict)

    def enter(self, mm: Mm) -> None:
        """The process has memory that may be merged."""
        if mm not in self.mms:
            self.mms.append(mm)

    def scan(self) -> None:
        """Scan until nothing more merges.

        A page is compared with shared pages first (the stable tree), then, if it has not changed
        since the last scan that saw it (rmap_item->oldchecksum), with such pages of the same scan
        (the unstable tree). Pages that merge are taken out of their large folios first;
        two of the same folio only split it, and merge in a later scan.
        """
        machine = self.machine
        shared: dict[bytes, list[int]] = {}
        for frame in np.flatnonzero(machine.phys.flags & state.PG_KSM).tolist():
            shared.setdefault(self._digest(frame), []).append(frame)
        while self._scan_once(shared):
            pass

    def _scan_once(self, shared: dict[bytes, list[int]]) -> bool:
        """One scan (cmp_and_merge_page of each page); whether another may merge more.

        For a page was new or changed, or a folio was split of which two pages may merge now.
        """
        phys = self.machine.phys
        unstable: dict[bytes, _Page] = {}
        before, self._checksums = self._checksums, {}
        again = False
        for page in self._pages():
            content = self._digest(page.frame)
            item = (page.mm, page.address)
            checksum = before.get(item, b"")
            self._checksums[item] = checksum
            if phys.flags[page.frame] & state.PG_KSM:
                continue
            room = [k for k in shared.get(content, ()) if self._has_room(k)]
            if room:
                if self._alone(page):
                    self._merge(page, room[0])
                continue
            if checksum != content:
                self._checksums[item] = content
                again = True
                continue
            if not self._reaches(unstable, content):
                continue
            earlier = unstable.setdefault(content, page)
            # A page that two processes share since fork is not merged with itself.
            if earlier.frame == page.frame:
                continue
            if self._same_folio(earlier, page):
                again |= self._alone(page)
            elif self._alone(page) and self._alone(earlier):
                self._merge(page, page.frame)
                self._merge(earlier, page.frame)
                shared.setdefault(content, []).append(page.frame)
                del unstable[content]
        return again

    def _reaches(self, unstable: dict[bytes, _Page], content: bytes) -> bool:
        """Whether the search for ``content`` gets to its place (unstable_tree_search_insert).

        It ends at the first page that get_mergeable_page() does not find. The tree's first page is
        on every way; which others are depends on how all contents compare, and is not asked.
        """
        for page in (next(iter(unstable.values()), None), unstable.get(content)):
            if page is not None and not self._candidate(page, follow=True):
                return False
        return True

    def _candidate(self, page: _Page, *, follow: bool) -> int:
        machine, where = self.machine, np.uint64(page.address)
        return int(ksm_candidate(machine.arch, machine.phys, page.mm.space, where, follow))

    def _same_folio(self, one: _Page, other: _Page) -> bool:
        phys = self.machine.phys
        if not phys.flags[one.frame] & phys.flags[other.frame] & state.PG_LARGE:
            return False
        return bool(folio_head(phys, one.frame) == folio_head(phys, other.frame))

    def _alone(self, page: _Page) -> bool:
        """Split the large folio that the page is part of; False if the page is gone after that.

        A page of zeros gives way to the zero page when its folio is split.
        """
        machine = self.machine
        if machine.phys.flags[page.frame] & state.PG_LARGE:
            machine.split_folio(page.mm, page.vma, page.address)
        return self._candidate(page, follow=False) == page.frame

    def _has_room(self, frame: int) -> bool:
        return int(self.machine.phys.mapcount[frame]) < MAX_PAGE_SHARING

    def _digest(self, frame: int) -> bytes:
        """A digest of a frame's bytes, made once for each content (equal stamps, equal bytes)."""
        stamp = int(self.machine.phys.version[frame])
        digest = self._digests.get(stamp)
        if digest is None:
            if len(self._digests) >= _MOST_DIGESTS:
                self._digests.clear()
            content = self.machine.content[frame].data
            digest = self._digests[stamp] = hashlib.blake2b(content, digest_size=16).digest()
        return digest

    def canonical(self, stamps: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Content stamps with one for all that were found to be of equal content by merging.

        A page that is merged shows the stamp of the shared page from then on, though none of its
        bytes has changed.
        """
        if not self._same:
            return stamps
        known = np.array(sorted(self._same), np.uint64)
        roots = np.array([self._root(stamp) for stamp in known.tolist()], np.uint64)
        at = np.minimum(np.searchsorted(known, stamps), known.size - 1)
        return np.where(known[at] == stamps, roots[at], stamps)

    def _root(self, stamp: int) -> int:
        while stamp in self._same:
            stamp = self._same[stamp]
        return stamp

    def _pages(self) -> Iterator[_Page]:
        machine = self.machine
        for mm in list(self.mms):
            for k, area in enumerate(mm.areas):
                if not area.flags & VM_MERGEABLE:
                    continue
                for address in range(area.start, area.end, machine.page_size):
                    where = np.uint64(address)
                    frame = ksm_candidate(machine.arch, machine.phys, mm.space, where, False)
                    if frame:
                        yield _Page(mm, k, address, int(frame))

    def _merge(self, page: _Page, shared: int) -> None:
        machine, where = self.machine, np.uint64(page.address)
        version = machine.phys.version
        one, other = (self._root(int(version[frame])) for frame in (page.frame, shared))
        if one != other:
            # 0 stays what it is, the stamp of zeros that nobody wrote.
            self._same[one or other] = other if one else 0
        ksm_merge_page(machine.arch, machine.phys, page.mm.space, page.vma, where, shared)

    def unmerge_all(self) -> None:
        """Write 2 to /sys/kernel/mm/ksm/run: every merged page gets copies, and scanning ends."""
        for mm in self.mms:
            for area in mm.areas:
                if area.flags & VM_MERGEABLE:
                    self.unmerge(mm, area, area.start, area.end)
        self.mms.clear()
        self._checksums.clear()

    def unmerge(self, mm: Mm, area: VmArea, start: int, end: int) -> None:
        """Break what is merged in [start, end) of one mapping."""
        machine = self.machine
        bounds = np.uint64(start), np.uint64(end)
        k = mm.areas.index(area)
        if break_ksm_range(machine.arch, machine.phys, mm.space, k, *bounds) != state.OK:
            raise MmError(12, "ksm: no frame is left for a copy")

    @staticmethod
    def may_merge(area: VmArea) -> bool:
        """Whether MADV_MERGEABLE means anything to the mapping."""
        return not area.flags & (VM_SHARED | VM_HUGETLB)
