"""What a running migration says while it runs: a live table on a terminal, plain lines elsewhere.

Events are mappings; those of a migration have ``phase``, ``message`` and, at the end of a round,
``round`` with that round's figures. Events of other shapes are shown as what they are, so that a
newer node never breaks an older command line.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from predump.render import WIDTH, show_bytes, show_seconds

Event = Mapping[str, Any]

_ROUNDS_SHOWN = 15


class Progress(Protocol):
    """Shows events as they come; used as a context manager around a run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def __call__(self, event: Event) -> None: ...


def make_progress(console: Console, *, quiet: bool = False) -> Progress:
    """The right display for ``console``; ``quiet`` shows nothing at all."""
    if quiet:
        return _Silent()
    return LiveProgress(console) if console.is_terminal else LineProgress(console)


def round_of(event: Event) -> Mapping[str, Any] | None:
    """The figures of the round that ``event`` reports, if it reports one."""
    figures = event.get("round")
    if isinstance(figures, Mapping):
        return figures
    if isinstance(figures, int) and any(key in event for key in ("pages_sent", "pages")):
        return event
    return None


def describe(event: Event) -> str:
    """``event`` in one line of plain words."""
    figures = round_of(event)
    if figures is not None:
        return _describe_round(figures)
    message = str(event.get("message") or "")
    phase = str(event.get("phase") or "")
    if message:
        return message
    rest = ", ".join(f"{key} {value}" for key, value in event.items() if key != "phase")
    return ": ".join(part for part in (phase, rest) if part)


def _describe_round(figures: Mapping[str, Any]) -> str:
    number = "final round" if figures.get("final") else f"round {figures.get('round', '?')}"
    parts = [f"{_pages(figures):,} pages"]
    size = _number(figures, "bytes_wire", "bytes")
    if size is not None:
        parts.append(show_bytes(int(size)))
    seconds = _seconds(figures)
    if seconds is not None:
        parts.append(show_seconds(seconds))
    reason = str(figures.get("reason") or "")
    return f"{number}: {', '.join(parts)}{f' ({reason})' if reason else ''}"


def _number(figures: Mapping[str, Any], *keys: str) -> float | None:
    for key in keys:
        value = figures.get(key)
        if isinstance(value, int | float):
            return value
    return None


def _pages(figures: Mapping[str, Any]) -> int:
    return int(_number(figures, "pages_sent", "pages") or 0)


def _seconds(figures: Mapping[str, Any]) -> float | None:
    nanoseconds = _number(figures, "duration_ns")
    if nanoseconds is not None:
        return nanoseconds / 1e9
    return _number(figures, "duration_s")


class _Silent:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def __call__(self, event: Event) -> None:
        return None


class LineProgress(_Silent):
    """One plain line per event, each said once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def __call__(self, event: Event) -> None:
        line = describe(event)
        if line and line != self._last:
            # Not wrapped: logs are searched by line, and whoever reads them has a wide window.
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
            self._last = line


class LiveProgress(_Silent):
    """A table of rounds that grows while the migration runs, with the present phase under it.

    It goes away at the end, when the result's own tables take its place.
    """

    def __init__(self, console: Console) -> None:
        self._rounds: list[Mapping[str, Any]] = []
        self._phase = ""
        self._live = Live(console=console, transient=True, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        figures = round_of(event)
        if figures is not None:
            self._rounds.append(figures)
        else:
            self._phase = describe(event)
        self._live.update(self._picture())

    def _picture(self) -> Table:
        table = Table(
            width=min(self._live.console.width, WIDTH),
            pad_edge=False,
            box=box.SIMPLE_HEAD,
            caption_justify="left",
        )
        table.add_column("round")
        for name in ("sent", "on the wire", "time"):
            table.add_column(name, justify="right")
        table.add_column("then")
        for figures in self._rounds[-_ROUNDS_SHOWN:]:
            seconds = _seconds(figures)
            table.add_row(
                "final" if figures.get("final") else str(figures.get("round", "?")),
                f"{_pages(figures):,}",
                show_bytes(int(_number(figures, "bytes_wire", "bytes") or 0)),
                "" if seconds is None else show_seconds(seconds),
                Text(str(figures.get("reason") or "")),
            )
        table.caption = Text(self._phase)
        return table
