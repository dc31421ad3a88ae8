"""Which pages of the task's files to send: those whose bytes are not what was sent last.

This is what a copier of file systems finds by comparing (rsync), not what the kernel reports: see
`livemigration.files`. So no page of a file is ever lost, and none is sent for nothing.

Files in memory (memfds, files on a tmpfs) are on no disk that a copier reads: CRIU has them in its
dump alone (criu/memfd.c; criu/filesystems.c, tmpfs_dump()), so they may wait for the final round.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from livemigration.files import file_pages
from livemigration.task import Task, TaskFile

Pages = NDArray[np.int64]

NEVER = np.uint64(2**64 - 1)
"""The version of a page that was never sent; no content ever has it."""


@dataclass(frozen=True, slots=True)
class FileScan:
    """One file at one scan, by page numbers, ascending."""

    number: int
    file: TaskFile
    live: Pages
    send: Pages
    left: int = 0  # live, and left to the final round


@dataclass(slots=True)
class _Sent:
    versions: NDArray[np.uint64]
    rounds: NDArray[np.int32]


@dataclass(slots=True)
class FileTracker:
    """Remembers what the destination has of each file."""

    _sent: list[_Sent] = field(default_factory=list)

    def scan(self, task: Task, *, in_memory: bool = True) -> list[FileScan]:
        """What there is, and what of it to send; without `in_memory` only of files on a disk."""
        return [
            self._scan(task, number, file, now=in_memory or file.on_disk)
            for number, file in enumerate(task.files)
        ]

    def _scan(self, task: Task, number: int, file: TaskFile, *, now: bool) -> FileScan:
        if number == len(self._sent):
            never = np.full(file.pages, NEVER), np.full(file.pages, -1, dtype=np.int32)
            self._sent.append(_Sent(*never))
        live, rows = file_pages(task.machine, file)
        sent = self._sent[number]
        gone = np.ones(file.pages, dtype=np.bool_)
        gone[live] = False
        sent.versions[gone] = NEVER  # the destination drops them at this round
        if not now:
            return FileScan(number, file, live, live[:0], left=int(live.size))
        changed = task.machine.phys.version[rows] != sent.versions[live]
        return FileScan(number, file, live, live[changed])

    def note(self, number: int, pages: Pages, versions: NDArray[np.uint64], in_round: int) -> None:
        """These pages went out with these content versions."""
        self._sent[number].versions[pages] = versions
        self._sent[number].rounds[pages] = in_round

    def last_round(self, number: int, page: int) -> int:
        """The round that last sent a page; -1: never, or it is beyond the file's end."""
        rounds = self._sent[number].rounds
        return int(rounds[page]) if page < rounds.size else -1
