"""/proc/PID/pagemap: one 64-bit entry a page (Documentation/admin-guide/mm/pagemap.rst)."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest

from mm_model import (
    MADV_PAGEOUT,
    PM_FILE,
    PM_MMAP_EXCLUSIVE,
    PM_PRESENT,
    PM_SOFT_DIRTY,
    PM_SWAP,
    PM_UFFD_WP,
    PROT_NONE,
    PROT_READ,
    Machine,
    MmError,
)
from tests.unit.mm_model.kernel_box import (
    BASE,
    RW,
    Region,
    map_object,
    map_region,
    new_region,
    tracked_region,
)

SOFT_DIRTY, EXCLUSIVE, FILE, SWAP, PRESENT = 1 << 55, 1 << 56, 1 << 61, 1 << 62, 1 << 63


def entries(region: Region) -> list[int]:
    return [int(entry) for entry in region.mm.pagemap(region.start, region.pages)]


def test_bits_are_where_the_kernel_documents_them() -> None:
    bits = (PM_SOFT_DIRTY, PM_MMAP_EXCLUSIVE, PM_UFFD_WP, PM_FILE, PM_SWAP, PM_PRESENT)
    assert [int(bit).bit_length() - 1 for bit in bits] == [55, 56, 57, 61, 62, 63]
    assert all(int(bit).bit_count() == 1 for bit in bits)


class TestEntries:
    """The whole entry, after clear_refs has taken VM_SOFTDIRTY away."""

    def test_nothing_there(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.mm.clear_refs()
        assert entries(region) == [0, 0]

    def test_a_page_of_ones_own(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.write(1)
        assert entries(region) == [PRESENT | EXCLUSIVE, PRESENT | EXCLUSIVE | SOFT_DIRTY]

    def test_the_zero_page_is_present_and_nothing_more(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.mm.clear_refs()
        region.read(0)
        assert entries(region) == [PRESENT]

    def test_a_page_shared_by_fork_is_not_exclusive(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        child = region.seen_by(region.mm.fork())
        child.write(1)
        assert entries(region) == [PRESENT, PRESENT | EXCLUSIVE]
        assert entries(child) == [PRESENT, PRESENT | EXCLUSIVE | SOFT_DIRTY]

    def test_shared_memory_is_file_memory(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(1)
        region = map_object(any_machine.create_mm(), shared, 1)
        region.mm.clear_refs()
        region.write(0)
        assert entries(region) == [PRESENT | FILE | EXCLUSIVE | SOFT_DIRTY]
        other = map_object(any_machine.create_mm(), shared, 1)
        other.mm.clear_refs()
        other.read(0)
        assert entries(other) == [PRESENT | FILE]
        assert entries(region) == [PRESENT | FILE | SOFT_DIRTY]

    def test_a_private_copy_of_file_memory_is_not_file_memory(self, any_machine: Machine) -> None:
        region = map_object(any_machine.create_mm(), any_machine.create_shared(1), 1, private=True)
        region.mm.clear_refs()
        region.read(0)
        assert entries(region) == [PRESENT | FILE | EXCLUSIVE]
        region.write(0)
        assert entries(region) == [PRESENT | EXCLUSIVE | SOFT_DIRTY]

    def test_a_swapped_page(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.write(1)
        region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
        assert entries(region) == [SWAP, SWAP | SOFT_DIRTY]

    def test_a_page_that_nobody_may_access_is_still_present(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        region.mm.mprotect(region.start, region.length, PROT_NONE)
        assert entries(region) == [PRESENT | EXCLUSIVE]

    def test_frame_and_swap_numbers_are_hidden(self, any_machine: Machine) -> None:
        """As from everyone without CAP_SYS_ADMIN: bits 0 to 54 read as zero."""
        region = new_region(any_machine, 4)
        region.write_all()
        region.mm.madvise(*region.part(0, 2), MADV_PAGEOUT)
        assert [entry & (1 << 55) - 1 for entry in entries(region)] == [0, 0, 0, 0]


class TestReading:
    def test_changes_nothing(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 4)
        region.read(0)
        region.write(1, 2)
        region.mm.madvise(*region.part(2, 1), MADV_PAGEOUT)
        before = region.mm.ptes(region.start, 4).tolist(), any_machine.faults
        first = entries(region)
        assert entries(region) == first
        assert (region.mm.ptes(region.start, 4).tolist(), any_machine.faults) == before

    def test_goes_over_mappings_gaps_and_tables_alike(self, any_machine: Machine) -> None:
        size, per_table = any_machine.page_size, any_machine.page_size // 8
        mm = any_machine.create_mm()
        start = BASE + (per_table - 4) * size
        whole = Region(mm, start, 10)
        map_region(mm, 2, start=whole.at(1))
        map_region(mm, 4, start=whole.at(3), prot=PROT_READ)  # crosses the table's border
        map_region(mm, 2, start=whole.at(8))
        mm.clear_refs()
        whole.write(2, 8)
        whole.read(5)
        assert whole.present == "..p..p..p."
        assert whole.soft_dirty == "..s.....s."

    def test_a_part_is_what_the_whole_says_of_it(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 8)
        region.write(1, 4, 6)
        whole = entries(region)
        for first in range(8):
            part = Region(region.mm, region.at(first), 8 - first)
            assert entries(part) == whole[first:]

    def test_outside_all_mappings_entries_are_zero(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        assert entries(Region(region.mm, region.at(-2), 4)) == [0, 0, SOFT_DIRTY, 0]

    def test_no_pages(self, machine: Machine) -> None:
        assert machine.create_mm().pagemap(BASE, 0).shape == (0,)

    def test_into_a_buffer_of_the_callers(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 3)
        buffer = np.full(3, 7, np.uint64)
        assert region.mm.pagemap(region.start, 3, buffer) is buffer
        assert buffer.tolist() == entries(region)

    def test_a_buffer_of_another_shape_is_refused(self, machine: Machine) -> None:
        region = new_region(machine, 3)
        wrong: list[Any] = [
            np.zeros(2, np.uint64),
            np.zeros(3, np.int64),
            np.zeros(6, np.uint64)[::2],
        ]
        for buffer in wrong:
            with pytest.raises(ValueError, match="uint64 array of 3"):
                region.mm.pagemap(region.start, 3, buffer)

    def test_from_the_middle_of_a_page_is_refused(self, machine: Machine) -> None:
        region = new_region(machine, 1)
        with pytest.raises(MmError, match="not page-aligned") as caught:
            region.mm.pagemap(region.start + 8, 1)
        assert caught.value.errno == errno.EINVAL


def test_soft_dirty_covers_a_new_mapping_and_its_holes(any_machine: Machine) -> None:
    region = map_region(any_machine.create_mm(), 3, prot=RW)
    region.read(1)
    assert entries(region) == [SOFT_DIRTY, SOFT_DIRTY | PRESENT, SOFT_DIRTY]
