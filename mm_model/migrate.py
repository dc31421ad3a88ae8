"""Moving a page to another frame while it is in use (mm/migrate.c, mm/rmap.c: try_to_migrate).

First every entry that maps the page becomes a migration entry, which remembers what the entry was:
writable, exclusive, young, dirty, soft-dirty, uffd-wp. When the bytes are in their new place, each
becomes a page entry again. Whoever wants the page in between waits.

What ``clear_refs`` does to a migration entry is half of what it does to a page: the bit is cleared,
but an entry that remembers "writable" goes on doing so. Restored, the page is writable and not
soft-dirty outside a VM_SOFTDIRTY mapping, so its next write is lost.

A large folio moves whole, wherever page entries or a huge page's entry map it; where no run of
frames is free for it, it stays (the kernel would split it). Pages of hugetlb are left alone.
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
    pmd_mkhuge,
    pmd_mksoft_dirty,
    pmd_soft_dirty,
    pmd_swp_mksoft_dirty,
    pmd_swp_soft_dirty,
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
from mm_model.asm.ptes import ptep_get_and_clear, set_pte_at
from mm_model.frames import (
    alloc_folio,
    alloc_frame,
    copy_frame,
    folio_nr_pages,
    free_frame,
    put_frame,
    put_free_folio,
)
from mm_model.pagewalk import huge_pmd, walk
from mm_model.state import (
    LARGE_FOLIOS,
    N_VMAS,
    NO_FRAMES,
    OK,
    PG_ANON,
    PG_DIRTY,
    PG_EXCLUSIVE,
    PG_LARGE,
    PGD,
    V_END,
    V_FLAGS,
    V_PROT,
    V_START,
    VM_HUGETLB,
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
def clean_migration_entry(arch: Arch, phys: Phys, pte: Pte) -> Pte:
    """What remembers a page's or huge page's entry while it moves, soft-dirty aside."""
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
    if pte_uffd_wp(pte):
        entry = pte_swp_mkuffd_wp(arch, entry)
    return entry


@inlined
def make_migration_entry(arch: Arch, phys: Phys, pte: Pte) -> Pte:
    """What remembers ``pte`` while its page moves (try_to_migrate_one)."""
    entry = clean_migration_entry(arch, phys, pte)
    if pte_soft_dirty(arch, pte):
        entry = pte_swp_mksoft_dirty(arch, entry)
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
def set_pmd_migration_entry(arch: Arch, phys: Phys, pmd: Pte) -> Pte:
    """The same for a huge page's entry (mm/huge_memory.c)."""
    entry = clean_migration_entry(arch, phys, pmd)
    if pmd_soft_dirty(arch, pmd):
        entry = pmd_swp_mksoft_dirty(arch, entry)
    return entry


@compiled
def remove_migration_pmd(arch: Arch, phys: Phys, entry: Pte, frame: Int, prot: np.uint64) -> Pte:
    """The entry for the huge page's new place (mm/huge_memory.c).

    Unlike a page's, one that comes back dirty is soft-dirty whatever it was before.
    """
    offset = swp_offset(arch, entry)
    pmd = pmd_mkhuge(pfn_pte(arch, np.uint64(frame), prot))
    if pmd_swp_soft_dirty(arch, entry):
        pmd = pmd_mksoft_dirty(arch, pmd)
    if swp_type(arch, entry) == SWP_MIGRATION_WRITE:
        pmd = pte_mkwrite(pmd)
    if pte_swp_uffd_wp(arch, entry):
        pmd = pte_mkuffd_wp(pmd)
    if offset & _YOUNG == U0:
        pmd = pte_mkold(pmd)
    if phys.flags[frame] & PG_DIRTY and offset & _DIRTY != U0:
        pmd = pte_mkdirty(arch, pmd)
    return pmd


@compiled
def try_to_migrate(arch: Arch, phys: Phys, space: Space, moving: NDArray[np.bool_]) -> None:
    """Replace every entry of one address space that maps a frame that is ``moving``."""
    for v in range(space.regs[N_VMAS]):
        if space.vmas[v, V_FLAGS] & VM_HUGETLB != U0:
            continue
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
                        pte = ptep_get_and_clear(arch, phys, k)
                        phys.tables[k] = make_migration_entry(arch, phys, pte)
            else:
                huge = huge_pmd(arch, phys, space, address)
                if huge >= 0 and pte_present(arch, phys.tables[huge]):
                    pmd = phys.tables[huge]
                    if moving[np.int64(pte_pfn(arch, pmd))]:
                        phys.tables[huge] = set_pmd_migration_entry(arch, phys, pmd)
            address = last


