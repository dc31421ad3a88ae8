"""Which pages a parent's pagemap lists: what may be left to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.magic import PAGEMAP_MAGIC, PageFlags
from livemigration.criu.pagemap import read_runs
from livemigration.criu.pagemap_entries import joined
from livemigration.criu.pb.pagemap_pb2 import PagemapHead
from livemigration.criu.records import Records

U64 = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class ListedPages:
    """Ascending ranges of addresses, apart: u64[r] each."""

    starts: U64
    ends: U64

    @classmethod
    def of(cls, pagemap: Path, page_size: int) -> Self:
        """The pages of a pagemap file whose bytes are there or further up. Raises ImageError."""
        records = Records(
            pagemap, PAGEMAP_MAGIC, "give the directory that the parent link leads to"
        )
        records.first(PagemapHead)
        runs = read_runs(records, page_size)
        stays = runs.flags != int(PageFlags.LAZY)  # the others stayed with the process
        none = np.zeros(int(stays.sum()), np.uint64)
        starts, pages, _ = joined(runs.starts[stays], runs.pages[stays], none, page_size)
        return cls(starts, starts + pages * np.uint64(page_size))

    def covers(self, start: int, end: int) -> bool:
        """Whether all pages from `start` to `end` are listed."""
        return bool(self.cover(np.array([start], np.uint64), np.array([end], np.uint64))[0])

    def cover(self, starts: U64, ends: U64) -> NDArray[np.bool_]:
        """The same for many ranges, bool[n]."""
        if self.starts.size == 0:
            return np.zeros(starts.size, np.bool_)
        at = np.searchsorted(self.starts, starts, side="right") - 1
        return (at >= 0) & (ends <= self.ends[np.maximum(at, 0)])
