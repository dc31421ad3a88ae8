"""The model's own record of what was written, and looking at or replacing content from outside.

The record knows nothing of page-table bits: it is what lost and spurious pages are counted by.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import pytest

from mm_model import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    Machine,
    MmError,
    ModelConfig,
    SegFault,
)
from tests.unit.mm_model.kernel_box import (
    BASE,
    Region,
    addresses,
    make_machine,
    map_object,
    new_region,
    tracked_region,
)


def stamps(region: Region) -> list[int]:
    return [int(stamp) for stamp in region.mm.versions(region.start, region.pages)]


class TestStamps:
    def test_nothing_and_zeros_have_none(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        region.read(0)
        region.write(1, value=0)
        assert stamps(region) == [0, 0, 0]

    def test_every_change_of_bytes_gives_a_new_one(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        seen = {0}
        for value in (1, 2, 1, 3):
            for page in range(2):
                region.write(page, value=value)
                assert stamps(region)[page] not in seen
                seen.add(stamps(region)[page])

    def test_the_same_bytes_again_give_none(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        before = stamps(region)
        region.write(0, value=1)
        region.mm.gup_write(region.start, b"\x01")
        region.mm.store(
            addresses([region.start]), np.array([2], np.uint32), np.array([1, 0], np.uint8)
        )
        assert stamps(region) == before
        assert region.soft_dirty == "s"

    @pytest.mark.parametrize(
        "changed",
        [
            [],
            [0],
            [4095],
            [1000],
            [511, 512],
            [0, 700, 1400],
            [0, 4095],
            [600, 1200, 4000],
            range(4096),
            range(1, 4096, 511),
        ],
        ids=str,
    )
    def test_a_page_differs_wherever_it_does_and_has_one_new_stamp_then(
        self, machine: Machine, changed: list[int]
    ) -> None:
        region = new_region(machine, 1)
        page = np.arange(4096, dtype=np.uint32).astype(np.uint8)
        where, size = addresses([region.start]), np.array([4096], np.uint32)
        region.mm.store(where, size, page)
        page[changed] ^= 0x40
        for write in (
            lambda: region.mm.store(where, size, page),
            lambda: region.mm.install(where, page),
        ):
            before = stamps(region)[0]
            write()
            assert region.mm.peek(region.start, 4096) == page.tobytes()
            assert stamps(region)[0] == before + (1 if len(changed) else 0)
            page[changed] ^= 0x80

    def test_all_ways_of_writing_count(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        where = addresses([region.start])
        writes: list[Callable[[], object]] = [
            lambda: region.mm.store_words(where, np.array([2], np.uint64)),
            lambda: region.mm.store_words(where + np.uint64(3), np.array([2], np.uint64)),
            lambda: region.mm.store(where, np.array([1], np.uint32), np.array([7], np.uint8)),
            lambda: region.mm.gup_write(region.start, b"\x08"),
            lambda: region.mm.install(where, np.full(region.page_size, 9, np.uint8)),
        ]
        for write in writes:
            before = stamps(region)
            write()
            assert stamps(region) != before

    def test_a_touch_for_writing_changes_entries_and_no_stamp(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        before = stamps(region)
        region.mm.touch_write(addresses([region.at(1)]))
        assert (stamps(region), region.soft_dirty) == (before, ".s")

    def test_moves_swap_and_fork_keep_them(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 2)
        before = stamps(region)
        child = region.seen_by(region.mm.fork())
        assert stamps(child) == before
        child.mm.exit()
        region.mm.madvise(region.start, region.length, MADV_PAGEOUT)
        assert stamps(region) == before
        region.read(0)
        assert stamps(region) == before
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        region.mm.mremap(region.start, region.length, region.length, flags, BASE + (1 << 40))
        assert stamps(region.moved_to(BASE + (1 << 40))) == before

    def test_a_copy_has_its_originals_until_it_changes(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        before = stamps(region)
        child = region.seen_by(region.mm.fork())
        child.write(0, value=1)  # copied, the same bytes
        assert stamps(child) == before
        child.write(0, value=2)
        assert stamps(child) != before
        assert stamps(region) == before

    def test_what_is_thrown_away_has_none(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        region.mm.madvise(region.start, region.length, MADV_DONTNEED)
        assert stamps(region) == [0]

    def test_shared_memory_has_the_objects(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(1)
        one = map_object(any_machine.create_mm(), shared, 1)
        other = map_object(any_machine.create_mm(), shared, 1)
        one.write(0)
        assert other.present == "."
        assert stamps(other) == stamps(one) != [0]


class TestLooking:
    def test_changes_nothing(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 3)
        region.write(0, 1)
        region.mm.madvise(*region.part(1, 1), MADV_PAGEOUT)
        before = region.mm.ptes(region.start, 3).tolist(), any_machine.faults
        region.mm.frames(region.start, 3)
        region.mm.versions(region.start, 3)
        region.mm.peek(region.start, region.length)
        assert (region.mm.ptes(region.start, 3).tolist(), any_machine.faults) == before

    def test_frames_tell_holes_zeros_and_content_apart(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 4)
        region.read(1)
        region.write(2, 3, value=6)
        region.mm.madvise(*region.part(3, 1), MADV_PAGEOUT)
        frames = region.mm.frames(region.start, 4).tolist()
        assert frames[:2] == [-1, 0]
        for frame in frames[2:]:
            assert any_machine.content[frame, :8].tobytes() == (6).to_bytes(8, "little")

    def test_peek_reads_any_range_and_zeros_where_nothing_is(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.mm.gup_write(region.at(1) - 2, b"abcd")
        region.mm.mprotect(region.start, region.length, PROT_NONE)
        assert region.mm.peek(region.at(1) - 4, 8) == b"\0\0abcd\0\0"
        assert region.mm.peek(region.at(2) - 4, 8) == bytes(8)
        assert region.mm.peek(region.start, 0) == b""

    def test_load_reads_as_the_task_does(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.mm.gup_write(region.at(1) - 2, b"abcd")
        assert region.mm.load(region.at(1) - 2, 4) == b"abcd"
        region.mm.mprotect(*region.part(1, 1), PROT_NONE)
        with pytest.raises(SegFault):
            region.mm.load(region.at(1) - 2, 4)


class TestInstall:
    def pages(self, region: Region, *values: int) -> np.ndarray:
        return np.repeat(np.array(values, np.uint8), region.page_size)

    def where(self, region: Region) -> np.ndarray:
        return addresses(region.at(page) for page in range(region.pages))

    @pytest.mark.parametrize("prot", [PROT_NONE, PROT_READ, PROT_READ | 2])
    def test_whatever_the_protection(self, any_machine: Machine, prot: int) -> None:
        region = new_region(any_machine, 2, prot=prot)
        region.mm.clear_refs()
        region.mm.install(self.where(region), self.pages(region, 1, 2))
        expected = b"\1" * region.page_size + b"\2" * region.page_size
        assert region.mm.peek(region.start, region.length) == expected
        assert (region.present, region.soft_dirty) == ("pp", "ss")
        if not prot & 2:
            with pytest.raises(SegFault):
                region.write(0)

    def test_over_pages_of_every_kind(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 4)
        region.read(1)
        region.write(2, 3)
        region.mm.madvise(*region.part(3, 1), MADV_PAGEOUT)
        region.mm.install(self.where(region), self.pages(region, 1, 2, 3, 4))
        assert [region.mm.peek(region.at(page), 1)[0] for page in range(4)] == [1, 2, 3, 4]
        assert (any_machine.used_frames, any_machine.used_swap_slots) == (4, 0)

    def test_the_other_side_of_a_fork_keeps_its_page(self, any_machine: Machine) -> None:
        region = tracked_region(any_machine, 1)
        child = region.seen_by(region.mm.fork())
        child.mm.install(self.where(child), self.pages(child, 9))
        assert region.word(0) == 1

    def test_shared_memory_is_the_objects(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(2)
        one = map_object(any_machine.create_mm(), shared, 2)
        other = map_object(any_machine.create_mm(), shared, 2)
        one.mm.install(self.where(one), self.pages(one, 1, 2))
        assert other.mm.peek(other.at(1), 1) == b"\2"

    def test_discard_undoes_it(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 2)
        region.mm.install(self.where(region), self.pages(region, 1, 2))
        region.mm.discard(addresses([region.at(0)]))
        assert region.present == ".p"
        assert any_machine.used_frames == 1

    def test_discard_of_shared_memory_is_for_everyone(self, any_machine: Machine) -> None:
        shared = any_machine.create_shared(1)
        one = map_object(any_machine.create_mm(), shared, 1)
        other = map_object(any_machine.create_mm(), shared, 1)
        one.write(0)
        other.read(0)
        one.mm.discard(addresses([one.start]))
        assert (one.present, other.present) == (".", ".")
        assert any_machine.used_frames == 0

    def test_outside_all_mappings(self, any_machine: Machine) -> None:
        region = new_region(any_machine, 1)
        with pytest.raises(SegFault, match="not mapped"):
            region.mm.install(addresses([region.at(1)]), self.pages(region, 1))

    def test_bad_arguments(self, machine: Machine) -> None:
        region = new_region(machine, 1)
        with pytest.raises(MmError, match="page-aligned") as caught:
            region.mm.install(addresses([region.start + 8]), self.pages(region, 1))
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(ValueError, match="one page for each address"):
            region.mm.install(addresses([region.start]), np.zeros(8, np.uint8))


class TestMachine:
    def test_the_callers_buffer_holds_the_content(self) -> None:
        buffer = np.zeros((16, 4096), np.uint8)
        machine = Machine(ModelConfig(), buffer)
        region = new_region(machine, 1)
        region.write(0, value=0x77)
        assert (buffer == 0x77).sum() == 1

    @pytest.mark.parametrize(
        "buffer",
        [
            np.zeros((16, 2048), np.uint8),
            np.zeros((16, 4096), np.int8),
            np.zeros((32, 4096), np.uint8)[::2],
            np.zeros((1, 4096), np.uint8),
        ],
    )
    def test_a_buffer_that_does_not_fit_is_refused(self, buffer: np.ndarray) -> None:
        with pytest.raises(ValueError, match=r"content|2 frames"):
            Machine(ModelConfig(), buffer)

    def test_out_of_frames_says_what_to_raise(self) -> None:
        region = new_region(make_machine(frames=3), 3)
        with pytest.raises(MmError, match=r"raise ModelConfig\.frames") as caught:
            region.write_all()
        assert caught.value.errno == errno.ENOMEM
        assert region.present == "pp."

    def test_frames_are_counted(self, any_machine: Machine) -> None:
        free = any_machine.free_frames
        region = new_region(any_machine, 3)
        region.write_all()
        assert (any_machine.used_frames, any_machine.free_frames) == (3, free - 3)
        any_machine.release()
        assert any_machine.used_frames == 0
