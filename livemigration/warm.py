"""Getting ready beside everything else that a host does when it starts.

Compiled code is loaded from Numba's cache when it is first called, or compiled if it is not there
yet; either belongs before the first migration and not in its round 0. A host that is told to stop
meanwhile stops at once, so the work is in a thread that nothing waits for but a migration.

What each host does to get ready is its own; the few pages that it does it with are made here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from livemigration.costs import CostSpec
from livemigration.encoding.encoder import build_encoder
from livemigration.packing import Packing, encode, pack_from
from livemigration.spec import AutoEncodingSpec
from livemigration.task import ROOT_PID, Task
from mm_model import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, Machine, ModelConfig

U64 = NDArray[np.uint64]

_PAGES = 16


class WarmUp:
    """Work that runs once, in the background."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, name="warm-up", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def wait(self) -> None:
        """Blocks until the work is done; at once if it never began."""
        if self._thread.ident is not None:
            self._thread.join()


def small_task() -> tuple[Task, U64]:
    """A task of one process with a few written pages, and their addresses."""
    task = Task(Machine(ModelConfig(frames=4 * _PAGES)))
    mm, page_size = task.processes[ROOT_PID], task.machine.page_size
    start = mm.mmap(None, _PAGES * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    addresses = np.uint64(start) + np.arange(_PAGES, dtype=np.uint64) * np.uint64(page_size)
    mm.touch_write(addresses)
    return task, addresses


def pages_frame(task: Task, addresses: U64, sequence: int) -> bytes:
    """A frame of round 0 with pages of a small task, whatever is in them."""
    packing = pack_from(task.processes[ROOT_PID], addresses)
    return encode(packing, task.machine.content, sequence=sequence, round_number=0, pid=ROOT_PID)


def encoded_frames(addresses: U64, page_size: int, sequence: int) -> list[bytes]:
    """Two frames of pages that lie side by side, as the automatic choice sends them: compressed,
    and as deltas.
    """
    encoder = build_encoder(
        AutoEncodingSpec(),
        CostSpec(),
        bandwidth=1,
        page_size=page_size,
        memory_pages=addresses.size,
    )
    assert encoder is not None
    pages = np.ones(addresses.size * page_size, np.uint8)
    none = np.zeros(0, np.uint64)
    packing = Packing(
        addresses=addresses,
        versions=addresses,
        rows=np.arange(addresses.size),
        run_start=addresses[:1],
        run_pages=np.array([addresses.size], np.uint64),
        zero_start=none,
        zero_pages=none,
    )
    return [
        encoder.encode(packing, pages, sequence=number, round_number=0, pid=ROOT_PID).message
        for number in (sequence, sequence + 1)
    ]
