"""Page maps: every page that a round sends is counted in the bin of its address, and once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemigration.layout import describe
from livemigration.task import Task
from mm_model import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, Machine, ModelConfig
from predump.inprocess import migrate_in_process
from predump.scenario import scenario_from_mapping
from source_node.page_map import PageMaps
from source_node.tracker import ProcessScan, RoundScan

BASE = 0x10_0000_0000
PAGES = 1000


def scan(pages: list[int]) -> RoundScan:
    """One process with `PAGES` mapped, which sends these."""
    task = Task(Machine(ModelConfig(frames=64)))
    mm = task.processes[1]
    mm.mmap(BASE, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    send = np.array(pages, dtype=np.uint64) * np.uint64(4096) + np.uint64(BASE)
    return RoundScan(processes=[ProcessScan(describe(1, 0, mm), send, send, [send])])


@given(
    rounds=st.lists(st.sets(st.integers(0, PAGES - 1)), min_size=1, max_size=3),
    bins=st.integers(8, 1024),
)
def test_bins_hold_exactly_the_pages_of_their_addresses(rounds: list[set[int]], bins: int) -> None:
    maps = PageMaps(bins)
    sizes = set()
    for chosen in rounds:
        made = maps.of(scan(sorted(chosen)))
        sizes.add(made.bin_bytes)
        (process,) = made.processes
        there = dict(zip(process.start, process.pages, strict=True))
        expected: dict[int, int] = {}
        for page in chosen:
            start = (BASE + page * 4096) // made.bin_bytes * made.bin_bytes
            expected[start] = expected.get(start, 0) + 1
        assert there == expected
        assert list(process.start) == sorted(there)
    (size,) = sizes  # the same in all rounds
    assert size & (size - 1) == 0
    assert size == 4096 or bins * size >= PAGES * 4096


@pytest.mark.parametrize("record", [{}, {"pages": True, "bins": 16}])
async def test_a_result_has_them_when_the_scenario_asks(record: dict[str, object]) -> None:
    result = await migrate_in_process(
        scenario_from_mapping(
            {
                "schema": "predump.scenario/1",
                "memory": "1MiB",
                "workload": {"kind": "uniform", "rate": "5000 pages/s"},
                "policy": {"kind": "fixed", "rounds": 2},
                "record": record,
            }
        )
    )
    if not record:
        assert all(entry.page_map is None for entry in result.rounds)
        return
    for entry in result.rounds:
        assert entry.page_map is not None
        (process,) = entry.page_map.processes
        assert sum(process.pages) == entry.pages_sent
        assert len(process.pages) <= 17
