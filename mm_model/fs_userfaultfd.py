"""userfaultfd as a process uses it (fs/userfaultfd.c): write-protect tracking without a handler.

Only UFFD_FEATURE_WP_ASYNC is modelled, which brings UFFD_FEATURE_WP_UNPOPULATED with it: writes to
protected pages are let through by the kernel, and nobody waits for messages.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from mm_model import hugetlbfs, state
from mm_model.entry import uffd_wp_range
from mm_model.errors import MmError, NotModelled
from mm_model.mmap import VM_MAYWRITE, VM_SHARED, VmArea

if TYPE_CHECKING:
    from mm_model.mm import Mm

UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_WP_ASYNC = 1 << 15
VM_UFFD_WP = int(state.VM_UFFD_WP)


class Userfaultfd:
    """One process' userfaultfd. ``Mm.userfaultfd`` opens it.

    ``MmError`` EINVAL where the kernel does not know the feature (before 6.7).
    """

    def __init__(self, mm: Mm, features: int) -> None:
        if features & ~(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED):
            raise NotModelled(f"userfaultfd: features {features:#x} are not modelled")
        if not features & UFFD_FEATURE_WP_ASYNC:
            raise NotModelled("userfaultfd: without WP_ASYNC a handler is needed")
        if not mm.machine.profile.uffd_wp_async:
            raise MmError(errno.EINVAL, "userfaultfd: this kernel has no UFFD_FEATURE_WP_ASYNC")
        self._mm = mm

    def register(self, addr: int, length: int) -> None:
        """UFFDIO_REGISTER with UFFDIO_REGISTER_MODE_WP: track [addr, addr + length)."""
        found = self._mappings("UFFDIO_REGISTER", addr, length)
        for area in found:
            if area.shared_id and not area.flags & VM_MAYWRITE:
                raise MmError(errno.EPERM, f"UFFDIO_REGISTER: {area.start:#x} is never writable")
        for area in (found[0], found[-1]):
            start, stop = max(addr, area.start), min(addr + length, area.end)
            self._refuse_parts("UFFDIO_REGISTER", area, start, stop - start)
        for area in found:
            self._set_flag(area, max(addr, area.start), min(addr + length, area.end), VM_UFFD_WP)

    def unregister(self, addr: int, length: int) -> None:
        """UFFDIO_UNREGISTER: protections in the range go, and so does the tracking."""
        for area in self._mappings("UFFDIO_UNREGISTER", addr, length):
            if area.flags & VM_UFFD_WP:
                start, end = max(addr, area.start), min(addr + length, area.end)
                self._protect(area, start, end, enable=False)
                self._set_flag(area, start, end, 0)

    def writeprotect(self, addr: int, length: int, *, enable: bool = True) -> None:
        """UFFDIO_WRITEPROTECT. ``MmError`` ENOENT where nothing is registered; the rest is done."""
        done = False
        for area in self._range("UFFDIO_WRITEPROTECT", addr, length):
            if not area.flags & VM_UFFD_WP:
                done = False
                break
            self._refuse_parts("UFFDIO_WRITEPROTECT", area, addr, length)
            start, end = max(addr, area.start), min(addr + length, area.end)
            self._protect(area, start, end, enable=enable)
            done = True
        if not done:
            raise MmError(errno.ENOENT, f"UFFDIO_WRITEPROTECT: {addr:#x} is not registered")

    def close(self) -> None:
        """Let go of everything that is registered."""
        for area in list(self._mm.areas):
            if area.flags & VM_UFFD_WP:
                start, end = area.start, area.end
                self._protect(area, start, end, enable=False)
                self._set_flag(area, start, end, 0)
        self._mm.forget_userfaultfd()

    def _range(self, call: str, addr: int, length: int) -> list[VmArea]:
        if length <= 0 or length % self._mm.machine.page_size:
            raise MmError(errno.EINVAL, f"{call}: length {length:#x} is not a number of pages")
        return self._mm.mappings(call, addr, length)

    def _refuse_parts(self, call: str, area: VmArea, addr: int, length: int) -> None:
        unit = self._mm.machine.page_size << area.huge
        if addr % unit or length % unit:
            raise MmError(errno.EINVAL, f"{call}: {area.start:#x} has huge pages, not to be split")

    def _mappings(self, call: str, addr: int, length: int) -> list[VmArea]:
        found = self._range(call, addr, length)
        if not found:
            raise MmError(errno.EINVAL, f"{call}: nothing is mapped at {addr:#x}")
        return found

    def _set_flag(self, area: VmArea, start: int, end: int, flag: int) -> None:
        flags = area.flags & ~VM_UFFD_WP | flag
        if flags != area.flags:
            changed = self._mm.change_flags(area, start, end, flags)
            if changed.flags & VM_SHARED:
                # While writes are tracked, shared pages must start read-only.
                self._mm.update_page_prot(changed)

    def _protect(self, area: VmArea, start: int, end: int, *, enable: bool) -> None:
        mm = self._mm
        if enable:
            mm.ensure_tables_for(end - start)
        if area.huge:
            hugetlbfs.change_protection(mm, area, start, end, uffd_wp=enable, resolve=not enable)
            return
        uffd_wp_range(
            mm.machine.arch,
            mm.machine.phys,
            mm.space,
            np.uint64(start),
            np.uint64(end),
            np.uint64(area.flags),
            np.uint64(area.page_prot),
            int(enable),
            int(not enable and mm.wants_manual_write_upgrade(area)),
        )
