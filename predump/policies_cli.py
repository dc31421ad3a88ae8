"""``predump policies``: every policy on four workloads, as a table."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from predump.command import one_line_errors
from predump.exit_status import FAILED
from predump.overrides import OverrideError, parse_override

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace a key of the scenario everywhere; repeatable."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="RESULTS", help="Keep the results in this file."),
]
Workers = Annotated[int, typer.Option(min=0, help="Worker processes; 0: one per processor.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


def policies_command(
    sets: Sets = None, output: Output = None, workers: Workers = 0, debug: Debug = False
) -> None:
    """Print downtime, total time and bytes of all policies on four workloads, in Markdown."""
    from predump.policy_table import COMPARISON, policy_table
    from predump.runs import load_runs
    from predump.sweep import GridError, ResultStore, StoreError, load_comparison, run_sweep
    from predump.sweep.execute import SweepError, default_workers, local_workers

    with (
        one_line_errors(GridError, OverrideError, StoreError, SweepError, debug=debug),
        tempfile.TemporaryDirectory(prefix="predump-") as folder,
    ):
        grid = load_comparison(COMPARISON, [parse_override(text) for text in sets or []])
        file = output or Path(folder) / "policies.duckdb"
        with ResultStore(file) as store, local_workers(workers or default_workers()) as cluster:
            run_sweep(grid, store, cluster)
        runs = load_runs(file)
    typer.echo(policy_table(runs))
    if any(run.result is None for run in runs):
        raise typer.Exit(FAILED)
