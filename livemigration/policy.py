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
  when what is dirty now could be sent within the limit at that bandwidth. What no pre-dump sends
  (shared memory, hugetlb) is still to be sent as well, and counts.
* `AutoConverge` - the same with QEMU's throttle (migration/ram.c, ``migration_trigger_throttle``
  and ``mig_throttle_guest_down``): when the pages dirtied in a period exceed a share of the bytes
  sent in it for the second time, the task is slowed down by a first step, then by further steps up
  to a limit. QEMU's periods are bitmap syncs at least a second apart; here a period is a round.
* `Phaul` - p.haul (phaul/iters.py): stop at 64 pages or fewer, when a round wrote over 10 % more
  pages than the one before, or after the ninth pre-dump (index 8).
* `Xen` - libxenguest (xg_sr_save.c, ``simple_precopy_policy``): stop at fewer than 50 dirty pages
  or after iteration 5; and the older xc_domain_save's third rule, never more than three times the
  memory in all.
* `StopAndCopy` - no pre-dump at all: the baseline that the others are measured against.
* `PostCopy` - CRIU's ``--lazy-pages`` and Hines and Gopalan (VEE 2009): freeze at once, and let the
  task go on at the destination before its pages are there.
* `Hybrid` - pre-dumps before that, as CRIU's lazy pages after ``pre-dump`` and QEMU's
  ``migrate-start-postcopy`` do; libvirt's ``--postcopy-after-precopy`` switches after one pass.
  What fits into the downtime limit is sent frozen instead, as QEMU does when it converges first.

A user's own class (``kind = "module:Class"``) is one more: see `livemigration.user_policy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from livemigration.spec import (
    MOST_ROUNDS,
    AutoConvergePolicySpec,
    DowntimeLimitPolicySpec,
    FixedPolicySpec,
    HybridPolicySpec,
    PhaulPolicySpec,
    PolicySpec,
    PostCopyPolicySpec,
    StopAndCopyPolicySpec,
    ThresholdPolicySpec,
    UserPolicySpec,
    XenPolicySpec,
)

NS = 1_000_000_000

_THROTTLE_AFTER = 2
"""Periods with too much dirtied before the next step (QEMU: dirty_rate_high_cnt)."""


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
    pages_left: int = 0  # that only the final round sends: shared memory, hugetlb


@dataclass(frozen=True, slots=True)
class Decision:
    """`freeze`: the next round is the final one. `reason` is for people.

    `throttle_percent` (0 to 99): the share of its time that the task does not run from now on.
    `post_copy`: the final round leaves pages behind that come when the task runs over there.
    """

    freeze: bool
    reason: str
    throttle_percent: int = 0
    post_copy: bool = False


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

    @property
    def pre_dumps(self) -> bool:
        """False: freeze at once; the only round is sent frozen.

        `decide` is then called once, before anything is sent: do pages come later (`post_copy`)?
        """
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
    pre_dumps: bool = True

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
    pre_dumps: bool = True

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
    pre_dumps: bool = True

    def decide(self, view: RoundView) -> Decision:
        """Freeze when the dirty pages fit into the limit, or after the most rounds allowed."""
        pending = (view.pages_dirty + view.pages_left) * view.page_size
        # bandwidth = bytes / duration; pending / bandwidth <= limit, without dividing
        if view.bytes_wire == 0 or pending * view.duration_ns <= self.limit_ns * view.bytes_wire:
            left = f" and {view.pages_left} left to the final round" if view.pages_left else ""
            return Decision(True, f"{view.pages_dirty} dirty pages{left} fit into the limit")
        expected = pending * view.duration_ns // view.bytes_wire
        if view.round >= self.max_rounds:
            return Decision(
                True, f"{self.max_rounds} rounds and still {expected / NS:.3f} s expected"
            )
        return Decision(
            False, f"expected {expected / NS:.3f} s, limit is {self.limit_ns / NS:.3f} s"
        )


@dataclass(slots=True)
class AutoConverge:
    """QEMU's throttle on top of its downtime limit, see the module's text."""

    limit: DowntimeLimit
    trigger_percent: int
    initial_percent: int
    increment_percent: int
    most_percent: int
    name: str = "auto-converge"
    counts_dirty: bool = True
    pre_dumps: bool = True
    throttle_percent: int = 0
    _high: int = 0  # periods since the last step in which too much was dirtied

    def decide(self, view: RoundView) -> Decision:
        """As the downtime limit; a task that dirties too much is slowed down step by step."""
        decision = self.limit.decide(view)
        if decision.freeze:
            return replace(decision, throttle_percent=self.throttle_percent)
        dirtied = view.pages_dirty * view.page_size
        if 100 * dirtied > self.trigger_percent * view.bytes_wire:
            self._high += 1
        if self._high >= _THROTTLE_AFTER:
            self._high = 0
            step = self.increment_percent if self.throttle_percent else self.initial_percent
            self.throttle_percent = min(self.throttle_percent + step, self.most_percent)
        slowed = f"; slowed by {self.throttle_percent} %" if self.throttle_percent else ""
        return Decision(False, decision.reason + slowed, self.throttle_percent)


