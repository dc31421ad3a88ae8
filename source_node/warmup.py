"""Load the compiled code that a migration needs at the source, before one is asked for.

Numba loads a function from its cache when it is first called, which takes a good part of a second
for all of them. A host that has just started would spend that in its first round 0.
"""

from __future__ import annotations

from livemigration.snapshot import digest_task
from livemigration.task import ROOT_PID
from livemigration.warm import encoded_frames, pages_frame, small_task
from source_node.tracker import Tracker


def warm_up() -> None:
    """Scans, gathers and digests a task of a few pages."""
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
