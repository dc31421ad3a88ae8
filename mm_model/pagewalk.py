"""The table walk: page tables as the hardware reads them, and their allocation.

A table is one page of ``Phys.tables``; its number, shifted by the page shift, is the address in a
table descriptor (bits 1-0 = 3). Three levels for 64K pages, four for 4K and 16K, 48 address bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mm_model._compiled import compiled, inlined
from mm_model.asm.pgtable import PMD_TYPE_TABLE, U0, Arch, pmd_leaf, pmd_table
from mm_model.state import (
    DEPOSITED,
    FREE_TABLES,
    HUGE_PMDS,
    NEXT_TABLE,
    PGD,
    Flag,
    Int,
    Phys,
    Space,
)


@inlined
def walk(arch: Arch, phys: Phys, pgd: Int, address: np.uint64) -> Int:
    """Index of the page entry for ``address`` in ``phys.tables``.

    -1 when a table is missing, or a huge page is mapped there.
    """
    tables = phys.tables
    table = np.uint64(pgd)
    shift = arch.top_shift
    for _ in range(arch.levels - 1):
        index = (table << arch.table_shift) + ((address >> shift) & arch.table_mask)
        entry = tables[index]
        if not pmd_table(entry):
            return np.int64(-1)
        table = entry >> arch.page_shift
        shift = shift - arch.table_shift
    return np.int64((table << arch.table_shift) + ((address >> arch.page_shift) & arch.table_mask))


@compiled
def tables_left(phys: Phys) -> Flag:
    """Whether there is a table that is not set aside for splitting a huge page."""
    ctr = phys.ctr
    free = phys.free_tables.shape[0] - ctr[NEXT_TABLE] + ctr[FREE_TABLES]
    return free > ctr[DEPOSITED]


@compiled
def alloc_table(arch: Arch, phys: Phys) -> Int:
    """A table of zeros, or -1 when ``Phys.tables`` is full."""
    if not tables_left(phys):
        return np.int64(-1)
    ctr = phys.ctr
    size = np.int64(arch.table_mask) + 1
    if ctr[FREE_TABLES] > 0:
        ctr[FREE_TABLES] -= 1
        table = phys.free_tables[ctr[FREE_TABLES]]
        for k in range(table * size, (table + 1) * size):
            phys.tables[k] = U0
        return table
    table = ctr[NEXT_TABLE]
    ctr[NEXT_TABLE] = table + 1
    return table


@compiled
def free_table(phys: Phys, table: Int) -> None:
    """Give a table back."""
    phys.free_tables[phys.ctr[FREE_TABLES]] = table
    phys.ctr[FREE_TABLES] += 1


@inlined
def pte_alloc(arch: Arch, phys: Phys, space: Space, address: np.uint64) -> Int:
    """Like ``walk``, but allocates missing tables; -1 when ``Phys.tables`` is full."""
    tables = phys.tables
    table = np.uint64(space.regs[PGD])
    shift = arch.top_shift
    for _ in range(arch.levels - 1):
        index = (table << arch.table_shift) + ((address >> shift) & arch.table_mask)
        entry = tables[index]
        if entry == U0:
            new = alloc_table(arch, phys)
            if new < 0:
                return np.int64(-1)
            entry = (np.uint64(new) << arch.page_shift) | PMD_TYPE_TABLE
            tables[index] = entry
        table = entry >> arch.page_shift
        shift = shift - arch.table_shift
    return np.int64((table << arch.table_shift) + ((address >> arch.page_shift) & arch.table_mask))


@compiled
def walk_to(arch: Arch, phys: Phys, pgd: Int, address: np.uint64, level: Int) -> Int:
    """Index of the entry for ``address`` at ``level``, or -1.

    Level 0 is the page entry, 1 the descriptor of the table that it is in, and so on up.
    """
    tables = phys.tables
    table = np.uint64(pgd)
    shift = arch.top_shift
    for _ in range(arch.levels - 1 - level):
        index = (table << arch.table_shift) + ((address >> shift) & arch.table_mask)
        entry = tables[index]
        if not pmd_table(entry):
            return np.int64(-1)
        table = entry >> arch.page_shift
        shift = shift - arch.table_shift
    return np.int64((table << arch.table_shift) + ((address >> shift) & arch.table_mask))


@compiled
def huge_pmd(arch: Arch, phys: Phys, space: Space, address: np.uint64) -> Int:
    """Index of the entry that maps a huge page at ``address``, or -1.

    The page may be moving: then the entry is not present (pmd_trans_huge_lock).
    """
    if space.regs[HUGE_PMDS] == 0:
        return np.int64(-1)
    index = walk_to(arch, phys, space.regs[PGD], address, 1)
    if index < 0 or phys.tables[index] == U0 or pmd_table(phys.tables[index]):
        return np.int64(-1)
    return index


@compiled
def huge_leaf(arch: Arch, phys: Phys, space: Space, address: np.uint64) -> Int:
    """Index of the entry above page entries, at whatever level, that maps ``address``, or -1."""
    if space.regs[HUGE_PMDS] == 0:
        return np.int64(-1)
    table = np.uint64(space.regs[PGD])
    shift = arch.top_shift
    for _ in range(arch.levels - 1):
        index = (table << arch.table_shift) + ((address >> shift) & arch.table_mask)
        entry = phys.tables[index]
        if not pmd_table(entry):
            return np.int64(index) if pmd_leaf(arch, entry) else np.int64(-1)
        table = entry >> arch.page_shift
        shift = shift - arch.table_shift
    return np.int64(-1)


@compiled
def alloc_to(arch: Arch, phys: Phys, space: Space, address: np.uint64, level: Int) -> Int:
    """Like ``walk_to``, but allocates missing tables; -1 when ``Phys.tables`` is full."""
    tables = phys.tables
    table = np.uint64(space.regs[PGD])
    shift = arch.top_shift
    for _ in range(arch.levels - 1 - level):
        index = (table << arch.table_shift) + ((address >> shift) & arch.table_mask)
        entry = tables[index]
        if entry == U0:
            new = alloc_table(arch, phys)
            if new < 0:
                return np.int64(-1)
            entry = (np.uint64(new) << arch.page_shift) | PMD_TYPE_TABLE
            tables[index] = entry
        table = entry >> arch.page_shift
        shift = shift - arch.table_shift
    return np.int64((table << arch.table_shift) + ((address >> shift) & arch.table_mask))


@compiled
def pmd_alloc(arch: Arch, phys: Phys, space: Space, address: np.uint64) -> Int:
    """Index of the entry one level above page entries; -1 when ``Phys.tables`` is full."""
    return alloc_to(arch, phys, space, address, 1)


@compiled
def free_pgtables(
    arch: Arch,
    phys: Phys,
    space: Space,
    start: np.uint64,
    end: np.uint64,
    floor: np.uint64,
    ceiling: np.uint64,
) -> None:
    """Free the tables that touch [start, end) and lie wholly in [floor, ceiling).

    ``floor`` and ``ceiling`` are where the neighbouring mappings end and start. The entries must be
    gone already. The top table stays.
    """
    pgd = space.regs[PGD]
    for level in range(1, arch.levels):
        shift = arch.page_shift + arch.table_shift * np.uint64(level)
        span = np.uint64(1) << shift
        base = (start >> shift) << shift
        while base < end:
            if base >= floor and base + span <= ceiling:
                index = walk_to(arch, phys, pgd, base, level)
                if index >= 0 and phys.tables[index] != U0:
                    free_table(phys, np.int64(phys.tables[index] >> arch.page_shift))
                    phys.tables[index] = U0
            base += span


@compiled
def free_all_tables(
    arch: Arch, phys: Phys, space: Space, table: NDArray[np.int64], position: NDArray[np.int64]
) -> None:
    """Free every table of an address space whose entries are gone, the top table last.

    Depth-first without recursion; ``table`` and ``position`` are scratch of ``arch.levels`` zeros.
    """
    size = np.int64(arch.table_mask) + 1
    depth = 0
    table[0] = space.regs[PGD]
    while depth >= 0:
        if depth == arch.levels - 1 or position[depth] == size:
            free_table(phys, table[depth])
            depth -= 1
            continue
        entry = phys.tables[table[depth] * size + position[depth]]
        position[depth] += 1
        if entry != U0:
            depth += 1
            table[depth] = np.int64(entry >> arch.page_shift)
            position[depth] = 0
