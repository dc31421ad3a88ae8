"""Running every case in the model and on this host, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from predump.accuracy.cases import Case
from predump.accuracy.compare import Pair
from predump.hosts import LocalHosts
from predump.inprocess import migrate_in_process
from predump.result import Result
from predump.runner import Hosts, RunError, run_scenario
from predump.scenario import Scenario

_PRESSURE = Path("/proc/pressure/cpu")


@dataclass(slots=True)
class Found:
    """The cases that gave results, and of those that failed the reason, in one line."""

    pairs: list[Pair] = field(default_factory=list)
    failed: list[tuple[Case, str]] = field(default_factory=list)


async def measure(
    cases: Sequence[Case], repeats: int, on_case: Callable[[str], None] = lambda line: None
) -> Found:
    """Predicts and measures each case; both nodes are started once.

    A case that fails is told and the others go on. Raises `RunError` if the nodes do not start.
    """
    most = max(case.measured.task.memory for case in cases)
    found = Found()
    async with LocalHosts(most) as local:
        hosts = Hosts(local.source.address, local.dest.address)
        # The first migration between two nodes is not like the others: it is not counted.
        smallest = min(cases, key=lambda case: case.measured.task.memory)
        await _on_host(smallest.measured, hosts)
        for case in cases:
            try:
                pair = await _pair(case, repeats, hosts)
            except RunError as error:
                found.failed.append((case, error.message))
                on_case(f"{case}: failed: {error.message}")
                continue
            found.pairs.append(pair)
            on_case(str(pair))
    return found


async def _pair(case: Case, repeats: int, hosts: Hosts) -> Pair:
    predicted = await migrate_in_process(case.predicted)
    runs = [await _on_host(case.measured, hosts) for _ in range(repeats)]
    return Pair(case, predicted, [run for run, _ in runs], [wait for _, wait in runs])


async def _on_host(scenario: Scenario, hosts: Hosts) -> tuple[Result, float | None]:
    began, before = time.monotonic(), _waited()
    result = await run_scenario(scenario, hosts=hosts)
    if result.error is not None:
        raise RunError(result.error)
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
