"""Sets of page numbers as ranges, so that what a damaged file claims takes no memory.

A set is (starts, ends), i64[r] each, ascending and apart: pages start <= page < end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PageRanges:
    """A set of page numbers."""

    starts: I64
    ends: I64

    @classmethod
    def of(cls, starts: I64, pages: I64) -> PageRanges:
        """Ascending runs that do not overlap; those that touch become one."""
        ends = starts + pages
        if starts.size == 0:
            return cls(starts, ends)
        first = np.concatenate((np.ones(1, np.bool_), starts[1:] != ends[:-1]))
        last = np.concatenate((first[1:], np.ones(1, np.bool_)))
        return cls(starts[first], ends[last])

    @classmethod
    def none(cls) -> PageRanges:
        """The empty set."""
        empty = np.zeros(0, np.int64)
        return cls(empty, empty)

    @property
    def pages(self) -> int:
        """How many pages are in the set."""
        return int((self.ends - self.starts).sum())

    def __and__(self, other: PageRanges) -> PageRanges:
        low = np.searchsorted(other.ends, self.starts, side="right")
        high = np.searchsorted(other.starts, self.ends, side="left")
        counts = high - low
        mine = np.repeat(np.arange(self.starts.size), counts)
        before = np.repeat(np.cumsum(counts) - counts, counts)
        theirs = np.arange(mine.size) - before + np.repeat(low, counts)
        return PageRanges(
            np.maximum(self.starts[mine], other.starts[theirs]),
            np.minimum(self.ends[mine], other.ends[theirs]),
        )

    def __sub__(self, other: PageRanges) -> PageRanges:
        if self.starts.size == 0:
            return self
        lowest, highest = self.starts[0], self.ends[-1]
        gaps = PageRanges(
            np.concatenate(([lowest], other.ends)), np.concatenate((other.starts, [highest]))
        )
        some = gaps.starts < gaps.ends
        return self & PageRanges(gaps.starts[some], gaps.ends[some])
