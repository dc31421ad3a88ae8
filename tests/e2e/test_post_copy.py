"""Post-copy and hybrid migrations as a whole: every page comes and is compared."""

import asyncio
import json
from pathlib import Path

import pytest

from predump.inprocess import migrate_in_process
from predump.result import Result
from predump.runner import run_scenario
from predump.scenario import Scenario, scenario_from_mapping
from predump.sweep import ResultStore, load_grid
from predump.sweep.store import Finished

ZIPF = {"kind": "zipf", "rate": "20000 pages/s", "write_size": 64}


def scenario(
    policy: dict[str, object], workload: dict[str, object] | None = None, **tables: object
) -> Scenario:
    return scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "memory": "8MiB",
            "workload": workload or ZIPF,
            "policy": policy,
            "migration": {"run_after": "50ms"},
            **tables,
        }
    )


def in_process(made: Scenario) -> Result:
    return asyncio.run(migrate_in_process(made))


def check_whole(result: Result) -> None:
    """Verified to the last page, and the task went on as if it had never moved."""
    assert result.exit_code == 0, result.error
    assert result.owner == "destination"
    assert result.continued_equal is True
    assert result.post_copy is not None
    assert result.post_copy.pages_missing == 0


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize("prefetch", ["none", "sequential", "around-faults"])
def test_every_page_comes_once_and_is_compared(page_size: int, prefetch: str) -> None:
    made = scenario(
        {"kind": "post-copy", "prefetch": prefetch},
        page_size=page_size,
    )
    result = in_process(made)
    check_whole(result)
    came = result.post_copy
    assert came is not None
    assert came.pages_lazy == result.memory_bytes // page_size
    assert came.faults_remote + came.pages_prefetched == came.pages_lazy
    assert came.faults_remote <= came.faults <= came.working_set
    # Not one page in the downtime, and each of them once on the wire.
    assert [r.pages_sent for r in result.rounds] == [0]
    assert result.bytes_pages == result.memory_bytes


def test_the_downtime_does_not_depend_on_the_memory_but_the_total_time_does() -> None:
    small, large = (
        in_process(scenario({"kind": "post-copy", "prefetch": "sequential"}, memory=memory))
        for memory in ("4MiB", "16MiB")
    )
    frozen = in_process(scenario({"kind": "stop-and-copy"}, memory="16MiB"))
    # Reading four times as many page-table entries is all that is longer.
    assert large.downtime_s.total - small.downtime_s.total == pytest.approx(
        large.downtime_s.scan - small.downtime_s.scan, abs=1e-5
    )
    assert large.downtime_s.total < 0.1 * frozen.downtime_s.total
    assert large.post_copy is not None
    assert small.post_copy is not None
    assert large.post_copy.residual_s == pytest.approx(4 * small.post_copy.residual_s, rel=0.05)


def test_the_same_pages_and_times_through_grpc_and_in_one_process() -> None:
    made = scenario({"kind": "post-copy"}, {**ZIPF, "kind": "hotspot"})
    near, far = in_process(made), asyncio.run(run_scenario(made))
    check_whole(far)
    same = {"migration_id", "wall_s", "transfer_wall_s", "versions"}
    assert far.model_dump(exclude=same) == near.model_dump(exclude=same)


def test_a_hybrid_sends_the_rest_of_its_pre_dumps_later() -> None:
    result = in_process(scenario({"kind": "hybrid", "rounds": 1}))
    check_whole(result)
    assert len(result.rounds) == 3
    assert result.post_copy is not None
    assert 0 < result.post_copy.pages_lazy < result.rounds[0].pages_sent


def test_a_hybrid_that_converges_needs_no_post_copy() -> None:
    result = in_process(scenario({"kind": "hybrid", "rounds": 9, "downtime_limit": "1s"}))
    assert result.exit_code == 0
    assert result.post_copy is None
    assert len(result.rounds) == 2


def test_a_page_that_the_pre_dumps_lost_is_found_before_the_hand_over() -> None:
    """With a hunk off, written pages are not soft-dirty: they are neither sent nor left behind."""
    result = in_process(
        scenario({"kind": "hybrid", "rounds": 1}, hunks={"off": ["ptep_set_access_flags"]})
    )
    assert result.exit_code == 3
    assert result.pages_different > 0
    assert result.owner == "source"  # which still can take it back
    assert result.post_copy is None


def test_a_sweep_keeps_how_the_pages_came_in_columns(tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(
        'schema = "predump.sweep/1"\nname = "small"\n[base]\nmemory = "1MiB"\n'
        'workload = { kind = "uniform", rate = "5000 pages/s" }\n'
        '[axes]\n"policy.kind" = ["post-copy", "stop-and-copy"]\n'
    )
    with ResultStore(tmp_path / "results.duckdb") as store:
        for point in load_grid(grid).points():
            result = in_process(point.scenario)
            kept = json.loads(result.to_json())
            store.record("small", point, Finished(kept), result.versions)
        names = "pages_lazy, working_set, faults, faults_remote, stalled_s, residual_s, slowdown"
        rows = store.rows(f"SELECT {names}, result FROM runs ORDER BY point")
    later = json.loads(rows[0].pop("result"))["post_copy"]
    assert rows[0] == {name: later[name] for name in rows[0]}
    assert rows[0]["faults"] > 0
    assert rows[1].pop("result")
    assert set(rows[1].values()) == {None}
