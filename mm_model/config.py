"""What a modelled machine is made of, and the constants (``Arch``) that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mm_model.arch import (
    ARM64,
    CLEAR_REFS_KEEPS_DBM,
    CLEAR_REFS_NO_WRPROTECT,
    X86_64,
    Arch,
)
from mm_model.arm64 import pgtable as arm64
from mm_model.arm64.contpte import AS_IN_69, AS_PORTED, FIXED, MASK_ONLY
from mm_model.folio_profile import FOLIO_PROFILES
from mm_model.hunks import check_hunks_off
from mm_model.x86 import pgtable as x86

PAGE_SIZES = (4096, 16384, 65536)
VA_BITS = 48
_VM_SOFTDIRTY = 0x08000000
# CONT_PTES: 64 KiB with 4K pages, 2 MiB with the two others.
_CONT_PTES = {4096: 16, 16384: 128, 65536: 32}
_ACCESS_FLAGS = {
    "contpte-access-flags-as-ported": AS_PORTED,
    "contpte-access-flags-mask-only": MASK_ONLY,
    "contpte-access-flags-as-in-6.9": AS_IN_69,
    "contpte-access-flags-fixed": FIXED,
}


@dataclass(frozen=True, slots=True)
class KernelProfile:
    """A kernel version: what it does otherwise than others, each property named.

    ``version``
        major * 100 + minor.
    ``swapin_writable``
        A page that is certainly ours comes back from swap writable, after a read fault too, unless
        a write has yet to be noticed. Before, only a write fault made it writable, and asked
        nothing about soft-dirty. Since 6.11: "mm: set pte writable while pte_soft_dirty() is true
        in do_swap_page()".
    ``ksm_break_marks``
        Unmerging a KSM page is a write fault and makes the page soft-dirty. Until 6.1; then
        "mm/ksm: convert break_ksm() to use walk_page_range_vma()" and FAULT_FLAG_UNSHARE ("mm/ksm:
        fix KSM COW breaking with userfaultfd-wp via FAULT_FLAG_UNSHARE").
    ``ksm_skips_protnone``
        follow_page() does not find pages that the task may not access. So debugfs does not split
        their folios, and KSM does not find them again in its unstable tree: a page that comes upon
        one there neither merges nor enters the tree. Nor does break_ksm() find them: they stay
        merged when all others are given copies. The scan itself finds them, since it walks
        the page tables ("ksm: use range-walk function to jump over holes in
        scan_get_next_rmap_item", in the stable series as well). Until 6.6: "mm/gup: reintroduce
        FOLL_NUMA as FOLL_HONOR_NUMA_FAULT".
    ``uffd_wp_unpopulated``
        Write-protecting anonymous memory reaches pages that are not there yet, by markers. Since
        6.4: "mm/uffd: UFFD_FEATURE_WP_UNPOPULATED".
    ``uffd_wp_async``
        The kernel resolves a write to a write-protected page itself. Since 6.7: "userfaultfd:
        UFFD_FEATURE_WP_ASYNC".
    ``pagemap_scan``
        The PAGEMAP_SCAN ioctl exists. Since 6.7: "fs/proc/task_mmu: implement IOCTL to get and
        optionally clear info about PTEs".
    ``mremap_clears_uffd_wp``
        A mapping moved out of userfaultfd's sight loses its pages' protection. Since 6.13 and in
        6.12's stable series: "mm: clear uffd-wp PTE/PMD state on mremap()".
    ``populate_past_gaps``
        MADV_POPULATE_* goes from mapping to mapping like any other advice, past gaps. Until
        "mm/madvise: make MADV_POPULATE_(READ|WRITE) handle VM_FAULT_RETRY properly".
    ``mprotect_unaccounts``
        mprotect takes VM_ACCOUNT off a mapping that was never written. Since "mm/mprotect: allow
        unfaulted VMAs to be unaccounted on mprotect()".
    ``mmap_joins_next_first``
        A new mapping joins the next one first, and then the previous one only if it suits that
        one's anon_vma. mmap_region() in 6.1.
    """

    version: int
    swapin_writable: bool
    ksm_break_marks: bool
    ksm_skips_protnone: bool
    uffd_wp_unpopulated: bool
    uffd_wp_async: bool
    pagemap_scan: bool
    mremap_clears_uffd_wp: bool
    populate_past_gaps: bool
    mprotect_unaccounts: bool
    mmap_joins_next_first: bool


PROFILE: dict[str, KernelProfile] = {
    "6.12": KernelProfile(
        612,
        swapin_writable=True,
        ksm_break_marks=False,
        ksm_skips_protnone=False,
        uffd_wp_unpopulated=True,
        uffd_wp_async=True,
        pagemap_scan=True,
        mremap_clears_uffd_wp=True,
        populate_past_gaps=False,
        mprotect_unaccounts=True,
        mmap_joins_next_first=False,
    ),
    "6.1": KernelProfile(
        601,
        swapin_writable=False,
        ksm_break_marks=True,
        ksm_skips_protnone=True,
        uffd_wp_unpopulated=False,
        uffd_wp_async=False,
        pagemap_scan=False,
        mremap_clears_uffd_wp=False,
        populate_past_gaps=True,
        mprotect_unaccounts=False,
        mmap_joins_next_first=True,
    ),
    # The kernel that the patch was written for, 6.9-rc.
    "seed": KernelProfile(
        609,
        swapin_writable=False,
        ksm_break_marks=False,
        ksm_skips_protnone=False,
        uffd_wp_unpopulated=True,
        uffd_wp_async=True,
        pagemap_scan=True,
        mremap_clears_uffd_wp=False,
        populate_past_gaps=False,
        mprotect_unaccounts=True,
        mmap_joins_next_first=False,
    ),
}
PROFILES = tuple(PROFILE)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a kernel keeps its bits in entries that are not valid, and what mprotect replaces."""

    isa: int
    pfn_mask: int
    soft_dirty: int
    present_invalid: int
    swp_soft_dirty: int
    swp_exclusive: int
    swp_uffd_wp: int
    swp_type_shift: int
    swp_offset_shift: int
    swp_offset_bits: int
    modify_mask: int
    contpte_access_flags: int = AS_PORTED


_612 = _Layout(
    isa=ARM64,
    pfn_mask=(1 << VA_BITS) - 1,
    soft_dirty=int(arm64.PTE_SOFT_DIRTY),
    present_invalid=1 << 11,
    swp_soft_dirty=1 << 4,
    swp_exclusive=1 << 2,
    swp_uffd_wp=1 << 3,
    swp_type_shift=6,
    swp_offset_shift=12,
    swp_offset_bits=50,
    modify_mask=int(arm64.MODIFY_MASK) | 1 << 11,
)
# PROT_NONE overlays UXN, the swap type sits above the offset.
_SEED = replace(
    _612,
    present_invalid=1 << 54,
    swp_soft_dirty=1 << 61,
    swp_type_shift=55,
    swp_offset_shift=4,
    modify_mask=int(arm64.MODIFY_MASK_SEED) | 1 << 54,
    contpte_access_flags=AS_IN_69,
)
_X86 = _Layout(
    isa=X86_64,
    pfn_mask=int(x86.PFN_MASK),
    soft_dirty=int(x86.PAGE_SOFT_DIRTY),
    present_invalid=int(x86.PAGE_PROTNONE),
    swp_soft_dirty=x86.SWP_SOFT_DIRTY,
    swp_exclusive=x86.SWP_EXCLUSIVE,
    swp_uffd_wp=x86.SWP_UFFD_WP,
    swp_type_shift=x86.SWP_TYPE_SHIFT,
    swp_offset_shift=x86.SWP_OFFSET_SHIFT,
    swp_offset_bits=x86.SWP_OFFSET_BITS,
    modify_mask=int(x86.MODIFY_MASK),
)
# 6.1 has no patch for arm64: its generic code runs with the layout of 6.12.
_LAYOUTS = {
    "arm64": {"6.12": _612, "6.1": _612, "seed": _SEED},
    "x86_64": dict.fromkeys(PROFILE, _X86),
}
_CLEAR_REFS_MISTAKES = {
    "clear-refs-no-wrprotect": CLEAR_REFS_NO_WRPROTECT,
    "clear-refs-keeps-dbm": CLEAR_REFS_KEEPS_DBM,
}
_ON_ANY_ARCHITECTURE = frozenset({"clear-refs-no-wrprotect", "clear-refs-no-tlb-flush"})
ARCHITECTURES = tuple(_LAYOUTS)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One machine.

    ``page_size``   4096, 16384 or 65536 bytes
    ``frames``      physical frames; a reservation of addresses, RAM is used when a frame is first
                    written. Frame 0 is the zero page and counts.
    ``swap_slots``  pages of swap; 0: no swap device
    ``dbm``         FEAT_HAFDBS: the CPU itself sets the access flag and clears RDONLY
    ``kernel``      profile "6.12", "6.1" or "seed": swap entry layout and where versions differ
    ``hunks_off``   names of ``mm_model.hunks`` that are switched off; arm64 only
    ``cpus``        CPUs that a process can run on (``Mm.run_on``)
    ``tlb_entries`` translations that each CPU remembers, a power of two; 0: none, every flush is in
                    time
    ``arch``        "arm64" or "x86_64"; x86-64 has 4096-byte pages, and ``dbm`` is without effect
    """

    page_size: int = 4096
    frames: int = 0
    swap_slots: int = 0
    dbm: bool = True
    kernel: str = "6.12"
    hunks_off: frozenset[str] = frozenset()
    arch: str = "arm64"
    cpus: int = 1
    tlb_entries: int = 0

    def __post_init__(self) -> None:
        if self.page_size not in PAGE_SIZES:
            raise ValueError(
                f"page_size {self.page_size}: must be one of {', '.join(map(str, PAGE_SIZES))}"
            )
        if self.frames < 0 or self.swap_slots < 0:
            raise ValueError("frames and swap_slots must not be negative")
        if self.kernel not in PROFILE:
            raise ValueError(
                f"kernel profile {self.kernel!r}: must be one of {', '.join(PROFILES)}"
            )
        if self.arch not in _LAYOUTS:
            raise ValueError(f"arch {self.arch!r}: must be one of {', '.join(ARCHITECTURES)}")
        if self.arch != "arm64" and self.page_size != 4096:
            raise ValueError(f"page_size {self.page_size}: {self.arch} has 4096-byte pages only")
        if self.cpus < 1:
            raise ValueError(f"cpus {self.cpus}: must be at least 1")
        if self.tlb_entries < 0 or self.tlb_entries & (self.tlb_entries - 1):
            raise ValueError(f"tlb_entries {self.tlb_entries}: must be 0 or a power of two")
        if "clear-refs-no-tlb-flush" in self.hunks_off and not self.tlb_entries:
            raise ValueError("clear-refs-no-tlb-flush: set tlb_entries, or no CPU remembers any")
        if self.arch != "arm64" and self.hunks_off - _ON_ANY_ARCHITECTURE:
            raise ValueError(f"hunks_off: the patch is for arm64, {self.arch} has no hunks of it")
        object.__setattr__(self, "hunks_off", check_hunks_off(self.hunks_off))


def build_arch(config: ModelConfig) -> Arch:
    """The constants that compiled code reads."""
    layout = _LAYOUTS[config.arch][config.kernel]
    profile = PROFILE[config.kernel]
    folios = FOLIO_PROFILES[config.kernel]
    off = config.hunks_off
    page_shift = config.page_size.bit_length() - 1
    table_shift = page_shift - 3
    levels = -(-(VA_BITS - page_shift) // table_shift)
    tracking = "have_arch_soft_dirty" not in off
    swp_bit = layout.swp_soft_dirty
    if "swap-bit-61" in off:
        swp_bit = 1 << 61
    elif "swap-bit-exclusive" in off:
        swp_bit = layout.swp_exclusive

    def unless(name: str, bit: int) -> np.uint64:
        return np.uint64(bit if tracking and name not in off else 0)

    def only_if_also(name: str, helper: str, bit: int) -> np.uint64:
        # The pmd_* helpers are defined through the pte_* ones.
        return np.uint64(int(unless(name, bit)) & int(unless(helper, bit)))

    def only_without(name: str) -> np.uint64:
        # The old code calls pte_mkdirty() where the hunk calls __pte_mkdirty().
        return unless("pte_mkdirty", soft_dirty) if name in off else np.uint64(0)

    soft_dirty = layout.soft_dirty
    mistakes = [_CLEAR_REFS_MISTAKES[name] for name in off if name in _CLEAR_REFS_MISTAKES]
    if len(mistakes) > 1:
        raise ValueError("hunks_off: only one mistake of clear_refs's write-protection at a time")
    access_flags = [_ACCESS_FLAGS[name] for name in off if name in _ACCESS_FLAGS]
    if len(access_flags) > 1:
        raise ValueError("hunks_off: only one of the contpte-access-flags variants can be in use")
    return Arch(
        page_shift=np.uint64(page_shift),
        page_size=np.uint64(config.page_size),
        page_mask=np.uint64(config.page_size - 1),
        table_shift=np.uint64(table_shift),
        table_mask=np.uint64((1 << table_shift) - 1),
        pmd_shift=np.uint64(page_shift + table_shift),
        pfn_mask=np.uint64(layout.pfn_mask & -config.page_size),
        top_shift=np.uint64(page_shift + table_shift * (levels - 1)),
        present_invalid=np.uint64(layout.present_invalid),
        modify_mask=np.uint64(layout.modify_mask),
        sd_test=unless("pte_soft_dirty", soft_dirty),
        sd_set=unless("pte_mksoft_dirty", soft_dirty),
        sd_clear=unless("pte_clear_soft_dirty", soft_dirty),
        sd_mkdirty=unless("pte_mkdirty", soft_dirty),
        sd_access_flags=unless("ptep_set_access_flags", soft_dirty),
        sd_modify=only_without("pte_modify"),
        sd_gather=only_without("get_and_clear_full_ptes"),
        sd_huge_get=only_without("huge_ptep_get"),
        sd_huge_clear=only_without("get_clear_contig"),
        sd_huge_access_flags=only_without("huge_ptep_set_access_flags"),
        pmd_sd_test=only_if_also("pmd_soft_dirty", "pte_soft_dirty", soft_dirty),
        pmd_sd_set=only_if_also("pmd_mksoft_dirty", "pte_mksoft_dirty", soft_dirty),
        pmd_sd_clear=only_if_also("pmd_clear_soft_dirty", "pte_clear_soft_dirty", soft_dirty),
        sd_contpte_convert=only_without("contpte_convert"),
        sd_contpte_get=only_without("contpte_ptep_get"),
        sd_contpte_get_lockless=only_without("contpte_ptep_get_lockless"),
        fold_ignores=np.uint64(soft_dirty if "contpte-fold-ignores-soft-dirty" in off else 0),
        cont_mask=np.uint64(_CONT_PTES[config.page_size] - 1),
        swp_sd_test=unless("pte_swp_soft_dirty", swp_bit),
        swp_sd_set=unless("pte_swp_mksoft_dirty", swp_bit),
        swp_sd_clear=unless("pte_swp_clear_soft_dirty", swp_bit),
        pmd_swp_sd_test=only_if_also("pmd_swp_soft_dirty", "pte_swp_soft_dirty", swp_bit),
        pmd_swp_sd_set=only_if_also("pmd_swp_mksoft_dirty", "pte_swp_mksoft_dirty", swp_bit),
        pmd_swp_sd_clear=only_if_also(
            "pmd_swp_clear_soft_dirty", "pte_swp_clear_soft_dirty", swp_bit
        ),
        swp_exclusive=np.uint64(layout.swp_exclusive),
        swp_uffd_wp=np.uint64(layout.swp_uffd_wp),
        swp_type_shift=np.uint64(layout.swp_type_shift),
        swp_type_mask=np.uint64(31),
        swp_offset_shift=np.uint64(layout.swp_offset_shift),
        swp_offset_mask=np.uint64((1 << layout.swp_offset_bits) - 1),
        vm_softdirty=np.uint64(_VM_SOFTDIRTY if tracking else 0),
        levels=levels,
        dbm=int(config.dbm),
        isa=layout.isa,
        kernel=profile.version,
        swapin_writable=int(profile.swapin_writable),
        ksm_break_marks=int(profile.ksm_break_marks),
        ksm_skips_protnone=int(profile.ksm_skips_protnone),
        clear_refs_mistake=mistakes[0] if mistakes else 0,
        contpte=int(layout.isa == ARM64),
        pmd_split_dirty=int(folios.pmd_split_dirty),
        remap_keeps_clean=int(folios.remap_keeps_clean),
        remap_zero_page=int(folios.remap_zero_page),
        swapin_folio=int(folios.swapin_folio),
        wp_reuses_large=int(folios.wp_reuses_large),
        lazyfree_splits_pmd=int(folios.lazyfree_splits_pmd),
        advice_asks_page=int(folios.advice_asks_page),
        contpte_access_flags=access_flags[0] if access_flags else layout.contpte_access_flags,
    )
