"""The two clocks of a migration.

* `VirtualClock`: time is what the cost and link models say. `spend` moves it, and while the task is
  running the workload runs along. Integers only: the same run gives the same times on every
  machine.
* `WallClock`: time passes by itself; `spend` does nothing, since what it stands for has really
  happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Nanoseconds since the clock was made."""

    name: str

    @property
    def now_ns(self) -> int:
        """The time now."""
        ...

    def spend(self, duration_ns: int) -> None:
        """A step took so long by the cost model."""
        ...


class VirtualClock:
    """Discrete-event time. `advance` is called with every duration, to let the task run along."""

    name = "virtual"

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._now = 0
        self._advance = advance

    @property
    def now_ns(self) -> int:
        """The time now."""
        return self._now

    def spend(self, duration_ns: int) -> None:
        """Moves time; the task, if it is running, runs for that long."""
        if duration_ns < 0:
            raise ValueError("time does not run backwards")
        self._advance(duration_ns)
        self._now += duration_ns


class WallClock:
    """Real time (monotonic)."""

    name = "wall"

    def __init__(self) -> None:
        self._start = time.monotonic_ns()

    @property
    def now_ns(self) -> int:
        """The time now."""
        return time.monotonic_ns() - self._start

    def spend(self, duration_ns: int) -> None:
        """Nothing: real steps take real time."""
