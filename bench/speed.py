"""Virtual time: how many seconds of a migration are simulated in a second of real time.

One migration within this process, as sweeps run them: 4 GiB, 100,000 writes of 64 bytes a second
all over it, 1 Gbit/s, round 0 and two pre-dumps. Nearly all pages get dirty in each round, so that
16 GiB go from one host to the other, byte for byte. The strict figure divides by all of the run:
filling the task's memory, the migration, the proof that memory is equal, and the run that never
migrates, which fills its memory as well and does every write again. The other one divides by what
is a migration, from asking the destination for room to memory proven equal.

A virtual machine's host may take memory back that nobody uses, and a second on each GiB to find it
again when it is touched: so as much as the run needs is touched just before, and given back.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np

from bench.measure import Line
from predump.inprocess import migrate_in_process
from predump.scenario import Scenario, scenario_from_mapping

_MIB, _GIB = 1 << 20, 1 << 30
_WARM_UP = 16 * _MIB
_PAGES = 4096
_TARGET = 5.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of one run: simulated, real, real without set-up and comparison, and of CPU."""

    simulated: float
    wall: float
    migration: float
    cpu: float


def _scenario(memory: int) -> Scenario:
    return scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "name": "speed",
            "memory": memory,
            "workload": {"kind": "uniform", "rate": "100000 pages/s", "write_size": 64},
            "policy": {"kind": "fixed", "rounds": 2},
            "link": {"bandwidth": "1Gbit/s"},
            "migration": {"run_after": "0s"},
        },
        origin="bench",
    )


def _touch(size: int) -> None:
    """Every page of `size` bytes once, as `mmap` gives them."""
    np.zeros(size, np.uint8)[::_PAGES] = 1


def measure(memory: int) -> Speed:
    """One migration of `memory` bytes. RuntimeError if memory differed."""
    scenario = _scenario(memory)
    _touch(2 * memory + memory // 8)
    cpu, wall = time.process_time(), time.monotonic()
    result = asyncio.run(migrate_in_process(scenario))
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    if not (result.verified and result.continued_equal):
        raise RuntimeError(f"the migration was not verified: {result.error}")
    return Speed(result.total_time_s, wall, result.transfer_wall_s, cpu)


def speed_lines(*, quick: bool) -> list[Line]:
    """Group "speed"."""
    memory, rounds = (128 * _MIB, 1) if quick else (4 * _GIB, 3)
    measure(_WARM_UP)
    runs = [measure(memory) for _ in range(rounds)]
    best = min(runs, key=lambda run: run.wall)
    name = f"{memory >> 20} MiB" if memory < _GIB else f"{memory >> 30} GiB"
    return [
        Line(
            "speed",
            f"virtual time, {name}, 100,000 writes a second",
            best.simulated / best.wall,
            "s/s",
            best.simulated / best.cpu,
            "simulated seconds per CPU second",
            best.cpu / best.wall,
            ">=",
            _TARGET,
            note=f"best of {rounds}: {best.simulated:.1f} simulated seconds in {best.wall:.1f}, "
            "all of the run",
        ),
        Line(
            "speed",
            f"the same without set-up and without the run it is compared with, {name}",
            best.simulated / best.migration,
            "s/s",
            note=f"in {best.migration:.1f} s",
        ),
    ]