@dataclass(slots=True)
class Phaul:
    """p.haul's rules, see the module's text."""

    max_index: int
    few_pages: int
    most_growth_percent: int
    name: str = "phaul"
    counts_dirty: bool = False
    pre_dumps: bool = True
    _before: int | None = None

    def decide(self, view: RoundView) -> Decision:
        """Freeze when little is left, when a round sent more than the last, or after the last."""
        before, self._before = self._before, view.pages_written
        if view.pages_written <= self.few_pages:
            return Decision(True, f"{view.pages_written} pages, no more than {self.few_pages}")
        if before:
            growth = 100 * (view.pages_written - before) // before
            if growth > self.most_growth_percent:
                return Decision(True, f"{growth} % more pages than in the round before")
        if view.round >= self.max_index:
            return Decision(True, f"{view.round + 1} pre-dumps done")
        return Decision(False, f"{view.pages_written} pages, more than {self.few_pages}")


@dataclass(slots=True)
class Xen:
    """Xen's rules, see the module's text; `most_times` 0: without the third one."""

    max_rounds: int
    few_pages: int
    most_times: int
    name: str = "xen"
    counts_dirty: bool = True
    pre_dumps: bool = True
    _sent: int = 0  # pages, in all rounds

    def decide(self, view: RoundView) -> Decision:
        """Freeze when few pages are dirty, after the last round, or when too much was sent."""
        self._sent += view.pages_written
        memory = view.pages_written + view.pages_skipped
        if view.pages_dirty < self.few_pages:
            return Decision(True, f"{view.pages_dirty} dirty pages, fewer than {self.few_pages}")
        if view.round >= self.max_rounds:
            return Decision(True, f"{self.max_rounds} rounds and {view.pages_dirty} dirty pages")
        if self.most_times and self._sent > self.most_times * memory:
            return Decision(True, f"more than {self.most_times} times the memory sent")
        return Decision(False, f"{view.pages_dirty} dirty pages")


@dataclass(frozen=True, slots=True)
class StopAndCopy:
    """Freezes at once."""

    name: str = "stop-and-copy"
    counts_dirty: bool = False
    pre_dumps: bool = False

    def decide(self, view: RoundView) -> Decision:
        """Frozen already."""
        return Decision(True, "the task is frozen from the start")


@dataclass(frozen=True, slots=True)
class PostCopy:
    """Freezes at once and leaves the pages behind."""

    name: str = "post-copy"
    counts_dirty: bool = False
    pre_dumps: bool = False

    def decide(self, view: RoundView) -> Decision:
        """Frozen already; the pages come later."""
        return Decision(True, "the task is frozen from the start", post_copy=True)


@dataclass(frozen=True, slots=True)
class Hybrid:
    """Pre-dumps, then post-copy, see the module's text."""

    rounds: int
    limit_ns: int
    least_gain_percent: int
    name: str = "hybrid"
    counts_dirty: bool = True
    pre_dumps: bool = True

    def decide(self, view: RoundView) -> Decision:
        """Freeze when the rest fits into the limit, or leave it behind after the last round."""
        fits = DowntimeLimit(self.limit_ns, MOST_ROUNDS).decide(view)
        if fits.freeze:
            return fits
        if view.round >= self.rounds:
            return Decision(
                True, f"{view.round} of {self.rounds} rounds done, post-copy", post_copy=True
            )
        most = view.pages_written * (100 - self.least_gain_percent)
        if self.least_gain_percent and 100 * view.pages_dirty > most:
            return Decision(
                True,
                f"{view.pages_dirty} dirty pages after {view.pages_written} sent, post-copy",
                post_copy=True,
            )
        return Decision(False, f"{view.round} of {self.rounds} rounds done")


def build_policy(spec: PolicySpec, places: Sequence[str] = ()) -> Policy:
    """The policy that a scenario's ``[policy]`` describes, for one migration.

    `places`: where a class of the user's may come from (`livemigration.user_policy`, whose errors
    are raised); without any, none is run.
    """
    match spec:
        case FixedPolicySpec():
            return FixedRounds(spec.rounds)
        case ThresholdPolicySpec():
            return Threshold(spec.max_rounds, spec.goal_percent)
        case DowntimeLimitPolicySpec():
            return DowntimeLimit(spec.downtime_limit_ns, spec.max_rounds)
        case AutoConvergePolicySpec():
            return AutoConverge(
                DowntimeLimit(spec.downtime_limit_ns, spec.max_rounds),
                spec.trigger_percent,
                spec.throttle_initial,
                spec.throttle_increment,
                spec.throttle_max,
            )
        case PhaulPolicySpec():
            return Phaul(spec.max_rounds, spec.few_pages, spec.most_growth_percent)
        case XenPolicySpec():
            return Xen(spec.max_rounds, spec.few_pages, spec.most_times)
        case StopAndCopyPolicySpec():
            return StopAndCopy()
        case UserPolicySpec():
            from livemigration.user_policy import load_policy  # which needs this module

            return load_policy(spec, places)
        case PostCopyPolicySpec():
            return PostCopy()
        case HybridPolicySpec():
            return Hybrid(spec.rounds, spec.downtime_limit_ns, spec.least_gain_percent)
