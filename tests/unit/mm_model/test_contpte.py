"""Contiguous blocks and folios of several pages, at every page size, against what they promise."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from mm_model import (
    MADV_DONTNEED,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PM_SOFT_DIRTY,
    PROT_READ,
    PROT_WRITE,
    Livelock,
    Machine,
    Mm,
    MmError,
    ModelConfig,
)
from mm_model.arm64.contpte import get_and_clear_full_ptes
from mm_model.pagewalk import walk
from mm_model.state import PGD

BASE = 0x10_0000_0000
CONT = np.uint64(1 << 52)
DIRTY, SOFT_DIRTY = 1 << 55, 1 << 63
RW = PROT_READ | PROT_WRITE
# page size, pages of one contiguous block
BLOCKS = [(4096, 16), (16384, 128), (65536, 32)]


def addresses(machine: Machine, first: int, count: int) -> np.ndarray:
    size = machine.page_size
    return np.arange(BASE + first * size, BASE + (first + count) * size, size, dtype=np.uint64)


def mapped(page_size: int, block: int, **settings: object) -> tuple[Machine, Mm]:
    """Two blocks' worth of memory in folios of one block each, written once."""
    config = ModelConfig(page_size, frames=6 * block, swap_slots=4 * block, **settings)  # type: ignore[arg-type]
    machine = Machine(config)
    machine.set_mthp(block * page_size // 1024, "always")
    mm = machine.create_mm()
    mm.mmap(BASE, 2 * block * page_size, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    mm.touch_write(addresses(machine, 0, 1))
    mm.touch_write(addresses(machine, block, 1))
    return machine, mm


def soft_dirty(machine: Machine, mm: Mm, count: int) -> list[int]:
    return np.flatnonzero(mm.pagemap(BASE, count) & PM_SOFT_DIRTY).tolist()


def folded(mm: Mm, count: int) -> int:
    return int(np.count_nonzero(mm.ptes(BASE, count) & CONT))


@pytest.mark.parametrize(("page_size", "block"), BLOCKS)
def test_one_fault_maps_a_block_and_folds_it(page_size: int, block: int) -> None:
    _, mm = mapped(page_size, block)
    assert folded(mm, 2 * block) == 2 * block
    assert mm.rss_pages == 2 * block
    frames = mm.frames(BASE, block)
    assert frames[0] % block == 0
    assert (np.diff(frames) == 1).all()


@pytest.mark.parametrize(("page_size", "block"), BLOCKS)
def test_a_write_unfolds_its_block_and_marks_one_page(page_size: int, block: int) -> None:
    machine, mm = mapped(page_size, block)
    mm.clear_refs()
    assert folded(mm, 2 * block) == 2 * block
    mm.touch_write(addresses(machine, 5, 1))
    assert soft_dirty(machine, mm, 2 * block) == [5]
    assert folded(mm, block) == 0
    mm.clear_refs()
    assert folded(mm, 2 * block) == 2 * block


@pytest.mark.parametrize(("page_size", "block"), BLOCKS)
def test_a_folio_is_free_again_only_as_a_whole(page_size: int, block: int) -> None:
    machine, mm = mapped(page_size, block)
    used = machine.used_frames
    mm.madvise(BASE + page_size, (block - 1) * page_size, MADV_DONTNEED)
    assert machine.used_frames == used
    mm.madvise(BASE, page_size, MADV_DONTNEED)
    assert machine.used_frames == used - block


@pytest.mark.parametrize(("page_size", "block"), BLOCKS)
def test_pages_of_a_partly_unmapped_folio_are_found_when_memory_is_short(
    page_size: int, block: int
) -> None:
    machine, mm = mapped(page_size, block)
    mm.madvise(BASE, (block - 1) * page_size, MADV_DONTNEED)
    mm.madvise(BASE, block * page_size, MADV_NOHUGEPAGE)
    more = BASE + (1 << 30)
    mm.mmap(more, 8 * block * page_size, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    mm.madvise(more, 8 * block * page_size, MADV_NOHUGEPAGE)
    # All frames but the zero page, and those that are still mapped.
    left = 6 * block - 1 - 1 - block
    where = np.arange(more, more + left * page_size, page_size, dtype=np.uint64)
    mm.touch_write(where)
    assert machine.free_frames == 0
    with pytest.raises(MmError) as failure:
        mm.touch_write(where[-1:] + np.uint64(page_size))
    assert failure.value.errno == errno.ENOMEM


@pytest.mark.parametrize(("page_size", "block"), BLOCKS)
def test_a_folio_goes_to_swap_and_comes_back_as_one(page_size: int, block: int) -> None:
    machine, mm = mapped(page_size, block)
    values = np.arange(1, 2 * block + 1, dtype=np.uint64)
    mm.store_words(addresses(machine, 0, 2 * block), values)
    mm.clear_refs()
    mm.touch_write(addresses(machine, block, block))
    mm.madvise(BASE, 2 * block * page_size, MADV_PAGEOUT)
    assert mm.rss_pages == 0
    assert soft_dirty(machine, mm, 2 * block) == list(range(block, 2 * block))
    mm.touch(addresses(machine, 3, 1))
    assert mm.rss_pages == block
    assert soft_dirty(machine, mm, 2 * block) == list(range(block, 2 * block))
    got = [int.from_bytes(mm.load(int(a), 8), "little") for a in addresses(machine, 0, 2 * block)]
    assert got == values.tolist()


@pytest.mark.parametrize(("page_size", "block"), BLOCKS)
def test_splitting_keeps_content_and_drops_pages_of_zeros(page_size: int, block: int) -> None:
    machine, mm = mapped(page_size, block)
    mm.store_words(addresses(machine, 2, 1), np.array([7], np.uint64))
    assert mm.split_huge_pages(BASE, block * page_size) == 1
    frames = mm.frames(BASE, block)
    assert frames[2] > 0
    assert np.count_nonzero(frames) == 1
    assert mm.load(BASE + 2 * page_size, 1) == b"\x07"
    assert folded(mm, 2 * block) == block


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_sizes_that_the_kernel_does_not_offer_are_refused(page_size: int) -> None:
    machine = Machine(ModelConfig(page_size, frames=64))
    for pages in (1, 2, 3, page_size // 8):
        with pytest.raises(MmError) as failure:
            machine.set_mthp(pages * page_size // 1024, "always")
        assert failure.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    ("variant", "marked"),
    [("as-ported", None), ("mask-only", 16), ("as-in-6.9", 16), ("fixed", 1)],
)
def test_forced_write_into_a_read_only_block(variant: str, marked: int | None) -> None:
    """The fault of the patch on 6.12, and what mends it."""
    machine, mm = mapped(4096, 16, hunks_off=frozenset({f"contpte-access-flags-{variant}"}))
    mm.clear_refs()
    mm.mprotect(BASE, 32 * 4096, PROT_READ)
    if marked is None:
        with pytest.raises(Livelock):
            mm.gup_write(BASE + 3 * 4096, b"x")
    else:
        mm.gup_write(BASE + 3 * 4096, b"x")
        assert len(soft_dirty(machine, mm, 32)) == marked


def test_only_one_variant_at_a_time() -> None:
    both = frozenset({"contpte-access-flags-fixed", "contpte-access-flags-mask-only"})
    with pytest.raises(ValueError, match="only one of the contpte-access-flags variants"):
        Machine(ModelConfig(frames=8, hunks_off=both))


@pytest.mark.parametrize(("page_size", "block"), BLOCKS)
def test_gathering_dirty_bits_at_unmap_does_not_invent_soft_dirty(
    page_size: int, block: int
) -> None:
    """Nobody reads the answer's soft-dirty bit, so that recordings show this hunk neutral."""

    def gathered(**settings: object) -> int:
        machine, mm = mapped(page_size, block, **settings)
        mm.clear_refs()
        first = walk(machine.arch, machine.phys, mm.space.regs[PGD], np.uint64(BASE))
        return int(get_and_clear_full_ptes(machine.arch, machine.phys, first, block))

    assert gathered() & DIRTY and not gathered() & SOFT_DIRTY
    assert gathered(hunks_off=frozenset({"get_and_clear_full_ptes"})) & SOFT_DIRTY
