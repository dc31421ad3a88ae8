"""What two real nodes take beside the bytes: idle tasks of two sizes migrate between them.

Nothing is written while they migrate, and the link is not shaped, so a pre-dump after round 0 is
all fixed cost and so is the downtime, and round 0 is as fast as bytes get from memory to memory.
What grows with the memory follows from the two sizes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from livemigration.errors import MigrationError
from livemigration.units import format_size
from predump.calibration.memory import KIB, PAGE_SIZE
from predump.calibration.sample import Sample
from predump.hosts import LocalHosts
from predump.result import Result
from predump.runner import Hosts, run_scenario
from predump.scenario import Scenario, scenario_from_mapping

_ROUNDS = 4
_WARM_UP = 4 << 20


class CalibrationError(MigrationError):
    """A calibration migration that did not end well; one line."""


@dataclass(frozen=True, slots=True)
class NodeTimes:
    """Samples of both sizes (pages), nanoseconds; `stream`: ns per KiB of round 0 of the larger."""

    small: int
    large: int
    rounds: dict[int, Sample]
    restores: dict[int, Sample]
    freeze: Sample
    resume: Sample
    stream: Sample

    def per_page(self, samples: dict[int, Sample]) -> float:
        """What each page adds: the two medians' difference."""
        more = samples[self.large].median - samples[self.small].median
        return max(0.0, more / (self.large - self.small))

    def fixed(self, samples: dict[int, Sample]) -> float:
        """What is left of the smaller one's median for a task without pages."""
        return max(0.0, samples[self.small].median - self.per_page(samples) * self.small)


def _scenario(memory: int) -> Scenario:
    return scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "name": "calibrate",
            "clock": "wall",
            "tracker": "host",
            "memory": memory,
            "page_size": PAGE_SIZE,
            "workload": {"kind": "idle"},
            "policy": {"kind": "fixed", "rounds": _ROUNDS},
            "link": {"bandwidth": "unlimited", "latency": "0us"},
            "migration": {"run_after": "0s"},
        },
        origin="calibrate",
    )


async def measure_nodes(
    memory: int, repeats: int, on_step: Callable[[str], None] = lambda line: None
) -> NodeTimes:
    """Migrations of `memory` bytes and of a sixteenth of it, `repeats` times in turn.

    Raises `RunError` or `CalibrationError` if one of them did not work.
    """
    sizes = max(PAGE_SIZE, memory // 16 // PAGE_SIZE * PAGE_SIZE), memory
    results: dict[int, list[Result]] = {size: [] for size in sizes}
    async with LocalHosts(memory) as local:
        hosts = Hosts(local.source.address, local.dest.address)
        await run_scenario(_scenario(min(memory, _WARM_UP)), hosts=hosts)
        for number in range(repeats):
            for size in sizes:
                on_step(f"migration of {format_size(size)}, {number + 1} of {repeats}")
                results[size].append(await _checked(_scenario(size), hosts))
    return _times(results)


async def _checked(scenario: Scenario, hosts: Hosts) -> Result:
    result = await run_scenario(scenario, hosts=hosts)
    if result.exit_code:
        why = result.error or f"{result.pages_different} pages differ at the destination"
        raise CalibrationError(f"a migration of an idle task failed: {why}")
    return result


def _times(results: dict[int, list[Result]]) -> NodeTimes:
    small, large = sorted(results)
    both = [result for size in (small, large) for result in results[size]]
    rounds, restores = {}, {}
    for size in (small, large):
        pages, shown = size // PAGE_SIZE, format_size(size)
        rounds[pages] = Sample(
            f"a round without any page, {shown}, all of it",
            "ns",
            [
                statistics.median(r.duration_s for r in result.rounds[1:-1]) * 1e9
                for result in results[size]
            ],
        )
        restores[pages] = Sample(
            f"taking over a task of {shown}, from the call to ready",
            "ns",
            [result.downtime_s.restore * 1e9 for result in results[size]],
        )
    return NodeTimes(
        small=small // PAGE_SIZE,
        large=large // PAGE_SIZE,
        rounds=rounds,
        restores=restores,
        freeze=Sample(
            "the freeze of the final round", "ns", [r.downtime_s.freeze * 1e9 for r in both]
        ),
        resume=Sample(
            "the hand-over but for taking over: the call and its answer",
            "ns",
            [r.downtime_s.resume * 1e9 for r in both],
        ),
        stream=Sample(
            f"round 0 of {format_size(large)} between two nodes over gRPC",
            "ns per KiB",
            [
                result.rounds[0].duration_s * 1e9 * KIB / result.rounds[0].bytes_wire
                for result in results[large]
            ],
        ),
    )
