"""One process' address space: system calls, accesses, /proc files, and looking without touching."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mm_model import access, hugetlbfs, state, uapi
from mm_model.entry import (
    access_words,
    access_words_tlb,
    alloc_table,
    change_protection,
    clear_refs_walk,
    collapse_pmd,
    copy_page_range,
    discard_pages,
    filemap_read_ahead,
    frames_read,
    free_all_tables,
    free_pgtables,
    get_user_page,
    install_pages,
    madvise_cold_or_pageout,
    madvise_free,
    move_page_tables,
    next_large_folio,
    page_mkclean,
    page_prot,
    pagemap_read,
    pagemap_scan,
    populate_range,
    ptes_read,
    split_huge_pmd_address,
    store_bytes,
    store_bytes_tlb,
    swapin_willneed,
    unmap_mapping_range,
    versions_read,
    zap_page_range,
    zap_page_range_keep_markers,
)
from mm_model.errors import Livelock, MmError, NotModelled, SegFault
from mm_model.fs_userfaultfd import UFFD_FEATURE_WP_ASYNC, Userfaultfd
from mm_model.ksmd import Ksmd
from mm_model.mmap import (
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_READ,
    VM_SHARED,
    VM_UFFD_WP,
    VM_WIPEONFORK,
    VM_WRITE,
    VmaList,
    VmArea,
)
from mm_model.pagemap_scan import SCAN_WALK_END
from mm_model.state import Space

if TYPE_CHECKING:
    from mm_model.machine import Machine

TASK_SIZE = 1 << 48
_MMAP_TOP = 0xFFFF_8000_0000
_STACK_GUARD_PAGES = 256
_STACK_LIMIT = 8 << 20
_ACCESS = VM_READ | VM_WRITE | VM_EXEC
_MAY = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
_LASTING_ADVICE = (
    (VM_HUGEPAGE, uapi.MADV_HUGEPAGE),
    (VM_NOHUGEPAGE, uapi.MADV_NOHUGEPAGE),
    (VM_MERGEABLE, uapi.MADV_MERGEABLE),
    (VM_DONTCOPY, uapi.MADV_DONTFORK),
    (VM_WIPEONFORK, uapi.MADV_WIPEONFORK),
)
_KNOWN_MAP_FLAGS = (
    uapi.MAP_SHARED | uapi.MAP_PRIVATE | uapi.MAP_FIXED | uapi.MAP_ANONYMOUS | uapi.MAP_GROWSDOWN
    | uapi.MAP_NORESERVE | uapi.MAP_STACK | uapi.MAP_FIXED_NOREPLACE
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What PAGEMAP_SCAN found.

    ``regions``   uint64[n, 3], ascending: start and end address, categories
    ``walk_end``  where the scan stopped: the end of the range, unless the buffer or ``max_pages``
                  was full
    """

    regions: NDArray[np.uint64]
    walk_end: int


@dataclass(frozen=True, slots=True)
class Vma:
    """One mapping as it is reported: bytes [start, end), PROT_* and MAP_* of mmap.

    ``shared_id``   0 for anonymous private memory
    ``pgoff``       in pages of the shared object; 0 for anonymous private memory
    ``soft_dirty``  VM_SOFTDIRTY: every page of it counts as soft-dirty
    ``locked``      mlock'ed
    ``advice``      the lasting advice, as smaps' VmFlags tell it (hg, nh, mg, dc, wf): bit n stands
                    for MADV_* number n
    """

    start: int
    end: int
    prot: int
    flags: int
    shared_id: int
    pgoff: int
    soft_dirty: bool
    name: str
    locked: bool = False
    advice: int = 0


