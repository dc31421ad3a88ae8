"""Each hunk of the patch off, against a set of workloads: pages lost, spurious, endless faults.

Two sorts of workload:

* those of `livemigration.workload` under a pre-dump loop (scan, clear_refs, run on). Judged by the
  model's own record of what was written: a page that changed since it was sent and is not
  soft-dirty is lost, one that is soft-dirty and unchanged is sent for nothing. The complete patch
  sends some for nothing too (a moved mapping counts as dirty), so what a hunk does is the
  difference to it;
* random operations, one theme after the other (`operations`), and the shortest scenarios of all
  hunks (`shortest`): judged by the complete patch. Pages are counted at the first disagreement of
  each sequence; what follows is its consequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from livemigration.operations import Op
from livemigration.spec import TaskSpec
from livemigration.task import Task, model_config
from livemigration.workload.build import build_workload
from mm_model import HUNKS, VARIANTS, Livelock, ModelConfig
from predump.conform.differential import ENDLESS, LOST, SPURIOUS, disagreements
from predump.conform.operations import Vocabulary, generate, themes_for
from predump.conform.settings import HUNK_NEEDS
from predump.conform.shortest import ShortestScenarios, config_without
from source_node.tracker import RoundScan, Tracker

WORKLOADS: Final = ("zipf", "sequential", "append-heap", "fork-cow", "swap-pressure")
_MEMORY: Final = 1 << 20
_RATE: Final = "20000 pages/s"
_ROUND_NS: Final = 50_000_000
_ROUNDS: Final = 4
NOTHING_OFF: Final = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One hunk off under one workload; ``endless`` counts runs that never ended."""

    lost: int = 0
    spurious: int = 0
    endless: int = 0
    other: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A hunk (name "" for the complete patch) and what each workload showed."""

    hunk: str
    cells: dict[str, Cell]

    def beyond(self, complete: Row) -> dict[str, Cell]:
        """What this row has more than the complete patch, where it has more at all."""
        more = {}
        for workload, cell in self.cells.items():
            base = complete.cells[workload]
            excess = Cell(
                max(0, cell.lost - base.lost),
                max(0, cell.spurious - base.spurious),
                max(0, cell.endless - base.endless),
                max(0, cell.other - base.other),
            )
            if excess != Cell():
                more[workload] = excess
        return more


def matrix(
    names: Iterable[str],
    *,
    seed: int = 1,
    sequences: int = 40,
    workloads: Iterable[str] = WORKLOADS,
    on_row: Callable[[str], None] = lambda name: None,
) -> Iterator[Row]:
    """A row for the complete patch, then one for each of ``names``.

    ``sequences`` of random operations are run for each theme.
    """
    kinds = tuple(workloads)
    vocabulary = Vocabulary.of(_config(NOTHING_OFF))
    themes = themes_for(vocabulary)
    shortest = _shortest_of_all()
    for name in (NOTHING_OFF, *names):
        on_row(name)
        # A task's specification cannot ask for everything that a model can be told.
        runnable = kinds if name not in HUNK_NEEDS else ()
        cells = {kind: run_workload(kind, name, seed) for kind in runnable}
        for theme in themes:
            numbers = range(seed * sequences, (seed + 1) * sequences)
            random = (generate(number, vocabulary, theme) for number in numbers)
            cells[f"ops:{theme.name}"] = _run_operations(random, name)
        cells["ops:shortest"] = _run_operations(shortest, name)
        yield Row(name, cells)


def _config(hunk_off: str) -> ModelConfig:
    return config_without(*({hunk_off} - {NOTHING_OFF}))


def _shortest_of_all() -> list[tuple[Op, ...]]:
    """Every hunk's scenarios, each once."""
    scenarios = ShortestScenarios()
    found = (scenarios.of(each.name).values() for each in HUNKS + VARIANTS)
    return list(dict.fromkeys(entry.ops for entries in found for entry in entries))


def _run_operations(sequences: Iterable[tuple[Op, ...]], hunk_off: str) -> Cell:
    if hunk_off == NOTHING_OFF:
        return Cell()
    complete, without = _config(NOTHING_OFF), _config(hunk_off)
    counts = dict.fromkeys((LOST, SPURIOUS, ENDLESS), 0)
    other = 0
    for ops in sequences:
        found = disagreements(ops, complete, without, blame_reference=False)
        for kind, finding in found.items():
            if kind in counts:
                counts[kind] += max(1, finding.pages)
            else:
                other += 1
    return Cell(counts[LOST], counts[SPURIOUS], counts[ENDLESS], other)


def run_workload(kind: str, hunk_off: str, seed: int) -> Cell:
    """A pre-dump loop over a workload of 1 MiB with one hunk off ("" for none)."""
    spec = TaskSpec.model_validate(
        {
            "seed": seed,
            "memory": _MEMORY,
            "hunks": {"off": [hunk_off] if hunk_off else []},
            "workload": {"kind": kind, "rate": _RATE},
        }
    )
    workload = build_workload(
        spec.workload, seed=spec.seed, memory_bytes=spec.memory, page_size=spec.page_size
    )
    from mm_model import Machine

    task = Task(Machine(model_config(spec, workload.peak_pages)))
    tracker = Tracker()
    lost = spurious = 0
    try:
        workload.setup(task, populate=True)
        for number in range(_ROUNDS + 1):
            workload.run_until(task, number * _ROUND_NS)
            scan = tracker.scan(task, first=number == 0)
            if number:
                lost += scan.lost
                spurious += scan.spurious
            _note(task, tracker, scan, number)
            for mm in task.processes.values():
                mm.clear_refs(4)
    except Livelock:
        return Cell(lost, spurious, 1)
    finally:
        task.release()
    return Cell(lost, spurious)


def _note(task: Task, tracker: Tracker, scan: RoundScan, number: int) -> None:
    """All that the scan found was sent, as it is now."""
    for process in scan.processes:
        mm = task.processes[process.space.pid]
        for send in process.send_by_vma:
            first = int(send[0])
            index = (send - send[0]) // np.uint64(mm.machine.page_size)
            versions = mm.versions(first, int(index[-1]) + 1)[index]
            tracker.note(process.space.pid, send, versions, number)
