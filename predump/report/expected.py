"""What the closed form says of a run: the rounds that it made, at its rates, by theory alone.

Nothing of the simulation is used but the number of pre-dumps, which is the policy's choice. Fixed
costs (stopping, scanning, restoring) come from the run's own cost model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from livemigration.batch import BATCH_BYTES
from livemigration.costs import KIB, CostSpec
from livemigration.theory import Overhead, PreCopy, constant_rate, random_writes
from livemigration.units import parse_bandwidth, parse_rate, parse_size, parse_time_ns
from predump.report.study import Done
from source_node.migration import GATHER_BATCHES

NS = 1e9
MOST_PAGES = 1 << 22
"""Larger memories have no expectation drawn: a probability for each page takes too long."""

_PLAIN = ("fixed", "threshold", "downtime-limit", "phaul", "xen", "stop-and-copy")
"""Policies that neither slow the task down nor leave pages for later."""
_COUNTING = ("downtime-limit", "xen")
"""Those that scan once more after a pre-dump."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What theory expects of a run; seconds and bytes."""

    downtime_s: float
    total_s: float
    bytes_wire: float


def expected(done: Done) -> Expected | None:
    """The closed form of a run, or None where it does not apply."""
    settings, result = done.run.settings, done.result
    if result.policy.kind not in _PLAIN or settings.get("encoding.kind", "raw") != "raw":
        return None
    if result.memory_bytes // result.page_size > MOST_PAGES or "workload.kind" not in settings:
        return None
    costs = CostSpec.model_validate(
        {key[6:]: value for key, value in settings.items() if key.startswith("costs.")}
    )
    pages = result.memory_bytes // result.page_size
    link = _bytes_per_s(settings, costs)
    latency = parse_time_ns(settings["link.latency"]) / NS
    frozen = (costs.freeze_ns(1) + costs.scan_ns(pages) + costs.clear_ns(pages)) / NS
    counting = costs.scan_ns(pages) if result.policy.kind in _COUNTING else 0
    overhead = Overhead((costs.thaw + counting) / NS + latency, frozen)
    model = _rounds(settings, result.memory_bytes, link, len(result.rounds) - 2, overhead)
    if model is None:
        return None
    final = model.round_bytes[-1]
    # Frozen, the first pages are copied before any is sent; then both go on at once.
    first = min(int(final), GATHER_BATCHES * BATCH_BYTES)
    bandwidth = parse_bandwidth(settings["link.bandwidth"]) / 8
    meanwhile = costs.copy_ns(int(final) - first) / NS
    sending = costs.copy_ns(first) / NS + max(final / bandwidth if bandwidth else 0.0, meanwhile)
    after = (costs.restore_ns(1, int(final)) + costs.resume) / NS
    downtime = frozen + sending + latency + after
    total = math.fsum(model.round_s[:-1]) + downtime
    return Expected(downtime, total, model.total_bytes)


def _bytes_per_s(settings: Mapping[str, Any], costs: CostSpec) -> float:
    """How fast pages go out: by the link, or by how fast they are copied out of the task."""
    copying = KIB * NS / costs.copy_kib if costs.copy_kib else float("inf")
    bandwidth = parse_bandwidth(settings["link.bandwidth"])
    return min(bandwidth / 8, copying) if bandwidth else copying


def _rounds(
    settings: Mapping[str, Any], memory: int, link: float, pre_dumps: int, overhead: Overhead
) -> PreCopy | None:
    """The rounds of a workload whose writes have a distribution; None for others."""
    page_size = int(settings["page_size"])
    pages = memory // page_size
    if pre_dumps < 0:  # everything is sent while the task is frozen
        seconds = memory / link + overhead.frozen_s
        return PreCopy((float(memory),), (seconds,))
    kind = settings["workload.kind"]
    if kind == "idle":
        return constant_rate(memory, 0.0, link, pre_dumps, overhead)
    if kind not in ("uniform", "zipf", "hotspot", "sequential"):
        return None
    rate = float(parse_rate(settings["workload.rate"], page_size))
    written = parse_size(settings.get("workload.working_set", 0)) // page_size or pages
    if kind == "sequential":
        model = constant_rate(memory, rate * page_size, link, pre_dumps, overhead)
        most = float(written * page_size)
        if all(size <= most for size in model.round_bytes[1:]):
            return model
        return None
    odds = np.zeros(pages)
    odds[:written] = _odds(settings, kind, written)
    return random_writes(pages, page_size, rate, link, pre_dumps, odds, overhead)


def _odds(settings: Mapping[str, Any], kind: str, pages: int) -> NDArray[np.float64]:
    """How likely a write is to fall on each page, float64[pages]; their order does not matter."""
    if kind == "zipf":
        weights = np.arange(1, pages + 1, dtype=np.float64) ** -float(settings["workload.theta"])
        return np.asarray(weights / weights.sum())
    odds = np.full(pages, 1 / pages)
    if kind == "hotspot":
        hot = max(1, int(pages * float(settings["workload.hot_fraction"])))
        share = float(settings["workload.hot_probability"])
        if hot < pages:
            odds[:hot], odds[hot:] = share / hot, (1 - share) / (pages - hot)
    return odds
