"""Files travel by their bytes: what changed is sent, however it was changed; holes are told."""

from __future__ import annotations

import numpy as np
import pytest

from livemigration.task import Task
from mm_model import MAP_FIXED, MAP_PRIVATE, MAP_SHARED, Machine, ModelConfig
from source_node.tracker import RoundScan, Tracker

PAGE = 4096
BASE = 0x10_0000_0000
COPY = 0x20_0000_0000
RW = 3


class Source:
    """A task with a file of eight pages, mapped shared and private, migrated by hand."""

    def __init__(self, kind: str = "soft-dirty", *, on_disk: bool = True) -> None:
        self.task = Task(Machine(ModelConfig(frames=256, swap_slots=64)))
        self.task.create_file(8, on_disk=on_disk)
        self.file = self.task.files[0]
        self.mm = self.task.processes[1]
        for start, sharing in ((BASE, MAP_SHARED), (COPY, MAP_PRIVATE)):
            self.mm.mmap(start, 8 * PAGE, RW, sharing | MAP_FIXED, shared_id=self.file.object_id)
        self.tracker = Tracker(kind, shared_in_rounds=True)
        self.number = -1
        self.stamp = 0

    def write(self, *pages: int, base: int = BASE) -> None:
        where = np.uint64(base) + np.array(pages, np.uint64) * np.uint64(PAGE)
        self.stamp += 1
        self.mm.store_words(where, np.full(len(pages), self.stamp, np.uint64))

    def write_file(self, page: int) -> None:
        self.stamp += 1
        data = self.stamp.to_bytes(8, "little")
        self.task.machine.file_write(self.file.object_id, page * PAGE, data)

    def round(self) -> RoundScan:
        """Scan, reset, and all of it sent at once."""
        self.number += 1
        scan = self.tracker.scan(self.task, first=self.number == 0)
        self.tracker.reset(self.task)
        rows = self.task.machine.object_frames(self.file.object_id)
        for found in scan.files:
            versions = self.task.machine.phys.version[rows[found.send]]
            self.tracker.note_file(found.number, found.send, versions, self.number)
        for process in scan.processes:
            mm = self.task.processes[process.space.pid]
            versions = [int(mm.versions(int(at), 1)[0]) for at in process.send]
            self.tracker.note(
                process.space.pid, process.send, np.array(versions, np.uint64), self.number
            )
        return scan


def sent(scan: RoundScan) -> tuple[list[int], list[int]]:
    """Pages of the file, and private copies, that a round sends."""
    (process,) = scan.processes
    copies = [(int(at) - COPY) // PAGE for at in process.send]
    return scan.files[0].send.tolist(), copies


TRACKERS = pytest.mark.parametrize("kind", ["soft-dirty", "uffd-wp"])
WHERE = pytest.mark.parametrize("on_disk", [True, False])


@TRACKERS
@WHERE
def test_whatever_changes_a_file_is_sent_and_nothing_else(kind: str, on_disk: bool) -> None:
    source = Source(kind, on_disk=on_disk)
    source.write(0, 1, 2)
    assert sent(source.round()) == ([0, 1, 2], [])
    assert sent(source.round()) == ([], [])
    source.write(1)
    source.write_file(5)
    scan = source.round()
    assert sent(scan) == ([1, 5], [])
    assert (scan.written, scan.to_send, scan.skipped, scan.lost, scan.spurious) == (2, 2, 2, 0, 0)
    if on_disk:
        source.task.machine.sync_file(source.file.object_id)
        source.task.machine.drop_caches()
    assert sent(source.round()) == ([], [])


@TRACKERS
@WHERE
def test_private_copies_are_the_process_own_and_the_rest_is_the_files(
    kind: str, on_disk: bool
) -> None:
    source = Source(kind, on_disk=on_disk)
    source.write(0, 1, 2, 3)
    source.mm.touch(np.array([COPY, COPY + PAGE], np.uint64))
    assert sent(source.round()) == ([0, 1, 2, 3], [])
    source.write(1, base=COPY)
    assert sent(source.round()) == ([], [1])
    source.write(1, 2)  # the copy stays as it is
    assert sent(source.round()) == ([1, 2], [])
    source.write(1, 2, base=COPY)
    scan = source.round()
    assert sent(scan) == ([], [1, 2])
    assert scan.lost == 0


@TRACKERS
@WHERE
def test_files_in_memory_may_wait_for_the_final_round(kind: str, on_disk: bool) -> None:
    """CRIU has memfds in its dump alone; a disk's files a copier brings in every round."""
    source = Source(kind, on_disk=on_disk)
    source.tracker = Tracker(kind)
    source.write(0, 1, 2)
    source.write(1, base=COPY)
    first = source.round()
    assert sent(first) == ([0, 1, 2] if on_disk else [], [1])
    assert first.files[0].live.tolist() == [0, 1, 2]
    assert (first.left, first.skipped) == (0 if on_disk else 3, 0)
    source.write(2)
    assert source.tracker.count_dirty(source.task) == (1 if on_disk else 0)
    assert sent(source.round()) == ([2] if on_disk else [], [])
    final = source.tracker.scan(source.task, first=False, final=True)
    assert sent(final) == ([] if on_disk else [0, 1, 2], [])
    assert (final.left, final.lost, final.spurious) == (0, 0, 0)


def test_holes_are_told_and_come_back_as_news() -> None:
    source = Source()
    source.write(0, 1, 2)
    source.round()
    source.task.machine.punch_hole(source.file.object_id, 1, 1)
    scan = source.round()
    assert scan.files[0].live.tolist() == [0, 2]
    assert sent(scan) == ([], [])
    source.write(1)
    assert sent(source.round()) == ([1], [])


def test_counting_what_is_dirty_counts_files() -> None:
    source = Source()
    source.write(0, 1, 2)
    source.round()
    source.write_file(1)
    source.write_file(6)
    assert source.tracker.count_dirty(source.task) == 2
    assert sent(source.round()) == ([1, 6], [])


def test_the_round_of_a_page_that_differs_is_that_of_the_files_page() -> None:
    source = Source()
    source.write(0, 1)
    source.round()
    source.write(1)
    source.write(2, base=COPY)
    source.round()
    where = np.uint64(COPY) + np.arange(4, dtype=np.uint64) * np.uint64(PAGE)
    assert source.tracker.last_rounds(1, where).tolist() == [0, 1, 1, -1]
