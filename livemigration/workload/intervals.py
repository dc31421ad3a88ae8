"""Runs a workload without a migration and looks at soft-dirty bits at regular intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from livemigration.workload.base import Task, Workload
from mm_model import PM_PRESENT, PM_SOFT_DIRTY, PM_SWAP, Mm

_SOFT_DIRTY_ONLY = 4


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened in one interval of workload time."""

    begin_ns: int
    end_ns: int
    ops: int
    stores: int
    bytes: int
    faults: int
    soft_dirty_pages: int
    """Pages that /proc/pid/pagemap shows present or swapped and soft-dirty at the end."""


def run_in_intervals(
    workload: Workload, task: Task, interval_ns: int, until_ns: int
) -> Iterator[Interval]:
    """Run to ``until_ns``; soft-dirty bits are cleared at the start and after each interval."""
    clear(task)
    for begin in range(0, until_ns, interval_ns):
        end = min(begin + interval_ns, until_ns)
        stats = workload.run_until(task, end)
        dirty = sum(soft_dirty_pages(mm) for mm in task.processes.values())
        clear(task)
        yield Interval(begin, end, stats.ops, stats.stores, stats.bytes, stats.faults, dirty)


def clear(task: Task) -> None:
    """Write 4 to every process' clear_refs."""
    for mm in task.processes.values():
        mm.clear_refs(_SOFT_DIRTY_ONLY)


def soft_dirty_pages(mm: Mm) -> int:
    """Pages with content that the pagemap shows as soft-dirty."""
    page_size, count = mm.machine.page_size, 0
    for vma in mm.vmas():
        entries = mm.pagemap(vma.start, (vma.end - vma.start) // page_size)
        there = (entries & (PM_PRESENT | PM_SWAP)) != 0
        count += int(np.count_nonzero(there & ((entries & PM_SOFT_DIRTY) != 0)))
    return count
