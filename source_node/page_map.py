"""Where in memory the pages of a round are: small histograms of addresses, for those who ask.

Bins are aligned power-of-two blocks of addresses, so that rounds can be laid beside each other
although mappings come, go and move. Their size is chosen at the first round, from what is mapped
then; only bins that have pages are kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from livemigration.v1 import common_pb2
from source_node.tracker import RoundScan


class PageMaps:
    """Makes the page maps of one migration, about `bins` bins each at most."""

    def __init__(self, bins: int) -> None:
        self._bins = bins
        self._shift: int | None = None

    def of(self, scan: RoundScan) -> common_pb2.PageMap:
        """The pages that the processes of a scan send, by bin."""
        if self._shift is None:
            mapped = sum(
                vma.end - vma.start for process in scan.processes for vma in process.space.vmas
            )
            self._shift = max(12, ((mapped - 1) // self._bins).bit_length())
        page_map = common_pb2.PageMap(bin_bytes=1 << self._shift)
        for process in scan.processes:
            bins, pages = _counts(process.send >> np.uint64(self._shift))
            starts = bins << np.uint64(self._shift)
            page_map.processes.add(
                pid=process.space.pid, start=starts.tolist(), pages=pages.tolist()
            )
        return page_map


def _counts(ascending: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
    """The distinct values of an ascending array, and how often each is there."""
    if not ascending.size:
        return ascending, np.zeros(0, dtype=np.intp)
    first = np.flatnonzero(np.diff(ascending, prepend=~ascending[0]))
    return ascending[first], np.diff(first, append=ascending.size)
