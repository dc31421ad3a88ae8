"""Physical memory: frames, their content and their content stamps.

A frame is one row of ``Phys.content``. It is held by the page-table entries that map it
(``mapcount``), by a shared object (``PG_CACHE``) and by a swap slot (``slot_of``); it is free when
nobody holds it any more. Frame 0 is the zero page: always zeros, never counted.

The swap device is made of the same rows: swapping out hands the row to a slot, so that content
never exists twice. A row that is mapped and held by a slot at once is a page in the swap cache.

Content stamps (``version``): every change of a frame's bytes gives it a new machine-wide number; 0
means zeros that were never written. They are the model's own record of what was really written, and
know nothing of page-table bits.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.state import (
    FREE_FRAMES,
    FREE_SLOTS,
    NEXT_FRAME,
    PG_CACHE,
    PG_DIRTY,
    PG_SWAPCACHE,
    USED_SLOTS,
    VERSION,
    Flag,
    Int,
    Phys,
)

_NO_FLAGS = np.uint8(0)


@inlined
def alloc_frame(phys: Phys, zero: Flag) -> Int:
    """A free frame with flags cleared, or -1. ``zero``: its content must read as zeros."""
    ctr = phys.ctr
    if ctr[FREE_FRAMES] > 0:
        ctr[FREE_FRAMES] -= 1
        frame = phys.free_frames[ctr[FREE_FRAMES]]
        if zero and phys.version[frame] != np.uint64(0):
            for word in range(phys.content.shape[1]):
                phys.content[frame, word] = np.uint64(0)
            phys.version[frame] = np.uint64(0)
        return frame
    frame = ctr[NEXT_FRAME]
    if frame >= phys.mapcount.shape[0]:
        return np.int64(-1)
    ctr[NEXT_FRAME] = frame + 1
    return frame


@compiled
def free_frame(phys: Phys, frame: Int) -> None:
    """Give back a frame that nobody holds. Its content stays until it is given out again."""
    ctr = phys.ctr
    phys.flags[frame] = _NO_FLAGS
    phys.free_frames[ctr[FREE_FRAMES]] = frame
    ctr[FREE_FRAMES] += 1


@inlined
def new_version(phys: Phys, frame: Int) -> None:
    """The frame's bytes have changed."""
    phys.ctr[VERSION] += 1
    phys.version[frame] = np.uint64(phys.ctr[VERSION])


@compiled
def copy_frame(phys: Phys, source: Int, target: Int) -> None:
    """Copy content and stamp."""
    for word in range(phys.content.shape[1]):
        phys.content[target, word] = phys.content[source, word]
    phys.version[target] = phys.version[source]


@compiled
def folio_free_swap(phys: Phys, frame: Int) -> Flag:
    """Take a page out of the swap cache if no swap entry names its slot any more."""
    slot = phys.slot_of[frame]
    if slot == 0 or phys.slot_count[slot] != 0:
        return False
    free_slot(phys, slot)
    phys.flags[frame] = (phys.flags[frame] & ~PG_SWAPCACHE) | PG_DIRTY
    return True


@compiled
def free_slot(phys: Phys, slot: Int) -> None:
    """The slot no longer holds its frame. The frame itself is the caller's matter."""
    phys.slot_of[phys.slot_frame[slot]] = 0
    phys.slot_frame[slot] = 0
    phys.free_slots[phys.ctr[FREE_SLOTS]] = slot
    phys.ctr[FREE_SLOTS] += 1
    phys.ctr[USED_SLOTS] -= 1


@inlined
def put_frame(phys: Phys, frame: Int) -> None:
    """Free the frame unless someone still holds it; a page only the swap cache holds leaves it."""
    if phys.mapcount[frame] != 0 or phys.flags[frame] & PG_CACHE:
        return
    if phys.slot_of[frame] != 0 and not folio_free_swap(phys, frame):
        return
    free_frame(phys, frame)


@inlined
def page_remove_rmap(phys: Phys, frame: Int) -> None:
    """One entry no longer maps the frame (folio_remove_rmap_pte and folio_put)."""
    phys.mapcount[frame] -= 1
    put_frame(phys, frame)
