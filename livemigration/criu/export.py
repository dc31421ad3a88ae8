"""Writing a task as an image directory, as `criu dump` or one round of `criu pre-dump` would.

The pages are read from the task's own memory, window by window. A directory with a parent lists
all pages that are alive: those that went in its round with their bytes, the others as being in
the parent. Shared memory and files are in the dump alone, as with CRIU (criu/memfd.c), or likewise
in every directory, under their segments. It is written beside its place and renamed, so that there
is a whole directory or none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.born import born_naming
from livemigration.criu.carried import CarriedImages, carried_naming
from livemigration.criu.errors import ImageError
from livemigration.criu.magic import (
    INVENTORY_MAGIC,
    PAGEMAP_MAGIC,
    PRE_DUMP_SPLICE,
    STATS_MAGIC,
    PageFlags,
)
from livemigration.criu.naming import Naming, inside_ranges, vma_pages
from livemigration.criu.page_images import PageCounts, PageList, write_pages
from livemigration.criu.pagemap import listed_ranges
from livemigration.criu.pagemap_entries import Bytes, Flavour
from livemigration.criu.pb.inventory_pb2 import InventoryEntry
from livemigration.criu.pb.stats_pb2 import DumpStats, StatsEntry
from livemigration.criu.record_writer import write_image
from livemigration.criu.records import Records
from livemigration.digest import gather_pages
from livemigration.files import file_numbers
from livemigration.layout import AddressSpace, describe
from livemigration.task import Task
from mm_model import MAP_SHARED, Machine

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_WINDOW_BYTES: Final = 4 << 20
_US: Final = 1000
_U32: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class RoundPages:
    """What went in one round: the rest of what is alive is in the parent directory.

    processes: model pid -> addresses u64[n]; objects: the machine's object -> page numbers i64[n],
    or None: a pre-dump has none of them, and a dump has all, whole; lazy: model pid -> addresses
    u64[n] that stayed at the source of a post-copy.
    """

    processes: Mapping[int, U64] = field(default_factory=dict)
    objects: Mapping[int, I64] | None = field(default_factory=dict)
    lazy: Mapping[int, U64] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DumpTimes:
    """What stats-dump says beside the pages written: times in nanoseconds, and entries looked at
    (None: as many as there are pages in the mappings)."""

    freezing_ns: int = 0
    frozen_ns: int = 0
    memdump_ns: int = 0
    memwrite_ns: int = 0
    uptime_ns: int = 0
    scanned: int | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """What a directory got: pages of processes, and of shared segments."""

    private: PageCounts
    shared: PageCounts


def export_task(
    task: Task,
    folder: Path | str,
    *,
    carried: CarriedImages | None = None,
    name: str = "predump",
    pre_dump: bool = False,
    parent: str = "",
    pages: RoundPages | None = None,
    times: DumpTimes | None = None,
    flavour: Flavour = Flavour.BOTH,
) -> Exported:
    """Writes `folder`, which must not exist or be empty, with the memory of a task at rest.

    carried: the images that the task came with; without, they are made up (`name`: the program).
    pre_dump: pages alone, as `criu pre-dump` leaves them. parent: what the symlink `parent` says,
    relative to `folder`; then `pages` tells what is not in there. Raises ImageError.
    """
    folder = Path(folder)
    part = _begin(folder)
    try:
        exporter = _Exporter(task, part, carried, name, pages, flavour)
        exported = exporter.write(times or DumpTimes(), pre_dump=pre_dump, parent=parent)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except OSError as error:
        raise ImageError(
            folder, f"cannot be written: {error.strerror}", "name another directory"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return exported


def check_new(folder: Path) -> None:
    """Raises ImageError unless `folder` can be written: it must not exist, or be empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ImageError(folder, "is there already", "name a directory that is new or empty")


def _begin(folder: Path) -> Path:
    """An empty directory beside the one to be written."""
    check_new(folder)
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
    except OSError as error:
        raise ImageError(
            folder, f"cannot be written: {error.strerror}", "name another directory"
        ) from error
    return part


