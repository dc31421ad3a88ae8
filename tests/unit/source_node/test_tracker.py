"""The tracker sends what the kernel's bits say, and the model's own record judges them: a page that
was written and is not sent is *lost*, one that is sent and was not written is *spurious*.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from livemigration.task import Task
from mm_model import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
    Machine,
    ModelConfig,
)
from source_node.tracker import RoundScan, Tracker

PAGE = 4096
BASE = 0x10_0000_0000
SHARED = 0x20_0000_0000
HUGE = 0x30_0000_0000
RW = PROT_READ | PROT_WRITE
U64 = NDArray[np.uint64]


def pages(*numbers: int, base: int = BASE) -> U64:
    return np.array([base + number * PAGE for number in numbers], dtype=np.uint64)


class Source:
    """A task of one process with six written pages, migrated round by round by hand."""

    def __init__(self, hunks_off: frozenset[str] = frozenset()) -> None:
        config = ModelConfig(frames=256, swap_slots=256, hunks_off=hunks_off)
        self.task = Task(Machine(config))
        self.mm = self.task.processes[1]
        self.tracker = Tracker()
        self.number = -1
        self.map(BASE, 8)
        self.write(0, 1, 2, 3, 4, 5)

    def map(self, start: int, count: int) -> None:
        self.mm.mmap(start, count * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)

    def write(self, *numbers: int, value: int = 1, pid: int = 1, base: int = BASE) -> None:
        values = np.full(len(numbers), value, dtype=np.uint64)
        self.task.processes[pid].store_words(pages(*numbers, base=base), values)

    def scan(self) -> RoundScan:
        """A round up to its copy: pagemaps, then clear_refs."""
        self.number += 1
        scan = self.tracker.scan(self.task, first=self.number == 0)
        for mm in self.task.processes.values():
            mm.clear_refs(4)
        return scan

    def send(self, scan: RoundScan) -> None:
        """The copy, with the content that is there now."""
        for process in scan.processes:
            mm = self.task.processes[process.space.pid]
            versions = [int(mm.versions(int(a), 1)[0]) for a in process.send]
            self.tracker.note(
                process.space.pid, process.send, np.array(versions, dtype=np.uint64), self.number
            )

    def round(self) -> RoundScan:
        """A whole round."""
        scan = self.scan()
        self.send(scan)
        return scan


def sent(scan: RoundScan, index: int = 0, *, base: int = BASE) -> list[int]:
    """Numbers of the pages to send of the process with this index."""
    inside = scan.processes[index].send - np.uint64(base)
    return [int(n) // PAGE for n in inside if n < 1 << 30]


def judged(scan: RoundScan) -> tuple[int, int, int, int]:
    return scan.to_send, scan.written, scan.lost, scan.spurious


@pytest.fixture
def source() -> Source:
    return Source()


# -- a sequence by hand


def test_the_first_round_sends_every_page_with_content(source: Source) -> None:
    source.mm.touch(pages(6))  # the zero page; page 7 is a hole
    scan = source.scan()
    assert sent(scan) == [0, 1, 2, 3, 4, 5]
    assert judged(scan) == (6, 6, 0, 0)
    assert (scan.scanned, scan.vmas, scan.skipped) == (8, 1, 0)
    assert scan.processes[0].live.tolist() == pages(0, 1, 2, 3, 4, 5).tolist()


def test_later_rounds_send_what_was_written_since(source: Source) -> None:
    source.round()
    source.write(2, 3, value=2)
    scan = source.round()
    assert sent(scan) == [2, 3]
    assert judged(scan) == (2, 2, 0, 0)
    assert (scan.skipped, scan.soft_dirty) == (4, 2)
    assert judged(source.round()) == (0, 0, 0, 0)


def test_a_page_written_during_the_copy_is_sent_again(source: Source) -> None:
    scan = source.scan()
    source.write(1, value=2)  # before its copy: the new content goes out already
    source.send(scan)
    source.write(4, value=2)  # after it
    scan = source.round()
    assert sent(scan) == [1, 4]
    assert judged(scan) == (2, 1, 0, 1)


def test_a_page_written_with_what_it_held_is_spurious(source: Source) -> None:
    source.round()
    source.write(3, value=1)
    scan = source.round()
    assert sent(scan) == [3]
    assert judged(scan) == (1, 0, 0, 1)


def test_a_page_that_the_kernel_forgets_to_mark_is_lost_until_it_is_sent() -> None:
    source = Source(frozenset({"ptep_set_access_flags"}))
    source.round()
    source.write(2, value=2)
    for _ in range(2):
        scan = source.round()
        assert 2 not in sent(scan)
        assert (scan.written, scan.lost) == (1, 1)
    assert source.tracker.last_rounds(1, pages(2)).tolist() == [0]


def test_a_lost_page_that_is_gone_is_lost_no_more() -> None:
    source = Source(frozenset({"ptep_set_access_flags"}))
    source.round()
    source.write(2, value=2)
    assert source.round().lost == 1
    source.mm.madvise(BASE + 2 * PAGE, PAGE, MADV_DONTNEED)
    assert source.round().lost == 0


def test_every_page_knows_the_round_that_sent_it_last(source: Source) -> None:
    source.round()
    source.write(2, value=2)
    source.round()
    source.write(2, 5, value=3)
    source.round()
    rounds = source.tracker.last_rounds(1, pages(0, 1, 2, 5, 6, 7)).tolist()
    assert rounds == [0, 0, 2, 2, -1, -1]
    assert source.tracker.last_rounds(9, pages(0, 1)).tolist() == [-1, -1]


# -- other memory


def test_pages_that_are_gone_are_neither_sent_nor_lost(source: Source) -> None:
    source.round()
    source.write(1, 2, value=2)
    source.mm.munmap(BASE + PAGE, PAGE)
    source.mm.madvise(BASE + 2 * PAGE, PAGE, MADV_DONTNEED)
    scan = source.round()
    assert sent(scan) == []
    assert judged(scan) == (0, 0, 0, 0)
    assert scan.processes[0].live.tolist() == pages(0, 3, 4, 5).tolist()


def test_a_new_mapping_is_sent_and_with_it_the_neighbours_that_the_kernel_joins_to_it(
    source: Source,
) -> None:
    """mmap marks the whole VMA that comes out of the merge (VM_SOFTDIRTY)."""
    source.round()
    source.map(BASE + PAGE, 2)
    source.write(1, value=1)
    scan = source.round()
    assert sent(scan) == [0, 1, 3, 4, 5]
    assert judged(scan) == (5, 1, 0, 4)


@pytest.mark.parametrize("back", [True, False])
def test_a_swapped_page_keeps_its_mark(source: Source, back: bool) -> None:
    source.round()
    source.write(3, value=2)
    source.mm.madvise(BASE, 6 * PAGE, MADV_PAGEOUT)
    if back:
        source.mm.touch(pages(*range(6)))
    scan = source.round()
    assert sent(scan) == [3]
    assert judged(scan) == (1, 1, 0, 0)


def test_a_child_is_sent_whole_when_it_is_first_seen(source: Source) -> None:
    source.round()
    child = source.task.fork(1)
    source.write(4, value=2, pid=child)
    scan = source.round()
    assert [p.space.pid for p in scan.processes] == [1, child]
    assert sent(scan, 0) == []
    assert sent(scan, 1) == [0, 1, 2, 3, 4, 5]
    source.write(5, value=3, pid=child)
    assert sent(source.round(), 1) == [5]


def test_a_process_that_ended_is_forgotten(source: Source) -> None:
    child = source.task.fork(1)
    source.round()
    source.task.exit(child)
    assert len(source.round().processes) == 1
    assert source.tracker.last_rounds(child, pages(0)).tolist() == [-1]


def share(source: Source) -> int:
    """Four shared pages, three of them written, by two processes; the second one's pid."""
    shared = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED
    number = source.task.machine.create_shared(4)
    source.mm.mmap(SHARED, 4 * PAGE, RW, shared, shared_id=number)
    source.write(0, 2, base=SHARED)
    child = source.task.fork(1)
    source.write(3, base=SHARED, pid=child)
    return child


