"""Which pages a stream of stores goes to: one or two regions, or the pages of a CRIU image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from livemigration.runs import from_runs, to_runs
from livemigration.workload.kernels import I64, MOST_PAGES, U64, place, wrapping
from mm_model import MAP_PRIVATE, PROT_WRITE, Mm

_NO_TABLE: U64 = np.zeros(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Targets:
    """``count`` pages, numbered from 0.

    Pages [0, split) lie from ``base`` on and the others from ``other`` on; with a ``table`` of page
    addresses (uint64[count]) those count instead.
    """

    count: int
    page_size: int
    base: int = 0
    split: int = 0
    other: int = 0
    table: U64 = field(default_factory=lambda: _NO_TABLE, repr=False)

    @classmethod
    def region(cls, base: int, count: int, page_size: int) -> Targets:
        """``count`` pages from ``base`` on."""
        return cls(count, page_size, base=base, split=count)

    @classmethod
    def two_regions(cls, base: int, split: int, other: int, others: int, page_size: int) -> Targets:
        """``split`` pages from ``base`` on, then ``others`` pages from ``other`` on."""
        return cls(split + others, page_size, base=base, split=split, other=other)

    @classmethod
    def of_table(cls, table: U64, page_size: int) -> Targets:
        """Pages at the addresses uint64[n] given."""
        return cls(table.size, page_size, table=table)

    def __post_init__(self) -> None:
        if not 0 < self.count <= MOST_PAGES:
            raise ValueError(f"a workload needs 1 to {MOST_PAGES} pages to write, not {self.count}")

    def first(self, count: int) -> Targets:
        """The first ``count`` pages of these (all of them, if there are fewer)."""
        if count >= self.count:
            return self
        if self.table.size:
            return Targets.of_table(self.table[:count], self.page_size)
        return Targets(count, self.page_size, self.base, min(self.split, count), self.other)

    def stores(self, pages: I64, size: int, slot_key: int, first: int, out: U64) -> None:
        """Addresses uint64[n] of stores of ``size`` bytes to ``pages`` int64[n].

        The place within the page is drawn from the stream ``slot_key`` for operations ``first`` on.
        """
        with wrapping():
            place(
                pages,
                np.uint64(self.page_size // size),
                np.uint64(slot_key),
                np.uint64(first),
                np.uint64(size),
                np.uint64(self.page_size),
                self.split,
                np.uint64(self.base),
                np.uint64(self.other),
                self.table,
                out,
            )

    def addresses(self, pages: I64) -> U64:
        """The addresses uint64[n] of ``pages`` int64[n]."""
        out = np.empty(pages.size, dtype=np.uint64)
        self.stores(pages, self.page_size, 0, 0, out)
        return out

    def runs(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The pages [first, last) as contiguous pieces (address, length in bytes)."""
        starts, counts = to_runs(
            self.addresses(np.arange(first, last, dtype=np.int64)), self.page_size
        )
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            yield start, count * self.page_size

    def state(self) -> dict[str, object]:
        """JSON-able; `from_state` makes the same targets of it."""
        if self.table.size:
            starts, counts = to_runs(self.table, self.page_size)
            return {
                "runs": [list(run) for run in zip(starts.tolist(), counts.tolist(), strict=True)]
            }
        return {"count": self.count, "base": self.base, "split": self.split, "other": self.other}

    @classmethod
    def from_state(cls, state: dict[str, object], page_size: int) -> Targets:
        """The inverse of `state`."""
        runs = state.get("runs")
        if isinstance(runs, list):
            table = np.array(runs, dtype=np.uint64).reshape(-1, 2)
            starts, counts = table[:, 0].copy(), table[:, 1].copy()
            return cls.of_table(from_runs(starts, counts, page_size), page_size)
        keys = ("count", "base", "split", "other")
        count, base, split, other = (int(str(state[key])) for key in keys)
        return cls(count, page_size, base=base, split=split, other=other)


def image_pages(mm: Mm, page_size: int) -> U64:
    """Addresses uint64[n] of the pages that a restored image has in writable private mappings."""
    found = [_NO_TABLE]
    for vma in mm.vmas():
        if not (vma.prot & PROT_WRITE and vma.flags & MAP_PRIVATE):
            continue
        rows = mm.frames(vma.start, (vma.end - vma.start) // page_size)
        there = np.flatnonzero(rows > 0).astype(np.uint64)
        found.append(np.uint64(vma.start) + there * np.uint64(page_size))
    return np.concatenate(found)
