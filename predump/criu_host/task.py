"""One simulated task as a tool sees it: a pid, memory that a workload writes, frozen while dumped.

By the wall clock the task runs in real time. By the virtual clock it stands still between requests
and runs for a fixed step of its own time before each dump, and during a pre-dump for as long as the
copy takes by the cost model: the same requests then give the same images on every machine.

Order and rules of a dump are CRIU's (criu/mem.c): freeze, read the pagemaps, clear_refs, and after
a pre-dump thaw before the pages are copied.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from livemigration.costs import CostSpec
from livemigration.execution import Execution
from livemigration.spec import TaskSpec
from livemigration.task import Task
from livemigration.workload import Workload
from source_node.tracker import RoundScan, Tracker


@dataclass(frozen=True, slots=True)
class Directory:
    """An image directory by what it is, whatever it is called."""

    device: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Directory:
        """Raises OSError."""
        status = path.stat()
        return cls(status.st_dev, status.st_ino)


@dataclass(slots=True)
class Timing:
    """How long a dump took, in microseconds, as stats-dump has it."""

    freezing: int = 0
    frozen: int = 0
    memdump: int = 0
    memwrite: int = 0


@dataclass(slots=True)
class SimulatedTask:
    """A task with the pid that tools know it by.

    pids: the processes of the model -> pids in images; `last`: the directory of the last dump that
    cleared soft-dirty bits, None if there is none whose pages can be left out of the next.
    """

    pid: int
    name: str
    spec: TaskSpec
    costs: CostSpec
    clock: str
    step_ns: int
    task: Task
    workload: Workload
    execution: Execution
    base_dir: Path
    extra_pages: int = 0
    pids: dict[int, int] = field(default_factory=dict)
    tracker: Tracker = field(default_factory=Tracker)
    last: Directory | None = None
    stopped: bool = False
    own_net: bool = False  # it has a network namespace of its own, which is locked for a dump
    stand_in: int = -1  # a pidfd of the real process that is this task to the outside; -1: none
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0  # as waitpid gives it, once it has ended

    @property
    def wall(self) -> bool:
        """Whether it runs in real time."""
        return self.clock == "wall"

    async def freeze(self) -> None:
        """Stops it; by the virtual clock after a step of running."""
        if not self.wall and self.step_ns and self.execution.running:
            await asyncio.to_thread(self.execution.advance, self.step_ns)
        await self.execution.freeze()

    def thaw(self) -> None:
        """Lets it go on, unless it is to be stopped."""
        if not self.stopped:
            self.execution.thaw()

    async def scan(self, *, first: bool, final: bool, reset: bool) -> RoundScan:
        """Reads the pagemaps of the frozen task and, with `reset`, clears its soft-dirty bits."""
        return await asyncio.to_thread(self._scan, first, final, reset)

    def _scan(self, first: bool, final: bool, reset: bool) -> RoundScan:
        with self.execution.lock:
            found = self.tracker.scan(self.task, first=first, final=final)
            if reset:
                self.tracker.reset(self.task)
        return found

    async def end(self, status: int) -> None:
        """The task is no more; its memory is given back."""
        await self.execution.close()
        with self.execution.lock:  # a dump that was broken off may still look at it
            self.task.release()
        self.status = status
        self.ended.set()
