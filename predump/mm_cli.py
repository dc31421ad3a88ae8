"""``predump mm``: run operations on the model, from a script or a prompt, and look at it.

Exit status: 0, or 2 for a script that cannot be read or run.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from predump.command import one_line_errors
from predump.conform_cli import Debug, HunksOff, Sets
from predump.overrides import OverrideError

if TYPE_CHECKING:
    from predump.conform.session import Session

_FRAMES = 1 << 14


class ScriptError(ValueError):
    """A script that cannot be read or run; ``str()`` is one line."""


def mm_command(
    script: Annotated[
        Path | None,
        typer.Argument(metavar="[SCRIPT]", help="Operations, one a line; default: a prompt."),
    ] = None,
    hunks_off: HunksOff = "",
    sets: Sets = None,
    debug: Debug = False,
) -> None:
    """Run operations on the model: results, and what each changed in entries and pagemap."""
    from predump.conform.session import Session
    from predump.conform.settings import SettingError, build_config, parse_settings

    with one_line_errors(ScriptError, SettingError, OverrideError, debug=debug):
        changes = parse_settings(sets or [], hunks_off)
        session = Session(build_config({"frames": _FRAMES, "swap_slots": _FRAMES} | changes))
        try:
            if script is None and sys.stdin.isatty():
                _prompt(session)
            else:
                _run_script(session, script)
        finally:
            session.close()


def _run_script(session: "Session", script: Path | None) -> None:
    from livemigration.operations import OperationError

    name = "standard input" if script is None else str(script)
    for number, line in enumerate(_lines(script), start=1):
        for part in line.partition("#")[0].split(";"):
            if part.strip() in ("quit", "exit"):
                return
            if part.strip():
                typer.echo(f"> {part.strip()}")
            try:
                _say(session.run(part))
            except OperationError as error:
                raise ScriptError(f"{name}, line {number}: {error}") from error
            if session.stuck:
                return


def _lines(script: Path | None) -> Iterable[str]:
    if script is None:
        return sys.stdin
    try:
        return script.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ScriptError(f"{script}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        raise ScriptError(f"{script}: cannot be read: {reason}") from error


def _prompt(session: "Session") -> None:
    import readline  # noqa: F401  gives input() a history

    from livemigration.operations import OperationError

    typer.echo("operations of the script language; help lists them, quit ends")
    while True:
        try:
            line = input("mm> ")
        except EOFError:
            return
        for part in line.split(";"):
            if part.strip() in ("quit", "exit"):
                return
            try:
                _say(session.run(part))
            except OperationError as error:
                typer.echo(str(error))
        if session.stuck:
            typer.echo("a real kernel would hang now; reset makes a new machine")


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)
