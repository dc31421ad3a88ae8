"""Runs the benchmarks and prints one table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Final, Protocol

from rich.console import Console
from rich.table import Table

from bench.content import content_lines
from bench.encoding import encoding_lines
from bench.measure import Line
from bench.migration import migration_lines, stream_lines
from bench.model import model_lines
from bench.page_server import page_server_lines
from bench.speed import speed_lines
from livemigration.service import keep_freed_memory


class _Group(Protocol):
    def __call__(self, *, quick: bool) -> list[Line]: ...


GROUPS: Final[dict[str, _Group]] = {
    "model": model_lines,
    "content": content_lines,
    "encoding": encoding_lines,
    "stream": stream_lines,
    "migration": migration_lines,
    "page-server": page_server_lines,
    "speed": speed_lines,
}


def show(lines: Sequence[Line], console: Console) -> None:
    """The report as a table."""
    table = Table("what", "measured", "target", "baseline", "ratio", "", "note")
    for column in (1, 2, 4):
        table.columns[column].justify = "right"
    group = ""
    for line in lines:
        if group and line.group != group:
            table.add_section()
        group = line.group
        target = ""
        if line.target is not None:
            unit = "x" if line.target_is_ratio else line.unit
            target = f"{line.sign} {line.target:.4g} {unit}"
        table.add_row(
            line.name,
            f"{line.value:.4g} {line.unit}",
            target,
            f"{line.baseline:.4g} {line.baseline_name}" if line.baseline is not None else "",
            f"{line.ratio:.2f}" if line.ratio is not None else "",
            {True: "reached", False: "missed", None: ""}[line.reached],
            line.note,
        )
    console.print(table)


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    packages = ("numba", "numpy", "grpcio", "xxhash")
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "versions": {name: version(name) for name in packages},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status, which says nothing of targets."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"any of {', '.join(GROUPS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.groups if name not in GROUPS]
    if unknown:
        parser.error(f"no group {unknown[0]}: there are {', '.join(GROUPS)}")
    keep_freed_memory()  # as the nodes do: arrays that come and go are not faulted in anew
    taken_on = machine()
    console = Console(width=None if sys.stdout.isatty() else 200)
    lines: list[Line] = []
    for name in options.groups or GROUPS:
        start = time.perf_counter()
        lines += GROUPS[name](quick=options.quick)
        print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    show(lines, console)
    if options.json is not None:
        figures = [asdict(line) | {"reached": line.reached} for line in lines]
        report = {"schema": "predump.bench/1", "quick": options.quick, **taken_on}
        options.json.write_text(json.dumps(report | {"figures": figures}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
