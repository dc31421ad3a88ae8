"""fork-cow: snapshot children are born, read everything, write a little, and exit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from livemigration.task import Task
from livemigration.workload import Workload, WorkloadError
from livemigration.workload.base import REGION_BASE
from livemigration.workload.fork_cow import SHARED_BASE
from mm_model import MAP_SHARED
from tests.unit.workload.harness import MIB, SECOND, make, pages_of, spec, start
from tests.unit.workload.spy import watched

PRIVATE_PAGES = 480
"""Fifteen sixteenths of 2 MiB."""


def begin(**keys: Any) -> tuple[Workload, Task]:
    return start(spec("fork-cow", **{"fork_every": 900, "child_life": 1500, **keys}))


def step(workload: Workload, task: Task, ops: int) -> None:
    workload.run_until(task, 10**6 * SECOND, max_ops=ops)


def private(task: Task, pid: int) -> dict[int, bytes]:
    return {at: page for at, page in pages_of(task.processes[pid]).items() if at < SHARED_BASE}


def shared(task: Task, pid: int) -> dict[int, bytes]:
    return {at: page for at, page in pages_of(task.processes[pid]).items() if at >= SHARED_BASE}


def test_children_are_born_every_so_often_and_live_so_long() -> None:
    workload, task = begin()
    alive = []
    for _ in range(40):
        step(workload, task, 100)
        alive.append(len(task.processes) - 1)
    # Born before operations 900, 1800, 2700, 3600; each is gone before the one 1500 later.
    expected = [
        sum(1 for born in (900, 1800, 2700, 3600) if born < done <= born + 1500)
        for done in range(100, 4100, 100)
    ]
    assert alive == expected
    assert max(alive) == 2


def test_a_child_is_a_snapshot_of_the_moment_of_its_birth() -> None:
    workload, task = begin(child_writes=0)
    step(workload, task, 900)
    at_birth = private(task, 1)
    step(workload, task, 1000)
    assert len(task.processes) == 3
    assert private(task, 2) == at_birth
    now = private(task, 1)
    assert now != at_birth
    step(workload, task, 499)  # the last operation of the child's life
    assert private(task, 2) == at_birth
    step(workload, task, 2)
    assert 2 not in task.processes


def test_a_child_reads_all_of_the_private_memory_in_its_life() -> None:
    what = spec("fork-cow", fork_every=900, child_life=1500)
    workload, task, spy = watched(what)
    step(workload, task, 2500)
    child = spy.children[0]
    assert child.read == sorted(child.read)
    expected = [REGION_BASE + page * 4096 for page in range(PRIVATE_PAGES)]
    # The end of the last piece is due with the child's exit.
    assert len(child.read) >= PRIVATE_PAGES * 98 // 100
    assert child.read == expected[: len(child.read)]


@pytest.mark.parametrize("writes", [0, 1, 5])
def test_a_child_writes_a_few_pages_at_each_of_about_64_steps(writes: int) -> None:
    workload, task, spy = watched(
        spec("fork-cow", fork_every=900, child_life=640, child_writes=writes)
    )
    step(workload, task, 1600)
    (child,) = spy.children
    # Steps at the ages 10, 20, ... 630; at 640 the child exits instead.
    assert child.addresses.size == 63 * writes


def test_half_of_a_childs_writes_and_few_of_the_parents_go_to_the_shared_segment() -> None:
    workload, task, spy = watched(
        spec("fork-cow", fork_every=2000, child_life=2000, child_writes=8)
    )
    step(workload, task, 40_000)
    by_children = np.concatenate([child.addresses for child in spy.children])
    assert by_children.size > 8000
    assert (by_children >= SHARED_BASE).mean() == pytest.approx(0.5, abs=0.03)
    assert (spy.addresses >= SHARED_BASE).mean() == pytest.approx(0.05, abs=0.006)
    # Every child writes something else somewhere else.
    first, second = spy.children[:2]
    assert first.addresses.tolist() != second.addresses.tolist()
    assert first.written != second.written


def test_shared_pages_are_the_same_in_parent_and_child() -> None:
    workload, task = begin(shared_probability=0.5)
    step(workload, task, 900)
    before = shared(task, 1)
    step(workload, task, 1000)
    assert len(shared(task, 1)) == 512 - PRIVATE_PAGES
    assert shared(task, 1) == shared(task, 2) == shared(task, 3)
    assert shared(task, 1) != before


@pytest.mark.parametrize(("size", "pages"), [(0, 32), ("64KiB", 16), ("1MiB", 256)])
def test_the_shared_segment_is_a_part_of_memory(size: int | str, pages: int) -> None:
    _, task = begin(shared=size)
    areas = {
        vma.start: (vma.end - vma.start) // 4096
        for vma in task.processes[1].vmas()
        if vma.flags & MAP_SHARED
    }
    assert areas == {SHARED_BASE: pages}
    assert sum(vma.end - vma.start for vma in task.processes[1].vmas()) == 2 * MIB


@pytest.mark.parametrize(("access", "hottest"), [("uniform", 0.01), ("zipf", 0.10)])
def test_the_parent_writes_uniformly_or_by_zipfs_law(access: str, hottest: float) -> None:
    workload, task, spy = watched(spec("fork-cow", access=access, shared_probability=0))
    step(workload, task, 15_000)
    counts = np.bincount(spy.pages(REGION_BASE), minlength=PRIVATE_PAGES)
    assert counts.size == PRIVATE_PAGES
    assert (counts.max() / 15_000 > hottest) == (access == "zipf")


def test_shared_pages_that_leave_nothing_private_are_refused() -> None:
    with pytest.raises(WorkloadError, match=r"^workload\.shared leaves no private memory; make it"):
        make(spec("fork-cow", shared="2MiB"))


def test_more_than_eight_children_at_once_are_refused() -> None:
    spec("fork-cow", fork_every=100, child_life=800)
    with pytest.raises(ValidationError, match="child_life must be at most 800"):
        spec("fork-cow", fork_every=100, child_life=801)
