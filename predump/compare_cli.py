"""``predump compare A B``: two runs or two sweeps, point by point."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from predump.command import one_line_errors
from predump.render import make_console, show_bytes, show_seconds

if TYPE_CHECKING:
    from predump.comparison import Change, Compared
    from predump.runs import Run

Side = Annotated[
    Path,
    typer.Argument(help="A result file of a sweep, its Parquet folder, or a result (JSON)."),
]
JsonTarget = Annotated[
    str,
    typer.Option(
        "--json", metavar="FILE|-", help="Write the comparison as JSON; - is standard output."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]

_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "downtime_s": ("downtime", show_seconds),
    "total_time_s": ("total time", show_seconds),
    "bytes_wire": ("on the wire", lambda size: show_bytes(int(size))),
    "rounds": ("rounds", lambda count: f"{count:.0f}"),
}
_MOST_LISTED = 20


class CompareError(ValueError):
    """A comparison that cannot be written; ``str()`` is one line."""


def compare_command(a: Side, b: Side, json_target: JsonTarget = "", debug: Debug = False) -> None:
    """Show what is different between two runs or two sweeps, point by point. Exit status 0."""
    from predump.comparison import compare, to_json
    from predump.runs import RunsError, load_runs

    with one_line_errors(RunsError, CompareError, debug=debug):
        compared = compare(load_runs(a), load_runs(b))
        made = json.dumps(to_json(compared, str(a), str(b)), indent=2)
        if json_target == "-":
            typer.echo(made)
            return
        if json_target:
            try:
                Path(json_target).write_text(made + "\n", encoding="utf-8")
            except OSError as error:
                raise CompareError(f"{json_target}: cannot be written: {error.strerror}") from error
    console = make_console()
    for part in _parts(compared, a, b):
        console.print(part, highlight=False)


def _parts(compared: "Compared", a: Path, b: Path) -> Iterator[RenderableType]:
    yield Text(f"A: {a}\nB: {b}")
    for key, (x, y) in compared.settings.items():
        yield Text(f"{key}: {x} in A, {y} in B")
    if compared.pairs:
        yield _table(compared)
    else:
        yield Text("No point is in both.")
    for x, y in compared.failed:
        failed = "A" if x.result is None else "B"
        yield Text(f"failed in {failed}: {x.origin}: {x.error or y.error}")
    yield from _only("A", compared.only_a)
    yield from _only("B", compared.only_b)


def _table(compared: "Compared") -> Table:
    table = Table(
        title="A -> B (B/A)", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        header_style="bold", show_footer=len(compared.pairs) > 1,
    )  # fmt: skip
    table.add_column("point", overflow="fold", footer="B/A: least, median, most")
    for measure, (title, _) in _COLUMNS.items():
        found = compared.ratios(measure)
        footer = " ".join(f"{ratio:.3g}" for ratio in found) if found is not None else ""
        table.add_column(title, justify="right", footer=footer)
    for pair in compared.pairs:
        cells = [_cell(pair.changes[measure], shown) for measure, (_, shown) in _COLUMNS.items()]
        table.add_row(Text(pair.name), *cells)
    return table


def _cell(change: "Change", shown: Callable[[float], str]) -> str:
    ratio = f" ({change.ratio:.3g})" if change.ratio is not None else ""
    return f"{shown(change.a)} -> {shown(change.b)}{ratio}"


def _only(side: str, runs: "tuple[Run, ...]") -> Iterator[Text]:
    from predump.comparison import point_name

    for run in runs[:_MOST_LISTED]:
        yield Text(f"only in {side}: {point_name(run)}")
    if len(runs) > _MOST_LISTED:
        yield Text(f"only in {side}: {len(runs) - _MOST_LISTED} more")
