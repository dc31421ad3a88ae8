"""Load the compiled code that a migration needs at the source, before one is asked for.

Numba loads a function from its cache when it is first called, which takes a good part of a second
for all of them. A host that has just started would spend that in its first round 0.
"""

from __future__ import annotations

import numpy as np

from livemigration import batch
from livemigration.digest import zero_pages
from livemigration.runs import to_runs
from livemigration.snapshot import digest_task
from livemigration.task import ROOT_PID, Task
from mm_model import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, Machine, ModelConfig
from source_node.tracker import Tracker

_PAGES = 16


def warm_up() -> None:
    """Scans, gathers and digests a task of a few pages."""
    task = Task(Machine(ModelConfig(frames=4 * _PAGES)))
    mm = task.processes[ROOT_PID]
    page_size = task.machine.page_size
    start = mm.mmap(None, _PAGES * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    addresses = np.uint64(start) + np.arange(_PAGES, dtype=np.uint64) * np.uint64(page_size)
    mm.touch_write(addresses)
    tracker = Tracker()
    for first in (True, False):
        scan = tracker.scan(task, first=first)
        mm.clear_refs(4)
        tracker.count_dirty(task)
        for pages in scan.processes[0].send_by_vma:
            rows = mm.frames(start, pages.size)
            zero_pages(task.machine.content, rows)
            run_start, run_pages = to_runs(pages, page_size)
            batch.encode_pages(
                sequence=1,
                round_number=0,
                pid=ROOT_PID,
                run_start=run_start,
                run_pages=run_pages,
                zero_start=run_start[:0],
                zero_pages=run_pages[:0],
                content=task.machine.content,
                rows=rows,
            )
            tracker.note(ROOT_PID, pages, mm.versions(start, pages.size), 0)
    digest_task(task)
    task.release()
