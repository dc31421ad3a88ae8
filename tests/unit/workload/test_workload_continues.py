"""Every kind: moved in mid-run, it goes on to the same memory as a run that never moved."""

from __future__ import annotations

import json

import msgpack
import pytest

from livemigration.workload import RunStats
from tests.unit.workload.harness import (
    KINDS,
    SECOND,
    busy_spec,
    empty_task,
    make,
    memory_of,
    move,
    pages_of,
    start,
)


@pytest.mark.parametrize("page_size", [4096, 16384])
@pytest.mark.parametrize("kind", KINDS)
def test_goes_on_elsewhere_as_if_it_had_not_moved(kind: str, page_size: int) -> None:
    what = busy_spec(kind, arena="128KiB") if kind == "append-heap" else busy_spec(kind)
    unbroken, reference = start(what, page_size=page_size, memory=4 * 2**20)
    unbroken.run_until(reference, SECOND)

    here, task = start(what, page_size=page_size, memory=4 * 2**20)
    here.run_until(task, SECOND * 2 // 5)
    there, moved = move(here, task, what)
    there.run_until(moved, SECOND)

    assert memory_of(moved) == memory_of(reference)
    assert there.state() == unbroken.state()


@pytest.mark.parametrize("kind", KINDS)
def test_slices_of_time_and_of_operations_do_not_matter(kind: str) -> None:
    what = busy_spec(kind)
    whole, reference = start(what)
    total = whole.run_until(reference, SECOND // 2)

    sliced, task = start(what)
    done = [sliced.run_until(task, at) for at in (1, 1_234_567, 99_999_999, 100_000_000)]
    while sliced.due_ns(sliced.ops_done) < SECOND // 2:
        done.append(sliced.run_until(task, SECOND // 2, max_ops=777))

    assert memory_of(task) == memory_of(reference)
    assert sliced.state() == whole.state()
    assert total == RunStats(
        sum(part.ops for part in done),
        sum(part.stores for part in done),
        sum(part.faults for part in done),
        sum(part.bytes for part in done),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_state_travels_as_json_and_as_msgpack(kind: str) -> None:
    workload, task = start(busy_spec(kind))
    workload.run_until(task, SECOND // 3)
    state = workload.state()
    assert json.loads(json.dumps(state)) == state
    assert msgpack.unpackb(msgpack.packb(state)) == state


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"idle"}))
def test_another_seed_writes_other_bytes(kind: str) -> None:
    one, task = start(busy_spec(kind), seed=1)
    other, other_task = start(busy_spec(kind), seed=2)
    one.run_until(task, SECOND // 10)
    other.run_until(other_task, SECOND // 10)
    assert pages_of(task.processes[1]) != pages_of(other_task.processes[1])


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"idle", "script"}))
def test_what_it_wrote_is_in_memory_without_populate(kind: str) -> None:
    workload, task = start(busy_spec(kind), populate=False)
    assert pages_of(task.processes[1]) == {}
    stats = workload.run_until(task, SECOND // 10)
    written = pages_of(task.processes[1])
    assert 0 < len(written) <= stats.faults
    assert stats.stores >= stats.ops > 0
    assert stats.bytes >= 8 * stats.stores or kind == "trace"


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"script"}))
def test_populated_pages_all_differ(kind: str) -> None:
    _, task = start(busy_spec(kind))
    pages = pages_of(task.processes[1])
    assert pages
    assert len(set(pages.values())) == len(pages)


@pytest.mark.parametrize("kind", KINDS)
def test_the_content_frames_stay_below_what_it_says_it_needs(kind: str) -> None:
    workload, task = start(busy_spec(kind))
    workload.run_until(task, SECOND)
    assert task.machine.used_frames <= workload.peak_pages + 1  # and the zero page


def test_a_run_does_the_operations_that_are_due_and_no_others() -> None:
    workload, task = start(busy_spec("zipf", rate="1000 pages/s"))
    assert workload.run_until(task, 0).ops == 0
    assert workload.run_until(task, 1).ops == 1  # operation 0 is due at 0
    assert workload.run_until(task, 1_000_000).ops == 0  # operation 1 is due at 1 ms
    assert workload.run_until(task, 1_000_001).ops == 1
    assert workload.run_until(task, 500).ops == 0  # nothing is undone
    assert workload.ops_done == 2


def test_an_idle_task_never_does_anything() -> None:
    workload, task = start(busy_spec("idle"))
    before = memory_of(task)
    assert workload.run_until(task, 10**6 * SECOND) == RunStats()
    assert memory_of(task) == before
    assert workload.due_ns(0) > 10**9 * SECOND


@pytest.mark.parametrize("dbm", [True, False])
def test_stores_to_clean_pages_are_counted_as_faults(dbm: bool) -> None:
    what = busy_spec("sequential", rate="100 pages/s")
    workload = make(what)
    task = empty_task(workload, dbm=dbm)
    workload.setup(task, populate=True)
    task.processes[1].clear_refs(4)
    assert workload.run_until(task, SECOND).faults == 100
