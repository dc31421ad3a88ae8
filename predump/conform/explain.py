"""A disagreement told: the entry of the page before and after each operation, and why.

Both models run the sequence again; of the page where they disagree the page-table entry is read
after every operation, and the model's own record says whether its content changed since the last
`clear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from livemigration.operations import Op
from mm_model import ModelConfig
from mm_model.hunks import hunk
from predump.conform.descriptors import PORTABLE, page_words
from predump.conform.differential import ENDLESS, LOST, RESULT, SPURIOUS, Finding, Side

_FORCED = (
    "a forced write (FOLL_FORCE) to memory that the task may not write asks for the page again and "
    "again until its entry is dirty and soft-dirty; the fault handler leaves it as it is"
)
_ENDLESS = {
    "memwrite": _FORCED,
    "memread": "looking the page up fails and faulting it in changes nothing",
    "swapoff": "swapoff searches all page tables for entries equal to the slot's, which must have "
    "no flags left; the soft-dirty bit in the entry is not taken off, so it finds none and starts "
    "again",
}
_FAULT = "the task takes the same fault again and again: the handler leaves the entry as it was"


@dataclass(frozen=True, slots=True)
class Step:
    """One operation, and what the page's entry is after it in each of the two models."""

    operation: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """``page`` names the page that the entries are of; ``why`` are sentences, the cause last."""

    page: str
    steps: tuple[Step, ...]
    why: tuple[str, ...]


def explain(
    ops: Sequence[Op], finding: Finding, reference: ModelConfig, other: ModelConfig
) -> Explanation:
    """Run ``ops`` on both models and tell what led to ``finding``."""
    who, region, page = finding.who, finding.region, max(finding.page, 0)
    if finding.kind in (ENDLESS, RESULT):
        region, page = ops[finding.step].region, ops[finding.step].page
        if not ops[finding.step].count:
            region, page = _written(ops)
    first, second = Side(reference), Side(other)
    steps: list[Step] = []
    changed = ""
    try:
        for op in ops[: finding.step + 1]:
            results = first.execute(op), second.execute(op)
            words = [_entry(side, who, region, page) for side in (first, second)]
            if isinstance(results[0], str) or isinstance(results[1], str):
                notes = ["  <- never ends" if isinstance(r, str) else "" for r in results]
                words = [word + note for word, note in zip(words, notes, strict=True)]
            steps.append(Step(op.script(), words[0], words[1]))
        changed = _content(ops, finding, reference, who, region, page)
    finally:
        first.release()
        second.release()
    child = " of the child" if who == "child" else ""
    why = [
        *_why(ops, finding, changed),
        *_origin(steps, alike=reference.arch == other.arch),
        *_settings(reference, other),
    ]
    return Explanation(f"page {page} of region {region}{child}", tuple(steps), tuple(why))


def _written(ops: Sequence[Op]) -> tuple[int, int]:
    """The page that the last operation with a range names."""
    ranged = [op for op in ops if op.count and op.verb != "map"]
    return (ranged[-1].region, ranged[-1].page) if ranged else (0, 0)


def _entry(side: Side, who: str, region: int, page: int) -> str:
    player = side.player
    if who == "child" and player.child is None:
        return "no child"
    return page_words(player.task(who), player.address(region, page), raw=False)


def _content(
    ops: Sequence[Op], finding: Finding, config: ModelConfig, who: str, region: int, page: int
) -> str:
    """Whether the page's content changed since the last clear, by the model's own record."""
    if finding.kind not in (LOST, SPURIOUS):
        return ""
    side = Side(config)
    before = 0
    cleared = -1
    clear = "cclear" if who == "child" else "clear"
    try:
        for step, op in enumerate(ops[: finding.step + 1]):
            side.execute(op)
            if op.verb == clear:
                cleared, before = step, _version(side, who, region, page)
        after = _version(side, who, region, page)
    finally:
        side.release()
    since = f"since step {cleared} ({clear})" if cleared >= 0 else "since it was mapped"
    if after == before:
        return f"its content did not change {since}"
    return f"its content changed {since}"


def _version(side: Side, who: str, region: int, page: int) -> int:
    player = side.player
    if who == "child" and player.child is None:
        return 0
    return int(player.task(who).versions(player.address(region, page), 1)[0])


def _why(ops: Sequence[Op], finding: Finding, changed: str) -> list[str]:
    op = ops[finding.step]
    where = f"step {finding.step} ({op.script()})"
    if finding.kind == ENDLESS:
        sides = [("first", finding.first), ("second", finding.second)]
        endless = [side for side, words in sides if words.startswith("never ends")]
        named = "both models" if len(endless) == 2 else f"the {endless[0]} model"
        comes = "come" if len(endless) == 2 else "comes"
        return [f"In {where} {named} never {comes} back: {_ENDLESS.get(op.verb, _FAULT)}."]
    if finding.kind in (LOST, SPURIOUS):
        marks = "only the first" if finding.kind == LOST else "only the second"
        more = f" ({finding.pages} pages of the region)" if finding.pages > 1 else ""
        meaning = {
            LOST: "a pre-dump with the second leaves the page out",
            SPURIOUS: "a pre-dump with the second sends the page, with the first it does not",
        }[finding.kind]
        return [f"After {where} {marks} says soft-dirty{more}; {changed}: {meaning}."]
    return [f"After {where} the first shows {finding.first}, the second {finding.second}."]


def _origin(steps: Sequence[Step], *, alike: bool) -> list[str]:
    """Where the entries began to differ, and in which bits; ``alike``: of one architecture."""
    for number, step in enumerate(steps):
        first, second = set(step.first.split()), set(step.second.split())
        if not alike:
            first, second = first & PORTABLE, second & PORTABLE
        if first == second or "never ends" in step.first + step.second:
            continue
        parts = [
            f"{' '.join(only)} only in the {side}"
            for side, only in (
                ("first", sorted(first - second)),
                ("second", sorted(second - first)),
            )
            if only
        ]
        return [f"The entries differ from step {number} ({step.operation}) on: {', '.join(parts)}."]
    return []


def _settings(reference: ModelConfig, other: ModelConfig) -> list[str]:
    """What differs between the two models: hunks in words, other settings by name."""
    lines = []
    for side, off, on in (
        ("second", other.hunks_off, reference.hunks_off),
        ("first", reference.hunks_off, other.hunks_off),
    ):
        for name in sorted(off - on):
            found = hunk(name)
            lines.append(f"The {side} lacks {name} ({found.file}): {found.protects}.")
    changed = [
        f"{field.name} {getattr(reference, field.name)} / {getattr(other, field.name)}"
        for field in fields(ModelConfig)
        if field.name != "hunks_off"
        and getattr(reference, field.name) != getattr(other, field.name)
    ]
    return [*lines, *([f"The two differ in {', '.join(changed)}."] if changed else [])]
