"""Image directories and what differs between them, as tables and lines for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import numpy as np
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from livemigration.criu.compare import Difference, PagesDiff
from livemigration.criu.intervals import PageRanges
from livemigration.criu.survey import Survey, SurveyedPages, SurveyedProcess, Trouble
from livemigration.criu.tables import ImageVma
from predump.render import show_bytes

_MOST_RANGES: Final = 100
_NUMBERS: Final = frozenset(
    ("pid", "parent", "threads", "mappings", "pages", "size", "round", "pages here",
     "in the parent", "used", "here")
)  # fmt: skip


def new_table(title: str, *columns: str) -> Table:
    """A table as all commands draw them."""
    table = Table(
        title=title, title_justify="left", header_style="bold", pad_edge=False, box=box.SIMPLE_HEAD
    )
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMBERS else "left", overflow="fold")
    return table


def survey_tables(found: Survey, most: int | None) -> Iterator[RenderableType]:
    """What there is; at most `most` mappings of each process."""
    yield Text(f"{found.folder}: {found.kind}, pages of {found.page_size} bytes")
    table = new_table("Processes", "pid", "parent", "name", "threads", "mappings", "pages", "size")
    for process in found.processes:
        pages = 0 if process.pages is None else process.pages.listed.pages
        table.add_row(
            str(process.pid),
            str(process.ppid),
            Text(process.comm),
            str(process.threads),
            str(len(process.vmas)),
            str(pages),
            show_bytes(pages * found.page_size),
        )
    yield table
    for process in found.processes:
        if process.vmas:
            yield _mappings(process, found.page_size, most)
    if found.segments:
        table = new_table("Shared memory", "segment", "pages", "size")
        for shmid, segment in found.segments.items():
            count = segment.listed.pages
            table.add_row(str(shmid), str(count), show_bytes(count * found.page_size))
        yield table
    yield _chain(found)
    for line in _wrong(found):
        yield Text(line)


def _mappings(process: SurveyedProcess, page_size: int, most: int | None) -> Table:
    table = new_table(f"Mappings of {process.pid}", "from", "to", "may", "pages", "size", "what")
    for vma in islice(process.vmas, most):
        table.add_row(
            f"{vma.start:#x}",
            f"{vma.end:#x}",
            _protection(vma),
            str(_listed_in(vma, process.pages, page_size)),
            show_bytes(vma.end - vma.start),
            Text(vma_kind(vma)),
        )
    if most is not None and len(process.vmas) > most:
        table.add_row("...", "", "", "", "", f"{len(process.vmas) - most} more (--all)")
    return table


def _listed_in(vma: ImageVma, pages: SurveyedPages | None, page_size: int) -> int:
    if pages is None:
        return 0
    span = PageRanges(np.array([vma.start // page_size]), np.array([vma.end // page_size]))
    return (pages.listed & span).pages


def _protection(vma: ImageVma) -> str:
    return "".join(
        letter if vma.prot & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4))
    )


def vma_kind(vma: ImageVma) -> str:
    """What a mapping is, in a few words."""
    if vma.is_anon_shared:
        return f"shared, segment {vma.shmid}"
    if vma.is_of_memfd:
        return f"private, of segment {vma.shmid}"
    if vma.is_file:
        return vma.name or "a file"
    if vma.is_kernel_data:
        return "of the kernel"
    if vma.is_heap:
        return "heap"
    return "stack" if vma.is_stack else "private"


def _chain(found: Survey) -> Table:
    table = new_table("Where the pages are", "directory", "here", "used", "size")
    here, used = _by_folder(found)
    for folder in found.chain:
        count = here.get(str(folder), 0)
        table.add_row(
            str(folder),
            str(count),
            str(used.get(str(folder), 0)),
            show_bytes(count * found.page_size),
        )
    return table


def _by_folder(found: Survey) -> tuple[dict[str, int], dict[str, int]]:
    """Pages that each directory has, and those of them that the first one's dump takes."""
    here: dict[str, int] = {}
    used: dict[str, int] = {}
    for pages in found.page_sets:
        for level in pages.levels:
            name = str(level.folder)
            here[name] = here.get(name, 0) + level.present
            used[name] = used.get(name, 0) + level.used
    return here, used


def _wrong(found: Survey) -> Iterator[str]:
    wrong = found.everything_wrong()
    for trouble in wrong[:_MOST_RANGES]:
        yield trouble_line(trouble, found.page_size)
    if len(wrong) > _MOST_RANGES:
        yield f"... and {len(wrong) - _MOST_RANGES} more (predump criu verify lists all)"


def trouble_line(trouble: Trouble, page_size: int) -> str:
    """One line: file, addresses if it is about pages, and what is wrong."""
    if not trouble.pages:
        return f"{trouble.file}: {trouble.what}"
    span = f"{trouble.start * page_size:#x}-{trouble.end * page_size:#x}"
    return f"{trouble.file}: {trouble.pages} pages at {span}: {trouble.what}"


