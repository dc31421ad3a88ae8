"""Watches what each operation of a script does to the source's memory while it is migrated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from livemigration.workload.base import Tally, Task
from livemigration.workload.script import ScriptWorkload
from livemigration.workload.script_text import Step
from mm_model import Machine
from mm_model.state import HUGE_PMDS, PG_KSM, PG_LARGE
from predump.inprocess import migrate_in_process
from predump.overrides import parse_override
from predump.result import Result
from predump.scenario import Scenario, load_scenario

SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"
_CONT = np.uint64(1 << 52)
_BASE_MBIT = {
    "contpte": 100, "thp": 1000, "ksm": 20, "files": 20, "mremap": 300, "hugetlb": 20,
}  # fmt: skip


def scenario(name: str, page_size: int = 4096, *sets: str) -> Scenario:
    """A ready scenario for another page size: as many pages, sent in the same times."""
    scale = page_size // 4096
    if name == "contpte":
        scale *= {4096: 1, 16384: 8, 65536: 2}[page_size]  # CONT_PTES in proportion
    elif name == "thp":
        scale *= page_size // 4096  # so does a table's reach
    elif name == "hugetlb":
        scale = 1  # its pages are of 2 MiB whatever the others are of
    rate = f"link.bandwidth={_BASE_MBIT[name] * scale}Mbit/s"
    sets = (f"page_size={page_size}", rate, *sets)
    return load_scenario(SCENARIOS / f"{name}.toml", [parse_override(s) for s in sets])


@dataclass(frozen=True, slots=True)
class Counts:
    """What memory looks like at one moment."""

    cont: int  # entries in contiguous blocks
    huge: int  # PMD-sized entries
    large: int  # mapped frames that are part of a large folio
    merged: int  # frames that KSM has merged pages into
    swapped: int
    copied: int  # pages copied by a write, since the start
    dirty: int  # pages of files that are not stored


def counts(machine: Machine) -> Counts:
    """Of everything on a machine."""
    phys = machine.phys
    used = phys.flags[phys.mapcount > 0]
    cont = 0
    for mm in machine.mms:
        for vma in mm.vmas():
            ptes = mm.ptes(vma.start, (vma.end - vma.start) // machine.page_size)
            cont += int(np.count_nonzero(ptes & _CONT))
    return Counts(
        cont=cont,
        huge=sum(int(mm.space.regs[HUGE_PMDS]) for mm in machine.mms),
        large=int(np.count_nonzero(used & PG_LARGE)),
        merged=int(np.count_nonzero(used & PG_KSM)),
        swapped=machine.used_swap_slots,
        copied=machine.faults.cow,
        dirty=machine.dirty_file_pages,
    )


@dataclass(frozen=True, slots=True)
class Sight:
    """One operation at the source, and memory before and after it."""

    verb: str
    before: Counts
    after: Counts

    def change(self, what: str) -> int:
        """By how much a count changed."""
        return int(getattr(self.after, what)) - int(getattr(self.before, what))


@dataclass(slots=True)
class Watch:
    """The operations that the source ran while it was migrated."""

    sights: list[Sight] = field(default_factory=list)
    _machine: Machine | None = None
    _in_setup: bool = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Looks on from now on; the destination's run and the reference's are left out."""
        run, setup = ScriptWorkload._run, ScriptWorkload.setup

        def watched_setup(self_: ScriptWorkload, task: Task, **how: bool) -> None:
            self._in_setup = True
            setup(self_, task, **how)
            self._in_setup = False

        def watched(self_: ScriptWorkload, task: Task, step: Step, tally: Tally) -> None:
            self._machine = self._machine or task.machine
            if self._in_setup or task.machine is not self._machine:
                run(self_, task, step, tally)
                return
            before = counts(task.machine)
            run(self_, task, step, tally)
            self.sights.append(Sight(step.op.verb, before, counts(task.machine)))

        monkeypatch.setattr(ScriptWorkload, "_run", watched)
        monkeypatch.setattr(ScriptWorkload, "setup", watched_setup)

    def saw(self, verb: str, holds: Callable[[Sight], bool] = lambda sight: True) -> bool:
        """Whether an operation of this kind did that at least once."""
        return any(sight.verb == verb and holds(sight) for sight in self.sights)

    def grew(self, verb: str, what: str) -> bool:
        """Whether such an operation made a count larger."""
        return self.saw(verb, lambda sight: sight.change(what) > 0)

    def shrank(self, verb: str, what: str) -> bool:
        """Whether such an operation made a count smaller."""
        return self.saw(verb, lambda sight: sight.change(what) < 0)


def migrate(what: Scenario) -> Result:
    """Migrates within this process."""
    return asyncio.run(migrate_in_process(what))
