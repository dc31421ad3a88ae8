"""Migrations back and forth between two hosts for minutes, with faults by chance, and no leak.

Each of the two hosts has a source and a destination node. A task is started at one of them and
migrates to the other, then the next one the other way; workload, policy, encoding and memory change
by chance, and so do the faults: which, when, and how long. Every migration is judged like any other
fault (`predump.faults.trial`), except that a fault by chance may end either way: the task must be
at exactly one host, whole, and go on.

What the nodes hold is looked at between migrations, when they have no task: memory, descriptors and
threads of processes that were not killed, what is in the state directories, and sessions. The first
migrations of a process do not count: it fills pools and buffers that stay.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from livemigration.channel import open_channel
from livemigration.ownership import Ownership
from livemigration.v1 import destination_node_pb2, destination_node_pb2_grpc
from predump.faults.lab import LocalLaboratory
from predump.faults.points import BEFORE_COMMIT
from predump.faults.spec import BASE, CaseSpec, Fault, FaultSpec
from predump.faults.trial import Trial, try_case
from predump.faults.usage import Usage, usage_of
from predump.hosts import NodeProcess
from predump.scenario import scenario_from_mapping

MIB = 1 << 20
MEMORY = 16 * MIB

WARM_TRIALS = 6
"""So many trials of a process do not count: pools, buffers and caches fill."""

MOST_RSS = 48 * MIB
MOST_DESCRIPTORS = 8
MOST_THREADS = 4
"""Growth of one process from one third of its life to the next that is not called a leak."""

KEPT = {"lock", "store-id"}
"""What a state directory has when no task is there."""

FAULT_SHARE = 0.6
LATER_SHARE = 0.6
"""Of all migrations: with a fault, and those whose pages come after the task."""

LEAST_TRIALS = 4
"""However short it is."""

PAGES = ("pages", "pages-25%", "pages-75%", "pages-over")
"""Where faults strike a post-copy after the hand-over, beside what its kind says."""

# kind: the points where it may strike, and the rest of its file
_KINDS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "cut-link": ((*BEFORE_COMMIT, "commit", "taken", "continue"), {}),
    "silence-link": ((*BEFORE_COMMIT, "commit", "taken", "continue"), {}),
    "slow-link": (("round-0", "final"), {"rate_kib": 24576}),
    "kill-destination": ((*BEFORE_COMMIT, "commit", "taken", "continue"), {}),
    "pause-destination": ((*BEFORE_COMMIT, "commit", "taken"), {}),
    "pause-source": (("round-0", "final", "taken"), {}),
    "kill-source": (("round-0", "final", "commit", "taken"), {}),
    "fill-disk": (("prepare", "commit"), {}),
    "duplicate-frames": (("round-0", "round-1", "final"), {}),
    "reorder-frames": (("round-0", "round-1", "final"), {}),
    "truncate-frames": (("round-0", "round-1", "final"), {}),
    "corrupt-frames": (("round-0", "round-1", "final"), {}),
    "swallow-frames": (("round-0", "final"), {}),
    "slow-destination": (("round-0",), {"delay": "10ms"}),
    "slow-caller": (("round-0",), {"delay": "20ms"}),
}
_WORKLOADS: tuple[dict[str, Any], ...] = tuple(
    {"kind": kind, "rate": "5000 pages/s", "write_size": 64}
    for kind in ("uniform", "zipf", "hotspot", "sequential")
)
_POLICIES: tuple[dict[str, Any], ...] = (
    {"kind": "fixed", "rounds": 1},
    {"kind": "fixed", "rounds": 2},
    {"kind": "threshold"},
)
_LATER: tuple[dict[str, Any], ...] = tuple(
    {"kind": kind, "batch": "64KiB"} | more
    for kind in ("post-copy", "hybrid")
    for more in (
        {"prefetch": "around-faults", "lost_after": "1s"},
        {"prefetch": "sequential", "lost_after": "4s"},
        {"prefetch": "none", "lost_after": "2s"},
    )
)


@dataclass(slots=True)
class SoakReport:
    """What happened, and what grew."""

    seed: int
    wall_s: float = 0.0
    migrations: int = 0
    bytes_compared: int = 0
    restarts: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    growth: dict[str, Usage] = field(default_factory=dict)  # of the process that lived longest
    trials_of: dict[str, int] = field(default_factory=dict)  # ... in so many trials
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        outcomes = ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))
        text = [
            f"seed {self.seed}: {self.migrations} migrations in {self.wall_s:.0f} s, "
            f"{self.bytes_compared / MIB:.0f} MiB compared, {self.restarts} processes died",
            f"faults: {faults or 'none'}",
            f"outcomes: {outcomes}",
        ]
        for name, grown in self.growth.items():
            text.append(
                f"{name}: {grown.rss_bytes / MIB:+.1f} MiB, {grown.descriptors:+d} descriptors, "
                f"{grown.threads:+d} threads in {self.trials_of[name]} trials"
            )
        text += [f"WRONG: {problem}" for problem in self.problems]
        return text


class _Life:
    """What one process of a node held after each trial."""

    def __init__(self, name: str, node: NodeProcess) -> None:
        self.name = name
        self.node = node
        self._pid = 0
        self._seen: list[Usage] = []
        self.longest: list[Usage] = []
        self.restarts = -1

    def look(self) -> None:
        """After a trial."""
        assert self.node.process is not None
        if self.node.process.pid != self._pid:
            self._pid, self._seen = self.node.process.pid, []
            self.restarts += 1
        self._seen.append(usage_of(self._pid))
        if len(self._seen) >= len(self.longest):
            self.longest = self._seen

    def growth(self) -> Usage:
        """The last third of the longest life against the one before it, by their medians.

        In the first one pools and arenas fill.
        """
        seen = self.longest[WARM_TRIALS:]
        third = len(seen) // 3
        if third == 0:
            return Usage()
        return _median(seen[-third:]).minus(_median(seen[-2 * third : -third]))


def _median(seen: list[Usage]) -> Usage:
    return Usage(
        rss_bytes=int(statistics.median(u.rss_bytes for u in seen)),
        descriptors=int(statistics.median(u.descriptors for u in seen)),
        threads=int(statistics.median(u.threads for u in seen)),
    )


def draw(chance: random.Random) -> tuple[Fault, CaseSpec]:
    """A scenario and a fault by chance; `slow-caller` without any delay stands for no fault."""
    later = chance.random() < LATER_SHARE
    policy = chance.choice(_LATER if later else _POLICIES)
    tables = BASE | {
        "clock": chance.choice(("virtual", "wall")) if later else "virtual",
        "seed": chance.randrange(1, 1 << 31),
        "memory": f"{chance.choice((2, 4, 8, 16))}MiB",
        "workload": chance.choice(_WORKLOADS),
        "policy": policy,
        "encoding": {"kind": chance.choice(("raw", "delta", "lz4"))},
        "verify": {"mode": chance.choice(("digest", "bytes"))},
        # A busy machine must not look like a lost host.
        "patience": {"answer": "15s", "reconnect": "5s", "settle": "10s"},
    }
    kind, at, more = "slow-caller", "round-0", {"delay": "0s"}
    if chance.random() < FAULT_SHARE:
        kind = chance.choice(sorted(_KINDS))
        points, more = _KINDS[kind]
        at = chance.choice(_points(points, policy["kind"]))
    until_the_end = kind != "pause-source" and chance.random() < 0.1
    lasts = "0s" if until_the_end else f"{chance.randrange(50, 800)}ms"
    spec = FaultSpec.model_validate(
        {
            "about": "by chance",
            "kind": kind,
            "lasts": lasts,
            "case": [
                {
                    "at": at,
                    "outcome": "migrated",
                    "mode": policy["kind"] if later else "pre-copy",
                }
            ],
            **more,
        }
    )
    name = "none" if more.get("delay") == "0s" else kind
    return Fault(name, spec, scenario_from_mapping(tables, default_name="soak")), spec.case[0]


def _points(points: tuple[str, ...], policy: str) -> tuple[str, ...]:
    """Those that a migration with this policy comes to."""
    if policy == "post-copy":
        points = tuple(point for point in points if not point.startswith("round"))
    elif policy != "hybrid":
        return points
    return (*points, *PAGES, *PAGES)  # as often as not


async def soak(
    seconds: float, seed: int, *, on_trial: Callable[[Trial], None] = lambda trial: None
) -> SoakReport:
    """Goes on for so long; nothing was wrong and nothing leaked if `problems` is empty."""
    report = SoakReport(seed)
    chance = random.Random(seed)
    async with AsyncExitStack() as stack:
        labs = [await stack.enter_async_context(LocalLaboratory(MEMORY)) for _ in range(2)]
        lives = [
            _Life(f"host {host} {role}", node)
            for there, lab in enumerate(labs)
            for host, role, node in (
                (1 + there, "source", lab.source_node),
                (2 - there, "destination", lab.destination_node),
            )
        ]
        turn, began = 0, time.monotonic()
        while turn < LEAST_TRIALS or time.monotonic() - began < seconds:
            fault, case = draw(chance)
            trial = await try_case(labs[turn % 2], fault, case, any_end=True)
            on_trial(trial)
            _count(report, fault, trial)
            await _look(report, labs[turn % 2], trial)
            for life in lives:
                life.look()
            turn += 1
        for life in lives:
            _judge(report, life)
        report.wall_s = time.monotonic() - began
    return report


def _count(report: SoakReport, fault: Fault, trial: Trial) -> None:
    report.migrations += trial.migrations
    report.bytes_compared += trial.bytes_compared
    report.outcomes[trial.outcome or "none"] += 1
    if fault.name != "none":
        report.faults[fault.name] += 1
    report.problems += [f"{trial.fault} at {trial.at}: {problem}" for problem in trial.problems]


async def _look(report: SoakReport, lab: LocalLaboratory, trial: Trial) -> None:
    """No task is anywhere: no file of one may be, and no session."""
    left = {entry.name for entry in lab.state_dir.iterdir()} - KEPT
    if left:
        report.problems.append(
            f"{trial.fault} at {trial.at}: left in the state directory: {', '.join(sorted(left))}"
        )
    async with open_channel(lab.destination) as channel:
        stub = destination_node_pb2_grpc.DestinationNodeStub(channel)
        try:
            status = await stub.GetMigration(
                destination_node_pb2.GetMigrationRequest(migration_id=trial.migration_id)
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return
            raise
        if status.ownership != Ownership.ABORTED.value:
            report.problems.append(
                f"{trial.fault} at {trial.at}: a session was left at the destination"
            )


def _judge(report: SoakReport, life: _Life) -> None:
    grown = life.growth()
    report.restarts += max(0, life.restarts)
    report.growth[life.name] = grown
    report.trials_of[life.name] = len(life.longest)
    if grown.rss_bytes > MOST_RSS:
        report.problems.append(f"{life.name}: memory grew by {grown.rss_bytes / MIB:.0f} MiB")
    if grown.descriptors > MOST_DESCRIPTORS:
        report.problems.append(f"{life.name}: {grown.descriptors} more descriptors")
    if grown.threads > MOST_THREADS:
        report.problems.append(f"{life.name}: {grown.threads} more threads")
