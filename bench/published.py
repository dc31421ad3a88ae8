"""Published results and theory beside ours: ``python -m bench.published`` prints the tables.

Each result has a grid in ``scenarios/anchors/`` whose comments say where its figures come from and
which of them were fitted. Times are virtual, so the tables are the same on every machine;
docs/accuracy.md has them, and a test makes them again and holds each figure to its tolerance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from livemigration.theory import constant_rate, random_writes
from livemigration.units import parse_rate
from predump.inprocess import migrate_in_process
from predump.result import Result, RoundResult
from predump.sweep import load_grid

FOLDER = Path(__file__).resolve().parents[1] / "scenarios" / "anchors"
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Figure:
    """One published figure and ours. `within`: the share by which they may differ; None: not held,
    since the model does not have what made it.
    """

    case: str
    what: str
    unit: str
    published: float
    ours: float
    within: float | None

    @property
    def off(self) -> float:
        """How far ours is from theirs, as a share of theirs."""
        return self.ours / self.published - 1

    @property
    def held(self) -> bool:
        """Whether it is as near as it has to be."""
        return self.within is None or abs(self.off) <= self.within


@dataclass(frozen=True, slots=True)
class Published:
    """A published result: its grid in `FOLDER`, and what to make of the results of its points."""

    name: str
    title: str
    figures: Callable[[Sequence[Result]], list[Figure]]


def _redis_overwritten(results: Sequence[Result]) -> list[Figure]:
    theirs = {1: 483, 10: 480, 25: 529, 50: 591, 75: 644, 100: 690}
    return [
        Figure(
            f"{share} % of the keys overwritten",
            "downtime",
            "ms",
            milliseconds,
            1e3 * result.downtime_s.total,
            0.07,
        )
        for (share, milliseconds), result in zip(theirs.items(), results, strict=True)
    ]


def _redis_keys(results: Sequence[Result]) -> list[Figure]:
    theirs = {"10⁴": 270, "10⁵": 303, "10⁶": 334, "10⁷": 744}
    return [
        Figure(
            f"{keys} keys",
            "checkpoint",
            "ms",
            milliseconds,
            1e3 * result.downtime_s.total,
            0.14,
        )
        for (keys, milliseconds), result in zip(theirs.items(), results, strict=True)
    ]


def _cloud_hypervisor(results: Sequence[Result]) -> list[Figure]:
    scale = 256
    log = ((6144, 3.09), (5418, 2.97), (5418, 2.92), (5428, 3.02))  # MiB, seconds of sending
    overhead_s = 0.057
    slower, faster = results
    figures = []
    for number, (mebibytes, seconds) in enumerate(log):
        entry = slower.rounds[number]
        case = f"round {number}"
        figures += [
            Figure(case, "sent", "MiB", mebibytes, _mebibytes(entry, slower, scale), 0.01),
            Figure(case, "sending", "s", seconds, entry.duration_s - overhead_s, 0.09),
        ]
    transfer = slower.downtime_s.transfer
    figures.append(Figure("final round", "expected downtime", "s", 2.926, transfer, 0.03))
    again = _mebibytes(faster.rounds[3], faster, scale)
    figures.append(Figure("round 3, twice the writes", "sent", "MiB", 5428, again, 0.01))
    return figures


def _mebibytes(entry: RoundResult, result: Result, scale: int) -> float:
    """The pages of a round in MiB, as they would be at the real size."""
    return entry.pages_sent * result.page_size * scale / MIB


def _kubevirt(results: Sequence[Result]) -> list[Figure]:
    scale = 128
    theirs = (("rising limit", 28, 9694, 92.2, 0.611), ("300 ms", 69, 11862, 112.4, 0.451))
    figures = []
    for (case, rounds, mebibytes, total, downtime), result in zip(theirs, results, strict=True):
        tuned = case == "rising limit"
        sent = sum(_mebibytes(entry, result, scale) for entry in result.rounds)
        if tuned:  # the other one is told how many to make
            figures.append(Figure(case, "rounds", "", rounds, len(result.rounds), 0.05))
        figures += [
            Figure(case, "sent", "MiB", mebibytes, sent, 0.02),
            Figure(case, "total time", "s", total, result.total_time_s, 0.02),
            Figure(
                case, "downtime", "s", downtime, result.downtime_s.total, 0.03 if tuned else None
            ),
        ]
    return figures


def _qemu_limit(results: Sequence[Result]) -> list[Figure]:
    figures = []
    for result in results:
        assert result.policy.kind == "downtime-limit"
        limit = result.policy.downtime_limit_ns / 1e9
        last = result.rounds[-2]
        bandwidth = last.bytes_wire / last.duration_s
        fitted = int(result.rounds[-2].reason.split()[0])
        expected = fitted * result.page_size / bandwidth
        transfer = result.downtime_s.transfer
        case = f"limit {1e3 * limit:g} ms"
        figures.append(
            Figure(case, "sending, against expected", "ms", 1e3 * expected, 1e3 * transfer, 0.05)
        )
    return figures


def _closed_form(results: Sequence[Result]) -> list[Figure]:
    link, figures = 125e6, []
    for number, result in enumerate(results):
        assert result.scenario is not None
        workload = result.scenario["task"]["workload"]
        rate = float(parse_rate(workload["rate"], result.page_size))
        pages = result.memory_bytes // result.page_size
        if workload["kind"] == "sequential":
            dirtied = rate * result.page_size
            model = constant_rate(result.memory_bytes, dirtied, link, 4)
        else:
            model = random_writes(pages, result.page_size, rate, link, 4)
        case = f"{workload['kind']}, {(0.1, 0.3, 0.5, 0.7, 0.9)[number % 5]}"
        within = 0.02 if workload["kind"] == "sequential" else 0.03
        sent = result.bytes_wire / MIB
        figures += [
            Figure(case, "sent", "MiB", model.total_bytes / MIB, sent, within),
            Figure(case, "total time", "s", model.total_s, result.total_time_s, within),
        ]
        if model.round_bytes[-1] > 50 * result.page_size:  # a few pages have no percent
            downtime = result.downtime_s.total
            figures.append(Figure(case, "downtime", "s", model.downtime_s, downtime, within))
    return figures


PUBLISHED = (
    Published("redis-overwritten", "CRIU, Redis: downtime by keys overwritten", _redis_overwritten),
    Published("redis-keys", "CRIU, Redis: checkpoint by number of keys", _redis_keys),
    Published("cloud-hypervisor", "Cloud Hypervisor: the plateau of rounds", _cloud_hypervisor),
    Published("kubevirt", "KubeVirt: a rising downtime limit", _kubevirt),
    Published("qemu-limit", "QEMU: the expected downtime, by its rule", _qemu_limit),
    Published("closed-form", "Theory: the closed form, by dirty rate / bandwidth", _closed_form),
)


def measure(published: Published) -> list[Figure]:
    """Runs the grid of a published result within this process."""
    grid = load_grid(FOLDER / f"{published.name}.toml")
    results = [asyncio.run(migrate_in_process(point.scenario)) for point in grid.points()]
    for result in results:
        assert result.verified, result.error
    return published.figures(results)


def table(published: Published, figures: Sequence[Figure]) -> str:
    """The figures as Markdown, theirs beside ours."""
    lines = [
        f"**{published.title}** (`scenarios/anchors/{published.name}.toml`)",
        "",
        "| case | | theirs | Predump | difference | held within |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for figure in figures:
        within = f"{100 * figure.within:g} %" if figure.within is not None else "not held"
        cells = (
            figure.case,
            figure.what,
            _shown(figure.published, figure.unit),
            _shown(figure.ours, figure.unit),
            f"{100 * figure.off:+.1f} %".replace("-0.0", "+0.0"),
            within,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(value: float, unit: str) -> str:
    if unit == "s" and value < 0.1:
        return f"{1e3 * value:.4g} ms"
    text = f"{value:,.0f}" if value >= 1000 or unit in ("ms", "") else f"{value:.4g}"
    return f"{text} {unit}".strip()


def main() -> int:
    """Prints all tables; 1 if a figure is further off than it may be."""
    held = True
    for published in PUBLISHED:
        figures = measure(published)
        held = held and all(figure.held for figure in figures)
        print(table(published, figures), end="\n\n")
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
