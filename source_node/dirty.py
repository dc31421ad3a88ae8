"""Who says which pages were written: the model's page tables, or the kernel of this host."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from livemigration.task import Task
from source_node.host_tracker import HostTracker
from source_node.tracker import DirtyVma, RoundScan, Tracker

U64 = NDArray[np.uint64]


class DirtyTracker(Protocol):
    """What a migration asks, round by round; see `source_node.tracker.Tracker`."""

    def scan(self, task: Task, *, first: bool, final: bool = False) -> RoundScan:
        """What is there and what to send now, of a task at rest."""
        ...

    def reset(self, task: Task) -> None:
        """From now on only what is written anew counts."""
        ...

    def stop(self, task: Task) -> None:
        """The task goes on here, untracked."""
        ...

    def count_dirty(self, task: Task) -> int:
        """Pages that a pre-dump would send now."""
        ...

    def written_since(self, task: Task) -> list[DirtyVma]:
        """Every mapping now, with the pages written since the last scan, for who looks on."""
        ...

    def note(self, pid: int, addresses: U64, versions: U64, round_number: int) -> None:
        """These pages went out."""
        ...

    def note_file(self, number: int, pages: NDArray[np.int64], versions: U64, at: int) -> None:
        """These pages of a file went out in round `at`."""
        ...

    def last_rounds(self, pid: int, addresses: U64) -> NDArray[np.int32]:
        """The round that last sent each page; -1: never."""
        ...


def build_tracker(kind: str, *, shared_in_rounds: bool) -> DirtyTracker:
    """The tracker that a specification names; the host's tasks share no memory."""
    return HostTracker() if kind == "host" else Tracker(kind, shared_in_rounds=shared_in_rounds)
