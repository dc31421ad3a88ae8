"""Running every case in the model and on this host, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from predump.accuracy.cases import Case
from predump.accuracy.compare import Pair
from predump.hosts import LocalHosts
from predump.inprocess import migrate_in_process
from predump.result import Result
from predump.runner import Hosts, RunError, run_scenario
from predump.scenario import Scenario

_PRESSURE = Path("/proc/pressure/cpu")


async def measure(
    cases: Sequence[Case], repeats: int, on_pair: Callable[[Pair], None] = lambda pair: None
) -> list[Pair]:
    """Predicts and measures each case; both nodes are started once. Raises `RunError`."""
    most = max(case.measured.task.memory for case in cases)
    pairs = []
    async with LocalHosts(most) as local:
        hosts = Hosts(local.source.address, local.dest.address)
        # The first migration between two nodes is not like the others: it is not counted.
        smallest = min(cases, key=lambda case: case.measured.task.memory)
        await _on_host(smallest.measured, hosts)
        for case in cases:
            predicted = await migrate_in_process(case.predicted)
            runs = [await _on_host(case.measured, hosts) for _ in range(repeats)]
            pair = Pair(case, predicted, [run for run, _ in runs], [wait for _, wait in runs])
            pairs.append(pair)
            on_pair(pair)
    return pairs


async def _on_host(scenario: Scenario, hosts: Hosts) -> tuple[Result, float | None]:
    began, before = time.monotonic(), _waited()
    result = await run_scenario(scenario, hosts=hosts)
    if result.error is not None:
        raise RunError(f"{scenario.name}: {result.error}")
    after, elapsed = _waited(), time.monotonic() - began
    if before is None or after is None:
        return result, None
    return result, round(min(1.0, (after - before) / elapsed), 3)


def _waited() -> float | None:
    """Seconds in which somebody waited for a processor (Documentation/accounting/psi.rst)."""
    try:
        line = _PRESSURE.read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return None
    return int(line.rpartition("total=")[2]) / 1e6
