"""userfaultfd write-protection with WP_ASYNC: what was written is what has lost its mark."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from numpy.typing import NDArray

from mm_model import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PM_PRESENT,
    PM_SOFT_DIRTY,
    PM_SWAP,
    PM_UFFD_WP,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    MmError,
    ModelConfig,
    NotModelled,
    Userfaultfd,
)

PAGE = 4096
RW = PROT_READ | PROT_WRITE
U64 = NDArray[np.uint64]


class Tracked:
    """A process with one registered mapping of ``npages``, all of it written if ``filled``."""

    def __init__(self, npages: int = 8, *, shared: bool = False, filled: bool = True) -> None:
        self.machine = Machine(ModelConfig(frames=256, swap_slots=64))
        self.mm: Mm = self.machine.create_mm()
        kind = MAP_SHARED if shared else MAP_PRIVATE
        self.start = self.mm.mmap(None, npages * PAGE, RW, kind | MAP_ANONYMOUS)
        self.npages = npages
        if filled:
            self.write(*range(npages))
        self.uffd: Userfaultfd = self.mm.userfaultfd()
        self.uffd.register(self.start, npages * PAGE)

    def at(self, *pages: int) -> U64:
        return np.uint64(self.start) + np.array(pages, np.uint64) * np.uint64(PAGE)

    def write(self, *pages: int) -> None:
        self.mm.store_words(self.at(*pages), self.at(*pages) + np.uint64(1))

    def protect(self, first: int = 0, count: int | None = None) -> None:
        count = self.npages if count is None else count
        self.uffd.writeprotect(self.start + first * PAGE, count * PAGE)

    def bits(self, bit: np.uint64) -> list[int]:
        """The pages that have this pagemap bit."""
        return np.flatnonzero(self.mm.pagemap(self.start, self.npages) & bit).tolist()


def test_write_takes_the_mark_off_and_reading_does_not() -> None:
    task = Tracked()
    task.protect()
    assert task.bits(PM_UFFD_WP) == list(range(8))
    task.mm.touch(task.at(1, 2))
    task.write(3, 5)
    assert task.bits(PM_UFFD_WP) == [0, 1, 2, 4, 6, 7]


@pytest.mark.parametrize("shared", [False, True])
def test_marker_stands_for_a_page_that_is_not_there_and_shows_as_swapped(shared: bool) -> None:
    task = Tracked(shared=shared, filled=False)
    task.protect(2, 3)
    assert task.bits(PM_SWAP) == task.bits(PM_UFFD_WP) == [2, 3, 4]
    assert task.mm.frames(task.start, 8).tolist() == [-1] * 8
    task.mm.touch(task.at(3))  # the page that comes in is protected
    assert task.bits(PM_PRESENT) == [3] and task.bits(PM_UFFD_WP) == [2, 3, 4]
    task.write(2, 3)
    assert task.bits(PM_UFFD_WP) == [4]


def test_mark_survives_swapping_out_and_in() -> None:
    task = Tracked()
    task.protect(0, 4)
    task.mm.madvise(task.start, 8 * PAGE, MADV_PAGEOUT)
    assert task.bits(PM_SWAP) == list(range(8)) and task.bits(PM_UFFD_WP) == [0, 1, 2, 3]
    task.mm.touch(task.at(0, 1, 4))
    task.write(1)
    assert task.bits(PM_UFFD_WP) == [0, 2, 3]
    task.machine.swapoff()
    assert task.bits(PM_UFFD_WP) == [0, 2, 3]


def test_dontneed_forgets_marks_of_anonymous_memory_and_keeps_those_of_shared_memory() -> None:
    private, shared = Tracked(), Tracked(shared=True)
    for task in (private, shared):
        task.protect(0, 4)
        task.mm.madvise(task.start, 8 * PAGE, MADV_DONTNEED)
    assert private.bits(PM_UFFD_WP) == []
    assert shared.bits(PM_UFFD_WP) == shared.bits(PM_SWAP) == [0, 1, 2, 3]
    assert shared.mm.load(shared.start, 8) == (shared.start + 1).to_bytes(8, "little")
    assert shared.bits(PM_UFFD_WP) == [0, 1, 2, 3]


def test_reclaimed_shared_page_leaves_a_marker() -> None:
    task = Tracked(shared=True)
    task.protect(0, 2)
    task.mm.madvise(task.start, 8 * PAGE, MADV_PAGEOUT)
    assert task.bits(PM_UFFD_WP) == task.bits(PM_SWAP) == [0, 1]


def test_protection_alone_does_not_touch_soft_dirty() -> None:
    task = Tracked()
    task.mm.clear_refs()
    task.write(1)
    task.protect()
    assert task.bits(PM_SOFT_DIRTY) == [1]
    task.uffd.writeprotect(task.start, 8 * PAGE, enable=False)
    assert task.bits(PM_SOFT_DIRTY) == [1] and task.bits(PM_UFFD_WP) == []


def test_forced_write_takes_the_mark_off_as_well() -> None:
    task = Tracked()
    task.protect()
    task.mm.mprotect(task.start, 8 * PAGE, PROT_READ)
    task.mm.gup_write(task.start + PAGE, b"forced")
    assert task.bits(PM_UFFD_WP) == [0, 2, 3, 4, 5, 6, 7]


def test_mprotect_keeps_marked_pages_read_only() -> None:
    task = Tracked()
    task.protect(0, 2)
    task.mm.mprotect(task.start, 8 * PAGE, PROT_READ)
    task.mm.mprotect(task.start, 8 * PAGE, RW)
    writable = task.mm.ptes(task.start, 3) >> np.uint64(51) & np.uint64(1)
    assert writable.tolist() == [0, 0, 1]


def test_child_is_not_registered_and_has_no_marks() -> None:
    task = Tracked()
    task.protect()
    task.mm.madvise(task.start, 2 * PAGE, MADV_PAGEOUT)
    child = task.mm.fork()
    assert not (child.pagemap(task.start, 8) & PM_UFFD_WP).any()
    assert task.bits(PM_UFFD_WP) == list(range(8))


@pytest.mark.parametrize(("kernel", "kept"), [("6.12", []), ("seed", [0, 1, 2, 3])])
def test_moved_mapping_is_no_longer_registered(kernel: str, kept: list[int]) -> None:
    mm = Machine(ModelConfig(frames=64, kernel=kernel)).create_mm()
    start = mm.mmap(None, 4 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS)
    where = np.uint64(start) + np.arange(4, dtype=np.uint64) * np.uint64(PAGE)
    mm.store_words(where, where)
    uffd = mm.userfaultfd()
    uffd.register(start, 4 * PAGE)
    uffd.writeprotect(start, 4 * PAGE)
    target = 0x10_0000_0000
    mm.mremap(start, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target)
    assert np.flatnonzero(mm.pagemap(target, 4) & PM_UFFD_WP).tolist() == kept
    with pytest.raises(MmError) as refused:
        uffd.writeprotect(target, PAGE)
    assert refused.value.errno == errno.ENOENT


def test_unregistering_and_closing_take_all_marks_away() -> None:
    task = Tracked()
    task.protect()
    task.uffd.unregister(task.start, 2 * PAGE)
    assert task.bits(PM_UFFD_WP) == [2, 3, 4, 5, 6, 7]
    task.uffd.close()
    assert task.bits(PM_UFFD_WP) == []
    assert len(task.mm.vmas()) == 1
    task.mm.userfaultfd().register(task.start, PAGE)


def test_what_cannot_be_done_is_said() -> None:
    old = Machine(ModelConfig(frames=16, kernel="6.1")).create_mm()
    with pytest.raises(MmError) as refused:
        old.userfaultfd()
    assert refused.value.errno == errno.EINVAL
    task = Tracked()
    with pytest.raises(NotModelled, match="second"):
        task.mm.userfaultfd()
    with pytest.raises(MmError) as refused:
        task.uffd.register(task.start - 64 * PAGE, PAGE)
    assert refused.value.errno == errno.EINVAL
    with pytest.raises(NotModelled, match="handler"):
        task.machine.create_mm().userfaultfd(0)
