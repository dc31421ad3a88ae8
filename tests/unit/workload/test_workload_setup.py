"""Building a workload and giving it memory: its own, or that of a restored image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from livemigration.task import Task
from livemigration.workload import WorkloadError
from livemigration.workload.base import REGION_BASE
from livemigration.workload.spec import WorkloadSpec
from mm_model import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    Machine,
    ModelConfig,
)
from tests.unit.workload.harness import (
    MIB,
    SECOND,
    busy_spec,
    make,
    memory_of,
    move,
    pages_of,
    spec,
    start,
)
from tests.unit.workload.raw_traces import Record, good_items, write
from tests.unit.workload.spy import SpyMm

WRITABLE = [0x5555_0000_0000, 0x5555_0000_3000, 0x5555_0000_4000, 0x7FFF_0000_0000]
"""Pages that the image below has in writable private mappings."""


def image_task() -> Task:
    """A task as after reading a dump: areas of several sorts, some of their pages with content."""
    task = Task(Machine(ModelConfig(frames=4096, swap_slots=512)))
    mm = task.processes[1]
    private, shared = MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS
    read_write = PROT_READ | PROT_WRITE
    mm.mmap(0x40_0000, 4 * 4096, PROT_READ, private | MAP_FIXED)
    mm.mmap(0x5555_0000_0000, 6 * 4096, read_write, private | MAP_FIXED)
    mm.mmap(0x7000_0000_0000, 4 * 4096, read_write, shared | MAP_FIXED)
    mm.mmap(0x7FFF_0000_0000, 2 * 4096, read_write, private | MAP_FIXED)
    pages = np.array([0x40_0000, *WRITABLE, 0x7000_0000_0000], dtype=np.uint64)
    content = np.random.default_rng(1).integers(1, 255, pages.size * 4096, dtype=np.uint8)
    mm.install(pages, content)
    return task


@pytest.mark.parametrize("kind", ["uniform", "zipf", "hotspot", "sequential", "phased"])
def test_over_an_image_exactly_its_writable_private_pages_are_written(kind: str) -> None:
    task = image_task()
    before = memory_of(task)
    keys = {} if kind == "phased" else {"working_set": 0}
    workload = make(busy_spec(kind, **keys), memory=64 * 1024)
    workload.setup(task, populate=True, from_image=True)
    assert memory_of(task) == before  # nothing is mapped, nothing is filled
    spy = SpyMm(task.processes[1])
    task.processes[1] = spy  # type: ignore[assignment]
    workload.run_until(task, SECOND)
    assert set((spy.addresses & ~np.uint64(4095)).tolist()) == set(WRITABLE)


def test_the_working_set_of_an_image_is_its_first_pages() -> None:
    task = image_task()
    workload = make(spec("uniform", working_set="8KiB"), memory=64 * 1024)
    workload.setup(task, populate=True, from_image=True)
    before = pages_of(task.processes[1])
    workload.run_until(task, SECOND)
    after = pages_of(task.processes[1])
    assert {page for page in after if after[page] != before[page]} == set(WRITABLE[:2])


@pytest.mark.parametrize("kind", ["fork-cow", "append-heap"])
def test_kinds_with_areas_of_their_own_bring_them_along(kind: str) -> None:
    task = image_task()
    before = pages_of(task.processes[1])
    workload = make(busy_spec(kind, arena="4KiB") if kind == "append-heap" else busy_spec(kind))
    workload.setup(task, populate=True, from_image=True)
    workload.run_until(task, SECOND // 2)
    after = pages_of(task.processes[1])
    assert after[0x40_0000] == before[0x40_0000]
    assert set(after) > set(before)


def test_swap_pressure_over_an_image_leaves_its_read_only_pages_alone() -> None:
    task = image_task()
    before = pages_of(task.processes[1])
    workload = make(spec("swap-pressure", every=10, window="8KiB"), memory=64 * 1024)
    workload.setup(task, populate=True, from_image=True)
    workload.run_until(task, SECOND // 10)
    after = pages_of(task.processes[1])
    assert {page for page in before if before[page] != after[page]} == set(WRITABLE)


@pytest.mark.parametrize("kind", ["uniform", "zipf", "fork-cow", "swap-pressure"])
def test_over_an_image_it_goes_on_elsewhere_too(kind: str) -> None:
    what = busy_spec(kind, **({"working_set": 0} if kind == "uniform" else {}))
    tasks = [image_task(), image_task()]
    here, unbroken = make(what), make(what)
    for workload, task in zip((here, unbroken), tasks, strict=True):
        workload.setup(task, populate=True, from_image=True)
    here.run_until(tasks[0], SECOND // 4)
    there, moved = move(here, tasks[0], what)
    there.run_until(moved, SECOND // 2)
    unbroken.run_until(tasks[1], SECOND // 2)
    assert memory_of(moved) == memory_of(tasks[1])


@pytest.mark.parametrize("kind", ["uniform", "phased", "idle", "fork-cow", "swap-pressure"])
def test_an_image_without_a_page_to_write_is_refused(kind: str) -> None:
    task = Task(Machine(ModelConfig(frames=64)))
    with pytest.raises(WorkloadError) as refused:
        make(busy_spec(kind)).setup(task, populate=True, from_image=True)
    assert str(refused.value).startswith("source.images: process 1 has no populated page in a ")
    assert "\n" not in str(refused.value)


CODE, HEAP, NOT_MAPPED, STACK = 0x400, 0x5555_0000_0, 0x6666_0000_0, 0x7FFF_0000_0
"""Page numbers; the first is read-only in the image, the third is not in it."""


def image_trace(folder: Path) -> WorkloadSpec:
    """A program that first relocates itself, and then writes."""
    records: list[Record] = [
        (10, HEAP + 1, 0, 4095, 512),
        (10, CODE, 0, 7, 1),
        (20, CODE + 1, 0, 7, 1),
        (250, HEAP, 16, 99, 30),
        (300, CODE, 8, 15, 1),
        (400, STACK, 100, 163, 4),
        (500, NOT_MAPPED, 0, 4095, 512),
        (500, NOT_MAPPED + 1, 0, 7, 1),
    ]
    file = write(folder / "image.trace", good_items(records))
    return spec("trace", file=str(file), loop=True)


def test_a_trace_goes_on_in_the_memory_of_an_image(tmp_path: Path) -> None:
    task = image_task()
    before = pages_of(task.processes[1])
    workload = make(image_trace(tmp_path))
    workload.setup(task, populate=False, from_image=True)
    assert pages_of(task.processes[1]) == before  # nothing is filled
    stats = workload.run_until(task, 1_000_000)  # one turn of the loop
    after = pages_of(task.processes[1])
    changed = {page // 4096 for page in after if after[page] != before.get(page)}
    assert changed == {HEAP, HEAP + 1, STACK, NOT_MAPPED, NOT_MAPPED + 1}
    heap = HEAP * 4096
    assert after[heap][16:100] != before[heap][16:100]
    assert after[heap][:16] + after[heap][100:] == before[heap][:16] + before[heap][100:]
    assert (stats.ops, stats.bytes) == (8, 4096 + 84 + 64 + 4096 + 8)


def test_a_trace_in_an_image_goes_on_elsewhere(tmp_path: Path) -> None:
    what = image_trace(tmp_path)
    tasks = [image_task(), image_task()]
    here, unbroken = make(what), make(what)
    for workload, task in zip((here, unbroken), tasks, strict=True):
        workload.setup(task, populate=False, from_image=True)
    here.run_until(tasks[0], 1_200_000)
    there, moved = move(here, tasks[0], what)
    there.run_until(moved, 5_000_000)
    unbroken.run_until(tasks[1], 5_000_000)
    assert there.ops_done == unbroken.ops_done > 30
    assert memory_of(moved) == memory_of(tasks[1])


def test_a_trace_of_another_program_than_the_image_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "other.trace", good_items([(1, 0x1234, 0, 7, 1), (2, CODE, 0, 7, 1)]))
    with pytest.raises(WorkloadError, match="none of the pages that the trace writes; record the"):
        make(spec("trace", file=str(file))).setup(image_task(), populate=True, from_image=True)


@pytest.mark.parametrize("kind", ["uniform", "zipf", "idle", "swap-pressure"])
def test_memory_is_one_area_of_its_own_size(kind: str) -> None:
    _, task = start(busy_spec(kind), memory=3 * MIB)
    (vma,) = task.processes[1].vmas()
    assert (vma.start, vma.end) == (REGION_BASE, REGION_BASE + 3 * MIB)


@pytest.mark.parametrize(
    ("kind", "keys", "line"),
    [
        (
            "uniform",
            {"write_size": 8192},
            "workload.write_size = 8192 is larger than a page; it must be at most 4096",
        ),
        (
            "uniform",
            {"working_set": "4MiB"},
            "workload.working_set = 4MiB must be a multiple of the page size (4KiB) "
            "and at most memory (2MiB)",
        ),
        (
            "swap-pressure",
            {"window": 5000},
            "workload.window = 5000B must be a multiple of the page size (4KiB) "
            "and at most memory (2MiB)",
        ),
        (
            "phased",
            {"phases": [{"kind": "uniform", "duration": "1s", "working_set": "3MiB"}]},
            "workload.phases.working_set = 3MiB must be a multiple of the page size (4KiB) "
            "and at most memory (2MiB)",
        ),
        (
            "phased",
            {"phases": [{"kind": "uniform", "duration": "1s", "write_size": "16KiB"}]},
            "workload.write_size = 16384 is larger than a page; it must be at most 4096",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(
    kind: str, keys: dict[str, Any], line: str
) -> None:
    with pytest.raises(WorkloadError) as refused:
        make(spec(kind, **keys))
    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("kind", "keys", "says"),
    [
        ("uniform", {"rate": "0 pages/s"}, 'for that use kind = "idle"'),
        ("uniform", {"rate": 20000}, "string"),
        ("uniform", {"write_size": 12}, "12 bytes is not a whole number of 8-byte words"),
        ("uniform", {"write_size": 0}, "greater than or equal to 8"),
        ("uniform", {"write_size": "128KiB"}, "less than or equal to 65536"),
        ("uniform", {"content": "noise"}, "'random', 'text' or 'zero'"),
        ("uniform", {"compressibility": 1.5}, "less than or equal to 1"),
        ("uniform", {"content": "text", "compressibility": 0.5}, "give one of them"),
        ("zipf", {"theta": -1}, "greater than or equal to 0"),
        ("zipf", {"theta": float("nan")}, "finite"),
        ("hotspot", {"hot_fraction": 2}, "less than or equal to 1"),
        ("phased", {"phases": []}, "at least 1 item"),
        ("phased", {"phases": [{"kind": "uniform"}]}, "duration"),
        ("phased", {"phases": [{"kind": "idle", "duration": "0s"}]}, "is no time at all"),
        ("phased", {"phases": [{"kind": "phased", "duration": "1s"}]}, "does not match any"),
        ("append-heap", {"mutate": 1.1}, "less than or equal to 1"),
        ("swap-pressure", {"every": 0}, "greater than or equal to 1"),
        ("trace", {"file": " "}, "name a trace file"),
        ("trace", {"file": "x", "speed": 0}, "greater than 0"),
        ("idle", {"rate": "1 pages/s"}, "Extra inputs are not permitted"),
    ],
)
def test_values_that_make_no_sense_are_refused(kind: str, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        spec(kind, **keys)
    # The first error is the one that people are shown.
    first = refused.value.errors()[0]
    assert says in f"{first['loc']}: {first['msg']}"
