"""Two trackers side by side: soft-dirty with the whole patch, and userfaultfd write-protection."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mm_model import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_WILLNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    PAGE_IS_WRITTEN,
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
    WriteProtectTracker,
)

PAGE = 4096
RW = PROT_READ | PROT_WRITE
BASE = 0x10_0000_0000
NPAGES = 12


def at(*pages: int) -> NDArray[np.uint64]:
    return np.uint64(BASE) + np.array(pages, np.uint64) * np.uint64(PAGE)


def make(kind: int = MAP_PRIVATE, **settings: object) -> Mm:
    config = {"frames": 128, "swap_slots": 64} | settings
    mm = Machine(ModelConfig(**config)).create_mm()  # type: ignore[arg-type]
    mm.mmap(BASE, NPAGES * PAGE, RW, kind | MAP_ANONYMOUS | MAP_FIXED)
    return mm


def indices(bits: NDArray[np.bool_]) -> list[int]:
    return np.flatnonzero(bits).tolist()


def test_everything_counts_until_the_first_reset_and_then_what_is_written() -> None:
    mm = make()
    tracker = WriteProtectTracker(mm)
    mm.store_words(at(1, 2), at(1, 2))
    assert tracker.written(BASE, NPAGES).all()
    tracker.reset()
    assert indices(tracker.written(BASE, NPAGES)) == []
    mm.store_words(at(2, 7), at(1, 7))
    mm.touch(at(1, 3))
    assert indices(tracker.written(BASE, NPAGES)) == [2, 7]
    tracker.reset()
    assert indices(tracker.written(BASE, NPAGES)) == []


def test_new_mapping_counts_whole_until_it_is_tracked() -> None:
    mm = make()
    tracker = WriteProtectTracker(mm)
    tracker.reset()
    mm.mmap(BASE + NPAGES * PAGE, 2 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    assert indices(tracker.written(BASE, NPAGES + 3)) == [NPAGES, NPAGES + 1]
    tracker.reset()
    mm.store_words(at(NPAGES), at(0))
    assert indices(tracker.written(BASE, NPAGES + 3)) == [NPAGES]


def test_take_reports_and_protects_again_in_one_step() -> None:
    mm = make()
    tracker = WriteProtectTracker(mm)
    with pytest.raises(MmError) as refused:
        tracker.take(BASE, BASE + NPAGES * PAGE)
    assert refused.value.errno == errno.EPERM
    tracker.reset()
    mm.store_words(at(3, 4, 8), at(3, 4, 8))
    mm.madvise(BASE + 4 * PAGE, PAGE, MADV_PAGEOUT)
    first = tracker.take(BASE, BASE + NPAGES * PAGE, max_pages=2)
    assert [(r[0] - BASE) // PAGE for r in first.regions.tolist()] == [3, 4]
    assert first.regions[:, 2].tolist() == [
        PAGE_IS_WRITTEN | PAGE_IS_PRESENT,
        PAGE_IS_WRITTEN | PAGE_IS_SWAPPED,
    ]
    assert indices(tracker.written(BASE, NPAGES)) == [8]


def test_shared_memory_keeps_what_soft_dirty_loses_at_reclaim() -> None:
    mm = make(MAP_SHARED)
    mm.store_words(at(*range(NPAGES)), at(*range(NPAGES)))
    tracker = WriteProtectTracker(mm)
    tracker.reset()
    mm.clear_refs()
    mm.madvise(BASE, NPAGES * PAGE, MADV_PAGEOUT)
    mm.touch(at(*range(NPAGES)))
    assert indices(tracker.written(BASE, NPAGES)) == []
    mm.store_words(at(5), at(0))
    assert indices(tracker.written(BASE, NPAGES)) == [5]


def test_closing_ends_it_and_another_tracker_can_begin() -> None:
    mm = make()
    tracker = WriteProtectTracker(mm)
    tracker.reset()
    tracker.close()
    assert WriteProtectTracker(mm).written(BASE, NPAGES).all()


def test_kernels_without_wp_async_cannot_track_so() -> None:
    with pytest.raises(MmError) as refused:
        WriteProtectTracker(make(kernel="6.1"))
    assert refused.value.errno == errno.EINVAL


# --- the same sets, for anonymous memory ---

ADVICES = (MADV_DONTNEED, MADV_FREE, MADV_PAGEOUT, MADV_WILLNEED, MADV_POPULATE_READ,
           MADV_POPULATE_WRITE)  # fmt: skip
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "read", "force", "advise", "protect", "swap", "lock", "reset"]),
        st.integers(0, NPAGES - 1),
        st.integers(1, NPAGES),
        st.sampled_from(ADVICES),
    ),
    max_size=30,
)


def step(mm: Mm, what: str, page: int, count: int, advice: int, stamp: int) -> object:
    """One operation; what it answers, so that both sides can be held equal."""
    count = min(count, NPAGES - page)
    start, length = BASE + page * PAGE, count * PAGE
    where = at(*range(page, page + count))
    try:
        match what:
            case "write":
                mm.store_words(where, where + np.uint64(stamp))
            case "read":
                mm.touch(where)
            case "force":
                mm.gup_write(start, stamp.to_bytes(8, "little"))
            case "advise":
                mm.madvise(start, length, advice)
            case "protect":
                mm.mprotect(start, length, PROT_READ if stamp % 2 else RW)
            case "swap":
                (mm.machine.swapoff if stamp % 2 else mm.machine.swapon)()
            case "lock":
                (mm.mlock if stamp % 2 else mm.munlock)(start, length)
    except SegFault as fault:
        return fault.address
    except MmError as error:
        return error.errno
    return 0


def live(mm: Mm) -> NDArray[np.bool_]:
    entries = mm.pagemap(BASE, NPAGES)
    return (mm.frames(BASE, NPAGES) > 0) & ((entries & (PM_PRESENT | PM_SWAP)) != 0)


@pytest.mark.parametrize(
    "machine",
    [
        {},
        {"dbm": False},
        {"page_size": 4096, "kernel": "seed"},
        {"arch": "x86_64"},
    ],
    ids=str,
)
def test_both_trackers_see_the_same_writes_of_anonymous_memory(machine: dict[str, object]) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(STEPS)
    def holds(steps: list[tuple[str, int, int, int]]) -> None:
        one, two = make(**machine), make(**machine)
        tracker = WriteProtectTracker(two)
        one.clear_refs()
        tracker.reset()
        for stamp, (what, page, count, advice) in enumerate(steps, start=1):
            if what == "reset":
                one.clear_refs()
                tracker.reset()
                continue
            assert step(one, what, page, count, advice, stamp) == step(
                two, what, page, count, advice, stamp
            )
            there = live(one)
            assert (there == live(two)).all()
            soft_dirty = (one.pagemap(BASE, NPAGES) & PM_SOFT_DIRTY) != 0
            written = tracker.written(BASE, NPAGES)
            assert indices(soft_dirty & there) == indices(written & there)
            assert one.peek(BASE, NPAGES * PAGE) == two.peek(BASE, NPAGES * PAGE)

    holds()
