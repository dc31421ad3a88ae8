"""``predump workload``: record the stores of a real program, look at a recording, replay it.

Exit status: 2 for bad input, 1 if something failed (the recorded program, too; its trace is kept).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from livemigration.units import format_size, parse_size, parse_time_ns
from predump.command import fail
from predump.exit_status import BAD_INPUT, FAILED

if TYPE_CHECKING:
    from livemigration.workload.intervals import Interval
    from livemigration.workload.record import Recording
    from livemigration.workload.summary import TraceSummary
    from livemigration.workload.trace import TraceFile

_MOST_INTERVALS = 100_000
_SLACK_PAGES = 1024
_MOST_INSTRUCTIONS = 10**15

workload_app = typer.Typer(
    help="Record a program's stores, look at a recording, replay it.", no_args_is_help=True
)

TracePath = Annotated[Path, typer.Argument(metavar="FILE", help="A trace file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


@workload_app.command(
    "record", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False}
)
def record_command(
    command: Annotated[
        list[str], typer.Argument(metavar="-- CMD...", help="The program and its arguments.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Default: PROGRAM.trace.msgpack."),
    ] = None,
    slice_instructions: Annotated[
        int,
        typer.Option(
            "--slice",
            min=1,
            max=_MOST_INSTRUCTIONS,
            metavar="N",
            help="Stores to a page within N instructions are one.",
        ),
    ] = 100_000,
    instructions_per_second: Annotated[
        int,
        typer.Option(
            "--instructions-per-second",
            min=1,
            max=_MOST_INSTRUCTIONS,
            metavar="N",
            help="How fast the program is taken to run, for times.",
        ),
    ] = 1_000_000_000,
    as_json: AsJson = False,
) -> None:
    """Run CMD under valgrind's lackey and write the pages that it stores to into a trace file."""
    from livemigration.workload.record import record

    target = output or Path(f"{Path(command[0]).name}.trace.msgpack")
    with _errors():
        # The program's own output must not mix with our JSON.
        recording = record(
            command,
            target,
            slice_instructions=slice_instructions,
            instructions_per_second=instructions_per_second,
            stdout=sys.stderr if as_json else None,
        )
    if as_json:
        _print_json({"schema": "predump.workload.record/1", **_recorded(recording, target)})
    else:
        _console(stderr=True).print(_recorded_line(recording, target), soft_wrap=True)
    _report_command(recording)


