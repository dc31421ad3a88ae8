"""When operations are due: workload time in integer nanoseconds, by exact arithmetic.

A clock maps operation numbers to times and back; both directions agree to the nanosecond, so a run
cut into any slices of time executes the same operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

NEVER_NS = 2**62
"""Due time of operations that do not come (about 146 years)."""
_SECOND_NS = 10**9


class OpClock(Protocol):
    """When the operations of a workload are due."""

    def due_ns(self, k: int) -> int:
        """When operation ``k`` is due; `NEVER_NS` if it does not come."""

    def due_before(self, until_ns: int) -> int:
        """How many operations are due before ``until_ns``: they are 0 .. result-1."""


class NeverClock:
    """Of a task that does nothing."""

    def due_ns(self, k: int) -> int:
        """Never."""
        return NEVER_NS

    def due_before(self, until_ns: int) -> int:
        """None."""
        return 0


class RateClock:
    """Operation k at floor(k / rate) seconds, in nanoseconds."""

    def __init__(self, rate: Fraction) -> None:
        self._rate = rate

    def due_ns(self, k: int) -> int:
        """floor(k / rate), in nanoseconds."""
        return k * _SECOND_NS * self._rate.denominator // self._rate.numerator

    def due_before(self, until_ns: int) -> int:
        """ceil(until_ns * rate)."""
        if until_ns <= 0:
            return 0
        return -(-until_ns * self._rate.numerator // (_SECOND_NS * self._rate.denominator))


@dataclass(frozen=True, slots=True)
class Place:
    """Where an operation lies in a cycle of phases."""

    phase: int
    """Which phase."""
    turn: int
    """The operation's number among all operations of this phase, over all cycles."""
    left: int
    """Operations of this phase still to come in this cycle, this one included."""


class PhaseClock:
    """Phases of given lengths and rates in turn, cycled; a rate of zero is a pause."""

    def __init__(self, phases: Sequence[tuple[int, Fraction]]) -> None:
        """Phases as (duration_ns, operations per second)."""
        self._clocks = [RateClock(rate) if rate else NeverClock() for _, rate in phases]
        self._lengths = [duration for duration, _ in phases]
        self._counts = [
            clock.due_before(length)
            for clock, length in zip(self._clocks, self._lengths, strict=True)
        ]
        self._cycle_ns = sum(self._lengths)
        self._cycle_ops = sum(self._counts)

    def locate(self, k: int) -> Place:
        """The phase that operation ``k`` belongs to; there must be operations at all."""
        cycle, rest = divmod(k, self._cycle_ops)
        phase = 0
        while rest >= self._counts[phase]:
            rest -= self._counts[phase]
            phase += 1
        count = self._counts[phase]
        return Place(phase, cycle * count + rest, count - rest)

    def due_ns(self, k: int) -> int:
        """Start of the cycle and of the phase, and the operation's time in it."""
        if self._cycle_ops == 0:
            return NEVER_NS
        place = self.locate(k)
        cycle, within = divmod(place.turn, self._counts[place.phase])
        start = cycle * self._cycle_ns + sum(self._lengths[: place.phase])
        return start + self._clocks[place.phase].due_ns(within)

    def due_before(self, until_ns: int) -> int:
        """Operations of whole cycles and of the one that ``until_ns`` cuts."""
        if until_ns <= 0:
            return 0
        cycle, rest = divmod(until_ns, self._cycle_ns)
        done = cycle * self._cycle_ops
        for clock, length in zip(self._clocks, self._lengths, strict=True):
            done += clock.due_before(min(max(rest, 0), length))
            rest -= length
        return done
