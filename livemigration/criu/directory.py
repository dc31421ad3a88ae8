"""A CRIU image directory: which processes were dumped, with which mappings and pages.

Reads what `criu dump` of versions 3.17 to 4.2 writes, of tasks of any architecture (little-endian):
``inventory.img``, ``pstree.img``, ``core-PID.img``, ``mm-PID.img``, ``files.img``, ``memfd.img``,
``pagemap-PID.img``, ``pagemap-shmem-ID.img`` and the ``pages-N.img`` that these name, in the
directory itself and along its chain of parents. After a dump through a page server the images lie
in two directories: the dump's own and, with pagemaps and pages, the server's.

Everything is checked when the directory is opened, except the bytes of pages, which are read when
asked for. Whatever is wrong is an `ImageError` of one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.errors import ImageError
from livemigration.criu.magic import AT_PAGESZ, IMAGE_VERSIONS, INVENTORY_MAGIC, VmaStatus
from livemigration.criu.pagemap import PageSet, read_page_set
from livemigration.criu.pb.inventory_pb2 import InventoryEntry
from livemigration.criu.pb.mm_pb2 import MmEntry
from livemigration.criu.records import Records
from livemigration.criu.tables import (
    DUMP_AGAIN,
    INCOMPLETE,
    ImageFiles,
    ImageVma,
    read_address_space,
    read_files,
    read_tasks,
)

DEFAULT_PAGE_SIZE: Final = 4096
_PAGE_SIZES: Final = (4096, 16384, 65536)


@dataclass(frozen=True, slots=True, eq=False)
class ImageProcess:
    """One process. `pages` are those of its own; shared segments are the directory's."""

    pid: int
    ppid: int
    comm: str
    vmas: tuple[ImageVma, ...]
    pages: PageSet
    start_brk: int
    brk: int


@dataclass(frozen=True, slots=True, eq=False)
class SharedSegment:
    """Shared anonymous memory of `size` bytes. The addresses of `pages` are offsets in it.

    `is_file`: a memfd with a descriptor, which is there whether it is mapped or not.
    """

    shmid: int
    size: int
    pages: PageSet
    is_file: bool = False


