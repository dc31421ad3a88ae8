"""Which pages to send: what the kernel says of writes, and beside it what was really written.

A scan reads every process' pagemap, as CRIU does (criu/mem.c: a page is dumped if it is present or
swapped and not the zero page; with a parent, only if it is soft-dirty). What the bits say decides
what is sent. The model's own content versions only judge it: a page written but not soft-dirty is
*lost*, a page sent though its content is what was sent last is *spurious*.

The kernel says it by soft-dirty bits, or with ``tracker = "uffd-wp"`` by userfaultfd's
write-protection, which a written page has lost. (Where mremap has left protections behind, the
tracker begins anew: see `_left_over`.)

Shared memory (mm/shmem.c: shared anonymous memory, memfds, files on a tmpfs) is not tracked: a
page-out drops the PTE and the soft-dirty bit with it, other mappings write through PTEs of their
own, and write(2) through none. CRIU's pre-dumps leave it out, and its dump has all of it
(criu/memfd.c; seen with 4.1.1 and 4.2.1, docs/criu.md): so it is sent in full in the final round
and in no other. With ``shared_memory = "rounds"`` all of it goes in every round, once per object,
and of files what changed.

Hugetlb memory is not tracked either, since clear_refs does not walk it. As CRIU does (its pre-dump
leaves MAP_HUGETLB out), it is sent in full in the final round and in no other.

Files of the task travel beside its processes (`file_tracker`): of their mappings only the private
copies are the process' own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from livemigration.files import file_numbers, unmapped_pages
from livemigration.layout import AddressSpace, describe
from livemigration.snapshot import dumped
from livemigration.task import Task
from mm_model import (
    MAP_HUGETLB,
    MAP_SHARED,
    PM_PRESENT,
    PM_SOFT_DIRTY,
    PM_SWAP,
    PM_UFFD_WP,
    Mm,
    Vma,
    WriteProtectTracker,
)
from mm_model.fs_userfaultfd import VM_UFFD_WP
from source_node.file_tracker import FileScan, FileTracker

U64 = NDArray[np.uint64]
Bools = NDArray[np.bool_]

_THERE = PM_PRESENT | PM_SWAP
_AT_ONCE = 1 << 16
"""Pages that are looked at together: their entries stay in a cache, however large the memory is."""

NEVER = np.uint64(2**64 - 1)
"""The version of a page that was never sent; no content ever has it."""


def _no_addresses() -> U64:
    return np.zeros(0, dtype=np.uint64)


@dataclass(slots=True)
class SentPages:
    """What the destination has of one process: per page the content version and round last sent."""

    addresses: U64 = field(default_factory=_no_addresses)
    versions: U64 = field(default_factory=_no_addresses)
    rounds: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))

    def find(self, addresses: U64) -> tuple[U64, NDArray[np.int32]]:
        """(versions, rounds) last sent of pages (ascending addresses); `NEVER`, -1 if never."""
        if np.array_equal(addresses, self.addresses):
            return self.versions.copy(), self.rounds.copy()
        versions = np.full(addresses.size, NEVER)
        rounds = np.full(addresses.size, -1, dtype=np.int32)
        if self.addresses.size and addresses.size:
            at = np.searchsorted(self.addresses, addresses)
            at[at == self.addresses.size] = 0
            known = self.addresses[at] == addresses
            versions[known] = self.versions[at[known]]
            rounds[known] = self.rounds[at[known]]
        return versions, rounds

    def note(self, addresses: U64, versions: U64, round_number: int) -> None:
        """Pages of the current scan were sent with these content versions."""
        at = np.searchsorted(self.addresses, addresses)
        self.versions[at] = versions
        self.rounds[at] = round_number


@dataclass(slots=True)
class ProcessScan:
    """One process at one scan."""

    space: AddressSpace
    live: U64  # every page with content, ascending
    send: U64  # those to send now, ascending
    send_by_vma: list[U64]  # the same, cut at VMAs


@dataclass(slots=True)
class RoundScan:
    """The task at one scan, with the counts of a round's record."""

    processes: list[ProcessScan] = field(default_factory=list)
    files: list[FileScan] = field(default_factory=list)
    # of shared memory, by object: numbers of pages to send that no process maps
    unmapped: list[tuple[int, NDArray[np.int64]]] = field(default_factory=list)
    scanned: int = 0  # pagemap entries read
    present: int = 0  # pages that the reset write-protects
    soft_dirty: int = 0  # live pages that the kernel reports as written
    written: int = 0  # live pages whose content is not what was last sent
    lost: int = 0  # written, but not sent
    spurious: int = 0  # sent, but not written
    to_send: int = 0
    skipped: int = 0  # live, left to what was sent before
    left: int = 0  # live, left to the final round, which sends them whatever was sent before
    vmas: int = 0


