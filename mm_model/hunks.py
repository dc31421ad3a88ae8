"""The soft-dirty patch for arm64, hunk by hunk, each of which can be switched off.

The patch is "[RFC PATCH v1 3/5] arm64/mm: Add soft-dirty page tracking support" (Ryan Roberts, 19
April 2024). A hunk that is off leaves exactly the kernel's old behaviour at that place: a helper
that the patch adds falls back to the generic stub of include/linux/pgtable.h, a helper that it
changes behaves as before.

``VARIANTS`` are not hunks of the patch: they are likely mistakes in it or around it. Those that are
named ``clear-refs-*`` break what tracking by write-protection rests on, on any architecture.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

_PGTABLE = "arch/arm64/include/asm/pgtable.h"
_CONTPTE = "arch/arm64/mm/contpte.c"
_HUGETLB = "arch/arm64/mm/hugetlbpage.c"


@dataclass(frozen=True, slots=True)
class Hunk:
    """One hunk: where it is, and what it protects."""

    name: str
    file: str
    function: str
    protects: str


HUNKS: tuple[Hunk, ...] = (
    Hunk(
        "have_arch_soft_dirty",
        "arch/arm64/Kconfig",
        "config ARM64",
        "selects HAVE_ARCH_SOFT_DIRTY; without it the kernel has no soft-dirty tracking at all",
    ),
    Hunk(
        "pte_soft_dirty",
        _PGTABLE,
        "pte_soft_dirty",
        "reading the bit: without it no page is ever reported and forced writes never end",
    ),
    Hunk(
        "pte_mkdirty",
        _PGTABLE,
        "pte_mkdirty",
        "making a PTE dirty also makes it soft-dirty: without it every write is lost",
    ),
    Hunk(
        "pte_mksoft_dirty",
        _PGTABLE,
        "pte_mksoft_dirty",
        "setting the bit alone: moved and swapped-in pages keep or gain it",
    ),
    Hunk(
        "pte_clear_soft_dirty",
        _PGTABLE,
        "pte_clear_soft_dirty",
        "clear_refs clears the bit: without it a page stays reported for ever",
    ),
    Hunk(
        "pte_swp_mksoft_dirty",
        _PGTABLE,
        "pte_swp_mksoft_dirty",
        "the bit goes into the swap entry at swap-out: without it a swapped page is lost",
    ),
    Hunk(
        "pte_swp_soft_dirty",
        _PGTABLE,
        "pte_swp_soft_dirty",
        "the bit is read back from the swap entry: without it a swapped page is lost",
    ),
    Hunk(
        "pte_swp_clear_soft_dirty",
        _PGTABLE,
        "pte_swp_clear_soft_dirty",
        "clear_refs reaches swap entries, and swapoff recognises them: without it spurious pages"
        " and a swapoff that never ends",
    ),
    Hunk(
        "pmd_soft_dirty",
        _PGTABLE,
        "pmd_soft_dirty",
        "reading the bit of a huge page",
    ),
    Hunk(
        "pmd_mksoft_dirty",
        _PGTABLE,
        "pmd_mksoft_dirty",
        "a moved huge page becomes soft-dirty: without it the move is lost",
    ),
    Hunk(
        "pmd_clear_soft_dirty",
        _PGTABLE,
        "pmd_clear_soft_dirty",
        "clear_refs clears the bit of a huge page",
    ),
    Hunk(
        "pmd_swp_soft_dirty",
        _PGTABLE,
        "pmd_swp_soft_dirty",
        "reading the bit of a huge page that is moving: without it what was written before is lost"
        " while it moves, and where it is split meanwhile",
    ),
    Hunk(
        "pmd_swp_mksoft_dirty",
        _PGTABLE,
        "pmd_swp_mksoft_dirty",
        "the bit goes into the entry of a huge page that is moving: without it what was written"
        " before is lost while it moves",
    ),
    Hunk(
        "pmd_swp_clear_soft_dirty",
        _PGTABLE,
        "pmd_swp_clear_soft_dirty",
        "clear_refs reaches the entry of a huge page that is moving: without it spurious pages",
    ),
    Hunk(
        "pte_modify",
        _PGTABLE,
        "pte_modify",
        "mprotect keeps dirty state without setting soft-dirty: without it spurious pages",
    ),
    Hunk(
        "get_and_clear_full_ptes",
        _PGTABLE,
        "__get_and_clear_full_ptes",
        "gathering dirty bits over a large folio at unmap; nobody reads soft-dirty of what was"
        " taken down, so this hunk is neutral",
    ),
    Hunk(
        "contpte_convert",
        _CONTPTE,
        "contpte_convert",
        "(un)folding a contiguous block does not set soft-dirty: without it spurious pages",
    ),
    Hunk(
        "contpte_ptep_get",
        _CONTPTE,
        "contpte_ptep_get",
        "reading a contiguous block does not invent the bit: without it a fault that never ends",
    ),
    Hunk(
        "contpte_ptep_get_lockless",
        _CONTPTE,
        "contpte_ptep_get_lockless",
        "the same without the lock",
    ),
    Hunk(
        "ptep_set_access_flags",
        "arch/arm64/mm/fault.c",
        "__ptep_set_access_flags",
        "a write fault on a tracked page sets the bit: without it every re-write is lost, and a"
        " forced write never ends",
    ),
    Hunk(
        "huge_ptep_get",
        _HUGETLB,
        "huge_ptep_get",
        "reading a contiguous hugetlb entry does not invent the bit: without it PAGEMAP_SCAN"
        " reports pages that hardware alone made dirty; pagemap shows no such entry's bit anyhow",
    ),
    Hunk(
        "get_clear_contig",
        _HUGETLB,
        "get_clear_contig",
        "taking a contiguous hugetlb entry down, to change or move it, does not invent the bit:"
        " without it PAGEMAP_SCAN reports pages that hardware alone made dirty",
    ),
    Hunk(
        "huge_ptep_set_access_flags",
        _HUGETLB,
        "huge_ptep_set_access_flags",
        "a write fault on a contiguous hugetlb entry: neutral, since an entry that such a fault"
        " finds dirty is soft-dirty already",
    ),
)

VARIANTS: tuple[Hunk, ...] = (
    Hunk(
        "swap-bit-61",
        "arch/arm64/include/asm/pgtable-prot.h",
        "PTE_SWP_SOFT_DIRTY",
        "keeps the seed's bit 61 on 6.12, where it is the top bit of the swap offset",
    ),
    Hunk(
        "swap-bit-exclusive",
        "arch/arm64/include/asm/pgtable-prot.h",
        "PTE_SWP_SOFT_DIRTY",
        "a bit that the swap entry has taken already, that of the page's being exclusive: what was"
        " swapped out unwritten comes back as written, and fork, which shares it, takes the mark of"
        " what was written",
    ),
    Hunk(
        "clear-refs-no-wrprotect",
        "fs/proc/task_mmu.c",
        "clear_soft_dirty",
        "write-protecting what is cleared: without it the next write takes no fault and is lost",
    ),
    Hunk(
        "clear-refs-keeps-dbm",
        "arch/arm64/include/asm/pgtable.h",
        "pte_wrprotect",
        "write-protecting takes DBM away too: with it left on, hardware makes the page writable"
        " again without a fault, and the write is lost",
    ),
    Hunk(
        "clear-refs-no-tlb-flush",
        "fs/proc/task_mmu.c",
        "clear_refs_write",
        "telling CPUs to forget writable translations: without it a CPU that has one goes on"
        " writing without a fault (needs ModelConfig.tlb_entries)",
    ),
    Hunk(
        "contpte-access-flags-as-ported",
        _CONTPTE,
        "contpte_ptep_set_access_flags",
        "6.12 as the patch leaves it: soft-dirty alone is no change to a contiguous block, so a"
        " forced write into a read-only one never ends",
    ),
    Hunk(
        "contpte-access-flags-mask-only",
        _CONTPTE,
        "contpte_ptep_set_access_flags",
        "soft-dirty is in the mask that decides on a change: the forced write ends, and marks the"
        " whole block",
    ),
    Hunk(
        "contpte-access-flags-as-in-6.9",
        _CONTPTE,
        "contpte_ptep_set_access_flags",
        "the comparison of the gathered entry, as in the kernel that the patch was written for: it"
        " ends, and marks the whole block",
    ),
    Hunk(
        "contpte-access-flags-fixed",
        _CONTPTE,
        "contpte_ptep_set_access_flags",
        "the block is also unfolded when soft-dirty differs: one page is marked",
    ),
    Hunk(
        "contpte-fold-ignores-soft-dirty",
        _CONTPTE,
        "__contpte_try_fold",
        "folding does not compare soft-dirty: the bits of a block become those of its last page",
    ),
)

_BY_NAME = {hunk.name: hunk for hunk in HUNKS + VARIANTS}


def hunk(name: str) -> Hunk:
    """The hunk or variant called ``name``.

    ``ValueError`` with the nearest known name if there is none.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        near = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown hunk {name!r}{hint}") from None


def check_hunks_off(names: Iterable[str]) -> frozenset[str]:
    """The names, if every one is known; ``ValueError`` names the nearest known one."""
    checked = frozenset(names)
    for name in sorted(checked):
        hunk(name)
    return checked
