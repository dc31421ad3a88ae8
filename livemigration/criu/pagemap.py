"""Which pages a dump has, and where their bytes are.

``pagemap-ID.img`` lists ranges of pages in ascending order; the bytes of those marked as present
follow one another in ``pages-N.img``. Ranges marked as being in the parent have their bytes in the
pages file of the directory that the symlink ``parent`` leads to, or of one further up: each
directory lists all pages that were alive when it was written, so only the immediate parent's list
is asked (criu/pagemap.c).

Two dialects, told apart by the record itself: up to 4.1.1 the number of pages is field 2; from 4.2
it is field 5, and field 2 is 0.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from livemigration.criu.errors import ImageError
from livemigration.criu.magic import PAGEMAP_MAGIC, PageFlags
from livemigration.criu.pb.pagemap_pb2 import PagemapEntry, PagemapHead
from livemigration.criu.records import Records, check_regular
from livemigration.spec import LARGEST_MEMORY

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_KNOWN_FLAGS: Final = int(PageFlags.PARENT | PageFlags.LAZY | PageFlags.PRESENT)
_NOT_ONE_DUMP: Final = "pagemap and pages files must come from one dump: copy both again"


@dataclass(frozen=True, slots=True, eq=False)
class PageSet:
    """The pages of one process (by address) or one shared segment (by offset), and their bytes.

    addresses: u64[n], ascending, in bytes; level: i64[n], which of `files` has the page's bytes: 0
    is the directory itself, 1 its parent and so on; position: i64[n], the page's number in it.
    """

    page_size: int
    addresses: U64
    level: I64
    position: I64
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return self.addresses.size

    def read(self, addresses: U64) -> NDArray[np.uint8]:
        """The bytes of these pages, u8[n * page_size].

        Raises ValueError for an address that is not in the set, ImageError if a file is too short.
        """
        index = np.searchsorted(self.addresses, addresses)
        found = index < len(self)
        found[found] = self.addresses[index[found]] == addresses[found]
        if not found.all():
            missing = int(addresses[~found][0])
            raise ValueError(f"page {missing:#x} is not in the images")
        out = np.empty((addresses.size, self.page_size), np.uint8)
        level, position = self.level[index], self.position[index]
        if addresses.size == 0:
            return out.reshape(-1)
        # Runs of pages that follow one another both in the file and in the answer.
        breaks = (np.diff(level) != 0) | (np.diff(position) != 1)
        starts = np.flatnonzero(np.concatenate(([True], breaks)))
        ends = np.append(starts[1:], addresses.size)
        opened: dict[int, int] = {}
        try:
            for start, end in zip(starts, ends, strict=True):
                source = int(level[start])
                if source not in opened:
                    opened[source] = _open(self.files[source])
                offset = int(position[start]) * self.page_size
                _read_fully(opened[source], self.files[source], out[start:end], offset)
        finally:
            for descriptor in opened.values():
                os.close(descriptor)
        return out.reshape(-1)


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(file, error.strerror or str(error), "make it readable") from None


def _read_fully(descriptor: int, file: Path, out: NDArray[np.uint8], offset: int) -> None:
    view = out.reshape(-1).data
    while view:
        try:
            count = os.preadv(descriptor, [view], offset)
        except OSError as error:
            raise ImageError(file, error.strerror or str(error), "make it readable") from None
        if count == 0:
            raise ImageError(file, f"ends at {offset} bytes, within a page", _NOT_ONE_DUMP)
        view, offset = view[count:], offset + count


def read_page_set(directory: Path, name: str, page_size: int) -> PageSet:
    """Reads ``name`` (pagemap-ID.img) in `directory` and what it needs of the parents.

    Raises ImageError if the pages are not all there.
    """
    chain = [directory]
    ends = ChainEnd(directory)
    while _needs_parent(chain[-1] / name):
        chain.append(_parent_of(chain[-1], name))
        ends.check(chain[-1])
    pages = None
    for folder in reversed(chain):
        pages = _read_level(folder / name, page_size, pages)
    assert pages is not None  # the chain has at least the directory itself
    return pages


def _flags(entry: PagemapEntry) -> int:
    """The entry's flags, also of versions that had none (init_compat_pagemap_entry)."""
    if entry.in_parent:
        return int(entry.flags | PageFlags.PARENT)
    return int(entry.flags) if entry.HasField("flags") else int(PageFlags.PRESENT)


