"""What this host's memory and kernel take per page: CPU time of this thread, in nanoseconds.

The same code as in a migration at the source (`livemigration.host`, `source_node.host_tracker`,
`livemigration.packing`), on a mapping of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from livemigration import batch
from livemigration.digest import page_digests
from livemigration.host.memory import HostMm, host_memory, host_task
from livemigration.packing import encode, pack_from
from livemigration.task import ROOT_PID, Task
from mm_model import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from predump.calibration.sample import Sample
from source_node.host_tracker import HostTracker

U64 = NDArray[np.uint64]

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
KIB = 1024
_BASE = 0x10_0000_0000
_WRITTEN_SHARE = 10
"""One page in so many is written between two scans, anywhere: a round that is well under way."""


def _ns(action: Callable[[], object]) -> int:
    """CPU time of one call in this thread."""
    start = time.thread_time_ns()
    action()
    return time.thread_time_ns() - start


class _Memory:
    """A task's memory of `pages` untouched pages, and orders to write them in."""

    def __init__(self, pages: int, seed: int = 1) -> None:
        self.task: Task = host_task(pages, PAGE_SIZE)
        self.mm: HostMm = host_memory(self.task)
        self.mm.mmap(_BASE, pages * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
        self.pages = pages
        self.method = self.mm.machine.written.method
        self._random = np.random.default_rng(seed)
        self._value = 0

    def mixed(self, count: int) -> U64:
        """Addresses of so many different pages in no order."""
        numbers = self._random.permutation(self.pages)[:count].astype(np.uint64)
        return np.uint64(_BASE) + numbers * np.uint64(PAGE_SIZE)

    def write(self, addresses: U64) -> int:
        """One word into each page; returns the faults."""
        self._value += 1
        return self.mm.store_words(addresses, np.full(addresses.size, self._value, np.uint64))


def measure_memory(pages: int, repeats: int) -> tuple[str, dict[str, Sample]]:
    """Everything that can be measured in this process: (how writes are tracked, samples by name).

    `BadRequest` where the kernel cannot track, `NoSpace` where there is no room.
    """
    memory = _Memory(pages)
    samples: dict[str, list[float]] = {name: [] for name in _WHAT}
    try:
        first = _ns(lambda: memory.write(memory.mixed(pages)))
        memory.mm.machine.written.reset()  # compiled code and the kernel's tables are warm now
        for _ in range(repeats):
            samples["write_fault"].append(_fault(memory))
            _scan(memory, samples)
            _bytes(memory, samples)
        samples["first_touch"] = [first / pages, *(_touch(pages // 4) for _ in range(repeats - 1))]
        method = memory.method
    finally:
        memory.task.release()
    return method, {name: Sample(*_WHAT[name], values) for name, values in samples.items()}


_WHAT = {
    "first_touch": ("the first store into a page, pages in no order", "ns per page"),
    "write_fault": (
        "a store into a write-protected page less one into a page that is not, in no order",
        "ns per fault",
    ),
    "scan": ("the tracker's scan, one page in 10 written", "ns per page"),
    "write_protect": ("the tracker's reset after it", "ns per page"),
    "gather": ("packing and encoding batches of the written pages", "ns per KiB"),
    "memcpy": ("a copy of all of the memory", "ns per KiB"),
    "hash": ("XXH3 of each page", "ns per page"),
}


def _fault(memory: _Memory) -> float:
    memory.mm.machine.written.reset()
    where = memory.mixed(memory.pages)
    with_faults = _ns(lambda: memory.write(where))
    without = _ns(lambda: memory.write(where))
    return (with_faults - without) / memory.pages


def _scan(memory: _Memory, samples: dict[str, list[float]]) -> None:
    tracker = HostTracker()
    tracker.scan(memory.task, first=True)
    tracker.reset(memory.task)
    memory.write(memory.mixed(max(1, memory.pages // _WRITTEN_SHARE)))
    start = time.thread_time_ns()
    scan = tracker.scan(memory.task, first=False)
    samples["scan"].append((time.thread_time_ns() - start) / memory.pages)
    samples["write_protect"].append(_ns(lambda: tracker.reset(memory.task)) / memory.pages)
    send = scan.processes[0].send
    samples["gather"].append(_ns(lambda: _gather(memory, send)) * KIB / (send.size * PAGE_SIZE))


def _gather(memory: _Memory, addresses: U64) -> None:
    most = batch.BATCH_BYTES // PAGE_SIZE
    for at in range(0, addresses.size, most):
        packing = pack_from(memory.task.processes[ROOT_PID], addresses[at : at + most])
        encode(packing, memory.mm.machine.content, sequence=1, round_number=1, pid=ROOT_PID)


def _bytes(memory: _Memory, samples: dict[str, list[float]]) -> None:
    content = memory.mm.machine.content
    half = content.shape[0] // 2
    target = np.ones((half, PAGE_SIZE), np.uint8)
    taken = _ns(lambda: np.copyto(target, content[:half]))
    samples["memcpy"].append(taken * KIB / target.size)
    rows = np.arange(1, memory.pages + 1, dtype=np.int64)
    samples["hash"].append(_ns(lambda: page_digests(content, rows)) / memory.pages)


def _touch(pages: int) -> float:
    fresh = _Memory(max(1, pages))
    try:
        where = fresh.mixed(fresh.pages)
        return _ns(lambda: fresh.write(where)) / fresh.pages
    finally:
        fresh.task.release()
