"""Moving a page to another frame while it is in use (mm/migrate.c, mm/rmap.c: try_to_migrate).

First every entry that maps the page becomes a migration entry, which remembers what the entry was:
writable, exclusive, young, dirty, soft-dirty, uffd-wp. When the bytes are in their new place, each
becomes a page entry again. Whoever wants the page in between waits.

What ``clear_refs`` does to a migration entry is half of what it does to a page: the bit is cleared,
but an entry that remembers "writable" goes on doing so. Restored, the page is writable and not
soft-dirty outside a VM_SOFTDIRTY mapping, so its next write is lost.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mm_model._compiled import compiled, inlined
from mm_model.asm.pgtable import (
    U0,
    U1,
    Arch,
    Pte,
    pfn_pte,
    pte_clear_soft_dirty,
    pte_dirty,
    pte_mkdirty,
    pte_mkold,
    pte_mksoft_dirty,
    pte_mkuffd_wp,
    pte_mkwrite,
    pte_pfn,
    pte_present,
    pte_soft_dirty,
    pte_swp_mksoft_dirty,
    pte_swp_mkuffd_wp,
    pte_swp_soft_dirty,
    pte_swp_uffd_wp,
    pte_uffd_wp,
    pte_write,
    pte_young,
    swp_offset,
    swp_type,
    swp_typed_entry_to_pte,
)
from mm_model.frames import alloc_frame, copy_frame, free_frame, put_frame
from mm_model.pagewalk import walk
from mm_model.state import (
    N_VMAS,
    NO_FRAMES,
    OK,
    PG_ANON,
    PG_DIRTY,
    PG_EXCLUSIVE,
    PG_LARGE,
    PGD,
    V_END,
    V_PROT,
    V_START,
    Int,
    Phys,
    Space,
)
from mm_model.swapops import (
    SWP_MIGRATION_READ,
    SWP_MIGRATION_READ_EXCLUSIVE,
    SWP_MIGRATION_WRITE,
    is_migration_entry,
    migration_frame,
)

_YOUNG: Final = np.uint64(1 << 40)
_DIRTY: Final = np.uint64(1 << 41)


@inlined
def make_migration_entry(arch: Arch, phys: Phys, pte: Pte) -> Pte:
    """What remembers ``pte`` while its page moves (try_to_migrate_one)."""
    frame = np.int64(pte_pfn(arch, pte))
    kind = SWP_MIGRATION_READ
    if pte_write(pte):
        kind = SWP_MIGRATION_WRITE
    elif phys.flags[frame] & PG_EXCLUSIVE:
        kind = SWP_MIGRATION_READ_EXCLUSIVE
    offset = np.uint64(frame)
    if pte_young(pte):
        offset |= _YOUNG
    if pte_dirty(pte):
        offset |= _DIRTY
        phys.flags[frame] |= PG_DIRTY
    entry = swp_typed_entry_to_pte(arch, kind, offset)
    if pte_soft_dirty(arch, pte):
        entry = pte_swp_mksoft_dirty(arch, entry)
    if pte_uffd_wp(pte):
        entry = pte_swp_mkuffd_wp(arch, entry)
    return entry


@inlined
def restore_migration_entry(arch: Arch, phys: Phys, entry: Pte, frame: Int, prot: np.uint64) -> Pte:
    """The page entry for the page's new frame (remove_migration_pte)."""
    offset = swp_offset(arch, entry)
    pte = pfn_pte(arch, np.uint64(frame), prot)
    if offset & _YOUNG == U0:
        pte = pte_mkold(pte)
    if phys.flags[frame] & PG_DIRTY and offset & _DIRTY != U0:
        # pte_mkdirty() sets soft-dirty too: with this the page counts as written because it moved.
        pte = pte_mkdirty(arch, pte)
    if pte_swp_soft_dirty(arch, entry):
        pte = pte_mksoft_dirty(arch, pte)
    elif arch.remap_keeps_clean != 0:
        pte = pte_clear_soft_dirty(arch, pte)
    if swp_type(arch, entry) == SWP_MIGRATION_WRITE:
        pte = pte_mkwrite(pte)
    elif pte_swp_uffd_wp(arch, entry):
        pte = pte_mkuffd_wp(pte)
    return pte


