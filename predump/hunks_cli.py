"""``predump hunks``: the soft-dirty patch hunk by hunk, and what goes wrong without each.

Exit status of ``search``: 3 if the two models disagree or one never ends, else 0.
"""

import json
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from predump.command import DefaultGroup, one_line_errors
from predump.exit_status import DIFFERS
from predump.overrides import OverrideError
from predump.render import WIDTH, make_console

if TYPE_CHECKING:
    from mm_model import ModelConfig
    from mm_model.hunks import Hunk
    from predump.conform.explain import Explanation
    from predump.conform.hunt import Mark, Progress, Shortest
    from predump.conform.matrix import Cell, Row

hunks_app = typer.Typer(
    cls=DefaultGroup.of("list"),
    help="The hunks of the soft-dirty patch, and what goes wrong without each.",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides every sequence.")]


class HunkError(ValueError):
    """A hunk that is not there, or settings that are none; ``str()`` is one line."""


@hunks_app.command("list")
def list_command(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the hunks: place, what it protects, what is lost without it, the shortest scenario."""
    from mm_model.hunks import HUNKS, VARIANTS
    from predump.conform.shortest import ShortestScenarios

    with one_line_errors(debug=debug), _status(as_json) as tell:
        scenarios = ShortestScenarios()
        shown = {
            each.name: scenarios.of(each.name, lambda name: tell(f"searching without {name}"))
            for each in (*HUNKS, *VARIANTS)
        }
    if as_json:
        hunks = [_hunk_json(each, shown[each.name]) for each in (*HUNKS, *VARIANTS)]
        typer.echo(json.dumps({"schema": "predump.hunks/1", "hunks": hunks}))
        return
    typer.echo("Hunks of the patch: the name for hunks.off, its place, what it protects, and the")
    typer.echo("shortest scenario that shows each harm without it")
    for each in (*HUNKS, *VARIANTS):
        typer.echo("\n".join(_hunk_lines(each, shown[each.name])))


def _hunk_lines(each: "Hunk", shown: "Mapping[str, Shortest]") -> Iterator[str]:
    from predump.conform.operations import script

    yield f"\n{each.name:28} {Path(each.file).name}, {each.function}"
    yield from _indented(each.protects)
    if not shown:
        yield from _indented("neutral: no sequence searched shows a difference")
    for kind, shortest in shown.items():
        yield from _indented(f"{kind}: {'; '.join(script(shortest.ops))}")


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=4 * " ", subsequent_indent=8 * " ")


def _hunk_json(each: "Hunk", shown: "Mapping[str, Shortest]") -> dict[str, Any]:
    from predump.conform.operations import script

    return {
        "name": each.name,
        "file": each.file,
        "function": each.function,
        "protects": each.protects,
        "shows": {kind: script(shortest.ops) for kind, shortest in shown.items()},
    }


@hunks_app.command("explain")
def explain_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `predump hunks` lists it.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the shortest operations that do harm without a hunk, and the entry after each."""
    from predump.conform.explain import explain
    from predump.conform.shortest import ShortestScenarios, config_without

    with one_line_errors(HunkError, debug=debug), _status(as_json) as tell:
        found = _hunk(name)
        shown = ShortestScenarios().of(name, lambda name: tell(f"searching without {name}"))
        complete, without = config_without(), config_without(name)
        told = {
            kind: explain(shortest.ops, shortest.finding, complete, without)
            for kind, shortest in shown.items()
        }
    if as_json:
        explained = {kind: _explanation_json(told[kind]) for kind in told}
        typer.echo(json.dumps({"schema": "predump.hunks.explain/1", name: explained}))
        return
    typer.echo(f"{found.name}: {found.file}, {found.function}")
    if not told:
        typer.echo("Neutral: no sequence searched shows a difference without it.")
    for kind, explanation in told.items():
        shortest = shown[kind]
        typer.echo(
            f"\n{kind}: shrunk to {len(shortest.ops)} operations from {shortest.generated}; "
            f"sequence {shortest.tried} of the search showed it"
        )
        _print_explanation(explanation, "with the whole patch", f"without {name}")


@hunks_app.command("matrix")
def matrix_command(
    hunks: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Default: all hunks.")
    ] = None,
    seed: Seed = 1,
    sequences: Annotated[
        int, typer.Option(min=1, help="Random sequences for each theme of operations.")
    ] = 40,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run each hunk off against a set of workloads: pages lost, sent for nothing, endless."""
    from mm_model.hunks import HUNKS, VARIANTS
    from predump.conform.matrix import matrix

    with one_line_errors(HunkError, debug=debug), _status(as_json) as tell:
        names = [_hunk(name).name for name in hunks or []]
        rows = list(
            matrix(
                names or [each.name for each in HUNKS + VARIANTS],
                seed=seed,
                sequences=sequences,
                on_row=lambda name: tell(f"without {name}" if name else "the whole patch"),
            )
        )
    if as_json:
        typer.echo(json.dumps(_matrix_json(rows)))
        return
    console = make_console()
    console.print(_matrix_table(rows), highlight=False)


def _matrix_table(rows: "list[Row]") -> Table:
    complete, *others = rows
    table = Table(
        title="Each hunk off: what it does beyond the whole patch",
        title_justify="left",
        pad_edge=False,
        box=box.SIMPLE_HEAD,
    )
    table.add_column("hunk off", no_wrap=True)
    for column in ("lost", "for nothing", "endless"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("shown by")
    for row in others:
        more = row.beyond(complete)
        totals = [
            sum(getattr(cell, field) for cell in more.values())
            for field in ("lost", "spurious", "endless")
        ]
        table.add_row(row.hunk, *(f"{total:,}" for total in totals), _shown_by(more))
    return table


def _shown_by(more: "Mapping[str, Cell]") -> str:
    """``lost: zipf 908, ops:anon 12; endless: ops:anon 1``."""
    parts = []
    for field, words in (
        ("lost", "lost"),
        ("spurious", "for nothing"),
        ("endless", "endless"),
        ("other", "other"),
    ):
        named = [
            f"{name} {count}" for name, cell in more.items() if (count := getattr(cell, field))
        ]
        parts += [f"{words}: {', '.join(named)}"] if named else []
    return "; ".join(parts) or "neutral here"


def _matrix_json(rows: "list[Row]") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "schema": "predump.hunks.matrix/1",
        "rows": [
            {"hunk": row.hunk, "workloads": {k: asdict(cell) for k, cell in row.cells.items()}}
            for row in rows
        ],
    }


@hunks_app.command("search")
def search_command(
    minutes: Annotated[float, typer.Option(min=0.01, help="Give up after so long.")] = 1.0,
    seed: Seed = 1,
    a: Annotated[
        str, typer.Option("--a", metavar="SETTINGS", help="The reference: 'key=value ...'.")
    ] = "",
    b: Annotated[
        str, typer.Option("--b", metavar="SETTINGS", help="The other, e.g. 'hunks_off=pte_modify'.")
    ] = "",
    known: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Pass over what is in it: lines that `search --json` printed."
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Look for operations after which two settings of the model disagree, or one never ends."""
    from livemigration.operations import OperationError
    from predump.conform.explain import explain
    from predump.conform.hunt import Progress, search
    from predump.conform.operations import Vocabulary, themes_for
    from predump.conform.settings import SettingError

    bad_input = (HunkError, SettingError, OverrideError, OperationError)
    with one_line_errors(*bad_input, debug=debug):
        first = _config("--a", a)
        b = b or _other_than(first)
        second = _config("--b", b)
        passed_over = _known(known)
        vocabulary = Vocabulary.of(first, second)
        themes = [theme.name for theme in themes_for(vocabulary)]
        if not as_json:
            _print_search(a, b, themes, vocabulary.missing)
        progress = Progress()
        started = time.monotonic()
        with _status(as_json) as tell:
            shortest = search(
                first,
                second,
                vocabulary=vocabulary,
                seed=seed,
                seconds=60 * minutes,
                progress=progress,
                known=passed_over,
                on_sequence=lambda now: tell(f"{now.sequences:,} sequences"),
            )
        took = time.monotonic() - started
        told = explain(shortest.ops, shortest.finding, first, second) if shortest else None
    if as_json:
        typer.echo(json.dumps(_search_json(progress, shortest, told)))
    else:
        _print_found(progress, took, shortest, told)
    raise typer.Exit(DIFFERS if shortest else 0)


def _other_than(first: "ModelConfig") -> str:
    """x86-64, the kernel's other soft-dirty; where that has no such pages, a CPU without DBM."""
    kernel = "" if first.kernel == "6.12" else f" kernel={first.kernel}"
    if first.page_size == 4096:
        return f"arch=x86_64{kernel}"
    return f"page_size={first.page_size} dbm=false{kernel}"


def _config(option: str, text: str) -> "ModelConfig":
    from predump.conform.settings import build_config, parse_settings
    from predump.conform.shortest import FRAMES

    try:
        settings = parse_settings(text.split())
    except ValueError as error:
        raise HunkError(f"{option} {text!r}: {str(error).removeprefix('--set ')}") from error
    return build_config({"frames": FRAMES, "swap_slots": FRAMES} | settings)


def _known(file: Path | None) -> "frozenset[Mark]":
    """The disagreements that `search --json` printed into a file, one a line."""
    from predump.conform.hunt import mark
    from predump.conform.operations import parse_script

    if file is None:
        return frozenset()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise HunkError(f"--known {file}: cannot be read: {error}") from error
    marks = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            if told["finding"] is not None:
                ops = parse_script("\n".join(told["script"]))
                marks.add(mark(told["finding"]["kind"], ops))
        except (ValueError, KeyError, TypeError) as error:
            raise HunkError(
                f"--known {file}, line {number}: not what `hunks search --json` prints"
            ) from error
    return frozenset(marks)


def _hunk(name: str) -> "Hunk":
    from mm_model.hunks import hunk

    try:
        return hunk(name)
    except ValueError as error:
        raise HunkError(str(error)) from error


def _print_search(a: str, b: str, themes: list[str], missing: Mapping[str, str]) -> None:
    typer.echo(f"first: {a or 'the whole patch'}; second: {b}")
    typer.echo("\n".join(textwrap.wrap(f"themes: {', '.join(themes)}", WIDTH)))
    if missing:
        left_out = f"not modelled by both, so not tried: {', '.join(sorted(missing))}"
        typer.echo("\n".join(textwrap.wrap(left_out, WIDTH)))


def _print_found(
    progress: "Progress", took: float, shortest: "Shortest | None", told: "Explanation | None"
) -> None:
    ran = f"{progress.sequences:,} sequences, {progress.operations:,} operations, {took:.1f} s"
    if progress.known:
        ran += f", {progress.known:,} of them known"
    if shortest is None or told is None:
        typer.echo(f"no disagreement: {ran}")
        return
    typer.echo(f"{shortest.finding.kind}, after {ran}; shrunk to {len(shortest.ops)} operations")
    _print_explanation(told, "first", "second")


def _print_explanation(told: "Explanation", first: str, second: str) -> None:
    typer.echo(f"entry of {told.page} after each operation:")
    for number, step in enumerate(told.steps):
        typer.echo(f"  {number} {step.operation}")
        if step.first == step.second:
            typer.echo(f"      {step.first}")
        else:
            width = max(len(first), len(second))
            typer.echo(f"      {first:{width}}  {step.first}")
            typer.echo(f"      {second:{width}}  {step.second}")
    for sentence in told.why:
        typer.echo("\n".join(textwrap.wrap(sentence, WIDTH)))


def _explanation_json(told: "Explanation") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(told)


def _search_json(
    progress: "Progress", shortest: "Shortest | None", told: "Explanation | None"
) -> dict[str, Any]:
    from dataclasses import asdict

    from predump.conform.operations import script

    return {
        "schema": "predump.hunks.search/1",
        "sequences": progress.sequences,
        "operations": progress.operations,
        "known": progress.known,
        "finding": asdict(shortest.finding) if shortest else None,
        "script": script(shortest.ops) if shortest else [],
        "explanation": asdict(told) if told else None,
    }


@contextmanager
def _status(quiet: bool) -> "Iterator[Any]":
    """A line on the terminal that says what is going on; nothing where there is no terminal."""
    console = make_console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    with console.status("") as status:
        yield status.update
