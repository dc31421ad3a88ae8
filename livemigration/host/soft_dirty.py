"""Soft-dirty of this process: /proc/self/clear_refs and bit 55 of /proc/self/pagemap.

For x86-64 kernels with CONFIG_MEM_SOFT_DIRTY that have no WP_ASYNC
(Documentation/admin-guide/mm/soft-dirty.rst). ``clear_refs`` knows no ranges: it clears the bits of
all memory of this process.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray

from livemigration.errors import BadRequest
from mm_model import PM_SOFT_DIRTY

U64 = NDArray[np.uint64]

_ENTRY = 8
_AT_ONCE = 32768
"""Entries read by one call: 256 KiB, which stays in the second-level cache."""


class SoftDirty:
    """The interface of this process. `BadRequest` where the kernel has no soft-dirty."""

    def __init__(self) -> None:
        self._page_size = os.sysconf("SC_PAGE_SIZE")
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        if not self._has_bit():
            self.close()
            raise BadRequest("soft-dirty is not compiled into this kernel (CONFIG_MEM_SOFT_DIRTY)")

    def _has_bit(self) -> bool:
        """A new mapping is soft-dirty where there is such a thing (VM_SOFTDIRTY)."""
        with mmap.mmap(-1, self._page_size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
            page[0] = 1
            view = np.frombuffer(page, np.uint8)
            entry = self.entries(view.ctypes.data, 1)[0]
            del view  # or the mapping could not be closed
        return bool(entry & PM_SOFT_DIRTY)

    def entries(self, start: int, pages: int) -> U64:
        """The pagemap entries of `pages` pages from `start` on: uint64[pages]."""
        out = np.empty(pages, np.uint64)
        first = start // self._page_size
        for at in range(0, pages, _AT_ONCE):
            part = out[at : at + _AT_ONCE].view(np.uint8).data
            got = os.preadv(self._pagemap, [part], (first + at) * _ENTRY)
            if got != len(part):
                raise OSError(f"/proc/self/pagemap: {got} of {len(part)} bytes")
        return out

    def clear(self) -> None:
        """From now on only pages written anew are soft-dirty."""
        with open("/proc/self/clear_refs", "wb", buffering=0) as file:
            file.write(b"4")

    def close(self) -> None:
        """Once is enough."""
        fd, self._pagemap = self._pagemap, -1
        if fd >= 0:
            os.close(fd)
