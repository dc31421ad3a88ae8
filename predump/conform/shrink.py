"""Shrinking a sequence of operations that shows something to its shortest.

Delta debugging over the operations first (Zeller and Hildebrandt, "Simplifying and isolating
failure-inducing input", 2002), then smaller regions, ranges and simpler operations, until nothing
can be left out or made smaller any more. The result shows the same as what went in, for the
``shows`` that the caller defines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from livemigration.operations import Op

Ops = tuple[Op, ...]
Shows = Callable[[Ops], bool]

_SIMPLER: Final = {
    "fill": "write",
    "sysread": "write",
    "populate_write": "write",
    "memwrite": "write",
    "memread": "read",
    "populate_read": "read",
    "read": "write",
    "mremap_dontunmap": "mremap",
    "cold": "pageout",
}
"""Operations for which a plainer one may do as well."""


def shrink(ops: Sequence[Op], shows: Shows) -> Ops:
    """The shortest sequence reachable from ``ops`` by leaving out and making smaller."""
    current = tuple(ops)
    while True:
        smaller = _without(current, shows)
        smaller = _reduced(smaller, shows)
        if smaller == current:
            return current
        current = smaller


def _without(ops: Ops, shows: Shows) -> Ops:
    """ddmin: leave out ever smaller runs of operations."""
    size = max(1, len(ops) // 2)
    while True:
        at = 0
        while at < len(ops):
            candidate = ops[:at] + ops[at + size :]
            if candidate and shows(candidate):
                ops = candidate
            else:
                at += size
        if size == 1:
            return ops
        size = max(1, size // 2)


def _reduced(ops: Ops, shows: Shows) -> Ops:
    """Make regions, ranges and operations simpler, one change at a time."""
    for limit in (1, 2, 4, 8, 16, 32, 64, 512):
        candidate = tuple(clipped for op in ops if (clipped := _clip(op, limit)) is not None)
        if candidate != ops and shows(candidate):
            ops = candidate
            break
    for candidate in _moved_together(ops):
        if shows(candidate):
            ops = candidate
            break
    at = 0
    while at < len(ops):
        for simpler in _simpler(ops[at]):
            candidate = (*ops[:at], simpler, *ops[at + 1 :])
            if shows(candidate):
                ops = candidate
                break
        else:
            at += 1
    return ops


def _moved_together(ops: Ops) -> Iterator[Ops]:
    """Sequences with lower numbers: other regions, or all pages of a region further down."""
    regions = sorted({op.region for op in ops} | {op.to_region for op in ops})
    numbered = {region: number for number, region in enumerate(_in_order(ops))}
    renamed = tuple(
        replace(op, region=numbered[op.region], to_region=numbered.get(op.to_region, 0))
        if op.count
        else op
        for op in ops
    )
    if renamed != ops:
        yield renamed
    for region in regions:
        pages = [op.page for op in ops if op.region == region and op.count and op.verb != "map"]
        for shift in sorted({min(pages, default=0), min(pages, default=0) // 2} - {0})[::-1]:
            yield tuple(_shifted(op, region, shift) for op in ops)


def _in_order(ops: Ops) -> list[int]:
    """The regions in the order in which the operations name them."""
    named: list[int] = []
    for op in ops:
        targets = [op.to_region] if op.verb.startswith("mremap") else []
        named += [region for region in (op.region, *targets) if op.count and region not in named]
    return named


def _shifted(op: Op, region: int, shift: int) -> Op:
    if op.region != region or not op.count:
        return op
    if op.verb == "map":
        return replace(op, count=max(1, op.count - shift))
    return replace(op, page=op.page - shift)


def _clip(op: Op, limit: int) -> Op | None:
    """The part of the operation that lies in the first ``limit`` pages of its region."""
    if not op.count:
        return op
    if op.page >= limit:
        return None
    count = min(op.count, limit - op.page)
    grown = op.new_count and max(count + 1, op.new_count - op.count + count)
    return replace(op, count=count, new_count=grown)


def _simpler(op: Op) -> Iterator[Op]:
    """Operations that are strictly simpler than ``op``, the simplest first."""
    if op.verb in _SIMPLER:
        yield replace(op, verb=_SIMPLER[op.verb], value=0)
    if op.verb == "map" and op.kind not in ("", "anon-private") and "hugetlb" not in op.kind:
        yield replace(op, kind="anon-private")
    for name in ("count", "page", "to_page", "to_region", "region", "value"):
        number = getattr(op, name)
        least = 1 if name == "count" else 0
        if op.verb in ("mthp", "uwp") and name == "value":
            continue
        tried = set()
        for smaller in (least, number // 2, number - 1):
            if least <= smaller < number and smaller not in tried:
                tried.add(smaller)
                changed: dict[str, Any] = {name: smaller}
                yield replace(op, **changed)
    if op.new_count > op.count + 1:
        yield replace(op, new_count=op.count + 1)
    if op.page and op.count > 0:
        # The same end, but from the start of the region.
        yield replace(op, page=0)
