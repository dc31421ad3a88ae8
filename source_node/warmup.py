"""Load the compiled code that a migration needs at the source, before one is asked for.

Numba loads a function from its cache when it is first called, which takes a good part of a second
for all of them. A host that has just started would spend that in its first round 0.
"""

from __future__ import annotations

import os

import numpy as np

from livemigration.errors import MigrationError
from livemigration.host.memory import host_memory, host_task
from livemigration.snapshot import digest_task
from livemigration.task import ROOT_PID
from livemigration.warm import encoded_frames, pages_frame, small_task
from mm_model import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from source_node.host_tracker import HostTracker
from source_node.tracker import Tracker

_BASE = 0x1000_0000


def warm_up() -> None:
    """Scans, gathers and digests a task of a few pages, in the model and in real memory."""
    _warm_model()
    _warm_host()


def _warm_model() -> None:
    task, addresses = small_task()
    mm, start = task.processes[ROOT_PID], int(addresses[0])
    tracker = Tracker()
    for first in (True, False):
        scan = tracker.scan(task, first=first)
        mm.clear_refs(4)
        tracker.count_dirty(task)
        for pages in scan.processes[0].send_by_vma:
            pages_frame(task, pages, sequence=1)
            encoded_frames(pages, task.machine.page_size, sequence=1)
            tracker.note(ROOT_PID, pages, mm.versions(start, pages.size), 0)
    digest_task(task)
    task.release()


def _warm_host() -> None:
    page_size = os.sysconf("SC_PAGE_SIZE")
    try:
        task = host_task(1, page_size)
    except MigrationError:
        return  # a kernel that cannot track: whoever asks for it is told then
    mm = host_memory(task)
    mm.mmap(_BASE, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    mm.store_words(np.array([_BASE], np.uint64), np.ones(1, np.uint64))
    tracker = HostTracker()
    tracker.scan(task, first=True)
    tracker.reset(task)
    task.release()
