"""How predictions are held against measurements: errors, typical runs, and the tables."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest

from livemigration.machine_file import load_machine
from predump.accuracy import measure as measuring
from predump.accuracy.cases import Case, Grid, make_cases
from predump.accuracy.compare import Pair, summarize
from predump.accuracy.measure import Found
from predump.accuracy.report import to_markdown
from predump.result import Result
from predump.runner import Hosts, RunError
from predump.scenario import ScenarioError
from tests.unit.predump.make_result import DOWNTIME, FINAL, ROUND, lossy_result, result_of

GRID = Grid(["8MiB"], ["100 pages/s", "1MiB/s"], ["1Gbit/s"])
KVM = load_machine("kvm")


def case() -> Case:
    return make_cases(GRID, KVM)[0]


def run(downtime: float, *pages: int, total: float = 2.0) -> Result:
    """A result with this downtime and pages by round."""
    rounds = [ROUND | {"round": k, "pages_sent": n} for k, n in enumerate(pages)]
    return result_of(
        rounds=(*rounds[:-1], FINAL | rounds[-1]),
        downtime_s=DOWNTIME | {"total": downtime},
        total_time_s=total,
    )


def pair(predicted: Result, *measured: Result) -> Pair:
    return Pair(case(), predicted, measured, [0.25] * len(measured))


def test_every_combination_is_one_case_in_the_model_and_on_the_host() -> None:
    cases = make_cases(Grid(["8MiB", "16MiB"], ["100 pages/s"], ["1Gbit/s", "2Gbit/s"]), KVM)
    assert [(c.memory, c.bandwidth) for c in cases] == [
        ("8MiB", "1Gbit/s"),
        ("8MiB", "2Gbit/s"),
        ("16MiB", "1Gbit/s"),
        ("16MiB", "2Gbit/s"),
    ]
    for one in cases:
        assert (one.predicted.task.tracker, one.predicted.migration.clock) == ("uffd-wp", "virtual")
        assert (one.measured.task.tracker, one.measured.migration.clock) == ("host", "wall")
        assert one.predicted.migration.costs.write_fault == 260
        assert one.predicted.task.workload == one.measured.task.workload
        assert one.predicted.migration.policy == one.measured.migration.policy


def test_a_scenario_of_ones_own_is_varied_and_bad_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        'schema = "predump.scenario/1"\nseed = 7\nworkload = {kind = "zipf"}\n[costs]\nthaw = 1\n'
    )
    grid = Grid(["8MiB"], ["100 pages/s"], ["1Gbit/s"], file)
    made = make_cases(grid, KVM)[0]
    assert (made.measured.task.seed, made.measured.task.workload.kind) == (7, "zipf")
    assert made.predicted.migration.costs.thaw != 1  # all costs are the machine's
    file.write_text('schema = "predump.scenario/1"\nworkload = {kind = "fork-cow"}\n')
    with pytest.raises(ScenarioError, match="does more than write"):
        make_cases(grid, KVM)


def test_errors_are_relative_to_what_was_measured_and_keep_their_sign() -> None:
    found = pair(run(0.9, 100, 50, 30, total=3.0), run(1.0, 100, 40, 40, total=2.0))
    assert found.downtime_error == pytest.approx(-0.1)
    assert found.total_error == pytest.approx(0.5)
    assert found.page_errors == pytest.approx([0.25, -0.25])  # round 0 is the same by nature


def test_the_final_rounds_of_different_numbers_of_rounds_are_not_compared() -> None:
    found = pair(run(1.0, 100, 50, 30), run(1.0, 100, 40, 20, 10))
    assert not found.same_rounds
    assert found.page_errors == pytest.approx([0.25])


def test_of_several_runs_the_one_with_the_median_downtime_counts() -> None:
    runs = [run(3.0, 1, 1), run(1.0, 1, 1), run(2.0, 1, 1)]
    assert pair(run(1.0, 1, 1), *runs).typical is runs[2]
    assert pair(run(1.0, 1, 1), *runs[:2]).typical is runs[1]


def test_nothing_measured_where_something_was_predicted_is_no_small_error() -> None:
    assert pair(run(1.0, 100, 5), run(1.0, 100, 0)).page_errors == [float("inf")]
    assert pair(run(1.0, 100, 0), run(1.0, 100, 0)).page_errors == [0.0]


def test_the_summary_takes_medians_and_the_worst_without_sign() -> None:
    pairs = [
        pair(run(0.9, 100, 50), run(1.0, 100, 50)),
        pair(run(1.3, 100, 50), run(1.0, 100, 40)),
        pair(run(1.0, 100, 50, 9), run(1.0, 100, 50)),
    ]
    found = summarize(pairs)
    assert (found.cases, found.same_rounds, found.verified) == (3, 2, True)
    assert (found.downtime_median, found.downtime_worst) == pytest.approx((0.1, 0.3))
    assert (found.pages_median, found.pages_worst) == pytest.approx((0.125, 0.25))
    lost = summarize([pair(run(1.0, 100, 50), lossy_result())])
    assert not lost.verified


def test_the_tables_have_every_case_with_both_figures() -> None:
    failed = [(case(), "the destination is lost")]
    text = to_markdown(Found([pair(run(0.9, 100, 50, 30), run(1.0, 100, 40))], failed), KVM)
    assert "8MiB, 1Gbit/s, 100 pages/s: failed: the destination is lost" in text
    assert "| error of the downtime | 10.0% | 10.0% |" in text
    assert "1 cases, in 0 of them as many rounds as predicted; every run verified." in text
    assert "waited for a processor 25% to 25% of the time" in text
    row = next(line for line in text.splitlines() if line.startswith("| 8MiB | 1Gbit/s"))
    assert "| 3 / 2 | 900 / 1000 | -10.0% |" in row
    assert "| 100 / 100 | 50 / 40 | 30 / - |" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("| 8MiB")}
    assert columns <= {line.count("|") for line in text.splitlines() if line.startswith("| mem")}


class Host:
    """A host on which migrations take and wait as told, one after the other."""

    def __init__(self, *outcomes: tuple[Result | RunError, float | None]) -> None:
        self.outcomes = list(outcomes)
        self.looked = 0

    async def run(self, *_: object) -> tuple[Result | RunError, float | None]:
        return self.outcomes.pop(0)

    async def calm(self, _: float) -> None:
        self.looked += 1


async def in_peace(
    host: Host, monkeypatch: pytest.MonkeyPatch, calm: float
) -> tuple[Result, float | None]:
    monkeypatch.setattr(measuring, "_on_host", host.run)
    monkeypatch.setattr(measuring, "_calm_moment", host.calm)
    return await measuring._in_peace(case().measured, calm, Hosts("a:1", "b:1"))


async def test_a_run_that_others_disturb_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    good = run(1.0, 1, 1)
    host = Host((run(9.0, 1, 1), 0.9), (RunError("starved"), 0.8), (good, 0.4), (good, 0.1))
    assert await in_peace(host, monkeypatch, 0.4) == (good, 0.4)
    assert host.looked == 3


async def test_without_a_limit_or_a_figure_the_first_run_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = run(9.0, 1, 1)
    assert await in_peace(Host((first, 1.0)), monkeypatch, 1.0) == (first, 1.0)
    assert await in_peace(Host((first, None)), monkeypatch, 0.1) == (first, None)


async def test_what_fails_in_peace_has_failed_and_trying_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RunError, match="lost"):
        await in_peace(Host((RunError("lost"), 0.1)), monkeypatch, 0.4)
    busy = Host(*[(run(9.0, 1, 1), 0.9)] * 20)
    assert (await in_peace(busy, monkeypatch, 0.4))[1] == 0.9
    assert busy.outcomes  # it did not try for ever


async def test_after_a_case_that_failed_the_others_are_measured_between_new_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The old ones may still have the task that failed."""
    started: list[int] = []
    measured: list[int] = []

    class Nodes:
        def __init__(self, memory: int) -> None:
            started.append(memory)
            self.source = self.dest = SimpleNamespace(address=f"a:{len(started)}")

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None: ...

    async def one(_: object, __: object, hosts: Hosts) -> Pair:
        measured.append(len(started))
        if len(measured) == 2:
            raise RunError("the destination is lost")
        return pair(run(1.0, 1, 1), run(1.0, 1, 1))

    monkeypatch.setattr(measuring, "LocalHosts", Nodes)
    monkeypatch.setattr(measuring, "_on_host", Host(*[(run(1.0, 1, 1), None)] * 2).run)
    monkeypatch.setattr(measuring, "_pair", one)
    found = await measuring.measure([case()] * 4, measuring.Manner())
    assert measured == [1, 1, 2, 2]
    assert (len(found.pairs), len(found.failed)) == (3, 1)
