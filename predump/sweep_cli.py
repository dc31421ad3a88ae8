"""``predump sweep``: a scenario over ranges of its keys, into one result file.

Exit status: 0 if every point is in the file and verified, 3 if memory differed in one, 1 if one
failed, 2 for bad input.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from predump.command import one_line_errors
from predump.exit_status import DIFFERS, FAILED
from predump.overrides import OverrideError, parse_override
from predump.render import make_console

if TYPE_CHECKING:
    from predump.sweep.execute import Cluster, SweepOutcome
    from predump.sweep.grid import Grid

GridFile = Annotated[
    Path | None, typer.Argument(metavar="[GRID]", help="A grid file (TOML).", show_default=False)
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="RESULTS",
        help="Result file (DuckDB), gone on with if it is there; default: NAME.duckdb, as the "
        "grid's name.",
    ),
]
Comparison = Annotated[
    str, typer.Option(metavar="NAME", help="Run a ready comparison instead of a grid file.")
]
Listing = Annotated[bool, typer.Option("--list-comparisons", help="Say which there are, and end.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace a key of the scenario everywhere; repeatable."
    ),
]
Workers = Annotated[int, typer.Option(min=0, help="Worker processes; 0: one per processor.")]
Dask = Annotated[
    str,
    typer.Option("--dask", metavar="ADDRESS", help="Run on this Dask cluster, tcp://HOST:PORT."),
]
Parquet = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Write runs.parquet and rounds.parquet there as well."),
]
Grpc = Annotated[
    bool,
    typer.Option(
        "--grpc", help="Through real nodes instead of within the worker; the same, slower."
    ),
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Run again what failed before.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


def sweep_command(
    grid: GridFile = None,
    output: Output = None,
    comparison: Comparison = "",
    list_comparisons: Listing = False,
    sets: Sets = None,
    workers: Workers = 0,
    dask: Dask = "",
    parquet: Parquet = None,
    grpc: Grpc = False,
    retry_failed: Retry = False,
    debug: Debug = False,
) -> None:
    """Run a scenario for every combination of values; finished points are not run again."""
    # DuckDB and the engine are not loaded for --help.
    from predump.sweep.execute import SweepError, run_sweep
    from predump.sweep.grid import GridError
    from predump.sweep.store import ResultStore, StoreError

    if list_comparisons:
        _list()
        return
    with one_line_errors(GridError, OverrideError, StoreError, SweepError, debug=debug):
        loaded = _load(grid, comparison, sets or [])
        output = output or Path(f"{loaded.name}.duckdb")
        with (
            ResultStore(output) as store,
            _cluster(workers, dask) as cluster,
            _Shown(make_console(), len(loaded)) as shown,
        ):
            outcome = run_sweep(
                loaded,
                store,
                cluster,
                transport="grpc" if grpc else "in-process",
                retry_failed=retry_failed,
                on_progress=shown,
            )
            if parquet is not None:
                store.export_parquet(parquet)
            first = store.rows(
                "SELECT point, error FROM runs WHERE status = 'failed' ORDER BY point LIMIT 1"
            )
    _say(outcome, output)
    for row in first:
        typer.echo(f"point {row['point']} failed: {row['error']}", err=True)
    if outcome.different:
        raise typer.Exit(DIFFERS)
    raise typer.Exit(FAILED if first else 0)


def _load(grid: Path | None, comparison: str, sets: list[str]) -> "Grid":
    from predump.sweep.comparisons import load_comparison
    from predump.sweep.grid import GridError, load_grid

    if (grid is None) == (not comparison):
        raise GridError("give either a grid file or --comparison NAME (--list-comparisons)")
    overrides = [parse_override(argument) for argument in sets]
    return load_comparison(comparison, overrides) if grid is None else load_grid(grid, overrides)


def _list() -> None:
    from predump.sweep.comparisons import comparisons

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("name", no_wrap=True)
    table.add_column("shows")
    for name, shows in comparisons().items():
        table.add_row(name, shows)
    make_console().print(table, highlight=False)


def _cluster(workers: int, dask: str) -> "AbstractContextManager[Cluster]":
    from predump.sweep.execute import dask_workers, default_workers, local_workers

    return dask_workers(dask) if dask else local_workers(workers or default_workers())


def _say(outcome: "SweepOutcome", output: Path) -> None:
    ran = outcome.done + outcome.failed
    rate = f", {ran / outcome.seconds:.2f} points/s" if ran and outcome.seconds else ""
    skipped = f", {outcome.skipped} were there" if outcome.skipped else ""
    typer.echo(
        f"{outcome.points} points: {outcome.done} done, {outcome.failed} failed{skipped}; "
        f"{outcome.seconds:.1f} s{rate}; results in {output}"
    )
    if outcome.different:
        typer.echo(f"memory differed in {outcome.different} of them")


class _Shown:
    """A bar with the time left on a terminal; nothing elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self._bar = Progress(
            TextColumn("sweep"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("sweep", total=total, failed="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, outcome: "SweepOutcome") -> None:
        over = outcome.skipped + outcome.done + outcome.failed
        failed = f"{outcome.failed} failed" if outcome.failed else ""
        self._bar.update(self._task, completed=over, failed=failed)
