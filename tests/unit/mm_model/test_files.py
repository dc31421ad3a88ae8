"""Mapped files: page cache, disk, write notification, holes, and what soft-dirty makes of them."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from numpy.typing import NDArray

from mm_model import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MADV_REMOVE,
    MADV_WILLNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PM_FILE,
    PM_PRESENT,
    PM_SOFT_DIRTY,
    PM_SWAP,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    MmError,
    ModelConfig,
    SegFault,
)

PAGE = 4096
BASE = 0x10_0000_0000
RW = PROT_READ | PROT_WRITE
ARCHES = pytest.mark.parametrize("arch", ["arm64", "x86_64"])


class Mapped:
    """A file of ``npages`` whose page k holds the byte k + 1 on disk, mapped in one process."""

    def __init__(self, kind: int, npages: int = 4, arch: str = "arm64", **settings: str) -> None:
        config = ModelConfig(frames=128, swap_slots=16, arch=arch, **settings)  # type: ignore[arg-type]
        self.machine = Machine(config)
        self.npages = npages
        self.file = self.machine.create_file(npages)
        for page in range(npages):
            self.machine.file_write(self.file, page * PAGE, bytes([page + 1]) * PAGE)
        self.machine.sync_file(self.file)
        self.machine.drop_caches()
        self.mm: Mm = self.machine.create_mm()
        self.start = self.mm.mmap(None, npages * PAGE, RW, kind, shared_id=self.file)
        self.mm.clear_refs()

    def at(self, *pages: int) -> NDArray[np.uint64]:
        return np.uint64(self.start) + np.array(pages, np.uint64) * np.uint64(PAGE)

    def write(self, *pages: int) -> int:
        return self.mm.store_words(self.at(*pages), np.full(len(pages), 0x77, np.uint64))

    def bits(self, bit: np.uint64) -> list[int]:
        return np.flatnonzero(self.mm.pagemap(self.start, self.npages) & bit).tolist()

    def byte(self, page: int) -> int:
        return self.mm.peek(self.start + page * PAGE + 9, 1)[0]


@ARCHES
@pytest.mark.parametrize("kind", [MAP_SHARED, MAP_PRIVATE])
def test_page_comes_from_the_disk_and_is_a_file_page(kind: int, arch: str) -> None:
    task = Mapped(kind, arch=arch)
    task.mm.touch(task.at(1, 3))
    assert task.bits(PM_PRESENT) == task.bits(PM_FILE) == [1, 3]
    assert [task.byte(page) for page in range(4)] == [1, 2, 3, 4]
    assert task.bits(PM_SOFT_DIRTY) == []


@ARCHES
def test_private_write_is_a_copy_and_leaves_the_file_alone(arch: str) -> None:
    task = Mapped(MAP_PRIVATE, arch=arch)
    task.mm.touch(task.at(0, 1))
    task.write(1, 2)
    assert task.bits(PM_SOFT_DIRTY) == [1, 2] and task.bits(PM_FILE) == [0]
    assert task.machine.file_read(task.file, PAGE, 8) == b"\2" * 8
    assert task.machine.dirty_file_pages == 0


@ARCHES
def test_shared_write_changes_the_file_and_counts_as_dirty_until_it_is_stored(arch: str) -> None:
    task = Mapped(MAP_SHARED, arch=arch)
    task.write(1, 2)
    assert task.machine.dirty_file_pages == 2 and task.bits(PM_SOFT_DIRTY) == [1, 2]
    task.mm.msync(task.start, PAGE)
    assert task.machine.dirty_file_pages == 0
    task.mm.madvise(task.start, 4 * PAGE, MADV_DONTNEED)
    task.machine.drop_caches()
    assert task.mm.load(task.start + PAGE, 8) == (0x77).to_bytes(8, "little")


@ARCHES
def test_writeback_protects_pages_again_and_keeps_soft_dirty(arch: str) -> None:
    task = Mapped(MAP_SHARED, arch=arch)
    assert task.write(0) == 1 and task.write(0) == 0
    task.machine.sync_file(task.file)
    assert task.bits(PM_SOFT_DIRTY) == [0]
    assert task.write(0) == 1  # the file system must hear of it
    assert task.machine.dirty_file_pages == 1


def test_new_mapping_of_a_file_is_write_protected_where_one_of_shared_memory_is_not() -> None:
    machine = Machine(ModelConfig(frames=64))
    mm = machine.create_mm()
    memory = mm.mmap(None, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS)
    file = mm.mmap(None, PAGE, RW, MAP_SHARED, shared_id=machine.create_file(1))
    for start, faults in ((memory, 0), (file, 1)):
        where = np.array([start], np.uint64)
        mm.touch(where)
        assert mm.store_words(where, where) == faults


def test_write_system_call_is_seen_by_no_soft_dirty_bit() -> None:
    task = Mapped(MAP_SHARED)
    task.mm.touch(task.at(0))
    before = task.mm.versions(task.start, 1)[0]
    task.machine.file_write(task.file, 0, b"changed")
    assert task.mm.load(task.start, 7) == b"changed"
    assert task.mm.versions(task.start, 1)[0] != before and task.bits(PM_SOFT_DIRTY) == []


@pytest.mark.parametrize("kind", [MAP_SHARED, MAP_PRIVATE])
def test_reclaim_drops_a_clean_page_and_swaps_a_private_copy(kind: int) -> None:
    task = Mapped(kind)
    task.mm.touch(task.at(0))
    task.write(1)
    frames = task.machine.used_frames
    task.mm.madvise(task.start, 4 * PAGE, MADV_PAGEOUT)
    assert task.bits(PM_PRESENT) == []
    assert task.bits(PM_SWAP) == ([1] if kind == MAP_PRIVATE else [])
    assert task.bits(PM_SOFT_DIRTY) == ([1] if kind == MAP_PRIVATE else [])
    assert task.machine.used_frames < frames  # the clean page has left the cache
    assert task.mm.load(task.start + PAGE, 1) == b"\x77"
    assert task.mm.load(task.start + 9, 1) == b"\1"


def test_clean_file_page_is_lost_to_soft_dirty_with_its_entry() -> None:
    task = Mapped(MAP_SHARED)
    task.write(0)
    task.mm.madvise(task.start, PAGE, MADV_DONTNEED)
    task.mm.touch(task.at(0))
    assert task.bits(PM_PRESENT) == [0] and task.bits(PM_SOFT_DIRTY) == []
    assert task.byte(0) == 2 - 1  # byte 9 is still the disk's
    assert task.machine.dirty_file_pages == 1


def test_hole_takes_the_page_from_every_mapping_but_not_private_copies() -> None:
    task = Mapped(MAP_SHARED)
    other = task.machine.create_mm()
    private = other.mmap(None, 4 * PAGE, RW, MAP_PRIVATE, shared_id=task.file)
    where = np.uint64(private) + np.arange(4, dtype=np.uint64) * np.uint64(PAGE)
    task.mm.touch(task.at(0, 1))
    other.touch(where[:1])
    other.store_words(where[1:2], where[1:2])
    task.mm.madvise(task.start, 2 * PAGE, MADV_REMOVE)
    assert task.bits(PM_PRESENT) == []
    assert (other.pagemap(private, 2) & PM_PRESENT).astype(bool).tolist() == [False, True]
    assert task.mm.load(task.start, PAGE) == bytes(PAGE)
    assert other.load(private + PAGE, 8) == int(where[1]).to_bytes(8, "little")
    task.machine.sync_file(task.file)
    task.machine.drop_caches()
    assert task.machine.file_read(task.file, PAGE, 4) == bytes(4)
    assert task.machine.file_read(task.file, 2 * PAGE, 4) == b"\3" * 4


@pytest.mark.parametrize("kernel", ["6.12", "6.1"])
def test_hole_may_be_punched_through_a_mapping_that_is_read_only_for_now(kernel: str) -> None:
    task = Mapped(MAP_SHARED, kernel=kernel)
    task.mm.mprotect(task.start, 4 * PAGE, PROT_READ)
    task.mm.madvise(task.start, PAGE, MADV_REMOVE)
    assert task.mm.load(task.start, 8) == bytes(8)


def test_mprotect_makes_only_pages_writable_that_the_file_system_knows_of() -> None:
    task = Mapped(MAP_SHARED)
    task.mm.touch(task.at(0))
    task.write(1)
    task.mm.mprotect(task.start, 4 * PAGE, PROT_READ)
    task.mm.mprotect(task.start, 4 * PAGE, RW)
    assert task.write(1) == 0  # dirty and soft-dirty already
    assert task.write(0) == 1


def test_willneed_reads_into_the_cache_and_maps_nothing() -> None:
    task = Mapped(MAP_SHARED)
    used = task.machine.used_frames
    task.mm.madvise(task.start, 4 * PAGE, MADV_WILLNEED)
    assert task.machine.used_frames == used + 4 and task.bits(PM_PRESENT) == []


def test_beyond_the_end_of_the_file_is_sigbus_and_closing_frees_everything() -> None:
    machine = Machine(ModelConfig(frames=64))
    file = machine.create_file(1)
    mm = machine.create_mm()
    start = mm.mmap(None, 2 * PAGE, RW, MAP_SHARED, shared_id=file)
    mm.store_words(np.array([start], np.uint64), np.array([1], np.uint64))
    with pytest.raises(SegFault) as fault:
        mm.touch(np.array([start + PAGE], np.uint64))
    assert fault.value.signal == 7
    machine.sync_file(file)
    machine.close_shared(file)
    mm.munmap(start, 2 * PAGE)
    assert machine.used_frames == 0
    with pytest.raises(MmError):
        machine.file_read(file, 0, 1)


# --- objects from outside of all processes ---


def stored(machine: Machine, made: int, *pages: int) -> None:
    """Each page filled with its own number."""
    where = np.array(pages, np.int64)
    machine.install_object(made, where, np.repeat(where.astype(np.uint8), PAGE))


@pytest.mark.parametrize("disk", [True, False])
def test_pages_put_into_an_object_show_in_every_mapping(disk: bool) -> None:
    machine = Machine(ModelConfig(frames=64, swap_slots=64))
    made = machine.create_file(4) if disk else machine.create_shared(4, keep=True)
    assert machine.object_frames(made).tolist() == [-1] * 4
    mm = machine.create_mm()
    mm.mmap(BASE, 4 * PAGE, RW, MAP_SHARED | MAP_FIXED, shared_id=made)
    stored(machine, made, 1, 3)
    assert mm.peek(BASE + PAGE, PAGE) == bytes([1]) * PAGE
    assert mm.peek(BASE + 3 * PAGE, PAGE) == bytes([3]) * PAGE
    rows = machine.object_frames(made)
    assert (rows > 0).tolist() == [False, True, False, True]
    assert rows.tolist() == [-1 if row < 0 else row for row in mm.frames(BASE, 4).tolist()]
    before = machine.phys.version[rows[1]]
    stored(machine, made, 1)
    assert machine.phys.version[rows[1]] == before  # the same bytes are no change


def test_an_objects_pages_are_found_on_swap_and_on_disk() -> None:
    machine = Machine(ModelConfig(frames=64, swap_slots=64))
    shmem, file = machine.create_shared(2, keep=True), machine.create_file(2)
    for made in (shmem, file):
        stored(machine, made, 1)
    mm = machine.create_mm()
    mm.mmap(BASE, 2 * PAGE, RW, MAP_SHARED | MAP_FIXED, shared_id=shmem)
    mm.touch(np.array([BASE + PAGE], np.uint64))
    mm.madvise(BASE, 2 * PAGE, MADV_PAGEOUT)
    assert machine.used_swap_slots == 1
    machine.sync_file(file)
    machine.drop_caches()
    for made in (shmem, file):
        row = int(machine.object_frames(made)[1])
        assert machine.content[row].tobytes() == bytes([1]) * PAGE


def test_an_object_has_an_end() -> None:
    machine = Machine(ModelConfig(frames=64))
    made = machine.create_file(2)
    with pytest.raises(MmError) as refused:
        stored(machine, made, 2)
    assert refused.value.errno == errno.EFBIG
    with pytest.raises(ValueError, match="one page for each number"):
        machine.install_object(made, np.array([0, 1]), np.zeros(PAGE, np.uint8))
