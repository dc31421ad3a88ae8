"""Stopping a task's thread and letting it go on, as a migration does before and after a scan."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from livemigration.execution import Execution
from livemigration.host.memory import host_task
from livemigration.workload.base import RunStats, Setting, Task
from livemigration.workload.spec import UniformSpec
from livemigration.workload.writers import StoreWorkload
from predump.calibration.sample import Sample

_PAGES = 256
_RUNS_S = 0.01
_UNIT = "ns"


class _Noting(StoreWorkload):
    """A workload that notes when it is let run."""

    began_ns = 0

    def run_until(self, task: Task, until_ns: int, max_ops: int | None = None) -> RunStats:
        """See `Workload.run_until`."""
        if not self.began_ns:
            self.began_ns = time.monotonic_ns()
        return super().run_until(task, until_ns, max_ops)


async def measure_handshake(repeats: int) -> dict[str, Sample]:
    """`freeze`: until nothing runs any more; `thaw`: until something does. Real time."""
    page_size = os.sysconf("SC_PAGE_SIZE")
    setting = Setting(seed=1, memory_bytes=_PAGES * page_size, page_size=page_size, base_dir=Path())
    spec = UniformSpec.model_validate({"kind": "uniform", "rate": "5000 pages/s"})
    workload = _Noting(spec, setting)
    task = host_task(_PAGES, page_size)
    workload.setup(task, populate=True)
    execution = Execution(task, workload, wall=True)
    freezes: list[float] = []
    thaws: list[float] = []
    try:
        for _ in range(repeats):
            workload.began_ns = 0
            start = time.monotonic_ns()
            execution.thaw()
            await asyncio.sleep(_RUNS_S)
            thaws.append(workload.began_ns - start)
            start = time.monotonic_ns()
            await execution.freeze()
            freezes.append(time.monotonic_ns() - start)
    finally:
        await execution.close()
        task.release()
    made: dict[str, Any] = {
        "thread_freeze": Sample("asking the task's thread to stop until it has", _UNIT, freezes),
        "thread_thaw": Sample("letting the task's thread go on until it does", _UNIT, thaws),
    }
    return made
