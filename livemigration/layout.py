"""Address spaces as they travel: which VMAs a process has, and how a destination is made like that.

A destination follows the source round by round: `reconcile` maps, unmaps and protects until its
process has the VMAs of the source's scan. Pages already there stay where their address is still
mapped the same way; whether they are still right is said by the round's list of live pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from livemigration.errors import DamagedFrame
from livemigration.v1 import common_pb2
from mm_model import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_HUGE_MASK,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_PRIVATE,
    MAP_SHARED,
    Machine,
    Mm,
    MmError,
    Vma,
)

HUGETLB = MAP_HUGETLB | MAP_HUGE_MASK
"""Whether a VMA is of huge pages (hugetlb), and of which size."""
KINDS = MAP_PRIVATE | MAP_SHARED | HUGETLB
KEPT_FLAGS = KINDS | MAP_ANONYMOUS | MAP_GROWSDOWN


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """One process' VMAs (ascending) and heap ends."""

    pid: int
    ppid: int
    vmas: tuple[Vma, ...]
    start_brk: int
    brk: int


def describe(pid: int, ppid: int, mm: Mm) -> AddressSpace:
    """The address space of `mm` as it is now."""
    return AddressSpace(pid, ppid, tuple(mm.vmas()), mm.start_brk, mm.brk(0))


def to_proto(space: AddressSpace) -> common_pb2.Process:
    """Without the live pages, which the scan adds."""
    process = common_pb2.Process(
        pid=space.pid, ppid=space.ppid, start_brk=space.start_brk, brk=space.brk
    )
    for vma in space.vmas:
        process.vmas.add(
            start=vma.start,
            end=vma.end,
            prot=vma.prot,
            flags=vma.flags & KEPT_FLAGS | (MAP_LOCKED if vma.locked else 0),
            shared_id=vma.shared_id,
            pgoff=vma.pgoff,
            name=vma.name,
            madv=vma.advice,
        )
    return process


def from_proto(process: common_pb2.Process) -> AddressSpace:
    """The address space that a peer sent."""
    vmas = tuple(
        Vma(
            start=v.start,
            end=v.end,
            prot=v.prot,
            flags=v.flags & KEPT_FLAGS,
            shared_id=v.shared_id,
            pgoff=v.pgoff,
            soft_dirty=False,
            name=v.name,
            locked=bool(v.flags & MAP_LOCKED),
            advice=v.madv,
        )
        for v in process.vmas
    )
    return AddressSpace(process.pid, process.ppid, vmas, process.start_brk, process.brk)


def huge_page_size(vma: Vma) -> int:
    """Bytes of the huge pages that a VMA is of; 0 if it is not hugetlb."""
    if not vma.flags & MAP_HUGETLB:
        return 0
    return 1 << ((vma.flags & MAP_HUGE_MASK) >> MAP_HUGE_SHIFT)


def huge_objects(spaces: Iterable[AddressSpace]) -> dict[int, int]:
    """The shared objects that VMAs map as hugetlb -> bytes of their huge pages."""
    return {
        vma.shared_id: huge_page_size(vma)
        for space in spaces
        for vma in space.vmas
        if vma.shared_id and huge_page_size(vma)
    }


def areas(vmas: Iterable[Vma], page_size: int) -> list[tuple[int, int, int, int]]:
    """VMAs as (start, end, prot, sharing), neighbours joined where only the kernel's bookkeeping
    (soft-dirty, names, merging) tells them apart: what two equal address spaces have in common."""
    joined: list[tuple[int, int, int, int]] = []
    for vma in vmas:
        kind = vma.flags & KINDS
        if joined and joined[-1][1] == vma.start and joined[-1][2:] == (vma.prot, kind):
            joined[-1] = (joined[-1][0], vma.end, vma.prot, kind)
        else:
            joined.append((vma.start, vma.end, vma.prot, kind))
    return joined


def _same_memory(a: Vma, b: Vma, at: int, page_size: int) -> bool:
    """Whether address `at` shows the same kind of memory (and the same shared page) in both."""
    if a.shared_id != b.shared_id or (a.flags ^ b.flags) & KINDS:
        return False
    if not a.shared_id:
        return True
    return a.pgoff + (at - a.start) // page_size == b.pgoff + (at - b.start) // page_size


