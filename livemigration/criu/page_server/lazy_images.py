"""Lazy pages and image directories: served out of a complete one, fetched into an incomplete one.

After `criu dump --lazy-pages` the pages that may come later have entries without bytes (flag LAZY
alone), and the dump waits to be asked for them. Asking for all of them and writing them where they
belong makes the images of a plain dump.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

import numpy as np

from livemigration.criu.errors import ImageError
from livemigration.criu.magic import PAGEMAP_MAGIC, PageFlags
from livemigration.criu.page_images import PageImage
from livemigration.criu.page_server.channel import WINDOW_BYTES
from livemigration.criu.page_server.lazy import MOST_PAGES, LazyClient
from livemigration.criu.page_server.protocol import PageServerError
from livemigration.criu.pagemap import PageSet, read_page_set
from livemigration.criu.pb.pagemap_pb2 import PagemapEntry, PagemapHead
from livemigration.criu.records import Records

_COPY_AGAIN: Final = "give the directory of a criu dump --lazy-pages that still waits"


class LazyImages:
    """The pages of a complete image directory, for `LazyServer`."""

    def __init__(self, folder: Path, page_size: int) -> None:
        """Raises ImageError if `folder` has no process' pages, or not all of them."""
        self.page_size = page_size
        self._sets: dict[int, PageSet] = {}
        if not folder.is_dir():
            raise ImageError(folder, "no such directory", "give an image directory")
        for file in folder.glob("pagemap-*.img"):
            pid = file.stem.removeprefix("pagemap-")
            if pid.isdecimal():
                self._sets[int(pid)] = read_page_set(folder, file.name, page_size)
        if not self._sets:
            raise ImageError(folder, "has no pages of a process", "give an image directory")

    def pages(self, pid: int, address: int, most: int) -> memoryview:
        """The bytes of the pages from `address` on that follow one another, at most `most`."""
        known = self._sets.get(pid)
        if known is None:
            raise PageServerError(f"process {pid} is asked for, and the images have none")
        at = int(np.searchsorted(known.addresses, np.uint64(address)))
        some = known.addresses[at : at + most]
        if some.size == 0 or int(some[0]) != address:
            raise PageServerError(f"the images have no page {address:#x} of process {pid}")
        expected = np.uint64(address) + np.arange(some.size, dtype=np.uint64) * np.uint64(
            self.page_size
        )
        return known.read(some[some == expected]).data


@dataclass(frozen=True, slots=True)
class _Entry:
    start: int
    pages: int
    flags: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """What `fetch_into` did: pages that came, and pages that the images had already."""

    fetched: int
    copied: int


def fetch_into(folder: Path, out: Path, client: LazyClient, page_size: int) -> Fetched:
    """Makes `out` a copy of the images in `folder` with all lazy pages, which `client` asks for.

    `out` must not be there; it appears when it is complete. Raises ImageError, PageServerError.
    """
    part = out.with_name(f"{out.name}.{os.getpid()}.part")  # nobody else's, to be removed again
    fetched = copied = 0
    if out.exists():
        raise ImageError(out, "is there already", "give a new directory")
    try:
        part.mkdir()
        done: set[str] = set()
        for file in sorted(folder.glob("pagemap-*.img")):
            pages_id, entries = _entries(file, page_size)
            done |= {file.name, f"pages-{pages_id}.img"}
            counts = _complete(file, part, pages_id, entries, client, page_size)
            fetched, copied = fetched + counts.fetched, copied + counts.copied
        for file in folder.iterdir():
            if file.suffix == ".img" and file.name not in done and file.is_file():
                shutil.copyfile(file, part / file.name)
        if (folder / "parent").is_symlink():
            (part / "parent").symlink_to(os.path.relpath((folder / "parent").resolve(), out))
        client.finish()
        part.rename(out)
    except OSError as error:
        where = Path(str(error.filename or part))
        raise ImageError(where, error.strerror or str(error), "make room") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Fetched(fetched, copied)


def _entries(file: Path, page_size: int) -> tuple[int, list[_Entry]]:
    records = Records(file, PAGEMAP_MAGIC, _COPY_AGAIN)
    pages_id = records.required(records.first(PagemapHead), "pages_id")
    entries = []
    end = 0
    for entry in records.rest(PagemapEntry):
        start = records.required(entry, "vaddr")
        pages = entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages
        if start < end or pages == 0:
            raise ImageError(file, f"{pages} pages at {start:#x} are not possible", _COPY_AGAIN)
        flags = entry.flags if entry.HasField("flags") else int(PageFlags.PRESENT)
        entries.append(_Entry(start, pages, flags))
        end = start + pages * page_size
    return pages_id, entries


def _complete(
    file: Path, out: Path, pages_id: int, entries: list[_Entry], client: LazyClient, page_size: int
) -> Fetched:
    name = file.stem.removeprefix("pagemap-")
    fetched = copied = 0
    with (
        PageImage(out, file.name, pages_id, page_size) as image,
        (file.parent / f"pages-{pages_id}.img").open("rb", buffering=0) as here,
    ):
        for entry in entries:
            if entry.flags & PageFlags.PRESENT:
                _copy(here, image, entry.pages * page_size, file)
                copied += entry.pages
            elif entry.flags & PageFlags.PARENT:
                image.in_parent(entry.start, entry.pages)
                continue
            elif entry.flags & PageFlags.LAZY and name.isdecimal():
                _fetch(image, client, int(name), entry, page_size)
                fetched += entry.pages
            else:
                raise ImageError(file, f"pages at {entry.start:#x} are nowhere", _COPY_AGAIN)
            image.present(entry.start, entry.pages, entry.flags | PageFlags.PRESENT)
    return Fetched(fetched, copied)


def _fetch(image: PageImage, client: LazyClient, pid: int, entry: _Entry, page_size: int) -> None:
    done = 0
    while done < entry.pages:
        most = min(entry.pages - done, MOST_PAGES)
        done += client.get_into(image, pid, entry.start + done * page_size, most)


def _copy(here: FileIO, image: PageImage, size: int, file: Path) -> None:
    window = memoryview(bytearray(min(size, WINDOW_BYTES)))
    while size:
        count = here.readinto(window[: min(size, len(window))])
        if not count:
            raise ImageError(file, "lists more pages than its pages file has", _COPY_AGAIN)
        image.write(window[:count])
        size -= count
