"""``predump demo``: a migration that verifies, and one whose lost pages are caught.

The second part leaves out one hunk of the patch, in ``ptep_set_access_flags``: the kernel then
writes the faulting access into the page table without making the page soft-dirty, so pages that
the task wrote are not sent again, and the destination has old content.
"""

import tomllib
from collections.abc import Awaitable, Callable, Iterable

from rich.console import Console

from predump.overrides import Override
from predump.render import WIDTH, first_addresses, print_result, show_bytes
from predump.result import Result
from predump.scenario import Scenario, scenario_from_mapping

HUNK = "ptep_set_access_flags"

SCENARIO = """
schema = "predump.scenario/1"
name = "demo"
seed = 1
memory = "256MiB"
[workload]
kind = "zipf"
rate = "20000 pages/s"
write_size = 64
[policy]
kind = "threshold"
max_rounds = 10
goal_percent = 70
[link]
bandwidth = "1Gbit/s"
"""

Run = Callable[[Scenario], Awaitable[Result]]


def demo_scenario(*, hunk_off: bool = False, overrides: Iterable[Override] = ()) -> Scenario:
    """The demo's scenario, with or without the hunk. Raises ScenarioError for bad overrides."""
    data = tomllib.loads(SCENARIO)
    if hunk_off:
        data |= {"name": "demo-without-hunk", "hunks": {"off": [HUNK]}}
    return scenario_from_mapping(data, overrides, origin="demo scenario")


async def run_demo(console: Console, run: Run) -> bool:
    """Run both parts, each by ``run``, and say in plain words what happens.

    True when both did what they should: the first verified and went on as if it had never moved,
    the second lost pages and all of them were found.
    """

    def say(text: str) -> None:
        console.print(text, width=min(console.width, WIDTH), highlight=False, markup=False)

    scenario = demo_scenario()
    say(
        f"A task writes to {show_bytes(scenario.task.memory)} of memory, 20,000 pages a second, "
        "most often to the same few (a zipf workload), on a simulated arm64 kernel with the "
        "soft-dirty patch. Two processes, a source and a destination, talk over gRPC; the network "
        "between them carries 1 Gbit/s.\n"
    )
    say(
        "Part 1: migrate it. Round 0 sends all pages while the task runs on; later rounds send "
        "what it wrote meanwhile; then it is frozen, and the rest follows."
    )
    first = await run(scenario)
    print_result(console, first)
    first_good = first.exit_code == 0 and first.continued_equal is True and first.pages_lost == 0

    say(
        f"\nPart 2: the same, but the kernel lacks one hunk of the patch, in {HUNK}: a write fault "
        "makes a page writable again without making it soft-dirty."
    )
    second = await run(demo_scenario(hunk_off=True))
    print_result(console, second)
    second_good = second.exit_code == 3 and 0 < second.pages_lost == second.pages_different
    if second_good:
        addresses = ", ".join(first_addresses(second, 3))
        say(
            f"{second.pages_lost:,} pages were written but not soft-dirty, so they were not sent "
            f"again (the first: {addresses}). The destination found exactly these when it "
            "compared digests and refused the task; the source kept it."
        )
    say("")
    if first_good and second_good:
        say("Both parts did what they should: a good kernel migrates, and a broken one is caught.")
    if not first_good:
        say("Part 1 should have been verified and was not: this is a fault of Predump.")
    if not second_good:
        say("Part 2 should have caught exactly the lost pages and did not: a fault of Predump.")
    return first_good and second_good
