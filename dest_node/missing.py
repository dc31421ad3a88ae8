"""The pages that a task lacks while it runs already, and where in its processes they belong.

Pages are numbered as the source listed them, by process and address. That is how they are asked for
and how they come. Where they belong can change until then, as userfaultfd's events tell CRIU's
lazy-pages daemon (criu/uffd.c): memory is unmapped or given back (the page is not needed there any
more), moved, or forked (it is needed in both processes).

Nothing that comes is taken for what the source had: every page's digest is made here, from this
host's own page tables, before the task sees the page, and compared with the digest that the source
sent before it handed the task over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dest_node.prefetch import ASKED, DROPPED, HERE, MISSING, Indices
from livemigration.batch import Frame
from livemigration.compiled import compiled
from livemigration.digest import gather_bytes, page_digests
from livemigration.errors import BadRequest, DamagedFrame
from livemigration.runs import from_runs, to_runs
from livemigration.snapshot import rows_at
from livemigration.v1 import common_pb2, destination_node_pb2
from livemigration.verification import ranges
from mm_model import Mm

U64 = NDArray[np.uint64]

_NO_PAGES = np.zeros(0, dtype=np.uint64)
_NO_INDICES = np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class Runs:
    """Runs of pages of one process: address, pages, number of the first page; by address."""

    start: U64 = field(default_factory=_NO_PAGES.copy)
    pages: U64 = field(default_factory=_NO_PAGES.copy)
    first: Indices = field(default_factory=_NO_INDICES.copy)

    def copy(self) -> Runs:
        """The same for a process forked from this one."""
        return Runs(self.start.copy(), self.pages.copy(), self.first.copy())

    def add(self, more: Runs) -> None:
        """Takes runs in; they lie beside those that there are."""
        start = np.concatenate((self.start, more.start))
        order = np.argsort(start, kind="stable")
        self.start = start[order]
        self.pages = np.concatenate((self.pages, more.pages))[order]
        self.first = np.concatenate((self.first, more.first))[order]

    def take(self, start: int, end: int, page_size: int) -> Runs:
        """Takes out what lies in [start, end) and returns it."""
        size = np.uint64(page_size)
        ends = self.start + self.pages * size
        low = np.minimum(np.maximum(self.start, np.uint64(start)), ends)
        high = np.maximum(np.minimum(ends, np.uint64(end)), self.start)
        inside = low < high
        if not inside.any():
            return Runs()
        low, high = low[inside], high[inside]
        old = Runs(self.start[inside], self.pages[inside], self.first[inside])
        before = ((low - old.start) // size).astype(np.int64)
        after = ((high - old.start) // size).astype(np.int64)
        taken = Runs(low, (high - low) // size, old.first + before)
        left = Runs(old.start, before.astype(np.uint64), old.first)
        right = Runs(high, old.pages - after.astype(np.uint64), old.first + after)
        self.start, self.pages, self.first = (
            self.start[~inside],
            self.pages[~inside],
            self.first[~inside],
        )
        for part in (left, right):
            some = part.pages > 0
            self.add(Runs(part.start[some], part.pages[some], part.first[some]))
        return taken

    def indices(self) -> Indices:
        """The numbers of all pages, in the order of the addresses."""
        counts = self.pages.astype(np.int64)
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self.first, counts) + within

    def where(self, indices: Indices, page_size: int) -> tuple[U64, Indices]:
        """(addresses, ascending; positions in `indices`) of those pages that are here."""
        if not self.start.size:
            return _NO_PAGES, _NO_INDICES
        if self.start.size == 1:
            offset = indices - self.first[0]
            known = np.flatnonzero((offset >= 0) & (offset < np.int64(self.pages[0])))
            return self.start[0] + offset[known].astype(np.uint64) * np.uint64(page_size), known
        order = np.argsort(self.first, kind="stable")
        first = self.first[order]
        at = np.searchsorted(first, indices, side="right") - 1
        run = order[np.maximum(at, 0)]
        offset = indices - self.first[run]
        known = np.flatnonzero((at >= 0) & (offset < self.pages[run].astype(np.int64)))
        addresses = self.start[run[known]] + offset[known].astype(np.uint64) * np.uint64(page_size)
        ascending = np.argsort(addresses, kind="stable")
        return addresses[ascending], known[ascending]


class MissingPages:
    """Which pages are missing, of every process, and what they will be when they come."""

    def __init__(self, lazy: Mapping[int, U64], page_size: int) -> None:
        """lazy: by process, ascending addresses of the pages that the source kept back."""
        self.page_size = page_size
        self._pids = sorted(lazy)
        self._source = {pid: lazy[pid] for pid in self._pids}
        sizes = [self._source[pid].size for pid in self._pids]
        self.borders = np.concatenate((_NO_INDICES, [0], np.cumsum(sizes, dtype=np.int64)))
        self.borders = self.borders.astype(np.int64)
        count = int(self.borders[-1])
        self.states = np.full(count, MISSING, dtype=np.uint8)
        self.touched = np.zeros(count, dtype=np.bool_)
        self.digests = np.zeros(count, dtype=np.uint64)
        self.left = count
        self.dropped = 0
        self.different: list[common_pb2.Mismatch] = []
        self._holders = np.ones(count, dtype=np.int32)
        self._runs: dict[int, Runs] = {}
        for k, pid in enumerate(self._pids):
            starts, pages = to_runs(self._source[pid], page_size)
            first = np.cumsum(pages.astype(np.int64)) - pages.astype(np.int64)
            self._runs[pid] = Runs(starts, pages, first + self.borders[k])

    @property
    def count(self) -> int:
        """All pages that the source kept back."""
        return int(self.states.size)

    def expect(self, digests: Mapping[int, tuple[U64, U64]]) -> None:
        """The source's digests: by process, addresses and digests.

        `BadRequest` if they are not of all lazy pages.
        """
        for k, pid in enumerate(self._pids):
            addresses, values = digests.get(pid, (_NO_PAGES, _NO_PAGES))
            if not np.array_equal(addresses, self._source[pid]):
                raise BadRequest(
                    f"verification: the digests of process {pid} are not those of its lazy pages"
                )
            self.digests[self.borders[k] : self.borders[k + 1]] = values

    # -- what the task does

    def first(self, pid: int, addresses: U64, begin: int) -> tuple[int, int]:
        """(position of the first access from `begin` on that needs a missing page, the page).

        addresses: uint64[n], of anything in the pages. (n, -1) if all are here.
        """
        runs = self._runs.get(pid)
        if runs is None or not runs.start.size or not self.left:
            return addresses.size, -1
        found = _first_missing(
            addresses,
            begin,
            np.uint64(self.page_size),
            runs.start,
            runs.pages,
            runs.first,
            self.states,
            self.touched,
        )
        return int(found[0]), int(found[1])

    def drop(self, pid: int, start: int, end: int) -> None:
        """A process does not need [start, end) any more: unmapped, or given back."""
        runs = self._runs.get(pid)
        if runs is not None:
            self._let_go(runs.take(start, end, self.page_size))

    def move(self, pid: int, start: int, end: int, to: int) -> None:
        """A process moved [start, end) to `to`, where nothing was."""
        runs = self._runs.get(pid)
        if runs is not None:
            moved = runs.take(start, end, self.page_size)
            runs.add(Runs(moved.start - np.uint64(start) + np.uint64(to), moved.pages, moved.first))

    def fork(self, parent: int, child: int) -> None:
        """Both need the pages that the parent lacks."""
        runs = self._runs.get(parent)
        if runs is not None:
            self._runs[child] = runs.copy()
            self._holders[runs.indices()] += 1

    def exit(self, pid: int) -> None:
        """A process is over."""
        runs = self._runs.pop(pid, None)
        if runs is not None:
            self._let_go(runs)

    def _let_go(self, runs: Runs) -> None:
        indices = runs.indices()
        self._holders[indices] -= 1
        gone = indices[(self._holders[indices] == 0) & (self.states[indices] <= ASKED)]
        self.states[gone] = DROPPED
        self.left -= gone.size
        self.dropped += gone.size

    # -- what comes

    def request(
        self, number: int, indices: Indices, *, urgent: bool
    ) -> destination_node_pb2.PageRequest:
        """Asks for missing pages (ascending) of one process; they are under way from now on."""
        k = int(np.searchsorted(self.borders, indices[0], side="right")) - 1
        starts, pages = to_runs(
            self._source[self._pids[k]][indices - self.borders[k]], self.page_size
        )
        self.states[indices] = ASKED
        return destination_node_pb2.PageRequest(
            id=number,
            pid=self._pids[k],
            run_start=starts.tolist(),
            run_pages=pages.tolist(),
            urgent=urgent,
        )

    def place(self, frame: Frame, processes: Mapping[int, Mm]) -> Indices:
        """Puts the pages of a frame where they belong and compares them; returns which they were.

        What does not compare equal is in `different`. `DamagedFrame` for pages that nobody asked
        for.
        """
        if frame.pid not in self._source:
            raise DamagedFrame(f"pages of process {frame.pid}, which has none to come")
        if frame.encodings.size:
            raise DamagedFrame("pages that come after the hand-over come as they are, not encoded")
        base = int(self.borders[self._pids.index(frame.pid)])
        came = [_NO_INDICES]
        for starts, pages, content in (
            (frame.run_start, frame.run_pages, frame.pages),
            (frame.zero_start, frame.zero_pages, None),
        ):
            if not starts.size:
                continue
            addresses = from_runs(starts, pages, self.page_size)
            indices = self._asked_for(frame.pid, addresses, base)
            data = (
                np.zeros((indices.size, self.page_size), dtype=np.uint8)
                if content is None
                else content.reshape(indices.size, self.page_size)
            )
            self._install(indices, data, processes)
            came.append(indices)
        return np.concatenate(came)

    def read_back(
        self, pid: int, indices: Indices, processes: Mapping[int, Mm]
    ) -> destination_node_pb2.MemoryChunk:
        """Pages of one process of the source as they are here now, by their addresses there.

        Without those that no process needs any more.
        """
        base = int(self.borders[self._pids.index(pid)])
        left, runs = np.sort(indices), iter(self._runs.items())
        addresses, data = [_NO_PAGES], [b""]
        while left.size and (holder := next(runs, None)) is not None:
            here, positions = holder[1].where(left, self.page_size)
            if here.size:
                mm = processes[holder[0]]
                addresses.append(self._source[pid][left[positions] - base])
                data.append(gather_bytes(mm.machine.content, rows_at(mm, here)))
                left = np.delete(left, positions)
        where = np.concatenate(addresses)
        return destination_node_pb2.MemoryChunk(
            pid=pid,
            run_start=where.tolist(),
            run_pages=[1] * where.size,
            pages=b"".join(data),
        )

    def _asked_for(self, pid: int, addresses: U64, base: int) -> Indices:
        known = self._source[pid]
        at = np.minimum(np.searchsorted(known, addresses), max(0, known.size - 1))
        indices = at.astype(np.int64) + base
        fits = known[at] == addresses
        # One that was dropped while it was under way is not put anywhere any more.
        fits &= (self.states[indices] == ASKED) | (self.states[indices] == DROPPED)
        if not fits.all():
            address = int(addresses[int(np.argmin(fits))])
            raise DamagedFrame(f"page {address:#x} of process {pid} came, which was not asked for")
        return indices

    def _install(
        self, indices: Indices, data: NDArray[np.uint8], processes: Mapping[int, Mm]
    ) -> None:
        """Pages that are not what the source had stay away from the task: they are never here."""
        good = np.ones(indices.size, dtype=np.bool_)
        for pid, runs in self._runs.items():
            addresses, positions = runs.where(indices, self.page_size)
            if not addresses.size:
                continue
            mm = processes[pid]
            mm.install(addresses, np.ascontiguousarray(data[positions]).reshape(-1))
            own = page_digests(mm.machine.content, rows_at(mm, addresses))
            wrong = own != self.digests[indices[positions]]
            if wrong.any():
                good[positions[wrong]] = False
                self.different += ranges(pid, addresses[wrong], self.page_size)
        came = indices[good & (self.states[indices] == ASKED)]
        self.states[came] = HERE
        self.left -= came.size

    def name(self, page: int) -> str:
        """What people call a page: by where it was at the source."""
        k = int(np.searchsorted(self.borders, page, side="right")) - 1
        address = int(self._source[self._pids[k]][page - int(self.borders[k])])
        return f"page {address:#x} of process {self._pids[k]}"

    def still_missing(self) -> list[common_pb2.Mismatch]:
        """The pages that have not come, as ranges of the processes that need them."""
        found: list[common_pb2.Mismatch] = []
        for pid in sorted(self._runs):
            runs = self._runs[pid]
            addresses = from_runs(runs.start, runs.pages, self.page_size)
            found += ranges(pid, addresses[self.states[runs.indices()] <= ASKED], self.page_size)
        return found


@compiled
def _first_missing(
    addresses: U64,
    begin: int,
    page_size: np.uint64,
    start: U64,
    pages: U64,
    first: Indices,
    states: NDArray[np.uint8],
    touched: NDArray[np.bool_],
) -> tuple[int, int]:
    run = 0
    for n in range(begin, addresses.size):
        address = addresses[n]
        # As the walker's own cache does: stay in a run while addresses do.
        if address < start[run] or (address - start[run]) // page_size >= pages[run]:
            low, high = 0, start.size
            while low < high:
                middle = (low + high) // 2
                if start[middle] <= address:
                    low = middle + 1
                else:
                    high = middle
            if low == 0:
                continue
            run = low - 1
            if (address - start[run]) // page_size >= pages[run]:
                continue
        index = first[run] + np.int64((address - start[run]) // page_size)
        touched[index] = True
        if states[index] <= ASKED:
            return n, index
    return addresses.size, -1
