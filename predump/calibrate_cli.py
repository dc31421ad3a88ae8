"""``predump calibrate``: what a migration costs on this host, as a machine file for scenarios.

Exit status: 0 if everything was measured, 2 where this host cannot do it, 1 if a migration failed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from predump.command import explained_errors, unexpected
from predump.exit_status import BAD_INPUT, FAILED
from predump.render import make_console

if TYPE_CHECKING:
    from livemigration.machine_file import MachineFile

Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="FILE", help="Machine file (TOML); default: standard output."
    ),
]
Memory = Annotated[
    str, typer.Option(metavar="SIZE", help="Memory to measure with; the larger, the steadier.")
]
Repeats = Annotated[int, typer.Option(min=1, help="How often each measurement is made.")]
Name = Annotated[str, typer.Option(metavar="TEXT", help="The machine's name; default: the file's.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


class CalibrateInputError(ValueError):
    """An option that cannot be served; ``str()`` is one line."""


def calibrate_command(
    output: Output = None,
    memory: Memory = "256MiB",
    repeats: Repeats = 7,
    name: Name = "",
    debug: Debug = False,
) -> None:
    """Measure this host: faults, scans, copies, digests, loopback, and migrations between nodes."""
    with explained_errors(_explained, debug=debug):
        from predump.calibration.machine import Plan, calibrate, to_toml

        console = make_console(stderr=True)
        plan = Plan(_memory(memory), repeats, name or (output.stem if output else "this-host"))
        _check_folder(output)
        text = to_toml(machine := calibrate(plan, lambda line: console.print(line, style="dim")))
        if output is None:
            typer.echo(text, nl=False)
            return
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise CalibrateInputError(f"{output}: cannot be written: {error.strerror}") from error
        make_console().print(_table(machine))
        typer.echo(f'written to {output}; a scenario uses it with costs.machine = "{output}"')


def _explained(error: Exception) -> tuple[str, int]:
    from livemigration.errors import BadRequest, MigrationError, NoSpace
    from predump.runner import RunError

    if isinstance(error, RunError):
        return error.message, error.exit_code
    if isinstance(error, CalibrateInputError | BadRequest | NoSpace):
        return str(error), BAD_INPUT
    if isinstance(error, MigrationError):
        return str(error), FAILED
    return unexpected(error)


def _memory(text: str) -> int:
    """`text` in bytes, whole pages and enough of them to measure with."""
    import os

    from livemigration.units import parse_size

    page_size = os.sysconf("SC_PAGE_SIZE")
    try:
        size = parse_size(text)
    except ValueError as error:
        raise CalibrateInputError(f"--memory: {error}") from error
    if size % page_size or size < 64 * page_size:
        raise CalibrateInputError(
            f"--memory {text}: must be a multiple of {page_size} bytes, at least {64 * page_size}"
        )
    return size


def _check_folder(output: Path | None) -> None:
    """Refuse before the work what could only fail after it."""
    if output is None:
        return
    if output.is_dir():
        raise CalibrateInputError(f"{output}: is a directory; name a file in it")
    if not output.parent.is_dir():
        raise CalibrateInputError(f"{output}: there is no directory {output.parent}; make it first")


def _table(machine: "MachineFile") -> Table:
    table = Table("figure", "median", "quartiles", "unit", "n", box=None)
    for name, figure in machine.measured.items():
        spread = f"{figure.low:,.4g} to {figure.high:,.4g}"
        table.add_row(name, f"{figure.median:,.4g}", spread, figure.unit, str(figure.repeats))
    return table
