"""The pages of one dump on their way into images: a directory here, or a page server.

Pages are copied when their turn comes. After a pre-dump the task runs meanwhile, so a page may have
become newer (it is soft-dirty again then), or be gone, and is left out then as CRIU's read mode
does (criu/page-xfer.c, page_xfer_predump_pages): the next dump does not list it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.errors import ImageError
from livemigration.criu.listed_pages import ListedPages
from livemigration.criu.magic import PageFlags
from livemigration.criu.page_images import PageImage
from livemigration.criu.page_server.channel import Buffer
from livemigration.criu.page_server.protocol import Target, TargetKind
from livemigration.digest import gather_bytes
from predump.criu_host.task import SimulatedTask
from source_node.criu_plan import Part

U64 = NDArray[np.uint64]
Bools = NDArray[np.bool_]

_BATCH_BYTES = 4 << 20
"""So many bytes of pages are copied at a time."""


@dataclass(slots=True)
class PageCounts:
    """What became of the pages, as stats-dump counts them."""

    written: int = 0
    in_parent: int = 0
    shared_written: int = 0
    shared_scanned: int = 0  # of segments, there or not


class PageSink(Protocol):
    """Where pages go; see `livemigration.criu.page_server.sender.Sender`."""

    def open(self, target: Target) -> bool:
        """What follows is of `target`; whether the parent has an image of it."""
        ...

    def add(self, starts: U64, pages: U64, flags: U64, data: Buffer) -> None:
        """Ranges in ascending order, and the bytes of those that are present."""
        ...

    def finish(self, *, lent: bool = False) -> None:
        """All was added, and is there when this returns; `lent`: the way there stays open."""
        ...


class DirectorySink:
    """Pages into a directory of images. Leaving the context closes the files."""

    def __init__(self, folder: Path, parent: Path | None, page_size: int) -> None:
        self._folder = folder
        self._parent = parent
        self._page_size = page_size
        self._next_id = 1
        self._image: PageImage | None = None
        self._ranges: ListedPages | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, target: Target) -> bool:
        """See `PageSink`."""
        self.close()
        self._ranges = None
        if self._parent is not None:
            pagemap = self._parent / target.pagemap_name
            if pagemap.exists():  # what the parent does not know goes in full: it is new
                self._ranges = ListedPages.of(pagemap, self._page_size)
        # As CRIU, a dump into a directory that was used replaces what it writes itself.
        for name in (target.pagemap_name, f"pages-{self._next_id}.img"):
            (self._folder / name).unlink(missing_ok=True)
        self._image = PageImage(self._folder, target.pagemap_name, self._next_id, self._page_size)
        self._next_id += 1
        return self._ranges is not None

    def add(self, starts: U64, pages: U64, flags: U64, data: Buffer) -> None:
        """See `PageSink`. Raises ImageError for a page left to a parent that does not list it."""
        assert self._image is not None
        self._image.write(memoryview(data))
        holes = np.flatnonzero((flags & np.uint64(PageFlags.PRESENT)) == 0)
        if holes.size:
            first, pages_there = starts[holes], pages[holes]
            known = np.zeros(holes.size, np.bool_)
            if self._ranges is not None:
                known = self._ranges.cover(first, first + pages_there * np.uint64(self._page_size))
            if not known.all():
                lacking = int(np.argmin(known))
                raise ImageError(
                    self._image.file,
                    f"hole at {int(first[lacking]):#x}, {int(pages_there[lacking])} pages: missing "
                    "in parent pagemap",
                    "give the directory of this task's last dump as the parent",
                )
        self._image.add(starts, pages, flags)

    def finish(self, *, lent: bool = False) -> None:
        """See `PageSink`."""
        self.close()

    def close(self) -> None:
        """All of the image that is open was added."""
        image, self._image = self._image, None
        if image is not None:
            image.close()


def write_pages(
    task: SimulatedTask,
    part: Part,
    sink: PageSink,
    counts: PageCounts,
    *,
    holes: bool,
    copied: Callable[[int], None],
) -> None:
    """Copies the pages of one image into the sink.

    holes: pages that are not soft-dirty may be left to the parent, if that has an image of this
    one; copied: is told the bytes of each batch, while the task may run.
    """
    shared = part.target.kind is TargetKind.SHARED
    if shared:
        counts.shared_scanned += task.task.machine.object_frames(part.model_id).size
    target = part.target if shared else Target(TargetKind.PROCESS, task.pids[part.target.id])
    known = sink.open(target)
    send = part.send if known and holes else np.ones(part.addresses.size, np.bool_)
    page_size = task.spec.page_size
    for piece in _pieces(send, max(1, _BATCH_BYTES // page_size)):
        addresses, present = part.addresses[piece], send[piece]
        there, data = _copy(task, part, addresses[present])
        keep = ~present
        keep[present] = there
        addresses, present = addresses[keep], present[keep]
        sink.add(*_runs(addresses, present, page_size), data)
        written = int(np.count_nonzero(present))
        if shared:
            counts.shared_written += written
        else:
            counts.written += written
            counts.in_parent += int(present.size) - written
        copied(len(data))


def _pieces(send: Bools, most: int) -> Iterator[slice]:
    """The pages cut so that each piece has at most `most` to send."""
    sent = np.cumsum(send)
    at = 0
    while at < send.size:
        before = int(sent[at - 1]) if at else 0
        end = int(np.searchsorted(sent, before + most, side="right"))
        yield slice(at, end)
        at = end


def _copy(task: SimulatedTask, part: Part, addresses: U64) -> tuple[Bools, bytes]:
    """Which of the pages are there now, and the bytes of those, one after the other."""
    if addresses.size == 0:
        return np.zeros(0, np.bool_), b""
    with task.execution.lock:
        rows, _ = part.look(task.task, addresses)
        there = rows > 0
        return there, gather_bytes(task.task.machine.content, rows[there])


def _runs(addresses: U64, present: Bools, page_size: int) -> tuple[U64, U64, U64]:
    """Pages as runs of the same flags: (starts, pages, flags)."""
    if addresses.size == 0:
        return addresses, addresses, addresses
    new = np.ones(addresses.size, np.bool_)
    new[1:] = (np.diff(addresses) != np.uint64(page_size)) | (present[1:] != present[:-1])
    first = np.flatnonzero(new)
    counts = np.diff(first, append=addresses.size).astype(np.uint64)
    flags = np.where(present[first], np.uint64(PageFlags.PRESENT), np.uint64(PageFlags.PARENT))
    return addresses[first], counts, flags
