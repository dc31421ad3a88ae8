"""The text of a script workload: lines of the operations' language, with sizes in handy units.

A number of pages may be given as ``16``, ``64KiB``, ``2cont`` (contiguous blocks: CONT_PTE_SIZE) or
``1pmd`` (PMD-sized pages), or as a sum of these, so that one script means the same with every page
size. ``-`` before an operation lets it fail, ``#`` starts a comment, ``;`` separates operations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from livemigration.operations import (
    STRIDE,
    Op,
    OperationError,
    operands_of,
    parse_op,
)
from livemigration.units import format_size, parse_size

CONT_PAGES: Final = {4096: 16, 16384: 128, 65536: 32}
"""Pages of a contiguous block by page size (CONT_PTES of arm64)."""

_UNIT = re.compile(r"(\d+)(pmd|cont)")
_PAGE_COUNTS = frozenset({"page", "count", "to_page", "new_count"})

_TRACKERS = "belongs to whoever tracks the task's writes: the migration does it each round"
_SETTING = "is a setting of the machine; write it as thp.enabled or thp.hugepages in the scenario"
_INSIDE: Final = "is a step inside the kernel, which no program can ask for"
REFUSED: Final = {
    "clear": _TRACKERS,
    "clear1": _TRACKERS,
    "cclear": _TRACKERS,
    "uffd": _TRACKERS,
    "uwp": _TRACKERS,
    "thp": _SETTING,
    "mthp": _SETTING,
    "migrate": _INSIDE,
    "migrated": _INSIDE,
    "free": "leaves it to the kernel what the pages hold then, so no two runs need be equal",
}
"""Operations that a task under migration cannot have, and why."""


class ScriptTextError(OperationError):
    """A script that cannot be used; ``str()`` is one line that names the line in the script."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a script."""

    line: int
    op: Op
    may_fail: bool

    def __str__(self) -> str:
        return f"script line {self.line}: {self.op.script()!r}"


def pages_per_pmd(page_size: int) -> int:
    """Pages of a PMD-sized page: a table of 8-byte entries fills a page."""
    return page_size // 8


def parse_script(text: str, page_size: int) -> tuple[Step, ...]:
    """The operations of a script; ScriptTextError for the first line that is none."""
    steps = []
    for number, line in enumerate(text.splitlines(), start=1):
        for part in line.partition("#")[0].split(";"):
            words = part.strip()
            if not words:
                continue
            may_fail = words.startswith("-")
            try:
                op = parse_op(_in_pages(words.removeprefix("-"), page_size))
                _check(op, page_size)
            except ValueError as error:
                raise ScriptTextError(f"line {number}: {error}") from error
            steps.append(Step(number, op, may_fail))
    return tuple(steps)


def _in_pages(line: str, page_size: int) -> str:
    """The operation with every size as a plain number of pages."""
    verb, *words = line.split() or [""]
    names = operands_of(verb)
    return " ".join(
        [
            verb,
            *(
                _pages(word, page_size) if name in _PAGE_COUNTS else word
                for name, word in zip(names, words, strict=False)
            ),
            *words[len(names) :],
        ]
    )


def _pages(word: str, page_size: int) -> str:
    parts = word.split("+")
    if len(parts) == 1 and not word.endswith(("iB", "pmd", "cont")):
        return word
    return str(sum(_part_pages(part, page_size) for part in parts))


def _part_pages(part: str, page_size: int) -> int:
    if part.isdecimal():
        return int(part)
    unit = _UNIT.fullmatch(part)
    if unit is not None:
        whole = pages_per_pmd(page_size) if unit[2] == "pmd" else CONT_PAGES[page_size]
        return int(unit[1]) * whole
    pages, rest = divmod(parse_size(part), page_size)
    if rest:
        raise OperationError(f"{part} is not a whole number of pages of {format_size(page_size)}")
    return pages


def _check(op: Op, page_size: int) -> None:
    reason = REFUSED.get(op.verb)
    if reason is not None:
        raise OperationError(f"{op.verb!r} {reason}")
    if op.count <= 0 and operands_of(op.verb):
        raise OperationError(f"{op.script()!r}: must be of at least one page")
    for _, end in _ends(op):
        if end * page_size > STRIDE:
            raise OperationError(
                f"{op.script()!r}: ends beyond its region, which has {format_size(STRIDE)}"
            )


def _ends(op: Op) -> Iterable[tuple[int, int]]:
    """(region, page after the last one) that an operation may have mapped or touched."""
    yield op.region, op.page + max(op.count, op.new_count)
    if op.verb in ("mremap", "mremap_dontunmap"):
        yield op.to_region, op.to_page + op.count


def peak_pages(steps: Iterable[Step]) -> int:
    """The most pages that the regions of a script can have together, in one process."""
    extents: dict[int, int] = {}
    for step in steps:
        for region, end in _ends(step.op):
            extents[region] = max(end, extents.get(region, 0))
    return sum(extents.values())
