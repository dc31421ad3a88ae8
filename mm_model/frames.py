"""Physical memory: frames, their content and their content stamps.

A frame is one row of ``Phys.content``. It is held by the page-table entries that map it
(``mapcount``), by a shared object (``PG_CACHE``) and by a swap slot (``slot_of``); it is free when
nobody holds it any more. Frame 0 is the zero page: always zeros, never counted.

The swap device is made of the same rows: swapping out hands the row to a slot, so that content
never exists twice. A row that is mapped and held by a slot at once is a page in the swap cache.

A folio of more than one page is a run of 2**order frames that starts at a multiple of its length;
each of them has PG_LARGE, and none is free before all are unmapped. Free runs are kept by order and
are split and joined on demand, as the buddy allocator does.

Content stamps (``version``): every change of a frame's bytes gives it a new machine-wide number; 0
means zeros that were never written. They are the model's own record of what was really written, and
know nothing of page-table bits.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.state import (
    FREE_FRAMES,
    FREE_LARGE,
    FREE_SLOTS,
    LARGE_FOLIOS,
    MAX_ORDER,
    NEXT_FRAME,
    PG_CACHE,
    PG_DIRTY,
    PG_FREE,
    PG_LARGE,
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
        return alloc_frame_slow(phys, zero)
    ctr[NEXT_FRAME] = frame + 1
    return frame


@compiled
def alloc_frame_slow(phys: Phys, zero: Flag) -> Int:
    """A frame from a free run, or one that a partly unmapped folio still holds; -1 if none."""
    ctr = phys.ctr
    if ctr[FREE_LARGE] == 0 and (ctr[LARGE_FOLIOS] == 0 or not free_unmapped_pages(phys)):
        return np.int64(-1)
    if ctr[FREE_FRAMES] == 0:
        order = 0
        while phys.free_folios[order] == 0:
            order += 1
        head = take_free_folio(phys, order)
        for frame in range(head, head + (np.int64(1) << order)):
            free_frame(phys, frame)
    ctr[FREE_FRAMES] -= 1
    frame = phys.free_frames[ctr[FREE_FRAMES]]
    if zero:
        clear_frame(phys, frame)
    return frame


@compiled
def clear_frame(phys: Phys, frame: Int) -> None:
    """Make the frame's content zeros."""
    if phys.version[frame] != np.uint64(0):
        for word in range(phys.content.shape[1]):
            phys.content[frame, word] = np.uint64(0)
        phys.version[frame] = np.uint64(0)


# --- folios of more than one page ---


@compiled
def folio_head(phys: Phys, frame: Int) -> Int:
    """The first frame of the large folio that ``frame`` belongs to."""
    order = np.int64(phys.order[frame])
    return (frame >> order) << order


@compiled
def folio_nr_pages(phys: Phys, frame: Int) -> Int:
    """How many pages the large folio has that ``frame`` belongs to."""
    return np.int64(1) << np.int64(phys.order[frame])


@compiled
def folio_mapcount(phys: Phys, head: Int) -> Int:
    """Page-table entries that map any page of the large folio at ``head``."""
    count = np.int64(0)
    for frame in range(head, head + folio_nr_pages(phys, head)):
        count += phys.mapcount[frame]
    return count


@compiled
def take_free_folio(phys: Phys, order: Int) -> Int:
    """Take the first free run of exactly this order, which there must be."""
    head = phys.free_folios[order]
    phys.free_folios[order] = phys.next_free[head]
    phys.ctr[FREE_LARGE] -= np.int64(1) << order
    return head


@compiled
def put_free_folio(phys: Phys, head: Int, order: Int) -> None:
    """Add a run of free frames to the list of its order."""
    for frame in range(head, head + (np.int64(1) << order)):
        phys.flags[frame] = _NO_FLAGS
    phys.next_free[head] = phys.free_folios[order]
    phys.free_folios[order] = head
    phys.ctr[FREE_LARGE] += np.int64(1) << order


@compiled
def alloc_folio(phys: Phys, order: Int, zero: Flag) -> Int:
    """The first frame of a free run of 2**order frames, marked as one folio; -1 if none.

    ``zero``: its content must read as zeros.
    """
    head = find_free_run(phys, order)
    if head < 0:
        return head
    for frame in range(head, head + (np.int64(1) << order)):
        phys.flags[frame] = PG_LARGE
        phys.order[frame] = order
        if zero:
            clear_frame(phys, frame)
    phys.ctr[LARGE_FOLIOS] += 1
    return head


