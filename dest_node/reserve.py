"""Taking the room for a task before its pages come.

A page that is written for the first time costs a fault, which takes several times as long as
copying the page. A host that knows how much is to come takes that out of the migration, and learns
that there is not enough room before round 0 and not in the middle of it (as VM monitors do when
they prefault a destination's memory).
"""

from __future__ import annotations

import ctypes
import errno
import mmap

import numpy as np
from numpy.typing import NDArray

_MADV_POPULATE_WRITE = 23  # Linux 5.14, include/uapi/asm-generic/mman-common.h

_libc = ctypes.CDLL(None, use_errno=True)
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def reserve(content: NDArray[np.uint8]) -> None:
    """Has the kernel put memory behind every whole page of `content`, as it is.

    MemoryError if there is not enough (in a file system: no space). A kernel that cannot do this
    ahead does it page by page later.
    """
    start = -(-content.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (content.ctypes.data + content.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if length <= 0:
        return
    while _madvise(start, length, _MADV_POPULATE_WRITE) != 0:
        error = ctypes.get_errno()
        if error in (errno.EINTR, errno.EAGAIN):
            continue
        if error in (errno.ENOMEM, errno.EFAULT, errno.ENOSPC):
            raise MemoryError(f"no room for {length} bytes")
        return
