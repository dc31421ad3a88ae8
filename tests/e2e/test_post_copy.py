"""Post-copy and hybrid migrations as a whole: every page comes and is compared."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from predump.inprocess import DirectChannel, InProcessTransport, migrate_in_process
from predump.result import Result
from predump.scenario import Scenario, scenario_from_mapping
from predump.sweep import ResultStore, load_grid
from predump.sweep.store import Finished
from predump.testing.pair import Pair
from source_node.page_server import PageServer

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


def test_the_same_pages_and_times_through_grpc_and_in_one_process(predump_pair: Pair) -> None:
    made = scenario({"kind": "post-copy"}, {**ZIPF, "kind": "hotspot"})
    near, far = in_process(made), predump_pair.migrate(made)
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


def streams(pages: int, *, count: int, steps: int, width: int) -> str:
    """A script that writes on in several places of memory in turn, and here and there beside that.

    As a program that works through arrays does: its next pages are near its last ones.
    """
    lines = []
    for step in range(steps):
        for place in range(count):
            at = pages * (place + 1) // (count + 1) + width * step
            lines.append(f"write 0 {at} {width}")
        if step % 4 == 0:
            lines.append(f"write 0 {step * 7919 % pages} 1")
    return "; ".join(lines)


def test_fetching_around_faults_saves_most_of_the_faults_over_the_network() -> None:
    """Hines and Gopalan (VEE 2009): network faults within 21 % of the working set by bubbling."""
    pages = 4096
    shares = {}
    for prefetch in ("none", "sequential", "around-faults"):
        result = in_process(
            scenario(
                {"kind": "post-copy", "prefetch": prefetch, "batch": "64KiB"},
                {
                    "kind": "script",
                    "setup": f"map 0 anon-private {pages}; write 0 0 {pages}",
                    "script": streams(pages, count=4, steps=60, width=4),
                    "every": "400us",
                    "loop": False,
                },
                memory="16MiB",
                migration={"run_after": "200ms"},
            )
        )
        check_whole(result)
        came = result.post_copy
        assert came is not None
        shares[prefetch] = came.faults_remote / came.working_set
    assert shares["none"] == 1
    assert shares["around-faults"] <= 0.21 < shares["sequential"]


class Spoiled(InProcessTransport):
    """A source whose memory changes behind its back after the digests were made."""

    async def open_pages(
        self, server: Any, pace: Callable[[int], Awaitable[None]], patience_ns: int
    ) -> None:
        mm = server.execution.task.processes[1]
        last = int(server.lazy[1][-1])
        server.execution.task.machine.content[mm.frames(last, 1)[0], 100] ^= 1
        self.last = last
        await super().open_pages(server, pace, patience_ns)


def test_a_page_that_is_not_what_was_digested_never_reaches_the_task() -> None:
    transport = Spoiled()
    made = scenario({"kind": "post-copy", "prefetch": "sequential"})
    result = asyncio.run(migrate_in_process(made, transport=transport))
    assert result.exit_code == 3
    assert not result.verified
    assert [(m.start, m.pages) for m in result.mismatches] == [(f"{transport.last:#x}", 1)]
    assert result.continued_equal is None
    # The task is not whole anywhere but in the source's memory of the freeze.
    assert result.owner == "in-doubt"
    assert "is not what the source had" in (result.error or "")


@pytest.mark.parametrize("kind", ["post-copy", "hybrid"])
def test_bytes_are_compared_as_well_where_that_is_asked_for(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    compare = PageServer.compare

    def counted(server: PageServer, pages: Any) -> None:
        compare(server, pages)
        compared.append(server.compared)

    monkeypatch.setattr(PageServer, "compare", counted)
    result = in_process(scenario({"kind": kind}, verify={"mode": "bytes"}))
    check_whole(result)
    assert result.post_copy is not None
    assert compared[-1] == result.post_copy.pages_lazy


def test_pages_whose_bytes_did_not_come_back_are_not_called_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def drop(channel: DirectChannel, pages: Any) -> None:
        """As when the stream breaks with them."""

    monkeypatch.setattr(DirectChannel, "tell", drop)
    result = in_process(scenario({"kind": "post-copy"}, verify={"mode": "bytes"}))
    assert result.exit_code == 1
    assert not result.verified
    assert "2048 pages were not read back" in (result.error or "")


@pytest.mark.parametrize(
    "workload",
    [
        {"kind": "fork-cow", "rate": "20000 pages/s", "fork_every": 300, "child_life": 200},
        {"kind": "append-heap", "rate": "20000 pages/s", "write_size": 512},
        {"kind": "swap-pressure", "rate": "20000 pages/s", "every": 100, "protect_every": 2},
    ],
    ids=lambda workload: workload["kind"],
)
@pytest.mark.parametrize("policy", ["post-copy", "hybrid"])
def test_tasks_that_change_their_address_space_meanwhile(
    policy: str, workload: dict[str, object]
) -> None:
    result = in_process(scenario({"kind": policy, "prefetch": "none"}, workload, memory="4MiB"))
    check_whole(result)
    came = result.post_copy
    assert came is not None
    assert came.faults_remote + came.pages_prefetched + came.pages_dropped >= came.pages_lazy
