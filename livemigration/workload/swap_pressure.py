"""A task short of memory: a window of pages is swapped out as it slides over the memory.

It models a memory cgroup under pressure (pages leave by MADV_PAGEOUT, as with proactive reclaim
through process_madvise, and come back when they are read or written) and, besides, mprotect round
trips of a sealed area, as garbage collectors and just-in-time compilers make them. A soft-dirty bit
that gets lost on the way to swap, back, or through a change of protection shows up here.
"""

from __future__ import annotations

import numpy as np

from livemigration.workload.base import READ_WRITE, ROOT, Setting, Tally, Task
from livemigration.workload.clock import RateClock
from livemigration.workload.content import Content
from livemigration.workload.kernels import draw_below, wrapping
from livemigration.workload.spec import SwapPressureSpec
from livemigration.workload.stream import Sequential, StoreStream, Uniform
from livemigration.workload.targets import Targets
from livemigration.workload.writers import RegionWorkload
from mm_model import MADV_PAGEOUT, PROT_READ

_SEALED_SHARE = 16  # the last 1/16 of the pages is the sealed area
_SEALED_PARTS = 8
_SEALED_WRITES = 4


class SwapPressureWorkload(RegionWorkload):
    """Writes, with an event every ``every`` operations.

    Event e swaps out window e (windows follow each other, round and round), then reads ``reads``
    random pages. Every ``protect_every`` events a part of the sealed area changes its protection:
    read-only after a few writes, then, one change later, writable again and written.
    """

    def __init__(self, spec: SwapPressureSpec, setting: Setting) -> None:
        setting.check_write_size(spec.write_size)
        setting.pages_of("working_set", spec.working_set, setting.pages)
        self._window = setting.pages_of("window", spec.window, setting.pages // 32)
        self._read_key = np.uint64(setting.key("reads"))
        self._spec = spec
        super().__init__(
            setting, RateClock(spec.writes_per_second(setting.page_size)), Content.of(spec)
        )

    @property
    def swap_pages(self) -> int:
        """All of the memory could be out."""
        return self.setting.pages

    def _adopt(self, targets: Targets) -> None:
        """The sealed area is at the end; the writes go to the pages before it."""
        super()._adopt(targets)
        self._sealed = targets.count // _SEALED_SHARE if self._spec.protect_every else 0
        self._open = targets.count - self._sealed
        self._stream: StoreStream | None = None
        self._sealed_stream: StoreStream | None = None

    def _written(self) -> Targets:
        used = self._targets.first(self._open)
        if self._spec.working_set:
            used = used.first(self._spec.working_set // self.setting.page_size)
        return used

    def _make_stream(self, targets: Targets, name: str) -> StoreStream:
        pattern = (
            Uniform(targets.count, self.setting.seed)
            if name == "stores"
            else Sequential(targets.count)
        )
        return StoreStream(
            pattern,
            targets,
            write_size=self._spec.write_size,
            content=self._content,
            seed=self.setting.seed,
            name=name,
        )

    def _event(self, task: Task, k: int, tally: Tally) -> None:
        if k == 0 or k % self._spec.every:
            return
        number = k // self._spec.every
        self._page_out(task, number)
        self._read(task, number, tally)
        every = self._spec.protect_every
        if self._sealed and number % every == 0:
            self._change_protection(task, number // every, tally)

    def _page_out(self, task: Task, number: int) -> None:
        mm, pages = task.processes[ROOT], self._targets.count
        start = (number - 1) * self._window % pages
        for address, length in self._targets.runs(start, min(start + self._window, pages)):
            mm.madvise(address, length, MADV_PAGEOUT)

    def _read(self, task: Task, number: int, tally: Tally) -> None:
        if not self._spec.reads:
            return
        pages = np.empty(self._spec.reads, dtype=np.int64)
        with wrapping():
            draw_below(
                self._read_key,
                np.uint64(number * self._spec.reads),
                np.uint64(self._targets.count),
                pages,
            )
        tally.faults += task.processes[ROOT].touch(self._targets.addresses(pages))

    def _change_protection(self, task: Task, change: int, tally: Tally) -> None:
        """Change 1 seals part 0, change 2 opens it, change 3 seals part 1, and so on."""
        sealing = change % 2 == 1
        part = (change - 1) // 2 % _SEALED_PARTS
        if sealing:
            self._write_sealed(task, part, change, tally)
        mm = task.processes[ROOT]
        for address, length in self._targets.runs(*self._part(part)):
            mm.mprotect(address, length, PROT_READ if sealing else READ_WRITE)
        if not sealing:
            self._write_sealed(task, part, change, tally)

    def _part(self, part: int) -> tuple[int, int]:
        """Pages [first, last) of a part of the sealed area."""
        return (
            self._open + part * self._sealed // _SEALED_PARTS,
            self._open + (part + 1) * self._sealed // _SEALED_PARTS,
        )

    def _write_sealed(self, task: Task, part: int, change: int, tally: Tally) -> None:
        """A few stores to consecutive pages of a part, while it is writable."""
        first, last = self._part(part)
        if first == last:
            return
        if self._sealed_stream is None:
            self._sealed_stream = self._make_stream(self._targets, "sealed")
        number = change * _SEALED_WRITES
        for i in range(_SEALED_WRITES):
            page = first + (number + i) % (last - first)
            self._sealed_stream.run(
                task.processes[ROOT], number + i, number + i + 1, tally, turn=page
            )

    def _next_event(self, k: int) -> int:
        return (k // self._spec.every + 1) * self._spec.every

    def _stores(self, task: Task, first: int, stop: int, tally: Tally) -> None:
        if self._stream is None:
            self._stream = self._make_stream(self._written(), "stores")
        self._stream.run(task.processes[ROOT], first, stop, tally)
