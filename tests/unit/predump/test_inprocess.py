"""Migrations within one process: what a sweep does thousands of."""

from __future__ import annotations

import gc

import pytest

from dest_node.incoming import IncomingTask
from mm_model import Machine
from predump.inprocess import InProcessTransport, migrate_in_process
from predump.scenario import scenario_from_mapping

MIB = 1 << 20


def held() -> int:
    """Bytes of content of all machines that are still reachable, by cycles too."""
    return sum(each.content.nbytes for each in gc.get_objects() if type(each) is Machine)


@pytest.mark.parametrize("policy", ["threshold", "stop-and-copy"])
async def test_a_migration_leaves_no_memory_to_the_collector(policy: str) -> None:
    scenario = scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "memory": 8 * MIB,
            "workload": {"kind": "uniform", "rate": "1000 pages/s"},
            "policy": {"kind": policy},
        }
    )
    gc.collect()
    gc.disable()
    try:
        before = held()
        result = await migrate_in_process(scenario)
        assert result.verified and result.continued_equal
        assert held() - before < MIB
    finally:
        gc.enable()


async def test_a_callers_transport_keeps_the_task_at_its_destination() -> None:
    scenario = scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "memory": 8 * MIB,
            "workload": {"kind": "uniform", "rate": "1000 pages/s"},
        }
    )
    transport = InProcessTransport()
    result = await migrate_in_process(scenario, transport=transport)
    assert result.owner == "destination"
    assert isinstance(transport.incoming, IncomingTask)
    assert transport.incoming.task.machine.used_frames == 8 * MIB // 4096
    await transport.end()
    assert transport.incoming.task.machine.content.nbytes < MIB
