"""Which missing pages are fetched next, while the task does not wait for any.

Pages are numbered in the order of process and address, so that neighbours in memory are neighbours
in number. Three orders:

* `Demand` - none: only what the task waits for (CRIU's lazy pages without its background copy);
* `Sequential` - one after the other, as CRIU's lazy-pages daemon goes through what remains;
* `AroundFaults` - bubbles that grow to both sides of the last few faults (M. Hines, K. Gopalan,
  "Post-copy based live virtual machine migration using adaptive pre-paging and dynamic
  self-ballooning", VEE 2009: dual-direction bubbling with several pivots). The task's next accesses
  are likely near its last ones. The bubbles take turns. A bubble that has no more pages on either
  side ends; when all have, the rest comes one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from livemigration.compiled import compiled

Indices = NDArray[np.int64]
States = NDArray[np.uint8]

MISSING, ASKED, HERE, DROPPED = range(4)
"""What a page is: not here, asked for, here, or not needed any more. Pages go one way only."""

_NOTHING = np.zeros(0, dtype=np.int64)


class Prefetcher(Protocol):
    """An order of pages."""

    def next(self, states: States, most: int) -> Indices:
        """At most `most` missing pages (int64[n], ascending) of one process; none: nothing to do.

        states: uint8[pages].
        """
        ...

    def fault(self, index: int) -> None:
        """The task waits for this page; it is asked for already."""
        ...


class Demand:
    """Nothing unasked."""

    def next(self, states: States, most: int) -> Indices:
        """Nothing."""
        return _NOTHING

    def fault(self, index: int) -> None:
        """Makes no difference."""


class Sequential:
    """Page after page."""

    def __init__(self, borders: Indices) -> None:
        """borders: where each process' pages begin, and the number of all, int64[processes + 1]."""
        self._borders = borders
        self._at = 0

    def next(self, states: States, most: int) -> Indices:
        """See `Prefetcher.next`."""
        for border in self._borders[1:].tolist():
            if self._at < border:
                found, self._at = _upwards(states, self._at, border, most)
                if found.size:
                    return found
        return _NOTHING

    def fault(self, index: int) -> None:
        """Makes no difference."""


@dataclass(slots=True)
class _Bubble:
    """Pages [low, high) around a fault; it grows within [first, last)."""

    low: int
    high: int
    first: int
    last: int


class AroundFaults:
    """Bubbles around the last `pivots` faults."""

    def __init__(self, borders: Indices, pivots: int) -> None:
        """borders: as `Sequential` takes them."""
        self._borders = borders
        self._pivots = pivots
        self._bubbles: list[_Bubble] = []
        self._turn = 0
        self._rest = Sequential(borders)

    def next(self, states: States, most: int) -> Indices:
        """See `Prefetcher.next`: half of it from each side of a bubble."""
        while self._bubbles:
            self._turn %= len(self._bubbles)
            found = self._grow(self._bubbles[self._turn], states, most)
            if found.size:
                self._turn += 1
                return found
            del self._bubbles[self._turn]
        return self._rest.next(states, most)

    @staticmethod
    def _grow(bubble: _Bubble, states: States, most: int) -> Indices:
        below, bubble.low = _downwards(states, bubble.low, bubble.first, most // 2)
        above, bubble.high = _upwards(states, bubble.high, bubble.last, most - below.size)
        if below.size + above.size < most:  # one side is at its end: the other takes its share
            more, bubble.low = _downwards(
                states, bubble.low, bubble.first, most - below.size - above.size
            )
            below = np.concatenate((below, more))
        return np.concatenate((below[::-1], above))

    def fault(self, index: int) -> None:
        """A bubble begins here, in the place of the oldest if there are enough."""
        at = int(np.searchsorted(self._borders, index, side="right")) - 1
        first, last = self._borders[at : at + 2].tolist()
        self._bubbles.insert(0, _Bubble(index, index + 1, first, last))
        del self._bubbles[self._pivots :]
        self._turn = 0  # its neighbours are the likeliest to be needed


def make_prefetcher(kind: str, borders: Indices, pivots: int) -> Prefetcher:
    """The order that a plan names; ValueError if there is none of that name."""
    match kind:
        case "none":
            return Demand()
        case "sequential":
            return Sequential(borders)
        case "around-faults":
            return AroundFaults(borders, pivots)
    raise ValueError(f"prefetch {kind!r} is unknown; use none, sequential or around-faults")


def _upwards(states: States, start: int, stop: int, most: int) -> tuple[Indices, int]:
    """(the first `most` missing pages in [start, stop), the first page not looked at)."""
    found = np.empty(max(0, min(most, stop - start)), dtype=np.int64)
    count, at = _collect(states, start, stop, 1, found)
    return found[:count], int(at)


def _downwards(states: States, start: int, stop: int, most: int) -> tuple[Indices, int]:
    """(the last `most` missing pages in [stop, start), descending, the lowest page looked at)."""
    found = np.empty(max(0, min(most, start - stop)), dtype=np.int64)
    count, at = _collect(states, start - 1, stop - 1, -1, found)
    return found[:count], int(at) + 1


@compiled
def _collect(states: States, start: int, stop: int, step: int, out: Indices) -> tuple[int, int]:
    """Missing pages from `start` on until `out` is full; how many, and where it stopped."""
    count = 0
    at = start
    while at != stop and count < out.size:
        if states[at] == MISSING:
            out[count] = at
            count += 1
        at += step
    return count, at
