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
    ``lazyfree_splits_pmd``
                          MADV_PAGEOUT of a huge page that was MADV_FREE'd splits its entry and
                          drops its pages one by one, so that the page table stays
                          (shrink_folio_list unmaps with TTU_SPLIT_HUGE_PMD). Until 6.11:
                          "mm/vmscan: avoid split lazyfree THP during shrink_folio_list()"
    ``advice_asks_page``  MADV_COLD, MADV_PAGEOUT and MADV_FREE ask how often the page of a large
                          folio that they meet is mapped (page_mapcount). Once: the folio is split
                          wherever it is mapped, even if all of it is in the range. More often: the
                          rest of the page table is left alone. A huge page is taken whole, from all
                          that map it, if its first page is mapped once. Later kernels guess for
                          the folio, and split it only if a part of it is in the range
                          (folio_likely_mapped_shared, "mm/madvise: avoid split during MADV_PAGEOUT
                          and MADV_COLD", 6.10). The seed, which is between them, has the later way
    ``mthp``              sizes below PMD can be switched on (6.8)
    """

    pmd_split_dirty: bool
    remap_keeps_clean: bool
    remap_zero_page: bool
    swapin_folio: bool
    wp_reuses_large: bool
    lazyfree_splits_pmd: bool
    advice_asks_page: bool
    mthp: bool


FOLIO_PROFILES = {
    "6.1": FolioProfile(False, False, False, False, True, True, True, False),
    "seed": FolioProfile(True, False, False, False, False, True, False, True),
    "6.12": FolioProfile(True, True, True, True, False, False, False, True),
}
