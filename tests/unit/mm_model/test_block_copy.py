"""Blocks of bytes, compared and copied as numpy does it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mm_model._compiled import compiled
from mm_model.block import copy_bytes, same_bytes
from mm_model.state import Int


@compiled
def _same(here: np.ndarray, at: Int, there: np.ndarray, start: Int, size: Int) -> bool:
    return same_bytes(here, at, there, start, size)


@compiled
def _copy(here: np.ndarray, at: Int, there: np.ndarray, start: Int, size: Int) -> None:
    copy_bytes(here, at, there, start, size)


@given(
    at=st.integers(0, 200),
    start=st.integers(0, 56),
    size=st.integers(0, 56),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_block_is_copied_to_its_place_and_nowhere_else(
    at: int, start: int, size: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    here = random.integers(0, 256, (4, 64), dtype=np.uint8)
    there = random.integers(0, 256, 112, dtype=np.uint8)
    expected = here.copy().reshape(-1)
    expected[at : at + size] = there[start : start + size]
    _copy(here, at, there, start, size)
    assert np.array_equal(here.reshape(-1), expected)
    assert _same(here, at, there, start, size)


@given(position=st.integers(0, 4095), bit=st.integers(0, 7))
def test_one_bit_makes_blocks_different(position: int, bit: int) -> None:
    here = np.zeros((2, 4096), dtype=np.uint8)
    there = np.zeros(4096 + 3, dtype=np.uint8)
    assert _same(here, 4096, there, 3, 4096)
    there[3 + position] ^= 1 << bit
    assert not _same(here, 4096, there, 3, 4096)
