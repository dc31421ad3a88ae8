"""Translation caches: what CPUs remember of page tables, one cache each.

A CPU that has cached a translation does not look at the page table again until it is told to. So a
page that is write-protected without telling all CPUs goes on being written without a fault, and
nobody marks it. Only with ``ModelConfig.tlb_entries`` does a machine have these caches; otherwise
it behaves as one that flushes always.

Each cache is direct-mapped. An entry allows a write only if the page table entry did so without an
update when it was cached: writable *and* dirty by hardware; for a clean page with DBM (or on
x86-64, without the dirty bit) the CPU goes to the page table. One generation number stands for all
flushes, and everything that changes entries in compiled code raises it (``entry.py``), except the
faults of an access itself, which drop their own page on every CPU. This flushes more often than
the kernel does, as a CPU may at any time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mm_model._compiled import compiled, inlined
from mm_model.access import READ, STORE_WORD, mapped_frame, store_split_word, write_bytes
from mm_model.asm.fault import tlb_permits
from mm_model.asm.pgtable import U0, U1, Arch, pfn_pte, pte_pfn
from mm_model.frames import new_version
from mm_model.memory import access_page
from mm_model.pagewalk import walk
from mm_model.state import N_FAULTS, PGD, TLB_GENERATION, Int, Phys, Space

_U3: Final = np.uint64(3)
_U7: Final = np.uint64(7)
_PGD_SHIFT: Final = np.uint64(40)


class Tlb(NamedTuple):
    """All caches of a machine; each array is [cpus, entries].

    ``tag``         uint64: address space and page; 0 nothing
    ``pte``         uint64: the page table entry as it was
    ``generation``  int64: TLB_GENERATION then
    """

    tag: NDArray[np.uint64]
    pte: NDArray[np.uint64]
    generation: NDArray[np.int64]


@inlined
def tlb_access(
    arch: Arch, phys: Phys, space: Space, tlb: Tlb, cpu: Int, address: np.uint64, write: Int
) -> Int:
    """The frame that the CPU reads or writes for ``address``; -1 with STATUS set."""
    page = address >> arch.page_shift
    entry = np.int64(page & np.uint64(tlb.tag.shape[1] - 1))
    tag = (np.uint64(space.regs[PGD]) << _PGD_SHIFT) | (page << U1) | U1
    if tlb.tag[cpu, entry] == tag and tlb.generation[cpu, entry] == phys.ctr[TLB_GENERATION]:
        if tlb_permits(tlb.pte[cpu, entry], write):
            return np.int64(pte_pfn(arch, tlb.pte[cpu, entry]))
    faults = phys.ctr[N_FAULTS]
    index = walk(arch, phys, space.regs[PGD], address)
    index = access_page(arch, phys, space, index, address, write)
    if index < 0:
        return np.int64(-1)
    if phys.ctr[N_FAULTS] != faults:
        for other in range(tlb.tag.shape[0]):
            if tlb.tag[other, entry] == tag:
                tlb.tag[other, entry] = U0
    tlb.tag[cpu, entry] = tag
    frame = mapped_frame(arch, phys, index, address)
    # Of a huge page, the part that this page is.
    tlb.pte[cpu, entry] = pfn_pte(arch, np.uint64(frame), phys.tables[index] & ~arch.pfn_mask)
    tlb.generation[cpu, entry] = phys.ctr[TLB_GENERATION]
    return frame


@compiled
def access_words_tlb(
    arch: Arch,
    phys: Phys,
    space: Space,
    tlb: Tlb,
    cpu: Int,
    addresses: NDArray[np.uint64],
    values: NDArray[np.uint64],
    mode: Int,
    first: Int,
) -> Int:
    """``access_words`` on a CPU with a translation cache."""
    write = np.int64(0) if mode == READ else np.int64(1)
    for n in range(first, addresses.shape[0]):
        frame = tlb_access(arch, phys, space, tlb, cpu, addresses[n], write)
        if frame < 0:
            return n
        if mode == STORE_WORD:
            offset = addresses[n] & arch.page_mask
            word = np.int64(offset >> _U3)
            shift = (offset & _U7) << _U3
            if shift != U0:
                store_split_word(phys, frame, word, shift, values[n])
            elif phys.content[frame, word] != values[n]:
                phys.content[frame, word] = values[n]
                new_version(phys, frame)
    return addresses.shape[0]


@compiled
def store_bytes_tlb(
    arch: Arch,
    phys: Phys,
    space: Space,
    tlb: Tlb,
    cpu: Int,
    content: NDArray[np.uint8],
    addresses: NDArray[np.uint64],
    sizes: NDArray[np.uint32],
    payload: NDArray[np.uint8],
    first: Int,
    position: Int,
) -> Int:
    """``store_bytes`` on a CPU with a translation cache."""
    for n in range(first, addresses.shape[0]):
        frame = tlb_access(arch, phys, space, tlb, cpu, addresses[n], np.int64(1))
        if frame < 0:
            return n
        size = np.int64(sizes[n])
        offset = np.int64(addresses[n] & arch.page_mask)
        write_bytes(phys, content, frame, offset, payload, position, size)
        position += size
    return addresses.shape[0]
