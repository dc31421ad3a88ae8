"""Pre-copy predicted from what was recorded of a workload before: published models as functions.

* `average_rate`, `from_history` - the two models of Akoush, Sohan, Rice, Moore and Hopper,
  "Predicting the Performance of Virtual Machine Migration" (MASCOTS 2010,
  10.1109/MASCOTS.2010.13). AVG knows one number, how many pages get dirty per second on average;
  HIST knows which pages got dirty in each interval of an earlier run, so that a page that is
  written again in a later interval of the same round counts once. Both play Xen's rules: rounds
  until few pages are left, a number of rounds is reached, or several times the memory was sent.
* `bounds` - the same paper's limits on total time and downtime, which hold for every workload.
* `rounds_needed`, `skipping_rounds`, `energy_j` - Liu, Xu, Jin, Gong and Liao, "Performance and
  Energy Modeling for Live Migration of Virtual Machines" (HPDC 2011, 10.1145/1996130.1996154): how
  many rounds the geometric series needs down to a threshold; rounds that leave pages out which are
  dirty again already (Xen looks before it sends) until the last one; and energy as a line over the
  bytes sent.

What is checked: titles, authors and places against the publishers' pages; that Akoush et al. have
two simulation models and claim 90 % for them, and Liu et al. two models of time and energy of which
the refined one reaches 90 %, against their abstracts; Xen's three rules and their numbers (29
rounds, 3 times, fewer than 50 pages) against `xc_domain_save` of Xen 3 and 4. The papers' full text
was not at hand: formulas are restated from memory and from what others write of them, and numbers
that a paper fitted are its own machines'.

The papers' own overheads are a parameter here (`livemigration.theory.Overhead`), so that any cost
model can stand in for their Xen hosts. Where the papers leave something open the docstring says
what was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from livemigration.theory import NO_OVERHEAD, Overhead, PreCopy

Pages = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class XenRules:
    """When Xen stops pre-copying: few pages dirty, enough rounds, or enough sent.

    The numbers are `xc_domain_save`'s: DEF_MAX_ITERS 29, DEF_MAX_FACTOR 3, and fewer than 50 pages.
    """

    few_pages: int = 50
    max_rounds: int = 29
    most_times: int = 3


XEN = XenRules()


def average_rate(
    pages: int,
    page_bytes: int,
    dirty_pages_per_s: float,
    link_bytes_per_s: float,
    rules: XenRules = XEN,
    overhead: Overhead = NO_OVERHEAD,
) -> PreCopy:
    """AVG: so many pages get dirty in every second, each once, and never more than there are."""
    return _by_rules(
        pages,
        page_bytes,
        lambda since, until: min(float(pages), dirty_pages_per_s * (until - since)),
        link_bytes_per_s,
        rules,
        overhead,
    )


def from_history(
    history: Sequence[Pages],
    interval_s: float,
    pages: int,
    page_bytes: int,
    link_bytes_per_s: float,
    rules: XenRules = XEN,
    overhead: Overhead = NO_OVERHEAD,
) -> PreCopy:
    """HIST: a round's dirty pages are the distinct ones of all intervals that it covers.

    `history`: for each interval of `interval_s` seconds the pages (int64, below `pages`) that got
    dirty in it, from the start of the migration on; it begins again at its end. An interval that a
    round covers in part counts by that part. ValueError for a history that is none.
    """
    if not history or interval_s <= 0:
        raise ValueError("a history needs intervals of more than no time")
    sets = [np.unique(np.asarray(entry, dtype=np.int64)) for entry in history]
    if any(entry.size and (entry[0] < 0 or entry[-1] >= pages) for entry in sets):
        raise ValueError(f"a history of {pages} pages has others in it")
    return _by_rules(
        pages,
        page_bytes,
        lambda since, until: _distinct(sets, pages, since / interval_s, until / interval_s),
        link_bytes_per_s,
        rules,
        overhead,
    )


def _distinct(sets: Sequence[Pages], pages: int, since: float, until: float) -> float:
    """Distinct pages of the intervals from `since` to `until`, both in intervals.

    Of an interval at either end only a share of the time belongs to the round: the pages that it
    alone has count by that share.
    """
    first, last = math.floor(since), math.ceil(until)
    if last - first > len(sets) + 2:  # all of it at least once
        whole = np.zeros(pages, dtype=np.bool_)
        for entry in sets:
            whole[entry] = True
        return float(np.count_nonzero(whole))
    missing = np.ones(pages)  # how likely each page is not dirty yet
    for number in range(first, last):
        share = min(until, number + 1) - max(since, number)
        missing[sets[number % len(sets)]] *= 1 - share
    return float(pages - missing.sum())


def _by_rules(
    pages: int,
    page_bytes: int,
    dirtied: Callable[[float, float], float],
    link_bytes_per_s: float,
    rules: XenRules,
    overhead: Overhead,
) -> PreCopy:
    """Rounds until a rule of Xen's says stop; `dirtied`: pages between two times of running."""
    if pages < 1 or page_bytes < 1 or not 0 < link_bytes_per_s < math.inf:
        raise ValueError("pages, their size and the link's speed must be positive")
    sizes, seconds = [], []
    left, ran, sent = float(pages), 0.0, 0.0
    for number in count():
        running = left * page_bytes / link_bytes_per_s + overhead.running_s
        sizes.append(left * page_bytes)
        seconds.append(running + overhead.frozen_s)
        sent += left
        left = dirtied(ran, ran + running)
        ran += running
        few, many = left < rules.few_pages, number >= rules.max_rounds
        if few or many or (rules.most_times and sent > rules.most_times * pages):
            break
    sizes.append(left * page_bytes)
    seconds.append(left * page_bytes / link_bytes_per_s + overhead.frozen_s)
    return PreCopy(tuple(sizes), tuple(seconds))


