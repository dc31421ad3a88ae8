"""The demo: what it runs, what it says, and when it is content."""

import io

import pytest
from rich.console import Console

from predump.demo import HUNK, demo_scenario, run_demo
from predump.overrides import parse_override
from predump.result import Result
from predump.scenario import Scenario
from tests.unit.predump.make_result import lossy_result, result_of


async def run_with(first: Result, second: Result) -> tuple[bool, str, list[Scenario]]:
    """The demo with these results in place of real runs: its word, its text, what it ran."""
    out = io.StringIO()
    ran: list[Scenario] = []
    results = iter([first, second])

    async def run(scenario: Scenario) -> Result:
        ran.append(scenario)
        return next(results)

    console = Console(file=out, width=100, color_system=None)
    return await run_demo(console, run), out.getvalue(), ran


async def test_it_runs_the_same_task_with_and_without_the_hunk() -> None:
    _, _, ran = await run_with(result_of(), lossy_result())
    first, second = ran
    assert first.task.memory == 256 * 2**20
    assert first.task.workload.kind == "zipf"
    assert first.task.hunks.off == ()
    assert second.task.hunks.off == (HUNK,)
    assert second.migration == first.migration
    assert second.task == first.task.model_copy(update={"hunks": second.task.hunks})


async def test_it_says_what_happened_in_plain_words() -> None:
    good, text, _ = await run_with(result_of(), lossy_result())
    assert good
    for words in (
        "256.0 MiB",
        "Part 1: migrate it.",
        "Verified: every page is equal",
        "Part 2: the same, but the kernel lacks one hunk",
        "2 pages were written but not soft-dirty",
        "the first: 0x100000fe000, 0x100000ff000",
        "Both parts did what they should",
    ):
        assert words in " ".join(text.split())
    assert max(len(line) for line in text.splitlines()) <= 100


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (result_of(verified=False, error="x"), lossy_result()),
        (result_of(continued_equal=None), lossy_result()),
        (result_of(pages_lost=1), lossy_result()),
        (result_of(), result_of()),
        (result_of(), result_of(verified=False, error="x")),
        (result_of(), lossy_result(pages_lost=0)),
        (result_of(), lossy_result(pages_lost=3)),
    ],
)
async def test_it_is_not_content_when_a_part_went_otherwise(first: Result, second: Result) -> None:
    good, text, _ = await run_with(first, second)
    assert not good
    assert "Both parts did what they should" not in text
    assert "fault of Predump" in text


def test_its_scenario_can_be_changed_like_a_file() -> None:
    scenario = demo_scenario(overrides=[parse_override("memory=64MiB")])
    assert scenario.task.memory == 64 * 2**20
