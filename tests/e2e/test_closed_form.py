"""The simulation against theory, where theory's assumptions hold: uniform writes, free of costs."""

from __future__ import annotations

from typing import Any

import pytest

from livemigration.theory import PreCopy, constant_rate, random_writes
from predump.inprocess import migrate_in_process
from predump.result import Result
from predump.scenario import scenario_from_mapping

PAGE = 4096
MEMORY = 64 << 20
LINK = 125_000_000  # bytes/s: 1 Gbit/s
COSTS = (
    "write_fault", "scan_page", "clear_page", "copy_kib", "freeze", "freeze_process", "thaw",
    "restore", "restore_vma", "restore_kib", "resume",
)  # fmt: skip


async def migrate(pages_per_s: float, pre_dumps: int, **workload: Any) -> Result:
    scenario = scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "name": "theory",
            "memory": MEMORY,
            "workload": {"rate": f"{pages_per_s:.0f} pages/s", "write_size": 8, **workload},
            "policy": {"kind": "fixed", "rounds": pre_dumps},
            "link": {"bandwidth": "1Gbit/s", "latency": "0us"},
            "costs": dict.fromkeys(COSTS, 0),
            "migration": {"run_after": "0s"},
        },
        origin="theory",
    )
    return await migrate_in_process(scenario)


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
