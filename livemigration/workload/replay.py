"""Replays a recorded trace: the same pages at the same addresses, in the same order and time.

Lackey tells addresses, not values, so what is stored is made up (a function of seed and operation,
as everywhere). Stores of one slice to one page are one operation that writes from the first to the
last byte touched: the pages written are exact, bytes may be written that the program skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from livemigration.runs import from_runs, to_runs
from livemigration.units import format_size
from livemigration.workload.base import (
    PRIVATE,
    READ_WRITE,
    ROOT,
    Setting,
    Tally,
    Task,
    Workload,
    WorkloadError,
)
from livemigration.workload.clock import NEVER_NS
from livemigration.workload.content import Content
from livemigration.workload.kernels import U64
from livemigration.workload.spec import TraceSpec
from livemigration.workload.stream import populate
from livemigration.workload.targets import Targets
from livemigration.workload.trace import Records, TraceError, TraceFile
from mm_model import PROT_WRITE, Mm

_GAP_PAGES = 16
"""Touched pages with at most so many untouched ones between them share a mapping."""
_BATCH_RECORDS = 1024
_SECOND_NS = 10**9


class TraceClock:
    """Due times of a trace's records: instructions at a rate, in a loop if wanted."""

    def __init__(self, trace: TraceFile, speed: Fraction, *, loop: bool) -> None:
        self._trace = trace
        self._loop = loop
        self._records = trace.footer.records
        rate = trace.header.instructions_per_second * speed
        self._ns_per_instruction = _SECOND_NS / rate

    def due_ns(self, k: int) -> int:
        """floor(instruction / rate), the loop's earlier turns included."""
        if self._records == 0 or (k >= self._records and not self._loop):
            return NEVER_NS
        turn, record = divmod(k, self._records)
        time = turn * self._trace.period + self._trace.time_of(record)
        return int(time * self._ns_per_instruction)

    def due_before(self, until_ns: int) -> int:
        """Records of the whole turns and of the one that ``until_ns`` cuts."""
        if self._records == 0 or until_ns <= 0:
            return 0
        end = -int(-until_ns // self._ns_per_instruction)  # first instruction that is too late
        turn, rest = divmod(end, self._trace.period)
        if turn and not self._loop:
            return self._records
        return turn * self._records + self._trace.records_before(rest)


class TraceWorkload(Workload):
    """The stores of a recorded program."""

    def __init__(self, spec: TraceSpec, setting: Setting) -> None:
        trace = TraceFile(setting.base_dir / spec.file)
        super().__init__(
            setting,
            TraceClock(trace, Fraction(spec.speed), loop=spec.loop),
            Content.of(spec),
        )
        self._trace = trace
        self._payload_key = setting.key("trace payload")
        self._pages = self._touched()
        self._left_out: U64 = np.zeros(0, dtype=np.uint64)
        """Addresses uint64[n] of pages that are not stored to, ascending."""

    @property
    def peak_pages(self) -> int:
        """The pages that the trace touches."""
        return int(self._pages.size)

    def setup(self, task: Task, *, populate: bool, from_image: bool = False) -> None:
        """See `Workload.setup`: maps what the trace touches, populates the pages it touches."""
        mm, page_size = task.processes[ROOT], self.setting.page_size
        if from_image:
            self._adopt_image(mm)
            return
        for start, length in self._mappings():
            mm.mmap(start, length, READ_WRITE, PRIVATE)
        if populate and self._pages.size:
            self._fill(task, Targets.of_table(self._pages, page_size))

    def _adopt_image(self, mm: Mm) -> None:
        """Map what is missing, and find out what must not be written."""
        vmas = mm.vmas()
        starts = np.array([vma.start for vma in vmas], dtype=np.uint64)
        ends = np.array([vma.end for vma in vmas], dtype=np.uint64)
        writable = np.array([bool(vma.prot & PROT_WRITE) for vma in vmas], dtype=np.bool_)
        at = np.searchsorted(starts, self._pages, side="right") - 1
        mapped = at >= 0
        mapped[mapped] = self._pages[mapped] < ends[at[mapped]]
        allowed = ~mapped
        allowed[mapped] = writable[at[mapped]]
        if not (mapped & allowed).any():
            raise WorkloadError(
                "source.images has none of the pages that the trace writes; record the program "
                "that was dumped, at the addresses that it had (setarch -R)"
            )
        self._left_out = self._pages[~allowed]
        page_size = self.setting.page_size
        missing, counts = to_runs(self._pages[~mapped], page_size)
        for start, count in zip(missing.tolist(), counts.tolist(), strict=True):
            mm.mmap(start, count * page_size, READ_WRITE, PRIVATE)

    def _fill(self, task: Task, targets: Targets) -> None:
        populate(task.processes[ROOT], targets, self._content, self.setting.seed)

    def _touched(self) -> U64:
        """Addresses of the pages, of this task's page size, that the trace touches."""
        recorded, page_size = self._trace.header.page_size, self.setting.page_size
        if page_size < recorded:
            raise TraceError(
                f"{self._trace.path}: recorded with pages of {recorded} bytes; "
                f"page_size must be at least that, not {page_size}"
            )
        addresses = self._trace.pages * np.uint64(recorded)
        pages = np.unique(addresses // np.uint64(page_size)) * np.uint64(page_size)
        if pages.size > self.setting.pages:
            raise TraceError(
                f"{self._trace.path}: the trace writes {format_size(pages.size * page_size)} "
                f"of memory; memory must be at least that"
            )
        return pages

    def _mappings(self) -> list[tuple[int, int]]:
        """(address, length in bytes) of mappings that hold all pages; small gaps are bridged."""
        page_size = self.setting.page_size
        starts, counts = to_runs(self._pages, page_size)
        found: list[tuple[int, int]] = []
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            end = start + count * page_size
            if found and start - sum(found[-1]) <= _GAP_PAGES * page_size:
                start = found.pop()[0]
            found.append((start, end - start))
        return found

    def _stores(self, task: Task, first: int, stop: int, tally: Tally) -> None:
        k = first
        while k < stop:
            record = k % self._trace.footer.records
            last = min(self._trace.footer.records, record + stop - k, record + _BATCH_RECORDS)
            for piece in self._trace.records(record, last):
                self._store(task, k, piece, tally)
                k += len(piece)

    def _store(self, task: Task, first: int, records: Records, tally: Tally) -> None:
        """Execute records as operations ``first`` on."""
        recorded = np.uint64(self._trace.header.page_size)
        sizes = (records.last - records.first + np.uint64(1)).astype(np.uint32)
        payload = np.empty(int(sizes.sum()), dtype=np.uint8)
        self._content.bytes(self._payload_key, first, sizes, payload)
        addresses = records.page * recorded + records.first
        places = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        before, mm = tally.stores, task.processes[ROOT]
        for start, stop in self._allowed(addresses):
            # Operations have the numbers of records: those that are left out count, too.
            tally.stores = before + start
            part = payload[places[start] : places[stop]]
            tally.faults += mm.store(addresses[start:stop], sizes[start:stop], part)
            tally.bytes += part.size
        tally.stores = before + len(records)

    def _allowed(self, addresses: U64) -> Iterator[tuple[int, int]]:
        """Runs [start, stop) of stores that are made, as indices of ``addresses`` uint64[n]."""
        if not self._left_out.size:
            yield 0, addresses.size
            return
        size = np.uint64(self.setting.page_size)
        made = ~np.isin(addresses // size * size, self._left_out)
        edges = np.flatnonzero(np.diff(made, prepend=False, append=False))
        yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)

    def _extra_state(self) -> dict[str, Any]:
        starts, counts = to_runs(self._left_out, self.setting.page_size)
        runs = zip(starts.tolist(), counts.tolist(), strict=True)
        return {"left_out": [list(run) for run in runs]} if starts.size else {}

    def _restore_extra(self, state: Mapping[str, Any]) -> None:
        runs = np.array(state.get("left_out", []), dtype=np.uint64).reshape(-1, 2)
        starts, counts = runs[:, 0].copy(), runs[:, 1].copy()
        self._left_out = from_runs(starts, counts, self.setting.page_size)
