"""What a trace holds, in figures: its hottest pages, and distinct pages per window of time.

Distinct pages per second depend on the window they are counted in (a page written twice in a window
counts once), so the window is always part of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from livemigration.units import format_time_ns
from livemigration.workload.base import WorkloadError
from livemigration.workload.kernels import I64, U64
from livemigration.workload.trace import Footer, Header, Records, TraceFile

_SECOND_NS = 10**9
_AFTER_ALL = 2**63  # later than any record
_WINDOWS = 10
_MOST_WINDOWS = 100_000


@dataclass(frozen=True, slots=True)
class HotPage:
    """One page and what went to it."""

    address: int
    stores: int
    records: int


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """Figures of a trace; rates are in distinct pages per second of the program's time."""

    duration_ns: int
    window_ns: int
    pages_per_window: tuple[int, ...]
    hottest: tuple[HotPage, ...]

    @property
    def mean_rate(self) -> float:
        """Distinct pages per second, averaged over the windows."""
        return self._rate(sum(self.pages_per_window)) / max(1, len(self.pages_per_window))

    @property
    def peak_rate(self) -> float:
        """Distinct pages per second in the busiest window."""
        return self._rate(max(self.pages_per_window, default=0))

    def _rate(self, pages: int) -> float:
        return pages * _SECOND_NS / self.window_ns


def duration_ns(trace: TraceFile) -> int:
    """How long one run of the program takes, at the trace's instructions per second."""
    return length_ns(trace.header, trace.footer)


def length_ns(header: Header, footer: Footer) -> int:
    """The same of a trace's header and footer: until the next run could begin, rounded up."""
    return -(-(footer.instructions + 1) * _SECOND_NS // header.instructions_per_second)


def round_part(duration: int) -> int:
    """About a tenth of a duration: the next of 1, 2, 5, 10, 20, 50, ... nanoseconds."""
    part = -(-duration // _WINDOWS)
    power: int = 10 ** (len(str(part)) - 1)
    for digit in (1, 2, 5):
        if digit * power >= part:
            return digit * power
    return 10 * power


def summarize(trace: TraceFile, window_ns: int = 0, top: int = 10) -> TraceSummary:
    """Figures of ``trace``; ``window_ns`` 0 means a second, or about a tenth of a short trace.

    Raises WorkloadError if the window is so short that there would be more than 100,000 of them.
    """
    duration = duration_ns(trace)
    window = window_ns or _usual_window(duration)
    if duration > _MOST_WINDOWS * window:
        raise WorkloadError(
            f"a window of {format_time_ns(window)} cuts the trace into more than {_MOST_WINDOWS} "
            f"pieces; use a longer one"
        )
    counter = _WindowCounter(trace, window, -(-duration // window))
    stores = np.zeros(trace.pages.size, dtype=np.int64)
    records = np.zeros(trace.pages.size, dtype=np.int64)
    for piece in trace.records(0, trace.footer.records):
        counter.add(piece)
        index = np.searchsorted(trace.pages, piece.page)
        np.add.at(stores, index, piece.stores.astype(np.int64))
        np.add.at(records, index, 1)
    hottest = np.argsort(-stores, kind="stable")[:top]
    return TraceSummary(
        duration,
        window,
        counter.finish(),
        tuple(
            HotPage(int(trace.pages[i]) * trace.header.page_size, int(stores[i]), int(records[i]))
            for i in hottest
        ),
    )


def _usual_window(duration: int) -> int:
    """A second, if that makes neither too few nor too many windows."""
    tenth = round_part(duration)
    return min(tenth, _SECOND_NS) if duration <= _MOST_WINDOWS * _SECOND_NS else tenth


class _WindowCounter:
    """Counts distinct pages per window over records that come in pieces, in time order."""

    def __init__(self, trace: TraceFile, window_ns: int, windows: int) -> None:
        self._per_second = trace.header.instructions_per_second
        self._window_ns = window_ns
        self._counts: I64 = np.zeros(windows, dtype=np.int64)
        self._open = 0
        self._seen: U64 = np.zeros(0, dtype=np.uint64)  # pages of the open window so far

    def add(self, records: Records) -> None:
        """Records later than all before."""
        at = 0
        while at < len(records):
            window = self._window_of(int(records.time[at]))
            # First instruction of the next window.
            end = -(-(window + 1) * self._window_ns * self._per_second // _SECOND_NS)
            stop = int(np.searchsorted(records.time, np.uint64(min(end, _AFTER_ALL))))
            if window != self._open:
                self._close()
                self._open = window
            self._seen = np.union1d(self._seen, records.page[at:stop])
            at = stop

    def finish(self) -> tuple[int, ...]:
        """Distinct pages of each window."""
        self._close()
        return tuple(self._counts.tolist())

    def _window_of(self, time: int) -> int:
        return time * _SECOND_NS // self._per_second // self._window_ns

    def _close(self) -> None:
        self._counts[self._open] = self._seen.size
        self._seen = self._seen[:0]
