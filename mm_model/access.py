"""Batches of a task's own loads and stores, looped inside compiled code.

Each function starts at position ``first`` and returns how many accesses are done in all. Fewer than
there are means that STATUS tells why; the caller mends what can be mended (tables, stack) and goes
on from there.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mm_model._compiled import compiled, inlined
from mm_model.asm.pgtable import U0, Arch, pmd_maps_block, pte_pfn
from mm_model.block import copy_bytes, fetch_early, same_bytes
from mm_model.frames import new_version
from mm_model.huge_memory import huge_frame
from mm_model.memory import access_page
from mm_model.pagewalk import walk
from mm_model.state import PGD, Int, Phys, Space

READ: Final = 0
WRITE: Final = 1
STORE_WORD: Final = 2

_TABLES_AHEAD: Final = 48
_FRAMES_AHEAD: Final = 24
"""So many stores ahead, ask for an entry, and for what it maps: a miss lasts as long as some."""
_PART: Final = 512
"""Bytes compared together before they are copied: what is there already is not written again."""

_U3 = np.uint64(3)
_U7 = np.uint64(7)
_NOWHERE = np.uint64(1 << 63)  # no address has this table


@inlined
def mapped_frame(arch: Arch, phys: Phys, index: Int, address: np.uint64) -> Int:
    """The frame that the entry at ``index`` maps for writing at ``address``.

    The entry may be a huge page's, but not the huge zero page's, which nobody writes to.
    """
    entry = phys.tables[index]
    if pmd_maps_block(entry):
        return huge_frame(arch, phys, entry, address)
    return np.int64(pte_pfn(arch, entry))


@compiled
def access_words(
    arch: Arch,
    phys: Phys,
    space: Space,
    addresses: NDArray[np.uint64],
    values: NDArray[np.uint64],
    mode: Int,
    first: Int,
) -> Int:
    """READ or WRITE the pages at ``addresses`` without changing bytes, or STORE_WORD ``values``.

    An 8-byte value that is not aligned is stored in two halves; it must not cross a page.
    """
    write = np.int64(0) if mode == READ else np.int64(1)
    covered = _NOWHERE
    table = np.int64(-1)
    for n in range(first, addresses.shape[0]):
        address = addresses[n]
        # As the walker's own cache does: stay in a last-level table while addresses do.
        if address >> arch.pmd_shift != covered:
            covered = address >> arch.pmd_shift
            table = walk(arch, phys, space.regs[PGD], covered << arch.pmd_shift)
        index = np.int64(-1)
        if table >= 0:
            index = table + np.int64((address >> arch.page_shift) & arch.table_mask)
        index = access_page(arch, phys, space, index, address, write)
        if index < 0:
            return n
        if table < 0:
            covered = _NOWHERE
        if mode == STORE_WORD:
            frame = mapped_frame(arch, phys, index, address)
            offset = address & arch.page_mask
            word = np.int64(offset >> _U3)
            shift = (offset & _U7) << _U3
            if shift == U0:
                if phys.content[frame, word] != values[n]:
                    phys.content[frame, word] = values[n]
                    new_version(phys, frame)
            else:
                store_split_word(phys, frame, word, shift, values[n])
    return addresses.shape[0]


@compiled
def store_split_word(phys: Phys, frame: Int, word: Int, shift: np.uint64, value: np.uint64) -> None:
    """Store an 8-byte value that is ``shift`` bits off its alignment."""
    back = np.uint64(64) - shift
    keep_low = (np.uint64(1) << shift) - np.uint64(1)
    # The part of the value that stays in the first word, moved up without overflow in uncompiled
    # mode.
    low_part = (value & ((np.uint64(1) << back) - np.uint64(1))) << shift
    low = (phys.content[frame, word] & keep_low) | low_part
    high = (phys.content[frame, word + 1] & ~keep_low) | (value >> back)
    if phys.content[frame, word] != low or phys.content[frame, word + 1] != high:
        phys.content[frame, word] = low
        phys.content[frame, word + 1] = high
        new_version(phys, frame)


@inlined
def write_bytes(
    phys: Phys,
    content: NDArray[np.uint8],
    frame: Int,
    offset: Int,
    payload: NDArray[np.uint8],
    position: Int,
    size: Int,
) -> None:
    """Put ``size`` bytes of ``payload`` into a frame; a new stamp if any byte differs."""
    at = np.int64(frame) * np.int64(content.shape[1]) + np.int64(offset)
    start = np.int64(position)
    end = at + np.int64(size)
    differ = 0
    while at < end:
        # Two parts that differ: the rest probably does as well, and is copied unseen.
        part = min(np.int64(_PART), end - at) if differ < 2 else end - at
        if differ >= 2 or not same_bytes(content, at, payload, start, part):
            copy_bytes(content, at, payload, start, part)
            differ += 1
        at += part
        start += part
    if differ != 0:
        new_version(phys, frame)


@inlined
def look_ahead(
    arch: Arch,
    phys: Phys,
    space: Space,
    content: NDArray[np.uint8],
    addresses: NDArray[np.uint64],
    n: Int,
) -> None:
    """Ask for the memory that the stores after number ``n`` will need; changes nothing.

    An entry that maps nothing names no frame: then nothing useful is asked for.
    """
    if n + _TABLES_AHEAD < addresses.shape[0]:
        index = walk(arch, phys, space.regs[PGD], addresses[n + _TABLES_AHEAD])
        fetch_early(phys.tables, index)
    if n + _FRAMES_AHEAD < addresses.shape[0]:
        address = addresses[n + _FRAMES_AHEAD]
        index = walk(arch, phys, space.regs[PGD], address)
        if index >= 0:
            frame = np.int64(pte_pfn(arch, phys.tables[index]))
            offset = np.int64(address & arch.page_mask)
            fetch_early(content, frame * np.int64(content.shape[1]) + offset)
            fetch_early(phys.version, frame)
            fetch_early(phys.mapcount, frame)
            fetch_early(phys.flags, frame)


@compiled
def store_bytes(
    arch: Arch,
    phys: Phys,
    space: Space,
    content: NDArray[np.uint8],
    addresses: NDArray[np.uint64],
    sizes: NDArray[np.uint32],
    payload: NDArray[np.uint8],
    first: Int,
    position: Int,
) -> Int:
    """Store ``sizes[n]`` bytes at each address, taken one after another from ``payload``.

    The first ones are at ``payload[position]``.
    """
    for n in range(first, addresses.shape[0]):
        look_ahead(arch, phys, space, content, addresses, n)
        index = walk(arch, phys, space.regs[PGD], addresses[n])
        index = access_page(arch, phys, space, index, addresses[n], np.int64(1))
        if index < 0:
            return n
        frame = mapped_frame(arch, phys, index, addresses[n])
        size = np.int64(sizes[n])
        offset = np.int64(addresses[n] & arch.page_mask)
        write_bytes(phys, content, frame, offset, payload, position, size)
        position += size
    return addresses.shape[0]