def trouble_json(trouble: Trouble, page_size: int) -> dict[str, Any]:
    """The same for machines."""
    made: dict[str, Any] = {"file": str(trouble.file), "what": trouble.what}
    if trouble.pages:
        made |= {"start": f"{trouble.start * page_size:#x}", "pages": trouble.pages}
    return made


def survey_json(found: Survey) -> dict[str, Any]:
    """All of it."""
    here, used = _by_folder(found)
    return {
        "directory": str(found.folder),
        "kind": found.kind,
        "page_size": found.page_size,
        "chain": [
            {
                "directory": str(folder),
                "pages": here.get(str(folder), 0),
                "used": used.get(str(folder), 0),
            }
            for folder in found.chain
        ],
        "processes": [_process_json(process, found.page_size) for process in found.processes],
        "segments": [
            {"segment": shmid} | _pages_json(pages) for shmid, pages in found.segments.items()
        ],
        "troubles": [
            trouble_json(trouble, found.page_size) for trouble in found.everything_wrong()
        ],
    }


def _process_json(process: SurveyedProcess, page_size: int) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "parent": process.ppid,
        "name": process.comm,
        "threads": process.threads,
        "mappings": [
            _vma_json(vma) | {"pages": _listed_in(vma, process.pages, page_size)}
            for vma in process.vmas
        ],
    } | (_pages_json(process.pages) if process.pages is not None else {})


def _vma_json(vma: ImageVma) -> dict[str, Any]:
    return {
        "start": f"{vma.start:#x}",
        "end": f"{vma.end:#x}",
        "protection": _protection(vma),
        "what": vma_kind(vma),
    }


def _pages_json(pages: SurveyedPages) -> dict[str, Any]:
    return {
        "pages": pages.listed.pages,
        "resolved": pages.resolved,
        "levels": [
            {
                "directory": str(level.folder),
                "present": level.present,
                "in_parent": level.parent,
                "lazy": level.lazy,
                "used": level.used,
            }
            for level in pages.levels
        ],
    }


def difference_lines(found: Difference) -> Iterator[str]:
    """What differs, a line each; one line if nothing does."""
    a, b = found.first.folder, found.second.folder
    for pids, folder in ((found.only_first, a), (found.only_second, b)):
        for pid in pids:
            yield f"process {pid}: only in {folder}"
    for layout in found.layouts:
        for vmas, folder in ((layout.only_first, a), (layout.only_second, b)):
            for vma in vmas:
                span = f"{vma.start:#x}-{vma.end:#x} {_protection(vma)} {vma_kind(vma)}"
                yield f"process {layout.pid}: mapping {span}: only in {folder}"
    for pages in found.pages:
        yield from _page_lines(pages, "differs", pages.different)
        yield from _page_lines(pages, f"only in {a}", pages.only_first)
        yield from _page_lines(pages, f"only in {b}", pages.only_second)
    if found.same:
        equal = sum(pages.equal for pages in found.pages)
        zeros = sum(pages.zeros for pages in found.pages)
        more = f", and {zeros} pages of zeros that only one has" if zeros else ""
        yield f"{a} and {b}: the same mappings, and {equal} pages with the same bytes{more}"


def _page_lines(pages: PagesDiff, what: str, addresses: Any) -> Iterator[str]:
    name = pages.name if pages.name.startswith("shmem") else f"process {pages.name}"
    for start, end in pages.ranges(addresses):
        yield f"{name}: {(end - start) // pages.page_size} pages at {start:#x}-{end:#x}: {what}"


def difference_json(found: Difference) -> dict[str, Any]:
    """All of it."""
    return {
        "first": str(found.first.folder),
        "second": str(found.second.folder),
        "same": found.same,
        "processes_only_first": list(found.only_first),
        "processes_only_second": list(found.only_second),
        "mappings": [
            {
                "pid": layout.pid,
                "only_first": [_vma_json(vma) for vma in layout.only_first],
                "only_second": [_vma_json(vma) for vma in layout.only_second],
            }
            for layout in found.layouts
        ],
        "pages": [
            {
                "of": pages.name,
                "equal": pages.equal,
                "zeros_only_in_one": pages.zeros,
                "different": _ranges_json(pages, pages.different),
                "only_first": _ranges_json(pages, pages.only_first),
                "only_second": _ranges_json(pages, pages.only_second),
            }
            for pages in found.pages
        ],
    }


def _ranges_json(pages: PagesDiff, addresses: Any) -> list[dict[str, Any]]:
    return [
        {"start": f"{start:#x}", "pages": (end - start) // pages.page_size}
        for start, end in pages.ranges(addresses)
    ]
