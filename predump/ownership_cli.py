"""``predump ownership``: search everything that can happen when a task changes hands.

Exit status: 0 if no rule can be broken, 3 with the shortest way to break one.
"""

import time
from typing import Annotated

import typer

from predump.command import one_line_errors
from predump.exit_status import DIFFERS

Attempts = Annotated[int, typer.Option(min=1, max=3, help="Migrations, one after the other.")]
Crashes = Annotated[
    int, typer.Option(min=0, max=3, help="How often the destination's process may die.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


def ownership_command(attempts: Attempts = 2, crashes: Crashes = 2, debug: Debug = False) -> None:
    """Search every state of the hand-over: never two owners, never none, nothing lost."""
    from livemigration.ownership_model import Bounds, Model
    from livemigration.ownership_search import search

    with one_line_errors(debug=debug):
        began = time.monotonic()
        found = search(Model(bounds=Bounds(attempts=attempts, destination_crashes=crashes)))
        took = time.monotonic() - began
    typer.echo(
        f"{found.states} states, {found.steps} steps between them, at most {found.deepest} deep "
        f"({took:.1f} s)"
    )
    if found.counterexample is not None:
        typer.echo(str(found.counterexample))
        raise typer.Exit(DIFFERS)
    typer.echo("never two owners, never none for ever, and what was taken over is never lost")
