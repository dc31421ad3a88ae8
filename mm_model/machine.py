"""One host: physical memory, shared objects, swap, and the address spaces that use them."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm_model import state
from mm_model.config import ModelConfig, build_arch
from mm_model.errors import Livelock, MmError
from mm_model.shmem import shmem_truncate, shmem_unuse
from mm_model.state import CTR_SIZE, Phys
from mm_model.swap import drop_swap_cache, unuse_range

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
    """

    first: int
    npages: int
    keep: bool
    was_mapped: bool = False


class Machine:
    """One host's memory. Callers serialise access; nothing here locks.

    ``content``, when given, is the caller's zero-filled buffer of uint8 (frames, page_size), e.g. a
    file mapping.
    """

    def __init__(self, config: ModelConfig, content: NDArray[np.uint8] | None = None) -> None:
        self.config = config
        self.page_size = config.page_size
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
        self.phys = self._reserve(content.shape[0], config.swap_slots)

    def _reserve(self, frames: int, swap_slots: int) -> Phys:
        entries = self.page_size // 8
        tables = 64 + 4 * (frames // entries)
        slots = swap_slots + 1  # slot 0 is the swap header
        # One allocation for all that is kept per frame: large enough for the host's huge pages,
        # without which looking frames up in no order is mostly waiting for the host's own tables.
        version, free_frames, mapcount, slot_of, flags = _columns(
            frames, [np.uint64, np.int64, np.int32, np.int32, np.uint8]
        )
        phys = Phys(
            tables=np.zeros(tables * entries, np.uint64),
            free_tables=np.zeros(tables, np.int64),
            content=self.content.view(np.uint64),
            version=version,
            mapcount=mapcount,
            flags=flags,
            slot_of=slot_of,
            free_frames=free_frames,
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
        return phys

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

    def create_shared(self, npages: int, *, keep: bool = False) -> int:
        """A shared object of ``npages`` empty pages; returns its id (> 0).

        It goes with its last mapping, like anonymous shared memory, unless ``keep``: then like a
        tmpfs file only with ``close_shared``.
        """
        if npages <= 0:
            raise MmError(errno.EINVAL, f"a shared object of {npages} pages: must be at least 1")
        first = self._cache_used
        needed = first + npages
        if needed > self.phys.cache.shape[0]:
            grown = np.zeros(max(needed, 2 * self.phys.cache.shape[0]), np.uint64)
            grown[: self.phys.cache.shape[0]] = self.phys.cache
            self.phys = self.phys._replace(cache=grown)
        self._cache_used = needed
        self._last_object += 1
        self._objects[self._last_object] = SharedObject(first, npages, keep)
        return self._last_object

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
            shmem_truncate(self.phys, found.first, found.npages)
            del self._objects[shared_id]
            if found.first + found.npages == self._cache_used:
                self._cache_used = found.first

    def truncate_page(self, position: int) -> None:
        """Remove the page at ``position`` of the cache from its object. Nothing may map it."""
        shmem_truncate(self.phys, position, 1)

    def ensure_tables(self, count: int) -> None:
        """Make sure that ``count`` more page tables can be allocated."""
        phys = self.phys
        capacity = phys.free_tables.shape[0]
        free = capacity - int(phys.ctr[state.NEXT_TABLE]) + int(phys.ctr[state.FREE_TABLES])
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

    # --- accounting ---

    @property
    def free_frames(self) -> int:
        """Frames that nobody holds."""
        ctr = self.phys.ctr
        return int(self.phys.mapcount.shape[0] - ctr[state.NEXT_FRAME] + ctr[state.FREE_FRAMES])

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
