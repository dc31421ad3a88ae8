"""Plays operations of the script language on `mm_model`, and shows what they left behind.

The player does to the model what the probe program did to the kernel, through the model's public
interface only; it holds no idea of its own of what ought to happen. The probe is one task with
at most one child, and these operations:

* ``write``/``read``: a 4-byte access to each page, up to the first that faults (result: signal);
* ``fill``: the whole page; ``cwrite``/``cread``: the same accesses, made by the child;
* ``memwrite``/``memread``: /proc/self/mem, page by page (forced access through GUP);
* ``sysread``: read(2) of zeros into the page: a store by the kernel, -EFAULT if it may not;
* ``fork`` ends an older child first;
* ``attach`` maps the file of another region, ``fwrite`` is write(2) to the region's file, at the
  same pages; ``msync`` stores. The probe does not have these, nor mappings of files on a disk.

Numbers (advice, mmap and mremap flags, pagemap bits) are those of the Linux uapi, written down
here again so that a wrong constant in the model shows. What the model does not have yet raises
`NotModelled`, whoever notices it first.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from livemigration.operations import BASE, FILES, STRIDE, Op
from mm_model import (
    Livelock,
    Machine,
    Mm,
    MmError,
    ModelConfig,
    NotModelled,
    SegFault,
    Userfaultfd,
)
from predump.conform.trace import SCAN_FIELD, RegionState, VmaRecord

U64 = NDArray[np.uint64]

PROT = {"none": 0, "r": 1, "rw": 3}
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE = 1, 2, 16, 32, 1 << 20
MAP_HUGETLB, MAP_HUGE_SHIFT = 1 << 18, 26
HUGETLB_SHIFT = {"hugetlb64k": 16, "hugetlb2m": 21}
MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
ADVICE = {
    "willneed": 3,
    "dontneed": 4,
    "free": 8,
    "remove": 9,
    "dontfork": 10,
    "hugepage": 14,
    "nohugepage": 15,
    "wipeonfork": 18,
    "cold": 20,
    "pageout": 21,
    "populate_read": 22,
    "populate_write": 23,
    "collapse": 25,
}
MADV_MERGEABLE = 12
PAGE_IS_SOFT_DIRTY = 1 << 7
PAGEMAP_BITS = {"present": 63, "swap": 62, "soft_dirty": 55, "file": 61, "uffd_wp": 57}

# Bits of an arm64 stage 1 descriptor, and of the patch (soft-dirty).
PTE_RDONLY, PTE_WRITE, PTE_CONT, PTE_DIRTY, PTE_SOFT_DIRTY = 7, 51, 52, 55, 63

UFFD_FEATURE_WP_UNPOPULATED, UFFD_FEATURE_WP_ASYNC = 1 << 13, 1 << 15

NO_CHILD = -1000
"""The probe's result of an operation on a child, or a userfaultfd, that is not there."""


