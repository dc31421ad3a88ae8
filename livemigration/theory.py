"""Pre-copy in closed form: what rounds, bytes and downtime should be, to hold simulations against.

A task of V bytes whose pages get dirty at D bytes per second (pages counted once per round) is sent
over a link of R bytes per second. Round 0 takes V/R; whatever got dirty during a round is what the
next one sends, so with r = D/R round i takes V/R * r**i. This geometric series is the common core
of the published models (Clark et al., NSDI 2005; Liu et al., HPDC 2011, 10.1145/1996130.1996154).

D is a constant only as long as no page is written twice in a round. With writes that fall on pages
at random the expected number of distinct pages is what counts: `distinct_pages` for any access
distribution, with N * (1 - (1 - 1/N)**w) for w writes spread evenly over N pages.

`livemigration.history` has the models that know a workload by what was recorded of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PreCopy:
    """What a model says of one migration: bytes and seconds per round, the final one last.

    downtime_s is the final round, without what restoring costs.
    """

    round_bytes: tuple[float, ...]
    round_s: tuple[float, ...]

    @property
    def total_bytes(self) -> float:
        """Bytes of all rounds."""
        return math.fsum(self.round_bytes)

    @property
    def total_s(self) -> float:
        """Seconds of all rounds."""
        return math.fsum(self.round_s)

    @property
    def downtime_s(self) -> float:
        """Seconds of the final round."""
        return self.round_s[-1]


def _checked(name: str, value: float, *, least: float = 0.0) -> float:
    if not value > least or not math.isfinite(value):
        raise ValueError(f"{name} = {value}: must be a number above {least:g}")
    return value


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a round takes beside sending, in seconds; nothing by default, as in the pure models.

    The task runs during `running_s` (latency, counting) and dirties pages; during `frozen_s`
    (stopping, scanning) it stands still.
    """

    running_s: float = 0.0
    frozen_s: float = 0.0


NO_OVERHEAD = Overhead()


def constant_rate(
    memory_bytes: float,
    dirty_bytes_per_s: float,
    link_bytes_per_s: float,
    pre_dumps: int,
    overhead: Overhead = NO_OVERHEAD,
) -> PreCopy:
    """Pages get dirty at a constant rate, each once a round: the geometric series.

    `pre_dumps` rounds follow round 0, then the final one. No round sends more than the memory.
    ValueError for numbers that are none.
    """
    _checked("memory_bytes", memory_bytes)
    if dirty_bytes_per_s < 0:
        raise ValueError("the dirty rate must not be negative")
    return _rounds(
        memory_bytes,
        lambda seconds: min(memory_bytes, dirty_bytes_per_s * seconds),
        link_bytes_per_s,
        pre_dumps,
        overhead,
    )


def random_writes(
    pages: int,
    page_bytes: int,
    writes_per_s: float,
    link_bytes_per_s: float,
    pre_dumps: int,
    probabilities: NDArray[np.float64] | None = None,
    overhead: Overhead = NO_OVERHEAD,
) -> PreCopy:
    """Writes fall on pages at random: each round sends the distinct pages of the one before.

    `probabilities`, float64[pages], says how likely a write is to fall on each page; without it all
    are alike. ValueError for numbers that are none.
    """
    return _rounds(
        float(pages * page_bytes),
        lambda seconds: page_bytes * distinct_pages(pages, writes_per_s * seconds, probabilities),
        link_bytes_per_s,
        pre_dumps,
        overhead,
    )


def _rounds(
    memory_bytes: float,
    dirtied: Callable[[float], float],
    link_bytes_per_s: float,
    pre_dumps: int,
    overhead: Overhead,
) -> PreCopy:
    """Round by round: what is dirtied (bytes) while the task runs (seconds) is sent next."""
    _checked("link_bytes_per_s", link_bytes_per_s)
    if pre_dumps < 0:
        raise ValueError("the number of rounds must not be negative")
    sent = [memory_bytes]
    for _ in range(pre_dumps + 1):
        sent.append(dirtied(sent[-1] / link_bytes_per_s + overhead.running_s))
    seconds = [
        size / link_bytes_per_s + overhead.running_s + overhead.frozen_s for size in sent[:-1]
    ]
    seconds.append(sent[-1] / link_bytes_per_s + overhead.frozen_s)
    return PreCopy(tuple(sent), tuple(seconds))


def distinct_pages(
    pages: int, writes: float, probabilities: NDArray[np.float64] | None = None
) -> float:
    """Expected number of distinct pages among `pages` that `writes` random writes fall on."""
    _checked("pages", pages)
    if writes < 0:
        raise ValueError(f"{writes} writes: must not be negative")
    if probabilities is None:
        if pages == 1:
            return min(1.0, writes)
        # expm1 and log1p keep what 1 - (1 - 1/N)**w would lose for large N.
        return -pages * math.expm1(writes * math.log1p(-1 / pages))
    if probabilities.shape != (pages,):
        raise ValueError(f"{pages} pages and {probabilities.size} probabilities")
    return float(-np.expm1(writes * np.log1p(-probabilities)).sum())


def ratios(model: PreCopy) -> tuple[float, ...]:
    """How much each round sends of what the round before sent: below 1, the series converges."""
    return tuple(after / before if before else 0.0 for before, after in pairwise(model.round_bytes))
