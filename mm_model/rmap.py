"""Which anon_vma a mapping uses (mm/rmap.c, mm/vma.c).

It decides what fork copies and which mappings merge. The model keeps a number per VMA instead of a
tree: equal numbers are the same anon_vma, and ``V_CHAIN`` is the length of the VMA's chain, of
which the kernel asks only whether it is 1.
"""

from __future__ import annotations

import numpy as np

from mm_model._compiled import compiled, inlined
from mm_model.arch import U0, U1, Arch
from mm_model.state import (
    ANON_VMA,
    N_VMAS,
    V_ANON,
    V_CHAIN,
    V_END,
    V_FLAGS,
    V_OBJECT,
    V_PGOFF,
    V_START,
    VM_EXEC,
    VM_READ,
    VM_SOFTDIRTY,
    VM_WRITE,
    Flag,
    Int,
    Phys,
    Space,
)

_MAY_DIFFER = VM_READ | VM_WRITE | VM_EXEC | VM_SOFTDIRTY


@compiled
def anon_vma_compatible(arch: Arch, space: Space, a: Int, b: Int) -> Flag:
    """Whether the neighbours ``a`` and ``b`` differ only in what mprotect may change."""
    vmas = space.vmas
    return (
        vmas[a, V_END] == vmas[b, V_START]
        and vmas[a, V_OBJECT] == vmas[b, V_OBJECT]
        and ((vmas[a, V_FLAGS] ^ vmas[b, V_FLAGS]) & ~_MAY_DIFFER) == U0
        and vmas[b, V_PGOFF]
        == vmas[a, V_PGOFF] + ((vmas[b, V_START] - vmas[a, V_START]) >> arch.page_shift)
    )


@compiled
def anon_vma_assign(arch: Arch, phys: Phys, space: Space, vma: Int) -> None:
    """A neighbour's anon_vma if it fits (find_mergeable_anon_vma), else a new one."""
    vmas = space.vmas
    if vma + 1 < space.regs[N_VMAS] and anon_vma_compatible(arch, space, vma, vma + 1):
        if vmas[vma + 1, V_ANON] != U0 and vmas[vma + 1, V_CHAIN] == U1:
            vmas[vma, V_ANON] = vmas[vma + 1, V_ANON]
            vmas[vma, V_CHAIN] = U1
            return
    if vma > 0 and anon_vma_compatible(arch, space, vma - 1, vma):
        if vmas[vma - 1, V_ANON] != U0 and vmas[vma - 1, V_CHAIN] == U1:
            vmas[vma, V_ANON] = vmas[vma - 1, V_ANON]
            vmas[vma, V_CHAIN] = U1
            return
    phys.ctr[ANON_VMA] += 1
    vmas[vma, V_ANON] = np.uint64(phys.ctr[ANON_VMA])
    vmas[vma, V_CHAIN] = U1


@inlined
def anon_vma_prepare(arch: Arch, phys: Phys, space: Space, vma: Int) -> None:
    """Give the VMA an anon_vma before its first anonymous page."""
    if space.vmas[vma, V_ANON] == U0:
        anon_vma_assign(arch, phys, space, vma)
