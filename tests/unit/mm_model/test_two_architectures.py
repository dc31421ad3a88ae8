"""arm64 and x86-64 are two builds of one generic mm: each has its own bits, both show the same."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import mm_model
from mm_model import (
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    ModelConfig,
)
from mm_model.build import SHARED

PAGE = 4096
RW = PROT_READ | PROT_WRITE
WIRING = {"arch", "asm", "build", "config", "entry"}
"""Modules that choose an architecture; all others are generic."""


def pages(mm: Mm, npages: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    start = mm.mmap(None, npages * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS)
    return np.uint64(start) + np.arange(npages, dtype=np.uint64) * np.uint64(PAGE)


def test_generic_modules_name_no_architecture() -> None:
    package = Path(mm_model.__file__).parent
    named = set()
    for source in package.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                if node.module.startswith(("mm_model.arm64", "mm_model.x86")):
                    named.add(source.stem)
    assert named <= WIRING
    assert not SHARED & named - {"arch"}


@pytest.mark.parametrize(("arch", "soft_dirty", "writable"), [("arm64", 63, 51), ("x86_64", 11, 1)])
def test_written_page_has_the_bits_of_its_architecture(
    arch: str, soft_dirty: int, writable: int
) -> None:
    mm = Machine(ModelConfig(frames=64, arch=arch)).create_mm()
    where = pages(mm, 2)
    mm.store_words(where[:1], where[:1])
    written = int(mm.ptes(int(where[0]), 1)[0])
    assert written >> soft_dirty & 1 and written >> writable & 1
    mm.clear_refs()
    cleared = int(mm.ptes(int(where[0]), 1)[0])
    assert not cleared >> soft_dirty & 1 and not cleared >> writable & 1


def test_x86_swap_entry_keeps_the_inverted_offset_and_soft_dirty_in_bit_1() -> None:
    machine = Machine(ModelConfig(frames=64, swap_slots=8, arch="x86_64"))
    mm = machine.create_mm()
    where = pages(mm, 1)
    mm.store_words(where, where)
    mm.madvise(int(where[0]), PAGE, MADV_PAGEOUT)
    (entry,) = mm.ptes(int(where[0]), 1).tolist()
    assert entry & 1 == 0 and entry >> 1 & 1 == 1 and entry >> 8 & 1 == 0
    assert ~(entry >> 9) & (1 << 50) - 1 == 1  # slot 1, the first that is given out
    mm.clear_refs()
    assert int(mm.ptes(int(where[0]), 1)[0]) == entry & ~2
    assert mm.load(int(where[0]), 8) == int(where[0]).to_bytes(8, "little")


def test_dirty_state_of_a_write_protected_x86_page_moves_to_its_saved_dirty_bit() -> None:
    mm = Machine(ModelConfig(frames=64, arch="x86_64")).create_mm()
    where = pages(mm, 1)
    mm.store_words(where, where)
    mm.mprotect(int(where[0]), PAGE, PROT_READ)
    protected = int(mm.ptes(int(where[0]), 1)[0])
    assert (protected >> 6 & 1, protected >> 58 & 1) == (0, 1)
    mm.mprotect(int(where[0]), PAGE, RW)
    again = int(mm.ptes(int(where[0]), 1)[0])
    assert (again >> 1 & 1, again >> 6 & 1, again >> 58 & 1) == (1, 1, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "riscv"}, "arch 'riscv': must be one of arm64, x86_64"),
        ({"arch": "x86_64", "page_size": 65536}, "x86_64 has 4096-byte pages only"),
        (
            {"arch": "x86_64", "hunks_off": frozenset({"pte_mkdirty"})},
            "the patch is for arm64, x86_64 has no hunks of it",
        ),
    ],
)
def test_what_an_architecture_does_not_have_is_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError) as refused:
        ModelConfig(**settings)  # type: ignore[arg-type]
    assert message in str(refused.value)
