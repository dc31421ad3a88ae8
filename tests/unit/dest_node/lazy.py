"""A task without its pages beside the same task with them: what one does, the other must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dest_node.lazy_task import LazyTask
from dest_node.missing import MissingPages
from livemigration import batch
from livemigration.execution import Execution
from livemigration.layout import describe
from livemigration.snapshot import digest_task, digests_at, live_pages
from livemigration.task import ROOT_PID, Task
from livemigration.v1 import destination_node_pb2
from mm_model import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, Machine, ModelConfig
from source_node.page_server import PageServer

PAGE = 4096
BASE = 0x10_0000_0000
RW = 3
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
U64 = NDArray[np.uint64]


def page(number: int) -> int:
    """Address of a page of the first mapping."""
    return BASE + number * PAGE


def addresses(*numbers: int) -> U64:
    """Of pages of the first mapping."""
    return np.array([page(number) for number in numbers], dtype=np.uint64)


def task_of(pages: int, written: tuple[int, ...] | None = None) -> Task:
    """One process with one private mapping; its pages (all, or these) have content each."""
    task = Task(Machine(ModelConfig(frames=16 * pages + 64, swap_slots=pages)))
    mm = task.processes[ROOT_PID]
    mm.mmap(BASE, pages * PAGE, RW, PRIVATE)
    some = range(pages) if written is None else written
    mm.store_words(addresses(*some), np.array([n + 1 for n in some], dtype=np.uint64))
    return task


@dataclass
class Lazy:
    """A destination that lacks every page of a source's processes, and asks it when it must."""

    source: Task
    task: Task
    missing: MissingPages
    server: PageServer
    asked: int = 0
    faults: list[int] = field(default_factory=list)
    spoil: Callable[[bytes], bytes] = bytes  # what happens to a frame on its way

    @classmethod
    def of(cls, source: Task) -> Lazy:
        """The destination right after the hand-over."""
        machine = source.machine
        task = Task(Machine(machine.config))
        lazy: dict[int, U64] = {}
        for pid, mm in sorted(source.processes.items()):
            if pid not in task.processes:
                task.processes[pid] = task.machine.create_mm()
                task.parents[pid] = source.parents[pid]
            for vma in describe(pid, 0, mm).vmas:
                task.processes[pid].mmap(vma.start, vma.end - vma.start, vma.prot, PRIVATE)
            lazy[pid] = live_pages(mm)[0]
        task.next_pid = source.next_pid
        missing = MissingPages(lazy, machine.page_size)
        missing.expect(
            {
                process.pid: (found.addresses, found.digests)
                for process in digest_task(source).processes
                for found in [digests_at(process, lazy[process.pid], machine.page_size)]
            }
        )
        execution = Execution(source, None, wall=False)  # type: ignore[arg-type]
        return cls(source, task, missing, PageServer(execution, lazy, 0, lambda *_: None))

    @property
    def seen(self) -> Any:
        """The task as its workload sees it."""
        return LazyTask(self.task, self)

    @property
    def mm(self) -> Any:
        """Its first process."""
        return self.seen.processes[ROOT_PID]

    def fetch(self, index: int, position: int) -> None:
        """`lazy_task.Waiting`: brings just this page."""
        self.faults.append(index)
        self.bring(np.array([index]))

    def ask(self, indices: NDArray[np.int64]) -> destination_node_pb2.PageRequest:
        """A request for pages, which are under way from then on."""
        self.asked += 1
        return self.missing.request(self.asked, indices, urgent=False)

    def bring(self, indices: NDArray[np.int64]) -> None:
        """Asks for pages (ascending, of one process) and puts them in place."""
        self.deliver(self.ask(indices))

    def deliver(self, request: destination_node_pb2.PageRequest) -> None:
        """Answers a request and puts the pages in place."""
        frame = batch.decode(self.spoil(self.server.serve(request)))
        batch.check(frame, PAGE)
        self.missing.place(frame, self.task.processes)
