"""Runs that are over: from result files of sweeps and single runs, and those started here.

Files are read when somebody asks and they have changed since. A file that cannot be read is said
so, and hides no other one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predump.comparison import point_name
from predump.result import Result
from predump.runs import Run, RunsError, load_runs, settings_of

MOST_HERE = 100
MOST_LISTED = 5000
"""Runs of a file that are listed; `predump report` and `predump compare` take them all."""


@dataclass(slots=True)
class _File:
    path: Path
    stamp: tuple[tuple[str, int, int], ...] | None = None  # None: not read yet
    runs: Sequence[Run] = ()
    trouble: str = ""

    def refresh(self) -> None:
        """Reads the file again if it is not as it was."""
        stamp = _stamp(self.path)
        if stamp == self.stamp and not self.trouble:
            return
        try:
            self.runs, self.trouble = load_runs(self.path), ""
        except RunsError as error:
            self.trouble = str(error)
        self.stamp = stamp


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells that a file, or a file in a folder, has changed."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return tuple((f.name, (s := f.stat()).st_mtime_ns, s.st_size) for f in files)
    except OSError:
        return ()


class Finished:
    """The runs that can be looked at, and compared."""

    def __init__(self, paths: Sequence[Path] = ()) -> None:
        self._files = [_File(path) for path in paths]
        self._here: OrderedDict[str, Run] = OrderedDict()
        self.version = 0
        """Changes when a run that was started here is over."""

    def add(self, result: Result) -> None:
        """A migration that was started here is over."""
        settings = settings_of(result.scenario or {})
        error = result.error or ""
        self._keep(result.migration_id, Run(result.name, {}, settings, result, error))

    def failed(self, name: str, migration_id: str, error: str) -> None:
        """A migration that was started here gave no result."""
        self._keep(migration_id, Run(name, {}, {}, None, error))

    def _keep(self, migration_id: str, run: Run) -> None:
        self._here[f"here-{migration_id}"] = run
        while len(self._here) > MOST_HERE:
            self._here.popitem(last=False)
        self.version += 1

    def key_of(self, migration_id: str) -> str | None:
        """The key of a run that was started here and is over; None if there is none."""
        key = f"here-{migration_id}"
        return key if key in self._here else None

    def listing(self) -> dict[str, Any]:
        """All runs in short, and what is wrong with the files. Reads files: not for the loop."""
        here = list(self._here.items())  # at once: the event loop may add to it
        runs = [_short(key, run, "started here") for key, run in reversed(here)]
        troubles = []
        for number, file in enumerate(self._files):
            file.refresh()
            if file.trouble:
                troubles.append(file.trouble)
            if len(file.runs) > MOST_LISTED:
                troubles.append(f"{file.path}: only the first {MOST_LISTED} runs are listed")
            runs += [
                _short(f"{number}-{k}", run, file.path.name)
                for k, run in enumerate(file.runs[:MOST_LISTED])
            ]
        return {"runs": runs, "troubles": troubles}

    def detail(self, key: str) -> dict[str, Any] | None:
        """One run with everything that its result says; None if there is none of that name."""
        run = self._find(key)
        if run is None:
            return None
        result = None
        if run.result is not None:
            result = run.result.model_dump(mode="json", exclude={"scenario", "versions"})
        return {
            "key": key,
            "name": _name(run),
            "settings": dict(run.settings),
            "error": run.error,
            "result": result,
        }

    def result(self, key: str) -> Result | None:
        """The result of a run, as it was written; None if there is none."""
        run = self._find(key)
        return run.result if run is not None else None

    def _find(self, key: str) -> Run | None:
        run = self._here.get(key)
        where, _, number = key.partition("-")
        if run is None and where.isdigit() and number.isdigit() and int(where) < len(self._files):
            file = self._files[int(where)]
            if int(number) < min(len(file.runs), MOST_LISTED):
                run = file.runs[int(number)]
        return run


def _name(run: Run) -> str:
    return f"{run.sweep}: {point_name(run)}" if run.sweep else point_name(run)


def _short(key: str, run: Run, origin: str) -> dict[str, Any]:
    short: dict[str, Any] = {
        "key": key,
        "name": _name(run),
        "origin": origin,
        "error": run.error,
    }
    result = run.result
    if result is not None:
        short |= {
            "policy": result.policy.kind,
            # Only a task that went over was down until it was runnable there.
            "downtime_s": result.downtime_s.total if result.owner == "destination" else None,
            "total_time_s": result.total_time_s or None,
            "bytes_wire": result.bytes_wire,
            "rounds": len(result.rounds),
            "migration_id": result.migration_id,
            "hunks_off": list(result.hunks_off),
            "owner": result.owner,
            "verified": result.verified,
            "pages_different": result.pages_different,
        }
    return short
