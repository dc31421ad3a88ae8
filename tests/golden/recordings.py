"""The recordings, one by one: the kernel's make, the model's settings, the scenarios collected.

`catalogue` decides which scenarios of a file are collected; the numbers here are what that comes
to, written down so that a scenario cannot drop out unnoticed.
"""

from __future__ import annotations

from .catalogue import Recording, hunk_off

WHOLE = (
    Recording("arm64-6.12.117-softdirty-rfc.jsonl.gz", 255),
    Recording("arm64-6.12.117-softdirty-rfc-descriptors.jsonl.gz", 255),
    Recording(
        "arm64-6.12.117-softdirty-rfc-fixed-descriptors.jsonl.gz",
        255,
        hunks_off=frozenset({"contpte-access-flags-fixed"}),
    ),
    # x86-64 has no patch to take hunks from; its mm is the same generic code, built for x86-64.
    Recording("x86_64-6.12.117.jsonl.gz", 255, arch="x86_64"),
    Recording("x86_64-6.1.192.jsonl.gz", 255, kernel="6.1", arch="x86_64"),
)
"""Complete kernels: hand-made and random scenarios."""

KNOWN_VERSION_DIFFERENCES: dict[str, str] = {}
"""Scenario of the 6.1 recording that the "6.1" profile may not meet: the documented reason.

Empty: where 6.1 and 6.12 differ on what the model has, the profile says so: 6.1 refuses userfaultfd
with WP_ASYNC (h64, h65), marks what it unmerges
(h59), and differs in what becomes soft-dirty when huge pages and folios are split.
"""

HUNKS_OFF = (
    Recording("hunks-off/none-no-dbm.jsonl.gz", 94, dbm=False),
    hunk_off("ptep_set_access_flags", 94, differs=69),
    hunk_off("ptep_set_access_flags", 94, differs=69, dbm=False),
    hunk_off("pte_modify", 94, differs=13),
    hunk_off("pte_modify", 94, differs=13, dbm=False),
    hunk_off("pte_mkdirty", 94, differs=89),
    hunk_off("pte_mkdirty", 94, differs=89, dbm=False),
    hunk_off("pte_swp_mksoft_dirty", 94, differs=16),
    hunk_off("pte_swp_clear_soft_dirty", 94, differs=5),
    # Neutral: nobody asks whether what was taken down was soft-dirty.
    hunk_off("get_and_clear_full_ptes", 94, differs=0),
    hunk_off("get_and_clear_full_ptes", 94, differs=0, dbm=False),
    hunk_off("pmd_mksoft_dirty", 94, differs=1),
    # The seed's swap bit on the later layout: the offsets are too small to reach it.
    hunk_off("swap-bit-61", 94, differs=0),
)
"""One hunk of the patch reverted, where the model has that hunk."""

CONTPTE_OFF = (
    hunk_off("contpte_convert", 94, differs=16),
    hunk_off("contpte_convert", 94, differs=16, dbm=False),
    hunk_off("contpte_ptep_get", 94, differs=16),
    hunk_off("contpte_ptep_get", 94, differs=16, dbm=False),
    hunk_off("contpte_ptep_get_lockless", 94, differs=12),
    hunk_off("contpte_ptep_get_lockless", 94, differs=12, dbm=False),
    Recording(
        "hunks-off/contpte-all-three.jsonl.gz",
        94,
        hunks_off=frozenset({"contpte_convert", "contpte_ptep_get", "contpte_ptep_get_lockless"}),
        differs=16,
    ),
    hunk_off("contpte-access-flags-as-in-6.9", 80, differs=1),
    hunk_off("contpte-access-flags-as-ported", 80, differs=0),
    hunk_off("contpte-access-flags-fixed", 80, differs=1),
    hunk_off("contpte-access-flags-mask-only", 80, differs=1),
    hunk_off("contpte-fold-ignores-soft-dirty", 94, differs=1),
)
"""Hunks that only contiguous blocks feel, and the variants of what the patch meets there."""

FELT_BY_LARGE_FOLIOS_ONLY = (
    hunk_off("get_clear_contig", 94, differs=0, modelled=False),
    hunk_off("huge_ptep_get", 94, differs=0, modelled=False),
    hunk_off("huge_ptep_set_access_flags", 94, differs=0, modelled=False),
    Recording("hunks-off/hugetlb-all-three.jsonl.gz", 94),
)
"""Hugetlb hunks: nothing else must feel them, so the complete model is held
against these kernels, which the judge thereby meets in every make that was recorded."""

RECORDINGS = WHOLE + HUNKS_OFF + CONTPTE_OFF + FELT_BY_LARGE_FOLIOS_ONLY