@compiled
def remove_migration_ptes(arch: Arch, phys: Phys, space: Space, target: NDArray[np.int64]) -> None:
    """Restore the entries of one address space whose page is now in ``target[frame]``."""
    for v in range(space.regs[N_VMAS]):
        if space.vmas[v, V_FLAGS] & VM_HUGETLB != U0:
            continue
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
                        pte = restore_migration_entry(arch, phys, pte, frame, prot)
                        set_pte_at(arch, phys, k, pte)
            else:
                huge = huge_pmd(arch, phys, space, address)
                if huge >= 0 and not pte_present(arch, phys.tables[huge]):
                    pmd = phys.tables[huge]
                    frame = target[migration_frame(arch, pmd)]
                    if frame != 0:
                        prot = space.vmas[v, V_PROT]
                        pmd = remove_migration_pmd(arch, phys, pmd, frame, prot)
                        phys.tables[huge] = pmd
            address = last


@compiled
def move_frame(phys: Phys, old: Int, new: Int) -> None:
    """Move one page's bytes, and all that is known of it."""
    copy_frame(phys, old, new)
    phys.flags[new] = phys.flags[old]
    phys.mapcount[new] = phys.mapcount[old]
    slot = phys.slot_of[old]
    phys.slot_of[new] = slot
    if slot != 0:
        phys.slot_frame[slot] = new
    phys.slot_of[old] = 0
    phys.mapcount[old] = 0


@compiled
def new_folio(phys: Phys, head: Int, order: Int) -> Int:
    """Where the folio at ``head`` goes; -1 if there is no room, 0 if nobody maps it any more."""
    pages = np.int64(1) << order
    mapped = False
    for frame in range(head, head + pages):
        phys.mapcount[frame] -= 1
        mapped = mapped or phys.mapcount[frame] != 0
    if not mapped:
        put_frame(phys, head)
        return np.int64(0)
    return alloc_frame(phys, False) if order == 0 else alloc_folio(phys, order, False)


@compiled
def move_frames(
    phys: Phys, frames: NDArray[np.int64], target: NDArray[np.int64], moved: NDArray[np.int64]
) -> Int:
    """Move the bytes of ``frames`` to new frames, noted in ``target``; OK or NO_FRAMES.

    Each has been held by the move (one in its mapcount); of a large folio all are there. Where
    there is no new place left, a page or a folio stays where it is. ``moved`` gets the old frames
    that are free now.
    """
    count = 0
    status = OK
    n = np.int64(0)
    while n < frames.shape[0]:
        old = frames[n]
        order = np.int64(phys.order[old]) if phys.flags[old] & PG_LARGE else np.int64(0)
        pages = np.int64(1) << order
        n += pages
        new = new_folio(phys, old, order)
        if new == 0:
            continue
        if new < 0:
            for k in range(pages):
                target[old + k] = old + k
            status = NO_FRAMES
            continue
        for k in range(pages):
            move_frame(phys, old + k, new + k)
            target[old + k] = new + k
        moved[count] = old
        count += 1
    for k in range(count):
        old = moved[k]
        if phys.flags[old] & PG_LARGE:
            phys.ctr[LARGE_FOLIOS] -= 1
            put_free_folio(phys, old, np.int64(phys.order[old]))
        else:
            free_frame(phys, old)
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

    A large folio moves whole, or not at all.
    """
    wanted[0] = False
    frame: Int = np.int64(1)
    while frame < wanted.shape[0]:
        if phys.flags[frame] & PG_LARGE == 0:
            other = anon_only != 0 and phys.flags[frame] & PG_ANON == 0
            if wanted[frame] and (phys.mapcount[frame] == 0 or other):
                wanted[frame] = False
            frame += 1
            continue
        stop = frame + folio_nr_pages(phys, frame)
        some = False
        for page in range(frame, stop):
            some = some or (wanted[page] and phys.mapcount[page] != 0)
        for page in range(frame, stop):
            wanted[page] = some
        frame = stop
