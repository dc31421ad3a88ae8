"""PMD-sized pages at every page size: fault, split, collapse, swap, fork, move."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from numpy.typing import NDArray

from mm_model import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
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
)

BASE = 0x10_0000_0000
RW = PROT_READ | PROT_WRITE
# page size, pages of one huge page
HUGE = [(4096, 512), (16384, 2048), (65536, 8192)]


def at(mm: Mm, page: int) -> int:
    return BASE + page * mm.machine.page_size


def pages_at(mm: Mm, first: int, count: int = 1) -> NDArray[np.uint64]:
    size = mm.machine.page_size
    return np.arange(at(mm, first), at(mm, first + count), size, dtype=np.uint64)


def mapped(page_size: int, pages: int, **settings: object) -> Mm:
    """Room for two huge pages, with MADV_HUGEPAGE, nothing touched."""
    config = ModelConfig(page_size, frames=5 * pages, swap_slots=3 * pages, **settings)  # type: ignore[arg-type]
    mm = Machine(config).create_mm()
    mm.mmap(BASE, 2 * pages * page_size, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    mm.madvise(BASE, 2 * pages * page_size, MADV_HUGEPAGE)
    return mm


def count(mm: Mm, bit: np.uint64, pages: int) -> int:
    return int(np.count_nonzero(mm.pagemap(BASE, pages) & bit))


@pytest.mark.parametrize(("page_size", "pages"), HUGE)
def test_one_write_maps_and_marks_a_whole_huge_page(page_size: int, pages: int) -> None:
    mm = mapped(page_size, pages)
    mm.store_words(pages_at(mm, 5), np.array([7], np.uint64))
    assert mm.rss_pages == count(mm, PM_PRESENT, 2 * pages) == pages
    mm.clear_refs()
    assert count(mm, PM_SOFT_DIRTY, 2 * pages) == 0
    mm.store_words(pages_at(mm, 9), np.array([8], np.uint64))
    assert count(mm, PM_SOFT_DIRTY, 2 * pages) == pages
    assert mm.load(at(mm, 5), 1) + mm.load(at(mm, 9), 1) == b"\x07\x08"


@pytest.mark.parametrize(("page_size", "pages"), HUGE)
def test_a_read_maps_the_huge_zero_page_and_a_write_one_page(page_size: int, pages: int) -> None:
    mm = mapped(page_size, pages)
    mm.clear_refs()
    mm.touch(pages_at(mm, 0))
    assert mm.rss_pages == 0
    assert count(mm, PM_PRESENT, 2 * pages) == count(mm, PM_FILE, 2 * pages) == pages
    mm.touch_write(pages_at(mm, 3))
    assert mm.rss_pages == count(mm, PM_SOFT_DIRTY, 2 * pages) == 1


@pytest.mark.parametrize(("kernel", "marked"), [("6.12", 512), ("seed", 512), ("6.1", 0)])
def test_splitting_the_entry_of_a_dirty_huge_page(kernel: str, marked: int) -> None:
    mm = mapped(4096, 512, kernel=kernel)
    mm.touch_write(pages_at(mm, 0))
    mm.clear_refs()
    mm.mprotect(at(mm, 64), 16 * 4096, PROT_READ)
    assert count(mm, PM_SOFT_DIRTY, 512) == marked


@pytest.mark.parametrize(("kernel", "marked"), [("6.12", 0), ("seed", 512), ("6.1", 512)])
def test_splitting_a_dirty_folio(kernel: str, marked: int) -> None:
    mm = mapped(4096, 512, kernel=kernel)
    values = np.arange(1, 513, dtype=np.uint64)
    mm.store_words(pages_at(mm, 0, 512), values)
    mm.clear_refs()
    assert mm.split_huge_pages(BASE, 4096) == 1
    assert count(mm, PM_SOFT_DIRTY, 512) == marked


@pytest.mark.parametrize(("page_size", "pages"), HUGE)
def test_a_huge_page_survives_swap(page_size: int, pages: int) -> None:
    mm = mapped(page_size, pages)
    mm.store_words(pages_at(mm, pages - 1), np.array([7], np.uint64))
    mm.madvise(BASE, pages * page_size, MADV_PAGEOUT)
    assert count(mm, PM_SWAP, 2 * pages) == pages
    assert mm.load(at(mm, pages - 1), 1) == b"\x07"


@pytest.mark.parametrize(("page_size", "pages"), HUGE)
def test_collapse(page_size: int, pages: int) -> None:
    mm = mapped(page_size, pages)
    mm.touch(pages_at(mm, 0))
    mm.store_words(pages_at(mm, 1, 3), np.array([7, 8, 9], np.uint64))
    mm.clear_refs()
    with pytest.raises(MmError) as refused:
        mm.madvise(BASE, pages * page_size, MADV_COLLAPSE)
    assert refused.value.errno == errno.EINVAL
    mm.touch_write(pages_at(mm, 2))
    used = mm.machine.used_frames
    mm.madvise(BASE, pages * page_size, MADV_COLLAPSE)
    assert mm.rss_pages == count(mm, PM_SOFT_DIRTY, 2 * pages) == pages
    assert mm.machine.used_frames == used - 3 + pages
    assert [mm.peek(at(mm, page), 1)[0] for page in range(5)] == [0, 7, 8, 9, 0]


@pytest.mark.parametrize(("page_size", "pages"), HUGE)
def test_fork_shares_it_and_a_write_copies_one_page(page_size: int, pages: int) -> None:
    mm = mapped(page_size, pages)
    mm.store_words(pages_at(mm, 4), np.array([7], np.uint64))
    used = mm.machine.used_frames
    child = mm.fork()
    assert mm.machine.used_frames == used
    child.store_words(pages_at(mm, 4), np.array([8], np.uint64))
    assert mm.machine.used_frames == used + 1
    assert mm.load(at(mm, 4), 1) + child.load(at(mm, 4), 1) == b"\x07\x08"
    mm.exit()
    child.exit()
    assert child.machine.used_frames == 0


@pytest.mark.parametrize(
    ("off", "marked"), [((), 512), (("pmd_mksoft_dirty",), 0), (("pte_mksoft_dirty",), 0)]
)
def test_a_moved_huge_page_is_soft_dirty(off: tuple[str, ...], marked: int) -> None:
    mm = mapped(4096, 512, hunks_off=frozenset(off))
    mm.touch_write(pages_at(mm, 0))
    mm.clear_refs()
    target = BASE + (1 << 30)
    mm.mremap(BASE, 512 * 4096, 512 * 4096, MREMAP_MAYMOVE | MREMAP_FIXED, target)
    assert int(np.count_nonzero(mm.pagemap(target, 512) & PM_SOFT_DIRTY)) == marked
    assert mm.rss_pages == 512


@pytest.mark.parametrize(("off", "marked"), [("pmd_soft_dirty", 0), ("pmd_clear_soft_dirty", 512)])
def test_hunks_that_only_huge_pages_feel(off: str, marked: int) -> None:
    mm = mapped(4096, 512, hunks_off=frozenset({off}))
    mm.touch_write(pages_at(mm, 0))
    mm.clear_refs()
    if off == "pmd_soft_dirty":
        mm.touch_write(pages_at(mm, 0))
    assert count(mm, PM_SOFT_DIRTY, 512) == marked


def test_without_a_free_huge_page_faults_take_single_pages() -> None:
    mm = mapped(4096, 512)
    for huge in range(4):
        mm.mmap(BASE + (1 + huge << 30), 512 * 4096, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
        mm.madvise(BASE + (1 + huge << 30), 512 * 4096, MADV_HUGEPAGE)
        mm.touch_write(np.array([BASE + (1 + huge << 30)], np.uint64))
    assert mm.rss_pages == 4 * 512
    mm.touch_write(pages_at(mm, 0))
    assert mm.rss_pages == 4 * 512 + 1
    # Freed single pages make up a huge page again.
    mm.munmap(BASE + (1 << 30), 512 * 4096)
    mm.madvise(BASE, 512 * 4096, MADV_DONTNEED)
    mm.touch_write(pages_at(mm, 512))
    assert mm.rss_pages == 4 * 512
