"""`memtouch.c` in the model: the same operations on memory, and what a migration would send."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from livemigration.task import Task
from livemigration.workload.base import READ_WRITE, ROOT
from mm_model import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    Machine,
    Mm,
    ModelConfig,
)
from source_node.tracker import Tracker
from tests.interop.memtouch import (
    CHILD_OWN,
    CHILD_OWN_PAGES,
    FILLED,
    GIVEN_BACK,
    GIVEN_BACK_PAGES,
    MAPPED_PAGES,
    PAGE,
    PRIVATE,
    PRIVATE_PAGES,
    READ_ONLY,
    SHARED,
    SHARED_PAGES,
    ZEROS,
    hot,
    mapped_pages,
    private_page,
    shared,
    written_by,
)

_ANONYMOUS: Final = MAP_ANONYMOUS | MAP_FIXED


def modelled_rounds(arch: str, rounds: int) -> list[list[set[int]]]:
    """What the model's source would send of the parent and the child, by round.

    In round k both have taken step k, and the last round is the final one, which has the shared
    memory, too.
    """
    task = Task(Machine(ModelConfig(frames=4096, arch=arch)))
    parent = task.processes[ROOT]
    parent.mmap(PRIVATE, PRIVATE_PAGES * PAGE, READ_WRITE, MAP_PRIVATE | _ANONYMOUS)
    parent.mmap(SHARED, SHARED_PAGES * PAGE, READ_WRITE, MAP_SHARED | _ANONYMOUS)
    _store(parent, {private_page(page) for page in range(FILLED)}, 1)
    _store(parent, {private_page(page) for page in range(FILLED, ZEROS)}, 0)
    parent.touch(_array({private_page(page) for page in range(ZEROS, READ_ONLY)}))
    processes = [parent, task.processes[task.fork(ROOT)]]
    _store(parent, {SHARED + offset for offset in shared()}, 1)
    _store(processes[1], {private_page(CHILD_OWN + page) for page in range(CHILD_OWN_PAGES)}, 2)
    tracker = Tracker()
    sent = []
    for step in range(1, rounds + 1):
        for mm in processes:
            mm.mmap(
                min(mapped_pages(step)), MAPPED_PAGES * PAGE, READ_WRITE, MAP_PRIVATE | _ANONYMOUS
            )
            _store(mm, hot() | written_by(step), step)
            if step == 2:
                mm.madvise(private_page(GIVEN_BACK), GIVEN_BACK_PAGES * PAGE, MADV_DONTNEED)
            if step == 3:
                mm.munmap(min(mapped_pages(1)), MAPPED_PAGES * PAGE)
        scan = tracker.scan(task, first=step == 1, final=step == rounds)
        tracker.reset(task)
        sent.append([set(process.send.tolist()) for process in scan.processes])
    task.release()
    return sent


def _store(mm: Mm, pages: set[int], value: int) -> None:
    addresses = _array(pages)
    mm.store_words(addresses, np.full(addresses.size, value, dtype=np.uint64))


def _array(pages: set[int]) -> NDArray[np.uint64]:
    return np.array(sorted(pages), dtype=np.uint64)
