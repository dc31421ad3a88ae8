"""The source's tracker asks the kernel in one of two ways and answers in the same terms."""

from __future__ import annotations

import numpy as np
import pytest

from livemigration.task import Task
from mm_model import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    PM_UFFD_WP,
    PROT_READ,
    PROT_WRITE,
    Machine,
    ModelConfig,
)
from source_node.tracker import RoundScan, Tracker

PAGE = 4096
NPAGES = 8
KINDS = pytest.mark.parametrize("kind", ["soft-dirty", "uffd-wp"])


class Host:
    """A task with one mapping of pages that all have content."""

    def __init__(self, kind: str) -> None:
        self.task = Task(Machine(ModelConfig(frames=256)))
        self.mm = self.task.processes[1]
        access = PROT_READ | PROT_WRITE
        self.start = self.mm.mmap(None, NPAGES * PAGE, access, MAP_PRIVATE | MAP_ANONYMOUS)
        self.stamp = 0
        self.write(*range(NPAGES))
        self.tracker = Tracker(kind)

    def write(self, *pages: int, pid: int = 1) -> None:
        self.stamp += 1
        where = np.uint64(self.start) + np.array(pages, np.uint64) * np.uint64(PAGE)
        self.task.processes[pid].store_words(where, np.full(len(pages), self.stamp, np.uint64))

    def round(self, number: int) -> RoundScan:
        scan = self.tracker.scan(self.task, first=number == 0)
        for pid, process in zip(sorted(self.task.processes), scan.processes, strict=True):
            mm = self.task.processes[pid]
            versions = mm.versions(self.start, NPAGES)[
                ((process.send - np.uint64(self.start)) // np.uint64(PAGE)).astype(np.int64)
            ]
            self.tracker.note(pid, process.send, versions, number)
        self.tracker.reset(self.task)
        return scan


@KINDS
def test_rounds_send_what_was_written_since_the_one_before(kind: str) -> None:
    host = Host(kind)
    assert host.round(0).to_send == NPAGES
    host.write(2, 5)
    assert host.tracker.count_dirty(host.task) == 2
    second = host.round(1)
    assert (second.to_send, second.lost, second.spurious) == (2, 0, 0)
    assert host.round(2).to_send == 0


@KINDS
def test_new_process_is_sent_whole_and_then_tracked(kind: str) -> None:
    host = Host(kind)
    host.round(0)
    child = host.task.fork(1)
    assert host.round(1).processes[1].send.size == NPAGES
    host.write(4, pid=child)
    assert [process.send.size for process in host.round(2).processes] == [0, 1]
    host.task.exit(child)
    assert len(host.round(3).processes) == 1


def test_task_that_stays_is_no_longer_protected_and_can_be_tracked_again() -> None:
    host = Host("uffd-wp")
    host.round(0)
    assert (host.mm.pagemap(host.start, NPAGES) & PM_UFFD_WP).all()
    host.tracker.stop(host.task)
    assert not (host.mm.pagemap(host.start, NPAGES) & PM_UFFD_WP).any()
    host.tracker = Tracker("uffd-wp")
    host.round(0)
    host.write(1)
    assert host.round(1).to_send == 1
