"""swap-pressure: windows of pages go to swap and come back; protection goes back and forth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from livemigration.task import Task
from livemigration.workload.base import REGION_BASE
from mm_model import PM_SWAP, PROT_READ, PROT_WRITE, SegFault
from tests.unit.workload.harness import SECOND, memory_of, spec, start
from tests.unit.workload.spy import watched

PAGES = 512
SEALED_FROM = PAGES - PAGES // 16


def swapped(task: Task) -> set[int]:
    entries = task.processes[1].pagemap(REGION_BASE, PAGES)
    return set(np.flatnonzero(entries & PM_SWAP).tolist())


def run(ops: int, **keys: Any) -> Task:
    workload, task = start(spec("swap-pressure", every=100, **keys))
    workload.run_until(task, 10**6 * SECOND, max_ops=ops)
    return task


def sealed(task: Task) -> set[int]:
    """Pages that cannot be written."""
    return {
        page
        for vma in task.processes[1].vmas()
        if not vma.prot & PROT_WRITE
        for page in range((vma.start - REGION_BASE) // 4096, (vma.end - REGION_BASE) // 4096)
    }


def test_window_after_window_is_swapped_out_round_and_round() -> None:
    workload, task = start(
        spec("swap-pressure", every=100, window="256KiB", reads=0, protect_every=0)
    )
    workload.run_until(task, 10**6 * SECOND, max_ops=100)
    assert swapped(task) == set()
    for number in range(10):
        before = swapped(task)
        workload.run_until(task, 10**6 * SECOND, max_ops=1)  # the event, and one store after it
        window = set(range(number % 8 * 64, (number % 8 + 1) * 64))
        assert len(window - swapped(task)) <= 1
        assert swapped(task) - before <= window
        workload.run_until(task, 10**6 * SECOND, max_ops=99)


def test_writes_bring_pages_back() -> None:
    just_out = run(101, window="2MiB", reads=0, protect_every=0)
    assert len(swapped(just_out)) == PAGES - 1
    later = run(200, window="2MiB", reads=0, protect_every=0)
    assert PAGES - 100 <= len(swapped(later)) < PAGES - 80


def test_reads_bring_pages_back() -> None:
    reading = run(101, window="2MiB", reads=64, protect_every=0)
    assert PAGES - 65 <= len(swapped(reading)) < PAGES - 50


def test_swapping_changes_no_byte() -> None:
    much = run(5000, window="512KiB", protect_every=0)
    none = start(spec("swap-pressure", every=10**6, protect_every=0))
    none[0].run_until(none[1], 10**6 * SECOND, max_ops=5000)
    assert len(swapped(much)) > 50
    assert swapped(none[1]) == set()
    assert memory_of(much) == memory_of(none[1])


def test_parts_of_the_sealed_area_are_closed_and_opened_in_turn() -> None:
    workload, task = start(spec("swap-pressure", every=100, protect_every=1))
    seen = []
    for _ in range(17):
        workload.run_until(task, 10**6 * SECOND, max_ops=100)
        seen.append(sealed(task))
    assert seen[::2] == [set()] * 9
    closed = seen[1::2]
    assert [len(part) for part in closed] == [4] * 8
    assert set().union(*closed) == set(range(SEALED_FROM, PAGES))


def test_a_sealed_page_cannot_be_written() -> None:
    task = run(101, protect_every=1)
    page = min(sealed(task))
    address = np.array([REGION_BASE + page * 4096], dtype=np.uint64)
    with pytest.raises(SegFault):
        task.processes[1].store_words(address, np.array([1], dtype=np.uint64))
    assert task.processes[1].load(int(address[0]), 8) != bytes(8)


def test_pages_are_written_just_before_they_are_closed_and_after_they_are_opened() -> None:
    workload, task, spy = watched(spec("swap-pressure", every=100, protect_every=1))
    workload.run_until(task, 10**6 * SECOND, max_ops=100)
    assert spy.pages(REGION_BASE).max() < SEALED_FROM
    for protections in ([PROT_READ], [PROT_READ, PROT_READ | PROT_WRITE]):
        workload.run_until(task, 10**6 * SECOND, max_ops=100)
        assert [call[3] for call in spy.calls if call[0] == "mprotect"] == protections
        pages = spy.pages(REGION_BASE)[-104:]
        assert (pages >= SEALED_FROM).sum() == 4


def test_without_changes_of_protection_all_of_memory_is_written() -> None:
    workload, task, spy = watched(spec("swap-pressure", protect_every=0))
    workload.run_until(task, SECOND)
    assert set(spy.pages(REGION_BASE).tolist()) == set(range(PAGES))
    assert [call for call in spy.calls if call[0] == "mprotect"] == []


def test_writes_stay_in_the_working_set_and_windows_do_not() -> None:
    workload, task, spy = watched(
        spec("swap-pressure", working_set="64KiB", every=100, protect_every=0)
    )
    workload.run_until(task, SECOND)
    assert set(spy.pages(REGION_BASE).tolist()) == set(range(16))
    out = [call for call in spy.calls if call[0] == "madvise"]
    assert max(call[1] + call[2] for call in out) == REGION_BASE + PAGES * 4096