def _records(file: Path) -> Records:
    return Records(
        file,
        PAGEMAP_MAGIC,
        "if the dump went through a page server, give the server's directory too",
    )


def _needs_parent(file: Path) -> bool:
    records = _records(file)
    records.first(PagemapHead)
    return any(
        _flags(entry) & (PageFlags.PARENT | PageFlags.PRESENT) == PageFlags.PARENT
        for entry in records.rest(PagemapEntry)
    )


def parent_folder(directory: Path) -> Path | None:
    """Where ``parent`` leads, None without one. Raises ImageError if it leads nowhere."""
    link = directory / "parent"
    if not link.is_symlink() and not link.exists():
        return None
    parent = directory / link.readlink() if link.is_symlink() else link
    if not parent.is_dir():
        raise ImageError(
            link, "leads to no directory", "put the images of the pre-dump where the symlink says"
        )
    plain = Path(os.path.normpath(parent))  # which a symlink on the way may make another place
    return plain if plain.is_dir() and plain.samefile(parent) else parent


def chain_of(directory: Path) -> list[Path]:
    """A directory and its parents, nearest first. Raises ImageError if the chain is broken."""
    chain = [directory]
    ends = ChainEnd(directory)
    while (parent := parent_folder(chain[-1])) is not None:
        ends.check(parent)
        chain.append(parent)
    return chain


class ChainEnd:
    """Finds out that a chain of parents comes back to where it was."""

    def __init__(self, first: Path) -> None:
        self.first = first
        self.seen = {_identity(first)}

    def check(self, parent: Path) -> None:
        """One more directory of the chain. Raises ImageError if it was there before."""
        if _identity(parent) in self.seen:
            raise ImageError(
                self.first / "parent", "the chain of parents has no end", "mend the symlinks"
            )
        self.seen.add(_identity(parent))


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def read_pagemap(file: Path, page_size: int) -> tuple[int, PagemapRuns]:
    """The number of the pages file, and the entries. Raises ImageError."""
    records = _records(file)
    pages_id: int = records.required(records.first(PagemapHead), "pages_id")
    return pages_id, read_runs(records, page_size)


def _parent_of(directory: Path, name: str) -> Path:
    link = directory / "parent"
    parent = directory / link.readlink() if link.is_symlink() else link
    if not parent.is_dir():
        raise ImageError(
            directory / name,
            f"has pages in a parent, and {link} leads to no directory",
            "put the images of the pre-dump where the symlink says",
        )
    if not (parent / name).exists():
        raise ImageError(
            directory / name,
            f"has pages in a parent, and there is no {parent / name}",
            "give the parent that the dump was made with",
        )
    return parent


def _read_level(file: Path, page_size: int, parent: PageSet | None) -> PageSet:
    records = _records(file)
    pages_id = records.required(records.first(PagemapHead), "pages_id")
    pages_file = file.parent / f"pages-{pages_id}.img"
    starts, counts, present = _ranges(records, page_size)
    listed = sum(c for c, here in zip(counts, present, strict=True) if here) * page_size
    if listed > LARGEST_MEMORY:  # a file of holes can be as long as it likes
        raise ImageError(
            file,
            f"lists pages of {listed} bytes, and no task has more than {LARGEST_MEMORY}",
            "dump a smaller program",
        )
    _check_pages_file(
        pages_file, sum(c for c, here in zip(counts, present, strict=True) if here), page_size
    )
    inherited = sum(c for c, here in zip(counts, present, strict=True) if not here)
    if inherited > (len(parent) if parent else 0):
        raise _not_in_parent(file, starts[present.index(False)])
    count = np.array(counts, np.int64)
    total = int(count.sum())
    within = np.arange(total) - np.repeat(np.cumsum(count) - count, count)
    addresses = np.repeat(np.array(starts, np.uint64), count)
    addresses += within.astype(np.uint64) * np.uint64(page_size)
    here = np.repeat(np.array(present, np.bool_), count)
    level = np.zeros(total, np.int64)
    position = np.cumsum(here, dtype=np.int64) - 1
    files: tuple[Path, ...] = (pages_file,)
    if inherited and parent is not None:
        wanted = addresses[~here]
        index = np.minimum(np.searchsorted(parent.addresses, wanted), len(parent) - 1)
        missing = parent.addresses[index] != wanted
        if missing.any():
            raise _not_in_parent(file, int(wanted[missing][0]))
        level[~here] = parent.level[index] + 1
        position[~here] = parent.position[index]
        files += parent.files
    return PageSet(page_size, addresses, level, position, files)


