"""Runs workloads on the memory model, looks at all of a task's memory, and moves a task by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from livemigration.files import file_pages
from livemigration.layout import areas
from livemigration.snapshot import own_pages
from livemigration.task import Task
from livemigration.workload import Workload, build_workload
from livemigration.workload.spec import WorkloadSpec
from mm_model import MAP_FIXED, Machine, Mm, ModelConfig

MIB = 2**20
SECOND = 10**9
TRACES = Path(__file__).parents[2] / "data" / "traces"
PERL = TRACES / "perl-sessions.msgpack"

KINDS: dict[str, dict[str, Any]] = {
    "uniform": {"working_set": "1MiB"},
    "zipf": {"content": "text"},
    "hotspot": {"write_size": 8},
    "sequential": {"write_size": 4096, "rate": "2000 pages/s", "content": "zero"},
    "phased": {
        "compressibility": 0.5,
        "phases": [
            {"kind": "zipf", "duration": "70ms", "rate": "10001 pages/s"},
            {"kind": "idle", "duration": "30ms"},
            {"kind": "sequential", "duration": "11ms", "rate": "33333 pages/s", "write_size": 8},
        ],
    },
    "idle": {},
    "append-heap": {"arena": "64KiB", "write_size": 512},
    "fork-cow": {"fork_every": 900, "child_life": 1500, "access": "zipf", "rate": "5000 pages/s"},
    "swap-pressure": {"every": 100, "window": "256KiB"},
    "script": {
        "every": "1ms",
        "setup": """
            map 0 anon-private 32; write 0 0 32
            map 1 file-shared 16; write 1 0 8; msync 1 0 16; attach 2 private 16 1
            map 3 anon-shared 8; write 3 0 8
        """,
        "script": """
            write 0 3 9; fwrite 1 2 4; write 2 4 3; pageout 0 0 32; read 2 0 16
            fork; cwrite 0 5 4; write 1 6 2; cexit; dontneed 2 4 4; remove 1 0 2
            mremap 0 8 8 4 0; write 4 0 8; mremap 4 0 8 0 8; fill 0 16 8 1; ksm 0 16 8
            write 0 17 2; munmap 0 30 2; remap 0 30 2; write 3 0 3; msync 1 0 16
        """,
    },
    "trace": {"file": str(PERL), "speed": 0.05},
}
"""A specification of each kind that has much going on in a second."""


def spec(kind: str, **keys: Any) -> WorkloadSpec:
    """A validated specification."""
    return TypeAdapter(WorkloadSpec).validate_python({"kind": kind, **keys})


def busy_spec(kind: str, **keys: Any) -> WorkloadSpec:
    """The specification of `KINDS`, with changes."""
    return spec(kind, **{**KINDS[kind], **keys})


def make(
    what: WorkloadSpec, *, seed: int = 7, memory: int = 2 * MIB, page_size: int = 4096
) -> Workload:
    """A workload, not set up."""
    return build_workload(what, seed=seed, memory_bytes=memory, page_size=page_size)


def empty_task(workload: Workload, *, dbm: bool = True) -> Task:
    """A task with room for the workload."""
    config = ModelConfig(
        page_size=workload.setting.page_size,
        frames=workload.peak_pages + 512,
        swap_slots=workload.swap_pages + 64,
        dbm=dbm,
    )
    return Task(Machine(config))


def start(what: WorkloadSpec, *, populate: bool = True, **how: Any) -> tuple[Workload, Task]:
    """A workload that is set up and about to run."""
    workload = make(what, **how)
    task = empty_task(workload)
    workload.setup(task, populate=populate)
    return workload, task


@dataclass(frozen=True)
class Memory:
    """All that a task can see of its memory: areas and non-zero pages of each process."""

    areas: dict[int, list[tuple[int, int, int, int]]]
    pages: dict[int, dict[int, bytes]]


def memory_of(task: Task) -> Memory:
    """The memory of every process, without touching it."""
    return Memory(
        {
            pid: areas(mm.vmas(), task.machine.page_size)
            for pid, mm in sorted(task.processes.items())
        },
        {pid: pages_of(mm) for pid, mm in sorted(task.processes.items())},
    )


def pages_of(mm: Mm) -> dict[int, bytes]:
    """Non-zero pages by address."""
    page_size, found = mm.machine.page_size, {}
    for vma in mm.vmas():
        rows = mm.frames(vma.start, (vma.end - vma.start) // page_size)
        for index in np.flatnonzero(rows > 0).tolist():
            page = mm.machine.content[rows[index]]
            if page.any():
                found[vma.start + index * page_size] = page.tobytes()
    return found


def move(workload: Workload, task: Task, what: WorkloadSpec) -> tuple[Workload, Task]:
    """The task and its workload at another host, by copying areas, pages and state."""
    setting = workload.setting
    there = make(what, seed=setting.seed, memory=setting.memory_bytes, page_size=setting.page_size)
    copy = empty_task(there)
    shared: dict[int, int] = {}
    for file in task.files:
        number = copy.create_file(file.pages, on_disk=file.on_disk)
        shared[file.object_id] = copy.files[number].object_id
        pages, rows = file_pages(task.machine, file)
        copy.machine.install_object(shared[file.object_id], pages, task.machine.content[rows])
    for pid, mm in sorted(task.processes.items()):
        if pid not in copy.processes:
            copy.processes[pid] = copy.machine.create_mm()
            copy.parents[pid] = task.parents[pid]
        _copy_areas(mm, copy.processes[pid], shared)
        addresses, rows = own_pages(task, pid)
        copy.processes[pid].install(addresses, mm.machine.content[rows])
    copy.next_pid = task.next_pid
    # As it travels: through JSON.
    there.restore(json.loads(json.dumps(workload.state())))
    return there, copy


def _copy_areas(mm: Mm, copy: Mm, shared: dict[int, int]) -> None:
    for vma in mm.vmas():
        if vma.shared_id and vma.shared_id not in shared:
            pages = (vma.end - vma.start) // mm.machine.page_size
            shared[vma.shared_id] = copy.machine.create_shared(pages)
        copy.mmap(
            vma.start,
            vma.end - vma.start,
            vma.prot,
            vma.flags | MAP_FIXED,
            shared_id=shared.get(vma.shared_id, 0),
            pgoff=vma.pgoff if vma.shared_id else 0,
            name=vma.name,
        )
    copy.restore_brk(mm.start_brk, mm.brk(0))
