"""The pages that a post-copy leaves behind, and the answers to the destination that asks for them.

Which pages may come later is CRIU's rule (criu/include/vma.h, vma_entry_can_be_lazy): those of
private anonymous mappings that are not locked. All else - shared memory, hugetlb, files' private
copies - is sent before the task goes on, since userfaultfd does not bring it.

The server answers whatever it is asked: the destination knows what it lacks, and after a broken
stream asks again. That is safe because the task is frozen: a page is the same whenever it is asked
for. What it was asked for is noted only for those who look on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from livemigration.digest import pages_equal
from livemigration.errors import BadRequest
from livemigration.execution import Execution
from livemigration.packing import Packing, encode, pack_from
from livemigration.runs import from_runs, near_pieces, to_runs
from livemigration.snapshot import ProcessDigests, TaskDigests, digests_at, rows_at
from livemigration.spec import MigrationSpec, lazy_of
from livemigration.v1 import common_pb2, destination_node_pb2
from livemigration.verification import ranges
from mm_model import MAP_ANONYMOUS, MAP_HUGETLB, MAP_PRIVATE, Vma
from source_node.tracker import ProcessScan, RoundScan

U64 = NDArray[np.uint64]

_LAZY = MAP_PRIVATE | MAP_ANONYMOUS


def make_plan(spec: MigrationSpec) -> common_pb2.PostCopyPlan:
    """How the destination shall ask for pages."""
    lazy, costs = lazy_of(spec.policy), spec.costs
    return common_pb2.PostCopyPlan(
        prefetch=lazy.prefetch,
        batch_bytes=lazy.batch_bytes(spec.link.bandwidth_bps),
        pivots=lazy.pivots,
        lost_after_ns=lazy.lost_after_ns,
        bandwidth_bps=spec.link.bandwidth_bps,
        latency_ns=spec.link.latency_ns,
        copy_kib_ns=costs.copy_kib,
        fault_ns=costs.remote_fault,
        place_kib_ns=costs.place_kib,
        stream_kib_ns=costs.stream_kib,
        read_back=spec.verify.mode == "bytes",
    )


def may_be_lazy(vma: Vma) -> bool:
    """Whether the pages of a mapping can come after the task goes on."""
    return vma.flags & (_LAZY | MAP_HUGETLB) == _LAZY and not vma.locked and not vma.shared_id


def split_scan(scan: RoundScan) -> tuple[RoundScan, dict[int, U64]]:
    """(the scan without the pages that come later, those by process; of none if it has none)."""
    lazy: dict[int, U64] = {}
    processes = []
    for process in scan.processes:
        later, now = _split(process)
        if later:
            lazy[process.space.pid] = np.concatenate(later)
        send = np.concatenate(now) if now else np.zeros(0, dtype=np.uint64)
        processes.append(replace(process, send=send, send_by_vma=now))
    left = sum(pages.size for pages in lazy.values())
    return replace(scan, processes=processes, to_send=scan.to_send - left), lazy


def _split(process: ProcessScan) -> tuple[list[U64], list[U64]]:
    """The pages to send of each mapping: those that may come later, and those that may not."""
    starts = np.array([vma.start for vma in process.space.vmas], dtype=np.uint64)
    later: list[U64] = []
    now: list[U64] = []
    for pages in process.send_by_vma:
        at = int(np.searchsorted(starts, pages[0], side="right")) - 1
        (later if may_be_lazy(process.space.vmas[at]) else now).append(pages)
    return later, now


@dataclass(slots=True)
class PageServer:
    """Answers requests for the pages of a task that does not run here any more."""

    execution: Execution
    lazy: dict[int, U64]  # by process, ascending
    round_number: int
    note: Callable[[int, U64, U64, int], None]  # process, addresses, versions, round: they went out
    compared: int = 0  # pages whose bytes came back
    bytes_wire: int = 0  # of all answers
    asked: dict[int, NDArray[np.bool_]] = field(default_factory=dict)  # beside `lazy`; see below
    different: list[common_pb2.Mismatch] = field(default_factory=list)  # and are not those here

    @property
    def pages(self) -> int:
        """How many were left behind."""
        return sum(pages.size for pages in self.lazy.values())

    def describe(self, begin: common_pb2.RoundBegin) -> None:
        """Tells the destination which they are."""
        page_size = self.execution.task.machine.page_size
        for process in begin.processes:
            if process.pid in self.lazy:
                starts, pages = to_runs(self.lazy[process.pid], page_size)
                process.lazy_start.extend(starts.tolist())
                process.lazy_pages.extend(pages.tolist())

    def digests(self, whole: TaskDigests) -> tuple[ProcessDigests, ...]:
        """Of the pages left behind, given those of the whole task."""
        page_size = self.execution.task.machine.page_size
        return tuple(
            digests_at(process, self.lazy[process.pid], page_size)
            for process in whole.processes
            if process.pid in self.lazy
        )

    def serve(self, request: destination_node_pb2.PageRequest) -> bytes:
        """The frame that answers; `BadRequest` for pages that were not left behind."""
        task = self.execution.task
        page_size = task.machine.page_size
        starts = np.array(request.run_start, dtype=np.uint64)
        pages = np.array(request.run_pages, dtype=np.uint64)
        if not starts.size or starts.size != pages.size:
            raise BadRequest(f"page request {request.id} asks for nothing")
        with self.execution.lock:
            addresses = from_runs(starts, pages, page_size)
            at = self._check(request.pid, addresses)
            mm = task.processes[request.pid]
            packing = _joined([pack_from(mm, piece) for piece in near_pieces(addresses, page_size)])
            frame = encode(
                packing,
                task.machine.content,
                sequence=request.id,
                round_number=self.round_number,
                pid=request.pid,
            )
            self.note(request.pid, packing.addresses, packing.versions, self.round_number)
        if request.pid not in self.asked:
            self.asked[request.pid] = np.zeros(self.lazy[request.pid].size, dtype=np.bool_)
        self.asked[request.pid][at] = True
        self.bytes_wire += len(frame)
        return frame

    def compare(self, pages: destination_node_pb2.MemoryChunk) -> None:
        """Byte by byte, what the destination has of these pages and what is here."""
        task = self.execution.task
        page_size = task.machine.page_size
        starts = np.array(pages.run_start, dtype=np.uint64)
        counts = np.array(pages.run_pages, dtype=np.uint64)
        addresses = from_runs(starts, counts, page_size)
        with self.execution.lock:
            self._check(pages.pid, addresses)
            rows = rows_at(task.processes[pages.pid], addresses)
            equal = pages_equal(task.machine.content, rows, pages.pages)
        self.compared += int(addresses.size)
        self.different += ranges(pages.pid, addresses[~equal], page_size)

    def _check(self, pid: int, addresses: U64) -> NDArray[np.intp]:
        """Where the pages are in `lazy`."""
        known = self.lazy.get(pid)
        if known is None or not known.size:
            raise BadRequest(f"process {pid} has no pages that were left behind")
        at = np.minimum(np.searchsorted(known, addresses), known.size - 1)
        if not (known[at] == addresses).all():
            address = int(addresses[int(np.argmin(known[at] == addresses))])
            raise BadRequest(f"page {address:#x} of process {pid} was not left behind")
        return at


def _joined(parts: list[Packing]) -> Packing:
    if len(parts) == 1:
        return parts[0]
    return Packing(
        np.concatenate([p.addresses for p in parts]),
        np.concatenate([p.versions for p in parts]),
        np.concatenate([p.rows for p in parts]),
        np.concatenate([p.run_start for p in parts]),
        np.concatenate([p.run_pages for p in parts]),
        np.concatenate([p.zero_start for p in parts]),
        np.concatenate([p.zero_pages for p in parts]),
    )
