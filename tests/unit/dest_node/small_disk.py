"""What a destination does on a file system that is really full: run by test_full_disk.py, on one.

``python -m tests.unit.dest_node.small_disk CASE FOLDER``; prints what came of it. A store to a page
of a file for which there is no block ends the process with SIGBUS, so each case has its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dest_node.incoming import IncomingTask, Request
from dest_node.store import StateDirectory
from livemigration.errors import NoSpace
from livemigration.snapshot import digest_task
from predump.faults.disk import FullDisk
from tests.unit.dest_node.arrived import arrived
from tests.unit.dest_node.sender import PAGE, STRUCT, Sender

GROWN = 512


@contextmanager
def full(folder: Path) -> Iterator[None]:
    disk = FullDisk(folder)
    disk.fill()
    yield
    disk.free()


def arriving(store: StateDirectory, *, resident: int) -> tuple[Sender, IncomingTask]:
    """A task of 64 pages that grows to `GROWN` while it is on its way."""
    sender = Sender(STRUCT | {"memory": (GROWN + 64) * PAGE}).map(0, GROWN)
    sender.write(*range(64))
    incoming = IncomingTask.prepare(
        Request("m-1", sender.struct, "", "virtual", resident_pages=resident), store
    )
    for frame in sender.round():
        incoming.apply(frame)
    return sender, incoming


def said(call: object) -> str:
    try:
        call()  # type: ignore[operator]
    except NoSpace as error:
        return str(error)
    return "nothing"


def prepare(folder: Path) -> None:
    """There is no room for what the task has; what was taken is given back."""
    store = StateDirectory(folder)
    free = os.statvfs(folder).f_bfree
    request = Request("m-1", STRUCT | {"memory": 8 << 20}, "", "virtual", resident_pages=2000)
    print(said(lambda: IncomingTask.prepare(request, store)))
    print(os.statvfs(folder).f_bfree == free)


def grow(folder: Path) -> None:
    """The task grows, and the disk does not."""
    store = StateDirectory(folder)
    sender, incoming = arriving(store, resident=64)
    sender.write(*range(64, GROWN))
    with full(folder):
        frames = sender.round()
        print(said(lambda: [incoming.apply(frame) for frame in frames]))
    incoming.give_up()
    sender.sequence, sender.number = 0, -1
    again = IncomingTask.prepare(Request("m-2", sender.struct, "", "virtual"), store)
    for frame in sender.round():
        again.apply(frame)
    print(again.digest().memory_digest == sender.memory_digest())


def hand_over(folder: Path) -> None:
    """What arrived is kept when the disk is full; what runs on needs none of it."""
    store = StateDirectory(folder)
    sender = Sender(STRUCT | {"memory": 256 * PAGE})
    incoming = arrived(store, sender)
    incoming.take_over(sender.memory_digest())
    # The running task gets memory that it never had.
    with full(folder):
        machine = incoming.task.machine
        machine.content[-200:] = 7
        print(int(machine.content[-200:].sum()) == 200 * PAGE * 7)
    store.close()
    found = IncomingTask.recover(StateDirectory(folder))
    assert found is not None
    print(digest_task(found.task).memory_digest == sender.memory_digest())


if __name__ == "__main__":
    {each.__name__: each for each in (prepare, grow, hand_over)}[sys.argv[1]](Path(sys.argv[2]))
