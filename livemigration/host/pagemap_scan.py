"""The PAGEMAP_SCAN ioctl on /proc/self/pagemap (Linux 6.7).

What it protects (PM_SCAN_WP_MATCHING) and tells as written (PAGE_IS_WRITTEN) is userfaultfd's
write-protection, which arm64 has only since 6.10 (`livemigration.host.userfaultfd`).

Documentation/admin-guide/mm/pagemap.rst; structure and number: include/uapi/linux/fs.h. The numbers
of categories and flags are in `mm_model`, which has the same call for the model.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from livemigration.errors import BadRequest
from livemigration.host.ioctl import iowr

U64 = NDArray[np.uint64]

REGIONS = 16384
"""Regions that one call can report: 384 KiB, which stays in the second-level cache."""

_ARGUMENTS = struct.Struct("=12Q")
# size, flags, start, end, walk_end, vec, vec_len, max_pages,
# category_inverted, category_mask, category_anyof_mask, return_mask
_WALK_END = 4

PAGEMAP_SCAN_IOCTL = iowr(ord("f"), 16, _ARGUMENTS.size)


@dataclass(frozen=True, slots=True)
class Question:
    """Which pages to report (those with all of `mask` and any of `anyof`), and what of them."""

    mask: int
    anyof: int
    returned: int
    flags: int = 0


class PagemapScan:
    """Asks about this process' memory. `BadRequest` where the kernel cannot be asked."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadRequest(f"/proc/self/pagemap: {error.strerror}; mount /proc") from error
        self._regions = np.zeros((REGIONS, 3), np.uint64)
        try:
            self._call(0, 0, Question(0, 0, 0))
        except OSError as error:
            self.close()
            if error.errno != errno.ENOTTY:
                raise
            raise BadRequest(
                "PAGEMAP_SCAN is not known here; it came with Linux 6.7, and is of use here with "
                "userfaultfd's write-protection (6.7 on x86-64, 6.10 on arm64)"
            ) from error

    def scan(self, start: int, end: int, question: Question) -> Iterator[U64]:
        """What is in [start, end), ascending: uint64[n, 3] of start, end, categories.

        In parts, each of which is valid until the next one is asked for. With
        ``PM_SCAN_WP_MATCHING`` the reported pages are protected by then.
        """
        while start < end:
            found, start = self._call(start, end, question)
            yield self._regions[:found]

    def _call(self, start: int, end: int, question: Question) -> tuple[int, int]:
        """One call: (regions found, where the walk stopped)."""
        arguments = bytearray(
            _ARGUMENTS.pack(
                _ARGUMENTS.size,
                question.flags,
                start,
                end,
                0,
                self._regions.ctypes.data,
                REGIONS,
                0,
                0,
                question.mask,
                question.anyof,
                question.returned,
            )
        )
        found = fcntl.ioctl(self._fd, PAGEMAP_SCAN_IOCTL, arguments)
        return found, _ARGUMENTS.unpack(arguments)[_WALK_END]

    def close(self) -> None:
        """Once is enough."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
