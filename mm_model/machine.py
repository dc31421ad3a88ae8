"""One host: physical memory, shared objects, swap, and the address spaces that use them."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm_model import state
from mm_model.config import PROFILE, ModelConfig, build_arch
from mm_model.entry import (
    folio_index,
    remap_folio,
    remove_migration_ptes,
    try_to_migrate,
    try_to_unmap,
    unuse_range,
)
from mm_model.errors import Livelock, MmError
from mm_model.filemap import filemap_drop, filemap_writeback
from mm_model.folio_profile import FOLIO_PROFILES
from mm_model.folio_reclaim import forget_reclaimed_folio
from mm_model.frames import folio_head, folio_nr_pages, forget_folio
from mm_model.hugetlbfs import check_order, huge_orders, punch_hole
from mm_model.ksmd import Ksmd
from mm_model.memory import object_folio
from mm_model.migrate import movable, move_cache_pages, move_frames
from mm_model.shmem import shmem_truncate, shmem_unuse
from mm_model.state import CTR_SIZE, Phys, Space
from mm_model.swap import alloc_slots, drop_swap_cache
from mm_model.tlb import Tlb

if TYPE_CHECKING:
    from mm_model.mm import Mm

_DEFAULT_MEMORY = 1 << 30


@dataclass(frozen=True, slots=True)
class FaultStats:
    """Counters of one machine since it was made.

    ``minor``      faults that reached handle_mm_fault
    ``cow``        pages copied because of a write
    ``wp``         write faults on present pages that were made writable in place, or replaced the
                   zero page
    ``swapin``     pages brought back from swap
    ``zero``       mappings of the zero page
    ``livelocks``  faults given up as never ending
    """

    minor: int
    cow: int
    wp: int
    swapin: int
    zero: int
    livelocks: int


@dataclass(slots=True)
class SharedObject:
    """A run of the page cache: first position, size in pages.

    ``keep``: it outlives its last mapping. ``was_mapped``: it had a mapping at some time.
    ``file``: it has a disk, whose run follows. ``huge``: log2 of its huge pages in base pages.
    ``nameless``: made for private hugetlb memory, which the kernel has a file for too.
    """

    first: int
    npages: int
    keep: bool
    was_mapped: bool = False
    file: bool = False
    huge: int = 0
    nameless: bool = False

    @property
    def span(self) -> int:
        """Positions in ``Phys.cache``."""
        return 2 * self.npages if self.file else self.npages


class Machine:
    """One host's memory. Callers serialise access; nothing here locks.

    ``content``, when given, is the caller's zero-filled buffer of uint8 (frames, page_size), e.g. a
    file mapping.
    """

    def __init__(self, config: ModelConfig, content: NDArray[np.uint8] | None = None) -> None:
        self.config = config
        self.page_size = config.page_size
        self.profile = PROFILE[config.kernel]
        self.arch = build_arch(config)
        if content is None:
            frames = config.frames or _DEFAULT_MEMORY // config.page_size
            content = np.zeros((frames, config.page_size), np.uint8)
        elif content.ndim != 2 or content.shape[1] != config.page_size or content.dtype != np.uint8:
            raise ValueError(f"content must be a uint8 array of shape (frames, {config.page_size})")
        elif not content.flags.c_contiguous or not content.flags.writeable:
            raise ValueError("content must be a writable array without gaps between its rows")
        if content.shape[0] < 2:
            raise ValueError("a machine needs at least 2 frames: frame 0 is the zero page")
        self.content = content
        self.mms: list[Mm] = []
        self._objects: dict[int, SharedObject] = {}
        self._last_object = 0
        self._cache_used = 0
        self.ksmd = Ksmd(self)
        size = config.cpus, config.tlb_entries
        self.tlb = (
            Tlb(np.zeros(size, np.uint64), np.zeros(size, np.uint64), np.zeros(size, np.int64))
            if config.tlb_entries
            else None
        )
        self._migrating: NDArray[np.int64] | None = None
        self.phys = self._reserve(content.shape[0], config.swap_slots)

    def _reserve(self, frames: int, swap_slots: int) -> Phys:
        entries = self.page_size // 8
        tables = 64 + 4 * (frames // entries)
        slots = swap_slots + 1  # slot 0 is the swap header
        # One allocation for all that is kept per frame: large enough for the host's huge pages,
        # without which looking frames up in no order is mostly waiting for the host's own tables.
        version, free_frames, mapcount, slot_of, flags, order = _columns(
            frames, [np.uint64, np.int64, np.int32, np.int32, np.uint8, np.uint8]
        )
        phys = Phys(
            tables=np.zeros(tables * entries, np.uint64),
            free_tables=np.zeros(tables, np.int64),
            content=self.content.view(np.uint64),
            version=version,
            mapcount=mapcount,
            flags=flags,
            slot_of=slot_of,
            order=order,
            free_frames=free_frames,
            free_folios=np.zeros(state.MAX_ORDER, np.int64),
            next_free=np.zeros(frames, np.int64),
            slot_frame=np.zeros(slots, np.int64),
            slot_count=np.zeros(slots, np.int32),
            free_slots=np.zeros(slots, np.int64),
            cache=np.zeros(1, np.uint64),
            ctr=np.zeros(CTR_SIZE, np.int64),
        )
        phys.ctr[state.NEXT_FRAME] = 1
        phys.ctr[state.NEXT_TABLE] = 1
        phys.ctr[state.NEXT_SLOT] = 1
        phys.ctr[state.SWAP_ON] = int(swap_slots > 0)
        phys.ctr[state.THP_MADVISE] = self._pmd_order_bit()
        return phys

    @property
    def huge_page_sizes(self) -> tuple[int, ...]:
        """Bytes of the huge pages that mmap offers with MAP_HUGETLB, ascending."""
        return tuple(self.page_size << order for order in huge_orders(self.arch))

    def flush_tlb(self) -> None:
        """Let every CPU forget what it remembers of page tables."""
        self.phys.ctr[state.TLB_GENERATION] += 1

    # --- transparent huge pages: the settings below /sys/kernel/mm/transparent_hugepage ---

    def _pmd_order_bit(self) -> int:
        return 1 << int(self.arch.table_shift)

    def set_thp(self, mode: str) -> None:
        """``enabled``: where anonymous faults may use PMD-sized pages.

        "always", "madvise" (where MADV_HUGEPAGE was given; so it starts) or "never".
        """
        self._set_orders(self._pmd_order_bit(), mode)

    def set_mthp(self, kilobytes: int, mode: str) -> None:
        """``hugepages-<kilobytes>kB/enabled``: the same for one other size.

        "always", "madvise" or "never" (so they all start). ``MmError`` ENOENT for a size that the
        kernel does not offer: it has powers of two from 4 pages up to below a PMD.
        """
        pages, rest = divmod(kilobytes * 1024, self.page_size)
        offered = FOLIO_PROFILES[self.config.kernel].mthp and not rest and pages & (pages - 1) == 0
        if not offered or not 4 <= pages < self._pmd_order_bit():
            raise MmError(errno.ENOENT, f"mthp: no folios of {kilobytes} KiB here")
        self._set_orders(pages, mode)

    def _set_orders(self, pages: int, mode: str) -> None:
        if mode not in ("always", "madvise", "never"):
            raise MmError(errno.EINVAL, f"thp: mode {mode!r} must be always, madvise or never")
        ctr = self.phys.ctr
        # Bit n stands for folios of 2**n pages, so the bit's value is the number of pages.
        for which, wanted in ((state.THP_ALWAYS, "always"), (state.THP_MADVISE, "madvise")):
            ctr[which] = (int(ctr[which]) & ~pages) | (pages if mode == wanted else 0)

    def split_folio(self, mm: Mm, vma: int, address: int) -> None:
        """Split the large folio that ``mm`` maps at ``address`` of its mapping ``vma`` into pages.

        Every address space that maps one of its pages is rewritten.
        """
        arch, phys = self.arch, self.phys
        frame = int(mm.frames(address, 1)[0])
        head = int(folio_head(phys, frame))
        page = folio_index(arch, phys, mm.space, vma, np.uint64(address), frame)
        for each in self.mms:
            remap_folio(arch, phys, each.space, head, page)
        forget_folio(phys, head)

    def reclaim_folio(self, mm: Mm, vma: int, address: int) -> bool:
        """Push the huge page out that ``mm`` maps at ``address``, wherever else it is mapped.

        To slots in a row, or, was it given to MADV_FREE, to nowhere (shrink_folio_list). False: it
        has been split, for want of slots, so its pages go one by one.
        """
        arch, phys = self.arch, self.phys
        head = int(mm.frames(address, 1)[0])
        page = folio_index(arch, phys, mm.space, vma, np.uint64(address), head)
        lazy = not phys.flags[head] & state.PG_SWAPBACKED
        slot = 0 if lazy else int(alloc_slots(phys, head, folio_nr_pages(phys, head)))
        if not slot and not lazy:
            self.split_folio(mm, vma, address)
            return False
        if all(try_to_unmap(arch, phys, each.space, head, page, slot) for each in self.mms):
            forget_reclaimed_folio(phys, head)
        return True

    # --- address spaces and shared objects ---

    def replace_content(self, content: NDArray[np.uint8]) -> None:
        """Go on with another buffer that has the same bytes.

        For instance a private mapping of the file that the first one was a shared mapping of.
        """
        if content.shape != self.content.shape or content.dtype != np.uint8:
            raise ValueError(f"content must be a uint8 array of shape {self.content.shape}")
        self.content = content
        self.phys = self.phys._replace(content=content.view(np.uint64))

    def create_mm(self) -> Mm:
        """An empty address space."""
        from mm_model.mm import Mm  # the two classes need each other

        return Mm(self)

    def create_shared(
        self, npages: int, *, keep: bool = False, huge: int = 0, nameless: bool = False
    ) -> int:
        """A shared object of ``npages`` empty pages; returns its id (> 0).

        It goes with its last mapping, like anonymous shared memory, unless ``keep``: then like a
        tmpfs file only with ``close_shared``. ``huge``: of huge pages of 2**huge base pages, as a
        file of hugetlbfs (``MmError`` EINVAL for a size that the architecture does not have).
        """
        if huge:
            check_order(self.arch, huge)
            npages = -(-npages >> huge) << huge
        added = SharedObject(self._cache_used, npages, keep, huge=huge, nameless=nameless)
        return self._add_object(added)

    def _add_object(self, added: SharedObject) -> int:
        if added.npages <= 0:
            raise MmError(errno.EINVAL, f"an object of {added.npages} pages: must be at least 1")
        needed = added.first + added.span
        if needed > self.phys.cache.shape[0]:
            grown = np.zeros(max(needed, 2 * self.phys.cache.shape[0]), np.uint64)
            grown[: self.phys.cache.shape[0]] = self.phys.cache
            self.phys = self.phys._replace(cache=grown)
        self._cache_used = needed
        self._last_object += 1
        self._objects[self._last_object] = added
        return self._last_object

    # --- files ---

    def create_file(self, npages: int) -> int:
        """A file of ``npages`` empty pages on a disk of its own; returns its id, for ``mmap``.

        It stays until ``close_shared``.
        """
        return self._add_object(SharedObject(self._cache_used, npages, True, file=True))

    def _file(self, file_id: int) -> SharedObject:
        found = self.shared(file_id)
        if not found.file:
            raise MmError(errno.EBADF, f"object {file_id} is not a file")
        return found

    def file_write(self, file_id: int, offset: int, data: bytes) -> None:
        """write(2) to a file or tmpfs file: changes what every mapping of it shows.

        No page table is touched, so that no soft-dirty bit tells of it.
        """
        found, size = self.shared(file_id), self.page_size
        if offset < 0 or offset + len(data) > found.npages * size:
            raise MmError(errno.EFBIG, f"file {file_id}: beyond its {found.npages} pages")
        done = 0
        while done < len(data):
            page, within = divmod(offset + done, size)
            part = np.frombuffer(data, np.uint8, min(size - within, len(data) - done), done)
            self._change(self._cached(found, page), slice(within, within + part.shape[0]), part)
            done += part.shape[0]

    def file_read(self, file_id: int, offset: int, length: int) -> bytes:
        """read(2): up to ``length`` bytes, through the page cache."""
        found, size = self._file(file_id), self.page_size
        end = min(offset + length, found.npages * size)
        pieces = []
        while offset < end:
            page, within = divmod(offset, size)
            part = min(size - within, end - offset)
            pieces.append(self.content[self._cached(found, page), within : within + part].tobytes())
            offset += part
        return b"".join(pieces)

    def _cached(self, found: SharedObject, page: int) -> int:
        row = np.zeros((1, state.V_COLUMNS), np.uint64)
        row[0, state.V_FILE] = found.npages if found.file else 0
        space = Space(row, np.zeros(state.REGS_SIZE, np.int64))
        frame = int(object_folio(self.phys, space, 0, found.first + page))
        if frame < 0:
            raise MmError(errno.ENOMEM, "out of memory: raise ModelConfig.frames")
        return frame

    def object_frames(self, shared_id: int) -> NDArray[np.int64]:
        """Content row of each page of an object, as int64[npages]: -1 a hole.

        In memory, on swap or, of a file, on its disk. Changes nothing, as ``Mm.frames``.
        """
        found, phys = self.shared(shared_id), self.phys
        entries = phys.cache[found.first : found.first + found.npages]
        rows = (entries >> np.uint64(1)).astype(np.int64)
        swapped = (entries & np.uint64(1)) != 0
        rows[swapped] = phys.slot_frame[rows[swapped]]
        if found.file:
            stored = phys.cache[found.first + found.npages : found.first + found.span]
            rows = np.where(rows, rows, (stored >> np.uint64(1)).astype(np.int64))
        return np.where(rows, rows, np.int64(-1))

    def install_object(
        self, shared_id: int, pages: NDArray[np.int64], data: NDArray[np.uint8]
    ) -> None:
        """Put whole pages (uint8[n * page_size]) into an object at ``pages`` int64[n].

        Every mapping of them shows the new bytes; no page table is touched.
        """
        found = self.shared(shared_id)
        content = np.reshape(data, (-1, self.page_size))
        if content.shape[0] != pages.shape[0]:
            raise ValueError("install_object: data must hold one page for each number")
        for page, new in zip(pages.tolist(), content, strict=True):
            if not 0 <= page < found.npages:
                raise MmError(errno.EFBIG, f"object {shared_id}: has no page {page}")
            frame = self._cached(found, page)
            self._change(frame, slice(None), new)

    def _change(self, frame: int, where: slice, new: NDArray[np.uint8]) -> None:
        """Write bytes of an object's page from outside of all processes."""
        row = self.content[frame, where]
        if not np.array_equal(row, new):
            row[:] = new
            self.phys.ctr[state.VERSION] += 1
            self.phys.version[frame] = self.phys.ctr[state.VERSION]
        self.phys.flags[frame] |= state.PG_DIRTY

    def sync_file(self, file_id: int) -> None:
        """Store a file's dirty pages, write-protecting them in every shared mapping first."""
        found = self._file(file_id)
        for mm in self.mms:
            mm.protect_dirty_pages(file_id)
        if filemap_writeback(self.phys, found.first, found.npages) != state.OK:
            raise MmError(errno.ENOSPC, "no frame is left to store a page in")

    def drop_caches(self) -> None:
        """Let go of clean pages of files that nobody maps."""
        for found in self._objects.values():
            if found.file:
                filemap_drop(self.phys, found.first, found.npages)

    @property
    def dirty_file_pages(self) -> int:
        """Pages of files whose bytes are newer than those on their disks."""
        dirty = 0
        for found in self._objects.values():
            if found.file:
                rows = self.phys.cache[found.first : found.first + found.npages] >> np.uint64(1)
                flags = self.phys.flags[rows.astype(np.int64)]
                dirty += int(np.count_nonzero(flags & state.PG_DIRTY))
        return dirty

    def punch_hole(self, shared_id: int, first: int, count: int) -> None:
        """Remove ``count`` pages of an object from ``first`` on: they read as zeros then.

        Every process loses its mapping of them; private copies stay.
        """
        found = self.shared(shared_id)
        count = min(count, found.npages - first)
        if found.huge:
            punch_hole(self, shared_id, first, count)
            return
        for mm in self.mms:
            mm.unmap_object(shared_id, first, count)
        shmem_truncate(self.phys, found.first + first, count)
        if found.file:
            shmem_truncate(self.phys, found.first + found.npages + first, count)

    def shared(self, shared_id: int) -> SharedObject:
        """The object with this id; ``MmError`` EBADF if there is none."""
        try:
            return self._objects[shared_id]
        except KeyError:
            raise MmError(errno.EBADF, f"no shared object {shared_id}") from None

    def close_shared(self, shared_id: int) -> None:
        """Let go of an object made with ``keep``: it goes now, or with its last mapping."""
        self.shared(shared_id).keep = False
        self.drop_unmapped({shared_id}, force=True)

    def drop_unmapped(self, shared_ids: set[int], *, force: bool = False) -> None:
        """Free those of the objects that nobody maps any more.

        Objects that were never mapped stay, unless ``force``.
        """
        shared_ids.discard(0)
        if not shared_ids:
            return
        mapped = {area.shared_id for mm in self.mms for area in mm.areas}
        for shared_id in sorted(shared_ids - mapped):
            found = self._objects.get(shared_id)
            if found is None or found.keep or not (found.was_mapped or force):
                continue
            shmem_truncate(self.phys, found.first, found.span)
            del self._objects[shared_id]
            if found.first + found.span == self._cache_used:
                self._cache_used = found.first

    def truncate_page(self, position: int) -> None:
        """Remove the page at ``position`` of the cache from its object. Nothing may map it."""
        shmem_truncate(self.phys, position, 1)

    def ensure_tables(self, count: int) -> None:
        """Make sure that ``count`` more page tables can be allocated."""
        phys = self.phys
        capacity = phys.free_tables.shape[0]
        free = capacity - int(phys.ctr[state.NEXT_TABLE]) + int(phys.ctr[state.FREE_TABLES])
        free -= int(phys.ctr[state.DEPOSITED])
        if free >= count:
            return
        grown = max(2 * capacity, capacity + count)
        entries = self.page_size // 8
        tables = np.zeros(grown * entries, np.uint64)
        tables[: capacity * entries] = phys.tables
        stack = np.zeros(grown, np.int64)
        stack[:capacity] = phys.free_tables
        self.phys = phys._replace(tables=tables, free_tables=stack)

    # --- swap ---

    def swapoff(self) -> None:
        """Take the swap device away: every swapped page comes back into memory.

        ``MmError`` EINVAL if there is none; ``Livelock`` where the kernel would search for ever.
        """
        phys = self.phys
        if not phys.ctr[state.SWAP_ON]:
            raise MmError(errno.EINVAL, "swapoff: swap is not on")
        for found in self._objects.values():
            shmem_unuse(phys, found.first, found.npages)
        for mm in self.mms:
            for k, area in enumerate(mm.areas):
                bounds = np.uint64(area.start), np.uint64(area.end)
                if unuse_range(self.arch, phys, mm.space, k, *bounds) != state.OK:
                    address = int(phys.ctr[state.FAULT_ADDRESS])
                    raise Livelock(address, f"swapoff never finds the swap entry at {address:#x}")
        drop_swap_cache(phys)
        phys.ctr[state.SWAP_ON] = 0

    def swapon(self) -> None:
        """Add the swap device again, empty.

        ``MmError`` EBUSY if it is on, EINVAL if the machine has none.
        """
        if self.phys.ctr[state.SWAP_ON]:
            raise MmError(errno.EBUSY, "swapon: swap is on already")
        if not self.config.swap_slots:
            raise MmError(errno.EINVAL, "swapon: the machine was made with swap_slots=0")
        self.phys.ctr[state.SWAP_ON] = 1

    # --- merging and moving pages ---

    def ksm_scan(self) -> None:
        """Let ksmd scan until no more of the pages advised MADV_MERGEABLE merge."""
        self.ksmd.scan()

    def same_content(self, stamps: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Content stamps, uint64[n], as ones that are equal also where ksmd found equal bytes."""
        return self.ksmd.canonical(stamps)

    def ksm_unmerge(self) -> None:
        """Write 2 to /sys/kernel/mm/ksm/run: nothing is merged any more."""
        self.ksmd.unmerge_all()

    def migrate_start(self, mm: Mm, start: int, npages: int) -> int:
        """Begin to move anonymous pages: their entries, in all processes, are migration entries.

        A large folio moves whole. Returns how many pages move. ``migrate_finish`` ends it, or
        whoever touches one of them.
        """
        self.migrate_finish()
        frames = mm.frames(start, npages)
        wanted = np.zeros(self.phys.mapcount.shape[0], np.bool_)
        wanted[frames[frames > 0]] = True
        wanted[self._hugetlb_frames()] = False
        return self._unmap_moving(wanted, anon_only=True)

    def _unmap_moving(self, wanted: NDArray[np.bool_], *, anon_only: bool) -> int:
        movable(self.phys, wanted, int(anon_only))
        self._migrating = np.flatnonzero(wanted)
        self.phys.mapcount[self._migrating] += 1  # the move's own hold
        for mm in self.mms:
            try_to_migrate(self.arch, self.phys, mm.space, wanted)
        return int(self._migrating.shape[0])

    def migrate_finish(self) -> None:
        """End the migration under way: bytes in their new frames, page entries again."""
        frames, self._migrating = self._migrating, None
        if frames is None:
            return
        target = np.zeros(self.phys.mapcount.shape[0], np.int64)
        move_frames(self.phys, frames, target, np.zeros(max(frames.shape[0], 1), np.int64))
        move_cache_pages(self.phys, target)
        for mm in self.mms:
            remove_migration_ptes(self.arch, self.phys, mm.space, target)

    def compact(self) -> int:
        """Write to /proc/sys/vm/compact_memory: every mapped page moves to another frame.

        Returns how many did; the model moves all that it has free frames for.
        """
        self.migrate_finish()
        left = np.setdiff1d(np.flatnonzero(self.phys.mapcount), self._hugetlb_frames())
        moved = 0
        while left.shape[0] and self.free_frames:
            now, left = left[: self.free_frames], left[self.free_frames :]
            wanted = np.zeros(self.phys.mapcount.shape[0], np.bool_)
            wanted[now] = True
            moved += self._unmap_moving(wanted, anon_only=False)
            self.migrate_finish()
        return moved

    def _hugetlb_frames(self) -> NDArray[np.int64]:
        """Frames of hugetlb that are mapped: compaction leaves them where they are."""
        parts = [
            mm.frames(area.start, (area.end - area.start) // self.page_size)
            for mm in self.mms
            for area in mm.areas
            if area.huge
        ]
        found = np.concatenate([np.zeros(0, np.int64), *parts])
        return found[found > 0]

    # --- accounting ---

    @property
    def free_frames(self) -> int:
        """Frames that nobody holds."""
        ctr = self.phys.ctr
        below = ctr[state.FREE_FRAMES] + ctr[state.FREE_LARGE]
        return int(self.phys.mapcount.shape[0] - ctr[state.NEXT_FRAME] + below)

    @property
    def used_frames(self) -> int:
        """Frames in use, those on swap included, the zero page not."""
        return int(self.phys.mapcount.shape[0]) - 1 - self.free_frames

    @property
    def used_swap_slots(self) -> int:
        """Slots in use, those that only the swap cache holds included."""
        return int(self.phys.ctr[state.USED_SLOTS])

    @property
    def faults(self) -> FaultStats:
        """Counters since the machine was made."""
        ctr = self.phys.ctr
        return FaultStats(
            minor=int(ctr[state.N_FAULTS]),
            cow=int(ctr[state.N_COW]),
            wp=int(ctr[state.N_WP]),
            swapin=int(ctr[state.N_SWAPIN]),
            zero=int(ctr[state.N_ZERO]),
            livelocks=int(ctr[state.N_LIVELOCKS]),
        )

    def release(self) -> None:
        """Drop all arrays. The machine and its address spaces are of no use afterwards."""
        self.mms.clear()
        self._objects.clear()
        self.content = np.zeros((2, self.page_size), np.uint8)
        self.phys = self._reserve(2, 0)


def _columns(rows: int, dtypes: list[type[np.generic]]) -> list[NDArray[Any]]:
    """Arrays of ``rows`` zeros of each type, widest first, in one block of memory."""
    sizes = [rows * np.dtype(dtype).itemsize for dtype in dtypes]
    block = np.zeros(sum(sizes), np.uint8)
    starts = np.cumsum([0, *sizes]).tolist()
    return [
        block[start : start + size].view(dtype)
        for start, size, dtype in zip(starts, sizes, dtypes, strict=False)
    ]
