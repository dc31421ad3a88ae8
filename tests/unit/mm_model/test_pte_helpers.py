"""The entry helpers of arch/arm64/include/asm/pgtable.h with the patch, bit by bit.

Bits are written as numbers here, as the architecture and the patch give them, and every helper is
asked twice: with one entry, and with an array of entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mm_model import ModelConfig
from mm_model.arm64 import pgtable
from mm_model.arm64.pgtable import Arch
from mm_model.config import build_arch

VALID, USER, RDONLY, AF = 1 << 0, 1 << 6, 1 << 7, 1 << 10
WRITE, PXN, UXN, DIRTY, SPECIAL, SOFT_DIRTY = 1 << 51, 1 << 53, 1 << 54, 1 << 55, 1 << 56, 1 << 63
PFN = 0x1234 << 12
PAGE = VALID | 1 << 1 | USER | 3 << 8 | AF | 1 << 11 | PXN | UXN | PFN
READ_ONLY = PAGE | RDONLY
CLEAN_WRITABLE = PAGE | WRITE | RDONLY  # as DBM hardware finds it before the first store
STORED_TO = PAGE | WRITE  # and leaves it after

SWP_EXCLUSIVE, SWP_SOFT_DIRTY = 1 << 2, 1 << 4
SWAP = 77 << 12


def arch_of(*off: str, kernel: str = "6.12") -> Arch:
    return build_arch(ModelConfig(kernel=kernel, hunks_off=frozenset(off)))


COMPLETE = arch_of()


def ask(helper: Callable[..., Any], pte: int, *more: Any, arch: Arch | None = None) -> int:
    """What the helper makes of one entry; an array of entries must say the same."""
    before = () if arch is None else (arch,)
    one = helper(*before, np.uint64(pte), *more)
    many = helper(*before, np.array([pte, 0, pte], np.uint64), *more)
    assert many.shape == (3,)
    assert many[0] == many[2] == one
    assert many.dtype in (np.uint64, np.bool)
    return int(one)


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        ("PTE_VALID", 0),
        ("PTE_USER", 6),
        ("PTE_RDONLY", 7),
        ("PTE_AF", 10),
        ("PTE_NG", 11),
        ("PTE_WRITE", 51),
        ("PTE_CONT", 52),
        ("PTE_PXN", 53),
        ("PTE_UXN", 54),
        ("PTE_DIRTY", 55),
        ("PTE_SPECIAL", 56),
        ("PTE_DEVMAP", 57),
        ("PTE_UFFD_WP", 58),
        ("PTE_SOFT_DIRTY", 63),
    ],
)
def test_a_page_entry_has_its_bits_where_the_patched_kernel_has_them(name: str, bit: int) -> None:
    assert int(getattr(pgtable, name)) == 1 << bit


@pytest.mark.parametrize(("page_size", "shift"), [(4096, 12), (16384, 14), (65536, 16)])
def test_the_frame_number_lies_between_the_page_shift_and_bit_47(
    page_size: int, shift: int
) -> None:
    arch = build_arch(ModelConfig(page_size=page_size))
    everything = (1 << 64) - 1
    assert ask(pgtable.pte_pfn, everything, arch=arch) == (1 << 48 - shift) - 1
    assert ask(pgtable.pte_pfn, 5 << shift, arch=arch) == 5
    assert int(pgtable.pfn_pte(arch, np.uint64(5), np.uint64(RDONLY))) == 5 << shift | RDONLY


class TestDirty:
    @pytest.mark.parametrize(
        ("pte", "dirty"),
        [
            (READ_ONLY, False),
            (READ_ONLY | DIRTY, True),
            (CLEAN_WRITABLE, False),
            (CLEAN_WRITABLE | DIRTY, True),
            (STORED_TO, True),
            (PAGE, False),  # RDONLY clear says nothing without WRITE
        ],
    )
    def test_dirty_is_the_software_bit_or_writable_and_not_read_only(
        self, pte: int, dirty: bool
    ) -> None:
        assert bool(ask(pgtable.pte_dirty, pte)) is dirty

    def test_soft_dirty_is_not_dirty(self) -> None:
        assert not ask(pgtable.pte_dirty, READ_ONLY | SOFT_DIRTY)

    def test_mkdirty_sets_both_software_bits_of_a_read_only_page(self) -> None:
        expected = READ_ONLY | DIRTY | SOFT_DIRTY
        assert ask(pgtable.pte_mkdirty, READ_ONLY, arch=COMPLETE) == expected

    def test_mkdirty_of_a_writable_page_also_clears_rdonly(self) -> None:
        expected = STORED_TO | DIRTY | SOFT_DIRTY
        assert ask(pgtable.pte_mkdirty, CLEAN_WRITABLE, arch=COMPLETE) == expected

    def test_the_patchs_inner_mkdirty_leaves_soft_dirty_alone(self) -> None:
        assert ask(pgtable.pte_mkdirty_hw, CLEAN_WRITABLE) == STORED_TO | DIRTY
        marked = CLEAN_WRITABLE | SOFT_DIRTY
        assert ask(pgtable.pte_mkdirty_hw, marked) == STORED_TO | DIRTY | SOFT_DIRTY

    def test_without_its_hunk_mkdirty_is_the_inner_one(self) -> None:
        arch = arch_of("pte_mkdirty")
        assert ask(pgtable.pte_mkdirty, CLEAN_WRITABLE, arch=arch) == STORED_TO | DIRTY

    def test_mkclean_clears_the_dirty_state_but_not_soft_dirty(self) -> None:
        pte = STORED_TO | DIRTY | SOFT_DIRTY
        assert ask(pgtable.pte_mkclean, pte) == CLEAN_WRITABLE | SOFT_DIRTY


class TestWriteProtection:
    def test_wrprotect_moves_the_hardwares_dirty_state_to_the_software_bit(self) -> None:
        assert ask(pgtable.pte_wrprotect, STORED_TO) == READ_ONLY | DIRTY

    def test_wrprotect_of_a_clean_page_leaves_it_clean(self) -> None:
        assert ask(pgtable.pte_wrprotect, CLEAN_WRITABLE) == READ_ONLY

    def test_wrprotect_keeps_software_bits(self) -> None:
        pte = CLEAN_WRITABLE | DIRTY | SOFT_DIRTY
        assert ask(pgtable.pte_wrprotect, pte) == READ_ONLY | DIRTY | SOFT_DIRTY

    def test_mkwrite_leaves_a_clean_page_read_only_until_the_first_store(self) -> None:
        assert ask(pgtable.pte_mkwrite, READ_ONLY) == CLEAN_WRITABLE

    def test_mkwrite_of_a_dirty_page_opens_it_at_once(self) -> None:
        assert ask(pgtable.pte_mkwrite, READ_ONLY | DIRTY) == STORED_TO | DIRTY


class TestSoftDirty:
    def test_the_three_helpers_touch_bit_63_only(self) -> None:
        assert ask(pgtable.pte_mksoft_dirty, READ_ONLY, arch=COMPLETE) == READ_ONLY | SOFT_DIRTY
        marked = STORED_TO | SOFT_DIRTY
        assert ask(pgtable.pte_clear_soft_dirty, marked, arch=COMPLETE) == STORED_TO
        assert ask(pgtable.pte_soft_dirty, marked, arch=COMPLETE)
        assert not ask(pgtable.pte_soft_dirty, STORED_TO, arch=COMPLETE)

    @pytest.mark.parametrize(
        "helper", ["pte_mksoft_dirty", "pte_clear_soft_dirty", "pte_swp_mksoft_dirty"]
    )
    @pytest.mark.parametrize("off_by", ["itself", "have_arch_soft_dirty"])
    def test_without_its_hunk_a_helper_is_the_generic_stub(self, helper: str, off_by: str) -> None:
        arch = arch_of(helper if off_by == "itself" else off_by)
        for pte in (READ_ONLY, READ_ONLY | SOFT_DIRTY, SWAP, SWAP | SWP_SOFT_DIRTY):
            assert ask(getattr(pgtable, helper), pte, arch=arch) == pte

    @pytest.mark.parametrize("off", ["pte_soft_dirty", "have_arch_soft_dirty"])
    def test_without_its_hunk_the_test_says_no(self, off: str) -> None:
        marked = READ_ONLY | SOFT_DIRTY
        assert not ask(pgtable.pte_soft_dirty, marked, arch=arch_of(off))

    def test_huge_page_helpers_are_the_same_functions_one_level_up(self) -> None:
        marked = STORED_TO | SOFT_DIRTY
        assert ask(pgtable.pmd_mksoft_dirty, STORED_TO, arch=COMPLETE) == marked
        assert ask(pgtable.pmd_clear_soft_dirty, marked, arch=COMPLETE) == STORED_TO
        assert ask(pgtable.pmd_soft_dirty, marked, arch=COMPLETE)
        swapped = ask(pgtable.pmd_swp_mksoft_dirty, SWAP, arch=COMPLETE)
        assert swapped == SWAP | SWP_SOFT_DIRTY
        assert ask(pgtable.pmd_swp_soft_dirty, swapped, arch=COMPLETE)
        assert ask(pgtable.pmd_swp_clear_soft_dirty, swapped, arch=COMPLETE) == SWAP


class TestModify:
    """pte_modify: the same page under the bits of another protection."""

    TO_READ_ONLY = np.uint64(VALID | 1 << 1 | USER | RDONLY | PXN | UXN)
    TO_WRITABLE = np.uint64(VALID | 1 << 1 | USER | RDONLY | WRITE | PXN | UXN)
    TO_NONE = np.uint64(1 << 1 | RDONLY | PXN | UXN | 1 << 11)

    def test_a_page_stored_to_stays_dirty_by_the_software_bit(self) -> None:
        found = ask(pgtable.pte_modify, STORED_TO, self.TO_READ_ONLY, arch=COMPLETE)
        assert found & (DIRTY | WRITE | RDONLY) == DIRTY | RDONLY

    def test_a_dirty_page_made_writable_is_open_to_stores_at_once(self) -> None:
        found = ask(pgtable.pte_modify, READ_ONLY | DIRTY, self.TO_WRITABLE, arch=COMPLETE)
        assert found & (DIRTY | WRITE | RDONLY) == DIRTY | WRITE

    def test_a_clean_page_stays_clean(self) -> None:
        found = ask(pgtable.pte_modify, CLEAN_WRITABLE, self.TO_READ_ONLY, arch=COMPLETE)
        assert found & (DIRTY | WRITE | RDONLY) == RDONLY

    @pytest.mark.parametrize("soft_dirty", [0, SOFT_DIRTY])
    @pytest.mark.parametrize("pte", [READ_ONLY, READ_ONLY | DIRTY, CLEAN_WRITABLE, STORED_TO])
    @pytest.mark.parametrize("prot", [TO_READ_ONLY, TO_WRITABLE, TO_NONE])
    def test_soft_dirty_frame_and_age_stay(
        self, pte: int, soft_dirty: int, prot: np.uint64
    ) -> None:
        found = ask(pgtable.pte_modify, pte | soft_dirty, prot, arch=COMPLETE)
        keep = SOFT_DIRTY | PFN | AF | 3 << 8
        assert found & keep == (pte | soft_dirty) & keep

    def test_prot_none_leaves_a_page_present_but_not_valid(self) -> None:
        found = ask(pgtable.pte_modify, READ_ONLY, self.TO_NONE, arch=COMPLETE)
        assert not found & (VALID | USER)
        assert ask(pgtable.pte_present, found, arch=COMPLETE)
        assert ask(pgtable.pte_protnone, found, arch=COMPLETE)

    def test_without_its_hunk_a_dirty_page_becomes_soft_dirty(self) -> None:
        arch = arch_of("pte_modify")
        for dirty in (STORED_TO, READ_ONLY | DIRTY, CLEAN_WRITABLE | DIRTY):
            assert ask(pgtable.pte_modify, dirty, self.TO_READ_ONLY, arch=arch) & SOFT_DIRTY
        for clean in (READ_ONLY, CLEAN_WRITABLE):
            assert not ask(pgtable.pte_modify, clean, self.TO_READ_ONLY, arch=arch) & SOFT_DIRTY

    def test_without_mkdirtys_hunk_as_well_there_is_no_bit_to_set(self) -> None:
        arch = arch_of("pte_modify", "pte_mkdirty")
        assert not ask(pgtable.pte_modify, STORED_TO, self.TO_READ_ONLY, arch=arch) & SOFT_DIRTY


class TestSwapEntries:
    def test_layout_of_6_12(self) -> None:
        assert ask(pgtable.swp_entry_to_pte, 77, arch=COMPLETE) == 77 << 12
        assert ask(pgtable.pte_swp_mkexclusive, SWAP, arch=COMPLETE) == SWAP | 1 << 2
        assert ask(pgtable.pte_swp_mksoft_dirty, SWAP, arch=COMPLETE) == SWAP | 1 << 4

    def test_layout_of_the_seeds_kernel(self) -> None:
        seed = arch_of(kernel="seed")
        assert ask(pgtable.swp_entry_to_pte, 77, arch=seed) == 77 << 4
        assert ask(pgtable.pte_swp_mkexclusive, 77 << 4, arch=seed) == 77 << 4 | 1 << 2
        assert ask(pgtable.pte_swp_mksoft_dirty, 77 << 4, arch=seed) == 77 << 4 | 1 << 61

    def test_soft_dirty_is_set_tested_and_cleared(self) -> None:
        marked = SWAP | SWP_SOFT_DIRTY
        assert ask(pgtable.pte_swp_soft_dirty, marked, arch=COMPLETE)
        assert not ask(pgtable.pte_swp_soft_dirty, SWAP, arch=COMPLETE)
        assert ask(pgtable.pte_swp_clear_soft_dirty, marked, arch=COMPLETE) == SWAP

    @pytest.mark.parametrize("kernel", ["6.12", "6.1", "seed"])
    def test_flags_do_not_change_the_offset(self, kernel: str) -> None:
        arch = arch_of(kernel=kernel)
        entry = ask(pgtable.swp_entry_to_pte, 77, arch=arch)
        flagged = ask(pgtable.pte_swp_mkexclusive, entry, arch=arch)
        flagged = ask(pgtable.pte_swp_mksoft_dirty, flagged, arch=arch)
        assert ask(pgtable.swp_offset, flagged, arch=arch) == 77
        assert ask(pgtable.pte_swp_clear_flags, flagged, arch=arch) == entry

    @pytest.mark.parametrize("kernel", ["6.12", "6.1", "seed"])
    def test_a_swap_entry_is_neither_none_nor_present(self, kernel: str) -> None:
        arch = arch_of(kernel=kernel)
        entry = ask(pgtable.swp_entry_to_pte, 77, arch=arch)
        for flags in (entry, ask(pgtable.pte_swp_mksoft_dirty, entry, arch=arch)):
            assert not ask(pgtable.pte_none, flags)
            assert not ask(pgtable.pte_present, flags, arch=arch)

    def test_the_seeds_bit_on_the_later_layout_is_the_offsets_top_bit(self) -> None:
        mistaken = arch_of("swap-bit-61")
        far = ask(pgtable.swp_entry_to_pte, 1 << 49, arch=mistaken)
        assert far == 1 << 61
        assert ask(pgtable.pte_swp_soft_dirty, far, arch=mistaken)
        assert ask(pgtable.swp_offset, far, arch=mistaken) == 0

    def test_without_the_clear_hunk_the_flag_stays(self) -> None:
        arch = arch_of("pte_swp_clear_soft_dirty")
        marked = SWAP | SWP_SOFT_DIRTY
        assert ask(pgtable.pte_swp_clear_soft_dirty, marked, arch=arch) == marked

    def test_without_the_test_hunk_the_flag_is_not_seen(self) -> None:
        arch = arch_of("pte_swp_soft_dirty")
        assert not ask(pgtable.pte_swp_soft_dirty, SWAP | SWP_SOFT_DIRTY, arch=arch)


class TestProtectionMap:
    """vm_get_page_prot: what a mapping's fresh entries look like."""

    @pytest.mark.parametrize("prot", range(1, 8))
    def test_private_pages_start_read_only(self, prot: int) -> None:
        found = int(pgtable.page_prot(COMPLETE, prot, shared=False))
        assert found & (VALID | USER | RDONLY | WRITE | AF) == VALID | USER | RDONLY | AF

    @pytest.mark.parametrize("prot", range(1, 8))
    def test_shared_writable_pages_start_writable_and_clean(self, prot: int) -> None:
        found = int(pgtable.page_prot(COMPLETE, prot, shared=True))
        assert bool(found & WRITE) is bool(prot & 2)
        assert found & RDONLY

    @pytest.mark.parametrize("prot", range(1, 8))
    @pytest.mark.parametrize("shared", [False, True])
    def test_user_code_needs_prot_exec_and_the_kernel_never_executes(
        self, prot: int, shared: bool
    ) -> None:
        found = int(pgtable.page_prot(COMPLETE, prot, shared=shared))
        assert bool(found & UXN) is not bool(prot & 4)
        assert found & PXN

    @pytest.mark.parametrize("kernel", ["6.12", "6.1", "seed"])
    def test_prot_none_is_present_but_closed_to_the_hardware(self, kernel: str) -> None:
        arch = arch_of(kernel=kernel)
        found = int(pgtable.page_prot(arch, 0, shared=False))
        assert not found & (VALID | USER | WRITE)
        assert ask(pgtable.pte_protnone, found, arch=arch)


def test_age_and_special_helpers_touch_one_bit_each() -> None:
    assert ask(pgtable.pte_mkold, READ_ONLY) == READ_ONLY & ~AF
    assert ask(pgtable.pte_mkyoung, READ_ONLY & ~AF) == READ_ONLY
    assert ask(pgtable.pte_mkspecial, READ_ONLY) == READ_ONLY | SPECIAL
    assert ask(pgtable.pte_young, READ_ONLY)
    assert not ask(pgtable.pte_young, READ_ONLY & ~AF)
    assert ask(pgtable.pte_special, READ_ONLY | SPECIAL)
    assert not ask(pgtable.pte_special, READ_ONLY)
