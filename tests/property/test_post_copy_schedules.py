"""Whatever the task does and in whatever order pages come: each comes once, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dest_node.prefetch import DROPPED, HERE, MISSING, AroundFaults, Prefetcher, Sequential
from livemigration.batch import decode
from livemigration.runs import from_runs
from livemigration.snapshot import digest_task
from livemigration.task import Task
from livemigration.v1 import destination_node_pb2
from mm_model import MADV_DONTNEED, MADV_PAGEOUT, MREMAP_FIXED, MREMAP_MAYMOVE, MmError
from tests.unit.dest_node.lazy import PAGE, PRIVATE, RW, Lazy, page, task_of

PAGES = 12
ROOM = 2 * PAGES  # addresses that operations go to
NUMBERS = st.integers(0, ROOM - 1)
RANGES = st.tuples(NUMBERS, st.integers(1, 5))
PIDS = st.integers(0, 2)


@dataclass
class Twins:
    """The same task twice: one has its pages, the other gets them as the test wills."""

    whole: Task
    lazy: Lazy
    order: Prefetcher
    value: int = 1000
    came: Counter[tuple[int, int]] = field(default_factory=Counter)
    on_the_way: list[destination_node_pb2.PageRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lazy.spoil = self._count
        self.lazy.fetch = self._fetch  # type: ignore[method-assign]

    def _count(self, message: bytes) -> bytes:
        frame = decode(message)
        for starts, counts in (
            (frame.run_start, frame.run_pages),
            (frame.zero_start, frame.zero_pages),
        ):
            if starts.size:
                for address in from_runs(starts, counts, PAGE).tolist():
                    self.came[frame.pid, address] += 1
        return message

    def _fetch(self, index: int, position: int) -> None:
        """As the destination does: asks unless the page is under way, then waits for it."""
        if self.lazy.missing.states[index] == MISSING:
            self.on_the_way.append(self.lazy.ask(np.array([index])))
        self.order.fault(index)
        while self.lazy.missing.states[index] != HERE:
            assert self.on_the_way, "the task waits for a page that is not on its way"
            self.arrive(0)

    def arrive(self, which: int) -> None:
        """One of the answers on their way comes, not always the first that was asked for."""
        if self.on_the_way:
            self.lazy.deliver(self.on_the_way.pop(which % len(self.on_the_way)))

    def prefetch(self, most: int) -> None:
        """A batch is asked for."""
        indices = self.order.next(self.lazy.missing.states, most)
        if indices.size:
            self.on_the_way.append(self.lazy.ask(indices))

    def both(self, which: int, call: str, *arguments: Any) -> None:
        """The same call in both tasks, which must end alike."""
        ends: list[object] = []
        for task in (self.whole, self.lazy.seen):
            pid = sorted(task.processes)[which % len(task.processes)]
            try:
                getattr(task.processes[pid], call)(*arguments)
                ends.append(None)
            except MmError as error:
                ends.append((type(error), error.errno))
        assert ends[0] == ends[1], call

    def store(self, which: int, numbers: list[int]) -> None:
        """Eight bytes to each page, next to what the source wrote."""
        self.value += 1
        where = np.array([page(number) + 8 for number in numbers], dtype=np.uint64)
        self.both(which, "store_words", where, np.full(where.size, self.value, dtype=np.uint64))

    def fork(self, which: int) -> None:
        """A child, unless there are three processes."""
        if len(self.whole.processes) < 3:
            pid = sorted(self.whole.processes)[which % len(self.whole.processes)]
            assert self.whole.fork(pid) == self.lazy.seen.fork(pid)

    def exit(self) -> None:
        """The newest child ends."""
        pid = max(self.whole.processes)
        if pid > 1:
            self.whole.exit(pid)
            self.lazy.seen.exit(pid)


STEPS = st.one_of(
    st.tuples(st.just("store"), PIDS, st.lists(NUMBERS, min_size=1, max_size=6)),
    st.tuples(st.just("touch"), PIDS, st.lists(NUMBERS, min_size=1, max_size=6)),
    st.tuples(st.just("munmap"), PIDS, RANGES),
    st.tuples(st.just("map"), PIDS, RANGES),
    st.tuples(st.just("dontneed"), PIDS, RANGES),
    st.tuples(st.just("pageout"), PIDS, RANGES),
    st.tuples(st.just("move"), PIDS, st.tuples(NUMBERS, st.integers(1, 4), NUMBERS)),
    st.tuples(st.just("fork"), PIDS),
    st.tuples(st.just("exit")),
    st.tuples(st.just("prefetch"), st.integers(1, 5)),
    st.tuples(st.just("arrive"), st.integers(0, 3)),
)


def take(twins: Twins, step: tuple[Any, ...]) -> None:
    match step:
        case ("store", which, numbers):
            twins.store(which, numbers)
        case ("touch", which, numbers):
            twins.both(which, "touch", np.array([page(n) for n in numbers], dtype=np.uint64))
        case ("munmap", which, (at, count)):
            twins.both(which, "munmap", page(at), count * PAGE)
        case ("map", which, (at, count)):
            twins.both(which, "mmap", page(at), count * PAGE, RW, PRIVATE)
        case ("dontneed", which, (at, count)):
            twins.both(which, "madvise", page(at), count * PAGE, MADV_DONTNEED)
        case ("pageout", which, (at, count)):
            twins.both(which, "madvise", page(at), count * PAGE, MADV_PAGEOUT)
        case ("move", which, (at, count, to)):
            flags, size = MREMAP_MAYMOVE | MREMAP_FIXED, count * PAGE
            twins.both(which, "mremap", page(at), size, size, flags, page(to))
        case ("fork", which):
            twins.fork(which)
        case ("exit",):
            twins.exit()
        case ("prefetch", most):
            twins.prefetch(most)
        case ("arrive", which):
            twins.arrive(which)


@settings(max_examples=150)
@given(st.lists(STEPS, max_size=25), st.sampled_from(["sequential", "around-faults"]))
def test_pages_come_once_and_the_memory_is_that_of_a_task_that_had_them(
    steps: list[tuple[Any, ...]], prefetch: str
) -> None:
    whole, lazy = task_of(PAGES), Lazy.of(task_of(PAGES))
    borders = lazy.missing.borders
    order = Sequential(borders) if prefetch == "sequential" else AroundFaults(borders, 2)
    twins = Twins(whole, lazy, order)
    for step in steps:
        take(twins, step)
    while lazy.missing.left:
        twins.prefetch(4)
        assert twins.on_the_way, "a page is missing and nobody will bring it"
        twins.arrive(1)
    assert digest_task(lazy.task).memory_digest == digest_task(whole).memory_digest
    assert lazy.missing.different == []
    assert set(twins.came.values()) <= {1}
    # What did not come is what no process needed any more.
    here = np.flatnonzero(lazy.missing.states == HERE).tolist()
    assert {(1, page(index)) for index in here} <= twins.came.keys()
    assert int((lazy.missing.states == DROPPED).sum()) == PAGES - len(here) == lazy.missing.dropped
