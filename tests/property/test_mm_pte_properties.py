"""Entry helpers on any 64 bits: equal to the kernel's if-by-if definition on plain integers.

The definitions here are written as the patched arch/arm64/include/asm/pgtable.h has them, with
branches; the model's are free of branches and take arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_model import ModelConfig
from mm_model.arm64 import pgtable
from mm_model.config import build_arch

RDONLY, WRITE, DIRTY, SOFT_DIRTY = 1 << 7, 1 << 51, 1 << 55, 1 << 63
VALID, USER, NG, PXN, UXN = 1, 1 << 6, 1 << 11, 1 << 53, 1 << 54
SWP_EXCLUSIVE, SWP_UFFD_WP, SWP_SOFT_DIRTY = 1 << 2, 1 << 3, 1 << 4
SWP_FLAGS = SWP_EXCLUSIVE | SWP_UFFD_WP | SWP_SOFT_DIRTY
# 6.12's pte_modify takes these from the new protection: also GP, the attribute index, POIndex.
# PRESENT_INVALID lies over NG.
MODIFIED = VALID | USER | RDONLY | NG | WRITE | PXN | UXN | 1 << 50 | 7 << 2 | 7 << 60
ALL = (1 << 64) - 1
ARCH = build_arch(ModelConfig())

# Single bits, few bits and any bits: plain integers alone would hardly ever be nearly zero.
words = st.one_of(
    st.integers(0, ALL),
    st.sets(st.integers(0, 63), max_size=8).map(lambda bits: sum(1 << bit for bit in bits)),
)


def hw_dirty(pte: int) -> bool:
    return bool(pte & WRITE) and not pte & RDONLY


def dirty(pte: int) -> bool:
    return bool(pte & DIRTY) or hw_dirty(pte)


def inner_mkdirty(pte: int) -> int:
    pte |= DIRTY
    if pte & WRITE:
        pte &= ~RDONLY
    return pte


def mkdirty(pte: int) -> int:
    return inner_mkdirty(pte | SOFT_DIRTY)


def mkclean(pte: int) -> int:
    return pte & ~DIRTY | RDONLY


def mkwrite(pte: int) -> int:
    pte |= WRITE
    if pte & DIRTY:
        pte &= ~RDONLY
    return pte


def wrprotect(pte: int) -> int:
    if hw_dirty(pte):
        pte |= DIRTY
    return pte & ~WRITE | RDONLY


def modify(pte: int, prot: int) -> int:
    if hw_dirty(pte):
        pte |= DIRTY
    pte = pte & ~MODIFIED | prot & MODIFIED
    return inner_mkdirty(pte) if pte & DIRTY else pte


SAME: list[tuple[str, bool, Callable[[int], int]]] = [
    # helper, whether it takes the Arch, definition
    ("pte_dirty", False, dirty),
    ("pte_hw_dirty", False, hw_dirty),
    ("pte_sw_dirty", False, lambda pte: bool(pte & DIRTY)),
    ("pte_mkdirty_hw", False, inner_mkdirty),
    ("pte_mkdirty", True, mkdirty),
    ("pte_mkclean", False, mkclean),
    ("pte_mkwrite", False, mkwrite),
    ("pte_wrprotect", False, wrprotect),
    ("pte_soft_dirty", True, lambda pte: bool(pte & SOFT_DIRTY)),
    ("pte_mksoft_dirty", True, lambda pte: pte | SOFT_DIRTY),
    ("pte_clear_soft_dirty", True, lambda pte: pte & ~SOFT_DIRTY),
    ("pte_present", True, lambda pte: bool(pte & (VALID | NG))),
    ("pte_pfn", True, lambda pte: pte >> 12 & (1 << 36) - 1),
    ("pte_swp_soft_dirty", True, lambda pte: bool(pte & SWP_SOFT_DIRTY)),
    ("pte_swp_mksoft_dirty", True, lambda pte: pte | SWP_SOFT_DIRTY),
    ("pte_swp_clear_soft_dirty", True, lambda pte: pte & ~SWP_SOFT_DIRTY),
    ("pte_swp_clear_flags", True, lambda pte: pte & ~SWP_FLAGS),
    ("swp_offset", True, lambda pte: pte >> 12 & (1 << 50) - 1),
]


@pytest.mark.parametrize(("name", "takes_arch", "definition"), SAME, ids=[s[0] for s in SAME])
@given(ptes=st.lists(words, min_size=1, max_size=20))
def test_helper_is_its_definition(
    name: str, takes_arch: bool, definition: Callable[[int], int], ptes: list[int]
) -> None:
    helper: Callable[..., Any] = getattr(pgtable, name)
    before = (ARCH,) if takes_arch else ()
    expected = [definition(pte) for pte in ptes]
    assert helper(*before, np.array(ptes, np.uint64)).tolist() == expected
    assert [int(helper(*before, np.uint64(pte))) for pte in ptes] == expected


@given(pte=words, prot=words)
def test_modify_is_its_definition(pte: int, prot: int) -> None:
    assert int(pgtable.pte_modify(ARCH, np.uint64(pte), np.uint64(prot))) == modify(pte, prot)


@given(pte=words, prot=words)
def test_soft_dirty_changes_by_its_own_helpers_and_by_mkdirty_only(pte: int, prot: int) -> None:
    entry = np.uint64(pte)
    unchanged = [
        pgtable.pte_mkdirty_hw(entry),
        pgtable.pte_mkclean(entry),
        pgtable.pte_mkwrite(entry),
        pgtable.pte_wrprotect(entry),
        pgtable.pte_mkold(entry),
        pgtable.pte_mkyoung(entry),
        pgtable.pte_modify(ARCH, entry, np.uint64(prot)),
    ]
    assert all(int(after) & SOFT_DIRTY == pte & SOFT_DIRTY for after in unchanged)
    assert int(pgtable.pte_mkdirty(ARCH, entry)) & SOFT_DIRTY


@given(pte=words)
def test_write_protecting_forgets_no_dirt(pte: int) -> None:
    protected = np.uint64(pgtable.pte_wrprotect(np.uint64(pte)))
    assert bool(pgtable.pte_dirty(protected)) == dirty(pte)
    assert not pgtable.pte_write(protected)


@given(offset=st.integers(1, (1 << 49) - 1), flags=st.sets(st.sampled_from(("sd", "excl"))))
@pytest.mark.parametrize("kernel", ["6.12", "6.1", "seed"])
def test_a_swap_slot_survives_its_flags(kernel: str, offset: int, flags: set[str]) -> None:
    arch = build_arch(ModelConfig(kernel=kernel))
    entry = pgtable.swp_entry_to_pte(arch, np.uint64(offset))
    if "sd" in flags:
        entry = pgtable.pte_swp_mksoft_dirty(arch, np.uint64(entry))
    if "excl" in flags:
        entry = pgtable.pte_swp_mkexclusive(arch, np.uint64(entry))
    assert int(pgtable.swp_offset(arch, np.uint64(entry))) == offset
    assert bool(pgtable.pte_swp_soft_dirty(arch, np.uint64(entry))) == ("sd" in flags)
    assert bool(pgtable.pte_swp_exclusive(arch, np.uint64(entry))) == ("excl" in flags)
    assert not pgtable.pte_present(arch, np.uint64(entry))
