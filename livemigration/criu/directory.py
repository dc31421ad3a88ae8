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

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.errors import ImageError
from livemigration.criu.magic import (
    AT_PAGESZ,
    CORE_MAGIC,
    FILE_TYPE_MEMFD,
    FILE_TYPE_REGULAR,
    FILES_MAGIC,
    IMAGE_VERSIONS,
    INVENTORY_MAGIC,
    MAP_GROWSDOWN,
    MEMFD_INODE_MAGIC,
    MM_MAGIC,
    PSTREE_MAGIC,
    TASK_DEAD,
    VmaStatus,
)
from livemigration.criu.pagemap import PageSet, read_page_set
from livemigration.criu.pb.core_pb2 import CoreEntry
from livemigration.criu.pb.files_pb2 import FileEntry, MemfdInodeEntry
from livemigration.criu.pb.inventory_pb2 import InventoryEntry
from livemigration.criu.pb.mm_pb2 import MmEntry, VmaEntry
from livemigration.criu.pb.pstree_pb2 import PstreeEntry
from livemigration.criu.records import Records

DEFAULT_PAGE_SIZE: Final = 4096
_PAGE_SIZES: Final = (4096, 16384, 65536)
_INCOMPLETE: Final = "give the directory of a complete criu dump"
_DUMP_AGAIN: Final = "dump again, or copy the whole directory again"


@dataclass(frozen=True, slots=True)
class ImageVma:
    """One mapping. Addresses and `pgoff` in bytes; `flags` are mmap's, `status` is CRIU's.

    `shmid` is the id of the shared segment or of the file; `name` the file's path, "" without one.
    """

    start: int
    end: int
    prot: int
    flags: int
    status: VmaStatus
    shmid: int
    pgoff: int
    fd: int
    name: str = ""

    @property
    def is_anon_private(self) -> bool:
        """Private memory without a file."""
        return bool(self.status & VmaStatus.ANON_PRIVATE)

    @property
    def is_anon_shared(self) -> bool:
        """Shared memory whose pages are those of segment `shmid`.

        Linux makes shared anonymous memory of a file in memory, and CRIU (4.1.1 and 4.2.1 do) dumps
        it as the memfd that it looks like.
        """
        memfd = VmaStatus.MEMFD | VmaStatus.FILE_SHARED
        return bool(self.status & VmaStatus.ANON_SHARED) or self.status & memfd == memfd

    @property
    def is_file(self) -> bool:
        """A mapping of a file, private or shared, whose unchanged pages no dump has."""
        file = VmaStatus.FILE_PRIVATE | VmaStatus.FILE_SHARED
        return bool(self.status & file) and not self.is_anon_shared

    @property
    def is_heap(self) -> bool:
        """Made by brk."""
        return bool(self.status & VmaStatus.HEAP)

    @property
    def is_stack(self) -> bool:
        """The main thread's stack: marked, or growing downwards."""
        return bool(self.status & VmaStatus.STACK) or bool(self.flags & MAP_GROWSDOWN)

    @property
    def is_kernel_data(self) -> bool:
        """Pages that the kernel shows and no dump has: vvar and vsyscall."""
        return bool(self.status & (VmaStatus.VVAR | VmaStatus.VSYSCALL))


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
    """Shared anonymous memory of `size` bytes. The addresses of `pages` are offsets in it."""

    shmid: int
    size: int
    pages: PageSet


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


@dataclass(frozen=True, slots=True)
class SharedMemfd:
    """A shared segment that was dumped as a memfd."""

    shmid: int
    size: int