@workload_app.command("show")
def show_command(
    file: TracePath,
    window: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Window for distinct pages; default 1s, or about a tenth."
        ),
    ] = "",
    top: Annotated[int, typer.Option(min=0, help="How many of the hottest pages.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show what a trace holds: pages, stores, duration, dirty rate, hottest pages."""
    from livemigration.workload.summary import summarize
    from livemigration.workload.trace import TraceFile

    with _errors():
        window_ns = _time("--window", window) if window else 0
        trace = TraceFile(file)
        summary = summarize(trace, window_ns, top)
    if as_json:
        _print_json({"schema": "predump.workload.show/1", **_shown(trace, summary)})
    else:
        _show(trace, summary)


@workload_app.command("replay")
def replay_command(
    file: TracePath,
    interval: Annotated[
        str,
        typer.Option(metavar="TIME", help="How often to look; default about a tenth."),
    ] = "",
    duration: Annotated[
        str,
        typer.Option("--for", metavar="TIME", help="How long; default the trace's own duration."),
    ] = "",
    speed: Annotated[
        float, typer.Option(min=1e-6, max=1e6, help="Faster (2.0) or slower (0.5) than recorded.")
    ] = 1.0,
    page_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Bytes per page: 4096, 16384 or 65536.")
    ] = "4096",
    dbm: Annotated[bool, typer.Option(help="Hardware management of the dirty state.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="What is stored depends on it.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Replay a trace against the memory model, without a migration.

    For each interval: stores, page faults, and pages that are soft-dirty at its end.
    """
    with _errors():
        intervals, meta = _replay(file, interval, duration, speed, page_size, dbm, seed)
    if as_json:
        _print_json(
            {
                "schema": "predump.workload.replay/1",
                **meta,
                "intervals": [_interval(each) for each in intervals],
            }
        )
    else:
        _show_intervals(file, intervals, meta)


def _replay(
    file: Path, interval: str, duration: str, speed: float, page_size: str, dbm: bool, seed: int
) -> tuple[list[Interval], dict[str, Any]]:
    """Replay as asked; the intervals, and what holds for all of them."""
    from livemigration.task import Task
    from livemigration.workload import build_workload
    from livemigration.workload.intervals import run_in_intervals
    from livemigration.workload.spec import TraceSpec
    from livemigration.workload.summary import duration_ns, round_part
    from livemigration.workload.trace import TraceFile
    from mm_model import Machine, ModelConfig

    bytes_per_page = parse_size(page_size)
    if bytes_per_page not in (4096, 16384, 65536):
        raise ValueError(f"--page-size = {page_size}: it must be 4096, 16384 or 65536")
    trace = TraceFile(file)
    length_ns = _time("--for", duration) if duration else int(duration_ns(trace) / speed) + 1
    step_ns = _time("--interval", interval) if interval else round_part(length_ns)
    if length_ns // step_ns > _MOST_INTERVALS:
        raise ValueError(
            f"--interval = {interval} cuts the run into more than {_MOST_INTERVALS} intervals; "
            f"use a longer one"
        )
    workload = build_workload(
        TraceSpec.model_validate({"kind": "trace", "file": str(file.absolute()), "speed": speed}),
        seed=seed,
        memory_bytes=max(1, trace.footer.pages) * bytes_per_page,
        page_size=bytes_per_page,
    )
    config = ModelConfig(
        page_size=bytes_per_page, frames=workload.peak_pages + _SLACK_PAGES, dbm=dbm
    )
    task = Task(Machine(config))
    try:
        workload.setup(task, populate=True)
        intervals = list(run_in_intervals(workload, task, step_ns, length_ns))
    finally:
        task.release()
    meta = {
        "file": str(file),
        "page_size": bytes_per_page,
        "dbm": dbm,
        "seed": seed,
        "speed": speed,
        "pages": workload.peak_pages,
    }
    return intervals, meta


def _time(option: str, text: str) -> int:
    """A time from the command line, in nanoseconds, more than none."""
    try:
        nanoseconds = parse_time_ns(text)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
    if nanoseconds == 0:
        raise ValueError(f"{option} = {text}: it must be more than no time")
    return nanoseconds


@contextmanager
def _errors() -> Iterator[None]:
    """Bad input is one line and exit status 2."""
    try:
        yield
    except ValueError as error:
        fail(str(error), BAD_INPUT)


def _console(*, stderr: bool = False) -> Console:
    """A console that prints file names and numbers as they are."""
    return Console(stderr=stderr, highlight=False, emoji=False, markup=False)


def _print_json(item: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(item, indent=2))


# -- record


def _recorded(recording: Recording, target: Path) -> dict[str, Any]:
    from livemigration.workload.summary import length_ns

    header, footer = recording.header, recording.footer
    return {
        "file": str(target),
        "file_bytes": target.stat().st_size,
        **asdict(header),
        **asdict(footer),
        "duration_s": length_ns(header, footer) / 1e9,
    }


def _recorded_line(recording: Recording, target: Path) -> str:
    from livemigration.workload.summary import length_ns

    header, footer = recording.header, recording.footer
    milliseconds = length_ns(header, footer) / 1e6
    return (
        f"{target}: {footer.stores} stores to {footer.pages} pages in {footer.instructions} "
        f"instructions ({milliseconds:.3f} ms at {header.instructions_per_second} per second), "
        f"{footer.records} records, {format_size(target.stat().st_size)}"
    )


def _report_command(recording: Recording) -> None:
    """Say how the program ended, if not well, and exit accordingly."""
    footer, name = recording.footer, recording.header.command[0]
    if not footer.complete:
        fail(f"stopped before {name} ended; the trace holds what it did until then", FAILED)
    if footer.exit_code < 0:
        fail(f"{name} was ended by signal {-footer.exit_code}; the trace was kept", FAILED)
    if footer.exit_code:
        fail(f"{name} ended with exit status {footer.exit_code}; the trace was kept", FAILED)


# -- show


def _shown(trace: TraceFile, summary: TraceSummary) -> dict[str, Any]:
    return {
        "file": str(trace.path),
        "file_bytes": trace.path.stat().st_size,
        **asdict(trace.header),
        **asdict(trace.footer),
        "duration_s": summary.duration_ns / 1e9,
        "window_s": summary.window_ns / 1e9,
        "pages_per_window": list(summary.pages_per_window),
        "pages_per_second_mean": summary.mean_rate,
        "pages_per_second_peak": summary.peak_rate,
        "hottest": [asdict(page) for page in summary.hottest],
    }


def _show(trace: TraceFile, summary: TraceSummary) -> None:
    header, footer = trace.header, trace.footer
    window = f"{summary.window_ns / 1e6:g} ms windows"
    facts = Table(title=str(trace.path), show_header=False)
    for name, value in (
        ("command", " ".join(header.command)),
        ("recorded by", header.created_by),
        ("exit status", str(footer.exit_code) + ("" if footer.complete else " (stopped early)")),
        ("instructions", f"{footer.instructions:,}"),
        (
            "duration",
            f"{summary.duration_ns / 1e6:,.3f} ms at {header.instructions_per_second:,}/s",
        ),
        ("pages", f"{footer.pages:,} of {format_size(header.page_size)}"),
        ("stores", f"{footer.stores:,} in {footer.records:,} records"),
        ("pages/s, mean", f"{summary.mean_rate:,.0f} distinct ({window})"),
        ("pages/s, peak", f"{summary.peak_rate:,.0f} distinct ({window})"),
    ):
        facts.add_row(name, value)
    console = _console()
    console.print(facts)
    if summary.hottest:
        hottest = Table(title="hottest pages")
        for name in ("address", "stores", "share", "records"):
            hottest.add_column(name, justify="right")
        for page in summary.hottest:
            share = f"{100 * page.stores / footer.stores:.1f} %"
            hottest.add_row(f"{page.address:#x}", f"{page.stores:,}", share, f"{page.records:,}")
        console.print(hottest)


# -- replay


def _interval(interval: Interval) -> dict[str, Any]:
    return {
        "begin_s": interval.begin_ns / 1e9,
        "end_s": interval.end_ns / 1e9,
        "ops": interval.ops,
        "stores": interval.stores,
        "bytes": interval.bytes,
        "faults": interval.faults,
        "soft_dirty_pages": interval.soft_dirty_pages,
    }


def _show_intervals(file: Path, intervals: list[Interval], meta: Mapping[str, Any]) -> None:
    dbm = "DBM" if meta["dbm"] else "no DBM"
    table = Table(title=f"{file}: {meta['pages']} pages of {meta['page_size']} bytes, {dbm}")
    for name in ("until", "stores", "bytes", "faults", "soft-dirty pages"):
        table.add_column(name, justify="right")
    for each in intervals:
        table.add_row(
            f"{each.end_ns / 1e6:,.3f} ms",
            f"{each.stores:,}",
            f"{each.bytes:,}",
            f"{each.faults:,}",
            f"{each.soft_dirty_pages:,}",
        )
    table.add_section()
    table.add_row(
        "all",
        f"{sum(each.stores for each in intervals):,}",
        f"{sum(each.bytes for each in intervals):,}",
        f"{sum(each.faults for each in intervals):,}",
        "",
    )
    _console().print(table)
