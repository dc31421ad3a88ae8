"""What all workloads share: numbered operations, their due times, state that travels.

A workload is a stream of operations 0, 1, 2, ...; operation k is one store (of ``write_size``
bytes, say), preceded, at operation numbers that the kind fixes, by an *event*: a fork, a brk, a
swap-out. Both are functions of (specification, seed, k) alone; batches end at events, so a run cut
into slices of time at any points does the same things in the same order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from livemigration.units import format_size
from livemigration.workload.clock import NEVER_NS, OpClock
from livemigration.workload.content import Content
from livemigration.workload.kernels import stream_key
from mm_model import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
)

REGION_BASE = 0x10_0000_0000
"""Where the memory of a synthetic workload begins in process 1."""
ROOT = 1
"""The process that the workload is."""
READ_WRITE = PROT_READ | PROT_WRITE
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE


class WorkloadError(ValueError):
    """A workload that cannot be built or run as asked; one line that says what to change."""


class TaskFile(Protocol):
    """A file of a task."""

    @property
    def object_id(self) -> int:
        """Its object on this host's machine."""


class Task(Protocol):
    """The part of a task that workloads use."""

    @property
    def machine(self) -> Machine:
        """The host."""

    @property
    def processes(self) -> Mapping[int, Mm]:
        """Address spaces by process id; the root is 1."""

    @property
    def files(self) -> Sequence[TaskFile]:
        """The files that it made, by number."""

    def create_file(self, pages: int, /, *, on_disk: bool) -> int:
        """A new file of so many empty pages; its number, which depends on history alone."""

    def fork(self, pid: int, /) -> int:
        """A copy-on-write child of ``pid``; its process id, which must depend on history alone."""

    def exit(self, pid: int, /) -> None:
        """The end of ``pid`` and of its memory."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a workload is told besides its specification."""

    seed: int
    memory_bytes: int
    page_size: int
    base_dir: Path

    @property
    def pages(self) -> int:
        """Memory in pages."""
        return self.memory_bytes // self.page_size

    def key(self, stream: str) -> int:
        """The key of a named random stream of this run."""
        return stream_key(self.seed, stream)

    def pages_of(self, key: str, size: int, default: int) -> int:
        """A size from the specification in whole pages; 0 bytes mean ``default`` pages."""
        if size == 0:
            return max(1, default)
        if size % self.page_size or size > self.memory_bytes:
            raise WorkloadError(
                f"workload.{key} = {format_size(size)} must be a multiple of the page size "
                f"({format_size(self.page_size)}) and at most memory "
                f"({format_size(self.memory_bytes)})"
            )
        return size // self.page_size

    def check_write_size(self, size: int) -> int:
        """``size`` if such a write fits in a page."""
        if size > self.page_size:
            raise WorkloadError(
                f"workload.write_size = {size} is larger than a page; "
                f"it must be at most {self.page_size}"
            )
        return size


@dataclass(frozen=True, slots=True)
class RunStats:
    """What a run did."""

    ops: int = 0
    """Operations executed."""
    stores: int = 0
    """Stores executed, by all processes."""
    faults: int = 0
    """Page faults that stores and reads took."""
    bytes: int = 0
    """Bytes stored."""


@dataclass(slots=True)
class Tally:
    """Counters of a run in progress."""

    stores: int = 0
    faults: int = 0
    bytes: int = 0


class Workload(ABC):
    """A deterministic stream of operations; see `livemigration.workload`."""

    def __init__(self, setting: Setting, clock: OpClock, content: Content) -> None:
        self.setting = setting
        self.ops_done = 0
        """Operations executed so far; the next one has this number."""
        self._clock = clock
        self._content = content
        self._tally = Tally()  # of the run under way, or of the last one
        self._stores_before: int | None = None  # by then, if stores are under way and no event

    @property
    @abstractmethod
    def peak_pages(self) -> int:
        """Upper bound of the pages of content that all processes have together.

        Without what a CRIU image brought.
        """

    @property
    def swap_pages(self) -> int:
        """Swap slots that the workload can make use of."""
        return 0

    def due_ns(self, k: int) -> int:
        """When operation ``k`` is due, in workload time; 2**62 if it never comes."""
        return self._clock.due_ns(k)

    @abstractmethod
    def setup(self, task: Task, *, populate: bool, from_image: bool = False) -> None:
        """Map the workload's memory in process 1 and, if ``populate``, write all of it once.

        With ``from_image`` the memory is there already: the workload writes over the pages that
        writable private mappings have. Raises WorkloadError if there are none, or if this kind
        brings its own memory.
        """

    def run_until(self, task: Task, until_ns: int, max_ops: int | None = None) -> RunStats:
        """Execute all operations due before ``until_ns``, but at most ``max_ops``."""
        begin = self.ops_done
        end = self._clock.due_before(until_ns)
        if max_ops is not None:
            end = min(end, begin + max_ops)
        tally = self._tally = Tally()
        while self.ops_done < end:
            k = self.ops_done
            self._stores_before = None
            self._event(task, k, tally)
            stop = min(end, self._next_event(k))
            self._stores_before = tally.stores
            self._stores(task, k, stop, tally)
            self.ops_done = stop
        return RunStats(self.ops_done - begin, tally.stores, tally.faults, tally.bytes)

    def operation_at(self, position: int) -> int:
        """The operation that makes access number `position` of the batch that the task makes now.

        For somebody whom the task calls from within a batch: see `dest_node.lazy_task`.
        """
        if self._stores_before is None:
            return self.ops_done
        return self.ops_done + self._tally.stores - self._stores_before + position

    def state(self) -> dict[str, Any]:
        """All that is needed to go on elsewhere, given the memory: JSON-able, msgpack-able."""
        return {"ops": self.ops_done, **self._extra_state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where the workload was whose `state` this is."""
        self.ops_done = int(state["ops"])
        self._restore_extra(state)

    def _event(self, task: Task, k: int, tally: Tally) -> None:  # noqa: B027  most have none
        """What happens just before the store of operation ``k``, if anything."""

    def _next_event(self, k: int) -> int:
        """The smallest operation number above ``k`` that has an event."""
        return NEVER_NS

    @abstractmethod
    def _stores(self, task: Task, first: int, stop: int, tally: Tally) -> None:
        """The stores of operations [first, stop), between which there is no event."""

    def _extra_state(self) -> dict[str, Any]:
        """State besides the number of operations done."""
        return {}

    def _restore_extra(self, state: Mapping[str, Any]) -> None:  # noqa: B027  or no extra state
        """The inverse of `_extra_state`."""
