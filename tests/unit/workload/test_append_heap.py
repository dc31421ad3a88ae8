"""append-heap: memory is taken in arenas, filled, written to again, given back, moved."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from livemigration.task import Task
from livemigration.workload import WorkloadError
from mm_model import MADV_DONTNEED
from tests.unit.workload.harness import MIB, SECOND, make, pages_of, spec, start
from tests.unit.workload.spy import SpyMm, watched

ARENA = 64 * 1024
OPS_PER_ARENA = ARENA // 512


def run(arenas: int, *, populate: bool = True, seed: int = 7, **keys: Any) -> tuple[Task, SpyMm]:
    """Run until so many arenas have been allocated."""
    what = spec("append-heap", arena="64KiB", write_size=512, **keys)
    workload, task, spy = watched(what, populate=populate, seed=seed)
    workload.run_until(task, 10**6 * SECOND, max_ops=(arenas - 1) * OPS_PER_ARENA + 1)
    return task, spy


def mapped(task: Task) -> int:
    return sum(vma.end - vma.start for vma in task.processes[1].vmas())


def test_a_heap_that_only_appends_fills_arena_after_arena() -> None:
    _, spy = run(9, populate=False, mutate=0)
    addresses = spy.addresses.astype(np.int64)
    for number in range(8):
        arena = addresses[number * OPS_PER_ARENA : (number + 1) * OPS_PER_ARENA]
        assert (np.diff(arena) == 512).all()
        assert arena[0] % 4096 == 0
    starts = addresses[::OPS_PER_ARENA].tolist()
    assert len(set(starts)) == 9


def test_without_population_the_heap_begins_empty_and_grows() -> None:
    what = spec("append-heap", arena="64KiB", write_size=512)
    workload, task = start(what, populate=False)
    assert mapped(task) == 0
    sizes = []
    for _ in range(8):
        workload.run_until(task, SECOND, max_ops=OPS_PER_ARENA)
        sizes.append(mapped(task))
    assert sizes == [ARENA * n for n in range(1, 9)]


def test_populated_three_quarters_of_memory_are_there() -> None:
    _, task = start(spec("append-heap", arena="64KiB"))
    assert mapped(task) == 3 * 2 * MIB // 4
    assert len(pages_of(task.processes[1])) == 3 * 512 // 4


def test_every_fourth_arena_comes_from_the_break() -> None:
    _, spy = run(12, populate=False)
    kinds = [call[0] for call in spy.calls]
    assert kinds == ["mmap", "mmap", "mmap", "brk"] * 3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_old_arenas_are_unmapped_emptied_moved_and_the_break_is_trimmed(seed: int) -> None:
    _, spy = run(150, seed=seed)
    calls = Counter(call[0] for call in spy.calls)
    assert min(calls[name] for name in ("mmap", "munmap", "mremap", "madvise", "brk")) > 3
    assert {call[3] for call in spy.calls if call[0] == "madvise"} == {MADV_DONTNEED}
    breaks = [call[1] for call in spy.calls if call[0] == "brk"]
    assert any(after < before for before, after in pairwise(breaks))
    shrunk = [call for call in spy.calls if call[0] == "mremap" and call[3] < call[2]]
    grown = [call for call in spy.calls if call[0] == "mremap" and call[3] > call[2]]
    assert len(shrunk) == len(grown) > 0


def test_memory_is_never_exceeded() -> None:
    workload, task = start(spec("append-heap", arena="64KiB", write_size=512))
    seen = set()
    for _ in range(200):
        workload.run_until(task, 10**6 * SECOND, max_ops=OPS_PER_ARENA)
        seen.add(mapped(task))
    assert max(seen) <= 2 * MIB
    assert len(seen) > 3


def test_what_was_given_back_is_not_there_any_more() -> None:
    """An unmapped arena's range has no area, until the place is used again."""
    workload, task, spy = watched(spec("append-heap", arena="64KiB", write_size=512))
    checked = 0
    for _ in range(100):
        spy.calls.clear()
        workload.run_until(task, 10**6 * SECOND, max_ops=OPS_PER_ARENA)
        for _, address, length in [call for call in spy.calls if call[0] == "munmap"]:
            assert all(vma.end <= address or vma.start >= address + length for vma in spy.vmas())
            checked += 1
    assert checked > 10


@pytest.mark.parametrize(("mutate", "appended"), [(0.0, 1.0), (0.25, 0.75), (0.9, 0.1)])
def test_a_share_of_the_writes_goes_to_older_arenas(mutate: float, appended: float) -> None:
    """Two successive writes lie side by side if both of them are allocations."""
    _, spy = run(80, mutate=mutate)
    steps = np.diff(spy.addresses.astype(np.int64))
    side_by_side = (steps == 512).sum() / (steps.size - steps.size // OPS_PER_ARENA)
    assert side_by_side == pytest.approx(appended**2, abs=0.03)


def test_changes_reach_old_arenas_all_over() -> None:
    _, spy = run(2, mutate=1.0)
    assert len(set((spy.addresses // np.uint64(ARENA)).tolist())) > 12


def test_too_little_memory_for_the_arenas_is_refused_with_what_would_do() -> None:
    with pytest.raises(WorkloadError) as refused:
        make(spec("append-heap", arena="512KiB"))
    assert str(refused.value) == (
        "workload.kind = append-heap needs memory for 8 arenas; "
        "memory must be at least 4MiB, or workload.arena smaller"
    )


def test_the_default_arena_is_a_64th_of_memory() -> None:
    workload, task, spy = watched(spec("append-heap"), memory=16 * MIB, populate=False)
    workload.run_until(task, 1)
    (call,) = spy.calls
    assert call[0] == "mmap"
    assert call[2] == 256 * 1024
