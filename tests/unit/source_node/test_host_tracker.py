"""Rounds of a task in real memory, judged by the stamps of its stores."""

from __future__ import annotations

import numpy as np

from livemigration.host.memory import host_memory, host_task
from livemigration.task import Task
from mm_model import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from source_node.host_tracker import HostTracker
from source_node.tracker import RoundScan
from tests.unit.host.kernel_here import BASE, PAGE, needs

pytestmark = needs("wp-async")
PAGES = 8


class Source:
    """A task of eight pages, seven of them written, migrated round by round by hand."""

    def __init__(self, forget: int = 0) -> None:
        self.task: Task = host_task(PAGES, PAGE, forget=forget)
        self.mm = host_memory(self.task)
        self.mm.mmap(BASE, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
        self.tracker = HostTracker()
        self.number = -1
        self.write(*range(7))

    def write(self, *numbers: int, value: int = 1) -> None:
        where = np.uint64(BASE) + np.array(numbers, np.uint64) * np.uint64(PAGE)
        self.mm.store_words(where, np.full(len(numbers), value, np.uint64))

    def round(self, *, first: bool = False) -> RoundScan:
        self.number += 1
        scan = self.tracker.scan(self.task, first=first)
        self.tracker.reset(self.task)
        process = scan.processes[0]
        numbers = self.numbers(process.send)
        self.tracker.note(1, process.send, self.mm.versions(BASE, PAGES)[numbers], self.number)
        return scan

    def numbers(self, addresses: np.ndarray) -> list[int]:
        return ((addresses - np.uint64(BASE)) // np.uint64(PAGE)).astype(int).tolist()

    def sent(self, scan: RoundScan) -> list[int]:
        return self.numbers(scan.processes[0].send)


def test_round_0_sends_what_is_there_and_later_rounds_what_was_written() -> None:
    source = Source()
    first = source.round(first=True)
    assert source.sent(first) == list(range(7))
    assert (first.scanned, first.present, first.written, first.lost) == (8, 7, 7, 0)
    source.write(2, 7, value=2)
    assert source.tracker.count_dirty(source.task) == 2
    second = source.round()
    assert source.sent(second) == [2, 7]
    assert (second.soft_dirty, second.written, second.skipped) == (2, 2, 6)
    assert (second.lost, second.spurious) == (0, 0)
    assert source.round().to_send == 0


def test_a_page_written_with_the_bytes_that_it_had_is_sent_for_nothing() -> None:
    source = Source()
    source.round(first=True)
    source.write(3)
    scan = source.round()
    assert (scan.to_send, scan.spurious, scan.written) == (1, 1, 0)


def test_what_the_kernel_does_not_tell_is_lost_by_the_tracks_own_record() -> None:
    source = Source(forget=3)
    source.round(first=True)
    source.write(1, 2, 5, value=2)
    scan = source.round()
    assert source.sent(scan) == [5]
    assert (scan.lost, scan.written) == (2, 3)
    addresses = np.uint64(BASE) + np.array([1, 5, 7], np.uint64) * np.uint64(PAGE)
    assert source.tracker.last_rounds(1, addresses).tolist() == [0, 1, -1]


def test_a_task_that_stays_is_no_longer_protected_and_can_be_tracked_again() -> None:
    source = Source()
    source.round(first=True)
    source.tracker.stop(source.task)
    where = np.uint64(BASE) + np.arange(7, dtype=np.uint64) * np.uint64(PAGE)
    assert source.mm.store_words(where, np.full(7, 9, np.uint64)) == 0  # no faults
    source.tracker = HostTracker()
    assert source.round(first=True).to_send == 7
    source.write(4, value=10)
    assert source.sent(source.round()) == [4]
