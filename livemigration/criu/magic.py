"""Numbers of CRIU's image format: magics, page flags, states of VMAs and tasks.

Facts from CRIU's criu/include/magic.h, image.h, pagemap.h and images/*.proto (v3.17 to v4.2).
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final

COMMON_MAGIC: Final = 0x54564319
"""Begins every image but the inventory and raw pages; the image's own magic follows it."""
SERVICE_MAGIC: Final = 0x55105940
"""Begins stats-dump and stats-restore instead."""

INVENTORY_MAGIC: Final = 0x58313116
PSTREE_MAGIC: Final = 0x50273030
PAGEMAP_MAGIC: Final = 0x56084025
CORE_MAGIC: Final = 0x55053847
MM_MAGIC: Final = 0x57492820
FILES_MAGIC: Final = 0x56303138
MEMFD_INODE_MAGIC: Final = 0x48453499
IDS_MAGIC: Final = 0x54432030
FS_MAGIC: Final = 0x51403912
FDINFO_MAGIC: Final = 0x56213732
STATS_MAGIC: Final = 0x57093306

IMAGE_VERSIONS: Final = (1, 2)
"""inventory.img_version of a complete dump: 1 (v1.0), 2 (v1.1). A pre-dump has none."""


class PageFlags(IntFlag):
    """What a pagemap entry says of its pages."""

    PARENT = 1  # unchanged since the parent images, where the bytes are
    LAZY = 2  # may be fetched from the source after restore
    PRESENT = 4  # the bytes are in this directory's pages file


class VmaStatus(IntFlag):
    """vma_entry.status: what kind of mapping it was."""

    REGULAR = 1 << 0
    STACK = 1 << 1
    VSYSCALL = 1 << 2
    VDSO = 1 << 3
    HEAP = 1 << 5
    FILE_PRIVATE = 1 << 6
    FILE_SHARED = 1 << 7
    ANON_SHARED = 1 << 8
    ANON_PRIVATE = 1 << 9
    SYSVIPC = 1 << 10
    VVAR = 1 << 12
    AIORING = 1 << 13
    MEMFD = 1 << 14
    GUARD = 1 << 16


TASK_ALIVE: Final = 1
"""core_entry.tc.task_state of a task that runs."""
TASK_DEAD: Final = 2
"""core_entry.tc.task_state of a zombie, which has no memory."""

FILE_TYPE_REGULAR: Final = 1
"""file_entry.type of a file with a path."""
FILE_TYPE_MEMFD: Final = 18
"""file_entry.type of a memfd, and of shared anonymous memory since CRIU dumps it as one."""

MAP_GROWSDOWN: Final = 0x100
"""vma_entry.flags of the stack, which not every version marks in the status."""

AT_PAGESZ: Final = 6
"""The auxiliary vector's key for the page size: the only place where images tell it."""

MACHINE_X86_64: Final = 1
MACHINE_AARCH64: Final = 3
"""core_entry.mtype."""

PRE_DUMP_SPLICE: Final = 1
"""inventory.pre_dump_mode: pages were taken by pipes."""
