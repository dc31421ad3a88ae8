"""A look at an image directory that goes on where something is missing: what `predump criu show`
and `verify` tell.

`livemigration.criu.directory` refuses a directory that cannot be restored. Here pre-dumps, parts of
dumps and damaged ones are looked at as well: what is there, where each page's bytes are along the
chain of parents, and everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from livemigration.criu.directory import DEFAULT_PAGE_SIZE
from livemigration.criu.errors import ImageError
from livemigration.criu.intervals import PageRanges
from livemigration.criu.magic import AT_PAGESZ, INVENTORY_MAGIC, STATS_MAGIC, PageFlags
from livemigration.criu.pagemap import (
    ChainEnd,
    PagemapRuns,
    chain_of,
    parent_folder,
    read_pagemap,
)
from livemigration.criu.pb.inventory_pb2 import InventoryEntry
from livemigration.criu.pb.stats_pb2 import DumpStats, StatsEntry
from livemigration.criu.records import Records
from livemigration.criu.tables import (
    ImageFiles,
    ImageVma,
    read_address_space,
    read_files,
    read_tasks,
)

PAGE_SIZES: Final = (4096, 16384, 65536)
_SEGMENT: Final = "pagemap-shmem-"
_PROCESS: Final = "pagemap-"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong: with the pages of a range (page numbers), or with a file at all."""

    file: Path
    what: str
    start: int = 0
    end: int = 0

    @property
    def pages(self) -> int:
        """How many pages lack their bytes for it."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class LevelPages:
    """What one directory of a chain has of one process or segment."""

    folder: Path
    present: int  # pages listed with bytes here
    parent: int  # ... whose bytes are further up
    lazy: int  # ... that stayed where they were
    used: int  # of the present ones, those that the chain's first directory gets from here


@dataclass(frozen=True, slots=True, eq=False)
class SurveyedPages:
    """The pages of one process or segment: `levels` from the directory itself on, upwards."""

    name: str
    levels: tuple[LevelPages, ...]
    listed: PageRanges
    resolved: int
    troubles: tuple[Trouble, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SurveyedProcess:
    """One process. A pre-dump knows no more of it than its pages."""

    pid: int
    pages: SurveyedPages | None
    ppid: int = 0
    comm: str = ""
    threads: int = 0
    vmas: tuple[ImageVma, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """An image directory. `kind`: "dump", "pre-dump", or "pages" without an inventory."""

    folder: Path
    kind: str
    page_size: int
    chain: tuple[Path, ...]
    processes: tuple[SurveyedProcess, ...]
    segments: dict[int, SurveyedPages]
    stats: DumpStats | None
    troubles: tuple[Trouble, ...] = field(default=())

    @property
    def page_sets(self) -> Iterator[SurveyedPages]:
        """Those of all processes and segments."""
        yield from (p.pages for p in self.processes if p.pages is not None)
        yield from self.segments.values()

    def everything_wrong(self) -> list[Trouble]:
        """All troubles of the directory and its pages."""
        return [*self.troubles, *(t for pages in self.page_sets for t in pages.troubles)]


def survey(
    folder: Path | str, also: Path | str | None = None, page_size: int | None = None
) -> Survey:
    """Looks at the images in `folder` (and in `also`, of a page server).

    page_size: bytes, where no image tells it. Raises ImageError only if `folder` is no directory or
    has no images at all.
    """
    folders = [Path(folder)] + ([Path(also)] if also is not None else [])
    for each in folders:
        if not each.is_dir():
            raise ImageError(each, "no such directory", "name a directory of CRIU images")
    if not any(any(each.glob("*.img")) for each in folders):
        raise ImageError(folders[0], "has no images", "name a directory of CRIU images")
    return _Surveyor(folders, page_size).look()


class _Surveyor:
    """Is an `ImageSource` of the first directory that has a file."""

    def __init__(self, folders: list[Path], page_size: int | None) -> None:
        self.folders = folders
        self.page_size = page_size or DEFAULT_PAGE_SIZE
        self.given = page_size is not None
        self.troubles: list[Trouble] = []

    def file(self, name: str) -> Path:
        candidates = [folder / name for folder in self.folders]
        return next((file for file in candidates if file.exists()), candidates[0])

    def has(self, name: str) -> bool:
        return self.file(name).exists()

    def records(self, name: str, magic: int) -> Records:
        return Records(self.file(name), magic, "dump again, or name the directory that has it")

    def note(self, error: ImageError) -> None:
        self.troubles.append(Trouble(error.file, error.problem))

    def look(self) -> Survey:
        kind = self.kind()
        described = self.described() if kind == "dump" else []
        if not self.given:
            self.guess_page_size(described)
        chain = self.chain()
        names = sorted(
            {file.name for folder in self.folders for file in folder.glob("pagemap-*.img")}
        )
        pages = {name: self.pages(name) for name in names}
        known = {process.pid for process in described}
        for name in names:
            pid = name.removeprefix(_PROCESS).removesuffix(".img")
            if pid.isdecimal() and int(pid) not in known:
                described.append(SurveyedProcess(int(pid), None))
        processes = tuple(
            SurveyedProcess(
                p.pid, pages.get(f"{_PROCESS}{p.pid}.img"), p.ppid, p.comm, p.threads, p.vmas
            )
            for p in described
        )
        segments = {
            int(number): pages[name]
            for name in names
            if (number := name.removeprefix(_SEGMENT).removesuffix(".img")).isdecimal()
        }
        for process in processes:
            self.check_process(process, kind)
        stats = self.stats()
        found = Survey(self.folders[0], kind, self.page_size, chain, processes, segments, stats)
        self.check_stats(found)
        return Survey(
            self.folders[0],
            kind,
            self.page_size,
            chain,
            processes,
            segments,
            stats,
            tuple(self.troubles),
        )

    def kind(self) -> str:
        if not self.has("inventory.img"):
            return "pages"
        try:
            inventory = self.records("inventory.img", INVENTORY_MAGIC).first(InventoryEntry)
        except ImageError as error:
            self.note(error)
            return "dump"
        return "dump" if inventory.img_version else "pre-dump"

    def described(self) -> list[SurveyedProcess]:
        """The processes as the images beside the pages tell of them."""
        found: list[SurveyedProcess] = []
        files = ImageFiles({}, {})
        try:
            tasks = read_tasks(self)
        except ImageError as error:
            self.note(error)
            return found
        try:
            files = read_files(self, tasks)
        except ImageError as error:
            self.note(error)
        for task in tasks:
            vmas: tuple[ImageVma, ...] = ()
            try:
                mm, vmas = read_address_space(self, task.pid, files)
                size = dict(zip(mm.auxv[::2], mm.auxv[1::2], strict=False)).get(AT_PAGESZ)
                if size in PAGE_SIZES and not self.given:
                    self.page_size, self.given = size, True
            except ImageError as error:
                self.note(error)
            found.append(
                SurveyedProcess(task.pid, None, task.ppid, task.comm, len(task.threads), vmas)
            )
        return found

    def guess_page_size(self, described: list[SurveyedProcess]) -> None:
        """Without an auxiliary vector: as large as the pages files are for their pagemaps."""
        for folder in self.folders:
            for file in sorted(folder.glob("pagemap-*.img")):
                try:
                    pages_id, runs = read_pagemap(file, DEFAULT_PAGE_SIZE)
                    size = (folder / f"pages-{pages_id}.img").stat().st_size
                except (ImageError, OSError):
                    continue  # told of when the pages are looked at
                present = int(runs.pages[(runs.flags & int(PageFlags.PRESENT)) != 0].sum())
                if present and size % present == 0 and size // present in PAGE_SIZES:
                    self.page_size = size // present
                    return

    def chain(self) -> tuple[Path, ...]:
        try:
            return tuple(chain_of(self.folders[0]))
        except ImageError as error:
            self.note(error)
            return (self.folders[0],)

    def pages(self, name: str) -> SurveyedPages:
        """Follows one pagemap up the chain."""
        start = self.file(name).parent
        troubles: list[Trouble] = []
        levels: list[LevelPages] = []
        wanted: PageRanges | None = None  # None: all that the first directory lists
        listed = PageRanges.none()
        resolved = 0
        folder: Path | None = start
        ends = ChainEnd(start)
        while folder is not None:
            file = folder / name
            if not file.exists():
                break
            try:
                pages_id, runs = read_pagemap(file, self.page_size)
            except ImageError as error:
                troubles.append(Trouble(error.file, error.problem))
                break
            present, parent, lazy = self._kinds(runs)
            self._check_file(folder / f"pages-{pages_id}.img", present.pages, troubles)
            if wanted is None:
                listed = self._ranges(runs, np.ones(runs.starts.size, np.bool_))
                wanted = listed
            used = wanted & present
            resolved += used.pages
            levels.append(LevelPages(folder, present.pages, parent.pages, lazy.pages, used.pages))
            left_behind = wanted & lazy
            _add(troubles, file, left_behind, "stayed at the source (lazy pages)")
            missing = wanted - present - parent - lazy
            _add(
                troubles,
                file,
                missing,
                "the directory before says that it has them, and it does not",
            )
            wanted = wanted & parent
            if wanted.pages == 0:
                break
            try:
                folder = parent_folder(folder)
                if folder is not None:
                    ends.check(folder)
            except ImageError:
                break  # noted with the chain; whose pages it has is told below
        if wanted is not None and wanted.pages:
            where = levels[-1].folder / "parent"
            what = f"their bytes are in a parent, and {where} has no such image"
            _add(troubles, self.file(name), wanted, what)
        return SurveyedPages(name, tuple(levels), listed, resolved, tuple(troubles))

    def _ranges(self, runs: PagemapRuns, which: np.typing.NDArray[np.bool_]) -> PageRanges:
        numbers = (runs.starts[which] // np.uint64(self.page_size)).astype(np.int64)
        return PageRanges.of(numbers, runs.pages[which].astype(np.int64))

    def _kinds(self, runs: PagemapRuns) -> tuple[PageRanges, PageRanges, PageRanges]:
        here = (runs.flags & int(PageFlags.PRESENT)) != 0
        parent = ~here & ((runs.flags & int(PageFlags.PARENT)) != 0)
        return (
            self._ranges(runs, here),
            self._ranges(runs, parent),
            self._ranges(runs, ~here & ~parent),
        )

    def _check_file(self, file: Path, pages: int, troubles: list[Trouble]) -> None:
        try:
            size = file.stat().st_size
        except OSError:
            if pages:
                troubles.append(Trouble(file, f"no such file, and {pages} pages are to be in it"))
            return
        if size != pages * self.page_size:
            what = f"{size} bytes, and the pagemap has {pages} pages of {self.page_size} bytes here"
            troubles.append(Trouble(file, what))

    def check_process(self, process: SurveyedProcess, kind: str) -> None:
        """That a process has pages, and all of them in mappings."""
        name = f"{_PROCESS}{process.pid}.img"
        if process.pages is None:
            what = "no such file; after a dump through a page server, name its directory too"
            self.troubles.append(Trouble(self.file(name), what))
        elif kind == "dump" and process.vmas:
            starts = np.array([vma.start // self.page_size for vma in process.vmas], np.int64)
            ends = np.array([vma.end // self.page_size for vma in process.vmas], np.int64)
            outside = process.pages.listed - PageRanges.of(starts, ends - starts)
            _add(self.troubles, self.file(name), outside, "lie in no mapping of the process")

    def stats(self) -> DumpStats | None:
        if not self.has("stats-dump"):
            return None
        try:
            return self.records("stats-dump", STATS_MAGIC).first(StatsEntry).dump
        except ImageError as error:
            self.note(error)
            return None

    def check_stats(self, found: Survey) -> None:
        """That as many pages were written as stats-dump says."""
        stats = found.stats
        if stats is None:
            return
        private = [p.pages.levels[0] for p in found.processes if p.pages and p.pages.levels]
        shared = [pages.levels[0] for pages in found.segments.values() if pages.levels]
        file = self.file("stats-dump")
        counts = [
            ("pages_written", stats.pages_written, sum(level.present for level in private)),
            ("pages_skipped_parent", stats.pages_skipped_parent, sum(p.parent for p in private)),
        ]
        if stats.HasField("shpages_written"):  # since 3.17
            counts += [
                ("shpages_written", stats.shpages_written, sum(p.present for p in shared)),
                (
                    "shpages_skipped_parent",
                    stats.shpages_skipped_parent,
                    sum(p.parent for p in shared),
                ),
            ]
        for name, said, there in counts:
            if said != there:
                what = f"{name} is {said}, and the pagemaps have {there}"
                self.troubles.append(Trouble(file, what))


def _add(troubles: list[Trouble], file: Path, ranges: PageRanges, what: str) -> None:
    for start, end in zip(ranges.starts.tolist(), ranges.ends.tolist(), strict=True):
        troubles.append(Trouble(file, what, start, end))
