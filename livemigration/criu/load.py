"""Memory of the model made from CRIU images, as a restore would make it.

What a dump carries is installed byte for byte; what it does not carry is not made up:

* private mappings of files become anonymous private memory with the dumped pages only (those that
  the program had changed): pages that a real restore reads from the file are not there, and the
  mapping's name says so;
* shared mappings of files become empty shared memory, for the same reason;
* shared anonymous segments become shared objects, with their pages in the object: the processes'
  page tables have no entries for them until they are touched; memfds likewise, and private mappings
  of a memfd are private mappings of the object;
* vvar and vsyscall are the kernel's own and are left out; the vdso, which a dump carries, is data.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.directory import ImageDirectory, ImageProcess, SharedSegment
from livemigration.criu.errors import ImageError
from livemigration.criu.magic import VmaStatus
from livemigration.criu.naming import model_pids
from livemigration.criu.tables import ImageVma
from livemigration.spec import LARGEST_MEMORY
from livemigration.task import ROOT_PID, Task, TaskFile
from mm_model import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    MmError,
)

MOST_MAPPED: Final = 16 * LARGEST_MEMORY
"""Bytes of all mappings, most of which may never be touched."""

_INSTALL_BYTES: Final = 16 << 20
"""Pages are read and installed in pieces, so that loading takes little memory of its own."""

DUMPED_ONLY: Final = " (dumped pages only)"
"""Ends the name of a mapping of a file."""


def load_task(machine: Machine, images: ImageDirectory) -> Task:
    """The dumped processes as a task: the dump's root becomes the root, the others follow by pid.

    Memfds that a descriptor keeps become the task's files. Raises ImageError as `load_into`.
    """
    spaces, objects = _load(machine, images)
    parents = {process.pid: process.ppid for process in images.processes}
    pids = model_pids(parents)
    ordered = sorted(pids, key=pids.__getitem__)
    task = Task(machine, spaces[ordered[0]])
    for pid in ordered[1:]:
        task.processes[pids[pid]] = spaces[pid]
        task.parents[pids[pid]] = pids.get(parents[pid], ROOT_PID)
    task.next_pid = len(ordered) + 1
    for shmid, segment in images.shared.items():
        if segment.is_file:
            pages = machine.shared(objects[shmid]).npages
            task.files.append(TaskFile(objects[shmid], pages, on_disk=False))
    return task


def load_into(machine: Machine, images: ImageDirectory) -> dict[int, Mm]:
    """Makes the address spaces of all processes in `images`; returns them by their pids there.

    Raises ImageError as `load_task`.
    """
    return _load(machine, images)[0]


def _load(machine: Machine, images: ImageDirectory) -> tuple[dict[int, Mm], dict[int, int]]:
    """Address spaces by the images' pids, and objects of the machine by the segments' ids.

    Raises ImageError if the machine's page size is another, or if the model cannot hold the images
    (too few frames, addresses beyond its address space).
    """
    if machine.page_size != images.page_size:
        raise ImageError(
            images.path,
            f"pages of {images.page_size} bytes, but the machine has pages of {machine.page_size}",
            f"set page_size = {images.page_size}",
        )
    _check_sizes(images)
    try:
        objects = {
            shmid: machine.create_shared(
                max(segment.size // images.page_size, 1), keep=segment.is_file
            )
            for shmid, segment in images.shared.items()
        }
        spaces = {
            process.pid: _make_space(machine, process, objects) for process in images.processes
        }
        for shmid, segment in images.shared.items():
            _fill_shared(machine, segment, objects[shmid])
    except (MmError, MemoryError, OverflowError) as error:  # the last two: absurd sizes
        raise ImageError(
            images.path,
            f"the model cannot hold it: {error}",
            "give the machine more memory, or dump a smaller program",
        ) from error
    return spaces, objects


def _check_sizes(images: ImageDirectory) -> None:
    """Raises ImageError for mappings and segments that only a table of their pages would fill."""
    mapped = sum(
        vma.end - vma.start
        for process in images.processes
        for vma in process.vmas
        if not vma.is_kernel_data
    )
    shared = sum(segment.size for segment in images.shared.values())
    if mapped > MOST_MAPPED or shared > LARGEST_MEMORY:
        raise ImageError(
            images.path,
            f"the model cannot hold it: mappings of {mapped} bytes, shared memory of {shared}",
            "dump a smaller program",
        )


def _make_space(machine: Machine, process: ImageProcess, objects: dict[int, int]) -> Mm:
    mm = machine.create_mm()
    for vma in process.vmas:
        if not vma.is_kernel_data:
            _map(machine, mm, vma, objects)
    mm.restore_brk(process.start_brk, process.brk)
    addresses = process.pages.addresses
    addresses = addresses[~_in_kernel_data(process, addresses)]
    step = max(_INSTALL_BYTES // machine.page_size, 1)
    for at in range(0, addresses.size, step):
        piece = addresses[at : at + step]
        mm.install(piece, process.pages.read(piece))
    return mm


def _map(machine: Machine, mm: Mm, vma: ImageVma, objects: dict[int, int]) -> None:
    shared_id = pgoff = 0
    if vma.has_segment:
        flags = MAP_SHARED if vma.is_anon_shared else MAP_PRIVATE
        shared_id = objects[vma.shmid]
        pgoff = vma.pgoff // machine.page_size
    elif vma.status & VmaStatus.FILE_SHARED:
        flags = MAP_SHARED  # of an object of its own
    else:
        flags = MAP_PRIVATE | vma.flags & MAP_GROWSDOWN
    if not vma.is_of_memfd:
        flags |= MAP_ANONYMOUS
    mm.mmap(
        vma.start,
        vma.end - vma.start,
        vma.prot & (PROT_READ | PROT_WRITE | PROT_EXEC),
        flags | MAP_FIXED,
        shared_id=shared_id,
        pgoff=pgoff,
        name=_name(vma),
    )


def _name(vma: ImageVma) -> str:
    if vma.is_file:
        return (vma.name or "file") + DUMPED_ONLY
    if vma.is_heap:
        return "[heap]"
    if vma.is_stack:
        return "[stack]"
    return "[vdso]" if vma.status & VmaStatus.VDSO else ""


def _in_kernel_data(process: ImageProcess, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
    inside = np.zeros(addresses.size, np.bool_)
    for vma in process.vmas:
        if vma.is_kernel_data:
            inside |= (addresses >= np.uint64(vma.start)) & (addresses < np.uint64(vma.end))
    return inside


def _fill_shared(machine: Machine, segment: SharedSegment, shared_id: int) -> None:
    """Puts the pages into the object, through a helper process that maps all of it."""
    helper = machine.create_mm()
    start = helper.mmap(
        None,
        segment.size,
        PROT_READ | PROT_WRITE,
        MAP_SHARED | MAP_ANONYMOUS,
        shared_id=shared_id,
    )
    offsets = segment.pages.addresses
    step = max(_INSTALL_BYTES // machine.page_size, 1)
    for at in range(0, offsets.size, step):
        piece = offsets[at : at + step]
        helper.install(piece + np.uint64(start), segment.pages.read(piece))
    helper.exit()