class Player:
    """The probe program's part: executes operations on a fresh machine of the model."""

    def __init__(self, config: ModelConfig) -> None:
        self.machine = Machine(config)
        self.page_size = config.page_size
        self.mm: Mm = self.machine.create_mm()
        self.child: Mm | None = None
        self.uffd: Userfaultfd | None = None
        self.pages: dict[int, int] = {}
        self._files: dict[int, int] = {}
        self._counter = 1

    # -- the operations ------------------------------------------------------------------

    def execute(self, op: Op) -> int:
        """Execute one operation; its result as the probe records it. `Livelock` passes through."""
        match op.verb:
            case "map":
                return self._map(op)
            case "remap":
                flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS
                rc = self._call(
                    lambda: self.mm.mmap(self._at(op), self._length(op), PROT["rw"], flags)
                )
                return self._mapped(rc, op.region, op.page + op.count)
            case "munmap":
                return self._call(lambda: self.mm.munmap(self._at(op), self._length(op)))
            case "mremap" | "mremap_dontunmap":
                return self._mremap(op)
            case "mexpand":
                grown = op.new_count * self.page_size
                rc = self._call(lambda: self.mm.mremap(self._at(op), self._length(op), grown, 0))
                return self._mapped(rc, op.region, op.page + op.new_count)
            case "mprotect":
                return self._call(
                    lambda: self.mm.mprotect(self._at(op), self._length(op), PROT[op.prot])
                )
            case "mlock":
                return self._call(lambda: self.mm.mlock(self._at(op), self._length(op)))
            case "munlock":
                return self._call(lambda: self.mm.munlock(self._at(op), self._length(op)))
            case "write":
                return self._write(self.mm, op)
            case "read":
                return self._call(lambda: self.mm.touch(self._addresses(op)))
            case "fill":
                whole = bytes([op.value & 0xFF]) * self.page_size
                return self._store(self.mm, op, whole * op.count)
            case "memwrite":
                value = self._next().to_bytes(4, "little")
                return self._each(op, lambda address: self.mm.gup_write(address, value))
            case "memread":
                return self._each(op, lambda address: self.mm.gup_read(address, 4))
            case "sysread":
                # The kernel stores where the task may store; it gets an error and no signal.
                return -errno.EFAULT if self._store(self.mm, op, bytes(8) * op.count) else 0
            case "clear":
                return self._call(lambda: self.mm.clear_refs(4))
            case "clear1":
                return self._call(lambda: self.mm.clear_refs(1))
            case "cclear":
                if self.child is None:
                    return NO_CHILD
                return self._call(partial(self.child.clear_refs, 4))
            case "fork":
                self._end_child()
                self.child = self.mm.fork()
                return 0
            case "cexit":
                self._end_child()
                return 0
            case "cwrite":
                return NO_CHILD if self.child is None else self._write(self.child, op)
            case "cread":
                if self.child is None:
                    return NO_CHILD
                return self._call(partial(self.child.touch, self._addresses(op)))
            case "swapoff":
                return self._call(self.machine.swapoff)
            case "swapon":
                return self._call(self.machine.swapon)
            case "ksm":
                rc = self._call(
                    lambda: self.mm.madvise(self._at(op), self._length(op), MADV_MERGEABLE)
                )
                self.machine.ksm_scan()
                return rc
            case "unmerge":
                return self._call(self.machine.ksm_unmerge)
            case "compact":
                # Which pages move is the kernel's business: the judge has those moved that did.
                # In the golden recordings none did: else the kernel without pte_swp_mksoft_dirty
                # would have lost soft-dirty in h61.
                return 0
            case "migrate":
                pages = op.count
                self._call(lambda: self.machine.migrate_start(self.mm, self._at(op), pages))
                return 0
            case "migrated":
                return self._call(self.machine.migrate_finish)
            case "attach":
                return self._attach(op)
            case "fwrite":
                return self._file_write(op)
            case "msync":
                return self._call(lambda: self.mm.msync(self._at(op), self._length(op)))
            case "uffd":
                return self._uffd_register(op)
            case "uwp":
                uffd = self.uffd
                if uffd is None:
                    return NO_CHILD
                return self._call(
                    lambda: uffd.writeprotect(self._at(op), self._length(op), enable=bool(op.value))
                )
            case "mthp":
                return self._call(lambda: self.machine.set_mthp(op.value, op.mode))
            case "thp":
                return self._call(lambda: self.machine.set_thp(op.mode))
            case "thpsplit":
                return self._call(lambda: self.mm.split_huge_pages(self._at(op), self._length(op)))
            case verb if verb in ADVICE:
                return self._call(
                    lambda: self.mm.madvise(self._at(op), self._length(op), ADVICE[verb])
                )
            case verb:
                raise NotModelled(f"{verb}: an operation is not modelled yet")

    def migrate(self, who: str, region: int, page: int) -> None:
        """Move one page to another frame, as compaction may."""
        self.machine.migrate_start(self.task(who), self.address(region, page), 1)
        self.machine.migrate_finish()

    def _uffd_register(self, op: Op) -> int:
        if self.uffd is None:
            features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED
            try:
                self.uffd = self.mm.userfaultfd(features)
            except MmError as refused:
                return -(refused.errno or 0)
        uffd = self.uffd
        return self._call(lambda: uffd.register(self._at(op), self._length(op)))

    @staticmethod
    def _call(call: Callable[[], object]) -> int:
        """0, the signal of a fault, or -errno."""
        try:
            call()
        except (Livelock, NotModelled):
            raise
        except SegFault as fault:
            return int(fault.signal)
        except MmError as error:
            if error.errno is None:
                raise
            return -error.errno
        return 0

    def _next(self) -> int:
        self._counter += 1
        return self._counter

    def address(self, region: int, page: int = 0) -> int:
        """Where a page of a region lies."""
        return BASE + region * STRIDE + page * self.page_size

    def _at(self, op: Op) -> int:
        return self.address(op.region, op.page)

    def _length(self, op: Op) -> int:
        return op.count * self.page_size

    def _addresses(self, op: Op) -> U64:
        return np.uint64(self._at(op)) + np.arange(op.count, dtype=np.uint64) * np.uint64(
            self.page_size
        )

    def _mapped(self, rc: int, region: int, end: int) -> int:
        """A region is as long as the last page ever mapped in it."""
        if not rc:
            self.pages[region] = max(end, self.pages.get(region, 0))
        return rc

    def _map(self, op: Op) -> int:
        shared = op.kind.endswith("shared")
        flags = MAP_FIXED_NOREPLACE | (MAP_SHARED if shared else MAP_PRIVATE)
        shared_id = 0
        if op.kind.startswith(FILES):
            # A file's name goes at once: like a tmpfs file it is there as long as it is mapped.
            on_disk = op.kind.startswith("file")
            create = self.machine.create_file if on_disk else self.machine.create_shared
            shared_id = self._files[op.region] = create(op.count) if op.count else 0
        else:
            flags |= MAP_ANONYMOUS
        if op.kind.startswith("hugetlb"):
            log2_size = HUGETLB_SHIFT[op.kind.removesuffix("-shared")]
            flags |= MAP_HUGETLB | log2_size << MAP_HUGE_SHIFT
        start = self.address(op.region)
        rc = self._call(
            lambda: self.mm.mmap(
                start, self._length(op), PROT["rw"], flags, shared_id=shared_id, pgoff=0
            )
        )
        return self._mapped(rc, op.region, op.count)

    def _attach(self, op: Op) -> int:
        shared_id = self._files.get(op.to_region, 0)
        flags = MAP_FIXED_NOREPLACE | (MAP_SHARED if op.sharing == "shared" else MAP_PRIVATE)
        start = self.address(op.region)
        rc = self._call(
            lambda: self.mm.mmap(start, self._length(op), PROT["rw"], flags, shared_id=shared_id)
        )
        if not rc:
            self._files[op.region] = shared_id
        return self._mapped(rc, op.region, op.count)

    def _file_write(self, op: Op) -> int:
        shared_id = self._files.get(op.region, 0)
        value = self._next().to_bytes(4, "little")
        for page in range(op.page, op.page + op.count):
            offset = page * self.page_size
            rc = self._call(partial(self.machine.file_write, shared_id, offset, value))
            if rc:
                return rc
        return 0

    def _mremap(self, op: Op) -> int:
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        if op.verb == "mremap_dontunmap":
            flags |= MREMAP_DONTUNMAP
        target = self.address(op.to_region, op.to_page)
        length = self._length(op)
        rc = self._call(lambda: self.mm.mremap(self._at(op), length, length, flags, target))
        return self._mapped(rc, op.to_region, op.to_page + op.count)

    def _write(self, mm: Mm, op: Op) -> int:
        values = b"".join(self._next().to_bytes(4, "little") for _ in range(op.count))
        return self._store(mm, op, values)

    def _store(self, mm: Mm, op: Op, payload: bytes) -> int:
        if op.count <= 0:
            return 0  # a few random scripts count below zero: the probe's loops then do nothing
        sizes = np.full(op.count, len(payload) // op.count, dtype=np.uint32)
        data = np.frombuffer(payload, dtype=np.uint8)
        return self._call(lambda: mm.store(self._addresses(op), sizes, data))

    def _each(self, op: Op, access: Callable[[int], object]) -> int:
        for address in self._addresses(op).tolist():
            rc = self._call(partial(access, address))
            if rc:
                return rc
        return 0

    def _end_child(self) -> None:
        if self.child is not None:
            self.child.exit()
            self.child = None

    # -- what shows ----------------------------------------------------------------------

    def task(self, who: str) -> Mm:
        """The address space of ``self`` or ``child``; LookupError if there is no child."""
        mm = self.mm if who == "self" else self.child
        if mm is None:
            raise LookupError("there is no child")
        return mm

    def show(self, who: str, region: int, *, descriptors: bool) -> RegionState:
        """The region as the probe would have recorded it."""
        mm = self.task(who)
        start, npages = self.address(region), self.pages[region]
        entries = mm.pagemap(start, npages)
        fields = {name: _text(_bit(entries, bit)) for name, bit in PAGEMAP_BITS.items()}
        if self.machine.profile.pagemap_scan:
            fields[SCAN_FIELD] = _text(scan_soft_dirty(mm, start, npages))
        if descriptors:
            present = _bit(entries, PAGEMAP_BITS["present"])
            fields |= {
                name: _text(bits & present)
                for name, bits in descriptor_bits(mm.ptes(start, npages)).items()
            }
        return RegionState(fields, self._vmas(mm, start, npages))

    def _vmas(self, mm: Mm, start: int, npages: int) -> tuple[VmaRecord, ...]:
        end = start + npages * self.page_size
        return tuple(
            VmaRecord(
                start=(vma.start - start) // self.page_size,
                end=(vma.end - start) // self.page_size,
                perms="".join(
                    letter if vma.prot & bit else "-"
                    for letter, bit in (("r", 1), ("w", 2), ("x", 4))
                )
                + ("s" if vma.flags & MAP_SHARED else "p"),
                soft_dirty=vma.soft_dirty,
            )
            for vma in mm.vmas()
            if start <= vma.start < end
        )


def scan_soft_dirty(mm: Mm, start: int, npages: int) -> NDArray[np.bool_]:
    """Which of ``npages`` pages from ``start`` PAGEMAP_SCAN calls soft-dirty."""
    size = mm.machine.page_size
    found = mm.pagemap_scan(
        start,
        start + npages * size,
        category_mask=PAGE_IS_SOFT_DIRTY,
        return_mask=PAGE_IS_SOFT_DIRTY,
    )
    dirty = np.zeros(npages, np.bool_)
    for first, end, _ in found.regions.tolist():
        dirty[(first - start) // size : (end - start) // size] = True
    return dirty


def _bit(entries: U64, bit: int) -> NDArray[np.bool_]:
    return (entries >> np.uint64(bit) & np.uint64(1)).astype(np.bool_)


def _text(bits: NDArray[np.bool_]) -> str:
    return (bits + np.uint8(ord("0"))).tobytes().decode("ascii")


def descriptor_bits(ptes: U64) -> dict[str, NDArray[np.bool_]]:
    """The instrumented kernel's answers (pte_write(), pte_dirty(), ...) for raw descriptors."""
    write, rdonly = _bit(ptes, PTE_WRITE), _bit(ptes, PTE_RDONLY)
    return {
        "cont": _bit(ptes, PTE_CONT),
        "pte_write": write,
        # Dirty in software, or by hardware: writable and no longer read-only.
        "pte_dirty": _bit(ptes, PTE_DIRTY) | (write & ~rdonly),
        "pte_sd": _bit(ptes, PTE_SOFT_DIRTY),
        "pte_rdonly": rdonly,
    }