@compiled
def find_free_run(phys: Phys, order: Int) -> Int:
    """Take 2**order free frames in a row, aligned to their number; -1 if there are none."""
    if phys.free_folios[order] != 0:
        return take_free_folio(phys, order)
    ctr = phys.ctr
    pages = np.int64(1) << order
    head = ((ctr[NEXT_FRAME] + pages - 1) >> order) << order
    if head + pages <= phys.mapcount.shape[0]:
        for frame in range(ctr[NEXT_FRAME], head):
            free_frame(phys, frame)
        ctr[NEXT_FRAME] = head + pages
        return head
    for larger in range(order + 1, MAX_ORDER):
        if phys.free_folios[larger] != 0:
            head = take_free_folio(phys, larger)
            for half in range(larger - 1, order - 1, -1):
                put_free_folio(phys, head + (np.int64(1) << half), half)
            return head
    return coalesce_free_frames(phys, order)


@compiled
def coalesce_free_frames(phys: Phys, order: Int) -> Int:
    """Find an aligned run of 2**order frames among the single free ones and take it; -1 if none."""
    ctr = phys.ctr
    pages = np.int64(1) << order
    if ctr[FREE_FRAMES] < pages:
        return np.int64(-1)
    for k in range(ctr[FREE_FRAMES]):
        phys.flags[phys.free_frames[k]] = PG_FREE
    found = np.int64(-1)
    for run in range(pages, ctr[NEXT_FRAME] - pages + 1, pages):
        free = np.int64(0)
        while free < pages and phys.flags[run + free] == PG_FREE:
            free += 1
        if free == pages:
            found = np.int64(run)
            break
    kept = 0
    for k in range(ctr[FREE_FRAMES]):
        frame = phys.free_frames[k]
        phys.flags[frame] = _NO_FLAGS
        if found < 0 or frame < found or frame >= found + pages:
            phys.free_frames[kept] = frame
            kept += 1
    ctr[FREE_FRAMES] = kept
    return found


@compiled
def put_folio(phys: Phys, frame: Int) -> None:
    """Free the large folio of ``frame`` once nothing maps any of its pages."""
    head = folio_head(phys, frame)
    # Mappings usually go in ascending order: the last page tells soonest that one is left.
    for page in range(head + folio_nr_pages(phys, head) - 1, head - 1, -1):
        if phys.mapcount[page] != 0:
            return
    phys.ctr[LARGE_FOLIOS] -= 1
    put_free_folio(phys, head, np.int64(phys.order[head]))


@compiled
def alloc_hugetlb_folio(phys: Phys, order: Int, zero: Flag) -> Int:
    """alloc_folio for a page of hugetlb.

    It is not counted in LARGE_FOLIOS: no mapping but those of hugetlb ever has it.
    """
    head = alloc_folio(phys, order, zero)
    if head >= 0:
        phys.ctr[LARGE_FOLIOS] -= 1
    return head


@compiled
def free_hugetlb_folio(phys: Phys, head: Int) -> None:
    """Free the page of hugetlb at ``head`` if neither an entry nor an object holds it."""
    if phys.mapcount[head] == 0 and phys.flags[head] & PG_CACHE == 0:
        put_free_folio(phys, head, np.int64(phys.order[head]))


@compiled
def forget_folio(phys: Phys, head: Int) -> None:
    """Make the pages of a large folio single pages; those that nobody maps become free."""
    for frame in range(head, head + folio_nr_pages(phys, head)):
        phys.flags[frame] &= ~PG_LARGE
        if phys.mapcount[frame] == 0:
            free_frame(phys, frame)
    phys.ctr[LARGE_FOLIOS] -= 1


@compiled
def free_unmapped_pages(phys: Phys) -> Flag:
    """Take pages back that large folios hold though nobody maps them (deferred_split_scan).

    The kernel splits such folios when memory is short. Here only their number of pages shrinks:
    whether that found anything.
    """
    found = False
    frame = np.int64(1)
    while frame < phys.ctr[NEXT_FRAME]:
        if phys.flags[frame] & PG_LARGE == 0:
            frame += 1
            continue
        pages = folio_nr_pages(phys, frame)
        for page in range(frame, frame + pages):
            if phys.mapcount[page] == 0 and phys.flags[page] & PG_CACHE == 0:
                found = True
        if found:
            forget_folio(phys, frame)
            return True
        frame += pages
    return False


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
    if phys.mapcount[frame] != 0:
        return
    if phys.flags[frame] & (PG_CACHE | PG_LARGE):
        if phys.flags[frame] & PG_LARGE:
            put_folio(phys, frame)
        return
    if phys.slot_of[frame] != 0 and not folio_free_swap(phys, frame):
        return
    free_frame(phys, frame)


@inlined
def page_remove_rmap(phys: Phys, frame: Int) -> None:
    """One entry no longer maps the frame (folio_remove_rmap_pte and folio_put)."""
    phys.mapcount[frame] -= 1
    put_frame(phys, frame)
