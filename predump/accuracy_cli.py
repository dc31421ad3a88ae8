"""``predump accuracy``: the model's predictions beside what the same migrations take on this host.

Exit status: 0 if every run was verified, 3 if memory differed, 1 if a run failed, 2 for bad input.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from predump.command import explained_errors, unexpected
from predump.exit_status import BAD_INPUT, DIFFERS, FAILED
from predump.render import make_console

if TYPE_CHECKING:
    from livemigration.machine_file import MachineFile

Scenario = Annotated[
    Path | None,
    typer.Argument(metavar="SCENARIO", help="Scenario to vary; default: a hotspot, QEMU's rule."),
]
Memory = Annotated[str, typer.Option(metavar="SIZES", help="Sizes of memory, with commas.")]
Rates = Annotated[str, typer.Option(metavar="RATES", help="Dirty rates, with commas.")]
Bandwidths = Annotated[
    str, typer.Option(metavar="BANDWIDTHS", help="Bandwidths of the link, with commas.")
]
Machine = Annotated[
    str,
    typer.Option(metavar="NAME|FILE", help="Machine with the costs; default: calibrate first."),
]
Repeats = Annotated[int, typer.Option(min=1, help="Measured runs of each case.")]
Calm = Annotated[
    int,
    typer.Option(
        metavar="PERCENT",
        min=1,
        max=100,
        help="Measure only while processors are waited for less of the time; 100: always.",
    ),
]
Outputs = Annotated[
    list[Path] | None,
    typer.Option(
        "-o", "--output", metavar="FILE", help="Write the result, .json or .md; repeatable."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]

KINDS = (".json", ".md")
_OPTIONS = {
    "--set memory=": "--memory ",
    "--set workload.rate=": "--rates ",
    "--set link.bandwidth=": "--bandwidths ",
}
"""What scenarios call a bad value, and the option that it came from."""


class AccuracyInputError(ValueError):
    """An option that cannot be served; ``str()`` is one line."""


def accuracy_command(
    scenario: Scenario = None,
    memory: Memory = "256MiB,1GiB",
    rates: Rates = "2000 pages/s,5000 pages/s,10000 pages/s",
    bandwidths: Bandwidths = "500Mbit/s,1Gbit/s,2Gbit/s",
    machine: Machine = "",
    repeats: Repeats = 1,
    calm: Calm = 100,
    outputs: Outputs = None,
    debug: Debug = False,
) -> None:
    """Run migrations in the model and on this host, and compare rounds, pages and downtime."""
    with explained_errors(_explained, debug=debug):
        from predump.accuracy.cases import Grid, make_cases
        from predump.accuracy.compare import summarize
        from predump.accuracy.measure import Manner, measure
        from predump.accuracy.report import to_json, to_markdown
        from predump.runner import RunError

        console = make_console(stderr=True)
        targets = [_checked(path) for path in outputs or []]
        grid = Grid(
            _list("memory", memory),
            _list("rates", rates),
            _list("bandwidths", bandwidths),
            scenario,
        )
        costs = _machine(machine, lambda line: console.print(line, style="dim"))
        cases = make_cases(grid, costs)
        found = asyncio.run(measure(cases, Manner(repeats, calm / 100), console.print))
        if not found.pairs:
            raise RunError(f"every case failed: {found.failed[0][1]}")
        for path in targets:
            made = to_json if path.suffix == ".json" else to_markdown
            path.write_text(made(found, costs).rstrip("\n") + "\n", encoding="utf-8")
        typer.echo(to_markdown(found, costs))
        if not summarize(found.pairs).verified:
            raise typer.Exit(DIFFERS)
        raise typer.Exit(FAILED if found.failed else 0)


def _explained(error: Exception) -> tuple[str, int]:
    from livemigration.errors import BadRequest, MigrationError, NoSpace
    from livemigration.machine_file import MachineError
    from predump.runner import RunError
    from predump.scenario import ScenarioError

    if isinstance(error, RunError):
        return error.message, error.exit_code
    if isinstance(error, ScenarioError):
        return _by_option(str(error)), BAD_INPUT
    if isinstance(error, AccuracyInputError | BadRequest | NoSpace):
        return str(error), BAD_INPUT
    if isinstance(error, MachineError):
        return f"--machine: {error}", BAD_INPUT
    if isinstance(error, MigrationError | OSError):
        return str(error), FAILED
    return unexpected(error)


def _by_option(line: str) -> str:
    """The line, with the option in place of the override that it became."""
    for override, option in _OPTIONS.items():
        if line.startswith(override):
            return option + line.removeprefix(override)
    return line


def _list(option: str, text: str) -> list[str]:
    values = [value.strip() for value in text.split(",") if value.strip()]
    if not values:
        raise AccuracyInputError(f"--{option}: has no values; write some, with commas between")
    if len(values) > len(set(values)):
        raise AccuracyInputError(f"--{option} {text}: a value is there twice; leave one out")
    return values


def _checked(path: Path) -> Path:
    """A file that can be written later, of a kind that is known."""
    if path.suffix not in KINDS:
        raise AccuracyInputError(f"{path}: write a name that ends with {' or '.join(KINDS)}")
    if path.is_dir():
        raise AccuracyInputError(f"{path}: is a directory; name a file in it")
    if not path.parent.is_dir():
        raise AccuracyInputError(f"{path}: there is no directory {path.parent}; make it first")
    return path


def _machine(name: str, on_step: Callable[[str], None]) -> "MachineFile":
    from livemigration.machine_file import load_machine
    from predump.calibration.machine import Plan, calibrate

    if name:
        return load_machine(name)
    return calibrate(Plan(256 << 20, 7, "this-host"), on_step)
