"""Sweeps for real: worker processes, a killed sweep, a Dask cluster, and what is in the file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import distributed
import duckdb
import pytest

from predump.inprocess import migrate_in_process
from predump.result import Result
from predump.sweep import ResultStore, StoreError, load_grid, run_sweep
from predump.sweep.execute import Cluster

GRID = """
schema = "predump.sweep/1"
name = "small"
[base]
memory = "{memory}"
workload = {{ kind = "uniform", rate = "5000 pages/s" }}
migration = {{ run_after = "0s" }}
[axes]
"policy.kind" = ["fixed", "xen", "stop-and-copy"]
seed = {{ range = [1, {seeds}] }}
"""
TIMED = ("wall_s", "result", "versions", "worker", "worker_rss_bytes")
"""Columns that say where a run was and how long it took, or hold what does."""


def write_grid(folder: Path, *, memory: str = "1MiB", seeds: int = 2) -> Path:
    file = folder / "grid.toml"
    file.write_text(GRID.format(memory=memory, seeds=seeds))
    return file


def sweep(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "predump", "sweep", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        **options,
    )


def rows_of(file: Path) -> list[dict[str, Any]]:
    with ResultStore(file) as store:
        return store.rows("SELECT * FROM runs ORDER BY point")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished sweep of six points: (its grid, its results)."""
    folder = tmp_path_factory.mktemp("sweep")
    grid, results = write_grid(folder), folder / "results.duckdb"
    ended = sweep(grid, "-o", results, "--workers", "2", "--parquet", folder / "out")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("6 points: 6 done, 0 failed;")
    return grid, results


async def test_a_row_says_what_the_same_run_says_by_itself(swept: tuple[Path, Path]) -> None:
    grid, results = swept
    rows = rows_of(results)
    for point, row in zip(load_grid(grid).points(), rows, strict=True):
        alone = await migrate_in_process(point.scenario)
        there = Result.from_json(row["result"])
        assert there.rounds == alone.rounds
        assert row["downtime_s"] == alone.downtime_s.total
        assert (row["total_time_s"], row["bytes_wire"]) == (alone.total_time_s, alone.bytes_wire)
        assert row["verified"] and row["continued_equal"] and row["status"] == "done"
        assert json.loads(row["axes"]) == point.axes
        assert json.loads(row["scenario"])["task"] == point.scenario.task.to_struct()
        assert (row["rate_pages_s"], row["encoding"]) == (5000, "raw")


def test_a_row_says_which_process_ran_it_and_what_memory_that_has(
    swept: tuple[Path, Path],
) -> None:
    rows = rows_of(swept[1])
    workers = {row["worker"] for row in rows}
    assert 1 <= len(workers) <= 2
    assert all(worker.startswith(f"{socket.gethostname()}:") for worker in workers)
    # Python with Numba and the model's code, and not much more: 1 MiB guests are gone by then.
    assert all(50 << 20 < row["worker_rss_bytes"] < 1 << 30 for row in rows)


ENCODED = """
schema = "predump.sweep/1"
[base]
memory = "1MiB"
workload = { kind = "idle" }
[axes]
encoding = [{ kind = "zstd" }, { kind = "delta" }, { kind = "delta", codec = "lz4" }]
"""


def test_a_file_made_before_there_was_a_column_gets_it_filled_in(tmp_path: Path) -> None:
    file, results = tmp_path / "g.toml", tmp_path / "r.duckdb"
    file.write_text(ENCODED)
    grid = load_grid(file)
    with ResultStore(results) as store, ThreadPoolExecutor(1) as thread:
        run_sweep(grid, store, Cluster(thread, 1))
    now = rows_of(results)
    assert [row["encoding"] for row in now] == ["zstd", "delta", "delta+lz4"]
    with duckdb.connect(str(results)) as db:
        for name in ("encoding", "worker", "worker_rss_bytes"):
            db.execute(f"ALTER TABLE runs DROP COLUMN {name}")
    again = rows_of(results)
    assert [row["encoding"] for row in again] == ["zstd", "delta", "delta+lz4"]
    assert all(row["worker"] is None for row in again)
    with ResultStore(results) as store:  # and goes on being gone on with
        assert store.finished() == {point.key for point in grid.points()}
        assert store.rows("SELECT count(*) AS n FROM rounds")[0]["n"] == sum(
            row["rounds"] for row in again
        )


def test_every_round_has_a_row(swept: tuple[Path, Path]) -> None:
    with ResultStore(swept[1]) as store:
        counted = store.rows(
            "SELECT r.key, r.rounds, r.bytes_wire, count(*) AS n, sum(o.bytes_wire) AS sent "
            "FROM runs r JOIN rounds o USING (key) GROUP BY ALL"
        )
    assert len(counted) == 6
    assert all(row["n"] == row["rounds"] and row["sent"] == row["bytes_wire"] for row in counted)


def test_parquet_has_the_same_rows(swept: tuple[Path, Path]) -> None:
    folder = swept[1].parent / "out"
    with duckdb.connect() as files, ResultStore(swept[1]) as store:
        for table in ("runs", "rounds"):
            written = files.execute(f"SELECT count(*) FROM '{folder}/{table}.parquet'").fetchone()
            assert written == tuple(store.rows(f"SELECT count(*) FROM {table}")[0].values())
            assert written != (0,)


