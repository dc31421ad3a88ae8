"""Pages that merge and pages that move: what becomes of soft-dirty, uffd-wp and content."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mm_model import (
    MADV_DONTNEED,
    MADV_MERGEABLE,
    MADV_PAGEOUT,
    MADV_UNMERGEABLE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PM_MMAP_EXCLUSIVE,
    PM_PRESENT,
    PM_SOFT_DIRTY,
    PM_SWAP,
    PM_UFFD_WP,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    ModelConfig,
)

PAGE = 4096
RW = PROT_READ | PROT_WRITE
BASE = 0x10_0000_0000
ARCHES = pytest.mark.parametrize("arch", ["arm64", "x86_64"])


def at(*pages: int) -> NDArray[np.uint64]:
    return np.uint64(BASE) + np.array(pages, np.uint64) * np.uint64(PAGE)


def fill(mm: Mm, byte: int, *pages: int) -> None:
    sizes = np.full(len(pages), PAGE, np.uint32)
    mm.store(at(*pages), sizes, np.full(PAGE * len(pages), byte, np.uint8))


def bits(mm: Mm, bit: np.uint64, npages: int = 8) -> list[int]:
    return np.flatnonzero(mm.pagemap(BASE, npages) & bit).tolist()


def make(kind: int = MAP_PRIVATE, **settings: object) -> tuple[Machine, Mm]:
    config = {"frames": 256, "swap_slots": 32} | settings
    machine = Machine(ModelConfig(**config))  # type: ignore[arg-type]
    mm = machine.create_mm()
    mm.mmap(BASE, 8 * PAGE, RW, kind | MAP_ANONYMOUS | MAP_FIXED)
    return machine, mm


def merge(machine: Machine, mm: Mm) -> None:
    mm.madvise(BASE, 8 * PAGE, MADV_MERGEABLE)
    machine.ksm_scan()


# --- KSM ---


@ARCHES
def test_equal_pages_share_a_frame_until_one_is_written(arch: str) -> None:
    machine, mm = make(arch=arch)
    fill(mm, 7, 0, 2, 4, 6)
    fill(mm, 9, 1, 3, 5, 7)
    merge(machine, mm)
    frames = mm.frames(BASE, 8).tolist()
    assert len(set(frames[::2])) == len(set(frames[1::2])) == 1 and machine.used_frames == 2
    fill(mm, 1, 2)
    assert machine.used_frames == 3
    assert [mm.peek(BASE + page * PAGE, 1)[0] for page in range(4)] == [7, 9, 1, 9]


def test_written_page_that_is_merged_away_is_lost_to_both_trackers() -> None:
    machine, mm = make()
    fill(mm, 5, *range(8))
    uffd = mm.userfaultfd()
    uffd.register(BASE, 8 * PAGE)
    uffd.writeprotect(BASE, 8 * PAGE)
    mm.clear_refs()
    fill(mm, 6, 0, 1, 2)
    assert bits(mm, PM_SOFT_DIRTY) == [0, 1, 2] and bits(mm, PM_UFFD_WP) == [3, 4, 5, 6, 7]
    merge(machine, mm)
    # Page 1 was the second of its kind to be seen, so page 0 and later 2 got new entries.
    assert bits(mm, PM_SOFT_DIRTY) == [1]
    # The other way round for a mark that means "not written": losing it reports too much.
    assert bits(mm, PM_UFFD_WP) == [4]


@pytest.mark.parametrize(("kernel", "marked"), [("6.12", []), ("seed", []), ("6.1", [0, 1, 2, 3])])
def test_unmerging_marks_pages_in_old_kernels_only(kernel: str, marked: list[int]) -> None:
    machine, mm = make(kernel=kernel)
    fill(mm, 5, 0, 1, 2, 3)
    mm.clear_refs()
    merge(machine, mm)
    machine.ksm_unmerge()
    assert bits(mm, PM_SOFT_DIRTY) == marked
    assert bits(mm, PM_MMAP_EXCLUSIVE) == [0, 1, 2, 3] and machine.used_frames == 4


def test_unmergeable_and_moving_break_what_was_merged() -> None:
    machine, mm = make()
    fill(mm, 5, *range(8))
    merge(machine, mm)
    mm.madvise(BASE, 2 * PAGE, MADV_UNMERGEABLE)
    assert bits(mm, PM_MMAP_EXCLUSIVE) == [0, 1]
    target = BASE + (1 << 30)
    mm.mremap(BASE + 4 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target)
    assert mm.frames(target, 1)[0] != mm.frames(BASE + 5 * PAGE, 1)[0]


def test_merging_reaches_across_processes_but_not_into_shared_memory() -> None:
    machine, mm = make()
    other = machine.create_mm()
    other.mmap(BASE, 8 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    shared = machine.create_mm()
    shared.mmap(BASE, 8 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
    for one in (mm, other, shared):
        fill(one, 3, 0)
        one.madvise(BASE, 8 * PAGE, MADV_MERGEABLE)
    machine.ksm_scan()
    assert mm.frames(BASE, 1)[0] == other.frames(BASE, 1)[0] != shared.frames(BASE, 1)[0]
    other.exit()
    assert mm.peek(BASE, 1) == b"\3"
    fill(mm, 4, 0)  # alone, and yet a copy: a merged page is never written to
    assert mm.peek(BASE, 1) == b"\4"


def test_forced_write_breaks_a_merged_page() -> None:
    machine, mm = make()
    fill(mm, 5, 0, 1)
    mm.clear_refs()
    merge(machine, mm)
    mm.gup_write(BASE, b"forced")
    assert bits(mm, PM_SOFT_DIRTY) == [0] and mm.peek(BASE + PAGE, 1) == b"\5"


# --- migration ---


@ARCHES
def test_page_in_motion_is_a_swap_entry_and_comes_back_as_it_was(arch: str) -> None:
    machine, mm = make(arch=arch)
    fill(mm, 7, *range(8))
    mm.clear_refs()
    fill(mm, 8, 1, 2)
    frames = mm.frames(BASE, 8)
    assert machine.migrate_start(mm, BASE, 4) == 4
    assert bits(mm, PM_SWAP) == [0, 1, 2, 3] and bits(mm, PM_PRESENT) == [4, 5, 6, 7]
    assert mm.frames(BASE, 8).tolist() == frames.tolist()
    assert bits(mm, PM_SOFT_DIRTY) == [1, 2]
    machine.migrate_finish()
    assert bits(mm, PM_PRESENT) == list(range(8))
    assert not set(mm.frames(BASE, 4).tolist()) & set(frames[:4].tolist())
    assert mm.peek(BASE, PAGE) == b"\7" * PAGE and mm.peek(BASE + PAGE, PAGE) == b"\10" * PAGE
    assert machine.used_frames == 8


@pytest.mark.parametrize(("kernel", "marked"), [("6.1", [0, 1]), ("6.12", [])])
def test_dirty_page_that_moved_counts_as_written_in_older_kernels(
    kernel: str, marked: list[int]
) -> None:
    """remove_migration_pte() uses pte_mkdirty(), and 6.12 takes the bit back."""
    machine, mm = make(kernel=kernel)
    fill(mm, 7, *range(8))
    mm.clear_refs()
    machine.migrate_start(mm, BASE, 2)
    machine.migrate_finish()
    assert bits(mm, PM_SOFT_DIRTY) == marked


def test_writable_page_cleared_in_motion_is_lost() -> None:
    """clear_refs leaves a writable migration entry writable, and nothing notices the next write.

    As long as moving marks dirty pages, that hides it.
    """
    lost = {}
    for kernel in ("6.1", "6.12"):
        machine, mm = make(kernel=kernel)
        mm.clear_refs()
        fill(mm, 1, 0)
        machine.migrate_start(mm, BASE, 1)
        mm.clear_refs()
        machine.migrate_finish()
        before = mm.versions(BASE, 1)[0]
        fill(mm, 2, 0)
        lost[kernel] = mm.versions(BASE, 1)[0] != before and bits(mm, PM_SOFT_DIRTY) == []
    assert lost == {"6.1": False, "6.12": True}


def test_whoever_wants_the_page_waits_for_the_end_of_the_move() -> None:
    machine, mm = make()
    fill(mm, 7, *range(8))
    machine.migrate_start(mm, BASE, 8)
    assert mm.load(BASE + PAGE, 1) == b"\7"
    assert bits(mm, PM_PRESENT) == list(range(8))
    machine.migrate_start(mm, BASE, 8)
    assert mm.gup_read(BASE, 1) == b"\7"


def test_fork_unmapping_and_protection_while_pages_move() -> None:
    machine, mm = make()
    fill(mm, 7, *range(8))
    machine.migrate_start(mm, BASE, 8)
    child = mm.fork()
    mm.munmap(BASE, PAGE)
    mm.madvise(BASE + PAGE, PAGE, MADV_DONTNEED)
    mm.mprotect(BASE + 2 * PAGE, PAGE, PROT_READ)
    mm.mprotect(BASE + 2 * PAGE, PAGE, RW)
    machine.migrate_finish()
    fill(mm, 1, 2, 3)
    fill(child, 2, 3, 4)
    assert [child.peek(BASE + page * PAGE, 1)[0] for page in range(8)] == [7, 7, 7, 2, 2, 7, 7, 7]
    assert [mm.peek(BASE + page * PAGE, 1)[0] for page in range(1, 6)] == [0, 1, 1, 7, 7]
    child.exit()
    mm.exit()
    assert machine.used_frames == 0


def test_mark_of_userfaultfd_moves_along() -> None:
    machine, mm = make()
    fill(mm, 7, *range(8))
    uffd = mm.userfaultfd()
    uffd.register(BASE, 8 * PAGE)
    uffd.writeprotect(BASE, 2 * PAGE)
    machine.migrate_start(mm, BASE, 8)
    uffd.writeprotect(BASE + 2 * PAGE, PAGE)
    assert bits(mm, PM_UFFD_WP) == [0, 1, 2]
    machine.migrate_finish()
    fill(mm, 8, 1)
    assert bits(mm, PM_UFFD_WP) == [0, 2]


@pytest.mark.parametrize("kind", [MAP_PRIVATE, MAP_SHARED])
def test_compaction_moves_everything_and_nobody_notices(kind: int) -> None:
    machine, mm = make(kind, frames=24)
    fill(mm, 7, *range(8))
    mm.madvise(BASE, 2 * PAGE, MADV_PAGEOUT)
    mm.touch(at(0))
    child = mm.fork()
    child.touch(at(*range(8)))
    before = mm.frames(BASE, 8).tolist()
    assert machine.compact() >= 6
    after = mm.frames(BASE, 8).tolist()
    assert all(old != new for old, new in zip(before[2:], after[2:], strict=True))
    for one in (mm, child):
        assert one.load(BASE, 8 * PAGE) == b"\7" * 8 * PAGE
    child.exit()
    mm.exit()
    assert machine.used_frames == 0


# --- content stamps over a merge ---


def test_merging_changes_no_content_and_the_stamps_can_be_told_to_be_equal() -> None:
    machine, mm = make()
    fill(mm, 7, 0, 1, 2)
    fill(mm, 9, 3)
    before = mm.versions(BASE, 5)
    assert len(set(before.tolist())) == 5  # the last one is a hole: 0
    merge(machine, mm)
    now = mm.versions(BASE, 5)
    assert len(set(now[:3].tolist())) == 1 and now[3] == before[3]
    assert (machine.same_content(now) == machine.same_content(before)).all()
    fill(mm, 8, 1)
    changed = machine.same_content(mm.versions(BASE, 5)) != machine.same_content(before)
    assert np.flatnonzero(changed).tolist() == [1]
    fill(mm, 8, 2)
    merge(machine, mm)
    later = machine.same_content(mm.versions(BASE, 5))
    assert later[1] == later[2] != later[0]


def test_a_page_of_zeros_that_was_written_counts_as_zeros_when_it_merged_with_such() -> None:
    machine, mm = make()
    fill(mm, 1, 0, 1)
    fill(mm, 0, 0)
    mm.touch_write(at(2))
    before = mm.versions(BASE, 3)
    assert before[0] != 0 == before[2]
    merge(machine, mm)
    assert mm.frames(BASE, 3)[0] == mm.frames(BASE, 3)[2]
    assert machine.same_content(before).tolist() == [0, before[1], 0]
