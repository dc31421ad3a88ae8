"""The recordings, one by one: the kernel's make, the model's settings, the scenarios collected.

`catalogue` decides which scenarios of a file are collected; the numbers here are what that comes
to, written down so that a scenario cannot drop out unnoticed.
"""

from __future__ import annotations

from .catalogue import Recording, hunk_off

WHOLE = (
    Recording("arm64-6.12.117-softdirty-rfc.jsonl.gz", 138),
    Recording("arm64-6.12.117-softdirty-rfc-descriptors.jsonl.gz", 138),
    Recording("arm64-6.12.117-softdirty-rfc-fixed-descriptors.jsonl.gz", 138),
    # x86-64 has no patch to take hunks from; its mm is the same generic code, and on these
    # operations it shows what arm64 shows.
    Recording("x86_64-6.12.117.jsonl.gz", 138),
    Recording("x86_64-6.1.192.jsonl.gz", 138, kernel="6.1"),
)
"""Complete kernels: hand-made and random scenarios."""

KNOWN_VERSION_DIFFERENCES: dict[str, str] = {}
"""Scenario of the 6.1 recording that the "6.1" profile may not meet: the documented reason.

Empty, and that is a finding: on base pages 6.1 and 6.12 show the same in all 138. What changed
between them are splits of a dirty PMD and KSM, which the model does not have yet.
"""

HUNKS_OFF = (
    Recording("hunks-off/none-no-dbm.jsonl.gz", 53, dbm=False),
    hunk_off("ptep_set_access_flags", 53, differs=42),
    hunk_off("ptep_set_access_flags", 53, differs=42, dbm=False),
    hunk_off("pte_modify", 53, differs=8),
    hunk_off("pte_modify", 53, differs=8, dbm=False),
    hunk_off("pte_mkdirty", 53, differs=49),
    hunk_off("pte_mkdirty", 53, differs=49, dbm=False),
    hunk_off("pte_swp_mksoft_dirty", 53, differs=7),
    hunk_off("pte_swp_clear_soft_dirty", 53, differs=4),
    # Neutral on base pages: the hunk gathers dirty bits over the PTEs of one folio.
    hunk_off("get_and_clear_full_ptes", 53, differs=0),
    hunk_off("get_and_clear_full_ptes", 53, differs=0, dbm=False),
    # The seed's swap bit on the later layout: the offsets are too small to reach it.
    hunk_off("swap-bit-61", 53, differs=0),
)
"""One hunk of the patch reverted, where the model has that hunk."""

FELT_BY_LARGE_FOLIOS_ONLY = (
    Recording("hunks-off/contpte-access-flags-as-in-6.9.jsonl.gz", 38),
    Recording("hunks-off/contpte-access-flags-as-ported.jsonl.gz", 38),
    Recording("hunks-off/contpte-access-flags-fixed.jsonl.gz", 38),
    Recording("hunks-off/contpte-access-flags-mask-only.jsonl.gz", 38),
    Recording("hunks-off/contpte-all-three.jsonl.gz", 53),
    Recording("hunks-off/contpte-fold-ignores-soft-dirty.jsonl.gz", 53),
    hunk_off("contpte_convert", 53, differs=0, modelled=False),
    hunk_off("contpte_convert", 53, differs=0, dbm=False, modelled=False),
    hunk_off("contpte_ptep_get", 53, differs=0, modelled=False),
    hunk_off("contpte_ptep_get", 53, differs=0, dbm=False, modelled=False),
    hunk_off("contpte_ptep_get_lockless", 53, differs=0, modelled=False),
    hunk_off("contpte_ptep_get_lockless", 53, differs=0, dbm=False, modelled=False),
    hunk_off("get_clear_contig", 53, differs=0, modelled=False),
    hunk_off("huge_ptep_get", 53, differs=0, modelled=False),
    hunk_off("huge_ptep_set_access_flags", 53, differs=0, modelled=False),
    Recording("hunks-off/hugetlb-all-three.jsonl.gz", 53),
    hunk_off("pmd_mksoft_dirty", 53, differs=0, modelled=False),
)
"""Contpte, hugetlb and PMD hunks: base pages must not feel them, so the complete model is held
against these kernels, which the judge thereby meets in every make that was recorded."""

RECORDINGS = WHOLE + HUNKS_OFF + FELT_BY_LARGE_FOLIOS_ONLY