class _Exporter:
    def __init__(
        self,
        task: Task,
        folder: Path,
        carried: CarriedImages | None,
        name: str,
        pages: RoundPages | None,
        flavour: Flavour,
    ) -> None:
        self.task = task
        self.machine = task.machine
        self.page_size = task.machine.page_size
        self.folder = folder
        self.pages = pages
        self.flavour = flavour
        self.spaces = {
            pid: describe(pid, task.parents[pid], task.processes[pid])
            for pid in sorted(task.processes)
        }
        self.naming = self._naming(carried, name)
        self.written = 0  # pages files so far
        self.shared_scanned = 0  # pages of segments, there or not

    def _naming(self, carried: CarriedImages | None, name: str) -> Naming:
        if carried is None:
            return born_naming(self.task, self.spaces, name)
        return carried_naming(self.task, self.spaces, carried)

    def write(self, times: DumpTimes, *, pre_dump: bool, parent: str) -> Exported:
        if parent:
            (self.folder / "parent").symlink_to(parent)
        # Segments first, as CRIU does.
        shared = PageCounts()
        segments = sorted(self.naming.shmids.items(), key=lambda item: item[1])
        if pre_dump and self.pages is not None and self.pages.objects is None:
            segments = []
        for object_id, shmid in segments:
            self.shared_scanned += self.machine.object_frames(object_id).size
            shared += self._write(f"pagemap-shmem-{shmid}.img", self._object_pages(object_id))
        private = PageCounts()
        for pid, space in self.spaces.items():
            pages = self._process_pages(space)
            private += self._write(f"pagemap-{self.naming.pids[pid]}.img", pages)
        exported = Exported(private, shared)
        write_image(self.folder / "stats-dump", STATS_MAGIC, self._stats(exported, times))
        if pre_dump:
            inventory = InventoryEntry(
                img_version=0,
                dump_uptime=times.uptime_ns // _US,
                pre_dump_mode=PRE_DUMP_SPLICE,
            )
            write_image(self.folder / "inventory.img", INVENTORY_MAGIC, inventory)
        else:
            for name, content in self.naming.images.items():
                (self.folder / name).write_bytes(content)
        return exported

    def _write(self, name: str, pages: PageList) -> PageCounts:
        self._check_parent(name, pages)
        self.written += 1
        return write_pages(self.folder, name, self.written, pages, self.page_size, self.flavour)

    def _check_parent(self, name: str, pages: PageList) -> None:
        """Raises ImageError for a page that would be nowhere, as CRIU does for such a hole."""
        wanted = pages.addresses[pages.flags == int(PageFlags.PARENT)]
        if wanted.size == 0:
            return
        file = self.folder / "parent" / name
        missing = wanted
        if file.exists():
            records = Records(file, PAGEMAP_MAGIC, "name the directory of the round before")
            missing = wanted[~inside_ranges(wanted, *listed_ranges(records, self.page_size))]
        if missing.size:
            raise ImageError(
                self.folder / name,
                f"page {int(missing[0]):#x} is neither among the pages of the round nor in the "
                "parent",
                "a page that was never sent is lost: export what the rounds before had as well",
            )

    def _process_pages(self, space: AddressSpace) -> PageList:
        """The pages of a process' own, without those of segments."""
        pid = space.pid
        mm, files = self.task.processes[pid], file_numbers(self.task)
        addresses: list[U64] = [np.zeros(0, np.uint64)]
        rows: list[I64] = [np.zeros(0, np.int64)]
        for vma in space.vmas:
            if vma.flags & MAP_SHARED:
                continue
            where, found = vma_pages(self.task, mm, vma, files)
            addresses.append(where)
            rows.append(found)
        where = np.concatenate(addresses)
        if self.pages is None:
            here = np.ones(where.size, np.bool_)
        else:
            here = np.isin(where, self.pages.processes.get(pid, where[:0]))
        able = self.naming.lazy[pid].holds(where)
        pages = self._list(where, np.concatenate(rows), here, able)
        return pages if self.pages is None else _with_lazy(pages, self.pages.lazy.get(pid))

    def _object_pages(self, object_id: int) -> PageList:
        """The pages of a shared segment, by their offsets."""
        rows = self.machine.object_frames(object_id)
        index = np.flatnonzero(rows > 0)
        if self.pages is None or self.pages.objects is None:
            here = np.ones(index.size, np.bool_)
        else:
            here = np.isin(index, self.pages.objects.get(object_id, index[:0]))
        offsets = index.astype(np.uint64) * np.uint64(self.page_size)
        return self._list(offsets, rows[index], here, np.zeros(index.size, np.bool_))

    def _list(
        self, where: U64, rows: I64, here: NDArray[np.bool_], lazy: NDArray[np.bool_]
    ) -> PageList:
        flags = np.where(here, int(PageFlags.PRESENT), int(PageFlags.PARENT)).astype(np.uint8)
        flags[here & lazy] |= int(PageFlags.LAZY)
        return PageList(where, flags, _windows(self.machine, rows[here]))

    def _stats(self, exported: Exported, times: DumpTimes) -> StatsEntry:
        scanned = times.scanned
        if scanned is None:
            mapped = (v for space in self.spaces.values() for v in space.vmas)
            private = (vma for vma in mapped if not vma.flags & MAP_SHARED)
            scanned = sum((vma.end - vma.start) // self.page_size for vma in private)
        return StatsEntry(
            dump=DumpStats(
                freezing_time=min(times.freezing_ns // _US, _U32),
                frozen_time=min(times.frozen_ns // _US, _U32),
                memdump_time=min(times.memdump_ns // _US, _U32),
                memwrite_time=min(times.memwrite_ns // _US, _U32),
                pages_scanned=scanned,
                pages_skipped_parent=exported.private.parent,
                pages_written=exported.private.present,
                irmap_resolve=0,
                pages_lazy=exported.private.lazy,
                page_pipes=0,
                page_pipe_bufs=0,
                shpages_scanned=self.shared_scanned,
                shpages_skipped_parent=exported.shared.parent,
                shpages_written=exported.shared.present,
            )
        )


def _with_lazy(pages: PageList, lazy: U64 | None) -> PageList:
    """With pages that stayed at the source: listed, and their bytes nowhere yet."""
    if lazy is None or lazy.size == 0:
        return pages
    other = np.full(lazy.size, int(PageFlags.LAZY), np.uint8)
    where = np.concatenate((pages.addresses, lazy))
    order = np.argsort(where, kind="stable")
    return PageList(where[order], np.concatenate((pages.flags, other))[order], pages.content)


def _windows(machine: Machine, rows: I64) -> Iterator[Bytes]:
    """The pages in content rows, some MiB at a time, in one buffer."""
    step = max(1, _WINDOW_BYTES // machine.page_size)
    buffer = np.empty(min(step, rows.size) * machine.page_size, np.uint8)
    for at in range(0, rows.size, step):
        window = rows[at : at + step]
        out = buffer[: window.size * machine.page_size]
        gather_pages(machine.content, window, out)
        yield out
