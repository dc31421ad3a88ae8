"""``predump report``: figures of runs that were kept, as one HTML file and as images."""

from pathlib import Path
from typing import Annotated

import typer

from predump.command import one_line_errors

Results = Annotated[
    list[Path],
    typer.Argument(
        metavar="RESULTS...",
        help="Result files of sweeps (DuckDB), folders of their Parquet export, or JSON results.",
    ),
]
Page = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="The HTML file; needs no network.")
]
Figures = Annotated[
    Path | None,
    typer.Option("--figures", metavar="FOLDER", help="Write each figure as PNG and SVG there."),
]
Title = Annotated[str, typer.Option(metavar="TEXT", help="Title; default: the first file's name.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


def report_command(
    results: Results,
    output: Page = Path("report.html"),
    figures: Figures = None,
    title: Title = "",
    debug: Debug = False,
) -> None:
    """Draw downtime, rounds, convergence and dirty pages of runs, with theory beside them."""
    from predump.report.images import NoConverter
    from predump.report.make import ReportError, write_report
    from predump.runs import RunsError, load_all

    with one_line_errors(RunsError, ReportError, NoConverter, debug=debug):
        if output.is_dir():
            raise ReportError(f"-o {output}: is a directory; name a file in it")
        if not output.parent.is_dir():
            raise ReportError(f"-o {output}: there is no directory {output.parent}; make it first")
        runs = load_all(results)
        made = write_report(runs, output, title=title or results[0].stem, folder=figures)
    where = f" and in {figures}" if figures is not None else ""
    typer.echo(f"{len(runs):,} runs, {len(made)} figures in {output}{where}")
