"""Results of sweeps: one DuckDB file, one row per run and one per round.

A run's row has the whole scenario and the versions that made it, so that every figure can be made
again, and beside the columns for plots the whole result as JSON. A row is written in one
transaction when its run is over: a sweep that was killed goes on with what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb

from livemigration.units import parse_rate
from predump.sweep.grid import Point

STORE_SCHEMA = "predump.results/1"

_RUN_COLUMNS: dict[str, str] = {
    "key": "VARCHAR PRIMARY KEY",
    "sweep": "VARCHAR NOT NULL",
    "point": "UBIGINT NOT NULL",
    "repeat": "UINTEGER NOT NULL",
    "status": "VARCHAR NOT NULL",  # done, failed
    "error": "VARCHAR",
    "axes": "JSON NOT NULL",
    "workload": "VARCHAR NOT NULL",
    "policy": "VARCHAR NOT NULL",
    "encoding": "VARCHAR",  # what "encoding" says, such as "delta+zstd"
    "tracker": "VARCHAR NOT NULL",
    "seed": "UBIGINT NOT NULL",
    "memory_bytes": "UBIGINT NOT NULL",
    "page_size": "UINTEGER NOT NULL",
    "rate_pages_s": "DOUBLE",  # NULL: the workload has no single rate
    "bandwidth_bps": "UBIGINT NOT NULL",  # 0: unlimited
    "latency_s": "DOUBLE NOT NULL",
    "verified": "BOOLEAN",
    "continued_equal": "BOOLEAN",
    "rounds": "UINTEGER",
    "downtime_s": "DOUBLE",
    "freeze_s": "DOUBLE",
    "scan_s": "DOUBLE",
    "dump_s": "DOUBLE",
    "transfer_s": "DOUBLE",
    "restore_s": "DOUBLE",
    "resume_s": "DOUBLE",
    "total_time_s": "DOUBLE",
    "bytes_wire": "UBIGINT",
    "bytes_pages": "UBIGINT",
    "pages_lost": "UBIGINT",
    "pages_spurious": "UBIGINT",
    "pages_different": "UBIGINT",
    # NULL: no post-copy
    "pages_lazy": "UBIGINT",
    "working_set": "UBIGINT",
    "faults": "UBIGINT",
    "faults_remote": "UBIGINT",
    "stalled_s": "DOUBLE",
    "residual_s": "DOUBLE",
    "slowdown": "DOUBLE",
    "wall_s": "DOUBLE",
    "worker": "VARCHAR",  # the process that ran it, HOST:PID
    "worker_rss_bytes": "UBIGINT",  # what that process had resident after it
    "scenario": "JSON NOT NULL",
    "result": "JSON",
    "versions": "JSON NOT NULL",
}
_ADDED_COLUMNS = ("encoding", "worker", "worker_rss_bytes")
"""Columns that the first files of this format do not have; they get them when they are opened."""
_POST_COPY_COLUMNS = (
    *("pages_lazy", "working_set", "faults", "faults_remote"),
    *("stalled_s", "residual_s", "slowdown"),
)
_ROUND_COLUMNS: dict[str, str] = {
    "key": "VARCHAR NOT NULL",
    "round": "UINTEGER NOT NULL",
    "pages_sent": "UBIGINT NOT NULL",
    "pages_soft_dirty": "UBIGINT NOT NULL",
    "pages_written": "UBIGINT NOT NULL",
    "pages_zero": "UBIGINT NOT NULL",
    "bytes_wire": "UBIGINT NOT NULL",
    "duration_s": "DOUBLE NOT NULL",
    "reason": "VARCHAR NOT NULL",
}


class StoreError(ValueError):
    """A result file that cannot be used; ``str()`` is one line for the user."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a point ended: a result (`predump.result/1`, as a mapping), or why there is none.

    `worker` (HOST:PID) is the process that ran it, which had `rss_bytes` resident afterwards.
    """

    result: Mapping[str, Any] | None
    error: str = ""
    worker: str | None = None
    rss_bytes: int | None = None


class ResultStore:
    """One result file, open for writing by this process; a context manager."""

    def __init__(self, path: str | Path) -> None:
        """Opens or makes `path`. StoreError if it is something else, or in use."""
        self.path = Path(path)
        try:
            self._db = duckdb.connect(str(self.path))
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise StoreError(f"{self.path}: cannot be opened as a result file: {reason}") from error
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; everything recorded is in it."""
        self._db.close()

    def _prepare(self) -> None:
        tables = {name for (name,) in self._db.execute("SHOW TABLES").fetchall()}
        if tables and "predump" not in tables:
            raise StoreError(f"{self.path}: is a database of something else; name another file")
        if tables:
            (schema,) = self._db.execute("SELECT schema FROM predump").fetchone() or ("",)
            if schema != STORE_SCHEMA:
                raise StoreError(f"{self.path}: is of format {schema}; this is {STORE_SCHEMA}")
            self._add_columns()
            return
        with self._transaction():
            self._db.execute("CREATE TABLE predump (schema VARCHAR)")
            self._db.execute("INSERT INTO predump VALUES (?)", [STORE_SCHEMA])
            for table, columns in (("runs", _RUN_COLUMNS), ("rounds", _ROUND_COLUMNS)):
                described = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
                self._db.execute(f"CREATE TABLE {table} ({described})")

    def _add_columns(self) -> None:
        """What a file of an earlier version lacks; what its rows know is filled in."""
        described = self._db.execute("SELECT name FROM pragma_table_info('runs')").fetchall()
        missing = [name for name in _ADDED_COLUMNS if (name,) not in described]
        if not missing:
            return
        with self._transaction():
            for name in missing:
                self._db.execute(f'ALTER TABLE runs ADD COLUMN "{name}" {_RUN_COLUMNS[name]}')
            if "encoding" in missing:
                rows = self._db.execute("SELECT key, scenario FROM runs").fetchall()
                for key, scenario in rows:
                    encoding = json.loads(scenario)["migration"].get("encoding", {})
                    self._db.execute(
                        "UPDATE runs SET encoding = ? WHERE key = ?", [_encoding(encoding), key]
                    )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """BEGIN and COMMIT around a block; ROLLBACK if it fails."""
        self._db.begin()
        try:
            yield
        except BaseException:
            self._db.rollback()
            raise
        self._db.commit()

    def finished(self, *, failed: bool = True) -> set[str]:
        """Keys of the points that need not run again; `failed`: those that failed among them."""
        wanted = ("done", "failed") if failed else ("done",)
        rows = self._db.execute(
            f"SELECT key FROM runs WHERE status IN ({', '.join('?' * len(wanted))})", list(wanted)
        ).fetchall()
        return {key for (key,) in rows}

    def record(
        self, sweep: str, point: Point, finished: Finished, versions: Mapping[str, str]
    ) -> None:
        """Keeps how a point ended, in place of what was known of it."""
        run = _run_row(sweep, point, finished, versions)
        rounds = finished.result["rounds"] if finished.result is not None else ()
        with self._transaction():
            self._db.execute("DELETE FROM rounds WHERE key = ?", [point.key])
            self._insert("runs", _RUN_COLUMNS, run, replace=True)
            for entry in rounds:
                self._insert("rounds", _ROUND_COLUMNS, {"key": point.key, **entry})

    def _insert(
        self,
        table: str,
        columns: Mapping[str, str],
        row: Mapping[str, Any],
        *,
        replace: bool = False,
    ) -> None:
        names = ", ".join(f'"{name}"' for name in columns)
        places = ", ".join("?" * len(columns))
        verb = "INSERT OR REPLACE" if replace else "INSERT"
        self._db.execute(
            f"{verb} INTO {table} ({names}) VALUES ({places})",
            [row.get(name) for name in columns],
        )

    def rows(self, query: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
        """The rows of a SELECT over `runs` and `rounds`, as mappings."""
        cursor = self._db.execute(query, parameters or [])
        names = [column[0] for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def export_parquet(self, folder: str | Path) -> list[Path]:
        """Writes runs.parquet and rounds.parquet into `folder`, which is made if need be."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be made: {error.strerror}") from error
        written = []
        for table, order in (("runs", "point"), ("rounds", "key, round")):
            path = folder / f"{table}.parquet"
            quoted = str(path).replace("'", "''")
            try:
                self._db.execute(
                    f"COPY (SELECT * FROM {table} ORDER BY {order}) TO '{quoted}' (FORMAT parquet)"
                )
            except duckdb.Error as error:
                raise StoreError(
                    f"{path}: cannot be written: {str(error).splitlines()[0]}"
                ) from error
            written.append(path)
        return written


def _run_row(
    sweep: str, point: Point, finished: Finished, versions: Mapping[str, str]
) -> dict[str, Any]:
    task, migration = point.scenario.task, point.scenario.migration
    settings = migration.to_struct()
    name = point.scenario.name
    scenario = {"name": name, "task": task.to_struct(), "migration": settings}
    row: dict[str, Any] = {
        "key": point.key,
        "sweep": sweep,
        "point": point.index,
        "repeat": point.repeat,
        "status": "failed" if finished.result is None else "done",
        "error": finished.error or None,
        "axes": json.dumps(point.axes),
        "workload": task.workload.kind,
        "policy": migration.policy.kind,
        "encoding": _encoding(settings["encoding"]),
        "tracker": task.tracker,
        "seed": task.seed,
        "memory_bytes": task.memory,
        "page_size": task.page_size,
        "rate_pages_s": _rate(point),
        "bandwidth_bps": migration.link.bandwidth_bps,
        "latency_s": migration.link.latency_ns / 1e9,
        "scenario": json.dumps(scenario),
        "versions": json.dumps(dict(versions)),
        "worker": finished.worker,
        "worker_rss_bytes": finished.rss_bytes,
    }
    result = finished.result
    if result is None:
        return row
    same = ("verified", "continued_equal", "total_time_s", "bytes_wire", "bytes_pages",
            "pages_lost", "pages_spurious", "pages_different", "wall_s")  # fmt: skip
    row |= {name: result[name] for name in same}
    row |= {f"{part}_s": seconds for part, seconds in result["downtime_s"].items()}
    row["downtime_s"] = result["downtime_s"]["total"]
    later = result.get("post_copy") or {}
    row |= {name: later.get(name) for name in _POST_COPY_COLUMNS}
    row["rounds"] = len(result["rounds"])
    row["error"] = result["error"] or None
    row["versions"] = json.dumps(result["versions"])
    # The scenario has a column of its own.
    row["result"] = json.dumps({**result, "scenario": None})
    return row


def _encoding(encoding: Mapping[str, Any]) -> str:
    """An encoding in one word: its kind, and how a delta's changes are written unless as usual."""
    kind, codec = encoding.get("kind", "raw"), encoding.get("codec", "run-length")
    return str(kind if codec == "run-length" else f"{kind}+{codec}")


def _rate(point: Point) -> float | None:
    rate = getattr(point.scenario.task.workload, "rate", None)
    if not isinstance(rate, str):
        return None
    return float(parse_rate(rate, point.scenario.task.page_size))
