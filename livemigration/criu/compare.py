"""What differs between two image directories: mappings, and pages byte by byte.

Pages are compared as a restore would find them, resolved along each directory's own parents, in
windows of some MiB. A page that one directory has and the other does not is a difference unless it
is all zeros in anonymous memory, where a page that is not there reads the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.errors import ImageError
from livemigration.criu.pagemap import PageSet, read_page_set
from livemigration.criu.survey import Survey, SurveyedProcess, survey
from livemigration.criu.tables import ImageVma
from livemigration.runs import to_runs

U64 = NDArray[np.uint64]

_WINDOW_BYTES: Final = 4 << 20
_NOTHING: Final = np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class PagesDiff:
    """Pages of one process or segment, as addresses u64[n] (offsets, of a segment).

    `only_first`, `only_second`: that the other does not have, and which are not zeros of anonymous
    memory; `zeros` is how many are.
    """

    name: str
    page_size: int
    equal: int
    different: U64
    only_first: U64
    only_second: U64
    zeros: int

    @property
    def same(self) -> bool:
        """Whether a restore would find the same bytes."""
        return not (self.different.size or self.only_first.size or self.only_second.size)

    def ranges(self, addresses: U64) -> list[tuple[int, int]]:
        """Addresses as (first, end)."""
        starts, pages = to_runs(addresses, self.page_size)
        return [
            (start, start + count * self.page_size)
            for start, count in zip(starts.tolist(), pages.tolist(), strict=True)
        ]


@dataclass(frozen=True, slots=True)
class LayoutDiff:
    """One process' mappings: those that only one directory has."""

    pid: int
    only_first: tuple[ImageVma, ...]
    only_second: tuple[ImageVma, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """Between two directories. `processes`: pids that only one has, by side."""

    first: Survey
    second: Survey
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    layouts: tuple[LayoutDiff, ...]
    pages: tuple[PagesDiff, ...]

    @property
    def same(self) -> bool:
        """Whether there is none."""
        return (
            not self.only_first
            and not self.only_second
            and not self.layouts
            and all(pages.same for pages in self.pages)
        )


def compare(first: Path | str, second: Path | str, page_size: int | None = None) -> Difference:
    """Compares two directories, complete dumps or pre-dumps. Raises ImageError if pages of one of
    them cannot be read."""
    a, b = survey(first, page_size=page_size), survey(second, page_size=page_size)
    if a.page_size != b.page_size:
        raise ImageError(
            b.folder,
            f"has pages of {b.page_size} bytes, and {a.folder} of {a.page_size}",
            "compare directories of one machine",
        )
    of_a, of_b = _by_pid(a), _by_pid(b)
    if len(of_a) == 1 and len(of_b) == 1:
        # The one process of each: its pid may be another.
        pairs = [(next(iter(of_a.values())), next(iter(of_b.values())))]
    else:
        pairs = [(of_a[pid], of_b[pid]) for pid in of_a if pid in of_b]
    paired_a, paired_b = {x.pid for x, _ in pairs}, {y.pid for _, y in pairs}
    layouts = [_layout(x, y) for x, y in pairs if x.vmas and y.vmas]
    pages = [_pages(a, b, f"pagemap-{x.pid}.img", f"pagemap-{y.pid}.img", x.vmas) for x, y in pairs]
    pages += [_pages(a, b, *names, ()) for names in _segments(a, b, pairs)]
    return Difference(
        a,
        b,
        tuple(pid for pid in of_a if pid not in paired_a),
        tuple(pid for pid in of_b if pid not in paired_b),
        tuple(layout for layout in layouts if layout.only_first or layout.only_second),
        tuple(pages),
    )


def _by_pid(found: Survey) -> dict[int, SurveyedProcess]:
    return {process.pid: process for process in found.processes}


def _segments(
    a: Survey, b: Survey, pairs: list[tuple[SurveyedProcess, SurveyedProcess]]
) -> Iterator[tuple[str, str]]:
    """Pagemaps of segments that belong together: mapped at one address, else of one name."""
    twins: dict[int, int] = {}
    for x, y in pairs:
        there = {vma.start: vma.shmid for vma in y.vmas if vma.has_segment}
        for vma in x.vmas:
            if vma.has_segment and vma.start in there:
                twins.setdefault(vma.shmid, there[vma.start])
    used = set(twins.values())
    for shmid in a.segments:
        twin = twins.get(shmid, shmid if shmid in b.segments and shmid not in used else None)
        used |= {twin} if twin is not None else set()
        other = "" if twin is None else f"pagemap-shmem-{twin}.img"
        yield f"pagemap-shmem-{shmid}.img", other
    for shmid in b.segments:
        if shmid not in used:
            yield "", f"pagemap-shmem-{shmid}.img"


def _layout(x: SurveyedProcess, y: SurveyedProcess) -> LayoutDiff:
    of_x, of_y = {_key(vma): vma for vma in x.vmas}, {_key(vma): vma for vma in y.vmas}
    return LayoutDiff(
        x.pid,
        tuple(vma for key, vma in of_x.items() if key not in of_y),
        tuple(vma for key, vma in of_y.items() if key not in of_x),
    )


def _key(vma: ImageVma) -> tuple[object, ...]:
    """What two mappings have in common; ids of files and segments are a dump's own."""
    return vma.start, vma.end, vma.prot, vma.flags, vma.status, vma.pgoff, vma.name


def _pages(a: Survey, b: Survey, first: str, second: str, vmas: tuple[ImageVma, ...]) -> PagesDiff:
    of_a, of_b = _page_set(a, first), _page_set(b, second)
    where_a = of_a.addresses if of_a is not None else _NOTHING
    where_b = of_b.addresses if of_b is not None else _NOTHING
    both = np.intersect1d(where_a, where_b, assume_unique=True)
    different = [_NOTHING]
    if of_a is not None and of_b is not None:
        for window in _windows(both, a.page_size):
            x = of_a.read(window).reshape(window.size, -1)
            y = of_b.read(window).reshape(window.size, -1)
            different.append(window[(x != y).any(axis=1)])
    only_a, zeros_a = _without_zeros(of_a, np.setdiff1d(where_a, both, assume_unique=True), vmas)
    only_b, zeros_b = _without_zeros(of_b, np.setdiff1d(where_b, both, assume_unique=True), vmas)
    found = np.concatenate(different)
    return PagesDiff(
        (first or second).removeprefix("pagemap-").removesuffix(".img"),
        a.page_size,
        both.size - found.size,
        found,
        only_a,
        only_b,
        zeros_a + zeros_b,
    )


def _page_set(found: Survey, name: str) -> PageSet | None:
    if not name or not (found.folder / name).exists():
        return None
    return read_page_set(found.folder, name, found.page_size)


def _windows(addresses: U64, page_size: int) -> Iterator[U64]:
    step = max(1, _WINDOW_BYTES // page_size)
    for at in range(0, addresses.size, step):
        yield addresses[at : at + step]


def _without_zeros(
    pages: PageSet | None, addresses: U64, vmas: tuple[ImageVma, ...]
) -> tuple[U64, int]:
    """The pages that are not zeros of anonymous memory, and how many are."""
    if pages is None or addresses.size == 0:
        return _NOTHING, 0
    kept = [_NOTHING]
    for window in _windows(addresses, pages.page_size):
        content = pages.read(window).reshape(window.size, -1)
        keep = content.any(axis=1)
        for vma in vmas:
            if vma.is_file or vma.is_of_memfd:
                keep |= (window >= np.uint64(vma.start)) & (window < np.uint64(vma.end))
        kept.append(window[keep])
    found = np.concatenate(kept)
    return found, addresses.size - found.size
