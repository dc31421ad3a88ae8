"""The recordings, one by one: the kernel's make, the model's settings, the scenarios collected.

`catalogue` decides which scenarios of a file are collected; the numbers here are what that comes
to, written down so that a scenario cannot drop out unnoticed.
"""

from __future__ import annotations

from .catalogue import Recording, hunk_off

WHOLE = (
    Recording("arm64-6.12.117-softdirty-rfc.jsonl.gz", 288),
    Recording("arm64-6.12.117-softdirty-rfc-descriptors.jsonl.gz", 288),
    Recording(
        "arm64-6.12.117-softdirty-rfc-fixed-descriptors.jsonl.gz",
        288,
        hunks_off=frozenset({"contpte-access-flags-fixed"}),
    ),
    # x86-64 has no patch to take hunks from; its mm is the same generic code, built for x86-64.
    Recording("x86_64-6.12.117.jsonl.gz", 288, arch="x86_64"),
    Recording("x86_64-6.1.192.jsonl.gz", 288, kernel="6.1", arch="x86_64"),
)
"""Complete kernels: hand-made and random scenarios."""

KNOWN_VERSION_DIFFERENCES: dict[str, str] = {}
"""Scenario of the 6.1 recording that the "6.1" profile may not meet: the documented reason.

Empty: where 6.1 and 6.12 differ on what the model has, the profile says so: 6.1 refuses userfaultfd
with WP_ASYNC (h64, h65), marks what it unmerges
(h59), and differs in what becomes soft-dirty when huge pages and folios are split.
"""

HUNKS_OFF = (
    Recording("hunks-off/none-no-dbm.jsonl.gz", 105, dbm=False),
    hunk_off("ptep_set_access_flags", 105, differs=72),
    hunk_off("ptep_set_access_flags", 105, differs=72, dbm=False),
    hunk_off("pte_modify", 105, differs=13),
    hunk_off("pte_modify", 105, differs=13, dbm=False),
    hunk_off("pte_mkdirty", 105, differs=100),
    hunk_off("pte_mkdirty", 105, differs=100, dbm=False),
    hunk_off("pte_swp_mksoft_dirty", 105, differs=16),
    hunk_off("pte_swp_clear_soft_dirty", 105, differs=5),
    # Neutral: nobody asks whether what was taken down was soft-dirty.
    hunk_off("get_and_clear_full_ptes", 105, differs=0),
    hunk_off("get_and_clear_full_ptes", 105, differs=0, dbm=False),
    hunk_off("pmd_mksoft_dirty", 105, differs=1),
    # The seed's swap bit on the later layout: the offsets are too small to reach it.
    hunk_off("swap-bit-61", 105, differs=0),
)
"""One hunk of the patch reverted, where the model has that hunk."""

CONTPTE_OFF = (
    hunk_off("contpte_convert", 105, differs=16),
    hunk_off("contpte_convert", 105, differs=16, dbm=False),
    hunk_off("contpte_ptep_get", 105, differs=16),
    hunk_off("contpte_ptep_get", 105, differs=16, dbm=False),
    hunk_off("contpte_ptep_get_lockless", 105, differs=12),
    hunk_off("contpte_ptep_get_lockless", 105, differs=12, dbm=False),
    Recording(
        "hunks-off/contpte-all-three.jsonl.gz",
        105,
        hunks_off=frozenset({"contpte_convert", "contpte_ptep_get", "contpte_ptep_get_lockless"}),
        differs=16,
    ),
    hunk_off("contpte-access-flags-as-in-6.9", 88, differs=1),
    hunk_off("contpte-access-flags-as-ported", 88, differs=0),
    hunk_off("contpte-access-flags-fixed", 88, differs=1),
    hunk_off("contpte-access-flags-mask-only", 88, differs=1),
    hunk_off("contpte-fold-ignores-soft-dirty", 105, differs=1),
)
"""Hunks that only contiguous blocks feel, and the variants of what the patch meets there."""

HUGETLB_OFF = (
    hunk_off("get_clear_contig", 105, differs=0),
    hunk_off("huge_ptep_get", 105, differs=0),
    hunk_off("huge_ptep_set_access_flags", 105, differs=0),
    Recording(
        "hunks-off/hugetlb-all-three.jsonl.gz",
        105,
        hunks_off=frozenset({"get_clear_contig", "huge_ptep_get", "huge_ptep_set_access_flags"}),
    ),
)
"""Hugetlb hunks: nobody feels them, hugetlb memory included (see `hunks.py` why)."""

RECORDINGS = WHOLE + HUNKS_OFF + CONTPTE_OFF + HUGETLB_OFF
