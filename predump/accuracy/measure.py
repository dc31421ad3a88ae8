"""Running every case in the model and on this host, one after the other."""

from __future__ import annotations

import asyncio
import time
from collections import deque
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
_LOOK_S = 5.0
_MOST_WAIT_S = 3600.0
"""How long a calm moment is waited for before a case is measured."""
_MOST_TRIES = 8
"""How often a case is measured that others disturb."""


@dataclass(slots=True)
class Found:
    """The cases that gave results, and of those that failed the reason, in one line."""

    pairs: list[Pair] = field(default_factory=list)
    failed: list[tuple[Case, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Manner:
    """How each case is measured: how often, and in which peace.

    `calm`: the largest share of the time in which somebody may wait for a processor. While there is
    more of it a case is not begun, and one that met more is measured again; 1: whatever there is.
    """

    repeats: int = 1
    calm: float = 1.0


async def measure(
    cases: Sequence[Case], manner: Manner, on_case: Callable[[str], None] = lambda line: None
) -> Found:
    """Predicts and measures each case between the same two nodes.

    A case that fails is told, and the others go on between new nodes: the old ones may still have
    its task. Raises `RunError` if nodes do not start.
    """
    most = max(case.measured.task.memory for case in cases)
    smallest = min(cases, key=lambda case: case.measured.task.memory)
    found, left = Found(), deque(cases)
    while left:
        async with LocalHosts(most) as local:
            hosts = Hosts(local.source.address, local.dest.address)
            # The first migration between two nodes is not like the others: it is not counted.
            await _on_host(smallest.measured, hosts)
            while left and await _case(left.popleft(), manner, hosts, found, on_case):
                pass
    return found


async def _case(
    case: Case, manner: Manner, hosts: Hosts, found: Found, on_case: Callable[[str], None]
) -> bool:
    """Measures one case and says how it went; False: it failed."""
    try:
        pair = await _pair(case, manner, hosts)
    except RunError as error:
        found.failed.append((case, error.message))
        on_case(f"{case}: failed: {error.message}")
        return False
    found.pairs.append(pair)
    on_case(str(pair))
    return True


async def _pair(case: Case, manner: Manner, hosts: Hosts) -> Pair:
    predicted = await migrate_in_process(case.predicted)
    runs = [await _in_peace(case.measured, manner.calm, hosts) for _ in range(manner.repeats)]
    return Pair(case, predicted, [run for run, _ in runs], [wait for _, wait in runs])


async def _in_peace(scenario: Scenario, calm: float, hosts: Hosts) -> tuple[Result, float | None]:
    """The first run that others did not disturb, or the last of several. Raises `RunError`."""
    for _ in range(_MOST_TRIES):
        await _calm_moment(calm)
        outcome, wait = await _on_host(scenario, hosts)
        if wait is None or wait <= calm:
            break
    if isinstance(outcome, RunError):
        raise outcome
    return outcome, wait


async def _calm_moment(calm: float) -> None:
    """Returns when few have waited for a processor lately, or when that has taken too long."""
    deadline = time.monotonic() + _MOST_WAIT_S
    while calm < 1 and time.monotonic() < deadline:
        before = _Waiting()
        await asyncio.sleep(_LOOK_S)
        share = before.share()
        if share is None or share <= calm:
            return


async def _on_host(scenario: Scenario, hosts: Hosts) -> tuple[Result | RunError, float | None]:
    """One run, or why there is no result, and how much of the time somebody waited meanwhile."""
    waiting = _Waiting()
    try:
        result = await run_scenario(scenario, hosts=hosts)
    except RunError as error:
        return error, waiting.share()
    if result.error is not None:
        return RunError(result.error), waiting.share()
    return result, waiting.share()


class _Waiting:
    """How much of the time since it was made somebody on this machine waited for a processor.

    By the kernel's pressure stall information (Documentation/accounting/psi.rst).
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before = _waited()

    def share(self) -> float | None:
        """From 0 to 1; None where the kernel does not say."""
        now = _waited()
        if now is None or self._before is None:
            return None
        elapsed = max(time.monotonic() - self._began, 1e-9)
        return round(min(1.0, (now - self._before) / elapsed), 3)


def _waited() -> float | None:
    """Seconds since the machine started in which somebody waited for a processor."""
    try:
        line = _PRESSURE.read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return None
    return int(line.rpartition("total=")[2]) / 1e6