class Mm:
    """An address space. Make one with ``Machine.create_mm`` or ``fork``.

    Failing system calls raise ``MmError`` with the kernel's errno. Addresses and lengths are in
    bytes.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._page = machine.page_size
        self._vmas = VmaList(self._page)
        self._brk_start = 0
        self._brk = 0
        self._cpu = 0
        self._userfaultfd: Userfaultfd | None = None
        machine.ensure_tables(1)
        regs = np.zeros(state.REGS_SIZE, np.int64)
        regs[state.PGD] = alloc_table(machine.arch, machine.phys)
        self.space = Space(np.zeros((1, state.V_COLUMNS), np.uint64), regs)
        machine.mms.append(self)

    # --- the list of mappings and its compiled image ---

    @property
    def areas(self) -> list[VmArea]:
        """The mappings as the model keeps them; not to be changed."""
        return self._vmas.areas

    def _pull(self) -> None:
        """Take over what compiled code decided: which mappings got an anon_vma."""
        table = self.space.vmas
        for k, area in enumerate(self.areas):
            area.anon_vma = int(table[k, state.V_ANON])
            area.chain = int(table[k, state.V_CHAIN])

    def _push(self) -> None:
        """Show the list to compiled code."""
        areas = self.areas
        table = np.zeros((max(len(areas), 1), state.V_COLUMNS), np.uint64)
        for k, area in enumerate(areas):
            row = table[k]
            row[state.V_START] = area.start
            row[state.V_END] = area.end
            row[state.V_FLAGS] = area.flags
            row[state.V_PROT] = area.page_prot
            row[state.V_PGOFF] = area.pgoff
            if area.shared_id:
                found = self.machine.shared(area.shared_id)
                found.was_mapped = True
                row[state.V_OBJECT] = area.shared_id
                row[state.V_CACHE] = found.first
                row[state.V_LIMIT] = found.npages
                row[state.V_FILE] = found.npages if found.file else 0
            row[state.V_ANON] = area.anon_vma
            row[state.V_CHAIN] = area.chain
            row[state.V_HUGE] = area.huge
        self.space = Space(table, self.space.regs)
        self.space.regs[state.N_VMAS] = len(areas)
        self.space.regs[state.VMA_HINT] = 0
        if self.space.regs[state.HUGE_PMDS]:
            self._split_at_borders()

    def _split_at_borders(self) -> None:
        """No huge page lies across the border of a mapping (vma_adjust_trans_huge)."""
        span = 1 << int(self.machine.arch.pmd_shift)
        for border in {at for area in self.areas for at in (area.start, area.end) if at % span}:
            where = np.uint64(border)
            split_huge_pmd_address(self.machine.arch, self.machine.phys, self.space, where)

    def _set_page_prot(self, area: VmArea) -> None:
        """vma_set_page_prot: shared writable pages start read-only while writes are tracked."""
        soft_dirty = int(self.machine.arch.vm_softdirty)
        # Nobody tracks writes to hugetlb by VM_SOFTDIRTY (vma_wants_writenotify).
        tracked = bool(soft_dirty) and not area.flags & (soft_dirty | VM_HUGETLB)
        tracked = tracked or bool(area.flags & VM_UFFD_WP) or self._is_file(area)
        shared = bool(area.flags & VM_SHARED) and not tracked
        area.page_prot = int(page_prot(self.machine.arch, area.flags & _ACCESS, shared))

    def _is_file(self, area: VmArea) -> bool:
        """Whether the file system wants to know of first writes (page_mkwrite)."""
        return bool(area.shared_id) and self.machine.shared(area.shared_id).file

    def _is_nameless(self, area: VmArea) -> bool:
        """Whether the mapping's object is none that a caller knows of: private hugetlb memory."""
        return bool(area.shared_id) and self.machine.shared(area.shared_id).nameless

    def wants_manual_write_upgrade(self, area: VmArea) -> bool:
        """vma_wants_manual_pte_write_upgrade: pages become writable one by one, where allowed.

        Not in shared memory: it is write-protected for tracking's sake only, if at all.
        """
        if area.flags & VM_SHARED and not self._is_file(area):
            return False
        return bool(area.flags & VM_WRITE)

    def _align(self, length: int) -> int:
        return -(-length // self._page) * self._page

    def _check_range(self, call: str, address: int, length: int) -> int:
        """The page-aligned end of a range that must start on a page."""
        if address % self._page:
            raise MmError(errno.EINVAL, f"{call}: address {address:#x} is not page-aligned")
        if length < 0 or address < 0 or address + length > TASK_SIZE:
            raise MmError(
                errno.EINVAL, f"{call}: range {address:#x}+{length:#x} is not user memory"
            )
        return address + self._align(length)

    def vmas(self) -> list[Vma]:
        """All mappings, ascending."""
        soft_dirty = int(self.machine.arch.vm_softdirty)
        result = []
        for area in self.areas:
            flags = uapi.MAP_SHARED if area.flags & VM_SHARED else uapi.MAP_PRIVATE
            shared_id = 0 if self._is_nameless(area) else area.shared_id
            if not self._is_file(area) and (not shared_id or area.flags & VM_SHARED):
                flags |= uapi.MAP_ANONYMOUS
            flags |= hugetlbfs.map_flags(self.machine.arch, area)
            if area.flags & VM_GROWSDOWN:
                flags |= uapi.MAP_GROWSDOWN
            result.append(
                Vma(
                    start=area.start,
                    end=area.end,
                    prot=area.flags & _ACCESS,
                    flags=flags,
                    shared_id=shared_id,
                    pgoff=area.pgoff if shared_id else 0,
                    soft_dirty=bool(area.flags & soft_dirty),
                    name=area.name,
                    locked=bool(area.flags & VM_LOCKED),
                    advice=sum(1 << n for flag, n in _LASTING_ADVICE if area.flags & flag),
                )
            )
        return result

    # --- mapping and unmapping ---

    def mmap(
        self,
        addr: int | None,
        length: int,
        prot: int,
        flags: int,
        *,
        shared_id: int = 0,
        pgoff: int = 0,
        name: str = "",
    ) -> int:
        """Map memory and return its address.

        MAP_PRIVATE|MAP_ANONYMOUS is anonymous memory. ``shared_id`` names an object to map: with
        MAP_SHARED its pages themselves, with MAP_PRIVATE copies on write. MAP_SHARED|MAP_ANONYMOUS
        without one makes a new object. MAP_HUGETLB: of huge pages, whose log2 is in the flags from
        MAP_HUGE_SHIFT on; an object made of huge pages has its own size.
        """
        kind = flags & (uapi.MAP_SHARED | uapi.MAP_PRIVATE)
        huge = self.machine.shared(shared_id).huge if shared_id else 0
        if flags & uapi.MAP_HUGETLB:
            if shared_id and not huge:
                raise MmError(errno.EINVAL, "mmap: MAP_HUGETLB: the object has no huge pages")
            huge = huge or hugetlbfs.order_of_flags(self.machine.arch, flags)
            flags &= ~(uapi.MAP_HUGETLB | uapi.MAP_HUGE_MASK)
        if flags & ~_KNOWN_MAP_FLAGS:
            raise NotModelled(f"mmap: flags {flags & ~_KNOWN_MAP_FLAGS:#x} are not modelled")
        if length <= 0 or kind not in (uapi.MAP_SHARED, uapi.MAP_PRIVATE):
            raise MmError(errno.EINVAL, "mmap: needs a length and one of MAP_SHARED, MAP_PRIVATE")
        if flags & uapi.MAP_ANONYMOUS and kind == uapi.MAP_PRIVATE and shared_id:
            raise MmError(errno.EINVAL, "mmap: MAP_ANONYMOUS|MAP_PRIVATE takes no shared object")
        if flags & uapi.MAP_GROWSDOWN and kind == uapi.MAP_SHARED:
            raise MmError(errno.EINVAL, "mmap: MAP_GROWSDOWN is for private mappings")
        if not flags & uapi.MAP_ANONYMOUS and not shared_id:
            raise MmError(errno.EBADF, "mmap: without MAP_ANONYMOUS a shared object is needed")
        unit = self._page << huge
        if huge and pgoff << int(self.machine.arch.page_shift) & (unit - 1):
            raise MmError(errno.EINVAL, f"mmap: page {pgoff} of the object is inside a huge page")
        length = -(-length // unit) * unit
        start = self._place(addr, length, flags, unit)
        end = start + length
        if not shared_id and (kind == uapi.MAP_SHARED or huge):
            npages = length // self._page
            nameless = kind == uapi.MAP_PRIVATE
            shared_id = self.machine.create_shared(npages, huge=huge, nameless=nameless)
            pgoff = 0
        vm_flags = (prot & _ACCESS) | _MAY
        if kind == uapi.MAP_SHARED:
            vm_flags |= VM_SHARED | VM_MAYSHARE
        if flags & uapi.MAP_GROWSDOWN:
            vm_flags |= VM_GROWSDOWN
        if flags & uapi.MAP_NORESERVE:
            vm_flags |= VM_NORESERVE
        if huge:
            vm_flags |= VM_HUGETLB
        elif vm_flags & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE:
            vm_flags |= VM_ACCOUNT
        self._pull()
        gone = self._unmap(start, end)
        if not shared_id:
            pgoff = start // self._page
        area = self._vmas.insert_new(
            VmArea(start, end, vm_flags, pgoff, shared_id, name, huge=huge),
            next_first=self.machine.profile.mmap_joins_next_first,
        )
        area.flags |= int(self.machine.arch.vm_softdirty)
        self._set_page_prot(area)
        self._push()
        self.machine.drop_unmapped(gone)
        return start

    def _place(self, addr: int | None, length: int, flags: int, unit: int = 1) -> int:
        """Where a mapping of ``length`` goes, at a multiple of ``unit``."""
        fixed = flags & (uapi.MAP_FIXED | uapi.MAP_FIXED_NOREPLACE)
        if fixed:
            if addr is None:
                raise MmError(errno.EINVAL, "mmap: MAP_FIXED needs an address")
            end = self._check_range("mmap", addr, length)
            if addr % unit:
                raise MmError(errno.EINVAL, f"mmap: {addr:#x} is inside a huge page")
            if flags & uapi.MAP_FIXED_NOREPLACE and self._vmas.overlapping(addr, end):
                raise MmError(errno.EEXIST, f"mmap: {addr:#x} is mapped already")
            return addr
        if addr:
            hint = -(-self._align(addr) // unit) * unit
            if hint + length <= TASK_SIZE and not self._vmas.overlapping(hint, hint + length):
                return hint
        if unit > self._page:
            return -(-self._find_gap(length + unit - self._page) // unit) * unit
        return self._find_gap(length)

    def _find_gap(self, length: int) -> int:
        """The highest gap below the mmap base that is long enough."""
        top = _MMAP_TOP
        for area in reversed(self.areas):
            if area.start >= _MMAP_TOP:
                continue
            if top - area.end >= length:
                return top - length
            top = min(top, area.start)
        if top - length < 1 << 16:
            raise MmError(errno.ENOMEM, f"mmap: no gap of {length:#x} bytes")
        return top - length

    def _unmap(self, start: int, end: int) -> set[int]:
        """Take [start, end) out with its pages and tables; returns the shared objects in it."""
        try:
            gone = self._vmas.remove(start, end)
        except MmError:
            self._push()
            raise
        if not gone:
            return set()
        for area in gone:
            if area.huge:
                hugetlbfs.unmap(self, area, area.start, area.end)
        self._zap(start, end)
        before, after = self._vmas.neighbours(start, end)
        free_pgtables(
            self.machine.arch,
            self.machine.phys,
            self.space,
            np.uint64(gone[0].start),
            np.uint64(gone[-1].end),
            np.uint64(before.end if before else 0),
            np.uint64(after.start if after else TASK_SIZE),
        )
        return {area.shared_id for area in gone}

    def _zap(self, start: int, end: int) -> None:
        zap_page_range(
            self.machine.arch, self.machine.phys, self.space, np.uint64(start), np.uint64(end)
        )

    def _zap_pages(self, area: VmArea, start: int, end: int) -> None:
        """Zap pages of a mapping that stays, with the marks that must not be lost."""
        if area.huge:
            hugetlbfs.unmap(self, area, start, end, keep_markers=True)
        elif area.shared_id and area.flags & VM_UFFD_WP:
            machine = self.machine
            bounds = np.uint64(start), np.uint64(end)
            zap_page_range_keep_markers(machine.arch, machine.phys, self.space, *bounds)
        else:
            self._zap(start, end)

    def munmap(self, addr: int, length: int) -> None:
        """Unmap [addr, addr + length); gaps are fine."""
        end = self._check_range("munmap", addr, length)
        if end == addr:
            raise MmError(errno.EINVAL, "munmap: length is 0")
        self._pull()
        gone = self._unmap(addr, end)
        self._push()
        self.machine.drop_unmapped(gone)

    def set_brk_base(self, addr: int) -> None:
        """Where the heap starts (and, for now, ends)."""
        self._check_range("set_brk_base", addr, 0)
        self._brk_start = self._brk = addr

    @property
    def start_brk(self) -> int:
        """Where the heap starts; 0 if the process has none."""
        return self._brk_start

    def restore_brk(self, start_brk: int, brk: int) -> None:
        """Set both ends of the heap without mapping anything, as PR_SET_MM does for a restorer."""
        self._check_range("restore_brk", start_brk, 0)
        self._brk_start, self._brk = start_brk, brk

    def brk(self, addr: int) -> int:
        """Move the end of the heap and return it, unmoved if it could not be (as brk(2) does)."""
        if addr < self._brk_start or not self._brk_start:
            return self._brk
        old, new = self._align(self._brk), self._align(addr)
        if new > old:
            guard = new + self._page
            if guard > TASK_SIZE or self._vmas.overlapping(old, guard):
                return self._brk
            self._pull()
            flags = VM_READ | VM_WRITE | _MAY | VM_ACCOUNT
            area = VmArea(old, new, flags, old // self._page, 0, "[heap]")
            self._set_page_prot(area)
            area = self._vmas.insert_new(area, expand_only=True)
            area.flags |= int(self.machine.arch.vm_softdirty)
            self._push()
        elif new < old:
            self.munmap(new, old - new)
        self._brk = addr
        return addr

    # --- mprotect, mremap ---

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        """Change protection; ENOMEM at the first gap, with what came before it changed."""
        end = self._check_range("mprotect", addr, length)

        def fixup(area: VmArea, start: int, stop: int) -> None:
            self._mprotect_fixup(area, start, stop, prot & _ACCESS)

        self._for_each_area("mprotect", addr, end, fixup)

    def _for_each_area(
        self, call: str, start: int, end: int, visit: Callable[[VmArea, int, int], None]
    ) -> None:
        """Visit the parts of [start, end) mapping by mapping; ENOMEM at the first gap."""
        while start < end:
            k = self._vmas.index(start)
            if k == len(self.areas) or self.areas[k].start > start:
                raise MmError(errno.ENOMEM, f"{call}: {start:#x} is not mapped")
            stop = min(self.areas[k].end, end)
            visit(self.areas[k], start, stop)
            start = stop

    def _mprotect_fixup(self, area: VmArea, start: int, end: int, prot: int) -> None:
        old = area.flags
        flags = (old & ~_ACCESS) | prot
        if flags == old:
            return
        self._pull()
        if flags & VM_WRITE:
            if not old & (VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE):
                flags |= VM_ACCOUNT
        elif old & VM_ACCOUNT and not area.shared_id and not area.anon_vma:
            if self.machine.profile.mprotect_unaccounts:
                flags &= ~VM_ACCOUNT
        area = self._modify(area, start, end, flags)
        self._set_page_prot(area)
        self._push()
        if area.huge:
            hugetlbfs.change_protection(self, area, start, end)
            return
        change_protection(
            self.machine.arch,
            self.machine.phys,
            self.space,
            np.uint64(start),
            np.uint64(end),
            np.uint64(flags),
            np.uint64(area.page_prot),
            int(self.wants_manual_write_upgrade(area)),
        )
        if old & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED and flags & VM_WRITE:
            self._populate(start, end)

    def _modify(self, area: VmArea, start: int, end: int, flags: int) -> VmArea:
        """Split and merge mappings so that [start, end) can have other flags, and set these.

        ``MmError`` EINVAL inside a huge page of hugetlb, with a split at ``start`` done.
        """
        try:
            changed = self._vmas.modify(area, start, end, flags, area.name)
        except MmError:
            self._push()
            raise
        changed.flags = flags
        return changed

    def mremap(
        self, old: int, old_len: int, new_len: int, flags: int = 0, new_addr: int = 0
    ) -> int:
        """Resize or move one mapping (or a part of it); returns where it is now."""
        dontunmap = bool(flags & uapi.MREMAP_DONTUNMAP)
        fixed = bool(flags & uapi.MREMAP_FIXED)
        maymove = bool(flags & uapi.MREMAP_MAYMOVE)
        old_len, new_len = self._align(old_len), self._align(new_len)
        if flags & ~7 or (fixed and not maymove) or not new_len or old % self._page:
            raise MmError(errno.EINVAL, "mremap: bad flags, length or address")
        if dontunmap and (not maymove or old_len != new_len):
            raise MmError(errno.EINVAL, "mremap: MREMAP_DONTUNMAP moves without resizing")
        if not self._vmas.overlapping(old, old + 1):
            raise MmError(errno.EFAULT, f"mremap: {old:#x} is not mapped")
        unit = self._page << self.areas[self._vmas.index(old)].huge
        if unit > self._page:
            old_len, new_len = -(-old_len // unit) * unit, -(-new_len // unit) * unit
            if old % unit or new_addr % unit or new_len > old_len:
                raise MmError(errno.EINVAL, "mremap: huge pages (hugetlb) neither split nor grow")
        if fixed or dontunmap:
            return self._mremap_to(old, old_len, new_len, new_addr, fixed, dontunmap)
        if old_len >= new_len:
            if old_len > new_len:
                self.munmap(old + new_len, old_len - new_len)
            return old
        area = self._resizable(old, old_len)
        if old + old_len == area.end and self._expand_in_place(area, new_len - old_len):
            return old
        if not maymove:
            raise MmError(errno.ENOMEM, f"mremap: no room to grow at {old:#x}")
        return self._move_vma(old, old_len, new_len, self._find_gap(new_len), dontunmap=False)

    def _resizable(self, old: int, old_len: int) -> VmArea:
        area = self.areas[self._vmas.index(old)] if self._vmas.overlapping(old, old + 1) else None
        if area is None or old_len > area.end - old:
            raise MmError(errno.EFAULT, f"mremap: {old:#x}+{old_len:#x} is not one mapping")
        if not old_len:
            if area.flags & VM_SHARED:
                raise NotModelled("mremap: duplicating a shared mapping (old length 0)")
            raise MmError(errno.EINVAL, "mremap: old length is 0")
        return area

    def _expand_in_place(self, area: VmArea, delta: int) -> bool:
        end = area.end + delta
        if end > TASK_SIZE or self._vmas.overlapping(area.end, end):
            return False
        self._pull()
        tail = area.duplicate(area.end, end, self._page)
        self._vmas.insert_new(tail)
        self._push()
        if area.flags & VM_LOCKED:
            self._populate(end - delta, end)
        return True

    def _mremap_to(
        self, old: int, old_len: int, new_len: int, new_addr: int, fixed: bool, dontunmap: bool
    ) -> int:
        if new_addr % self._page or new_addr + new_len > TASK_SIZE:
            raise MmError(errno.EINVAL, f"mremap: bad new address {new_addr:#x}")
        # Asked before MREMAP_FIXED is looked at: a mere hint must not overlap either.
        if old + old_len > new_addr and new_addr + new_len > old:
            raise MmError(errno.EINVAL, "mremap: old and new range overlap")
        if fixed:
            self.munmap(new_addr, new_len)
        if old_len > new_len:
            self.munmap(old + new_len, old_len - new_len)
            old_len = new_len
        area = self._resizable(old, old_len)
        if dontunmap and area.huge:
            raise MmError(errno.EINVAL, "mremap: MREMAP_DONTUNMAP is not for hugetlb")
        if not fixed:
            new_addr = self._place(new_addr or None, new_len, 0, self._page << area.huge)
        return self._move_vma(old, old_len, new_len, new_addr, dontunmap=dontunmap)

    def _move_vma(
        self, old: int, old_len: int, new_len: int, new_addr: int, *, dontunmap: bool
    ) -> int:
        self._pull()
        area = self._vmas.overlapping(old, old + 1)[0]
        moved = area.duplicate(old, old + old_len, self._page)
        moved.start, moved.end = new_addr, new_addr + new_len
        if area.flags & VM_MERGEABLE:
            # Merged pages would be confusing at the new place; they can merge there again.
            self.machine.ksmd.unmerge(self, area, old, old + old_len)
        if not area.shared_id and not area.anon_vma:
            moved.pgoff = new_addr // self._page
        source, target = self._realign(area, old, new_addr, old_len)
        self.machine.ensure_tables(self._tables_for(new_len))
        new_area = self._vmas.insert_new(moved)
        self._push()
        drop_marks = bool(area.flags & VM_UFFD_WP) and self.machine.profile.mremap_clears_uffd_wp
        if area.huge:
            hugetlbfs.move(self, new_area, old, new_addr, old_len, clear_uffd_wp=drop_marks)
        else:
            move_page_tables(
                self.machine.arch,
                self.machine.phys,
                self.space,
                np.uint64(source),
                np.uint64(target),
                np.uint64(old + old_len - source),
                int(drop_marks),
            )
        # Without UFFD_FEATURE_EVENT_REMAP the moved mapping is no longer registered.
        new_area.flags &= ~VM_UFFD_WP
        self._push()
        locked = area.flags & VM_LOCKED
        if dontunmap:
            self._pull()
            area.flags &= ~VM_LOCKED
            if area is not new_area and (area.start, area.end) == (old, old + old_len):
                area.anon_vma = area.chain = 0
            self._push()
        else:
            self.munmap(old, old_len)
        if locked and new_len > old_len:
            self._populate(new_addr + old_len, new_addr + new_len)
        return new_addr

    def _realign(self, area: VmArea, old: int, new: int, length: int) -> tuple[int, int]:
        """try_realign_addr: start at a table's border if nothing else is mapped down to it."""
        span = 1 << int(self.machine.arch.pmd_shift)
        back = old % span
        if length < span or not back or back != new % span or area.start != old:
            return old, new
        if self._vmas.overlapping(old - back, old) or self._vmas.overlapping(new - back, new):
            return old, new
        return old - back, new - back

    def _tables_for(self, length: int) -> int:
        """No more tables than this are needed for ``length`` bytes in one piece."""
        return 2 * self.machine.arch.levels + 2 * (length >> int(self.machine.arch.pmd_shift))

    # --- madvise, mlock ---

    def madvise(self, addr: int, length: int, advice: int) -> None:
        """Advise on [addr, addr + length). Gaps give ENOMEM after the mapped parts were handled."""
        handler = _ADVICE.get(advice)
        if handler is None:
            raise MmError(errno.EINVAL, f"madvise: unknown advice {advice}")
        end = self._check_range("madvise", addr, length)
        if advice in (uapi.MADV_POPULATE_READ, uapi.MADV_POPULATE_WRITE):
            self._madvise_populate(addr, end, int(advice == uapi.MADV_POPULATE_WRITE))
            return
        gap = False
        while addr < end:
            k = self._vmas.index(addr)
            if k == len(self.areas):
                gap = True
                break
            area = self.areas[k]
            if area.start > addr:
                gap, addr = True, area.start
                if addr >= end:
                    break
            stop = min(area.end, end)
            handler(self, area, addr, stop, advice)
            addr = stop
        if gap:
            raise MmError(errno.ENOMEM, "madvise: part of the range is not mapped")

    def _refuse_hugetlb(self, area: VmArea) -> None:
        if area.huge:
            raise MmError(errno.EINVAL, f"madvise: {area.start:#x} is hugetlb memory")

    def _refuse_locked(self, area: VmArea) -> None:
        if area.flags & VM_LOCKED:
            raise MmError(errno.EINVAL, f"madvise: {area.start:#x} is locked")

    def _madvise_dontneed(self, area: VmArea, start: int, end: int, advice: int) -> None:
        if area.huge:
            start, end = hugetlbfs.dontneed_range(area, start, end, self._page)
        elif advice != uapi.MADV_DONTNEED_LOCKED:
            self._refuse_locked(area)
        self._zap_pages(area, start, end)

    def _madvise_free(self, area: VmArea, start: int, end: int, advice: int) -> None:
        self._refuse_locked(area)
        if area.shared_id:
            raise MmError(errno.EINVAL, "madvise: MADV_FREE is for anonymous private memory")
        self._advise(madvise_free, area, start, end)

    def _madvise_reclaim(self, area: VmArea, start: int, end: int, advice: int) -> None:
        self._refuse_locked(area)
        self._refuse_hugetlb(area)
        pageout = int(advice == uapi.MADV_PAGEOUT)
        self._advise(madvise_cold_or_pageout, area, start, end, pageout)

    def _advise(self, walk_range: Any, area: VmArea, start: int, end: int, *arguments: int) -> None:
        """Walk [start, end), which stops at large folios that other address spaces map as well."""
        machine, k = self.machine, self.areas.index(area)
        at, last = np.uint64(start), np.uint64(end)
        while at < last:
            arch, phys = machine.arch, machine.phys
            where, what = walk_range(arch, phys, self.space, k, at, last, *arguments)
            at = np.uint64(where)
            if what == state.SPLIT_EVERYWHERE:
                machine.split_folio(self, k, int(at))
            elif what == state.RECLAIM_EVERYWHERE and machine.reclaim_folio(self, k, int(at)):
                at += np.uint64(1) << arch.pmd_shift

    def _madvise_willneed(self, area: VmArea, start: int, end: int, advice: int) -> None:
        if self._is_file(area):
            machine, k = self.machine, self.areas.index(area)
            limit = area.start + (machine.shared(area.shared_id).npages - area.pgoff) * self._page
            bounds = np.uint64(start), np.uint64(max(start, min(end, limit)))
            if filemap_read_ahead(machine.arch, machine.phys, self.space, k, *bounds) != state.OK:
                raise MmError(errno.EAGAIN, "madvise: no frame is left to read into")
        elif not area.shared_id:
            bounds = np.uint64(start), np.uint64(end)
            swapin_willneed(self.machine.arch, self.machine.phys, self.space, *bounds)

    def _madvise_remove(self, area: VmArea, start: int, end: int, advice: int) -> None:
        self._refuse_locked(area)
        if not area.shared_id:
            raise MmError(errno.EINVAL, "madvise: MADV_REMOVE is for shared objects")
        # vma_is_shared_maywrite(): that the object may be written counts, not how it is mapped now.
        if area.flags & (VM_SHARED | VM_MAYWRITE) != VM_SHARED | VM_MAYWRITE:
            raise MmError(errno.EACCES, "madvise: MADV_REMOVE needs a shared writable mapping")
        first = area.pgoff + (start - area.start) // self._page
        self.machine.punch_hole(area.shared_id, first, (end - start) // self._page)

    def _madvise_flags(self, area: VmArea, start: int, end: int, advice: int) -> None:
        flags = area.flags
        if advice == uapi.MADV_DONTFORK:
            flags |= VM_DONTCOPY
        elif advice == uapi.MADV_DOFORK:
            flags &= ~VM_DONTCOPY
        elif advice == uapi.MADV_WIPEONFORK:
            if area.shared_id:
                raise MmError(
                    errno.EINVAL, "madvise: MADV_WIPEONFORK is for anonymous private memory"
                )
            flags |= VM_WIPEONFORK
        elif advice == uapi.MADV_KEEPONFORK:
            flags &= ~VM_WIPEONFORK
        elif advice == uapi.MADV_HUGEPAGE:
            flags = (flags & ~VM_NOHUGEPAGE) | VM_HUGEPAGE
        elif advice == uapi.MADV_NOHUGEPAGE:
            flags = (flags & ~VM_HUGEPAGE) | VM_NOHUGEPAGE
        self._change_flags(area, start, end, flags)

    def _change_flags(self, area: VmArea, start: int, end: int, flags: int) -> VmArea:
        if flags == area.flags:
            return area
        self._pull()
        changed = self._modify(area, start, end, flags)
        self._push()
        return changed

    def _madvise_mergeable(self, area: VmArea, start: int, end: int, advice: int) -> None:
        if Ksmd.may_merge(area):
            self.machine.ksmd.enter(self)
            self._change_flags(area, start, end, area.flags | VM_MERGEABLE)

    def _madvise_unmergeable(self, area: VmArea, start: int, end: int, advice: int) -> None:
        if area.flags & VM_MERGEABLE:
            self.machine.ksmd.unmerge(self, area, start, end)
            self._change_flags(area, start, end, area.flags & ~VM_MERGEABLE)

    def _madvise_collapse(self, area: VmArea, start: int, end: int, advice: int) -> None:
        span = 1 << int(self.machine.arch.pmd_shift)
        room = -(-area.start // span) * span + span <= area.end
        self._refuse_hugetlb(area)
        if area.shared_id and room:
            raise NotModelled("madvise: MADV_COLLAPSE of shared objects")
        # Also where nothing was ever mapped (hugepage_vma_check() of mm/huge_memory.c).
        self._pull()
        if not room or area.flags & VM_NOHUGEPAGE or not area.anon_vma:
            raise MmError(errno.EINVAL, "madvise: MADV_COLLAPSE: no huge page can be here")
        first, last = -(-start // span) * span, end // span * span
        done = 0
        for address in range(first, last, span):
            machine = self.machine
            machine.ensure_tables(2 * machine.arch.levels)
            where = np.uint64(address)
            k = self.areas.index(area)
            machine.migrate_finish()
            status = collapse_pmd(machine.arch, machine.phys, self.space, k, where)
            if status == state.NO_FRAMES:
                raise MmError(errno.ENOMEM, "madvise: MADV_COLLAPSE: no huge page is free")
            done += status == state.OK
        if first > last or done != (last - first) // span:
            raise MmError(errno.EINVAL, "madvise: MADV_COLLAPSE: not all of it could be collapsed")

    def _madvise_populate(self, start: int, end: int, write: int) -> None:
        past_gaps = self.machine.profile.populate_past_gaps
        gap = -1
        while start < end:
            k = self._vmas.index(start)
            if k == len(self.areas) or self.areas[k].start > start:
                if not past_gaps:
                    raise MmError(errno.ENOMEM, f"madvise: {start:#x} is not mapped")
                gap = start
                start = end if k == len(self.areas) else min(self.areas[k].start, end)
                continue
            if not self.areas[k].flags & (VM_WRITE if write else VM_READ):
                raise MmError(errno.EINVAL, f"madvise: {start:#x} does not allow it")
            stop = min(self.areas[k].end, end)
            try:
                self._fault_in(start, stop, write, force=0)
            except SegFault as fault:
                # Beyond the end of a file: an error here, where an access gets SIGBUS.
                raise MmError(errno.EFAULT, f"madvise: cannot fault in: {fault.strerror}") from None
            start = stop
        if gap >= 0:
            raise MmError(errno.ENOMEM, f"madvise: {gap:#x} is not mapped")

    def _fault_in(self, start: int, end: int, write: int, force: int) -> None:
        """Fault pages in as GUP does; ``MmError`` EFAULT where it cannot."""
        while start < end:
            machine = self.machine
            bounds = np.uint64(start), np.uint64(end)
            start = int(
                populate_range(machine.arch, machine.phys, self.space, *bounds, write, force)
            )
            if start < end:
                self._recover(gup=True)

    def _populate(self, start: int, end: int) -> None:
        """Fault in a locked range: private writable memory as if written, the rest as if read."""
        for area in self._vmas.overlapping(start, end):
            write = int(area.flags & (VM_WRITE | VM_SHARED) == VM_WRITE)
            force = int(bool(area.flags & _ACCESS))
            self._fault_in(max(start, area.start), min(end, area.end), write, force)

    def mlock(self, addr: int, length: int) -> None:
        """Lock [addr, addr + length) in memory, faulting it in."""
        start, end = self._whole_pages(addr, length)

        def lock(area: VmArea, first: int, stop: int) -> None:
            if area.huge:
                return  # is in memory anyhow, and only populated
            self._change_flags(area, first, stop, area.flags | VM_LOCKED)

        self._for_each_area("mlock", start, end, lock)
        try:
            self._populate(start, end)
        except Livelock:
            raise
        except MmError as error:
            raise MmError(errno.ENOMEM, f"mlock: {error.strerror}") from None

    def munlock(self, addr: int, length: int) -> None:
        """Undo mlock."""
        start, end = self._whole_pages(addr, length)

        def unlock(area: VmArea, first: int, stop: int) -> None:
            self._change_flags(area, first, stop, area.flags & ~VM_LOCKED)

        self._for_each_area("munlock", start, end, unlock)

    def _whole_pages(self, addr: int, length: int) -> tuple[int, int]:
        start = addr - addr % self._page
        return start, start + self._align(length + addr % self._page)

    # --- processes ---

    def fork(self) -> Mm:
        """A copy of this address space: private pages are shared until written.

        Soft-dirty bits are copied with the entries, so not those of shared mappings.
        """
        machine = self.machine
        self._pull()
        child = Mm(machine)
        child._brk_start, child._brk = self._brk_start, self._brk
        copied = []
        for k, area in enumerate(self.areas):
            if area.flags & VM_DONTCOPY:
                continue
            twin = area.duplicate(area.start, area.end, self._page)
            twin.flags &= ~(VM_LOCKED | VM_UFFD_WP)
            if area.flags & VM_WIPEONFORK:
                twin.anon_vma = twin.chain = 0
            else:
                if area.anon_vma:
                    machine.phys.ctr[state.ANON_VMA] += 1
                    twin.anon_vma = int(machine.phys.ctr[state.ANON_VMA])
                    twin.chain = area.chain + 1
                copied.append(k)
            child.areas.append(twin)
        child._push()
        for k in copied:
            machine.ensure_tables(self._tables_for(self.areas[k].end - self.areas[k].start))
            copy_page_range(machine.arch, machine.phys, self.space, child.space, k)
        if self in machine.ksmd.mms:
            machine.ksmd.enter(child)
        return child

    def exit(self) -> None:
        """Give everything back. The address space is of no use afterwards."""
        machine = self.machine
        if self not in machine.mms:
            return
        gone = set()
        for area in self.areas:
            if area.huge:
                hugetlbfs.unmap(self, area, area.start, area.end)
            else:
                self._zap(area.start, area.end)
            gone.add(area.shared_id)
        self.areas.clear()
        self._push()
        table, position = np.zeros((2, machine.arch.levels), np.int64)
        free_all_tables(machine.arch, machine.phys, self.space, table, position)
        machine.mms.remove(self)
        if self in machine.ksmd.mms:
            machine.ksmd.mms.remove(self)
        machine.drop_unmapped(gone)

    # --- accesses ---

    def run_on(self, cpu: int) -> None:
        """The CPU that makes the accesses from now on: 0 to ``ModelConfig.cpus`` - 1."""
        if not 0 <= cpu < self.machine.config.cpus:
            raise ValueError(f"cpu {cpu}: the machine has {self.machine.config.cpus}")
        self._cpu = cpu

    def store_words(self, addresses: NDArray[np.uint64], values: NDArray[np.uint64]) -> int:
        """Store ``values`` (uint64[n]) at ``addresses`` (uint64[n]); none may cross a page.

        Returns the number of faults taken. ``SegFault`` on the first store that is not allowed,
        with those before it done.
        """
        words = _readonly(values, np.uint64)
        return self._access(addresses, words, access.STORE_WORD)

    def touch(self, addresses: NDArray[np.uint64]) -> int:
        """Read one byte at each address; returns the number of faults taken."""
        return self._access(addresses, _readonly(_NO_WORDS, np.uint64), access.READ)

    def touch_write(self, addresses: NDArray[np.uint64]) -> int:
        """Everything that a store at each address does to page tables, but no byte changes."""
        return self._access(addresses, _readonly(_NO_WORDS, np.uint64), access.WRITE)

    def _access(self, addresses: NDArray[np.uint64], values: NDArray[np.uint64], mode: int) -> int:
        where = _readonly(addresses, np.uint64)
        if mode == access.STORE_WORD:
            if values.shape != where.shape:
                raise ValueError(f"{where.shape[0]} addresses but {values.shape[0]} values")
            self._refuse_crossing(where, np.uint64(8))
        before = int(self.machine.phys.ctr[state.N_FAULTS])
        done = 0
        while True:
            machine = self.machine
            parts = machine.arch, machine.phys, self.space
            if machine.tlb is None:
                done = access_words(*parts, where, values, mode, done)
            else:
                done = access_words_tlb(*parts, machine.tlb, self._cpu, where, values, mode, done)
            if done == where.shape[0]:
                return int(machine.phys.ctr[state.N_FAULTS]) - before
            self._recover()

    def store(
        self,
        addresses: NDArray[np.uint64],
        sizes: NDArray[np.uint32],
        payload: NDArray[np.uint8],
    ) -> int:
        """Store ``sizes[n]`` bytes (uint32[n]) at each of ``addresses`` (uint64[n]).

        They are taken from ``payload`` (uint8) one after another; none may cross a page. Returns
        the number of faults taken. ``SegFault`` on the first store that is not allowed, with those
        before it done.
        """
        where, lengths = _readonly(addresses, np.uint64), _readonly(sizes, np.uint32)
        data = _readonly(payload, np.uint8)
        if where.shape != lengths.shape or data.shape[0] != int(lengths.sum(dtype=np.uint64)):
            raise ValueError("store: addresses, sizes and payload do not belong together")
        self._refuse_crossing(where, lengths)
        before = int(self.machine.phys.ctr[state.N_FAULTS])
        done = position = 0
        while True:
            machine = self.machine
            first = done
            parts = machine.arch, machine.phys, self.space
            if machine.tlb is None:
                done = store_bytes(*parts, machine.content, where, lengths, data, first, position)
            else:
                done = store_bytes_tlb(
                    *parts, machine.tlb, self._cpu,
                    machine.content, where, lengths, data, first, position,
                )  # fmt: skip
            if done == where.shape[0]:
                return int(machine.phys.ctr[state.N_FAULTS]) - before
            position += int(lengths[first:done].sum(dtype=np.uint64))
            self._recover()

    def _refuse_crossing(self, addresses: NDArray[np.uint64], sizes: Any) -> None:
        mask = self.machine.arch.page_mask
        crossing = (addresses & mask) + sizes > self.machine.arch.page_size
        if crossing.any():
            address = int(addresses[int(crossing.argmax())])
            raise MmError(errno.EINVAL, f"store at {address:#x} crosses a page")

    def load(self, address: int, length: int) -> bytes:
        """What the task reads there, faulting pages in as a read does."""
        start, end = self._whole_pages(address, length)
        self.touch(np.arange(start, end, self._page, dtype=np.uint64))
        return self.peek(address, length)

    def gup_write(self, address: int, data: bytes) -> None:
        """Write through /proc/PID/mem (FOLL_FORCE). ``MmError`` EIO where nobody may write."""
        position = 0
        while position < len(data):
            frame = self._get_user_page(address + position, 1)
            offset = (address + position) % self._page
            size = min(len(data) - position, self._page - offset)
            row = self.machine.content[frame, offset : offset + size]
            new = np.frombuffer(data, np.uint8, size, position)
            phys = self.machine.phys
            if not np.array_equal(row, new):
                row[:] = new
                phys.ctr[state.VERSION] += 1
                phys.version[frame] = phys.ctr[state.VERSION]
            phys.flags[frame] |= state.PG_DIRTY
            position += size

    def gup_read(self, address: int, length: int) -> bytes:
        """Read through /proc/PID/mem. ``MmError`` EIO where nothing may be read."""
        pieces = []
        while length > 0:
            frame = self._get_user_page(address, 0)
            offset = address % self._page
            size = min(length, self._page - offset)
            pieces.append(self.machine.content[frame, offset : offset + size].tobytes())
            address += size
            length -= size
        return b"".join(pieces)

    def _get_user_page(self, address: int, write: int) -> int:
        while True:
            machine = self.machine
            where = np.uint64(address)
            frame = get_user_page(machine.arch, machine.phys, self.space, where, write, 1)
            if frame >= 0:
                return int(frame)
            try:
                self._recover(gup=True)
            except SegFault:
                raise MmError(errno.EIO, f"/proc/PID/mem: cannot access {address:#x}") from None

    def _recover(self, *, gup: bool = False) -> None:
        """Mend what stopped compiled code, or raise what the task would see."""
        ctr = self.machine.phys.ctr
        status, address = int(ctr[state.STATUS]), int(ctr[state.FAULT_ADDRESS])
        if status == state.NO_TABLES:
            self.machine.ensure_tables(self.machine.arch.levels)
        elif status == state.MIGRATING:
            self.machine.migrate_finish()
        elif status == state.GROW_STACK and self._expand_stack(address):
            return
        elif status == state.NO_FRAMES:
            frames = self.machine.phys.mapcount.shape[0]
            raise MmError(
                errno.ENOMEM, f"out of memory: all {frames} frames in use; raise ModelConfig.frames"
            )
        elif status == state.LIVELOCK:
            raise Livelock(address, f"the fault at {address:#x} never ends")
        elif status == state.SIGBUS:
            raise SegFault(address, 7, f"SIGBUS at {address:#x}: beyond the end of the object")
        else:
            reason = "not allowed" if status == state.SEGV_ACCERR or gup else "not mapped"
            raise SegFault(address, 11, f"SIGSEGV at {address:#x}: {reason}")

    def _expand_stack(self, address: int) -> bool:
        """Grow the stack mapping above ``address`` down to it, if limit and guard gap allow."""
        self._pull()
        k = self._vmas.index(address)
        area = self.areas[k]
        start = address - address % self._page
        gap = _STACK_GUARD_PAGES * self._page
        below = self.areas[k - 1] if k else None
        if area.end - start > _STACK_LIMIT or start < 1 << 16:
            return False
        guarded = below and below.flags & _ACCESS and not below.flags & VM_GROWSDOWN
        if below and guarded and start - below.end < gap:
            return False
        area.pgoff -= (area.start - start) // self._page
        area.start = start
        self._push()
        return True

    # --- userfaultfd ---

    def userfaultfd(self, features: int = UFFD_FEATURE_WP_ASYNC) -> Userfaultfd:
        """Open a userfaultfd: UFFD_FEATURE_WP_ASYNC, one at a time."""
        if self._userfaultfd is not None:
            raise NotModelled("userfaultfd: a second one in the same process")
        self._userfaultfd = Userfaultfd(self, features)
        return self._userfaultfd

    def forget_userfaultfd(self) -> None:
        """The userfaultfd has been closed."""
        self._userfaultfd = None

    def mappings(self, call: str, addr: int, length: int) -> list[VmArea]:
        """The mappings in a page-aligned range, for ``call``; gaps are fine."""
        return self._vmas.overlapping(addr, self._check_range(call, addr, length))

    def change_flags(self, area: VmArea, start: int, end: int, flags: int) -> VmArea:
        """Give [start, end) of ``area`` other VM_* flags; returns the mapping that it is now in."""
        return self._change_flags(area, start, end, flags)

    def update_page_prot(self, area: VmArea) -> None:
        """Work vm_page_prot out again after a change of flags."""
        self._set_page_prot(area)
        self._pull()
        self._push()

    def ensure_tables_for(self, length: int) -> None:
        """Make sure that page tables for ``length`` bytes can be allocated."""
        self.machine.ensure_tables(self._tables_for(length))

    # --- /proc ---

    def clear_refs(self, mode: int = 4) -> None:
        """Write ``mode`` to /proc/PID/clear_refs.

        1, 2 and 3 clear the access flag of all, of anonymous and of object mappings; 4 clears
        soft-dirty; 5 resets the peak RSS. ``MmError`` EINVAL for any other number.
        """
        machine = self.machine
        if mode == uapi.CLEAR_REFS_MM_HIWATER_RSS:
            self.space.regs[state.HIWATER_RSS] = self.space.regs[state.RSS]
            return
        if not 1 <= mode <= uapi.CLEAR_REFS_SOFT_DIRTY:
            raise MmError(errno.EINVAL, f"clear_refs: mode {mode} must be 1 to 5")
        if mode == uapi.CLEAR_REFS_SOFT_DIRTY:
            soft_dirty = int(machine.arch.vm_softdirty)
            if not soft_dirty:
                # VM_SOFTDIRTY is 0 and clear_soft_dirty() empty: the write succeeds and clears
                # nothing.
                return
            self._pull()
            for area in self.areas:
                if area.flags & soft_dirty:
                    area.flags &= ~soft_dirty
                    self._set_page_prot(area)
            self._push()
        clear_refs_walk(machine.arch, machine.phys, self.space, mode)
        if "clear-refs-no-tlb-flush" not in machine.config.hunks_off:
            machine.flush_tlb()

    def pagemap(
        self, start: int, npages: int, out: NDArray[np.uint64] | None = None
    ) -> NDArray[np.uint64]:
        """/proc/PID/pagemap of ``npages`` pages from ``start``, as uint64[npages].

        Frame numbers are hidden. ``out``: a buffer to read into, as read(2) has one.
        """
        self._check_range("pagemap", start, npages * self._page)
        if out is None:
            out = np.empty(npages, np.uint64)
        elif out.shape != (npages,) or out.dtype != np.uint64 or not out.flags.carray:
            raise ValueError(f"pagemap: out must be a contiguous uint64 array of {npages} entries")
        machine = self.machine
        pagemap_read(machine.arch, machine.phys, self.space, np.uint64(start), out)
        return out

    def pagemap_scan(
        self,
        start: int,
        end: int,
        *,
        flags: int = 0,
        vec_len: int | None = None,
        max_pages: int = 0,
        category_inverted: int = 0,
        category_mask: int = 0,
        category_anyof_mask: int = 0,
        return_mask: int = 0,
    ) -> ScanResult:
        """The PAGEMAP_SCAN ioctl on /proc/PID/pagemap.

        ``vec_len`` is the room for regions in the caller's buffer: 0, no buffer; None, as much as
        can be needed. ``MmError`` ENOTTY before 6.7, EPERM where PM_SCAN_CHECK_WPASYNC finds a
        mapping that is not registered with userfaultfd, EINVAL for arguments that make no sense.
        """
        page, machine = self._page, self.machine
        if not machine.profile.pagemap_scan:
            raise MmError(errno.ENOTTY, "PAGEMAP_SCAN: this kernel does not have it")
        masks = category_inverted, category_mask, category_anyof_mask, return_mask
        known = uapi.PAGE_IS_SOFT_DIRTY * 2 - 1
        if any(mask & ~known for mask in masks) or flags & ~3:
            raise MmError(errno.EINVAL, "PAGEMAP_SCAN: unknown flags or categories")
        stop = self._check_range("PAGEMAP_SCAN", start, end - start)
        room = (stop - start) // page if vec_len is None else vec_len
        if flags & uapi.PM_SCAN_WP_MATCHING:
            for area in self._vmas.overlapping(start, stop):
                self.ensure_tables_for(min(area.end, stop) - max(area.start, start))
        # No more regions than pages in mappings.
        covered = sum(
            (min(area.end, stop) - max(area.start, start)) // page
            for area in self._vmas.overlapping(start, stop)
        )
        regions = np.zeros((min(room, covered), 3), np.uint64)
        arguments = np.array(
            [start, stop, flags, room, max_pages or 1 << 62, *masks, 0, 0, 0], np.uint64
        )
        found = int(pagemap_scan(machine.arch, machine.phys, self.space, arguments, regions))
        if found < 0:
            raise MmError(errno.EPERM, "PAGEMAP_SCAN: a mapping is not tracked by userfaultfd")
        return ScanResult(regions[:found], int(arguments[SCAN_WALK_END]))

    @property
    def rss_pages(self) -> int:
        """Pages mapped now, without the zero page."""
        return int(self.space.regs[state.RSS])

    @property
    def hugetlb_pages(self) -> int:
        """Base pages of hugetlb mapped now, which ``rss_pages`` leaves out as VmRSS does."""
        return hugetlbfs.status_pages(self)

    @property
    def peak_rss_pages(self) -> int:
        """The most pages mapped at a time since the start or ``clear_refs(5)``."""
        return int(max(self.space.regs[state.RSS], self.space.regs[state.HIWATER_RSS]))

    # --- looking without touching ---

    def frames(self, start: int, npages: int) -> NDArray[np.int64]:
        """Content row of each of ``npages`` pages from ``start``, as int64[npages].

        -1 nothing, 0 the zero page. A row is found through the page table, a swap entry, or the
        shared object that is mapped there.
        """
        self._check_range("frames", start, npages * self._page)
        out = np.empty(npages, np.int64)
        machine = self.machine
        frames_read(machine.arch, machine.phys, self.space, np.uint64(start), out)
        return out

    def versions(self, start: int, npages: int) -> NDArray[np.uint64]:
        """Content stamp of each page, as uint64[npages]: 0 nothing or zeros.

        Equal stamps are equal content.
        """
        return self.contents(start, npages)[1]

    def contents(self, start: int, npages: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Content row and stamp of each page, as `frames` and `versions` give them, in one walk."""
        self._check_range("contents", start, npages * self._page)
        frames, out = np.empty(npages, np.int64), np.empty(npages, np.uint64)
        machine = self.machine
        versions_read(machine.arch, machine.phys, self.space, np.uint64(start), frames, out)
        return frames, out

    def ptes(self, start: int, npages: int) -> NDArray[np.uint64]:
        """The page-table entries, as uint64[npages]; 0 where there is none.

        As the kernel's own code reads them: those of a contiguous block with AF and dirty of all.
        """
        self._check_range("ptes", start, npages * self._page)
        out = np.zeros(npages, np.uint64)
        machine = self.machine
        ptes_read(machine.arch, machine.phys, self.space, np.uint64(start), out)
        return out

    def peek(self, address: int, length: int) -> bytes:
        """Content of [address, address + length), without any fault; holes read as zeros."""
        if length <= 0:
            return b""
        start, end = self._whole_pages(address, length)
        rows = np.maximum(self.frames(start, (end - start) // self._page), 0)
        whole = self.machine.content[rows].reshape(-1)
        return whole[address - start : address - start + length].tobytes()

    # --- debugging ---

    def split_huge_pages(self, start: int, length: int) -> int:
        """Split every large folio mapped in [start, start + length) (debugfs split_huge_pages).

        Returns how many were split.
        """
        end = self._check_range("split_huge_pages", start, length)
        machine = self.machine
        split = 0
        for area in self._vmas.overlapping(start, end):
            k, stop = self.areas.index(area), np.uint64(min(area.end, end))
            where = np.uint64(max(area.start, start))
            while True:
                arch, phys = machine.arch, machine.phys
                where = np.uint64(next_large_folio(arch, phys, self.space, k, where, stop))
                if where >= stop:
                    break
                machine.split_folio(self, k, int(where))
                split += 1
        return split

    # --- restoring ---

    def install(self, addresses: NDArray[np.uint64], data: NDArray[np.uint8]) -> None:
        """Put pages in place: uint8[n * page_size] (or [n, page_size]) for uint64[n] addresses.

        Works whatever the mapping's protection. Private pages become this process' own, pages of a
        shared object are the object's; entries end up as after a write.
        """
        where = self._page_addresses("install", addresses)
        content = _readonly(np.reshape(data, -1), np.uint8)
        if content.shape[0] != where.shape[0] * self._page:
            raise ValueError("install: data must hold one page for each address")
        done = 0
        while True:
            machine = self.machine
            done = install_pages(
                machine.arch, machine.phys, self.space, machine.content, where, content, done
            )
            if done == where.shape[0]:
                return
            self._recover()

    def discard(self, addresses: NDArray[np.uint64]) -> None:
        """Let pages be "nothing there" again; a shared object's page goes for everyone."""
        where = self._page_addresses("discard", addresses)
        machine = self.machine
        discard_pages(machine.arch, machine.phys, self.space, where)
        if any(area.flags & VM_SHARED for area in self.areas):
            for address in where.tolist():
                self._discard_shared(address)

    def _discard_shared(self, address: int) -> None:
        """Punch one page out of the shared object mapped at ``address``, in every address space."""
        found = self._vmas.overlapping(address, address + 1)
        if not found or not found[0].flags & VM_SHARED or found[0].huge:
            return
        machine = self.machine
        area = found[0]
        page = area.pgoff + (address - area.start) // self._page
        target = machine.shared(area.shared_id)
        if page >= target.npages:
            return
        position = target.first + page
        cached = int(machine.phys.cache[position])
        for mm in machine.mms:
            mm._unmap_object_page(area.shared_id, page, -1 if cached & 1 else cached >> 1)
        machine.truncate_page(position)
        if target.file:
            machine.truncate_page(position + target.npages)

    def _unmap_object_page(self, shared_id: int, page: int, frame: int) -> None:
        """Take down this address space's entries that map ``frame`` as the object's ``page``."""
        for area in self.areas:
            if area.shared_id != shared_id:
                continue
            address = area.start + (page - area.pgoff) * self._page
            if area.start <= address < area.end and int(self.frames(address, 1)[0]) == frame:
                where = np.array([address], np.uint64)
                arch, phys = self.machine.arch, self.machine.phys
                discard_pages(arch, phys, self.space, _readonly(where, np.uint64))

    def unmap_object(self, shared_id: int, first: int, count: int) -> None:
        """Take down what this process maps of an object's pages, its private copies aside."""
        arch, phys = self.machine.arch, self.machine.phys
        for k, area in enumerate(self.areas):
            if area.shared_id != shared_id:
                continue
            start = max(area.start, area.start + (first - area.pgoff) * self._page)
            end = min(area.end, area.start + (first + count - area.pgoff) * self._page)
            if start < end:
                unmap_mapping_range(arch, phys, self.space, k, np.uint64(start), np.uint64(end))

    def protect_dirty_pages(self, shared_id: int) -> None:
        """Write-protect what shared mappings have of a file's dirty pages (folio_mkclean)."""
        for k, area in enumerate(self.areas):
            if area.shared_id == shared_id and area.flags & VM_SHARED:
                page_mkclean(self.machine.arch, self.machine.phys, self.space, k)

    def msync(self, addr: int, length: int) -> None:
        """MS_SYNC: store the dirty pages of the files that are mapped shared in the range."""
        found = self.mappings("msync", addr, length)
        for shared_id in sorted({area.shared_id for area in found if area.flags & VM_SHARED}):
            if self.machine.shared(shared_id).file:
                self.machine.sync_file(shared_id)

    def _page_addresses(self, call: str, addresses: NDArray[np.uint64]) -> NDArray[np.uint64]:
        where = _readonly(addresses, np.uint64)
        if (where & self.machine.arch.page_mask).any():
            raise MmError(errno.EINVAL, f"{call}: addresses must be page-aligned")
        return where


_NO_WORDS = np.zeros(0, np.uint64)

_ADVICE: dict[int, Callable[[Mm, VmArea, int, int, int], None]] = {
    uapi.MADV_NORMAL: lambda mm, area, start, end, advice: None,
    uapi.MADV_RANDOM: lambda mm, area, start, end, advice: None,
    uapi.MADV_SEQUENTIAL: lambda mm, area, start, end, advice: None,
    uapi.MADV_WILLNEED: Mm._madvise_willneed,
    uapi.MADV_DONTNEED: Mm._madvise_dontneed,
    uapi.MADV_DONTNEED_LOCKED: Mm._madvise_dontneed,
    uapi.MADV_FREE: Mm._madvise_free,
    uapi.MADV_REMOVE: Mm._madvise_remove,
    uapi.MADV_DONTFORK: Mm._madvise_flags,
    uapi.MADV_DOFORK: Mm._madvise_flags,
    uapi.MADV_WIPEONFORK: Mm._madvise_flags,
    uapi.MADV_KEEPONFORK: Mm._madvise_flags,
    uapi.MADV_MERGEABLE: Mm._madvise_mergeable,
    uapi.MADV_UNMERGEABLE: Mm._madvise_unmergeable,
    uapi.MADV_HUGEPAGE: Mm._madvise_flags,
    uapi.MADV_NOHUGEPAGE: Mm._madvise_flags,
    uapi.MADV_COLD: Mm._madvise_reclaim,
    uapi.MADV_PAGEOUT: Mm._madvise_reclaim,
    uapi.MADV_COLLAPSE: Mm._madvise_collapse,
    uapi.MADV_POPULATE_READ: Mm._madvise_flags,
    uapi.MADV_POPULATE_WRITE: Mm._madvise_flags,
}


def _readonly(values: ArrayLike, dtype: type[np.generic]) -> NDArray[Any]:
    """A read-only, contiguous, aligned array: compiled code knows arguments of this one type only.

    Views of bytes are read-only anyway, and a second type would mean compiling everything twice.
    """
    array = np.require(values, dtype, ["C", "A"]).view()
    array.flags.writeable = False
    return array
