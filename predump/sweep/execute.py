"""Running a sweep's points: in worker processes of this machine, or on a Dask cluster.

Both are executors of `concurrent.futures`, so there is one way through: a few points are handed out
at a time, and whatever comes back is written down at once by this process alone. A point that fails
is a row that says why, and the sweep goes on.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import multiprocessing
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from livemigration.spec import MigrationSpec, TaskSpec, TelemetrySpec
from predump.scenario import Scenario
from predump.sweep.grid import Grid, Point
from predump.sweep.store import Finished, ResultStore
from predump.versions import versions

TransportKind = Literal["in-process", "grpc"]

_AHEAD = 2
"""Points handed out per worker: one runs, one waits, so that no worker waits for this process."""


class SweepError(ValueError):
    """A sweep that cannot be run as asked; ``str()`` is one line for the user."""


@dataclass(slots=True)
class SweepOutcome:
    """What a call of `run_sweep` did, in points; `skipped` had been run before."""

    points: int = 0
    skipped: int = 0
    done: int = 0
    failed: int = 0
    different: int = 0  # done, and memory differed
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Who runs the points: an executor and how many it runs at once."""

    executor: Executor
    workers: int


@contextmanager
def local_workers(count: int) -> Iterator[Cluster]:
    """`count` processes of this machine."""
    # Not forked: this process has a database open and threads running.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        yield Cluster(pool, count)


@contextmanager
def dask_workers(address: str) -> Iterator[Cluster]:
    """The workers of a Dask cluster, by its scheduler's address. SweepError if there are none."""
    try:
        import distributed
    except ImportError as error:
        raise SweepError(
            "--dask needs the package distributed: pip install predump[dask]"
        ) from error
    cluster: Any = distributed  # its functions have no types
    try:
        client = cluster.Client(address, timeout=5)
    except (OSError, TimeoutError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SweepError(f"no Dask scheduler answers at {address}: {reason}") from error
    with client:
        threads = sum(client.nthreads().values())
        if threads == 0:
            raise SweepError(f"the Dask cluster at {address} has no workers; start some")
        # Not pure: equal calls are never taken for one another's results.
        yield Cluster(client.get_executor(pure=False), threads)


def run_point(payload: dict[str, Any]) -> Finished:
    """Runs one scenario in this process. What a worker calls."""
    scenario = Scenario(
        payload["name"],
        TaskSpec.from_struct(payload["task"]),
        MigrationSpec.from_struct(payload["migration"]),
        TelemetrySpec(),
        tuple(payload["policies"]),
    )
    result = asyncio.run(_migrate(scenario, payload["transport"], payload["id"]))
    made: dict[str, Any] = result.model_dump(mode="json", by_alias=True)
    _give_back()
    worker = f"{socket.gethostname()}:{os.getpid()}"
    return Finished(made, worker=worker, rss_bytes=_resident_bytes())


def _give_back() -> None:
    """Now and then, what no point uses any more goes back to the system: a worker does not grow.

    The interpreter puts a full collection off for as long as little is new beside all that stays,
    and glibc keeps what lies between things in use. After each point it would cost some ten
    milliseconds.
    """
    if gc.get_count()[2] < gc.get_threshold()[2]:
        return
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def _resident_bytes() -> int:
    """What this process has in memory now (/proc/self/statm: its second number, in pages)."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def _migrate(scenario: Scenario, transport: str, migration_id: str) -> Any:
    if transport == "grpc":
        from predump.runner import run_scenario

        return await run_scenario(scenario)
    from predump.inprocess import migrate_in_process

    return await migrate_in_process(scenario, migration_id=migration_id)


def run_sweep(
    grid: Grid,
    store: ResultStore,
    cluster: Cluster,
    *,
    transport: TransportKind = "in-process",
    retry_failed: bool = False,
    on_progress: Callable[[SweepOutcome], None] = lambda outcome: None,
) -> SweepOutcome:
    """Runs the points of `grid` that `store` does not have yet, and writes them there.

    `retry_failed` runs those again that failed before. `on_progress` hears of every point.
    """
    began = time.monotonic()
    outcome = SweepOutcome(points=len(grid))
    before = store.finished(failed=not retry_failed)
    waiting: deque[Point] = deque()
    for point in grid.points():
        if point.key in before:
            outcome.skipped += 1
        else:
            waiting.append(point)
    on_progress(outcome)
    here = versions()
    running: dict[Future[Finished], Point] = {}
    try:
        while waiting or running:
            while waiting and len(running) < _AHEAD * cluster.workers:
                point = waiting.popleft()
                running[cluster.executor.submit(run_point, _payload(point, transport))] = point
            over, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in over:
                point = running.pop(future)
                finished = _finished(future)
                store.record(grid.name, point, finished, here)
                _count(outcome, finished)
                outcome.seconds = time.monotonic() - began
                on_progress(outcome)
    finally:
        for future in running:
            future.cancel()
    outcome.seconds = time.monotonic() - began
    return outcome


def _payload(point: Point, transport: str) -> dict[str, Any]:
    return {
        "name": point.scenario.name,
        "id": f"point-{point.index}",
        "task": point.scenario.task.to_struct(),
        "migration": point.scenario.migration.to_struct(),
        "policies": list(point.scenario.policies),
        "transport": transport,
    }


def _finished(future: Future[Finished]) -> Finished:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise SweepError(
            "a worker process died, probably for lack of memory; use fewer workers"
        ) from error
    except Exception as error:  # noqa: BLE001  whatever a point fails with is its row's reason
        return Finished(None, " ".join(f"{type(error).__name__}: {error}".split()))


def _count(outcome: SweepOutcome, finished: Finished) -> None:
    if finished.result is None:
        outcome.failed += 1
        return
    outcome.done += 1
    if finished.result["pages_different"] or finished.result["continued_equal"] is False:
        outcome.different += 1


def default_workers() -> int:
    """As many as this process may use processors."""
    return len(os.sched_getaffinity(0))
