"""Images that go through a migration as they are: what a dump says beside memory.

A task that came out of images has registers, open files, credentials, timers and much else that
the model knows nothing of. The source sends these images in the final round, the destination keeps
them with the task, and a directory exported there has them again: with its own pages and, where
the address space has changed since, its own mappings. What cannot be told truly is refused: a
process that no dump knows has no registers, and a page of a file mapping that the model made up
lacks the file's bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.born import vma_entry
from livemigration.criu.errors import ImageError
from livemigration.criu.load import DUMPED_ONLY
from livemigration.criu.magic import MM_MAGIC, PAGEMAP_MAGIC
from livemigration.criu.naming import LazyRanges, Naming, inside_ranges, model_pids, vma_pages
from livemigration.criu.pagemap import listed_ranges
from livemigration.criu.pb.mm_pb2 import MmEntry, VmaEntry
from livemigration.criu.record_writer import image
from livemigration.criu.records import Records, read_file
from livemigration.criu.tables import (
    ImageFiles,
    ImageVma,
    read_address_space,
    read_files,
    read_tasks,
)
from livemigration.errors import DamagedFrame
from livemigration.layout import AddressSpace
from livemigration.packing import zero_pages
from livemigration.task import Task
from livemigration.v1 import common_pb2
from mm_model import MAP_SHARED, PROT_EXEC, PROT_READ, PROT_WRITE, Vma

U64 = NDArray[np.uint64]

MOST_BYTES: Final = 16 << 20
"""Of a task's images beside the pages: a frame of the transfer stream can hold them."""
MOST_FILES: Final = 100_000

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.img")
_RWX: Final = PROT_READ | PROT_WRITE | PROT_EXEC
_OTHER_DUMP: Final = "give the destination the images of the dump that the task came from"


def _is_carried(name: str) -> bool:
    """Pages go as the task's memory; which pages a process had goes, to tell them from new ones."""
    return not name.startswith(("pages-", "pagemap-shmem-"))


@dataclass(frozen=True, slots=True)
class CarriedImages:
    """The images beside the pages, by file name. They are an `ImageSource`."""

    files: Mapping[str, bytes]

    @classmethod
    def read(cls, path: Path | str, also: Path | str | None = None) -> CarriedImages:
        """Those of a directory (and of a page server's). Raises ImageError."""
        files: dict[str, bytes] = {}
        size = 0
        for folder in [Path(path)] + ([Path(also)] if also is not None else []):
            for file in sorted(folder.glob("*.img")):
                if not _is_carried(file.name) or file.name in files:
                    continue
                data = read_file(file, "copy the whole directory again", MOST_BYTES)
                size += len(data)
                if size > MOST_BYTES:
                    raise ImageError(
                        folder,
                        f"more than {MOST_BYTES >> 20} MiB of images beside the pages",
                        "dump a program with fewer files, or without ghost files",
                    )
                files[file.name] = data
        return cls(files)

    @classmethod
    def received(cls, images: Iterable[common_pb2.CarriedImage]) -> CarriedImages:
        """Those that a source sent; `DamagedFrame` if they cannot be."""
        files: dict[str, bytes] = {}
        size = 0
        for carried in images:
            size += len(carried.content)
            if not _NAME.fullmatch(carried.name) or not _is_carried(carried.name):
                raise DamagedFrame(f"an image cannot be called {carried.name[:80]!r}")
            if carried.name in files:
                raise DamagedFrame(f"image {carried.name} came twice")
            if size > MOST_BYTES or len(files) >= MOST_FILES:
                raise DamagedFrame(f"images of more than {MOST_BYTES >> 20} MiB beside the pages")
            files[carried.name] = carried.content
        return cls(files)

    def messages(self) -> Iterator[common_pb2.CarriedImage]:
        """As they travel."""
        for name, content in sorted(self.files.items()):
            yield common_pb2.CarriedImage(name=name, content=content)

    def has(self, name: str) -> bool:
        """Whether there is such an image."""
        return name in self.files

    def records(self, name: str, magic: int) -> Records:
        """An image's records. Raises ImageError."""
        if name not in self.files:
            raise ImageError(Path(name), "did not come with the task", _OTHER_DUMP)
        return Records(Path(name), magic, _OTHER_DUMP, self.files[name])


def carried_naming(
    task: Task, spaces: Mapping[int, AddressSpace], carried: CarriedImages
) -> Naming:
    """Names and images of a task that came out of images.

    Raises ImageError if the task has become one that these images cannot describe.
    """
    return _Describer(task, spaces, carried).naming()


