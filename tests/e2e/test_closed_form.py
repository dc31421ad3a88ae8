"""The simulation against theory, where theory's assumptions hold: uniform writes, free of costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from livemigration.history import XenRules, average_rate, from_history
from livemigration.spec import TaskSpec
from livemigration.task import Task, build_machine
from livemigration.theory import PreCopy, constant_rate, random_writes
from livemigration.workload import build_workload
from mm_model import PM_SOFT_DIRTY
from predump.inprocess import migrate_in_process
from predump.result import Result
from predump.scenario import Scenario, scenario_from_mapping

PAGE = 4096
MEMORY = 64 << 20
LINK = 125_000_000  # bytes/s: 1 Gbit/s
COSTS = (
    "write_fault", "scan_page", "clear_page", "copy_kib", "freeze", "freeze_process", "thaw",
    "restore", "restore_vma", "restore_kib", "resume",
)  # fmt: skip


def theory_scenario(workload: dict[str, Any], policy: dict[str, Any]) -> Scenario:
    return scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "name": "theory",
            "memory": MEMORY,
            "workload": workload,
            "policy": policy,
            "link": {"bandwidth": "1Gbit/s", "latency": "0us"},
            "costs": dict.fromkeys(COSTS, 0),
            "migration": {"run_after": "0s"},
        },
        origin="theory",
    )


async def migrate(pages_per_s: float, pre_dumps: int, **workload: Any) -> Result:
    writes = {"rate": f"{pages_per_s:.0f} pages/s", "write_size": 8, **workload}
    policy = {"kind": "fixed", "rounds": pre_dumps}
    return await migrate_in_process(theory_scenario(writes, policy))


def hold(result: Result, model: PreCopy, share: float) -> None:
    """Rounds, bytes, times and downtime within a share of the model's."""
    assert result.verified
    assert len(result.rounds) == len(model.round_bytes)
    for entry, size, seconds in zip(result.rounds, model.round_bytes, model.round_s, strict=True):
        assert entry.bytes_wire == pytest.approx(size, rel=share)
        assert entry.pages_sent * PAGE == pytest.approx(size, rel=share)
        assert entry.duration_s == pytest.approx(seconds, rel=share)
    assert result.bytes_wire == pytest.approx(model.total_bytes, rel=share)
    assert result.total_time_s == pytest.approx(model.total_s, rel=share)
    assert result.downtime_s.total == pytest.approx(model.downtime_s, rel=share)


@pytest.mark.parametrize(("ratio", "pre_dumps"), [(0.1, 1), (0.3, 3), (0.5, 4), (0.7, 6), (0.9, 8)])
async def test_writes_to_ever_new_pages_follow_the_geometric_series(
    ratio: float, pre_dumps: int
) -> None:
    """A sweep through memory never meets a page twice in a round."""
    rate = ratio * LINK
    result = await migrate(rate / PAGE, pre_dumps, kind="sequential")
    hold(result, constant_rate(MEMORY, rate, LINK, pre_dumps), 0.02)


@pytest.mark.parametrize("ratio", [0.3, 0.9, 2.0])
async def test_writes_to_random_pages_follow_the_expected_number_of_distinct_ones(
    ratio: float,
) -> None:
    rate = ratio * LINK / PAGE
    result = await migrate(rate, 3, kind="uniform")
    hold(result, random_writes(MEMORY // PAGE, PAGE, rate, LINK, 3), 0.03)


def recorded(spec: TaskSpec, interval_s: float, intervals: int) -> list[NDArray[np.int64]]:
    """The pages that get dirty in each interval, as soft-dirty says it, without a migration."""
    task = Task(build_machine(spec))
    workload = build_workload(
        spec.workload,
        seed=spec.seed,
        memory_bytes=spec.memory,
        page_size=spec.page_size,
        base_dir=Path(),
    )
    workload.setup(task, populate=True)
    mm = task.processes[1]
    (vma,) = mm.vmas()
    history = []
    for number in range(intervals):
        mm.clear_refs(4)
        workload.run_until(task, round((number + 1) * interval_s * 1e9))
        entries = mm.pagemap(vma.start, (vma.end - vma.start) // PAGE)
        history.append(np.flatnonzero(entries & PM_SOFT_DIRTY))
    task.release()
    return history


XEN = {"kind": "xen", "max_rounds": 6, "few_pages": 200, "most_times": 3}
RULES = XenRules(few_pages=200, max_rounds=6, most_times=3)


async def test_a_recorded_history_predicts_a_bursty_task_and_an_average_does_not() -> None:
    """Akoush et al.'s two models: HIST within a few percent, where AVG knows nothing of bursts."""
    busy = {"kind": "hotspot", "duration": "300ms", "rate": "40000 pages/s"}
    quiet = {"kind": "uniform", "duration": "500ms", "rate": "500 pages/s"}
    scenario = theory_scenario({"kind": "phased", "phases": [quiet, busy]}, XEN)
    result = await migrate_in_process(scenario)
    history = recorded(scenario.task, 0.02, 100)
    hist = from_history(history, 0.02, MEMORY // PAGE, PAGE, LINK, RULES)
    assert len(result.rounds) == len(hist.round_bytes)
    assert result.bytes_wire == pytest.approx(hist.total_bytes, rel=0.03)
    assert result.total_time_s == pytest.approx(hist.total_s, rel=0.03)
    assert result.downtime_s.total == pytest.approx(hist.downtime_s, rel=0.1)
    dirtied = sum(entry.size for entry in history) / 2.0  # of 2 seconds
    average = average_rate(MEMORY // PAGE, PAGE, dirtied, LINK, RULES)
    assert not 0.7 < average.downtime_s / result.downtime_s.total < 1.4


async def test_both_models_predict_a_steady_sweep() -> None:
    """Where no page is met twice one number is enough."""
    workload = {"kind": "sequential", "rate": "12000 pages/s", "write_size": 8}
    scenario = theory_scenario(workload, XEN)
    result = await migrate_in_process(scenario)
    pages = MEMORY // PAGE
    for model in (
        average_rate(pages, PAGE, 12000, LINK, RULES),
        from_history(recorded(scenario.task, 0.02, 60), 0.02, pages, PAGE, LINK, RULES),
    ):
        assert len(result.rounds) == len(model.round_bytes)
        assert result.bytes_wire == pytest.approx(model.total_bytes, rel=0.02)
        assert result.downtime_s.total == pytest.approx(model.downtime_s, rel=0.05)
