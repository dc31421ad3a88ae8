"""Loads and stores: which of them fault, what a fault leaves in the entry, who gets a signal."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from mm_model import (
    MADV_FREE,
    MAP_GROWSDOWN,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    Machine,
    MmError,
    SegFault,
)
from tests.unit.mm_model.kernel_box import (
    ANON_PRIVATE,
    BASE,
    Region,
    addresses,
    make_machine,
    map_region,
    new_region,
    tracked_region,
)

RDONLY, AF, WRITE, DIRTY, SOFT_DIRTY = 7, 10, 51, 55, 63
MIB = 1 << 20


class TestFirstTouch:
    def test_a_write_faults_once_and_later_ones_do_not(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        assert region.write(1) == 1
        assert region.write(1) == 0
        assert region.read(1) == 0
        assert region.present == ".p."

    def test_a_written_page_is_young_dirty_writable_and_soft_dirty(
        self, any_machine: Machine
    ) -> None:
        region = new_region(any_machine, 1)
        region.write(0)
        for bit in (AF, WRITE, DIRTY, SOFT_DIRTY):
            assert region.entry_bit(0, bit)
        assert not region.entry_bit(0, RDONLY)

    def test_a_new_page_reads_as_zeros_around_what_was_stored(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0, value=0x0123456789ABCDEF)
        expected = 0x0123456789ABCDEF.to_bytes(8, "little") + bytes(region.page_size - 8)
        assert region.mm.load(region.start, region.page_size) == expected

    def test_a_reused_frame_shows_nothing_of_its_last_owner(self) -> None:
        machine = make_machine(frames=2)  # the zero page and one more
        region = new_region(machine, 2)
        region.mm.store(
            addresses([region.start]), np.array([4096], np.uint32), np.full(4096, 0xAA, np.uint8)
        )
        region.mm.munmap(*region.part(0, 1))
        region.write(1, value=0)
        assert region.mm.load(region.at(1), 4096) == bytes(4096)


class TestTrackedWrites:
    """After clear_refs: each page faults at its first write, once, and only then is reported."""

    def test_the_first_write_faults_and_marks_the_page(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 4)
        assert region.soft_dirty == "...."
        assert region.write(1, 2) == 2
        assert region.soft_dirty == ".ss."
        assert region.write(1, 2) == 0

    def test_reads_neither_fault_nor_mark(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        assert region.read(0, 1) == 0
        assert region.soft_dirty == ".."

    def test_writing_the_same_bytes_again_is_a_write(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        region.write(0, value=region.word(0))
        assert region.soft_dirty == "s."

    def test_a_page_first_written_after_clear_is_reported(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.mm.clear_refs()
        region.write(1)
        assert region.soft_dirty == ".s"

    def test_pages_on_both_sides_of_a_tables_border(self, any_machine: Machine) -> None:
        per_table = any_machine.page_size // 8
        start = BASE + (per_table - 2) * any_machine.page_size
        region = map_region(any_machine.create_mm(), 4, start=start)
        region.write_all()
        region.mm.clear_refs()
        assert region.soft_dirty == "...."
        region.write(1, 2)
        assert region.soft_dirty == ".ss."


class TestHardware:
    """FEAT_HAFDBS sets AF and clears RDONLY by itself; it never touches a software bit."""

    def clean_writable(self, machine: Machine) -> Region:
        """MADV_FREE leaves a page writable, clean and old."""
        region = new_region(machine, 1)
        region.write(0)
        region.mm.madvise(region.start, region.length, MADV_FREE)
        assert region.entry_bit(0, WRITE)
        assert region.entry_bit(0, RDONLY)
        assert not region.entry_bit(0, DIRTY)
        assert not region.entry_bit(0, AF)
        return region

    def test_with_dbm_a_store_clears_rdonly_without_a_fault(self) -> None:
        region = self.clean_writable(make_machine(dbm=True))
        assert region.write(0) == 0
        assert not region.entry_bit(0, RDONLY)
        assert region.entry_bit(0, AF)
        assert not region.entry_bit(0, DIRTY)

    def test_without_dbm_the_kernel_does_it_in_a_fault(self) -> None:
        region = self.clean_writable(make_machine(dbm=False))
        assert region.write(0) == 1
        assert not region.entry_bit(0, RDONLY)
        assert region.entry_bit(0, AF)
        assert region.entry_bit(0, DIRTY)

    @pytest.mark.parametrize(("dbm", "faults"), [(True, 0), (False, 1)])
    def test_an_old_page_becomes_young_at_the_next_read(self, dbm: bool, faults: int) -> None:
        region = new_region(make_machine(dbm=dbm), 1)
        region.write(0)
        region.mm.clear_refs(1)
        assert not region.entry_bit(0, AF)
        assert region.read(0) == faults
        assert region.entry_bit(0, AF)

    @pytest.mark.parametrize("dbm", [True, False])
    def test_a_write_protected_page_faults_whatever_the_hardware(self, dbm: bool) -> None:
        region = tracked_region(make_machine(dbm=dbm), 1)
        assert not region.entry_bit(0, WRITE)
        assert region.write(0) == 1


class TestSignals:
    def test_nothing_mapped(self, any_machine: Machine) -> None:
        mm = any_machine.create_mm()
        with pytest.raises(SegFault, match="not mapped") as caught:
            mm.touch(addresses([BASE + 8]))
        assert (caught.value.address, caught.value.signal) == (BASE + 8, 11)
        assert caught.value.errno == errno.EFAULT

    def test_the_page_after_the_last(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        with pytest.raises(SegFault) as caught:
            region.write(2)
        assert caught.value.address == region.at(2)

    @pytest.mark.parametrize(
        ("prot", "may_read", "may_write"),
        [
            (PROT_NONE, False, False),
            (PROT_READ, True, False),
            (PROT_READ | PROT_WRITE, True, True),
            (PROT_WRITE, True, True),  # write implies read
            (PROT_EXEC, True, False),  # exec implies read: this CPU has no EPAN
        ],
    )
    def test_protection(
        self, any_machine: Machine, prot: int, may_read: bool, may_write: bool
    ) -> None:
        region = new_region(any_machine, 1, prot=prot)
        for allowed, access in ((may_read, region.read), (may_write, region.write)):
            if allowed:
                access(0)
            else:
                with pytest.raises(SegFault, match="not allowed"):
                    access(0)

    def test_stores_before_the_bad_one_are_done_and_those_after_are_not(
        self, any_machine: Machine
    ) -> None:
        region = new_region(any_machine, 4)
        region.mm.munmap(*region.part(2, 1))
        with pytest.raises(SegFault) as caught:
            region.write(0, 1, 2, 3, value=9)
        assert caught.value.address == region.at(2)
        assert [region.word(page) for page in range(4)] == [9, 9, 0, 0]
        assert region.present == "pp.."

    def test_a_refused_access_changes_no_entry(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        region.write(0)
        region.mm.mprotect(region.start, region.length, PROT_READ)
        before = region.entry(0)
        with pytest.raises(SegFault):
            region.write(0)
        assert region.entry(0) == before


class TestStores:
    def test_bytes_go_where_they_were_sent(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        size = region.page_size
        where = addresses([region.at(0) + 3, region.at(1) + size - 5])
        region.mm.store(where, np.array([2, 5], np.uint32), np.arange(1, 8, dtype=np.uint8))
        assert region.mm.peek(region.at(0), 8) == bytes([0, 0, 0, 1, 2, 0, 0, 0])
        assert region.mm.peek(region.at(1) + size - 6, 6) == bytes([0, 3, 4, 5, 6, 7])

    @pytest.mark.parametrize("offset", range(9))
    def test_a_word_may_straddle_its_alignment(self, machine: Machine, offset: int) -> None:
        region = new_region(machine, 1)
        value = 0xF1E2D3C4B5A69788
        region.mm.store(
            addresses([region.start]), np.array([24], np.uint32), np.full(24, 0x77, np.uint8)
        )
        region.mm.store_words(addresses([region.start + offset]), np.array([value], np.uint64))
        expected = bytearray(b"\x77" * 24)
        expected[offset : offset + 8] = value.to_bytes(8, "little")
        assert region.mm.peek(region.start, 24) == bytes(expected)

    def test_one_that_crosses_a_page_is_refused_before_anything_is_done(
        self, any_machine: Machine
    ) -> None:
        region = new_region(any_machine, 2)
        where = addresses([region.start, region.at(1) - 7])
        with pytest.raises(MmError, match="crosses a page") as caught:
            region.mm.store_words(where, np.array([1, 2], np.uint64))
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(MmError, match="crosses a page"):
            region.mm.store(where, np.array([4, 8], np.uint32), np.zeros(12, np.uint8))
        assert region.present == ".."

    def test_arguments_that_do_not_belong_together(self, machine: Machine) -> None:
        region = new_region(machine, 1)
        with pytest.raises(ValueError, match="do not belong together"):
            region.mm.store(addresses([region.start]), np.array([4], np.uint32), np.zeros(3, "u1"))
        with pytest.raises(ValueError, match="1 addresses but 2 values"):
            region.mm.store_words(addresses([region.start]), np.zeros(2, np.uint64))

    def test_nothing_to_store(self, machine: Machine) -> None:
        mm = machine.create_mm()
        nothing = np.zeros(0, np.uint64)
        assert mm.store_words(nothing, nothing) == 0
        assert mm.touch(nothing) == 0


class TestStack:
    """A MAP_GROWSDOWN mapping grows to an access below it (expand_downwards)."""

    def stack(self, machine: Machine) -> Region:
        top = BASE + 1024 * MIB
        start = top - 4 * machine.page_size
        return map_region(machine.create_mm(), 4, flags=ANON_PRIVATE | MAP_GROWSDOWN, start=start)

    def test_an_access_below_extends_it_to_that_page(self, any_machine: Machine) -> None:
        region = self.stack(any_machine)
        region.write(-3)
        (vma,) = region.mm.vmas()
        assert (vma.start, vma.end) == (region.at(-3), region.at(4))
        assert region.word(-3) == 0x5EED

    def test_growing_does_not_make_it_soft_dirty(self, machine: Machine) -> None:
        region = self.stack(machine)
        region.mm.clear_refs()
        region.write(-2)
        assert Region(region.mm, region.at(-2), 6).soft_dirty == "s....."

    def test_the_limit_is_8_mib(self, any_machine: Machine) -> None:
        region = self.stack(any_machine)
        end = region.at(4)
        region.mm.touch(addresses([end - 8 * MIB]))
        with pytest.raises(SegFault):
            region.mm.touch(addresses([end - 8 * MIB - 1]))

    def test_a_guard_of_256_pages_stays_free_below(self, machine: Machine) -> None:
        region = self.stack(machine)
        map_region(region.mm, 1, start=region.at(-300))
        region.read(-43)
        with pytest.raises(SegFault):
            region.read(-44)

    def test_a_neighbour_that_nobody_may_access_needs_no_guard(self, machine: Machine) -> None:
        region = self.stack(machine)
        map_region(region.mm, 1, prot=PROT_NONE, start=region.at(-300))
        region.read(-299)


def test_fault_counters_tell_the_kinds_apart(any_machine: Machine) -> None:
    region = new_region(any_machine, 2)
    region.read(0)  # maps the zero page
    region.write(0)  # replaces it
    region.write(1)  # a new page at once
    region.mm.clear_refs()
    region.write(1)  # made writable in place
    child = region.mm.fork()
    region.seen_by(child).write(1)  # copied
    found = any_machine.faults
    assert (found.minor, found.zero, found.wp, found.cow) == (5, 1, 2, 1)
    assert (found.swapin, found.livelocks) == (0, 0)
