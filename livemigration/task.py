"""A task: one or more processes on one machine, their files, with memory that the model keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from livemigration.spec import TaskSpec
from mm_model import Machine, Mm, ModelConfig

ROOT_PID = 1
SLACK_PAGES = 4096
"""Frames beyond twice the memory: tables of a heap that grows, images with more than was asked for.
"""


def model_config(spec: TaskSpec, extra_pages: int = 0) -> ModelConfig:
    """The model for a task. Frames are address space only: RAM is used when one is first written.

    There are twice as many as pages of memory, since fork and copy-on-write can give each of two
    processes a copy of its own.
    """
    pages = spec.memory // spec.page_size
    frames = 2 * (pages + extra_pages) + SLACK_PAGES
    return ModelConfig(
        page_size=spec.page_size,
        frames=frames,
        swap_slots=frames,
        dbm=spec.cpu.dbm,
        kernel=spec.kernel.profile,
        hunks_off=frozenset(spec.hunks.off),
    )


def build_machine(
    spec: TaskSpec, extra_pages: int = 0, content: NDArray[np.uint8] | None = None
) -> Machine:
    """A host's machine for a task, with the settings that the spec asks for."""
    machine = Machine(model_config(spec, extra_pages), content)
    machine.set_thp(spec.thp.enabled)
    for kilobytes, mode in spec.thp.sizes(spec.page_size):
        machine.set_mthp(kilobytes, mode)
    return machine


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A file that a task made: an object of its machine that outlives its mappings."""

    object_id: int
    pages: int
    on_disk: bool  # False: in memory, as on tmpfs


class Task:
    """Processes by pid, files by number.

    The root has pid 1; children get the next free number, never used twice. Files are numbered in
    the order of their making, from 0, on every host alike.
    """

    def __init__(self, machine: Machine, root: Mm | None = None) -> None:
        self.machine = machine
        self.processes: dict[int, Mm] = {
            ROOT_PID: root if root is not None else machine.create_mm()
        }
        self.parents: dict[int, int] = {ROOT_PID: 0}
        self.next_pid = ROOT_PID + 1
        self.files: list[TaskFile] = []

    def create_file(self, pages: int, *, on_disk: bool) -> int:
        """A new file of empty pages; returns its number."""
        machine = self.machine
        made = machine.create_file(pages) if on_disk else machine.create_shared(pages, keep=True)
        self.files.append(TaskFile(made, pages, on_disk))
        return len(self.files) - 1

    def fork(self, pid: int) -> int:
        """Forks process `pid`; returns the child's pid."""
        child = self.next_pid
        self.next_pid += 1
        self.processes[child] = self.processes[pid].fork()
        self.parents[child] = pid
        return child

    def exit(self, pid: int) -> None:
        """Ends process `pid` (not the root) and gives its memory back."""
        if pid == ROOT_PID:
            raise ValueError("the root of a task does not exit before the task ends")
        self.processes.pop(pid).exit()
        del self.parents[pid]

    def release(self) -> None:
        """Gives all memory back; the task is over here."""
        self.processes.clear()
        self.parents.clear()
        self.files.clear()
        self.machine.release()
