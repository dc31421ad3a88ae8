"""What a modelled machine is made of, and the constants (``Arch``) that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mm_model.arm64.pgtable import MODIFY_MASK, MODIFY_MASK_SEED, PTE_SOFT_DIRTY, Arch
from mm_model.hunks import check_hunks_off

PAGE_SIZES = (4096, 16384, 65536)
VA_BITS = 48
_VM_SOFTDIRTY = 0x08000000


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a kernel keeps its bits in entries that are not valid."""

    version: int
    present_invalid: int
    swp_soft_dirty: int
    swp_exclusive: int
    swp_type_shift: int
    swp_offset_shift: int
    swp_offset_bits: int
    modify_mask: np.uint64


_612 = _Layout(612, 1 << 11, 1 << 4, 1 << 2, 6, 12, 50, MODIFY_MASK)
# 6.1 has no patch for arm64: its generic code runs with the layout of 6.12.
_601 = _Layout(601, 1 << 11, 1 << 4, 1 << 2, 6, 12, 50, MODIFY_MASK)
# The kernel that the patch was written for (6.9-rc): PROT_NONE overlays UXN, the swap type sits
# above the offset.
_SEED = _Layout(609, 1 << 54, 1 << 61, 1 << 2, 55, 4, 50, MODIFY_MASK_SEED)
_LAYOUTS = {"6.12": _612, "6.1": _601, "seed": _SEED}
PROFILES = tuple(_LAYOUTS)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One machine.

    ``page_size``   4096, 16384 or 65536 bytes
    ``frames``      physical frames; a reservation of addresses, RAM is used when a frame is first
                    written. Frame 0 is the zero page and counts.
    ``swap_slots``  pages of swap; 0: no swap device
    ``dbm``         FEAT_HAFDBS: the CPU itself sets the access flag and clears RDONLY
    ``kernel``      profile "6.12", "6.1" or "seed": swap entry layout and where versions differ
    ``hunks_off``   names of ``mm_model.hunks`` that are switched off
    """

    page_size: int = 4096
    frames: int = 0
    swap_slots: int = 0
    dbm: bool = True
    kernel: str = "6.12"
    hunks_off: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.page_size not in PAGE_SIZES:
            raise ValueError(
                f"page_size {self.page_size}: must be one of {', '.join(map(str, PAGE_SIZES))}"
            )
        if self.frames < 0 or self.swap_slots < 0:
            raise ValueError("frames and swap_slots must not be negative")
        if self.kernel not in _LAYOUTS:
            raise ValueError(
                f"kernel profile {self.kernel!r}: must be one of {', '.join(PROFILES)}"
            )
        object.__setattr__(self, "hunks_off", check_hunks_off(self.hunks_off))


def build_arch(config: ModelConfig) -> Arch:
    """The constants that compiled code reads."""
    layout = _LAYOUTS[config.kernel]
    off = config.hunks_off
    page_shift = config.page_size.bit_length() - 1
    table_shift = page_shift - 3
    levels = -(-(VA_BITS - page_shift) // table_shift)
    tracking = "have_arch_soft_dirty" not in off
    swp_bit = 1 << 61 if "swap-bit-61" in off else layout.swp_soft_dirty

    def unless(name: str, bit: int) -> np.uint64:
        return np.uint64(bit if tracking and name not in off else 0)

    def only_without(name: str) -> np.uint64:
        # The old code calls pte_mkdirty() where the hunk calls __pte_mkdirty().
        return unless("pte_mkdirty", soft_dirty) if name in off else np.uint64(0)

    soft_dirty = int(PTE_SOFT_DIRTY)
    return Arch(
        page_shift=np.uint64(page_shift),
        page_size=np.uint64(config.page_size),
        page_mask=np.uint64(config.page_size - 1),
        table_shift=np.uint64(table_shift),
        table_mask=np.uint64((1 << table_shift) - 1),
        pmd_shift=np.uint64(page_shift + table_shift),
        pfn_mask=np.uint64((1 << VA_BITS) - config.page_size),
        top_shift=np.uint64(page_shift + table_shift * (levels - 1)),
        present_invalid=np.uint64(layout.present_invalid),
        modify_mask=np.uint64(int(layout.modify_mask) | layout.present_invalid),
        sd_test=unless("pte_soft_dirty", soft_dirty),
        sd_set=unless("pte_mksoft_dirty", soft_dirty),
        sd_clear=unless("pte_clear_soft_dirty", soft_dirty),
        sd_mkdirty=unless("pte_mkdirty", soft_dirty),
        sd_access_flags=unless("ptep_set_access_flags", soft_dirty),
        sd_modify=only_without("pte_modify"),
        sd_gather=only_without("get_and_clear_full_ptes"),
        swp_sd_test=unless("pte_swp_soft_dirty", swp_bit),
        swp_sd_set=unless("pte_swp_mksoft_dirty", swp_bit),
        swp_sd_clear=unless("pte_swp_clear_soft_dirty", swp_bit),
        swp_exclusive=np.uint64(layout.swp_exclusive),
        swp_type_shift=np.uint64(layout.swp_type_shift),
        swp_offset_shift=np.uint64(layout.swp_offset_shift),
        swp_offset_mask=np.uint64((1 << layout.swp_offset_bits) - 1),
        vm_softdirty=np.uint64(_VM_SOFTDIRTY if tracking else 0),
        levels=levels,
        dbm=int(config.dbm),
        kernel=layout.version,
    )