class _Reader:
    """Reads the images of one or two directories."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders
        for folder in folders:
            if not folder.is_dir():
                raise ImageError(folder, "no such directory", _INCOMPLETE)

    def file(self, name: str) -> Path:
        """Where a file is: in the first directory that has it; the first if none has."""
        candidates = [folder / name for folder in self.folders]
        return next((file for file in candidates if file.exists()), candidates[0])

    def records(self, name: str, magic: int) -> Records:
        return Records(self.file(name), magic, _INCOMPLETE)

    def read(self) -> ImageDirectory:
        self.check_inventory()
        names, memfds = self.files()
        tree = self.tasks()
        spaces = {pid: self.address_space(pid, names, memfds) for pid in tree}
        page_size = self.page_size(spaces)
        processes: list[ImageProcess] = []
        for pid, (ppid, comm) in tree.items():
            mm, vmas = spaces[pid]
            self.check_vmas(pid, vmas, page_size)
            pages = self.pages(f"pagemap-{pid}.img", page_size)
            _check_pages_mapped(self.file(f"pagemap-{pid}.img"), pages, vmas)
            processes.append(ImageProcess(pid, ppid, comm, vmas, pages, mm.start_brk, mm.brk))
        shared = self.shared(processes, page_size)
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

    def files(self) -> tuple[dict[int, str], dict[int, SharedMemfd]]:
        """Paths of regular files, and segments that are memfds, by file id."""
        names: dict[int, str] = {}
        memfds: dict[int, SharedMemfd] = {}
        if not self.file("files.img").exists():
            return names, memfds  # without, mappings of files have no names
        records = self.records("files.img", FILES_MAGIC)
        inodes: dict[int, SharedMemfd] | None = None
        for entry in records.rest(FileEntry):
            if entry.type == FILE_TYPE_REGULAR:
                names[entry.id] = entry.reg.name.decode(errors="replace")
            elif entry.type == FILE_TYPE_MEMFD:
                inodes = self.memfd_inodes() if inodes is None else inodes
                if entry.memfd.inode_id not in inodes:
                    raise ImageError(
                        records.file,
                        f"names memfd {entry.memfd.inode_id}, which memfd.img does not have",
                        _DUMP_AGAIN,
                    )
                memfds[entry.id] = inodes[entry.memfd.inode_id]
        return names, memfds

    def memfd_inodes(self) -> dict[int, SharedMemfd]:
        entries = self.records("memfd.img", MEMFD_INODE_MAGIC).rest(MemfdInodeEntry)
        return {entry.inode_id: SharedMemfd(entry.shmid, entry.size) for entry in entries}

    def tasks(self) -> dict[int, tuple[int, str]]:
        """Parent and name of each task that has memory, by pid."""
        records = self.records("pstree.img", PSTREE_MAGIC)
        tasks: dict[int, tuple[int, str]] = {}
        for entry in records.rest(PstreeEntry):
            pid = records.required(entry, "pid")
            core = self.records(f"core-{pid}.img", CORE_MAGIC).first(CoreEntry)
            if core.tc.task_state == TASK_DEAD:
                continue
            if pid in tasks:
                raise ImageError(records.file, f"has task {pid} twice", _DUMP_AGAIN)
            tasks[pid] = entry.ppid, core.tc.comm.decode(errors="replace")
        if not tasks:
            raise ImageError(records.file, "has no task with memory", _INCOMPLETE)
        return tasks

    def address_space(
        self, pid: int, names: dict[int, str], memfds: dict[int, SharedMemfd]
    ) -> tuple[MmEntry, tuple[ImageVma, ...]]:
        records = self.records(f"mm-{pid}.img", MM_MAGIC)
        mm = records.first(MmEntry)
        vmas = tuple(_vma(records, entry, names, memfds) for entry in mm.vmas)
        if not vmas:
            raise ImageError(records.file, "has no mappings", "dump with CRIU 3.17 or later")
        return mm, vmas

    def page_size(self, spaces: dict[int, tuple[MmEntry, tuple[ImageVma, ...]]]) -> int:
        for pid, (mm, _) in spaces.items():
            auxv = list(mm.auxv)
            size = dict(zip(auxv[::2], auxv[1::2], strict=False)).get(AT_PAGESZ)
            if size is None:
                continue
            if size not in _PAGE_SIZES:
                raise ImageError(
                    self.file(f"mm-{pid}.img"), f"page size {size} is not possible", _DUMP_AGAIN
                )
            return int(size)
        return DEFAULT_PAGE_SIZE

    def check_vmas(self, pid: int, vmas: tuple[ImageVma, ...], page_size: int) -> None:
        end = 0
        for vma in vmas:
            file = self.file(f"mm-{pid}.img")
            if not end <= vma.start < vma.end or vma.start % page_size or vma.end % page_size:
                raise ImageError(
                    file, f"the mapping {vma.start:#x}-{vma.end:#x} is not possible", _DUMP_AGAIN
                )
            if vma.status & VmaStatus.SYSVIPC:
                raise ImageError(
                    file,
                    f"the mapping {vma.start:#x}-{vma.end:#x} is System V shared memory",
                    "dump a program without it: its content is not read",
                )
            if vma.is_anon_shared and (vma.pgoff % page_size or vma.pgoff >= 1 << 63):
                raise ImageError(
                    file, f"offset {vma.pgoff:#x} in a shared segment is not possible", _DUMP_AGAIN
                )
            end = vma.end

    def pages(self, name: str, page_size: int) -> PageSet:
        return read_page_set(self.file(name).parent, name, page_size)

    def shared(self, processes: list[ImageProcess], page_size: int) -> dict[int, SharedSegment]:
        mapped: dict[int, int] = {}
        for process in processes:
            for vma in process.vmas:
                if vma.is_anon_shared:
                    end = vma.pgoff + vma.end - vma.start
                    mapped[vma.shmid] = max(mapped.get(vma.shmid, 0), end)
        segments: dict[int, SharedSegment] = {}
        for shmid, end in mapped.items():
            pages = self.pages(f"pagemap-shmem-{shmid}.img", page_size)
            last = int(pages.addresses[-1]) + page_size if len(pages) else 0
            segments[shmid] = SharedSegment(shmid, max(end, last), pages)
        return segments


def _vma(
    records: Records, entry: VmaEntry, names: dict[int, str], memfds: dict[int, SharedMemfd]
) -> ImageVma:
    vma = ImageVma(
        start=records.required(entry, "start"),
        end=records.required(entry, "end"),
        prot=entry.prot,
        flags=entry.flags,
        status=VmaStatus(entry.status),
        shmid=entry.shmid,
        pgoff=entry.pgoff,
        fd=entry.fd if entry.HasField("fd") else -1,
    )
    if vma.is_anon_shared and vma.status & VmaStatus.MEMFD:
        if vma.shmid not in memfds:
            raise ImageError(
                records.file,
                f"the mapping {vma.start:#x}-{vma.end:#x} is of memfd {vma.shmid}, which files.img "
                "does not have",
                _DUMP_AGAIN,
            )
        return replace(vma, shmid=memfds[vma.shmid].shmid)
    return replace(vma, name=names.get(vma.shmid, "")) if vma.is_file else vma


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
