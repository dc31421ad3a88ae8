"""When to stop pre-dumping and freeze.

A policy is asked after every pre-dump (round 0 is the first) and says whether the next round is the
final, frozen one, and why. Sources of the rules, as read in their code:

* `FixedRounds` - what podman (one pre-checkpoint) and zdtm's ``--pre N`` do: a number, no looking.
* `Threshold` - LXD and Incus (``migration.incremental.memory.goal`` and ``.iterations``,
  driver_lxc.go): the share of pages that the pre-dump could skip, ``100 - 100 * written // (written
  + skipped)`` in integers; stop when it is *above* the goal (the documentation says "at least", the
  code says above). Their loop counts each pre-dump twice, so that 10 iterations are at most 6
  pre-dumps there; here `max_rounds` is what it says: pre-dumps after round 0.
* `DowntimeLimit` - QEMU (migration/migration.c): bandwidth of the last round = bytes / time; freeze
  when what is dirty now could be sent within the limit at that bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from livemigration.spec import (
    DowntimeLimitPolicySpec,
    FixedPolicySpec,
    ThresholdPolicySpec,
)

NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class RoundView:
    """What a policy may look at after a pre-dump."""

    round: int
    pages_written: int  # pages that this pre-dump sent (CRIU: pages_written)
    pages_skipped: int  # pages left to the parent (CRIU: pages_skipped_parent)
    bytes_wire: int
    duration_ns: int
    pages_dirty: int  # soft-dirty right now, after the round
    page_size: int


@dataclass(frozen=True, slots=True)
class Decision:
    """`freeze`: the next round is the final one. `reason` is for people."""

    freeze: bool
    reason: str


class Policy(Protocol):
    """The stop rule of a migration."""

    @property
    def name(self) -> str:
        """As in a scenario's ``policy.kind``."""
        ...

    @property
    def counts_dirty(self) -> bool:
        """Whether `RoundView.pages_dirty` is wanted, which costs a scan."""
        ...

    def decide(self, view: RoundView) -> Decision:
        """Called once after every pre-dump, in order."""
        ...


@dataclass(frozen=True, slots=True)
class FixedRounds:
    """`rounds` pre-dumps after round 0, then the final round."""

    rounds: int
    name: str = "fixed"
    counts_dirty: bool = False

    def decide(self, view: RoundView) -> Decision:
        """Freeze after the last of the rounds asked for."""
        if view.round >= self.rounds:
            return Decision(True, f"{self.rounds} rounds done")
        return Decision(False, f"{view.round} of {self.rounds} rounds done")


@dataclass(frozen=True, slots=True)
class Threshold:
    """LXD's and Incus' rule, see the module's text."""

    max_rounds: int
    goal_percent: int
    name: str = "threshold"
    counts_dirty: bool = False

    def decide(self, view: RoundView) -> Decision:
        """Freeze when enough was already there, or after the most rounds allowed."""
        pages = view.pages_written + view.pages_skipped
        skipped = 100 - 100 * view.pages_written // pages if pages else 100
        if skipped > self.goal_percent:
            return Decision(True, f"{skipped} % already there, above {self.goal_percent} %")
        if view.round >= self.max_rounds:
            return Decision(True, f"{self.max_rounds} rounds and only {skipped} % already there")
        return Decision(False, f"{skipped} % already there, goal is above {self.goal_percent} %")


@dataclass(frozen=True, slots=True)
class DowntimeLimit:
    """QEMU's rule, see the module's text."""

    limit_ns: int
    max_rounds: int
    name: str = "downtime-limit"
    counts_dirty: bool = True

    def decide(self, view: RoundView) -> Decision:
        """Freeze when the dirty pages fit into the limit, or after the most rounds allowed."""
        pending = view.pages_dirty * view.page_size
        # bandwidth = bytes / duration; pending / bandwidth <= limit, without dividing
        if view.bytes_wire == 0 or pending * view.duration_ns <= self.limit_ns * view.bytes_wire:
            return Decision(True, f"{view.pages_dirty} dirty pages fit into the limit")
        expected = pending * view.duration_ns // view.bytes_wire
        if view.round >= self.max_rounds:
            return Decision(
                True, f"{self.max_rounds} rounds and still {expected / NS:.3f} s expected"
            )
        return Decision(
            False, f"expected {expected / NS:.3f} s, limit is {self.limit_ns / NS:.3f} s"
        )


def build_policy(
    spec: FixedPolicySpec | ThresholdPolicySpec | DowntimeLimitPolicySpec,
) -> Policy:
    """The policy that a scenario's ``[policy]`` describes."""
    match spec:
        case FixedPolicySpec():
            return FixedRounds(spec.rounds)
        case ThresholdPolicySpec():
            return Threshold(spec.max_rounds, spec.goal_percent)
        case DowntimeLimitPolicySpec():
            return DowntimeLimit(spec.downtime_limit_ns, spec.max_rounds)
