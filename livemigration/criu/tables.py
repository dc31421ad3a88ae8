"""The images beside the pages: processes, names, mappings and files, out of whatever holds them.

The same tables are read from a directory (`livemigration.criu.directory`) and from the images that
went through a migration (`livemigration.criu.carried`). Whatever is wrong is an `ImageError`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Protocol

from livemigration.criu.errors import ImageError
from livemigration.criu.magic import (
    CORE_MAGIC,
    FDINFO_MAGIC,
    FILE_TYPE_MEMFD,
    FILE_TYPE_REGULAR,
    FILES_MAGIC,
    IDS_MAGIC,
    MAP_GROWSDOWN,
    MEMFD_INODE_MAGIC,
    MM_MAGIC,
    PSTREE_MAGIC,
    TASK_DEAD,
    VmaStatus,
)
from livemigration.criu.pb.core_pb2 import CoreEntry, KobjIds
from livemigration.criu.pb.files_pb2 import FdinfoEntry, FileEntry, MemfdInodeEntry
from livemigration.criu.pb.mm_pb2 import MmEntry, VmaEntry
from livemigration.criu.pb.pstree_pb2 import PstreeEntry
from livemigration.criu.records import Records

DUMP_AGAIN: Final = "dump again, or copy the whole directory again"
INCOMPLETE: Final = "give the directory of a complete criu dump"


class ImageSource(Protocol):
    """Where image files come from."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def records(self, name: str, magic: int) -> Records:
        """A file's records. Raises ImageError."""
        ...


@dataclass(frozen=True, slots=True)
class ImageVma:
    """One mapping. Addresses and `pgoff` in bytes; `flags` are mmap's, `status` is CRIU's.

    `shmid` is the id of the shared segment or of the file; `name` the file's path, "" without one;
    bit n of `madv` stands for MADV_* number n.
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
    madv: int = 0

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
    def is_of_memfd(self) -> bool:
        """A private mapping of a memfd: its unchanged pages are those of segment `shmid`."""
        memfd = VmaStatus.MEMFD | VmaStatus.FILE_PRIVATE
        return self.status & memfd == memfd

    @property
    def has_segment(self) -> bool:
        """Whether `shmid` is the segment with its pages, or those beneath its own."""
        return self.is_anon_shared or self.is_of_memfd

    @property
    def is_file(self) -> bool:
        """A mapping of a file, private or shared, whose unchanged pages no dump has."""
        file = VmaStatus.FILE_PRIVATE | VmaStatus.FILE_SHARED
        return bool(self.status & file) and not self.has_segment

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


@dataclass(frozen=True, slots=True)
class ImageMemfd:
    """A memfd: `size` in bytes, pages in segment `shmid`. `open`: a descriptor keeps it, mapped or
    not, and so it is a file; without one it is the shared memory that its mappings are."""

    shmid: int
    size: int
    open: bool = False


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """names: paths of regular files by file id; memfds: by file id, in the images' order."""

    names: dict[int, str]
    memfds: dict[int, ImageMemfd]


@dataclass(frozen=True, slots=True)
class ImageTask:
    """A task that has memory."""

    pid: int
    ppid: int
    comm: str
    threads: tuple[int, ...]


def read_files(source: ImageSource, tasks: list[ImageTask]) -> ImageFiles:
    """Paths of regular files, and segments that are memfds. Raises ImageError."""
    names: dict[int, str] = {}
    memfds: dict[int, ImageMemfd] = {}
    if not source.has("files.img"):
        return ImageFiles(names, memfds)  # without, mappings of files have no names
    records = source.records("files.img", FILES_MAGIC)
    inodes: dict[int, ImageMemfd] | None = None
    opened: set[int] = set()
    for entry in records.rest(FileEntry):
        if entry.type == FILE_TYPE_REGULAR:
            names[entry.id] = entry.reg.name.decode(errors="replace")
        elif entry.type == FILE_TYPE_MEMFD:
            if inodes is None:
                inodes = _memfd_inodes(source)
                opened = _open_memfds(source, tasks)
            if entry.memfd.inode_id not in inodes:
                raise ImageError(
                    records.file,
                    f"names memfd {entry.memfd.inode_id}, which memfd.img does not have",
                    DUMP_AGAIN,
                )
            memfds[entry.id] = replace(inodes[entry.memfd.inode_id], open=entry.id in opened)
    return ImageFiles(names, memfds)


