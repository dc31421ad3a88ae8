"""Where kernel versions differ about large folios: one property each, named, by profile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FolioProfile:
    """What one kernel does with large folios.

    ``pmd_split_dirty``   splitting the entry of a dirty huge page makes dirty page entries, and so
                          soft-dirty ones ("mm/thp: re-apply mkdirty for small pages after split",
                          6.3); before, only the folio is marked dirty
    ``remap_keeps_clean`` what replaces a migration entry is soft-dirty only if that was:
                          remove_migration_pte clears the bit that making the entry dirty has set
                          ("mm: remember young/dirty bit for page migrations", 6.1). So it is for
                          pages that move as well as for those of a folio that is split.
                          Recorded on 6.12.117, not on 6.1
    ``remap_zero_page``   splitting a folio maps the zero page for pages that hold zeros only ("mm:
                          remap unused subpages to shared zeropage when splitting isolated thp",
                          6.12)
    ``swapin_folio``      a swap-in fault may bring back a whole folio ("mm: support large folios
                          swap-in for sync io devices", 6.12)
    ``wp_reuses_large``   the last mapped page of a large folio may be taken over at a write fault,
                          as a single page may; later kernels copy it
    ``mthp``              sizes below PMD can be switched on (6.8)
    """

    pmd_split_dirty: bool
    remap_keeps_clean: bool
    remap_zero_page: bool
    swapin_folio: bool
    wp_reuses_large: bool
    mthp: bool


FOLIO_PROFILES = {
    "6.1": FolioProfile(False, False, False, False, True, False),
    "seed": FolioProfile(True, False, False, False, False, True),
    "6.12": FolioProfile(True, True, True, True, False, True),
}