def _not_in_parent(file: Path, address: int) -> ImageError:
    return ImageError(
        file,
        f"page {address:#x} is said to be in the parent, which does not have it",
        "give the parent that the dump was made with",
    )


@dataclass(frozen=True, slots=True, eq=False)
class PagemapRuns:
    """The entries of one pagemap: starts and pages u64[r], ascending; flags u8[r]."""

    starts: U64
    pages: U64
    flags: NDArray[np.uint8]


def read_runs(records: Records, page_size: int) -> PagemapRuns:
    """The entries after the head, checked one by one. Raises ImageError."""
    starts: list[int] = []
    counts: list[int] = []
    flags: list[int] = []
    end = 0
    for entry in records.rest(PagemapEntry):
        start = records.required(entry, "vaddr")
        count = entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages
        kind = _flags(entry)
        if kind & ~_KNOWN_FLAGS:
            raise ImageError(
                records.file,
                f"pages at {start:#x} have unknown flags {kind:#x} (compressed or encrypted?)",
                "dump with CRIU up to 4.2, without compression",
            )
        if start % page_size or start < end or count == 0 or start + count * page_size > 1 << 64:
            raise ImageError(
                records.file,
                f"{count} pages at {start:#x} do not follow the entry before (up to {end:#x})",
                _NOT_ONE_DUMP,
            )
        starts.append(start)
        counts.append(count)
        flags.append(kind)
        end = start + count * page_size
    return PagemapRuns(
        np.array(starts, np.uint64), np.array(counts, np.uint64), np.array(flags, np.uint8)
    )


def listed_ranges(records: Records, page_size: int) -> tuple[U64, U64]:
    """Start and end of all ranges that a pagemap lists, u64[r]. Raises ImageError."""
    records.first(PagemapHead)
    runs = read_runs(records, page_size)
    return runs.starts, runs.starts + runs.pages * np.uint64(page_size)


def _ranges(records: Records, page_size: int) -> tuple[list[int], list[int], list[bool]]:
    """Start, number of pages and "bytes are here" of each entry. Raises ImageError."""
    runs = read_runs(records, page_size)
    starts = runs.starts.tolist()
    present = [
        _bytes_are_here(records.file, start, flags)
        for start, flags in zip(starts, runs.flags.tolist(), strict=True)
    ]
    return starts, runs.pages.tolist(), present


def _bytes_are_here(file: Path, start: int, flags: int) -> bool:
    kind = flags & (PageFlags.PARENT | PageFlags.PRESENT)
    if kind == PageFlags.PRESENT:
        return True
    if kind == PageFlags.PARENT:
        return False
    if kind:
        raise ImageError(
            file, f"pages at {start:#x} are both here and in the parent", _NOT_ONE_DUMP
        )
    raise ImageError(
        file,
        f"pages at {start:#x} stayed at the source (lazy pages)",
        "dump without --lazy-pages",
    )


def _check_pages_file(file: Path, pages: int, page_size: int) -> None:
    try:
        size = check_regular(file)
    except FileNotFoundError:
        if pages == 0:
            return  # nothing new since the parent
        raise ImageError(file, "no such file, but a pagemap names it", _NOT_ONE_DUMP) from None
    except OSError as error:
        raise ImageError(file, error.strerror or str(error), "make it readable") from None
    if size != pages * page_size:
        raise ImageError(
            file,
            f"{size} bytes, but the pagemap has {pages} pages of {page_size} bytes here",
            _NOT_ONE_DUMP,
        )
