"""The same operations on two models: the first place where they disagree.

The first model is the reference. A page that is soft-dirty there and not in the second is *lost*
by the second, the other way round it is *spurious*; by pagemap, or by PAGEMAP_SCAN alone, which
says otherwise of hugetlb memory. An operation from which one of them never comes
back is *endless*. Other disagreements are in a result (return code) or in the state (present, swap,
file or uffd-wp bits, mappings).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from livemigration.operations import Op
from mm_model import (
    MAP_HUGETLB,
    PM_FILE,
    PM_PRESENT,
    PM_SOFT_DIRTY,
    PM_SWAP,
    PM_UFFD_WP,
    Livelock,
    ModelConfig,
    NotModelled,
)
from predump.conform.replay import Player, scan_soft_dirty

LOST: Final = "lost"
SPURIOUS: Final = "spurious"
ENDLESS: Final = "endless"
RESULT: Final = "result"
STATE: Final = "state"
KINDS: Final = (LOST, SPURIOUS, ENDLESS, RESULT, STATE)

SCAN_SOFT_DIRTY: Final = np.uint64(1 << 50)
"""No bit of pagemap: PAGEMAP_SCAN calls the page soft-dirty."""
_SOFT_DIRTY = PM_SOFT_DIRTY | SCAN_SOFT_DIRTY
_COMPARED = PM_PRESENT | PM_SWAP | PM_FILE | PM_UFFD_WP | PM_SOFT_DIRTY

Entries = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Finding:
    """The first disagreement of two models on a sequence.

    ``step``    number of the operation after which, or in which, it shows
    ``kind``    one of `KINDS`
    ``who``     ``self`` or ``child``; ``region`` and ``page`` where it shows first
    ``pages``   how many pages of the region disagree then
    ``first``, ``second``   what each of the two showed, in words
    """

    step: int
    kind: str
    first: str
    second: str
    who: str = "self"
    region: int = 0
    page: int = -1
    pages: int = 0


class Side:
    """One of the two: a player and what it showed last."""

    def __init__(self, config: ModelConfig) -> None:
        self.player = Player(config)

    def execute(self, op: Op) -> int | str:
        """The result, or why it never ended."""
        try:
            return self.player.execute(op)
        except Livelock as hang:
            return f"never ends: {hang.strerror}"

    def tasks(self) -> list[str]:
        """``self``, and ``child`` if there is one."""
        return ["self"] if self.player.child is None else ["self", "child"]

    def entries(self, who: str, region: int) -> Entries:
        """What pagemap shows of the region, without what may differ (PFN, exclusive).

        Of hugetlb memory PAGEMAP_SCAN may say otherwise, so its word is there as well.
        """
        player = self.player
        mm, start, npages = player.task(who), player.address(region), player.pages[region]
        shown: Entries = mm.pagemap(start, npages) & _COMPARED
        stop = start + npages * player.page_size
        huge = any(v.flags & MAP_HUGETLB and start <= v.start < stop for v in mm.vmas())
        if huge and player.machine.profile.pagemap_scan:
            shown[scan_soft_dirty(mm, start, npages)] |= SCAN_SOFT_DIRTY
        return shown

    def mappings(self, who: str) -> list[tuple[Any, ...]]:
        """Extent, protection, sharing and VM_SOFTDIRTY of every mapping."""
        vmas = self.player.task(who).vmas()
        return [(v.start, v.end, v.prot, v.flags & 3, v.soft_dirty) for v in vmas]

    def release(self) -> None:
        """Give the memory back."""
        self.player.machine.release()


def disagreements(
    ops: Sequence[Op], reference: ModelConfig, other: ModelConfig, *, blame_reference: bool = True
) -> dict[str, Finding]:
    """Run ``ops`` on both: the first disagreement, and the first operation that never ends.

    By kind; empty if the two agree to the end. What follows a disagreement is its consequence, so
    only an endless operation is worth knowing after one. A sequence ends early where one of the
    models does not have an operation, and without ``blame_reference`` where the first never ends.
    """
    found: dict[str, Finding] = {}
    first, second = Side(reference), Side(other)
    try:
        for step, op in enumerate(ops):
            one, two = first.execute(op), second.execute(op)
            if isinstance(one, str) and not blame_reference:
                break
            if isinstance(one, str) or isinstance(two, str):
                found[ENDLESS] = Finding(step, ENDLESS, _ending(one), _ending(two), page=op.page)
                break
            if found:
                continue
            if one != two:
                found[RESULT] = Finding(step, RESULT, f"rc {one}", f"rc {two}")
            elif (finding := compare_sides(step, first, second)) is not None:
                found[finding.kind] = finding
    except NotModelled:
        pass
    finally:
        first.release()
        second.release()
    return found


def first_disagreement(
    ops: Sequence[Op], reference: ModelConfig, other: ModelConfig
) -> Finding | None:
    """The first place where the two disagree on ``ops``; None if they never do."""
    found = disagreements(ops, reference, other).values()
    return min(found, key=lambda finding: finding.step, default=None)


def _ending(result: int | str) -> str:
    return result if isinstance(result, str) else f"ends with rc {result}"


def compare_sides(step: int, first: Side, second: Side) -> Finding | None:
    """The first disagreement between what the two show now."""
    for who in first.tasks():
        for region in first.player.pages:
            one, two = first.entries(who, region), second.entries(who, region)
            differing = one ^ two
            if not differing.any():
                continue
            page = int(np.flatnonzero(differing)[0])
            kind = STATE
            if not differing[page] & ~_SOFT_DIRTY:
                kind = LOST if one[page] & differing[page] else SPURIOUS
            pages = int(np.count_nonzero(differing))
            words = bit_words(one[page]), bit_words(two[page])
            return Finding(step, kind, *words, who=who, region=region, page=page, pages=pages)
        if first.mappings(who) != second.mappings(who):
            one_shows, two_shows = _only(first.mappings(who), second.mappings(who))
            return Finding(step, STATE, one_shows, two_shows, who=who)
    return None


def _only(one: list[tuple[Any, ...]], two: list[tuple[Any, ...]]) -> tuple[str, str]:
    """The mappings that only one of the two has, in words."""
    sides = ([vma for vma in one if vma not in two], [vma for vma in two if vma not in one])
    first, second = ("; ".join(map(_mapping_words, side)) or "no such mapping" for side in sides)
    return first, second


def _mapping_words(vma: tuple[Any, ...]) -> str:
    start, end, prot, _, soft_dirty = vma
    return f"mapping {start:#x}-{end:#x} prot {prot}{' sd' if soft_dirty else ''}"


def bit_words(entry: np.uint64) -> str:
    """``present soft-dirty`` and the like for a pagemap entry."""
    names = (
        (PM_PRESENT, "present"),
        (PM_SWAP, "swapped"),
        (PM_FILE, "file"),
        (PM_UFFD_WP, "uffd-wp"),
        (PM_SOFT_DIRTY, "soft-dirty"),
        (SCAN_SOFT_DIRTY, "soft-dirty by PAGEMAP_SCAN"),
    )
    return " ".join(name for bit, name in names if entry & bit) or "nothing"
