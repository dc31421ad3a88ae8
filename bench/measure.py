"""One line of the report, and how times are taken."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Line:
    """One figure.

    value: in `unit`; baseline: what it is compared with, in the same unit, measured in the same
    run; ratio: value / baseline; target: what the figure (or, with `target_is_ratio`, the ratio)
    should be, at most for "<=", at least for ">=".
    """

    group: str
    name: str
    value: float
    unit: str
    baseline: float | None = None
    baseline_name: str = ""
    ratio: float | None = None
    sign: str = ""
    target: float | None = None
    target_is_ratio: bool = False
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without one."""
        judged = self.ratio if self.target_is_ratio else self.value
        if self.target is None or judged is None:
            return None
        return judged <= self.target if self.sign == "<=" else judged >= self.target


def seconds(action: Callable[[], object]) -> float:
    """The CPU time of one call in this thread: others that use the machine do not count."""
    start = time.thread_time()
    action()
    return time.thread_time() - start


def best(actions: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """The least CPU time of each action in seconds, taken in turn so that noise hits all alike."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for taken, action in zip(times, actions, strict=True):
            taken.append(seconds(action))
    return [min(taken) for taken in times]


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had resident (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/{pid}/status has no VmHWM")
    return int(found[1]) << 10


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process took so far, in user and kernel mode."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def median_ratio(values: Sequence[float], baselines: Sequence[float]) -> float:
    """The median of the ratios of figures that were measured side by side."""
    return statistics.median(v / b for v, b in zip(values, baselines, strict=True))
