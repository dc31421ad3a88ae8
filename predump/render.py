"""Results as tables for people, at most 100 columns wide."""

from collections.abc import Iterator
from itertools import islice

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from predump.result import Mismatch, PageRange, PostCopy, Result, RoundResult

WIDTH = 100
"""Tables are laid out for this many columns, on wider terminals too."""

_MOST_ROUNDS_SHOWN = 40
_MOST_MISMATCHES_SHOWN = 12


def show_bytes(count: int) -> str:
    """``23.4 MiB``: four figures at most, for reading, not for computing."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def show_seconds(seconds: float) -> str:
    """``2.31 s``, ``14.2 ms`` or ``87 us``."""
    if seconds == 0:
        return "0"
    if seconds < 0.001:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.2f} s"


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", header_style="bold", pad_edge=False, box=box.SIMPLE_HEAD
    )


def rounds_table(result: Result) -> Table:
    """One line per round: how much was dirty, how much was sent, how long it took."""
    table = new_rounds_table("Rounds")
    rounds = result.rounds
    left_out = max(0, len(rounds) - _MOST_ROUNDS_SHOWN)
    head = _MOST_ROUNDS_SHOWN // 2 if left_out else len(rounds)
    for entry in rounds[:head]:
        add_round(table, entry, last=entry is rounds[-1])
    if left_out:
        table.add_row("...", *[""] * 6, f"{left_out} more rounds")
        for entry in rounds[head + left_out :]:
            add_round(table, entry, last=entry is rounds[-1])
    return table


def new_rounds_table(title: str) -> Table:
    """An empty table with the columns that `add_round` fills."""
    table = _table(title)
    table.add_column("round", no_wrap=True)
    for name in ("soft-dirty", "written", "sent", "zero", "on the wire", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("then", overflow="fold", max_width=32)
    return table


def add_round(table: Table, entry: RoundResult, *, last: bool) -> None:
    """Add one round; ``last`` marks the one that was sent frozen."""
    table.add_row(
        "final" if last else str(entry.round),
        f"{entry.pages_soft_dirty:,}",
        f"{entry.pages_written:,}",
        f"{entry.pages_sent:,}",
        f"{entry.pages_zero:,}",
        show_bytes(entry.bytes_wire),
        show_seconds(entry.duration_s),
        Text(entry.reason),
    )


def downtime_table(result: Result) -> Table:
    """The downtime and its parts, in the order in which they happen."""
    downtime = result.downtime_s
    table = _table("Downtime: from the freeze to runnable at the destination")
    parts = ("freeze", "scan", "dump", "transfer", "restore", "resume", "total")
    for part in parts:
        table.add_column(part, justify="right", style="bold" if part == "total" else "")
    table.add_row(*(show_seconds(getattr(downtime, part)) for part in parts))
    return table


def post_copy_table(post_copy: PostCopy) -> Table:
    """How the pages came that were missing when the task went on."""
    table = _table("Post-copy: from runnable to the last page")
    row = {
        "missing": f"{post_copy.pages_lazy:,}",
        "used": f"{post_copy.working_set:,}",
        "faults": f"{post_copy.faults:,}",
        "remote": f"{post_copy.faults_remote:,}",
        "prefetched": f"{post_copy.pages_prefetched:,}",
        "on the wire": show_bytes(post_copy.bytes_wire),
        "stalled": show_seconds(post_copy.stalled_s),
        "source stays": show_seconds(post_copy.residual_s),
        "slowdown": f"{100 * post_copy.slowdown:.1f} %",
    }
    for name in row:
        table.add_column(name, justify="right")
    table.add_row(*row.values())
    return table


def missing_table(result: Result, post_copy: PostCopy) -> Table:
    """The pages that never came."""
    table = _table(f"Pages that never came: {post_copy.pages_missing:,}")
    for name in ("from", "to"):
        table.add_column(name, no_wrap=True)
    table.add_column("pages", justify="right")
    table.add_column("process", justify="right")
    shown = post_copy.missing[:_MOST_MISMATCHES_SHOWN]
    for part in shown:
        table.add_row(*_range(part, result.page_size), f"{part.pages:,}", str(part.pid))
    rest = post_copy.pages_missing - sum(part.pages for part in shown)
    if rest > 0:
        table.add_row("...", "", f"{rest:,}", "more")
    return table


def mismatch_table(result: Result) -> Table:
    """Where the memory at the destination differs, and when those pages were last sent."""
    shown = result.mismatches[:_MOST_MISMATCHES_SHOWN]
    table = _table(f"Pages that differ at the destination: {result.pages_different:,}")
    table.add_column("from", no_wrap=True)
    table.add_column("to", no_wrap=True)
    table.add_column("pages", justify="right")
    table.add_column("last sent in round", justify="right")
    several = len({mismatch.pid for mismatch in result.mismatches}) > 1
    if several:
        table.add_column("process", justify="right")
    for mismatch in shown:
        round_shown = "never" if mismatch.last_round is None else str(mismatch.last_round)
        row = [*_range(mismatch, result.page_size), f"{mismatch.pages:,}", round_shown]
        table.add_row(*row, *([str(mismatch.pid)] if several else []))
    rest = result.pages_different - sum(mismatch.pages for mismatch in shown)
    if rest > 0:
        table.add_row("...", "", f"{rest:,}", "more")
    return table


def _range(mismatch: Mismatch | PageRange, page_size: int) -> tuple[str, str]:
    """First and last address of the range."""
    start = int(mismatch.start, 16)
    return f"{start:#x}", f"{start + mismatch.pages * page_size - 1:#x}"


def verdict(result: Result) -> Text:
    """One sentence: what became of the task."""
    where = {
        "source": "the source has the task",
        "destination": "the destination has the task",
        "in-doubt": "the source holds the task frozen until it knows what the destination did",
    }[result.owner]
    if result.exit_code == 0:
        went_on = ", and the workload went on as if it had never moved"
        return Text(
            f"Verified: every page is equal{went_on if result.continued_equal else ''}; {where}.",
            style="bold green",
        )
    if result.pages_different or result.mismatches:
        pages = (
            "1 page differs"
            if result.pages_different == 1
            else (f"{result.pages_different:,} pages differ")
        )
        return Text(f"Memory differs: {pages} at the destination; {where}.", style="bold red")
    if result.continued_equal is False:
        text = "Memory differs: after the restore the workload went another way"
        return Text(f"{text}; {where}.", style="bold red")
    reason = f": {' '.join(result.error.split())}" if result.error else ""
    return Text(f"Not migrated{reason}; {where}.", style="bold red")


def facts(result: Result) -> Text:
    """What was migrated and what it cost, in two lines."""
    pages = result.memory_bytes // result.page_size
    clock = "simulated time" if result.clock == "virtual" else "measured time"
    lines = [
        f"{result.name}: {show_bytes(result.memory_bytes)}, {pages:,} pages of {result.page_size} "
        f"bytes, policy {result.policy.kind}, seed {result.seed}, {clock}",
        f"{_times(result)}, {show_bytes(result.bytes_wire)} on the wire, "
        f"{result.pages_lost:,} pages lost, {result.pages_spurious:,} sent for nothing",
    ]
    if result.encoding.kind != "raw":
        lines += _encoding_lines(result)
    if result.hunks_off:
        lines.append(f"without these hunks of the patch: {', '.join(result.hunks_off)}")
    return Text("\n".join(lines))


def _encoding_lines(result: Result) -> Iterator[str]:
    """What pages travelled as, and how deltas found their bases."""
    used = ", ".join(
        f"{entry.encoding} {entry.pages:,} pages in {show_bytes(entry.bytes)}"
        for entry in result.encodings
    )
    yield (
        f"encoding {result.encoding.kind}: {used or 'no pages'}; "
        f"{show_bytes(result.bytes_pages)} of content, {show_seconds(result.encode_s)} to encode"
    )
    cache = result.delta_cache
    if cache.hits or cache.misses:
        yield (
            f"versions sent before: {cache.hits:,} remembered, {cache.misses:,} not; "
            f"{cache.overflows:,} changed too much for a delta"
        )


def _times(result: Result) -> str:
    """Total time and downtime, of which a task that stayed where it was has none."""
    if result.total_time_s == 0:
        return f"frozen for {show_seconds(result.downtime_s.total)}"
    return (
        f"total {show_seconds(result.total_time_s)}, "
        f"downtime {show_seconds(result.downtime_s.total)}"
    )


def result_parts(result: Result) -> Iterator[RenderableType]:
    """The whole report of a result, top to bottom."""
    yield facts(result)
    if result.rounds:
        yield rounds_table(result)
        yield downtime_table(result)
    if result.post_copy is not None:
        yield post_copy_table(result.post_copy)
        if result.post_copy.pages_missing:
            yield missing_table(result, result.post_copy)
    if result.mismatches:
        yield mismatch_table(result)
    yield verdict(result)


def print_result(console: Console, result: Result) -> None:
    """Print the report of ``result``, no wider than `WIDTH`."""
    for part in result_parts(result):
        console.print(part, width=min(console.width, WIDTH), highlight=False)


def make_console(*, stderr: bool = False) -> Console:
    """Standard output or error, `WIDTH` columns wide where that is no terminal (a file, a pipe)."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH)


def first_addresses(result: Result, count: int) -> list[str]:
    """The first ``count`` addresses of pages that differ."""
    addresses = (
        f"{int(mismatch.start, 16) + index * result.page_size:#x}"
        for mismatch in result.mismatches
        for index in range(mismatch.pages)
    )
    return list(islice(addresses, count))
