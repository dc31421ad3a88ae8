"""What a page server keeps of one connection: an image directory with pagemaps and pages.

As `criu page-server -D DIR --prev-images-dir PARENT` makes it (criu/page-xfer.c, v4.2): the
symlink ``parent``, a pagemap and a pages file for each process and shared segment that is opened,
with pages files numbered from 0x10001. The rest of the images (mappings, registers) stays where the
dump runs.

A page that is said to be unchanged must be listed by the immediate parent: nobody would ever find
its bytes otherwise.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from livemigration.criu.errors import ImageError
from livemigration.criu.listed_pages import ListedPages
from livemigration.criu.magic import PageFlags
from livemigration.criu.page_images import PageImage
from livemigration.criu.page_server.protocol import PageServerError, Target
from livemigration.criu.pagemap_entries import Flavour

FIRST_PAGES_ID: Final = 0x10001
"""What a real page server numbers its first pages file."""

_KNOWN_FLAGS: Final = int(PageFlags.PARENT | PageFlags.LAZY | PageFlags.PRESENT)
_END: Final = (1 << 64) - 1
_KEEP_FREE: Final = 64 << 20
"""Bytes of the file system that are left to others."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer may make us do.

    most_bytes: of pages in one connection, 0 for as many as the file system has room for;
    most_images: processes and shared segments in one connection; most_entries: ranges of pages of
    each (4 Mi are enough for 32 GiB of which every second page was written); patience_s: how long
    it may keep silent in the middle of things.
    """

    most_bytes: int = 0
    most_images: int = 65536
    most_entries: int = 4 << 20
    patience_s: float = 60.0


@dataclass(frozen=True, slots=True)
class ImageCount:
    """What came of one process or segment: pages with bytes, and pages left to the parent."""

    target: Target
    pages: int
    holes: int


class Checkpoint:
    """One image directory on its way in. Leaving the context closes its files, complete or not."""

    def __init__(
        self,
        folder: Path,
        parent: Path | None,
        *,
        page_size: int,
        limits: Limits | None = None,
        link: str = "",
        flavour: Flavour = Flavour.BOTH,
    ) -> None:
        """`folder` is made if it is not there; `parent` becomes its parent, by the symlink `link`.

        The link is that of the command line, so relative to `folder`; by default it is worked out.
        Raises ImageError.
        """
        self.folder = folder
        self.page_size = page_size
        self._limits = limits or Limits()
        self._flavour = flavour
        self._images: dict[Target, PageImage] = {}
        self._current: PageImage | None = None
        self._current_target: Target | None = None
        self._ranges: ListedPages | None = None  # of the current image in the parent
        self._bytes = 0
        self._room = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if parent is not None:
                _link_parent(folder, link or _relative(parent, folder))
        except OSError as error:
            raise ImageError(
                folder, error.strerror or str(error), "give a directory that can be written"
            ) from None
        self._parent = _parent_of(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._close_current()
        except ImageError:
            if kind is None:  # else what went wrong first is what counts
                raise

    @property
    def counts(self) -> tuple[ImageCount, ...]:
        """What came, in the order of coming."""
        return tuple(
            ImageCount(target, image.pages, image.holes) for target, image in self._images.items()
        )

    def in_parent(self, target: Target) -> bool:
        """Whether the parent has a pagemap of it."""
        return self._parent is not None and (self._parent / target.pagemap_name).exists()

    def open(self, target: Target) -> bool:
        """The next pages are of this process or segment; returns `in_parent`."""
        self._close_current()
        if target in self._images:
            raise PageServerError(f"{target} is opened a second time")
        if len(self._images) >= self._limits.most_images:
            raise PageServerError(
                f"more than {self._limits.most_images} processes and segments, the limit here"
            )
        self._ranges = None
        known = self.in_parent(target)
        if known:
            assert self._parent is not None
            self._ranges = ListedPages.of(self._parent / target.pagemap_name, self.page_size)
        pages_id = FIRST_PAGES_ID + len(self._images)
        self._current = self._images[target] = PageImage(
            self.folder,
            target.pagemap_name,
            pages_id,
            self.page_size,
            flavour=self._flavour,
        )
        self._current_target = target
        return known

    def require(self, target: Target) -> None:
        """Old clients send pages without opening: then the first ones open."""
        if target != self._current_target:
            self.open(target)

    def check(self, address: int, pages: int, flags: int) -> PageImage:
        """The image that takes this entry. Raises PageServerError if none may."""
        image, size = self._current, self.page_size
        assert image is not None
        end = address + pages * size
        if pages == 0 or address % size or end > _END:
            raise PageServerError(
                f"{pages} pages at {address:#x} are no range of pages of {size} bytes"
            )
        if image.entries >= self._limits.most_entries:
            raise PageServerError(f"more than {image.entries} ranges of pages, the limit here")
        if address < image.end:
            raise PageServerError(f"pages at {address:#x} come after those up to {image.end:#x}")
        kind = flags & (PageFlags.PARENT | PageFlags.PRESENT)
        if (
            flags & ~_KNOWN_FLAGS
            or kind not in (PageFlags.PARENT, PageFlags.PRESENT, 0)
            or not flags
        ):
            raise PageServerError(f"pages at {address:#x} have the flags {flags:#x}")
        if kind == PageFlags.PARENT and (
            self._ranges is None or not self._ranges.covers(address, end)
        ):
            raise PageServerError(
                f"a hole of {pages} pages at {address:#x} of {self._current_target} is not in the "
                "parent images"
            )
        if kind == PageFlags.PRESENT:
            self._check_room(pages * size)
        return image

    def _check_room(self, size: int) -> None:
        self._bytes += size
        most = self._limits.most_bytes
        if most and self._bytes > most:
            raise PageServerError(f"more than {most} bytes of pages, the limit here")
        if size > self._room:  # asked again only when what was free then is used up
            self._room = shutil.disk_usage(self.folder).free - _KEEP_FREE
            if size > self._room:
                raise PageServerError(
                    f"{size} bytes of pages do not fit: {self.folder} has {max(self._room, 0)} free"
                )
        self._room -= size

    def finish(self) -> None:
        """Everything came. Raises ImageError if it cannot be written."""
        self._close_current()

    def _close_current(self) -> None:
        image, self._current, self._current_target = self._current, None, None
        if image is not None:
            image.close()


def _relative(parent: Path, folder: Path) -> str:
    return os.path.relpath(parent, folder)


def _link_parent(folder: Path, link: str) -> None:
    with suppress(FileNotFoundError):
        (folder / "parent").unlink()
    (folder / "parent").symlink_to(link)


def _parent_of(folder: Path) -> Path | None:
    """Where the symlink leads. Raises ImageError if that is nowhere."""
    link = folder / "parent"
    if not link.is_symlink():
        return None
    if not link.is_dir():
        raise ImageError(
            link, "leads to no directory", "give --prev-images-dir relative to the new directory"
        )
    return folder / link.readlink()
