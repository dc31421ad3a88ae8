"""PAGEMAP_SCAN: categories, masks, limits, and write-protecting what was reported."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from mm_model import (
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE_IS_FILE,
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PAGE_IS_SOFT_DIRTY,
    PAGE_IS_SWAPPED,
    PAGE_IS_WPALLOWED,
    PAGE_IS_WRITTEN,
    PM_SCAN_CHECK_WPASYNC,
    PM_SCAN_WP_MATCHING,
    PM_UFFD_WP,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    MmError,
    ModelConfig,
    ScanResult,
)

PAGE = 4096
RW = PROT_READ | PROT_WRITE
BASE = 0x10_0000_0000
ALL = (PAGE_IS_SOFT_DIRTY << 1) - 1


@pytest.fixture
def mm() -> Mm:
    """Pages 0-7 anonymous: 0, 1 written, 2 read, 3 swapped; pages 8-9 shared, 8 written."""
    mm = Machine(ModelConfig(frames=256, swap_slots=16)).create_mm()
    mm.mmap(BASE, 8 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    mm.mmap(BASE + 8 * PAGE, 2 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
    mm.clear_refs()
    write(mm, 0, 1, 3, 8)
    mm.touch(at(2))
    mm.madvise(BASE + 3 * PAGE, PAGE, MADV_PAGEOUT)
    return mm


def at(*pages: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.uint64(BASE) + np.array(pages, np.uint64) * np.uint64(PAGE)


def write(mm: Mm, *pages: int) -> None:
    mm.store_words(at(*pages), at(*pages))


def scan(mm: Mm, **arguments: int) -> ScanResult:
    return mm.pagemap_scan(BASE, BASE + 10 * PAGE, **arguments)


def pages(result: ScanResult) -> list[tuple[int, int, int]]:
    return [((s - BASE) // PAGE, (e - BASE) // PAGE, c) for s, e, c in result.regions.tolist()]


def test_every_category_is_reported(mm: Mm) -> None:
    dirty = PAGE_IS_WRITTEN | PAGE_IS_SOFT_DIRTY
    assert pages(scan(mm, return_mask=ALL)) == [
        (0, 2, PAGE_IS_PRESENT | dirty),
        (2, 3, PAGE_IS_PRESENT | PAGE_IS_WRITTEN | PAGE_IS_PFNZERO),
        (3, 4, PAGE_IS_SWAPPED | dirty),
        (4, 8, 0),
        (8, 9, PAGE_IS_PRESENT | PAGE_IS_FILE | dirty),
        (9, 10, 0),
    ]


@pytest.mark.parametrize(
    ("masks", "found"),
    [
        ({"category_mask": PAGE_IS_PRESENT}, [(0, 3), (8, 9)]),
        ({"category_mask": PAGE_IS_PRESENT | PAGE_IS_SOFT_DIRTY}, [(0, 2), (8, 9)]),
        ({"category_anyof_mask": PAGE_IS_SWAPPED | PAGE_IS_FILE}, [(3, 4), (8, 9)]),
        (
            {"category_mask": PAGE_IS_PRESENT, "category_inverted": PAGE_IS_PRESENT},
            [(3, 8), (9, 10)],
        ),
        (
            {
                "category_mask": PAGE_IS_PRESENT | PAGE_IS_PFNZERO,
                "category_inverted": PAGE_IS_PFNZERO,
            },
            [(0, 2), (8, 9)],
        ),
    ],
)
def test_masks_choose_pages(mm: Mm, masks: dict[str, int], found: list[tuple[int, int]]) -> None:
    assert [(first, last) for first, last, _ in pages(scan(mm, **masks))] == found


def test_only_the_asked_for_categories_are_returned_and_equal_neighbours_join(mm: Mm) -> None:
    result = scan(mm, category_mask=PAGE_IS_SOFT_DIRTY, return_mask=PAGE_IS_SOFT_DIRTY)
    assert pages(result) == [
        (0, 2, PAGE_IS_SOFT_DIRTY),
        (3, 4, PAGE_IS_SOFT_DIRTY),
        (8, 9, PAGE_IS_SOFT_DIRTY),
    ]
    assert result.walk_end == BASE + 10 * PAGE


def test_scan_stops_when_enough_pages_are_found(mm: Mm) -> None:
    result = scan(mm, category_mask=PAGE_IS_PRESENT, max_pages=2)
    assert [(first, last) for first, last, _ in pages(result)] == [(0, 2)]
    assert result.walk_end == BASE + 2 * PAGE


def test_scan_stops_when_the_buffer_is_full_and_goes_on_from_walk_end(mm: Mm) -> None:
    first = scan(mm, category_mask=PAGE_IS_SOFT_DIRTY, vec_len=1)
    assert pages(first) == [(0, 2, 0)] and first.walk_end == BASE + 3 * PAGE
    rest = mm.pagemap_scan(first.walk_end, BASE + 10 * PAGE, category_mask=PAGE_IS_SOFT_DIRTY)
    assert pages(rest) == [(3, 4, 0), (8, 9, 0)]


def test_reported_pages_are_protected_in_the_same_step(mm: Mm) -> None:
    mm.userfaultfd().register(BASE, 8 * PAGE)
    asked = {
        "flags": PM_SCAN_WP_MATCHING,
        "category_mask": PAGE_IS_WRITTEN | PAGE_IS_WPALLOWED,
        "return_mask": PAGE_IS_WRITTEN,
    }
    assert pages(scan(mm, **asked)) == [(0, 4, PAGE_IS_WRITTEN)]
    assert np.flatnonzero(mm.pagemap(BASE, 10) & PM_UFFD_WP).tolist() == [0, 1, 2, 3]
    assert pages(scan(mm, **asked)) == []
    write(mm, 2, 3)
    assert pages(scan(mm, **asked)) == [(2, 4, PAGE_IS_WRITTEN)]


def test_no_more_is_protected_than_was_reported(mm: Mm) -> None:
    mm.userfaultfd().register(BASE, 8 * PAGE)
    scan(
        mm,
        flags=PM_SCAN_WP_MATCHING,
        category_mask=PAGE_IS_WRITTEN | PAGE_IS_PRESENT,
        max_pages=1,
    )
    assert np.flatnonzero(mm.pagemap(BASE, 10) & PM_UFFD_WP).tolist() == [0]


def test_without_a_buffer_everything_is_protected_whatever_the_categories(mm: Mm) -> None:
    mm.userfaultfd().register(BASE, 8 * PAGE)
    result = mm.pagemap_scan(
        BASE,
        BASE + 8 * PAGE,
        flags=PM_SCAN_WP_MATCHING,
        category_mask=PAGE_IS_SWAPPED,
        vec_len=0,
    )
    assert result.regions.shape == (0, 3)
    assert np.flatnonzero(mm.pagemap(BASE, 8) & PM_UFFD_WP).tolist() == list(range(8))


def test_asked_for_written_alone_an_empty_entry_of_a_table_counts_as_written(mm: Mm) -> None:
    written = {"category_mask": PAGE_IS_WRITTEN, "return_mask": PAGE_IS_WRITTEN}
    assert pages(scan(mm, **written)) == [(0, 10, PAGE_IS_WRITTEN)]
    both = {"category_mask": PAGE_IS_WRITTEN, "return_mask": PAGE_IS_WRITTEN | PAGE_IS_PRESENT}
    assert [(first, last) for first, last, _ in pages(scan(mm, **both))] == [
        (0, 3),
        (3, 4),
        (8, 9),
    ]


def test_hole_without_a_table_can_be_protected(mm: Mm) -> None:
    far = BASE + (64 << 20)
    mm.mmap(far, 4 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    mm.userfaultfd().register(far, 4 * PAGE)
    result = mm.pagemap_scan(
        far, far + 4 * PAGE, flags=PM_SCAN_WP_MATCHING, category_mask=PAGE_IS_WPALLOWED
    )
    assert result.regions.tolist() == [[far, far + 4 * PAGE, 0]]
    assert (mm.pagemap(far, 4) & PM_UFFD_WP).all()


def test_untracked_mappings_are_refused_on_request(mm: Mm) -> None:
    mm.userfaultfd().register(BASE, 8 * PAGE)
    inside = mm.pagemap_scan(BASE, BASE + 8 * PAGE, flags=PM_SCAN_CHECK_WPASYNC)
    assert inside.walk_end == BASE + 8 * PAGE
    with pytest.raises(MmError) as refused:
        scan(mm, flags=PM_SCAN_CHECK_WPASYNC)
    assert refused.value.errno == errno.EPERM


def test_new_mapping_is_soft_dirty_where_nothing_is_mapped_yet(mm: Mm) -> None:
    mm.mmap(BASE + 10 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    result = mm.pagemap_scan(
        BASE + 10 * PAGE, BASE + 11 * PAGE, category_mask=PAGE_IS_SOFT_DIRTY, return_mask=ALL
    )
    assert pages(result) == [(10, 11, PAGE_IS_SOFT_DIRTY)]


def test_arguments_that_make_no_sense_and_kernels_without_it() -> None:
    mm = Machine(ModelConfig(frames=16)).create_mm()
    for wrong in ({"flags": 4}, {"category_mask": 1 << 20}):
        with pytest.raises(MmError) as refused:
            mm.pagemap_scan(BASE, BASE + PAGE, **wrong)
        assert refused.value.errno == errno.EINVAL
    old = Machine(ModelConfig(frames=16, kernel="6.1")).create_mm()
    with pytest.raises(MmError) as refused:
        old.pagemap_scan(BASE, BASE + PAGE)
    assert refused.value.errno == errno.ENOTTY
