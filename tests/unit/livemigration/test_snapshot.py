"""What a task's memory is: equal memories have equal digests, however they came about."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import xxhash

from livemigration.snapshot import digest_task, live_pages, nonzero_pages, own_pages
from livemigration.task import Task
from mm_model import (
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    Machine,
    ModelConfig,
)

PAGE = 4096
BASE = 0x10_0000_0000
RW = PROT_READ | PROT_WRITE
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED


def task() -> Task:
    """Eight pages of memory, of which three are written."""
    made = Task(Machine(ModelConfig(frames=128, swap_slots=128)))
    made.processes[1].mmap(BASE, 8 * PAGE, RW, PRIVATE)
    write(made, 1, 2, 5)
    return made


def write(made: Task, *numbers: int, value: int = 1, pid: int = 1) -> None:
    addresses = np.array([BASE + n * PAGE for n in numbers], dtype=np.uint64)
    made.processes[pid].store_words(addresses, np.full(len(numbers), value, dtype=np.uint64))


def numbers(addresses: np.ndarray) -> list[int]:
    return [int(a - BASE) // PAGE for a in addresses]


def digest(made: Task) -> str:
    return digest_task(made).memory_digest


def test_every_page_that_is_not_zeros_has_a_digest_of_its_own() -> None:
    made = task()
    (process,) = digest_task(made).processes
    assert process.pid == 1
    assert numbers(process.addresses) == [1, 2, 5]
    content = made.processes[1].peek(BASE + PAGE, PAGE)
    assert process.digests.tolist() == [xxhash.xxh3_64_intdigest(content)] * 3
    assert digest_task(made).pages == 3


def test_a_page_of_zeros_counts_as_one_that_is_not_there() -> None:
    made, zeroed = task(), task()
    write(zeroed, 7, value=9)
    write(zeroed, 7, value=0)
    zeroed.processes[1].touch(np.array([BASE], dtype=np.uint64))
    assert numbers(live_pages(zeroed.processes[1])[0]) == [1, 2, 5, 7]
    assert numbers(nonzero_pages(1, zeroed.processes[1]).addresses) == [1, 2, 5]
    assert digest(made) == digest(zeroed)


def _in_another_order(made: Task) -> None:
    write(made, 5, 2, 1, value=4)
    write(made, 1, 2, 5)


def _swapped(made: Task) -> None:
    made.processes[1].madvise(BASE, 8 * PAGE, MADV_PAGEOUT)


def _cut(made: Task) -> None:
    made.processes[1].mprotect(BASE + 2 * PAGE, PAGE, PROT_READ)
    made.processes[1].mprotect(BASE + 2 * PAGE, PAGE, RW)
    made.processes[1].clear_refs(4)


@pytest.mark.parametrize("detour", [_in_another_order, _swapped, _cut])
def test_equal_memories_have_equal_digests_however_they_came_about(
    detour: Callable[[Task], None],
) -> None:
    other = task()
    detour(other)
    assert digest(other) == digest(task())


def _another_byte(made: Task) -> None:
    write(made, 5, value=2)


def _one_page_more(made: Task) -> None:
    write(made, 6)


def _protected(made: Task) -> None:
    made.processes[1].mprotect(BASE, PAGE, PROT_READ)


def _longer(made: Task) -> None:
    made.processes[1].mmap(BASE + 8 * PAGE, PAGE, RW, PRIVATE)


def _moved(made: Task) -> None:
    made.processes[1].mremap(BASE, 8 * PAGE, 8 * PAGE, 3, BASE + 64 * PAGE)


def _forked(made: Task) -> None:
    made.fork(1)


def _exchanged(made: Task) -> None:
    write(made, 1, value=0)
    write(made, 0)


def _shared(made: Task) -> None:
    made.processes[1].mmap(
        BASE + 7 * PAGE,
        PAGE,
        RW,
        MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
        shared_id=made.machine.create_shared(1),
    )


@pytest.mark.parametrize(
    "change",
    [_another_byte, _one_page_more, _protected, _longer, _moved, _forked, _exchanged, _shared],
)
def test_every_difference_that_the_task_could_see_is_in_the_digest(
    change: Callable[[Task], None],
) -> None:
    other = task()
    change(other)
    assert digest(other) != digest(task())


def test_each_process_is_looked_at_through_its_own_page_tables() -> None:
    made = task()
    child = made.fork(1)
    write(made, 2, value=8, pid=child)
    first, second = digest_task(made).processes
    assert (first.pid, second.pid) == (1, child)
    same = first.digests == second.digests
    assert same.tolist() == [True, False, True]


def test_looking_changes_nothing() -> None:
    made = task()
    mm = made.processes[1]
    mm.clear_refs(4)
    before = (mm.pagemap(BASE, 8).tolist(), mm.machine.used_frames, mm.machine.faults)
    digest_task(made)
    assert (mm.pagemap(BASE, 8).tolist(), mm.machine.used_frames, mm.machine.faults) == before


def test_a_task_without_memory_has_a_digest_too() -> None:
    empty = Task(Machine(ModelConfig(frames=8)))
    assert digest_task(empty).pages == 0
    assert digest(empty) != digest(task())


def test_files_count_mapped_or_not() -> None:
    made, other = task(), task()
    for each in (made, other):
        each.create_file(4, on_disk=True)
    assert digest(made) == digest(other)
    made.machine.file_write(made.files[0].object_id, PAGE, b"x")
    assert digest(made) != digest(other)
    other.machine.file_write(other.files[0].object_id, PAGE, b"x")
    assert digest(made) == digest(other)
    other.machine.file_write(other.files[0].object_id, 2 * PAGE, bytes(8))  # zeros in a hole
    assert digest(made) == digest(other)
    other.create_file(4, on_disk=False)
    assert digest(made) != digest(other)


def test_what_is_the_files_is_not_the_process_own() -> None:
    made = task()
    made.create_file(4, on_disk=True)
    object_id = made.files[0].object_id
    made.machine.file_write(object_id, 0, b"x" * (4 * PAGE))
    mm = made.processes[1]
    mm.mmap(BASE + 16 * PAGE, 4 * PAGE, RW, MAP_SHARED | MAP_FIXED, shared_id=object_id)
    mm.mmap(BASE + 24 * PAGE, 4 * PAGE, RW, MAP_PRIVATE | MAP_FIXED, shared_id=object_id)
    mm.touch(np.array([BASE + 16 * PAGE, BASE + 24 * PAGE], np.uint64))
    write(made, 17, 26)
    assert numbers(own_pages(made, 1)[0]) == [1, 2, 5, 26]
    assert numbers(live_pages(mm)[0]) == [1, 2, 5, 16, 17, 18, 19, 24, 25, 26, 27]


def half_mapped(value: int) -> Task:
    """Shared memory of eight pages, the second half of which is written and unmapped."""
    made = task()
    where = BASE + 64 * PAGE
    shared = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED
    number = made.machine.create_shared(8)
    made.processes[1].mmap(where, 8 * PAGE, RW, shared, shared_id=number)
    write(made, *range(64, 68))
    write(made, *range(68, 72), value=value)
    made.processes[1].munmap(where + 4 * PAGE, 4 * PAGE)
    return made


def test_shared_memory_that_nobody_maps_counts_unless_it_is_zeros() -> None:
    """mremap can show it again."""
    assert digest(half_mapped(3)) == digest(half_mapped(3)) != digest(half_mapped(4))
    hole = half_mapped(3)
    hole.machine.punch_hole(
        next(v.shared_id for v in hole.processes[1].vmas() if v.shared_id), 4, 4
    )
    assert digest(half_mapped(0)) == digest(hole)
    (first,), (other,) = (digest_task(half_mapped(value)).processes for value in (3, 4))
    assert first.digests.tolist() == other.digests.tolist()