@compiled
def try_to_migrate(arch: Arch, phys: Phys, space: Space, moving: NDArray[np.bool_]) -> None:
    """Replace every entry of one address space that maps a frame that is ``moving``."""
    for v in range(space.regs[N_VMAS]):
        address = space.vmas[v, V_START]
        end = space.vmas[v, V_END]
        while address < end:
            last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
            if last > end:
                last = end
            index = walk(arch, phys, space.regs[PGD], address)
            if index >= 0:
                for k in range(index, index + np.int64((last - address) >> arch.page_shift)):
                    pte = phys.tables[k]
                    if pte_present(arch, pte) and moving[np.int64(pte_pfn(arch, pte))]:
                        phys.tables[k] = make_migration_entry(arch, phys, pte)
            address = last


@compiled
def remove_migration_ptes(arch: Arch, phys: Phys, space: Space, target: NDArray[np.int64]) -> None:
    """Restore the entries of one address space whose page is now in ``target[frame]``."""
    for v in range(space.regs[N_VMAS]):
        address = space.vmas[v, V_START]
        end = space.vmas[v, V_END]
        while address < end:
            last = ((address >> arch.pmd_shift) + U1) << arch.pmd_shift
            if last > end:
                last = end
            index = walk(arch, phys, space.regs[PGD], address)
            if index >= 0:
                for k in range(index, index + np.int64((last - address) >> arch.page_shift)):
                    pte = phys.tables[k]
                    if pte == U0 or pte_present(arch, pte) or not is_migration_entry(arch, pte):
                        continue
                    frame = target[migration_frame(arch, pte)]
                    if frame != 0:
                        prot = space.vmas[v, V_PROT]
                        phys.tables[k] = restore_migration_entry(arch, phys, pte, frame, prot)
            address = last


@compiled
def move_frames(
    phys: Phys, frames: NDArray[np.int64], target: NDArray[np.int64], moved: NDArray[np.int64]
) -> Int:
    """Move the bytes of ``frames`` to new frames, noted in ``target``; OK or NO_FRAMES.

    Each has been held by the move (one in its mapcount). Where there is no new frame left, a page
    stays where it is. ``moved`` gets the old frames that are free now.
    """
    count = 0
    status = OK
    for n in range(frames.shape[0]):
        old = frames[n]
        phys.mapcount[old] -= 1
        if phys.mapcount[old] == 0:
            # Everyone let go of it meanwhile.
            put_frame(phys, old)
            continue
        new = alloc_frame(phys, False)
        if new < 0:
            target[old] = old
            status = NO_FRAMES
            continue
        copy_frame(phys, old, new)
        phys.flags[new] = phys.flags[old]
        phys.mapcount[new] = phys.mapcount[old]
        slot = phys.slot_of[old]
        phys.slot_of[new] = slot
        if slot != 0:
            phys.slot_frame[slot] = new
        phys.slot_of[old] = 0
        phys.mapcount[old] = 0
        target[old] = new
        moved[count] = old
        count += 1
    for n in range(count):
        free_frame(phys, moved[n])
    return status


@compiled
def move_cache_pages(phys: Phys, target: NDArray[np.int64]) -> None:
    """Let objects point at the new frames of their pages."""
    for position in range(phys.cache.shape[0]):
        entry = phys.cache[position]
        if entry != U0 and entry & U1 == U0:
            frame = target[np.int64(entry >> U1)]
            if frame != 0:
                phys.cache[position] = np.uint64(frame) << U1


@compiled
def movable(phys: Phys, wanted: NDArray[np.bool_], anon_only: Int) -> None:
    """Take frames that cannot move out of ``wanted``: the zero page, and what nobody maps.

    Large folios stay where they are: the model moves single pages only.
    """
    wanted[0] = False
    for frame in range(1, wanted.shape[0]):
        if wanted[frame] and (
            phys.mapcount[frame] == 0
            or phys.flags[frame] & PG_LARGE != 0
            or (anon_only != 0 and phys.flags[frame] & PG_ANON == 0)
        ):
            wanted[frame] = False
