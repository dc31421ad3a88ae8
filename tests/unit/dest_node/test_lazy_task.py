"""A workload on a task without pages: accesses wait, and the address space may change meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

from dest_node.prefetch import DROPPED
from livemigration.snapshot import digest_task
from mm_model import (
    MADV_COLD,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_POPULATE_WRITE,
    MADV_WIPEONFORK,
    PROT_READ,
    MmError,
    SegFault,
)
from tests.unit.dest_node.lazy import PAGE, PRIVATE, RW, Lazy, addresses, page, task_of

VALUES = np.array([71, 72, 73, 74], dtype=np.uint64)


@pytest.fixture
def lazy() -> Lazy:
    return Lazy.of(task_of(8))


def word(lazy: Lazy, number: int, offset: int = 0) -> int:
    return int.from_bytes(lazy.task.processes[1].peek(page(number) + offset, 8), "little")


def test_a_store_waits_for_its_page_and_keeps_the_rest_of_it(lazy: Lazy) -> None:
    lazy.mm.store_words(addresses(2) + np.uint64(8), VALUES[:1])
    assert lazy.faults == [2]
    assert (word(lazy, 2), word(lazy, 2, 8)) == (3, 71)


def test_a_batch_waits_once_for_each_page_and_in_order(lazy: Lazy) -> None:
    lazy.mm.store_words(addresses(5, 1, 5, 0), VALUES)
    assert lazy.faults == [5, 1, 0]
    assert [word(lazy, n) for n in (5, 1, 0)] == [73, 72, 74]


def test_stores_of_different_sizes_get_their_own_bytes(lazy: Lazy) -> None:
    sizes = np.array([2, 3, 1], dtype=np.uint32)
    lazy.mm.store(addresses(0, 1, 2), sizes, np.arange(65, 71, dtype=np.uint8))
    mm = lazy.task.processes[1]
    assert [mm.peek(page(n), 3)[:size] for n, size in enumerate(sizes)] == [b"AB", b"CDE", b"F"]


def test_a_read_waits_too(lazy: Lazy) -> None:
    lazy.mm.touch(addresses(3, 3, 4))
    assert lazy.faults == [3, 4]


def test_a_page_that_came_meanwhile_is_not_waited_for(lazy: Lazy) -> None:
    lazy.bring(np.array([2, 3]))
    lazy.mm.touch(addresses(2, 3))
    assert lazy.faults == []


def test_stores_before_one_that_is_not_allowed_are_done(lazy: Lazy) -> None:
    lazy.mm.mprotect(page(1), PAGE, PROT_READ)
    with pytest.raises(SegFault):
        lazy.mm.store_words(addresses(0, 1, 2), VALUES[:3])
    assert (word(lazy, 0), word(lazy, 1)) == (71, 2)
    assert 2 not in lazy.faults


def test_unmapped_pages_are_not_waited_for(lazy: Lazy) -> None:
    lazy.mm.munmap(page(2), 2 * PAGE)
    assert lazy.missing.states[2:4].tolist() == [DROPPED, DROPPED]
    lazy.mm.mmap(page(2), PAGE, RW, PRIVATE)
    lazy.mm.store_words(addresses(2), VALUES[:1])
    assert (lazy.faults, word(lazy, 2)) == ([], 71)


def test_pages_given_back_read_as_zeros(lazy: Lazy) -> None:
    lazy.mm.madvise(page(0), 4 * PAGE, MADV_DONTNEED)
    lazy.mm.touch(addresses(0, 1, 2, 3))
    assert (lazy.faults, word(lazy, 3)) == ([], 0)


def test_a_mapping_over_pages_drops_them(lazy: Lazy) -> None:
    lazy.mm.mmap(page(0), 2 * PAGE, RW, PRIVATE)
    lazy.mm.touch(addresses(0, 1, 2))
    assert lazy.faults == [2]


def test_given_back_up_to_the_mapping_that_refuses(lazy: Lazy) -> None:
    lazy.mm.mlock(page(4), PAGE)
    assert lazy.faults == [4]  # locked memory is all there
    with pytest.raises(MmError):
        lazy.mm.madvise(page(2), 6 * PAGE, MADV_DONTNEED)
    lazy.mm.touch(addresses(2, 3, 5))
    assert lazy.faults == [4, 5]


def test_given_back_over_a_gap_although_the_call_fails(lazy: Lazy) -> None:
    lazy.mm.munmap(page(3), PAGE)
    with pytest.raises(MmError):
        lazy.mm.madvise(page(2), 4 * PAGE, MADV_DONTNEED)
    lazy.mm.touch(addresses(2, 4, 5, 6))
    assert lazy.faults == [6]


def test_a_move_that_fails_half_way_drops_what_it_unmapped(lazy: Lazy) -> None:
    lazy.mm.munmap(page(5), PAGE)
    with pytest.raises(MmError):  # not one mapping; but the target was unmapped before
        lazy.mm.mremap(page(4), 3 * PAGE, 3 * PAGE, 3, page(0))
    assert lazy.missing.states[:3].tolist() == [DROPPED] * 3
    assert lazy.missing.left == 4


def test_moved_pages_are_waited_for_where_they_are(lazy: Lazy) -> None:
    lazy.mm.mremap(page(1), 2 * PAGE, 2 * PAGE, 3, page(30))
    lazy.mm.store_words(np.array([page(31)], dtype=np.uint64), VALUES[:1])
    assert (lazy.faults, word(lazy, 31)) == ([2], 71)


def test_a_mapping_that_shrinks_while_it_moves_drops_its_end(lazy: Lazy) -> None:
    lazy.mm.mremap(page(0), 4 * PAGE, 2 * PAGE, 3, page(30))
    lazy.mm.touch(np.array([page(30), page(31)], dtype=np.uint64))
    assert (lazy.faults, lazy.missing.dropped) == ([0, 1], 2)


def test_a_heap_that_shrinks_drops_its_end() -> None:
    source = task_of(2)
    mm = source.processes[1]
    heap = page(100)
    mm.set_brk_base(heap)
    mm.brk(heap + 3 * PAGE)
    mm.store_words(addresses(100, 101, 102), VALUES[:3])
    lazy = Lazy.of(source)
    lazy.task.processes[1].restore_brk(heap, heap + 3 * PAGE)
    lazy.mm.brk(heap + PAGE + 8)
    assert lazy.missing.states.tolist() == [0, 0, 0, 0, DROPPED]
    lazy.mm.brk(heap + 3 * PAGE)
    lazy.mm.touch(addresses(101, 102))
    assert lazy.faults == [3]


@pytest.mark.parametrize("advice", [MADV_FREE, MADV_POPULATE_WRITE])
def test_advice_that_works_on_pages_waits_for_them(lazy: Lazy, advice: int) -> None:
    lazy.mm.madvise(page(1), 2 * PAGE, advice)
    assert lazy.faults == [1, 2]


def test_advice_for_what_is_there_waits_for_nothing(lazy: Lazy) -> None:
    lazy.mm.madvise(page(0), 8 * PAGE, MADV_COLD)
    assert lazy.faults == []


def test_a_child_waits_for_what_its_parent_lacked(lazy: Lazy) -> None:
    child = lazy.seen.fork(1)
    lazy.seen.processes[child].store_words(addresses(3), VALUES[:1])
    assert lazy.task.processes[child].peek(page(3), 8) == (71).to_bytes(8, "little")
    assert word(lazy, 3) == 4  # the parent's page came at the same time, and is its own
    lazy.mm.touch(addresses(3))
    assert lazy.faults == [3]


@pytest.mark.parametrize("advice", [MADV_WIPEONFORK, MADV_DONTFORK])
def test_a_child_does_not_wait_for_what_it_does_not_inherit(lazy: Lazy, advice: int) -> None:
    lazy.mm.madvise(page(0), 4 * PAGE, advice)
    child = lazy.seen.fork(1)
    lazy.mm.munmap(page(0), 8 * PAGE)
    assert lazy.missing.states.tolist() == [DROPPED] * 4 + [0] * 4
    lazy.seen.exit(child)
    assert lazy.missing.left == 0


def test_reading_and_writing_through_proc_mem_waits(lazy: Lazy) -> None:
    lazy.mm.gup_write(page(1) + 8, b"x")
    assert lazy.mm.gup_read(page(2), 8) == (3).to_bytes(8, "little")
    assert lazy.faults == [1, 2]


def test_a_call_that_nobody_thought_of_is_refused(lazy: Lazy) -> None:
    with pytest.raises(NotImplementedError, match="clear_refs"):
        lazy.mm.clear_refs(4)


def test_all_of_it_in_the_end_is_what_the_source_had(lazy: Lazy) -> None:
    for number in (7, 2, 5):
        lazy.mm.touch(addresses(number))
    lazy.bring(np.array([0, 1, 3, 4, 6]))
    assert digest_task(lazy.task).memory_digest == digest_task(lazy.source).memory_digest
