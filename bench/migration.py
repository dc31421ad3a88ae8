"""Whole migrations between two real processes: throughput, peak memory, and how time grows.

The task is idle and its memory random, the link unlimited, the clock the wall's: what is measured
is the path of a page, from scan, gather and digest at the source over gRPC to apply and verify at
the destination. Throughput is page bytes by the time from the first frame to verified; the time of
a migration is that from the start of round 0 to the task runnable at the destination. Starting
processes and filling memory is in neither, and a small migration first lets both processes load
their compiled code.

Where others use the machine, wall time says little. So the CPU time of each process is given too,
from the first round to the end of verification.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.grpc_stream import Server, Stream, server_process
from bench.measure import Line, cpu_seconds, median_ratio, peak_bytes
from predump.hosts import LocalHosts, NodeProcess
from predump.runner import Hosts, run_scenario
from predump.scenario import Scenario, scenario_from_mapping

_MIB = 1 << 20
_GIB = 1 << 30
_GB = 1e9
_ALLOWED_BESIDES = 150 * _MIB
_WARM_UP = 16 * _MIB


@dataclass(frozen=True, slots=True)
class Run:
    """One migration or bare stream: seconds, bytes of pages, CPU seconds of sender and receiver.

    seconds: from the first byte to the last (a migration: to verified); total_seconds: of the whole
    migration without verification; the peaks are bytes.
    """

    seconds: float
    page_bytes: int
    source_cpu: float
    dest_cpu: float
    verify_seconds: float = 0.0
    total_seconds: float = 0.0
    source_peak: int = 0
    dest_peak: int = 0

    @property
    def rate(self) -> float:
        """Page bytes in GB/s."""
        return self.page_bytes / self.seconds / _GB


class _CpuClock:
    """CPU time of both nodes between two phases of a migration, by its events."""

    def __init__(self, pids: tuple[int, int]) -> None:
        self._pids = pids
        self._start = self._end = (0.0, 0.0)

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["phase"] == "round" and self._start == (0.0, 0.0):
            self._start = self._now()  # what the destination did to make room is not the transfer's
        elif event["phase"] == "commit":
            self._end = self._now()

    def _now(self) -> tuple[float, float]:
        return cpu_seconds(self._pids[0]), cpu_seconds(self._pids[1])

    @property
    def source(self) -> float:
        return self._end[0] - self._start[0]

    @property
    def dest(self) -> float:
        return self._end[1] - self._start[1]


def _scenario(memory: int) -> Scenario:
    return scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "name": "bench",
            "clock": "wall",
            "memory": memory,
            "workload": {"kind": "idle"},
            "policy": {"kind": "fixed", "rounds": 1},
            "link": {"bandwidth": "unlimited", "latency": "0us"},
        },
        origin="bench",
    )


def _pid(node: NodeProcess) -> int:
    if node.process is None:
        raise RuntimeError(f"the {node.role} does not run")
    return node.process.pid


async def migrate(memory: int) -> Run:
    """Migrates an idle task of `memory` bytes once. Raises predump.runner.RunError."""
    async with LocalHosts(memory) as local:
        hosts = Hosts(local.source.address, local.dest.address)
        await run_scenario(_scenario(_WARM_UP), hosts=hosts)
        cpu = _CpuClock((_pid(local.source), _pid(local.dest)))
        result = await run_scenario(_scenario(memory), hosts=hosts, on_event=cpu)
        if not result.verified:
            raise RuntimeError(f"the migration was not verified: {result.error}")
        return Run(
            seconds=result.transfer_wall_s,
            page_bytes=result.bytes_pages,
            source_cpu=cpu.source,
            dest_cpu=cpu.dest,
            verify_seconds=result.verify_s,
            total_seconds=result.total_time_s,
            source_peak=peak_bytes(_pid(local.source)),
            dest_peak=peak_bytes(_pid(local.dest)),
        )


async def bare(server: Server, total: int) -> Run:
    """As many bytes through a bare gRPC stream from this process to the server's."""
    stream = Stream(server.address)
    try:
        await stream.send(_WARM_UP)
        before = cpu_seconds(os.getpid()), cpu_seconds(server.pid)
        taken = await stream.send(total)
        after = cpu_seconds(os.getpid()), cpu_seconds(server.pid)
    finally:
        await stream.close()
    return Run(taken, total, after[0] - before[0], after[1] - before[1])