def test_finished_points_are_not_run_again_and_new_ones_are_added(
    swept: tuple[Path, Path], tmp_path: Path
) -> None:
    grid, results = swept[0], tmp_path / "results.duckdb"
    shutil.copyfile(swept[1], results)
    again = sweep(grid, "-o", results, "--workers", "1")
    assert again.returncode == 0
    assert again.stdout.startswith("6 points: 0 done, 0 failed, 6 were there;")
    more = sweep(write_grid(tmp_path, seeds=3), "-o", results, "--workers", "1")
    assert more.stdout.startswith("9 points: 3 done, 0 failed, 6 were there;")


def test_through_real_nodes_the_figures_are_the_same(
    swept: tuple[Path, Path], tmp_path: Path
) -> None:
    results = tmp_path / "grpc.duckdb"
    assert sweep(swept[0], "-o", results, "--workers", "2", "--grpc").returncode == 0
    _assert_same(rows_of(results), rows_of(swept[1]))


def _assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    by_key = {row["key"]: row for row in expected}
    assert len(found) == len(by_key)
    for row in found:
        other = by_key[row["key"]]
        assert {k: v for k, v in row.items() if k not in (*TIMED, "point")} == {
            k: v for k, v in other.items() if k not in (*TIMED, "point")
        }


def test_a_dask_cluster_finds_the_same(swept: tuple[Path, Path], tmp_path: Path) -> None:
    cluster_class: Any = distributed.LocalCluster  # its functions have no types
    with cluster_class(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        results = tmp_path / "dask.duckdb"
        ended = sweep(swept[0], "-o", results, "--dask", cluster.scheduler_address)
    assert ended.returncode == 0, ended.stderr
    _assert_same(rows_of(results), rows_of(swept[1]))


def test_killed_half_way_and_gone_on_with_no_point_is_lost_or_run_twice(tmp_path: Path) -> None:
    grid, results = write_grid(tmp_path, memory="8MiB", seeds=5), tmp_path / "results.duckdb"
    command = [sys.executable, "-m", "predump", "sweep", str(grid), "-o", str(results)]
    running = subprocess.Popen([*command, "--workers", "2"], start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while _recorded(results) < 3:
            assert running.poll() is None, "the sweep was over before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    before = rows_of(results)
    assert 3 <= len(before) < 15
    ended = sweep(grid, "-o", results, "--workers", "2")
    assert ended.returncode == 0, ended.stderr
    assert f"15 points: {15 - len(before)} done, 0 failed, {len(before)} were there" in ended.stdout
    after = rows_of(results)
    assert [row["point"] for row in after] == list(range(15))
    kept = {row["key"]: row for row in after}
    assert all(kept[row["key"]] == row for row in before)


def _recorded(results: Path) -> int:
    """Runs in the write-ahead log, since no other process may open the file meanwhile."""
    log = results.with_name(results.name + ".wal")
    text = log.read_bytes() if log.exists() else b""
    return text.count(b"predump.result/1")


FAILING = """
schema = "predump.sweep/1"
[base]
memory = "1MiB"
workload = { kind = "idle" }
[axes]
clock = ["virtual", "wall"]
"""


def test_a_point_that_fails_is_a_row_with_its_reason_and_the_sweep_goes_on(tmp_path: Path) -> None:
    grid, results = tmp_path / "g.toml", tmp_path / "r.duckdb"
    grid.write_text(FAILING)
    ended = sweep(grid, "-o", results, "--workers", "1")
    assert ended.returncode == 1
    assert "2 points: 1 done, 1 failed" in ended.stdout
    assert 'point 1 failed: BadRequest: a migration within one process needs clock = "virtual"' in (
        ended.stderr
    )
    assert [(r["status"], r["error"] is None) for r in rows_of(results)] == [
        ("done", True), ("failed", False),
    ]  # fmt: skip
    again = sweep(grid, "-o", results, "--workers", "1")
    assert again.returncode == 1  # it is still not there
    assert "0 done, 0 failed, 2 were there" in again.stdout
    retried = sweep(grid, "-o", results, "--workers", "1", "--retry-failed")
    assert "0 done, 1 failed, 1 were there" in retried.stdout


def test_what_is_no_result_file_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no database")
    with pytest.raises(StoreError, match="cannot be opened as a result file"):
        ResultStore(text)
    other = tmp_path / "other.duckdb"
    with duckdb.connect(str(other)) as db:
        db.execute("CREATE TABLE t (a INTEGER)")
    with pytest.raises(StoreError, match="a database of something else"):
        ResultStore(other)
    newer = tmp_path / "newer.duckdb"
    ResultStore(newer).close()
    with duckdb.connect(str(newer)) as db:
        db.execute("UPDATE predump SET schema = 'predump.results/9'")
    with pytest.raises(StoreError, match=r"is of format predump\.results/9"):
        ResultStore(newer)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.toml"], "there is no such grid file"),
        (["grid.toml", "--dask", "tcp://127.0.0.1:9"], "no Dask scheduler answers"),
    ],
)
def test_a_sweep_that_cannot_run_is_told_in_one_line(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    write_grid(tmp_path)
    ended = sweep(
        *arguments, "-o", "r.duckdb", cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert ended.returncode == 2
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1
