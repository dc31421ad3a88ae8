"""Runs that were kept, read back from wherever they are: for reports and comparisons.

A sweep's result file (DuckDB), the folder of its Parquet export, or results of single runs as JSON
files all give the same: what was run, and what became of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from predump.result import Result

_COLUMNS = "sweep, point, repeat, status, error, axes, scenario, result"


class RunsError(ValueError):
    """Files that hold no runs; ``str()`` is one line for the user."""


@dataclass(frozen=True, slots=True)
class Run:
    """One migration that was run. `result` is None if it failed, for the reason `error`.

    `settings`: every key of its scenario by dotted name (``link.bandwidth``) with its value as in a
    scenario file; empty for a result that does not say what was run.
    """

    origin: str
    axes: Mapping[str, Any]
    settings: Mapping[str, Any]
    result: Result | None
    error: str = ""
    sweep: str = ""
    repeat: int = 0


def load_runs(path: str | Path) -> list[Run]:
    """The runs in a result file, a folder of Parquet files or of JSON results, or a JSON result.

    RunsError if there is none, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise RunsError(f"{path}: there is no such result file")
    if path.suffix == ".json":
        return [_of_json(path)]
    return _of_database(path)


def load_all(paths: Iterable[str | Path]) -> list[Run]:
    """The runs of several files, in order. RunsError as `load_runs`."""
    return [run for path in paths for run in load_runs(path)]


def _of_folder(folder: Path) -> list[Run]:
    if (folder / "runs.parquet").is_file():
        quoted = str(folder / "runs.parquet").replace("'", "''")
        with duckdb.connect() as database:
            return _of_rows(database, f"'{quoted}'", folder)
    files = sorted(folder.glob("*.json"))
    if not files:
        raise RunsError(f"{folder}: has neither runs.parquet nor results of runs (*.json)")
    return [_of_json(file) for file in files]


def _of_database(path: Path) -> list[Run]:
    try:
        database = duckdb.connect(str(path), read_only=True)
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise RunsError(f"{path}: cannot be opened as a result file: {reason}") from error
    with database:
        return _of_rows(database, "runs", path)


def _of_rows(database: duckdb.DuckDBPyConnection, table: str, path: Path) -> list[Run]:
    try:
        rows = database.execute(f"SELECT {_COLUMNS} FROM {table} ORDER BY point, key").fetchall()
    except duckdb.Error as error:
        raise RunsError(f"{path}: is no result file of predump sweep") from error
    if not rows:
        raise RunsError(f"{path}: has no runs yet")
    return [_of_row(row, path) for row in rows]


def _of_row(row: tuple[Any, ...], path: Path) -> Run:
    sweep, point, repeat, status, error, axes, scenario, result = row
    origin = f"{sweep} point {point}" + (f" repeat {repeat}" if repeat else "")
    made: Result | None = None
    if status == "done":
        read = _result(result, f"{path}: {origin}")
        made, error = (read, "") if read.error is None else (None, read.error)
    return Run(
        origin,
        json.loads(axes),
        settings_of(json.loads(scenario)),
        made,
        error or "",
        sweep=sweep,
        repeat=repeat,
    )


def _of_json(path: Path) -> Run:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RunsError(f"{path}: cannot be read: {error.strerror}") from error
    result = _result(text, str(path))
    settings = settings_of(result.scenario or {})
    if result.error is not None:
        return Run(path.stem, {}, settings, None, result.error)
    return Run(path.stem, {}, settings, result)


def _result(text: str | bytes, where: str) -> Result:
    try:
        return Result.from_json(text)
    except ValueError as error:
        raise RunsError(f"{where}: {error}") from error


def settings_of(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Every key of a scenario that results keep (`task` and `migration`), by dotted name."""
    found: dict[str, Any] = {}
    for part in ("task", "migration"):
        _flatten(scenario.get(part, {}), "", found)
    return found


def _flatten(table: Mapping[str, Any], prefix: str, found: dict[str, Any]) -> None:
    for key, value in table.items():
        if isinstance(value, Mapping):
            _flatten(value, f"{prefix}{key}.", found)
        else:
            found[prefix + key] = value
