"""The mapping that a task's memory is: anonymous, private, in base pages, of this process."""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray

from livemigration.errors import BadRequest, NoSpace

U8 = NDArray[np.uint8]


class Region:
    """`pages` pages of memory, untouched at first: each takes room with its first write.

    One more page lies before them and is never written: it is row 0 of `content`, which stands for
    pages of zeros everywhere (`livemigration.digest`).
    """

    def __init__(self, pages: int, page_size: int) -> None:
        """`BadRequest` if the host's pages are of another size, `NoSpace` if it has no room."""
        here = os.sysconf("SC_PAGE_SIZE")
        if page_size != here:
            raise BadRequest(
                f'tracker = "host": pages are {here} bytes here, not {page_size}; '
                f"set page_size to {here}"
            )
        size = (pages + 1) * page_size
        try:
            mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            # A huge page would be written as a whole; pages are what is tracked.
            mapped.madvise(mmap.MADV_NOHUGEPAGE)
        except OSError as error:
            raise NoSpace(f"no room for {size} bytes of memory: {error.strerror}") from error
        self.page_size = page_size
        self.pages = pages
        self.content: U8 = np.frombuffer(mapped, np.uint8).reshape(pages + 1, page_size)
        self.start = self.content.ctypes.data + page_size

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.start + self.pages * self.page_size

    @property
    def words(self) -> NDArray[np.uint64]:
        """The task's memory without the page of zeros, as uint64[pages * page_size / 8]."""
        return self.content[1:].reshape(-1).view(np.uint64)