class _Describer:
    def __init__(
        self, task: Task, spaces: Mapping[int, AddressSpace], carried: CarriedImages
    ) -> None:
        self.task = task
        self.spaces = spaces
        self.carried = carried
        self.page_size = task.machine.page_size
        self.tasks = read_tasks(carried)
        self.files: ImageFiles = read_files(carried, self.tasks)
        self.shmids: dict[int, int] = {}

    def naming(self) -> Naming:
        """See `carried_naming`."""
        pids = model_pids({task.pid: task.ppid for task in self.tasks})
        if sorted(pids.values()) != sorted(self.spaces):
            raise ImageError(
                Path("pstree.img"),
                f"has {len(pids)} processes, and the task has {len(self.spaces)} now",
                "a process that forked or exited in the model cannot be restored: choose a "
                "workload that does neither",
            )
        kept = [memfd for memfd in self.files.memfds.values() if memfd.open]
        for file, memfd in zip(self.task.files, kept, strict=False):
            self.shmids[file.object_id] = memfd.shmid
        images = {name: data for name, data in self.carried.files.items() if name[:8] != "pagemap-"}
        lazy: dict[int, LazyRanges] = {}
        for entry in self.tasks:
            pid = pids[entry.pid]
            mm = self.address_space(entry.pid, self.spaces[pid])
            images[f"mm-{entry.pid}.img"] = self.mm_image(entry.pid, mm)
            lazy[pid] = LazyRanges.of(mm.vmas)
        named = {file.object_id for file in self.task.files} - self.shmids.keys()
        if named:
            raise ImageError(
                Path("files.img"),
                "the task made files in the model, which its images do not have",
                "choose a workload that makes none",
            )
        return Naming({model: pid for pid, model in pids.items()}, self.shmids, images, lazy)

    def mm_image(self, pid: int, mm: MmEntry) -> bytes:
        """The image that came, byte for byte, if nothing has changed."""
        name = f"mm-{pid}.img"
        came = self.carried.records(name, MM_MAGIC).first(MmEntry)
        return self.carried.files[name] if mm == came else image(MM_MAGIC, [mm])

    def address_space(self, pid: int, space: AddressSpace) -> MmEntry:
        """The mm image's message with the mappings of today."""
        came, before = read_address_space(self.carried, pid, self.files)
        mm = MmEntry()
        mm.CopyFrom(came)
        del mm.vmas[:]
        mm.vmas.extend(self.mappings(came, before, space))
        if (came.start_brk, came.brk) != (space.start_brk, space.brk):
            mm.start_brk, mm.brk = space.start_brk, space.brk
        self.check_files(pid, space)
        return mm

    def mappings(
        self, came: MmEntry, before: tuple[ImageVma, ...], space: AddressSpace
    ) -> list[VmaEntry]:
        """Today's mappings: those that came as far as they are still there, and the new ones."""
        found: list[tuple[VmaEntry, int]] = [
            (entry, index)
            for index, (entry, vma) in enumerate(zip(came.vmas, before, strict=True))
            if vma.is_kernel_data
        ]
        at = 0
        for vma in space.vmas:
            start = vma.start
            while at < len(before) and before[at].end <= vma.start:
                at += 1
            for index in range(at, len(before)):
                if before[index].start >= vma.end:
                    break
                if not self.is_same(vma, before[index]):
                    continue
                first, last = max(vma.start, before[index].start), min(vma.end, before[index].end)
                if start < first:
                    found.append((self.new_entry(vma, start, first), -1))
                found.append((_part(came.vmas[index], first, last, vma.prot), index))
                start = last
            if start < vma.end:
                found.append((self.new_entry(vma, start, vma.end), -1))
        return _joined(sorted(found, key=lambda pair: pair[0].start))

    def is_same(self, vma: Vma, before: ImageVma) -> bool:
        """Whether a mapping is (part of) the one that the dump had there."""
        if before.is_kernel_data or bool(vma.flags & MAP_SHARED) != bool(before.flags & MAP_SHARED):
            return False
        if before.is_file:
            return vma.name.endswith(DUMPED_ONLY)
        if not before.has_segment:
            return not vma.shared_id
        first = max(vma.start, before.start)
        then = before.pgoff + first - before.start
        now = vma.pgoff * self.page_size + first - vma.start
        if not vma.shared_id or then != now:
            return False
        return self.shmids.setdefault(vma.shared_id, before.shmid) == before.shmid

    def new_entry(self, vma: Vma, start: int, end: int) -> VmaEntry:
        """A mapping that the dump did not have."""
        if vma.shared_id:
            raise ImageError(
                Path("files.img"),
                f"the shared mapping {start:#x}-{end:#x} was made in the model, and the images "
                "have no file for it",
                "choose a workload that makes none",
            )
        entry = vma_entry(vma, self.page_size, {})
        entry.start, entry.end = start, end
        return entry

    def check_files(self, pid: int, space: AddressSpace) -> None:
        """Raises ImageError for a page of a file's mapping that lacks the file's bytes."""
        model_pid, machine = space.pid, self.task.machine
        mm = self.task.processes[model_pid]
        listed: tuple[U64, U64] | None = None
        for vma in space.vmas:
            if not vma.name.endswith(DUMPED_ONLY):
                continue
            if vma.flags & MAP_SHARED:
                rows = mm.frames(vma.start, (vma.end - vma.start) // self.page_size)
                index = np.flatnonzero(rows > 0)
                index = index[~zero_pages(machine.content, rows[index])]
                made = np.uint64(vma.start) + index.astype(np.uint64) * np.uint64(self.page_size)
            else:
                if listed is None:
                    listed = listed_ranges(
                        self.carried.records(f"pagemap-{pid}.img", PAGEMAP_MAGIC), self.page_size
                    )
                where, _ = vma_pages(self.task, mm, vma, ())
                made = where[~inside_ranges(where, *listed)]
            if made.size:
                raise ImageError(
                    Path(f"mm-{pid}.img"),
                    f"page {int(made[0]):#x} of "
                    f"{vma.name.removesuffix(DUMPED_ONLY)} was written in the model, which does "
                    "not have the file's bytes",
                    "choose a workload that stays out of file mappings",
                )


def _part(entry: VmaEntry, start: int, end: int, prot: int) -> VmaEntry:
    part = VmaEntry()
    part.CopyFrom(entry)
    if part.pgoff or part.shmid:
        part.pgoff += start - entry.start
    part.start, part.end = start, end
    part.prot = entry.prot & ~_RWX | prot
    return part


def _joined(parts: list[tuple[VmaEntry, int]]) -> list[VmaEntry]:
    """Neighbours of one origin and protection as one."""
    joined: list[tuple[VmaEntry, int]] = []
    for entry, index in parts:
        if joined and index >= 0:
            last, origin = joined[-1]
            if origin == index and last.end == entry.start and last.prot == entry.prot:
                last.end = entry.end
                continue
        joined.append((entry, index))
    return [entry for entry, _ in joined]