class ImageDirectory:
    """An image directory that was found to be complete.

    page_size: bytes, as the programs' auxiliary vectors say (4096 if none does);
    processes: in the order of pstree.img, parents before children; zombies, which have no memory,
    are left out;
    shared: the shared anonymous segments by id.
    """

    def __init__(
        self,
        path: Path,
        page_size: int,
        processes: tuple[ImageProcess, ...],
        shared: dict[int, SharedSegment],
    ) -> None:
        self.path = path
        self.page_size = page_size
        self.processes = processes
        self.shared = shared
        self._by_pid = {process.pid: process for process in processes}

    @property
    def pages(self) -> int:
        """How many pages the images have, of all processes and segments."""
        private = sum(len(process.pages) for process in self.processes)
        return private + sum(len(segment.pages) for segment in self.shared.values())

    def process(self, pid: int) -> ImageProcess:
        """The process with this pid. Raises KeyError."""
        return self._by_pid[pid]

    @classmethod
    def open(cls, path: Path | str, also: Path | str | None = None) -> ImageDirectory:
        """Opens the images in `path` and, after a dump through a page server, in `also`.

        Raises ImageError.
        """
        return _Reader([Path(path)] + ([Path(also)] if also is not None else [])).read()

    def read_pages(self, pid: int, addresses: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """The bytes of pages of a process, u8[n * page_size], in the order of `addresses`.

        addresses: u64[n] out of ``process(pid).pages.addresses``. Raises ValueError for any
        other, KeyError for an unknown pid, ImageError if a file has changed since it was opened.
        """
        return self.process(pid).pages.read(addresses)

    def read_shared(self, shmid: int, offsets: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """The same for a shared segment, by offsets in bytes."""
        return self.shared[shmid].pages.read(offsets)


class _Reader:
    """Reads the images of one or two directories."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders
        for folder in folders:
            if not folder.is_dir():
                raise ImageError(folder, "no such directory", INCOMPLETE)

    def file(self, name: str) -> Path:
        """Where a file is: in the first directory that has it; the first if none has."""
        candidates = [folder / name for folder in self.folders]
        return next((file for file in candidates if file.exists()), candidates[0])

    def has(self, name: str) -> bool:
        return self.file(name).exists()

    def records(self, name: str, magic: int) -> Records:
        return Records(self.file(name), magic, INCOMPLETE)

    def read(self) -> ImageDirectory:
        self.check_inventory()
        tasks = read_tasks(self)
        files = read_files(self, tasks)
        spaces = {task.pid: read_address_space(self, task.pid, files) for task in tasks}
        page_size = self.page_size(spaces)
        processes: list[ImageProcess] = []
        for task in tasks:
            pid = task.pid
            mm, vmas = spaces[pid]
            self.check_vmas(pid, vmas, page_size)
            pages = self.pages(f"pagemap-{pid}.img", page_size)
            _check_pages_mapped(self.file(f"pagemap-{pid}.img"), pages, vmas)
            processes.append(
                ImageProcess(pid, task.ppid, task.comm, vmas, pages, mm.start_brk, mm.brk)
            )
        shared = self.shared(processes, files, page_size)
        return ImageDirectory(self.folders[0], page_size, tuple(processes), shared)

    def check_inventory(self) -> None:
        records = self.records("inventory.img", INVENTORY_MAGIC)
        version = records.first(InventoryEntry).img_version
        if version == 0:
            raise ImageError(
                records.file,
                "belongs to a pre-dump, which is no complete dump",
                "give the directory of the final dump, which leads to this one as its parent",
            )
        if version not in IMAGE_VERSIONS:
            raise ImageError(
                records.file,
                f"image version {version} is unknown",
                "dump with CRIU up to 4.2",
            )

    def page_size(self, spaces: dict[int, tuple[MmEntry, tuple[ImageVma, ...]]]) -> int:
        for pid, (mm, _) in spaces.items():
            auxv = list(mm.auxv)
            size = dict(zip(auxv[::2], auxv[1::2], strict=False)).get(AT_PAGESZ)
            if size is None:
                continue
            if size not in _PAGE_SIZES:
                raise ImageError(
                    self.file(f"mm-{pid}.img"), f"page size {size} is not possible", DUMP_AGAIN
                )
            return int(size)
        return DEFAULT_PAGE_SIZE

    def check_vmas(self, pid: int, vmas: tuple[ImageVma, ...], page_size: int) -> None:
        end = 0
        for vma in vmas:
            file = self.file(f"mm-{pid}.img")
            if not end <= vma.start < vma.end or vma.start % page_size or vma.end % page_size:
                raise ImageError(
                    file, f"the mapping {vma.start:#x}-{vma.end:#x} is not possible", DUMP_AGAIN
                )
            if vma.status & VmaStatus.SYSVIPC:
                raise ImageError(
                    file,
                    f"the mapping {vma.start:#x}-{vma.end:#x} is System V shared memory",
                    "dump a program without it: its content is not read",
                )
            if vma.has_segment and (vma.pgoff % page_size or vma.pgoff >= 1 << 63):
                raise ImageError(
                    file, f"offset {vma.pgoff:#x} in a shared segment is not possible", DUMP_AGAIN
                )
            end = vma.end

    def pages(self, name: str, page_size: int) -> PageSet:
        return read_page_set(self.file(name).parent, name, page_size)

    def shared(
        self, processes: list[ImageProcess], files: ImageFiles, page_size: int
    ) -> dict[int, SharedSegment]:
        kept = {memfd.shmid: memfd.size for memfd in files.memfds.values() if memfd.open}
        ends = {shmid: -(-size // page_size) * page_size for shmid, size in kept.items()}
        for process in processes:
            for vma in process.vmas:
                if vma.has_segment:
                    end = vma.pgoff + vma.end - vma.start
                    ends[vma.shmid] = max(ends.get(vma.shmid, 0), end)
        segments: dict[int, SharedSegment] = {}
        for shmid, end in ends.items():
            pages = self.pages(f"pagemap-shmem-{shmid}.img", page_size)
            last = int(pages.addresses[-1]) + page_size if len(pages) else 0
            segments[shmid] = SharedSegment(shmid, max(end, last), pages, is_file=shmid in kept)
        return segments


def _check_pages_mapped(file: Path, pages: PageSet, vmas: tuple[ImageVma, ...]) -> None:
    starts = np.array([vma.start for vma in vmas], np.uint64)
    ends = np.array([vma.end for vma in vmas], np.uint64)
    index = np.searchsorted(starts, pages.addresses, side="right") - 1
    outside = (index < 0) | (pages.addresses >= ends[np.maximum(index, 0)])
    if outside.any():
        raise ImageError(
            file,
            f"page {int(pages.addresses[outside][0]):#x} lies in no mapping of the process",
            "copy mm and pagemap files of one dump",
        )