def test_shared_memory_waits_for_the_final_round_and_goes_once(source: Source) -> None:
    """As CRIU does, whose pre-dumps do not look at it: nothing follows who wrote it."""
    child = share(source)
    first = source.round()
    assert (sent(first, 0, base=SHARED), sent(first, 1, base=SHARED)) == ([], [])
    assert (first.to_send, first.left, first.skipped, first.soft_dirty) == (12, 3, 0, 12)
    assert first.scanned == 16  # of the private mappings alone
    assert first.processes[0].live.size == 9  # the destination is told of all
    source.write(2, value=9, base=SHARED, pid=child)
    second = source.round()
    assert (second.to_send, second.left, second.written, second.lost) == (0, 3, 0, 0)
    assert source.tracker.count_dirty(source.task) == 0
    final = source.tracker.scan(source.task, first=False, final=True)
    assert (sent(final, 0, base=SHARED), sent(final, 1, base=SHARED)) == ([0, 2, 3], [])
    assert judged(final) == (3, 3, 0, 0)
    assert final.left == 0


def test_shared_memory_in_every_round_goes_once_per_object(source: Source) -> None:
    source.tracker = Tracker(shared_in_rounds=True)
    child = share(source)
    scan = source.round()
    assert sent(scan, 0, base=SHARED) == [0, 2, 3]
    assert sent(scan, 1, base=SHARED) == []
    source.write(2, value=9, base=SHARED, pid=child)
    assert source.tracker.count_dirty(source.task) == 3
    scan = source.round()
    assert sent(scan, 0, base=SHARED) == [0, 2, 3]
    assert (scan.written, scan.lost, scan.spurious, scan.left) == (1, 0, 2, 0)


