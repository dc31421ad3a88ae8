"""Pagemap and pages files, written run by run, many runs at once, or all at once: all the same."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemigration.criu.errors import ImageError
from livemigration.criu.listed_pages import ListedPages
from livemigration.criu.magic import PAGEMAP_MAGIC
from livemigration.criu.page_images import PageImage, PageList, write_pages
from livemigration.criu.pagemap import read_pagemap
from livemigration.criu.pagemap_entries import Flavour
from livemigration.criu.pb.pagemap_pb2 import PagemapEntry, PagemapHead
from livemigration.criu.record_writer import header, record

PAGE = 4096
PRESENT, LAZY, PARENT = 4, 2, 1
Run = tuple[int, int, int]


def numbers(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, np.uint64)


def page(value: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.full(PAGE, value, np.uint8)


@st.composite
def ascending(draw: st.DrawFn) -> list[Run]:
    """Runs with and without gaps between them, of all kinds."""
    runs: list[Run] = []
    end = 0
    for _ in range(draw(st.integers(0, 12))):
        start = end + PAGE * draw(st.sampled_from([0, 0, 1, 5]))
        pages = draw(st.integers(1, 4))
        runs.append((start, pages, draw(st.sampled_from([PRESENT, PRESENT | LAZY, LAZY, PARENT]))))
        end = start + pages * PAGE
    return runs


def as_protobuf(runs: list[Run], pages_id: int) -> bytes:
    """What a plain writer makes of them."""
    whole: list[Run] = []
    for start, pages, flags in runs:
        if whole and whole[-1][0] + whole[-1][1] * PAGE == start and whole[-1][2] == flags:
            whole[-1] = (whole[-1][0], whole[-1][1] + pages, flags)
        else:
            whole.append((start, pages, flags))
    return (
        header(PAGEMAP_MAGIC)
        + record(PagemapHead(pages_id=pages_id))
        + b"".join(
            record(PagemapEntry(vaddr=at, compat_nr_pages=n, flags=flags, nr_pages=n))
            for at, n, flags in whole
        )
    )


def put(image: PageImage, runs: list[Run]) -> None:
    """One by one, as they come over a connection."""
    for start, pages, flags in runs:
        if flags & PRESENT:
            image.write(memoryview(bytes(pages * PAGE)))
            image.present(start, pages, flags)
        elif flags & PARENT:
            image.in_parent(start, pages)
        else:
            image.lazy(start, pages)


def add(image: PageImage, runs: list[Run]) -> None:
    """All of them at once."""
    image.write(memoryview(bytes(sum(n for _, n, flags in runs if flags & PRESENT) * PAGE)))
    starts, pages, flags = (numbers(*(run[i] for run in runs)) for i in range(3))
    image.add(starts, pages, flags)


@given(ascending(), st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=4))
def test_however_runs_are_given_the_files_are_the_same(
    runs: list[Run], cuts: list[tuple[int, bool]]
) -> None:
    with TemporaryDirectory() as name:
        with PageImage(Path(name), "pagemap-9.img", 3, PAGE) as image:
            rest = runs
            for count, at_once in cuts:
                some, rest = rest[:count], rest[count:]
                (add if at_once else put)(image, some)
            put(image, rest)
        assert (Path(name) / "pagemap-9.img").read_bytes() == as_protobuf(runs, 3)
        counts = {PRESENT: image.pages, PARENT: image.holes, LAZY: image.lazy_pages}
        for kind, count in counts.items():
            of_kind = [n for _, n, flags in runs if flags & (PRESENT | PARENT or LAZY) == kind]
            if kind == LAZY:
                of_kind = [n for _, n, flags in runs if flags == LAZY]
            assert count == sum(of_kind)
        assert (Path(name) / "pages-3.img").stat().st_size == image.pages * PAGE


@pytest.mark.parametrize("at_once", [False, True])
def test_more_runs_than_are_kept(tmp_path: Path, at_once: bool) -> None:
    runs = [(2 * number * PAGE, 1, PARENT) for number in range(20_000)]
    with PageImage(tmp_path, "pagemap-9.img", 3, PAGE) as image:
        (add if at_once else put)(image, runs)
        assert image.entries == len(runs) - 1
    _, found = read_pagemap(tmp_path / "pagemap-9.img", PAGE)
    assert found.starts.tolist() == [start for start, _, _ in runs]


@pytest.mark.parametrize(
    "later",
    [[(PAGE, 1, PARENT)], [(2 * PAGE, 2, PARENT), (3 * PAGE, 1, PARENT)], [(8 * PAGE, 0, 1)]],
)
@pytest.mark.parametrize("at_once", [False, True])
def test_runs_out_of_order_are_refused(tmp_path: Path, later: list[Run], at_once: bool) -> None:
    with PageImage(tmp_path, "pagemap-9.img", 3, PAGE) as image:
        put(image, [(0, 2, PARENT)])
        with pytest.raises(ValueError, match=r"do not follow|out of order"):
            (add if at_once else put)(image, later)


def test_a_run_that_the_old_flavour_cannot_have_is_one_line(tmp_path: Path) -> None:
    image = PageImage(tmp_path, "pagemap-9.img", 3, PAGE, flavour=Flavour.OLD)
    image.lazy(0, 1 << 32)
    with pytest.raises(ImageError, match="old flavour"):
        image.close()


def test_only_present_pages_have_bytes(tmp_path: Path) -> None:
    where = numbers(0x1000, 0x2000, 0x3000, 0x4000)
    flags = np.array([PRESENT | LAZY, PARENT, LAZY, PRESENT], np.uint8)
    content = [np.concatenate((page(1), page(2)))]
    counts = write_pages(
        tmp_path, "pagemap-9.img", 3, PageList(where, flags, content), PAGE, Flavour.BOTH
    )
    assert (counts.present, counts.parent, counts.lazy) == (2, 1, 1)
    assert (tmp_path / "pages-3.img").read_bytes() == bytes([1]) * PAGE + bytes([2]) * PAGE
    assert (tmp_path / "pagemap-9.img").read_bytes().startswith(header(PAGEMAP_MAGIC))


def test_content_that_is_not_that_of_the_pages_is_refused(tmp_path: Path) -> None:
    pages = PageList(numbers(0x1000), np.array([PRESENT], np.uint8), [page(1), page(2)])
    with pytest.raises(ValueError, match="8192 bytes for 1 pages"):
        write_pages(tmp_path, "pagemap-9.img", 1, pages, PAGE, Flavour.BOTH)


def test_what_a_parent_lists_may_be_left_to_it(tmp_path: Path) -> None:
    """Also across entries of both kinds; not what stayed with the process."""
    runs = [(0, 2, PRESENT), (2 * PAGE, 2, PARENT), (5 * PAGE, 1, LAZY), (6 * PAGE, 1, PRESENT)]
    with PageImage(tmp_path, "pagemap-9.img", 3, PAGE) as image:
        put(image, runs)
    listed = ListedPages.of(tmp_path / "pagemap-9.img", PAGE)
    assert listed.covers(0, 4 * PAGE) and listed.covers(PAGE, 3 * PAGE)
    assert not listed.covers(3 * PAGE, 5 * PAGE)
    assert not listed.covers(5 * PAGE, 6 * PAGE)
    starts = numbers(6 * PAGE, 5 * PAGE, 7 * PAGE)
    assert listed.cover(starts, starts + np.uint64(PAGE)).tolist() == [True, False, False]


def test_a_parent_that_lists_nothing_covers_nothing(tmp_path: Path) -> None:
    with PageImage(tmp_path, "pagemap-9.img", 3, PAGE):
        pass
    assert not ListedPages.of(tmp_path / "pagemap-9.img", PAGE).covers(0, PAGE)
