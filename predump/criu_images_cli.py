"""``predump criu export|import|show|verify|diff|dedup``: image directories on the command line.

Exit status: 0; 3 if pages are missing or differ; 2 for images or files that cannot be used.
"""

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from livemigration.errors import BadRequest
from predump.command import fail, one_line_errors
from predump.exit_status import DIFFERS, FAILED
from predump.render import make_console, show_bytes

if TYPE_CHECKING:
    from predump.criu_export import RoundDirectory

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A directory of CRIU images.")]
Also = Annotated[
    Path | None,
    typer.Option(
        "--also", metavar="DIR", help="The page server's directory, after a dump through one."
    ),
]
PageSize = Annotated[
    int | None,
    typer.Option(
        "--page-size",
        metavar="BYTES",
        help="Where no image tells it: 4096, 16384 or 65536; default: found out, else 4096.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")]
FlavourOption = Annotated[
    str,
    typer.Option(
        "--flavour",
        metavar="old|new|both",
        help="Pagemaps for CRIU up to 4.1.1, from 4.2, or for all of them.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


class CriuInputError(ValueError):
    """A command line that cannot be served; ``str()`` is one line."""


def export_command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A scenario file, or the result (JSON) of a run.")
    ],
    directory: Annotated[
        Path, typer.Option("-D", metavar="DIR", help="New: gets DIR/1, DIR/2 ... for the rounds.")
    ],
    flavour: FlavourOption = "both",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a run in virtual time and write each of its rounds as an image directory.

    Pre-dumps have what `criu pre-dump` leaves, each with the one before as its parent; the last
    directory is a full dump.
    """
    from predump.criu_export import ExportError, export_run, load_run
    from predump.scenario import ScenarioError

    with one_line_errors(CriuInputError, ExportError, ScenarioError, BadRequest, debug=debug):
        kind = _flavour(flavour)
        scenario, expected = load_run(run)
        result, directories = asyncio.run(
            export_run(scenario, directory, expected=expected, flavour=kind)
        )
        if not directories:
            fail(
                f"{run}: nothing is exported: "
                + (result.error or f"{result.pages_different} pages differ at the destination"),
                result.exit_code or FAILED,
            )
        if as_json:
            typer.echo(json.dumps([_round_json(written) for written in directories], indent=2))
        else:
            _print_rounds(directories)
        raise typer.Exit(result.exit_code)


def _round_json(written: "RoundDirectory") -> dict[str, Any]:
    private, shared = written.exported.private, written.exported.shared
    return {
        "directory": str(written.folder),
        "round": written.record.round,
        "pages_sent": written.record.pages_sent,
        "pages_present": private.present + shared.present,
        "pages_in_parent": private.parent + shared.parent,
        "pages_lazy": private.lazy,
        "reason": written.record.reason,
    }


def _print_rounds(directories: "list[RoundDirectory]") -> None:
    from predump.criu_tables import new_table

    table = new_table("Written", "directory", "round", "pages here", "in the parent", "why")
    for written in directories:
        made = _round_json(written)
        table.add_row(
            made["directory"],
            str(made["round"]),
            f"{made['pages_present']}",
            f"{made['pages_in_parent']}",
            made["reason"],
        )
    make_console().print(table)


def import_command(
    directory: Directory,
    output: Annotated[
        str, typer.Option("-o", metavar="FILE|-", help="The scenario file to write; - prints it.")
    ] = "-",
    workload: Annotated[
        str, typer.Option(metavar="KIND", help="What the task does; idle leaves its memory alone.")
    ] = "idle",
    debug: Debug = False,
) -> None:
    """Make a scenario whose task is the one in a directory."""
    from predump.criu_import import scenario_text
    from predump.scenario import ScenarioError

    with one_line_errors(CriuInputError, ScenarioError, BadRequest, debug=debug):
        text = scenario_text(directory, workload)
        if output == "-":
            typer.echo(text, nl=False)
            return
        try:
            with Path(output).open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError as error:
            raise CriuInputError(f"-o {output}: is there already; name a new file") from error
        except OSError as error:
            fail(f"{output}: cannot be written: {error.strerror}", FAILED)


def show_command(
    directory: Directory,
    also: Also = None,
    page_size: PageSize = None,
    show_all: Annotated[bool, typer.Option("--all", help="All mappings, however many.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what is in a directory: processes, mappings, pages and where their bytes are."""
    from livemigration.criu.survey import survey
    from predump.criu_tables import survey_json, survey_tables

    with one_line_errors(CriuInputError, BadRequest, debug=debug):
        found = survey(directory, also, _page_size(page_size))
        if as_json:
            typer.echo(json.dumps(survey_json(found), indent=2))
            return
        console = make_console()
        for part in survey_tables(found, most=None if show_all else 40):
            console.print(part, highlight=False)


def verify_command(
    directory: Directory,
    also: Also = None,
    page_size: PageSize = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check that every page's bytes are there, along the whole chain of parents.

    Exit status 3 if not, with the addresses.
    """
    from livemigration.criu.survey import survey
    from predump.criu_tables import trouble_json, trouble_line

    with one_line_errors(CriuInputError, BadRequest, debug=debug):
        found = survey(directory, also, _page_size(page_size))
        wrong = found.everything_wrong()
        resolved = sum(pages.resolved for pages in found.page_sets)
        if as_json:
            made = {
                "directory": str(directory),
                "kind": found.kind,
                "complete": not wrong,
                "pages": resolved,
                "chain": [str(folder) for folder in found.chain],
                "troubles": [trouble_json(trouble, found.page_size) for trouble in wrong],
            }
            typer.echo(json.dumps(made, indent=2))
        elif wrong:
            for trouble in wrong:
                typer.echo(trouble_line(trouble, found.page_size))
        else:
            length = len(found.chain)
            where = "one directory" if length == 1 else f"a chain of {length} directories"
            size = show_bytes(resolved * found.page_size)
            typer.echo(f"{directory}: {found.kind}: {resolved} pages ({size}), all in {where}")
        raise typer.Exit(DIFFERS if wrong else 0)


def diff_command(
    first: Directory,
    second: Annotated[Path, typer.Argument(metavar="DIR2", help="Another one.")],
    page_size: PageSize = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show in which mappings and pages two directories differ. Exit status 3 if they do."""
    from livemigration.criu.compare import compare
    from predump.criu_tables import difference_json, difference_lines

    with one_line_errors(CriuInputError, BadRequest, debug=debug):
        found = compare(first, second, _page_size(page_size))
        if as_json:
            typer.echo(json.dumps(difference_json(found), indent=2))
        else:
            for line in difference_lines(found):
                typer.echo(line)
        raise typer.Exit(0 if found.same else DIFFERS)


def dedup_command(
    directory: Directory,
    chain: Annotated[
        bool, typer.Option("--chain", help="Also what parents have, from their parents.")
    ] = False,
    page_size: PageSize = None,
    debug: Debug = False,
) -> None:
    """Give back the room of page bytes in the parents that the directory has itself."""
    from livemigration.criu.dedup import dedup
    from livemigration.criu.survey import survey

    with one_line_errors(CriuInputError, BadRequest, debug=debug):
        size = survey(directory, page_size=_page_size(page_size)).page_size
        for done in dedup(directory, size, chain=chain):
            before, after = show_bytes(done.bytes_before), show_bytes(done.bytes_after)
            typer.echo(f"{done.file}: {done.pages} pages given back, {before} -> {after}")


def _page_size(size: int | None) -> int | None:
    if size is not None and size not in (4096, 16384, 65536):
        raise CriuInputError(f"--page-size {size}: write 4096, 16384 or 65536")
    return size


def _flavour(text: str) -> Any:
    from livemigration.criu.images import Flavour

    try:
        return Flavour(text)
    except ValueError as error:
        raise CriuInputError(f"--flavour {text}: write old, new or both") from error