@dataclass(frozen=True, slots=True)
class Bounds:
    """Least and most that a migration can take, whatever the task does; seconds."""

    total_s: tuple[float, float]
    downtime_s: tuple[float, float]


def bounds(
    memory_bytes: int,
    page_bytes: int,
    link_bytes_per_s: float,
    *,
    before_s: float = 0.0,
    after_s: float = 0.0,
    most_times: int = 3,
) -> Bounds:
    """Akoush et al.'s bounds: `before_s` and `after_s` are the work before and after copying.

    At best nothing gets dirty: the memory is sent once, and the downtime is the work afterwards. At
    worst all of it is dirty all the time: the rule of most bytes (`most_times` the memory) is one
    page short of being met when one more full round begins, and the final one is full as well.
    """
    once = memory_bytes / link_bytes_per_s
    fixed = before_s + after_s
    most = ((most_times + 2) * memory_bytes - page_bytes) / link_bytes_per_s
    return Bounds((fixed + once, fixed + most), (after_s, after_s + once))


def rounds_needed(
    memory_bytes: float, dirty_bytes_per_s: float, link_bytes_per_s: float, threshold_bytes: float
) -> int:
    """Liu et al.: pre-dumps after round 0 until no more than a threshold is left, at D < R.

    ceil(log_r(threshold / memory)) rounds in all, of which the first is round 0. ValueError if the
    series does not converge.
    """
    ratio = dirty_bytes_per_s / link_bytes_per_s
    if not 0 <= ratio < 1:
        raise ValueError(f"dirty rate / bandwidth = {ratio:g}: rounds do not get smaller")
    if threshold_bytes <= 0 or memory_bytes <= 0:
        raise ValueError("memory and threshold must be positive")
    if ratio == 0 or threshold_bytes >= memory_bytes:
        return 0
    return max(0, math.ceil(math.log(threshold_bytes / memory_bytes, ratio) - 1e-9) - 1)


def skipping_rounds(
    memory_bytes: float,
    dirty_bytes_per_s: float,
    link_bytes_per_s: float,
    threshold_bytes: float,
    skipped: Callable[[float, float], float],
    max_rounds: int = 29,
) -> PreCopy:
    """Liu et al.'s refined model: a round leaves out the pages that are dirty again already.

    Xen looks at the bitmap once more before it sends a page. `skipped` gives the share of the dirty
    pages that this leaves out, of the seconds that the round before took and the dirty rate in
    bytes/s (the paper fits ``a * seconds + b * rate + c``); such pages are those of the writable
    working set, which are dirty again by the next round. When no more than the threshold is left,
    or more than the round before sent, everything dirty is sent in the final round.
    """
    if memory_bytes <= 0 or dirty_bytes_per_s < 0 or not 0 < link_bytes_per_s < math.inf:
        raise ValueError("memory and link must be positive, and the dirty rate not negative")
    sizes = [memory_bytes]
    for number in count():
        seconds = sizes[-1] / link_bytes_per_s
        dirty = min(memory_bytes, dirty_bytes_per_s * seconds)
        share = min(max(skipped(seconds, dirty_bytes_per_s), 0.0), 1.0)
        size = dirty * (1 - share)
        if size <= threshold_bytes or size > sizes[-1] or number >= max_rounds:
            sizes.append(dirty)
            break
        sizes.append(size)
    return PreCopy(tuple(sizes), tuple(size / link_bytes_per_s for size in sizes))


def energy_j(sent_bytes: float, joules_per_mb: float = 0.512, base_joules: float = 20.165) -> float:
    """Liu et al.: energy of both hosts, a line over the traffic (MB = 10^6 bytes).

    The defaults are the paper's fit for its own pair of equal hosts, Xen of 2011; other hosts need
    a fit of their own. They are not checked against the paper itself: a public simulator of VM
    placement has the same two numbers (512 J for each GB and 20.165 J) in a model of this form.
    """
    return joules_per_mb * sent_bytes / 1e6 + base_joules