async def _stream_lines(*, quick: bool) -> list[Line]:
    total, rounds = (128 * _MIB, 2) if quick else (512 * _MIB, 5)
    sizes = (256 << 10, _MIB, 2 * _MIB, 4 * _MIB)
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    async with server_process() as server:
        stream = Stream(server.address)
        await stream.send(64 * _MIB)
        for _ in range(rounds):
            for size in sizes:
                rates[size].append(total / await stream.send(total, size) / _GB)
        await stream.close()
    base = rates[_MIB]
    return [
        Line(
            "stream",
            f"bare gRPC, messages of {size >> 10} KiB",
            statistics.median(rates[size]),
            "GB/s",
            statistics.median(base),
            "messages of 1024 KiB",
            median_ratio(rates[size], base),
            note=f"median of {rounds}, {total >> 20} MiB each",
        )
        for size in sizes
    ]


async def _migration_lines(*, quick: bool) -> list[Line]:
    small, large = (64 * _MIB, 256 * _MIB) if quick else (512 * _MIB, 2 * _GIB)
    rounds = 2 if quick else 3
    runs: dict[int, list[Run]] = {small: [], large: []}
    streams: dict[int, list[Run]] = {small: [], large: []}
    async with server_process() as server:
        for _ in range(rounds):
            for memory in (small, large):
                streams[memory].append(await bare(server, memory))
                runs[memory].append(await migrate(memory))
    return [
        *(_throughput(memory, runs[memory], streams[memory]) for memory in (small, large)),
        *_cpu(large, runs[large], streams[large]),
        *_peaks(large, runs[large]),
        _growth(small, large, runs),
    ]


def _name(memory: int) -> str:
    return f"{memory >> 20} MiB" if memory < _GIB else f"{memory >> 30} GiB"


def _rates(runs: Iterable[Run]) -> list[float]:
    return [run.rate for run in runs]


def _throughput(memory: int, runs: list[Run], streams: list[Run]) -> Line:
    verify = statistics.median(run.verify_seconds / run.seconds for run in runs)
    return Line(
        "migration",
        f"payload throughput, {_name(memory)}",
        statistics.median(_rates(runs)),
        "GB/s",
        statistics.median(_rates(streams)),
        "bare gRPC stream of as many bytes",
        median_ratio(_rates(runs), _rates(streams)),
        ">=",
        0.8,
        target_is_ratio=True,
        note=f"median of {len(runs)}; verification is {verify:.0%} of the time",
    )


def _cpu(memory: int, runs: list[Run], streams: list[Run]) -> list[Line]:
    per_gib = memory / _GIB
    lines = []
    for role, end, taken, base in (
        ("source", "sender", [r.source_cpu for r in runs], [r.source_cpu for r in streams]),
        ("destination", "receiver", [r.dest_cpu for r in runs], [r.dest_cpu for r in streams]),
    ):
        lines.append(
            Line(
                "migration",
                f"CPU time of the {role}, {_name(memory)}",
                statistics.median(taken) / per_gib,
                "s/GiB",
                statistics.median(base) / per_gib,
                f"{end} of the bare stream",
                median_ratio(taken, base),
            )
        )
    return lines


def _peaks(memory: int, runs: list[Run]) -> list[Line]:
    allowed = 1.25 * memory + _ALLOWED_BESIDES
    return [
        Line(
            "migration",
            f"peak memory of the {role}, {_name(memory)}",
            max(peaks) / _MIB,
            "MiB",
            memory / _MIB,
            "the task's memory",
            max(peaks) / memory,
            "<=",
            allowed / _MIB,
        )
        for role, peaks in (
            ("source", [run.source_peak for run in runs]),
            ("destination", [run.dest_peak for run in runs]),
        )
    ]


def _growth(small: int, large: int, runs: dict[int, list[Run]]) -> Line:
    times = {memory: [run.total_seconds for run in taken] for memory, taken in runs.items()}
    return Line(
        "migration",
        f"time for {_name(large)}",
        statistics.median(times[large]),
        "s",
        statistics.median(times[small]),
        f"time for {_name(small)}",
        median_ratio(times[large], times[small]),
        "<=",
        4.4,
        target_is_ratio=True,
        note=f"{large // small} times the memory",
    )


def stream_lines(*, quick: bool) -> list[Line]:
    """Group "stream"."""
    return asyncio.run(_stream_lines(quick=quick))


def migration_lines(*, quick: bool) -> list[Line]:
    """Group "migration"."""
    return asyncio.run(_migration_lines(quick=quick))
