"""Large folios beside userfaultfd, PAGEMAP_SCAN, KSM and translation caches, on both arches."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mm_model import (
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PAGE_IS_HUGE,
    PAGE_IS_PRESENT,
    PAGE_IS_WRITTEN,
    PM_PRESENT,
    PM_SCAN_WP_MATCHING,
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
HUGE = 512
RW = PROT_READ | PROT_WRITE
BASE = 0x10_0000_0000


@pytest.fixture(params=["arm64", "x86_64"])
def mm(request: pytest.FixtureRequest) -> Mm:
    """Two huge pages' room, nothing mapped in it yet."""
    config = ModelConfig(frames=5 * HUGE, swap_slots=3 * HUGE, arch=request.param)
    mm = Machine(config).create_mm()
    mm.mmap(BASE, 2 * HUGE * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    return mm


def at(*pages: int) -> NDArray[np.uint64]:
    return np.uint64(BASE) + np.array(pages, np.uint64) * np.uint64(PAGE)


def write(mm: Mm, *pages: int) -> None:
    mm.store_words(at(*pages), at(*pages) + mm.versions(BASE, 1))


def pages(mm: Mm, bit: np.uint64, first: int = 0, count: int = 2 * HUGE) -> list[int]:
    return np.flatnonzero(mm.pagemap(BASE + first * PAGE, count) & bit).tolist()


def huge(mm: Mm) -> bool:
    """Whether the first page is part of a huge page still (bit 1 clear, or PSE)."""
    entry = int(mm.ptes(BASE, 1)[0])
    return not entry & 2 if mm.machine.config.arch == "arm64" else bool(entry & 1 << 7)


def populated(mm: Mm) -> None:
    mm.madvise(BASE, 2 * HUGE * PAGE, MADV_HUGEPAGE)
    write(mm, 0, HUGE)
    assert huge(mm)


def test_protected_huge_page_stays_whole_and_a_write_drops_one_page_s_mark(mm: Mm) -> None:
    populated(mm)
    uffd = mm.userfaultfd()
    uffd.register(BASE, 2 * HUGE * PAGE)
    uffd.writeprotect(BASE, HUGE * PAGE)
    assert huge(mm) and pages(mm, PM_UFFD_WP) == list(range(HUGE))
    write(mm, 7)
    assert not huge(mm)
    assert pages(mm, PM_UFFD_WP) == [page for page in range(HUGE) if page != 7]
    uffd.writeprotect(BASE, HUGE * PAGE, enable=False)
    assert pages(mm, PM_UFFD_WP) == []


def test_protecting_part_of_a_huge_page_splits_its_entry(mm: Mm) -> None:
    populated(mm)
    uffd = mm.userfaultfd()
    uffd.register(BASE, 2 * HUGE * PAGE)
    uffd.writeprotect(BASE + 4 * PAGE, 4 * PAGE)
    assert not huge(mm) and pages(mm, PM_UFFD_WP) == [4, 5, 6, 7]


def test_scan_names_huge_pages_and_protects_whole_ones_without_splitting(mm: Mm) -> None:
    populated(mm)
    mm.userfaultfd().register(BASE, 2 * HUGE * PAGE)
    wanted = PAGE_IS_HUGE | PAGE_IS_PRESENT | PAGE_IS_WRITTEN
    found = mm.pagemap_scan(BASE, BASE + HUGE * PAGE, return_mask=wanted)
    assert found.regions.tolist() == [[BASE, BASE + HUGE * PAGE, wanted]]
    flags = {"flags": PM_SCAN_WP_MATCHING, "category_mask": PAGE_IS_WRITTEN}
    found = mm.pagemap_scan(BASE, BASE + HUGE * PAGE, return_mask=PAGE_IS_WRITTEN, **flags)
    assert found.regions.tolist() == [[BASE, BASE + HUGE * PAGE, PAGE_IS_WRITTEN]]
    assert huge(mm) and pages(mm, PM_UFFD_WP) == list(range(HUGE))
    # Nothing was written since.
    found = mm.pagemap_scan(BASE, BASE + HUGE * PAGE, return_mask=PAGE_IS_WRITTEN, **flags)
    assert found.regions.shape[0] == 0


def test_scan_that_protects_part_of_a_huge_page_reports_as_if_it_were_none(mm: Mm) -> None:
    populated(mm)
    mm.userfaultfd().register(BASE, 2 * HUGE * PAGE)
    found = mm.pagemap_scan(
        BASE,
        BASE + 3 * PAGE,
        flags=PM_SCAN_WP_MATCHING,
        category_mask=PAGE_IS_WRITTEN,
        return_mask=PAGE_IS_HUGE | PAGE_IS_WRITTEN,
    )
    assert found.regions.tolist() == [[BASE, BASE + 3 * PAGE, PAGE_IS_WRITTEN]]
    assert not huge(mm) and pages(mm, PM_UFFD_WP) == [0, 1, 2]


def test_watched_mapping_gets_single_pages_where_folios_are_switched_on(mm: Mm) -> None:
    mm.machine.set_mthp(64, "always")
    mm.userfaultfd().register(BASE, HUGE * PAGE)
    write(mm, 3)
    assert pages(mm, PM_PRESENT) == [3]
    write(mm, HUGE + 3)
    assert pages(mm, PM_PRESENT, HUGE, HUGE) == list(range(16))


def test_marks_of_a_folio_survive_swap_and_stay_with_the_parent(mm: Mm) -> None:
    mm.machine.set_mthp(64, "always")
    write(mm, 0)
    uffd = mm.userfaultfd()
    uffd.register(BASE, HUGE * PAGE)
    uffd.writeprotect(BASE, 16 * PAGE)
    child = mm.fork()
    assert pages(child, PM_PRESENT) == list(range(16)) and pages(child, PM_UFFD_WP) == []
    child.exit()
    mm.madvise(BASE, 16 * PAGE, MADV_PAGEOUT)
    assert pages(mm, PM_SWAP) == pages(mm, PM_UFFD_WP) == list(range(16))
    write(mm, 5)
    assert pages(mm, PM_UFFD_WP) == [page for page in range(16) if page != 5]


def test_equal_pages_leave_their_huge_page_to_be_merged(mm: Mm) -> None:
    populated(mm)
    for page in (1, HUGE + 1):
        mm.gup_write(BASE + page * PAGE, b"same" * (PAGE // 4))
    mm.madvise(BASE, 2 * HUGE * PAGE, MADV_MERGEABLE)
    mm.machine.ksm_scan()
    assert not huge(mm)
    frames = mm.frames(BASE, 2 * HUGE)
    assert frames[1] == frames[HUGE + 1]
    assert mm.load(BASE + PAGE, 4) == b"same"


def test_cpu_remembers_the_part_of_a_huge_page_that_it_used(mm: Mm) -> None:
    machine = mm.machine
    config = ModelConfig(frames=5 * HUGE, tlb_entries=64, cpus=2, arch=machine.config.arch)
    mm = Machine(config).create_mm()
    mm.mmap(BASE, 2 * HUGE * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    populated(mm)
    for cpu in (0, 1):
        mm.run_on(cpu)
        mm.store_words(at(3, 4), np.array([30 + cpu, 40 + cpu], np.uint64))
    assert [mm.load(BASE + page * PAGE, 1)[0] for page in (3, 4)] == [31, 41]
    mm.clear_refs()
    assert pages(mm, PM_SOFT_DIRTY) == []
    write(mm, 4)
    assert pages(mm, PM_SOFT_DIRTY) == list(range(HUGE))
