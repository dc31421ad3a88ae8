"""Counters and gauges of a node, in Prometheus' terms. docs/observability.md lists them.

Each node has a registry of its own (several nodes may live in one process). Whatever is known at
any moment - who owns the task, how large it is - is read when Prometheus asks, so it cannot be out
of date. Times of a migration are on its own clock, which `clock` names: those on the virtual one
are simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import StateSetMetricFamily
from prometheus_client.registry import Collector

from livemigration.ownership import Ownership
from livemigration.v1 import source_node_pb2

NS: Final = 1_000_000_000

DOWNTIME_BUCKETS: Final = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60,
)  # fmt: skip
TOTAL_BUCKETS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600)

SOURCE_OUTCOMES: Final = ("verified", "differs", "aborted", "failed", "in-doubt")
DEST_OUTCOMES: Final = ("committed", "aborted", "recovered")

ReadOwnership = Callable[[], Ownership]


class _OwnershipCollector(Collector):
    """One series per state, 1 for the one that the node is in."""

    def __init__(self, name: str, read: ReadOwnership) -> None:
        self._name = name
        self._read = read

    def collect(self) -> Iterator[StateSetMetricFamily]:
        """Read when asked."""
        now = self._read()
        states = {state.name.lower().replace("_", "-"): state is now for state in Ownership}
        yield StateSetMetricFamily(
            self._name, "State of the node's task; none: it has none", value=states
        )


class _NodeMetrics:
    """What both nodes have."""

    def __init__(self, prefix: str, *, host_id: str, version: str) -> None:
        self.prefix = prefix
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        info = Info("predump_node", "Which node this is", registry=self.registry)
        info.info({"role": prefix.split("_")[1], "host": host_id, "version": version})
        self.streams_broken = self._counter(
            "streams_broken", "Page streams that broke before what they carried was whole"
        )

    def watch(self, ownership: ReadOwnership, memory_bytes: Callable[[], float]) -> None:
        """What is read from the node whenever Prometheus asks."""
        self.registry.register(_OwnershipCollector(f"{self.prefix}_ownership", ownership))
        memory = Gauge(
            f"{self.prefix}_task_memory_bytes",
            "Memory of the task that the node has",
            registry=self.registry,
        )
        memory.set_function(memory_bytes)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"{self.prefix}_{name}", text, labels, registry=self.registry)


class SourceMetrics(_NodeMetrics):
    """Of a source."""

    def __init__(self, *, host_id: str, version: str) -> None:
        super().__init__("predump_source", host_id=host_id, version=version)
        self._started = self._counter("migrations_started", "Migrations begun")
        self._ended = self._counter("migrations", "Migrations that ended, by outcome", ("outcome",))
        for outcome in SOURCE_OUTCOMES:  # a series that is there from the start can be watched
            self._ended.labels(outcome)
        self._rounds = self._counter("rounds", "Rounds finished")
        self._sent = self._counter("pages_sent", "Pages sent, zero pages too")
        self._zero = self._counter("pages_zero", "Pages sent as being all zeros")
        self._spurious = self._counter("pages_spurious", "Pages sent though nothing had changed")
        self._lost = self._counter(
            "pages_lost", "Pages written and not soft-dirty at a migration's last scan"
        )
        self._different = self._counter(
            "pages_different", "Pages found different at the destination"
        )
        self._wire = self._counter("wire_bytes", "Bytes sent, with their framing")
        self._payload = self._counter("payload_bytes", "Bytes of the pages sent, before encoding")
        self._downtime = Histogram(
            f"{self.prefix}_downtime_seconds",
            "From the freeze to runnable at the destination, of migrations that were handed over",
            ("clock",),
            buckets=DOWNTIME_BUCKETS,
            registry=self.registry,
        )
        self._total = Histogram(
            f"{self.prefix}_migration_seconds",
            "Whole migrations that were handed over",
            ("clock",),
            buckets=TOTAL_BUCKETS,
            registry=self.registry,
        )

    def began(self) -> None:
        """A migration begins."""
        self._started.inc()

    def round(self, *, sent: int, zero: int, spurious: int, wire: int) -> None:
        """A round is over; `sent` and `wire` are of this round alone."""
        self._rounds.inc()
        self._sent.inc(sent)
        self._zero.inc(zero)
        self._spurious.inc(spurious)
        self._wire.inc(wire)

    def ended(
        self,
        result: source_node_pb2.MigrationResult,
        *,
        clock: str,
        aborted: bool,
        streams_broken: int,
    ) -> None:
        """A migration is over, whichever way."""
        owner = Ownership(result.ownership)
        self._ended.labels(_outcome(result, owner, aborted=aborted)).inc()
        self._lost.inc(result.pages_lost)
        self._different.inc(result.mismatched_pages)
        self.streams_broken.inc(streams_broken)
        self._payload.inc(result.payload_bytes)
        # Post-copy: what came after the hand-over is in the result and in no round.
        self._wire.inc(max(0, result.bytes_wire - sum(r.bytes_wire for r in result.rounds)))
        if owner is Ownership.RELEASED:
            self._downtime.labels(clock).observe(result.downtime.total_ns / NS)
            self._total.labels(clock).observe(result.total_ns / NS)


class DestinationMetrics(_NodeMetrics):
    """Of a destination."""

    def __init__(self, *, host_id: str, version: str) -> None:
        super().__init__("predump_dest", host_id=host_id, version=version)
        self._started = self._counter("migrations_started", "Migrations that got room here")
        self._ended = self._counter(
            "migrations", "Tasks taken over, given up, or found again after a restart", ("outcome",)
        )
        for outcome in DEST_OUTCOMES:
            self._ended.labels(outcome)
        self._compared = self._counter(
            "verifications", "Comparisons with the source's digests", ("result",)
        )
        for result in ("equal", "different"):
            self._compared.labels(result)
        self._rounds = self._counter("rounds", "Rounds received")
        self._frames = self._counter("frames", "Frames applied")
        self._wire = self._counter("wire_bytes", "Bytes of the frames applied")
        self._restore = Histogram(
            f"{self.prefix}_restore_seconds",
            "From the hand-over's arrival to the task restored, in real time",
            buckets=DOWNTIME_BUCKETS,
            registry=self.registry,
        )

    def prepared(self) -> None:
        """A migration got room."""
        self._started.inc()

    def arrived(self, *, frames: int, wire: int, rounds: int) -> None:
        """Frames were applied, and so many rounds closed by them."""
        self._frames.inc(frames)
        self._wire.inc(wire)
        self._rounds.inc(rounds)

    def compared(self, *, equal: bool) -> None:
        """A comparison is over."""
        self._compared.labels("equal" if equal else "different").inc()

    def committed(self, restore_ns: int) -> None:
        """A task was taken over."""
        self._ended.labels("committed").inc()
        self._restore.observe(restore_ns / NS)

    def aborted(self) -> None:
        """A task was given up."""
        self._ended.labels("aborted").inc()

    def recovered(self) -> None:
        """A task was found in the state directory at the start."""
        self._ended.labels("recovered").inc()


def _outcome(result: source_node_pb2.MigrationResult, owner: Ownership, *, aborted: bool) -> str:
    if owner in (Ownership.IN_DOUBT, Ownership.SERVING):
        return "in-doubt"
    if result.error:
        return "aborted" if aborted else "failed"
    return "verified" if result.verified else "differs"
