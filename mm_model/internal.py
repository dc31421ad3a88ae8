"""Entries that map one large folio in a row: what is done to them at once (mm/internal.h)."""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.asm.pgtable import (
    U1,
    Arch,
    Pte,
    pte_advance_pfn,
    pte_mkclean,
    pte_mkold,
    pte_pfn,
    pte_wrprotect,
)
from mm_model.asm.ptes import ptep_get
from mm_model.frames import folio_head, folio_nr_pages
from mm_model.state import Flag, Int, Phys


@compiled
def folio_pte_batch(
    arch: Arch, phys: Phys, index: Int, most: Int, ignored: np.uint64, ignore_dirty: Flag
) -> Int:
    """How many entries from ``index`` on, at most ``most``, map one large folio in a row alike.

    AF and write permission never count; ``ignored`` are further bits that do not, nor does
    dirtiness with ``ignore_dirty``.
    """
    first = ptep_get(arch, phys, index)
    frame = np.int64(pte_pfn(arch, first))
    left = folio_head(phys, frame) + folio_nr_pages(phys, frame) - frame
    if left < most:
        most = left
    count = np.int64(1)
    expected = pte_batch_view(first, ignored, ignore_dirty)
    while count < most:
        expected = pte_advance_pfn(arch, expected, U1)
        pte = ptep_get(arch, phys, index + count)
        if pte_batch_view(pte, ignored, ignore_dirty) != expected:
            break
        count += 1
    return count


@inlined
def pte_batch_view(pte: Pte, ignored: np.uint64, ignore_dirty: Flag) -> Pte:
    """What folio_pte_batch compares of an entry."""
    if ignore_dirty:
        pte = pte_mkclean(pte)
    return pte_wrprotect(pte_mkold(pte)) & ~ignored