@dataclass(frozen=True, slots=True)
class DirtyVma:
    """One mapping now: `dirty` says of each page whether it was written since the last scan."""

    pid: int
    vma: Vma
    dirty: Bools


@dataclass(frozen=True, slots=True)
class _VmaScan:
    live: U64
    versions: U64
    soft_dirty: Bools
    judged: Bools  # False: another process of this scan sends it, or the final round will
    left: int  # of those, how many the final round will send
    shared: bool
    scanned: int
    present: int


class Tracker:
    """Scans a task round by round and remembers what was sent."""

    def __init__(self, kind: str = "soft-dirty", *, shared_in_rounds: bool = False) -> None:
        """`kind`: "soft-dirty" or "uffd-wp"; `shared_in_rounds`: shared memory does not wait for
        the final round."""
        self._sent: dict[int, SentPages] = {}
        self._shared_in_rounds = shared_in_rounds
        self._by_protection = kind == "uffd-wp"
        self._protected: dict[int, WriteProtectTracker] = {}
        self._files: dict[int, int] = {}  # object of a file -> its number
        self._file_tracker = FileTracker()
        self._spaces: dict[int, AddressSpace] = {}
        self._page_size = 0

    def reset(self, task: Task) -> None:
        """From now on only what is written anew counts; the task must not run meanwhile."""
        if not self._by_protection:
            for mm in task.processes.values():
                mm.clear_refs(4)
            return
        for pid in list(self._protected):
            if pid not in task.processes:
                del self._protected[pid]
        for pid, mm in task.processes.items():
            if pid in self._protected and _left_over(mm):
                self._protected.pop(pid).close()
                _clear_protections(mm)
            if pid not in self._protected:
                self._protected[pid] = WriteProtectTracker(mm)
            self._protected[pid].reset()

    def stop(self, task: Task) -> None:
        """The task goes on here: nothing of it stays write-protected for the tracker's sake."""
        for pid in self._protected.keys() & task.processes.keys():
            self._protected[pid].close()
        self._protected.clear()

    def scan(self, task: Task, *, first: bool, final: bool = False) -> RoundScan:
        """Reads all pagemaps of a task at rest; `first` (round 0) sends every live page.

        `final`: the task will not run again here, so what is not tracked has to go now.
        """
        result = RoundScan()
        claimed: dict[int, Bools] = {}
        self._files = file_numbers(task)
        self._page_size = task.machine.page_size
        self._spaces.clear()
        result.files = self._file_tracker.scan(task, in_memory=self._shared_in_rounds or final)
        for scan in result.files:
            result.written += scan.send.size
            result.to_send += scan.send.size
            result.left += scan.left
            result.skipped += scan.live.size - scan.send.size - scan.left
        for pid in sorted(task.processes):
            mm = task.processes[pid]
            space = self._spaces[pid] = describe(pid, task.parents[pid], mm)
            self._scan_process(task, pid, space, claimed, result, first=first, final=final)
        for pid in list(self._sent):
            if pid not in task.processes:
                del self._sent[pid]
        self._scan_unmapped(task, result, now=final or self._shared_in_rounds)
        return result

    def _scan_unmapped(self, task: Task, result: RoundScan, *, now: bool) -> None:
        """Shared memory that no process maps now: like the rest of it, nothing tracks it."""
        found = [(number, pages) for number, pages in unmapped_pages(task) if pages.size]
        count = sum(pages.size for _, pages in found)
        if not now:
            result.left += count
            return
        result.unmapped = found
        result.to_send += count
        result.written += count

    def count_dirty(self, task: Task) -> int:
        """Live pages that a pre-dump would send now; changes nothing (QEMU's exact sync)."""
        claimed: dict[int, Bools] = {}
        self._files = file_numbers(task)
        files = self._file_tracker.scan(task, in_memory=self._shared_in_rounds)
        total = sum(scan.send.size for scan in files)
        for pid, mm in task.processes.items():
            for vma in mm.vmas():
                scan = self._scan_vma(task, pid, vma, claimed, final=False)
                total += int(np.count_nonzero((scan.soft_dirty | scan.shared) & scan.judged))
        return total

    def written_since(self, task: Task) -> list[DirtyVma]:
        """Every mapping now, with the pages that were written since the last scan.

        For whoever looks on while a round goes on: changes nothing and decides nothing.
        """
        buffer = np.empty(_AT_ONCE, np.uint64)
        found = []
        for pid in sorted(task.processes):
            mm = task.processes[pid]
            for vma in mm.vmas():
                dirty = np.empty((vma.end - vma.start) // mm.machine.page_size, np.bool_)
                for at in range(0, dirty.size, _AT_ONCE):
                    part = dirty[at : at + _AT_ONCE]
                    start = vma.start + at * mm.machine.page_size
                    entries = mm.pagemap(start, part.size, buffer[: part.size])
                    np.logical_and(
                        self._dirty(pid, start, entries), (entries & _THERE) != 0, out=part
                    )
                found.append(DirtyVma(pid, vma, dirty))
        return found

    def note(self, pid: int, addresses: U64, versions: U64, round_number: int) -> None:
        """These pages went out with these content versions."""
        self._sent[pid].note(addresses, versions, round_number)

    def last_rounds(self, pid: int, addresses: U64) -> NDArray[np.int32]:
        """The round that last sent each page (ascending addresses); -1: never."""
        sent = self._sent.get(pid)
        if sent is None:
            return np.full(addresses.size, -1, dtype=np.int32)
        rounds = sent.find(addresses)[1]
        for k in np.flatnonzero(~np.isin(addresses, sent.addresses)).tolist():
            rounds[k] = self._file_round(pid, int(addresses[k]))
        return rounds

    def note_file(self, number: int, pages: NDArray[np.int64], versions: U64, at: int) -> None:
        """These pages of a file went out in round `at`."""
        self._file_tracker.note(number, pages, versions, at)

    def _file_round(self, pid: int, address: int) -> int:
        """The round that last sent the file's page that a process sees there; -1: none."""
        space, page_size = self._spaces[pid], self._page_size
        for vma in space.vmas:
            if vma.start <= address < vma.end and vma.shared_id in self._files:
                page = vma.pgoff + (address - vma.start) // page_size
                return self._file_tracker.last_round(self._files[vma.shared_id], page)
        return -1

    def _scan_process(
        self,
        task: Task,
        pid: int,
        space: AddressSpace,
        claimed: dict[int, Bools],
        result: RoundScan,
        *,
        first: bool,
        final: bool,
    ) -> None:
        scans = [self._scan_vma(task, pid, vma, claimed, final=final) for vma in space.vmas]
        live = _joined([s.live for s in scans])
        # A process forked since the last round has no parent image: CRIU sends all of it.
        first = first or pid not in self._sent
        sent_versions, sent_rounds = self._sent.get(pid, SentPages()).find(live)
        send_by_vma = []
        at = 0
        for scan in scans:
            before = task.machine.same_content(sent_versions[at : at + scan.live.size])
            at += scan.live.size
            send = scan.judged & (scan.soft_dirty | (first or scan.shared))
            written = scan.judged & (task.machine.same_content(scan.versions) != before)
            send_by_vma.append(scan.live[send])
            result.scanned += scan.scanned
            result.present += scan.present
            result.soft_dirty += int(np.count_nonzero(scan.soft_dirty))
            result.written += int(np.count_nonzero(written))
            # Zeros where the destination never had a page are what it has there.
            blank = (before == NEVER) & (scan.versions == 0)
            result.lost += int(np.count_nonzero(written & ~send & ~blank))
            result.spurious += int(np.count_nonzero(send & ~written))
            result.to_send += send_by_vma[-1].size
            result.skipped += int(np.count_nonzero(scan.judged & ~send))
            result.left += scan.left
        result.vmas += len(scans)
        self._sent[pid] = SentPages(live, sent_versions, sent_rounds)
        result.processes.append(
            ProcessScan(space, live, _joined(send_by_vma), [s for s in send_by_vma if s.size])
        )

    def _scan_vma(
        self, task: Task, pid: int, vma: Vma, claimed: dict[int, Bools], *, final: bool
    ) -> _VmaScan:
        mm = task.processes[pid]
        page_size = mm.machine.page_size
        pages = (vma.end - vma.start) // page_size
        entries = mm.pagemap(vma.start, pages)
        rows, versions = mm.contents(vma.start, pages)
        shared = bool(vma.flags & MAP_SHARED)
        index = np.flatnonzero(dumped(task, vma, entries, rows, self._files))
        soft_dirty = self._dirty(pid, vma.start, entries)[index]
        judged = np.ones(index.size, dtype=np.bool_)
        huge = bool(vma.flags & MAP_HUGETLB)
        # Of a file's mapping there is nothing here: its pages travel with the file.
        unasked = shared and not huge and not self._shared_in_rounds
        unasked &= vma.shared_id not in self._files
        if huge:
            soft_dirty = np.full(index.size, final)
        elif unasked:
            soft_dirty = np.zeros(index.size, dtype=np.bool_)
        if shared:
            judged = _claim(claimed, vma, pages, index)
        left = 0
        if (huge or unasked) and not final:
            left = int(np.count_nonzero(judged))
            judged = np.zeros(index.size, dtype=np.bool_)
        return _VmaScan(
            live=np.uint64(vma.start) + index.astype(np.uint64) * np.uint64(page_size),
            versions=versions[index],
            soft_dirty=soft_dirty,
            judged=judged,
            left=left,
            shared=shared,
            scanned=0 if unasked else pages,
            present=0 if huge else int(np.count_nonzero(entries & PM_PRESENT)),
        )

    def _dirty(self, pid: int, start: int, entries: U64) -> Bools:
        """Per page from `start` on: whether the kernel says that it was written."""
        if not self._by_protection:
            return np.asarray((entries & PM_SOFT_DIRTY) != 0)
        protected = self._protected.get(pid)
        if protected is None:
            return np.ones(entries.size, dtype=np.bool_)
        return protected.written(start, entries.size)


def _left_over(mm: Mm) -> bool:
    """Whether a mapping that is not registered has pages that are still protected.

    Moving a mapping drops its registration and that of a mapping that it merges with, and leaves
    the protections (mremap_userfaultfd_prep(), fs/userfaultfd.c). Such a page is written without
    being told; registered again it would pass for protected, and its next writes be lost.
    """
    page_size = mm.machine.page_size
    return any(
        bool((mm.pagemap(area.start, (area.end - area.start) // page_size) & PM_UFFD_WP).any())
        for area in mm.areas
        if not area.flags & VM_UFFD_WP
    )


def _clear_protections(mm: Mm) -> None:
    """Of a process that is not tracked, by a userfaultfd that is closed again."""
    registered = mm.userfaultfd()
    for start, end in [(area.start, area.end) for area in mm.areas]:
        registered.register(start, end - start)
    registered.close()


def _joined(parts: list[U64]) -> U64:
    return np.concatenate(parts) if parts else _no_addresses()


def _claim(claimed: dict[int, Bools], vma: Vma, pages: int, index: NDArray[np.intp]) -> Bools:
    """Which pages of a shared object this mapping is the first of the scan to send."""
    end = vma.pgoff + pages
    have = claimed.get(vma.shared_id)
    if have is None or have.size < end:
        grown = np.zeros(end, dtype=np.bool_)
        if have is not None:
            grown[: have.size] = have
        have = claimed[vma.shared_id] = grown
    at = vma.pgoff + index
    fresh = ~have[at]
    have[at] = True
    return fresh