def _pieces(have: list[Vma], want: list[Vma]) -> list[tuple[int, int, Vma | None, Vma | None]]:
    """The address range cut at every border: (start, end, what is there, what shall be there)."""
    borders = sorted({b for v in (*have, *want) for b in (v.start, v.end)})
    pieces: list[tuple[int, int, Vma | None, Vma | None]] = []
    h = w = 0
    for start, end in pairwise(borders):
        while h < len(have) and have[h].end <= start:
            h += 1
        while w < len(want) and want[w].end <= start:
            w += 1
        old = have[h] if h < len(have) and have[h].start <= start else None
        new = want[w] if w < len(want) and want[w].start <= start else None
        if old is not None or new is not None:
            pieces.append((start, end, old, new))
    return pieces


def _check(vmas: Iterable[Vma], shared_ids: Mapping[int, int], machine: Machine) -> None:
    """Whether VMAs of a peer are pages one after the other, before any of them is mapped."""
    last = 0
    for vma in vmas:
        unit = huge_page_size(vma)
        if unit and unit not in machine.huge_page_sizes:
            raise DamagedFrame(f"VMA {vma.start:#x} has huge pages of {unit} bytes, none here")
        unit = unit or machine.page_size
        whole = vma.start % unit == 0 and vma.end % unit == 0
        if not whole or not last <= vma.start < vma.end:
            raise DamagedFrame(f"VMA {vma.start:#x}-{vma.end:#x} is empty, odd or out of order")
        if vma.shared_id and vma.shared_id not in shared_ids:
            raise DamagedFrame(f"VMA {vma.start:#x} is of shared object {vma.shared_id}, unknown")
        last = vma.end


def _unmap_huge_pages(mm: Mm, want: list[Vma]) -> None:
    """Takes away huge pages whose place becomes other memory, as wholes: no border splits one."""
    for old in mm.vmas():
        unit = huge_page_size(old)
        for start in range(old.start, old.end, unit) if unit else ():
            kept = any(
                new.start <= start
                and start + unit <= new.end
                and not (old.flags ^ new.flags) & KINDS
                for new in want
            )
            if not kept:
                mm.munmap(start, unit)


def reconcile(mm: Mm, space: AddressSpace, shared_ids: Mapping[int, int]) -> None:
    """Gives `mm` the VMAs of `space`; `shared_ids`: the source's shared objects -> this host's.

    `DamagedFrame` if that is no address space, or of shared objects that are not among them.
    """
    page_size = mm.machine.page_size
    _check(space.vmas, shared_ids, mm.machine)
    want = [replace(v, shared_id=shared_ids[v.shared_id] if v.shared_id else 0) for v in space.vmas]
    _unmap_huge_pages(mm, want)
    missing: list[tuple[int, int, Vma]] = []
    for start, end, old, new in _pieces(list(mm.vmas()), want):
        if old is not None and (new is None or not _same_memory(old, new, start, page_size)):
            mm.munmap(start, end - start)
            old = None
        if new is None:
            continue
        if old is None:
            if missing and missing[-1][1] == start and missing[-1][2] is new:
                missing[-1] = (missing[-1][0], end, new)
            else:
                missing.append((start, end, new))
        elif old.prot != new.prot:
            mm.mprotect(start, end - start, new.prot)
    for start, end, new in missing:
        mm.mmap(
            start,
            end - start,
            new.prot,
            new.flags & KEPT_FLAGS | MAP_FIXED,
            shared_id=new.shared_id,
            pgoff=new.pgoff + (start - new.start) // page_size if new.shared_id else 0,
            name=new.name,
        )
    mm.restore_brk(space.start_brk, space.brk)


def restore_advice(mm: Mm, space: AddressSpace) -> None:
    """Gives the mappings their lasting advice and locks, when all pages are there (as CRIU's
    restorer does last: criu/pie/restorer.c).

    `DamagedFrame` for advice that the mapping cannot have.
    """
    for vma in space.vmas:
        length = vma.end - vma.start
        try:
            for advice in (n for n in range(vma.advice.bit_length()) if vma.advice >> n & 1):
                mm.madvise(vma.start, length, advice)
            if vma.locked:
                mm.mlock(vma.start, length)
        except MmError as error:
            raise DamagedFrame(f"VMA {vma.start:#x}: {error.strerror}") from error
