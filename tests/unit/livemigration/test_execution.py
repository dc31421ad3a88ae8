"""A running task: what is due is done, its time stands still with it, and failures are not lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from livemigration.execution import Execution
from livemigration.spec import TaskSpec
from livemigration.task import Task
from livemigration.workload import Workload, build_workload
from mm_model import Machine, ModelConfig

MEMORY = 64 * 4096
TIMEOUT_S = 60


def started(kind: str, **keys: Any) -> tuple[Task, Workload]:
    spec = TaskSpec.from_struct({"memory": MEMORY, "workload": {"kind": kind, **keys}})
    workload = build_workload(
        spec.workload, seed=1, memory_bytes=MEMORY, page_size=4096, base_dir=Path()
    )
    task = Task(Machine(ModelConfig(frames=256)))
    workload.setup(task, populate=True)
    return task, workload


@asynccontextmanager
async def execution(task: Task, workload: Workload, *, wall: bool) -> AsyncIterator[Execution]:
    made = Execution(task, workload, wall=wall)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield made
    finally:
        await made.close()


async def test_on_the_wall_clock_a_thawed_task_does_what_is_due() -> None:
    task, workload = started("uniform", rate="10000 pages/s")
    async with execution(task, workload, wall=True) as running:
        running.thaw()
        while workload.ops_done < 100:
            await asyncio.sleep(0.001)
        await running.freeze()
        assert workload.ops_done == pytest.approx(running.workload_ns / 1e9 * 10_000, abs=1)


async def test_a_frozen_task_stands_still_and_goes_on_where_it_was() -> None:
    task, workload = started("uniform", rate="10000 pages/s")
    async with execution(task, workload, wall=True) as running:
        for _ in range(3):
            running.thaw()
            before = running.workload_ns
            while running.workload_ns == before:
                await asyncio.sleep(0.001)
            await running.freeze()
            stopped = running.workload_ns, workload.ops_done
            await asyncio.sleep(0.05)
            assert (running.workload_ns, workload.ops_done) == stopped


@pytest.mark.parametrize("wall", [True, False])
@pytest.mark.parametrize("kind", ["idle", "uniform"])
async def test_run_to_stops_at_exactly_the_time_asked_for(kind: str, wall: bool) -> None:
    keys = {} if kind == "idle" else {"rate": "1000 pages/s"}
    task, workload = started(kind, **keys)
    async with execution(task, workload, wall=wall) as running:
        await running.run_to(123_000_000)
        assert running.workload_ns == 123_000_000
        assert not running.running
        assert workload.ops_done == (0 if kind == "idle" else 123)


async def test_an_idle_task_s_time_passes_as_any_other_s(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0

    def clock() -> int:
        return now

    task, workload = started("idle")
    async with execution(task, workload, wall=True) as running:
        monkeypatch.setattr("livemigration.execution.time.monotonic_ns", clock)
        running.thaw()
        for _ in range(5):
            now += 20_000_000  # as long as it sleeps at most
            while running.workload_ns < now:
                await asyncio.sleep(0.001)
        await running.freeze()
        assert running.workload_ns == now


async def test_a_workload_that_fails_is_told_by_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    task, workload = started("uniform", rate="10000 pages/s")

    def fail(*_: object) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(workload, "run_until", fail)
    async with execution(task, workload, wall=True) as running:
        running.thaw()
        with pytest.raises(RuntimeError, match="no memory left"):
            await running.freeze()


@pytest.mark.parametrize("slice_ns", [1, 7, 1_000, 10_000_000])
async def test_a_slowed_task_gets_its_share_of_the_time_however_it_is_cut(slice_ns: int) -> None:
    task, workload = started("idle")
    async with execution(task, workload, wall=False) as running:
        running.thaw()
        running.throttle(70)
        for _ in range(1_000):
            running.advance(slice_ns)
        assert running.workload_ns == 300 * slice_ns
        running.throttle(0)
        running.advance(1_000)
        assert running.workload_ns == 300 * slice_ns + 1_000


async def test_a_slowed_task_does_less_on_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0

    def clock() -> int:
        return now

    task, workload = started("uniform", rate="1000 pages/s")
    async with execution(task, workload, wall=True) as running:
        monkeypatch.setattr("livemigration.execution.time.monotonic_ns", clock)
        running.throttle(90)
        running.thaw()
        for _ in range(10):
            now += 10_000_000
            while running.workload_ns < now // 10:
                await asyncio.sleep(0.001)
        await running.freeze()
        assert (running.workload_ns, workload.ops_done) == (10_000_000, 10)


async def test_a_task_cannot_be_slowed_to_a_stop() -> None:
    task, workload = started("idle")
    async with execution(task, workload, wall=False) as running:
        for percent in (-1, 100):
            with pytest.raises(ValueError, match=f"slowed by {percent} %"):
                running.throttle(percent)
