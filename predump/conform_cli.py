"""``predump conform``: hold the model against recordings of real kernels, and make them.

Exit status: 0 with no difference, 3 with some, 2 for bad input (a kernel that does not boot, too).
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from predump.command import DefaultGroup, one_line_errors
from predump.exit_status import DIFFERS
from predump.overrides import OverrideError

if TYPE_CHECKING:
    from predump.conform.boot import GuestConfig

conform_app = typer.Typer(
    cls=DefaultGroup.of("check"),
    help="Hold the model against real kernels: predump conform TRACE... (see check --help).",
)

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the model; repeatable."),
]
HunksOff = Annotated[
    str,
    typer.Option("--hunks-off", metavar="NAME[,NAME]", help="Take hunks of the patch away."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


class PatternError(ValueError):
    """A regular expression that is none; ``str()`` is one line."""


@conform_app.command("check")
def check_command(
    traces: Annotated[
        list[Path], typer.Argument(metavar="TRACE...", help="Recordings: .jsonl or .jsonl.gz")
    ],
    hunks_off: HunksOff = "",
    sets: Sets = None,
    only: Annotated[
        str, typer.Option("--only", metavar="REGEX", help="Only scenarios whose name matches.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Replay recordings in the model and report each difference.

    The trace's own architecture and kernel choose the model's profile.
    """
    from predump.conform import report
    from predump.conform.check import check_file
    from predump.conform.settings import SettingError, parse_settings
    from predump.conform.trace import TraceError

    bad_input = (TraceError, SettingError, OverrideError, PatternError)
    with one_line_errors(*bad_input, debug=debug):
        changes = parse_settings(sets or [], hunks_off)
        pattern = _pattern(only)
        reports = []
        for path in traces:
            checked = check_file(path, changes, only=pattern, given=traces)
            reports.append(checked)
            if not as_json:
                typer.echo("\n".join(report.file_lines(checked)))
        if as_json:
            typer.echo(json.dumps(report.as_json(reports)))
        raise typer.Exit(DIFFERS if any(checked.differences for checked in reports) else 0)


def _pattern(only: str) -> re.Pattern[str] | None:
    if not only:
        return None
    try:
        return re.compile(only)
    except re.error as error:
        raise PatternError(f"--only {only!r}: not a regular expression: {error}") from error


Kernel = Annotated[
    Path, typer.Option("--kernel", metavar="IMAGE", help="The kernel image to boot in QEMU.")
]
ArchOption = Annotated[str, typer.Option("--arch", help="x86_64 or arm64.")]
Modules = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Its lib/modules/VERSION; default: found beside the image's boot/."
    ),
]
Accelerator = Annotated[
    str, typer.Option("--accel", help="kvm or tcg (emulation); default: kvm where it works.")
]
Seed = Annotated[int, typer.Option(min=0, help="Decides every random sequence.")]
HangSeconds = Annotated[
    int, typer.Option("--hang-after", min=1, metavar="SECONDS", help="When an operation hangs.")
]


@conform_app.command("record")
def record_command(
    kernel: Kernel,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="TRACE", help="Written: .jsonl or .jsonl.gz")
    ] = Path("trace.jsonl.gz"),
    script: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Scenarios to record: `name X`, operations, `snap`."),
    ] = None,
    random: Annotated[
        int, typer.Option("--random", min=0, help="Random scenarios to record.")
    ] = 50,
    seed: Seed = 1,
    arch: ArchOption = "x86_64",
    modules: Modules = None,
    accelerator: Accelerator = "",
    hang_seconds: HangSeconds = 20,
    debug: Debug = False,
) -> None:
    """Boot a kernel in QEMU, run operations there, and write what it showed as a trace."""
    from predump.conform.guest import Guest
    from predump.conform.initramfs import GuestError
    from predump.conform.operations import Vocabulary
    from predump.conform.record import random_requests, read_script, usable_on
    from predump.conform.record import record as record_on
    from predump.conform.trace import TraceError

    with one_line_errors(GuestError, TraceError, OutputError, debug=debug):
        _check_output(output)
        requests = read_script(script) if script else []
        config = _guest_config(kernel, arch, modules, accelerator, hang_seconds)
        with _status() as tell, Guest(config) as guest:
            assert guest.info is not None
            vocabulary = usable_on(guest.info, Vocabulary.everything())
            requests += random_requests(seed, random, vocabulary)
            count = record_on(guest, requests, output, tell)
        info = guest.info
        scenarios = f"{count} scenario{'' if count == 1 else 's'}"
        made = f"{info.arch} {info.kernel}, {guest.accelerator}"
        typer.echo(f"{output}: {scenarios} recorded on {made}{_no_swap(info.swap)}")


@conform_app.command("fuzz")
def fuzz_command(
    kernel: Kernel,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long to run.")] = 5.0,
    sequences: Annotated[
        int, typer.Option(min=1, metavar="N", help="End after so many sequences.")
    ] = 1 << 40,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="TRACE", help="Gets the shortest that differs."),
    ] = None,
    seed: Seed = 1,
    arch: ArchOption = "x86_64",
    modules: Modules = None,
    accelerator: Accelerator = "",
    hang_seconds: HangSeconds = 20,
    hunks_off: HunksOff = "",
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Run random operations on a kernel and on the model; shrink the first difference."""
    from predump.conform import report
    from predump.conform.fuzz import fuzz
    from predump.conform.guest import Guest
    from predump.conform.initramfs import GuestError
    from predump.conform.record import write_trace
    from predump.conform.settings import SettingError, parse_settings

    bad_input = (GuestError, SettingError, OverrideError, OutputError)
    with one_line_errors(*bad_input, debug=debug):
        if output is not None:
            _check_output(output)
        changes = parse_settings(sets or [], hunks_off)
        config = _guest_config(kernel, arch, modules, accelerator, hang_seconds)
        with _status() as tell, Guest(config) as guest:
            found = fuzz(
                guest,
                changes,
                seed=seed,
                seconds=60 * minutes,
                limit=sequences,
                on_sequence=lambda now: tell(f"{now.sequences:,} sequences"),
            )
        assert guest.info is not None
        if output is not None and found.record:
            write_trace(output, [found.record])
        if as_json:
            typer.echo(json.dumps(report.fuzz_json(found, guest.info)))
        else:
            typer.echo("\n".join(report.fuzz_lines(found, guest.info)))
        raise typer.Exit(DIFFERS if found.differences or found.unrepeated else 0)


class OutputError(ValueError):
    """A file that cannot be written; ``str()`` is one line."""


def _check_output(path: Path) -> None:
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise OutputError(f"--output {path}: a trace's name ends in .jsonl or .jsonl.gz")
    if not path.parent.is_dir():
        raise OutputError(f"--output {path}: there is no directory {path.parent}; make it first")


def _guest_config(
    kernel: Path, arch: str, modules: Path | None, accelerator: str, hang_seconds: int
) -> "GuestConfig":
    from predump.conform.boot import GuestConfig
    from predump.conform.initramfs import GuestError

    if accelerator not in ("", "kvm", "tcg"):
        raise GuestError(f"--accel {accelerator}: must be kvm or tcg")
    return GuestConfig(kernel, arch, modules, accelerator, hang_seconds=hang_seconds)


def _no_swap(swap: bool) -> str:
    return "" if swap else "; no swap there (its zram module was not found)"


@contextmanager
def _status() -> "Iterator[Callable[[str], None]]":
    """A line on the terminal that says what is going on; nothing where there is no terminal."""
    from predump.render import make_console

    console = make_console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("booting") as status:
        yield status.update