def test_protections_that_a_move_leaves_behind_hide_no_write() -> None:
    """A mapping that moves back to its neighbour takes the neighbour's registration with it."""
    source = Source()
    source.tracker = Tracker("uffd-wp")

    def round_() -> list[int]:
        scan = source.tracker.scan(source.task, first=source.number == -1)
        source.number += 1
        source.tracker.reset(source.task)
        source.send(scan)
        assert scan.lost == 0
        return sent(scan)

    move = MREMAP_MAYMOVE | MREMAP_FIXED
    assert round_() == [0, 1, 2, 3, 4, 5]
    source.mm.mremap(BASE + 4 * PAGE, 4 * PAGE, 4 * PAGE, move, BASE + 100 * PAGE)
    assert round_() == [100, 101]
    source.mm.mremap(BASE + 100 * PAGE, 4 * PAGE, 4 * PAGE, move, BASE + 4 * PAGE)
    source.write(1, value=2)
    assert round_() == [0, 1, 2, 3, 4, 5]
    source.write(1, value=3)
    assert round_() == [1]


# -- counting


@pytest.mark.parametrize(
    "change",
    [
        lambda s: None,
        lambda s: s.write(1, 4, value=7),
        lambda s: s.write(1, value=1),
        lambda s: s.mm.munmap(BASE, 2 * PAGE),
        lambda s: (s.map(BASE + 20 * PAGE, 4), s.write(21, 22)),
    ],
)
def test_counting_says_what_a_scan_would_send_and_changes_nothing(
    source: Source, change: Callable[[Source], object]
) -> None:
    source.round()
    change(source)
    first = source.tracker.count_dirty(source.task)
    assert source.tracker.count_dirty(source.task) == first
    assert source.round().to_send == first


def test_hugetlb_memory_is_sent_in_full_in_the_final_round_only() -> None:
    """clear_refs does not reach it, so no scan can say what of it was written since the last."""
    source = Source()
    huge = MAP_HUGETLB | 16 << MAP_HUGE_SHIFT
    private = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | huge
    source.mm.mmap(HUGE, 64 << 10, RW, private)
    source.mm.mmap(HUGE + (1 << 20), 64 << 10, RW, private & ~MAP_PRIVATE | MAP_SHARED)
    source.write(0, base=HUGE)
    source.write(0, base=HUGE + (1 << 20))
    first = source.round()
    assert (first.to_send, first.left) == (6, 32)
    assert first.processes[0].live.size == 6 + 16 + 16
    source.write(1, base=HUGE)
    second = source.scan()
    assert (second.to_send, second.lost, second.skipped) == (0, 0, 6)
    assert source.tracker.count_dirty(source.task) == 0
    final = source.tracker.scan(source.task, first=False, final=True)
    assert (final.to_send, final.lost, final.left) == (32, 0, 0)
    assert [int(sent.size) for sent in final.processes[0].send_by_vma] == [16, 16]


def test_shared_hugetlb_memory_goes_once_whoever_maps_it() -> None:
    source = Source()
    huge = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED | MAP_HUGETLB | 16 << MAP_HUGE_SHIFT
    source.mm.mmap(HUGE, 64 << 10, RW, huge)
    source.write(0, base=HUGE)
    source.task.fork(1)
    final = source.tracker.scan(source.task, first=False, final=True)
    sent = [process.send[process.send >= HUGE].size for process in final.processes]
    assert sum(sent) == 16
