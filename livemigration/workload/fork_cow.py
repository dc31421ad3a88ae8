"""A data store that forks snapshot children, as Redis does for BGSAVE.

Source: Redis' documentation of RDB persistence: the parent forks, the child walks through all of
its memory to write it out while the parent goes on serving writes, each first one copying a page,
and the child exits. Shared pages stand for what such stores keep in shared memory (PostgreSQL's
buffers, say). While a child lives, a migration has two processes and memory that both of them hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from livemigration.workload.base import (
    READ_WRITE,
    REGION_BASE,
    ROOT,
    Setting,
    Tally,
    Task,
    Workload,
    WorkloadError,
)
from livemigration.workload.clock import RateClock
from livemigration.workload.content import Content
from livemigration.workload.spec import MOST_CHILDREN, ForkCowSpec
from livemigration.workload.stream import (
    Pattern,
    Sideways,
    StoreStream,
    Uniform,
    Zipf,
    populate,
)
from livemigration.workload.targets import Targets
from livemigration.workload.writers import image_targets, map_region
from mm_model import MAP_ANONYMOUS, MAP_FIXED_NOREPLACE, MAP_SHARED

SHARED_BASE = 0x30_0000_0000
"""Where the shared segment is mapped."""
_STEPS = 64  # pieces in which a child reads through the memory
_SHARED = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE


class ForkCowWorkload(Workload):
    """Parent writes on while its children read, write a little, and exit.

    Events, in this order where several fall on one operation: children of age ``child_life`` exit;
    children whose age is a multiple of a 64th of that read the next piece of the private memory and
    write a few private and shared pages; every ``fork_every`` operations a child is forked.
    """

    def __init__(self, spec: ForkCowSpec, setting: Setting) -> None:
        setting.check_write_size(spec.write_size)
        super().__init__(
            setting, RateClock(spec.writes_per_second(setting.page_size)), Content.of(spec)
        )
        self._spec = spec
        self._shared_pages = setting.pages_of("shared", spec.shared, setting.pages // 16)
        private = setting.pages - self._shared_pages
        if private < 1:
            raise WorkloadError(
                "workload.shared leaves no private memory; make it smaller than memory"
            )
        self._step = max(1, spec.child_life // _STEPS)
        self._children: list[tuple[int, int]] = []  # (pid, operation at which it was forked)
        self._adopt(Targets.region(REGION_BASE, private, setting.page_size))

    @property
    def peak_pages(self) -> int:
        """Every process with a private copy of everything."""
        children = -(-self._spec.child_life // self._spec.fork_every)
        return self.setting.pages + children * self._private.count

    def setup(self, task: Task, *, populate: bool, from_image: bool = False) -> None:
        """See `Workload.setup`; the shared segment is mapped in addition to an image's memory."""
        if from_image:
            self._adopt(image_targets(task, self.setting))
        else:
            map_region(task, self._private, self.setting, self._content, fill=populate)
        self._map_shared(task, fill=populate and not from_image)

    def _map_shared(self, task: Task, *, fill: bool) -> None:
        mm = task.processes[ROOT]
        mm.mmap(
            SHARED_BASE,
            self._shared_pages * self.setting.page_size,
            READ_WRITE,
            _SHARED,
            shared_id=task.machine.create_shared(self._shared_pages),
        )
        if fill:
            # Numbered after the private pages, so that no two pages have the same content.
            populate(
                mm,
                Targets.region(SHARED_BASE, self._shared_pages, self.setting.page_size),
                self._content,
                self.setting.seed,
                first=self._private.count,
            )

    def _adopt(self, private: Targets) -> None:
        """Private pages to work on: makes the streams of parent and children over them."""
        self._private = private
        page_size = self.setting.page_size
        if private.table.size:
            shared = np.arange(self._shared_pages, dtype=np.uint64) * np.uint64(page_size)
            table = np.concatenate((private.table, np.uint64(SHARED_BASE) + shared))
            both = Targets.of_table(table, page_size)
        else:
            both = Targets.two_regions(
                private.base, private.count, SHARED_BASE, self._shared_pages, page_size
            )
        self._both = both
        self._parent: StoreStream | None = None
        self._child: StoreStream | None = None

    def _parent_stream(self) -> StoreStream:
        if self._parent is None:
            seed, spec = self.setting.seed, self._spec
            pattern: Pattern = (
                Uniform(self._private.count, seed)
                if spec.access == "uniform"
                else Zipf(self._private.count, seed, spec.theta, scrambled=True)
            )
            self._parent = StoreStream(
                Sideways(pattern, self._shared_pages, seed, spec.shared_probability),
                self._both,
                write_size=spec.write_size,
                content=self._content,
                seed=seed,
            )
        return self._parent

    def _child_stream(self) -> StoreStream:
        """Stores of children: half of them to shared pages."""
        if self._child is None:
            seed = self.setting.seed + 1  # other draws than the parent's, of the same kind
            self._child = StoreStream(
                Sideways(Uniform(self._private.count, seed), self._shared_pages, seed, 0.5),
                self._both,
                write_size=self._spec.write_size,
                content=self._content,
                seed=seed,
                name="child stores",
            )
        return self._child

    def _event(self, task: Task, k: int, tally: Tally) -> None:
        life = self._spec.child_life
        for pid, born in [child for child in self._children if k - child[1] >= life]:
            task.exit(pid)
            self._children.remove((pid, born))
        for pid, born in self._children:
            if k > born and (k - born) % self._step == 0:
                self._child_step(task, pid, born, k, tally)
        if k and k % self._spec.fork_every == 0:
            self._children.append((task.fork(ROOT), k))

    def _child_step(self, task: Task, pid: int, born: int, k: int, tally: Tally) -> None:
        """The child reads its next piece of the private memory and writes a few pages."""
        steps = -(-self._spec.child_life // self._step)
        step = (k - born) // self._step
        pages = self._private.count
        piece = np.arange((step - 1) * pages // steps, step * pages // steps, dtype=np.int64)
        mm = task.processes[pid]
        if piece.size:
            tally.faults += mm.touch(self._private.addresses(piece))
        # A number for each store that no other child at any operation has.
        turn = born // self._spec.fork_every % (MOST_CHILDREN + 1)
        first = (k * (MOST_CHILDREN + 1) + turn) * self._spec.child_writes
        self._child_stream().run(mm, first, first + self._spec.child_writes, tally)

    def _next_event(self, k: int) -> int:
        forks = self._spec.fork_every
        coming = [(k // forks + 1) * forks]
        for _, born in self._children:
            coming.append(born + self._spec.child_life)
            coming.append(born + ((k - born) // self._step + 1) * self._step)
        return min(at for at in coming if at > k)

    def _stores(self, task: Task, first: int, stop: int, tally: Tally) -> None:
        self._parent_stream().run(task.processes[ROOT], first, stop, tally)

    def _extra_state(self) -> dict[str, Any]:
        return {
            "targets": self._private.state(),
            "children": [list(child) for child in self._children],
        }

    def _restore_extra(self, state: Mapping[str, Any]) -> None:
        self._adopt(Targets.from_state(dict(state["targets"]), self.setting.page_size))
        self._children = [(int(pid), int(born)) for pid, born in state["children"]]
