"""A task that runs: its workload, its own time, and stopping and going on.

Workload time counts only while the task runs; it stands still while the task is frozen and is the
same on both hosts. On the virtual clock somebody advances it (`advance`); on the wall clock a
thread runs what is due every few milliseconds until the task is frozen. All access to the model
goes through `lock`: the workload takes it for a slice, the migration for one scan or one batch.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from livemigration.task import Task
from livemigration.workload import Workload

SLICE_S = 0.002
"""How long a running task sleeps between two slices on the wall clock."""

MOST_PAUSE_S = 0.02
"""A task with nothing to do sleeps no longer than this, well below the lag that is made up for."""

MOST_THROTTLE_PERCENT = 99
"""A task is never stopped altogether by slowing it down (QEMU: max-cpu-throttle)."""

MOST_LAG_NS = 50_000_000
"""At most so much overdue work is done in one slice, so that nobody waits long for the lock."""


def core_of(execution: Execution) -> str:
    """What a task at rest is beside its memory, as JSON; a core image is beside the pages so."""
    return json.dumps(
        {
            "workload": execution.workload.state(),
            "workload_ns": execution.workload_ns,
            "next_pid": execution.task.next_pid,
        }
    )


class Execution:
    """One task under one workload at one host."""

    def __init__(
        self,
        task: Task,
        workload: Workload,
        *,
        wall: bool,
        workload_ns: int = 0,
        write_fault_ns: int = 0,
    ) -> None:
        self.task = task
        self.workload = workload
        self.lock = threading.Lock()
        self.running = False
        self.workload_ns = workload_ns
        self.write_fault_ns = write_fault_ns
        self._wall = wall
        self._away_ns = 0  # real time of the slice under way in which the task stood still
        self._stall_ns = 0  # time that faults took from the workload and that is not made up yet
        self._limit_ns: int | None = None
        self._throttle_percent = 0
        self._throttled_rest = 0  # hundredths of a nanosecond that were not granted yet
        self._runner: Future[None] | None = None
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="workload") if wall else None

    def throttle(self, percent: int) -> None:
        """From now on the task does not run for `percent` (0 to 99) of the time."""
        if not 0 <= percent <= MOST_THROTTLE_PERCENT:
            raise ValueError(f"a task cannot be slowed by {percent} %")
        self._throttle_percent = percent

    def _granted(self, elapsed_ns: int) -> int:
        """How much of the time that passed the task may run."""
        hundredths = elapsed_ns * (100 - self._throttle_percent) + self._throttled_rest
        granted, self._throttled_rest = divmod(hundredths, 100)
        return granted

    # -- the virtual clock

    def advance(self, duration_ns: int) -> None:
        """Virtual clock: the task runs for `duration_ns`.

        Faults take time: what a slice's faults need beyond the slice is taken from the next ones,
        so a task that faults faster than it can write is slowed down, and one that idles in between
        is not.
        """
        if not self.running or duration_ns <= 0:
            return
        stalled = min(self._stall_ns, duration_ns)
        self._stall_ns -= stalled
        granted = self._granted(duration_ns - stalled)
        if granted == 0:
            return
        with self.lock:
            stats = self.workload.run_until(self.task, self.workload_ns + granted)
        self.workload_ns += granted
        self._stall_ns += max(0, stats.faults * self.write_fault_ns - granted)

    # -- both clocks

    def thaw(self) -> None:
        """The task goes on."""
        if self.running:
            return
        self.running = True
        if self._pool is not None:
            self._stop.clear()
            self._runner = self._pool.submit(self._run)

    async def freeze(self) -> None:
        """Stops the task; returns when no operation of it is under way any more.

        Raises what the workload failed with, if it did since it was thawed.
        """
        self.running = False
        self._stop.set()
        runner, self._runner = self._runner, None
        if runner is not None:
            await asyncio.wrap_future(runner)

    async def run_to(self, workload_ns: int) -> None:
        """Lets the task run until its own time is `workload_ns`, then stops it."""
        if self.workload_ns < workload_ns:
            if self._wall:
                self._limit_ns = workload_ns
                self.thaw()
                assert self._runner is not None
                await asyncio.wrap_future(self._runner)
            else:
                await asyncio.to_thread(self._run_virtual, workload_ns)
        await self.freeze()

    def _run_virtual(self, workload_ns: int) -> None:
        with self.lock:
            self.workload.run_until(self.task, workload_ns)
        self.workload_ns = workload_ns

    async def close(self) -> None:
        """Stops the task for good and ends its thread."""
        with suppress(Exception):  # a workload that failed has said so before
            await self.freeze()
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    # -- the wall clock

    def stood_still(self, duration_ns: int) -> None:
        """Called from within a slice: so much of its real time the task could not run."""
        self._away_ns += duration_ns

    def _run(self) -> None:
        """Runs in the workload's own thread, so that it needs no turns of the event loop."""
        last = time.monotonic_ns()
        while self.running:
            now = time.monotonic_ns()
            due = self.workload_ns + self._granted(min(now - last, MOST_LAG_NS))
            # What is beyond the lag allowed is not lost, it is late: an overloaded host runs
            # slower.
            last = now
            if self._limit_ns is not None and due >= self._limit_ns:
                due = self._limit_ns
            self._slice(due)
            last += self._away_ns  # a task that waits for a page does not make up for it
            self._away_ns = 0
            if self._limit_ns is not None and due >= self._limit_ns:
                self.running = False
                self._limit_ns = None
                return
            self._stop.wait(self._pause_s())

    def _pause_s(self) -> float:
        """How long nothing is due: a slice at least, and never so long that time is lost."""
        coming = self.workload.due_ns(self.workload.ops_done)
        if self._limit_ns is not None:
            coming = min(coming, self._limit_ns)
        return min(max(SLICE_S, (coming - self.workload_ns) / 1e9), MOST_PAUSE_S)

    def _slice(self, due_ns: int) -> None:
        with self.lock:
            self.workload.run_until(self.task, due_ns)
        self.workload_ns = due_ns
