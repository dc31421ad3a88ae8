"""``predump faults``: what can go wrong in the middle of a migration, done on purpose.

Exit status of ``run``: 0 if every case ended as its file says, 1 otherwise, 2 for bad input.
"""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from livemigration.errors import MigrationError
from predump.command import explained_errors, unexpected
from predump.exit_status import BAD_INPUT, FAILED

if TYPE_CHECKING:
    from predump.faults.docker_lab import DockerLaboratory
    from predump.faults.spec import Fault
    from predump.faults.trial import Trial

faults_app = typer.Typer(
    help="Faults in the middle of migrations, each with the outcome that it must have.",
    no_args_is_help=True,
)

Which = Annotated[
    list[str] | None,
    typer.Argument(metavar="FILE|NAME...|all", help="Fault files, names of ours, or all."),
]
Docker = Annotated[
    bool,
    typer.Option(
        "--docker", help="In the containers of docker-compose.yml, of which this must be one."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per case.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


def _explained(error: Exception) -> tuple[str, int]:
    from predump.faults.spec import FaultError

    if isinstance(error, FaultError):
        return str(error), BAD_INPUT
    if isinstance(error, MigrationError):
        return str(error), FAILED
    return unexpected(error)


def _chosen(which: list[str] | None) -> "list[Fault]":
    from predump.faults.spec import FOLDER, FaultError, load_all, load_fault

    if not which or which == ["all"]:
        return load_all()
    chosen = []
    for word in which:
        named = FOLDER / f"{word}.toml"
        path = named if named.is_file() and not Path(word).is_file() else Path(word)
        if not path.is_file() and "/" not in word and not word.endswith(".toml"):
            known = ", ".join(sorted(each.stem for each in FOLDER.glob("*.toml")))
            raise FaultError(f"unknown fault {word!r}; known: {known}, or name a file")
        chosen.append(load_fault(path))
    return chosen


def _containers() -> "DockerLaboratory":
    from livemigration.errors import BadRequest

    try:
        from predump.faults.docker_lab import DockerLaboratory
    except ModuleNotFoundError as error:
        if error.name not in ("docker", "requests"):
            raise
        raise BadRequest(
            "--docker needs the package docker: pip install predump[docker]"
        ) from error
    return DockerLaboratory()


@faults_app.command("run")
def run_command(
    which: Which = None, docker: Docker = False, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Run faults against two nodes on this machine, and judge how each case ends."""
    from predump.faults.suite import run_faults

    def say(trial: "Trial") -> None:
        if as_json:
            typer.echo(json.dumps(asdict(trial)))
            return
        verdict = "as it must" if trial.good else f"WRONG: {'; '.join(trial.problems)}"
        typer.echo(
            f"{trial.fault:28} {trial.mode:9} at {trial.at:10} {trial.outcome:11} "
            f"{trial.wall_s:5.1f} s  {verdict}"
        )

    with explained_errors(_explained, debug=debug):
        faults = _chosen(which)
        lab = _containers() if docker else None
        trials = asyncio.run(run_faults(faults, lab=lab, on_trial=say))
    wrong = sum(not trial.good for trial in trials)
    if not as_json:
        typer.echo(f"{len(trials)} cases, {wrong} wrong")
    raise typer.Exit(FAILED if wrong else 0)


@faults_app.command("soak")
def soak_command(
    minutes: Annotated[float, typer.Option(min=0, help="How long.")] = 10.0,
    seed: Annotated[int | None, typer.Option(help="Decides it all; default: by chance.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show each trial.")] = False,
    debug: Debug = False,
) -> None:
    """Migrate back and forth between two hosts with faults by chance; status 1 on any leak."""
    import secrets

    from predump.faults.soak import soak

    def say(trial: "Trial") -> None:
        if verbose or not trial.good:
            wrong = f"  WRONG: {'; '.join(trial.problems)}" if trial.problems else ""
            typer.echo(f"{trial.fault} at {trial.at}: {trial.outcome}{wrong}")

    with explained_errors(_explained, debug=debug):
        chosen = secrets.randbelow(1 << 31) if seed is None else seed
        typer.echo(f"soak: {minutes:g} minutes, seed {chosen}")
        report = asyncio.run(soak(60 * minutes, chosen, on_trial=say))
    for line in report.lines():
        typer.echo(line)
    raise typer.Exit(FAILED if report.problems else 0)


@faults_app.command("table")
def table_command(debug: Debug = False) -> None:
    """Print fault x point x outcome for each mode as Markdown, as docs/faults.md has it."""
    from predump.faults.spec import load_all
    from predump.faults.table import fault_tables

    with explained_errors(_explained, debug=debug):
        typer.echo(fault_tables(load_all()))


@faults_app.command("list")
def list_command(debug: Debug = False) -> None:
    """List the faults and what they stand for."""
    from predump.faults.spec import load_all

    with explained_errors(_explained, debug=debug):
        for fault in load_all():
            typer.echo(f"{fault.name:24} {fault.spec.about}")
