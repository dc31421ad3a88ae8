"""Dirty tracking by userfaultfd write-protection: what mainline arm64 has instead of soft-dirty.

The process' mappings are registered with a userfaultfd in WP_ASYNC mode, and everything in them is
write-protected, absent pages by markers. A page that has lost its protection was written.

Where this differs from soft-dirty, on purpose or not:

* Registering is up to the tracker, so a mapping made since the last ``reset`` is not tracked, and
  all of it counts as written; soft-dirty does the same through VM_SOFTDIRTY. But soft-dirty's flag
  spreads over a whole merged mapping, while a registered and an unregistered mapping never merge.
* A forked child and a moved mapping are not registered (no EVENT_FORK, no EVENT_REMAP): all of them
  counts as written. Soft-dirty copies its bits to the child, and marks what was moved.
* Reclaim and MADV_DONTNEED keep the protection of a page of shared memory, as a marker, where
  soft-dirty loses its bit with the entry. In anonymous memory a discarded page has lost both.
* The page that KSM replaces loses its mark in both: soft-dirty then misses a write, this reports
  one too many.
* A moving page is protected in its migration entry; a writable one comes back unprotected and
  counts as written, where soft-dirty may miss its next write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mm_model.fs_userfaultfd import VM_UFFD_WP, Userfaultfd
from mm_model.uapi import (
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    PAGE_IS_WPALLOWED,
    PAGE_IS_WRITTEN,
    PM_SCAN_CHECK_WPASYNC,
    PM_SCAN_WP_MATCHING,
)

if TYPE_CHECKING:
    from mm_model.mm import Mm, ScanResult


class WriteProtectTracker:
    """Tracks one address space. ``MmError`` EINVAL where the kernel has no WP_ASYNC (before 6.7).

    Until the first ``reset`` everything counts as written.
    """

    def __init__(self, mm: Mm) -> None:
        self._mm = mm
        self._uffd: Userfaultfd = mm.userfaultfd()

    def reset(self) -> None:
        """From now on only what is written anew counts (as clear_refs 4 does for soft-dirty)."""
        mm = self._mm
        for start, end in [(area.start, area.end) for area in mm.areas]:
            self._uffd.register(start, end - start)
        for start, end in [(area.start, area.end) for area in mm.areas]:
            # Without a buffer, whatever is not protected yet becomes so.
            mm.pagemap_scan(start, end, flags=PM_SCAN_WP_MATCHING, vec_len=0)

    def written(self, start: int, npages: int) -> NDArray[np.bool_]:
        """Which of ``npages`` pages from ``start`` were written since the last ``reset``.

        Pages of mappings that are not tracked yet all count, those that nothing is mapped at never.
        A page that is neither in memory nor on swap does not count in a tracked mapping.
        """
        mm, size = self._mm, self._mm.machine.page_size
        dirty = np.zeros(npages, np.bool_)
        stop = start + npages * size
        for area in mm.areas:
            if area.flags & VM_UFFD_WP or area.end <= start or area.start >= stop:
                continue
            first = (max(area.start, start) - start) // size
            dirty[first : (min(area.end, stop) - start) // size] = True
        found = mm.pagemap_scan(
            start,
            stop,
            category_mask=PAGE_IS_WRITTEN | PAGE_IS_WPALLOWED,
            category_anyof_mask=PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        )
        for region in found.regions.tolist():
            dirty[(region[0] - start) // size : (region[1] - start) // size] = True
        return dirty

    def take(self, start: int, end: int, *, max_pages: int = 0) -> ScanResult:
        """Report what was written in [start, end) and protect it again, in one step.

        So no write falls between the two. The whole range must be tracked: ``MmError`` EPERM.
        """
        return self._mm.pagemap_scan(
            start,
            end,
            flags=PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
            category_mask=PAGE_IS_WRITTEN,
            category_anyof_mask=PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask=PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            max_pages=max_pages,
        )

    def close(self) -> None:
        """Stop tracking: all protections go."""
        self._uffd.close()