def _memfd_inodes(source: ImageSource) -> dict[int, ImageMemfd]:
    entries = source.records("memfd.img", MEMFD_INODE_MAGIC).rest(MemfdInodeEntry)
    return {entry.inode_id: ImageMemfd(entry.shmid, entry.size) for entry in entries}


def _open_memfds(source: ImageSource, tasks: list[ImageTask]) -> set[int]:
    """Ids of memfds that some task has a descriptor of."""
    found: set[int] = set()
    for task in tasks:
        if not source.has(f"ids-{task.pid}.img"):
            continue
        ids = source.records(f"ids-{task.pid}.img", IDS_MAGIC).first(KobjIds)
        name = f"fdinfo-{ids.files_id}.img"
        if source.has(name):
            entries = source.records(name, FDINFO_MAGIC).rest(FdinfoEntry)
            found |= {entry.id for entry in entries if entry.type == FILE_TYPE_MEMFD}
    return found


def read_tasks(source: ImageSource) -> list[ImageTask]:
    """The tasks in the order of pstree.img; zombies have no memory and are left out.

    Raises ImageError.
    """
    records = source.records("pstree.img", PSTREE_MAGIC)
    tasks: dict[int, ImageTask] = {}
    for entry in records.rest(PstreeEntry):
        pid = records.required(entry, "pid")
        core = source.records(f"core-{pid}.img", CORE_MAGIC).first(CoreEntry)
        if core.tc.task_state == TASK_DEAD:
            continue
        if pid in tasks:
            raise ImageError(records.file, f"has task {pid} twice", DUMP_AGAIN)
        comm = core.tc.comm.decode(errors="replace")
        tasks[pid] = ImageTask(pid, entry.ppid, comm, tuple(entry.threads))
    if not tasks:
        raise ImageError(records.file, "has no task with memory", INCOMPLETE)
    return list(tasks.values())


def read_address_space(
    source: ImageSource, pid: int, files: ImageFiles
) -> tuple[MmEntry, tuple[ImageVma, ...]]:
    """A task's mappings, and the rest of its mm image. Raises ImageError."""
    records = source.records(f"mm-{pid}.img", MM_MAGIC)
    mm = records.first(MmEntry)
    vmas = tuple(_vma(records, entry, files) for entry in mm.vmas)
    if not vmas:
        raise ImageError(records.file, "has no mappings", "dump with CRIU 3.17 or later")
    return mm, vmas


def _vma(records: Records, entry: VmaEntry, files: ImageFiles) -> ImageVma:
    vma = ImageVma(
        start=records.required(entry, "start"),
        end=records.required(entry, "end"),
        prot=entry.prot,
        flags=entry.flags,
        status=VmaStatus(entry.status),
        shmid=entry.shmid,
        pgoff=entry.pgoff,
        fd=entry.fd if entry.HasField("fd") else -1,
        madv=entry.madv,
    )
    if vma.has_segment and vma.status & VmaStatus.MEMFD:
        if vma.shmid not in files.memfds:
            raise ImageError(
                records.file,
                f"the mapping {vma.start:#x}-{vma.end:#x} is of memfd {vma.shmid}, which files.img "
                "does not have",
                DUMP_AGAIN,
            )
        return replace(vma, shmid=files.memfds[vma.shmid].shmid)
    return replace(vma, name=files.names.get(vma.shmid, "")) if vma.is_file else vma
