"""A look at directories, whole, unfinished and damaged: what is there, and all that is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from livemigration.criu.compare import compare
from livemigration.criu.dedup import dedup
from livemigration.criu.images import ImageDirectory, ImageError
from livemigration.criu.survey import Survey, survey

if TYPE_CHECKING:
    from conftest import ImageBuilder
else:
    ImageBuilder = Any

DATA = Path(__file__).parents[2] / "data" / "criu"
PAGE = 4096
PRESENT, LAZY, PARENT = 4, 2, 1


@pytest.fixture
def chain(images: ImageBuilder) -> list[ImageBuilder]:
    """Three directories of process 7, the last one a dump: 1 <- 2 <- images.

    Pages 0x10-0x14 are in the first, 0x11 and 0x13 in the second, 0x13 and 0x15 in the last.
    """
    folder = images.path.parent
    one, two = type(images)(folder / "1"), type(images)(folder / "2")
    one.pages((0x10000, 5, PRESENT), fill=b"abcde")
    one.inventory(None)
    two.pages(
        (0x10000, 1, PARENT), (0x11000, 1, PRESENT), (0x12000, 1, PARENT), (0x13000, 1, PRESENT),
        (0x14000, 1, PARENT), fill=b"BD",
    )  # fmt: skip
    two.inventory(None)
    images.inventory()
    images.tree()
    images.process()
    images.pages((0x10000, 3, PARENT), (0x13000, 1, PRESENT), (0x15000, 1, PRESENT), fill=b"xy")
    (two.path / "parent").symlink_to("../1")
    (images.path / "parent").symlink_to("../2")
    return [one, two, images]


def wrong(found: Survey) -> list[str]:
    return [
        f"{trouble.file.parent.name}/{trouble.file.name} {trouble.start:#x} {trouble.pages} "
        f"{trouble.what}"
        for trouble in found.everything_wrong()
    ]


class TestWhatIsThere:
    @pytest.mark.parametrize("version", ["4.1.1", "4.2.1"])
    def test_a_real_dump(self, version: str) -> None:
        found = survey(DATA / f"full-{version}")
        (process,) = found.processes
        assert (found.kind, found.page_size) == ("dump", PAGE)
        assert (process.comm, process.threads, len(process.vmas)) == ("memtouch", 1, 13)
        assert process.pages is not None
        opened = ImageDirectory.open(DATA / f"full-{version}")
        assert process.pages.resolved == len(opened.processes[0].pages)
        (segment,) = found.segments.values()
        assert segment.resolved == 8
        assert wrong(found) == []

    def test_a_chain(self, chain: list[ImageBuilder]) -> None:
        found = survey(chain[2].path)
        pages = next(found.page_sets)
        used = [(level.folder.name, level.present, level.used) for level in pages.levels]
        assert used == [("images", 2, 2), ("2", 2, 1), ("1", 5, 2)]
        assert (pages.listed.pages, pages.resolved) == (5, 5)
        assert [folder.name for folder in found.chain] == ["images", "2", "1"]
        assert wrong(found) == []

    def test_a_pre_dump_has_pages_and_nothing_else(self, chain: list[ImageBuilder]) -> None:
        found = survey(chain[1].path)
        assert found.kind == "pre-dump"
        assert [(p.pid, p.comm, p.vmas) for p in found.processes] == [(7, "", ())]
        assert wrong(found) == []

    def test_the_page_size_of_a_pre_dump_is_told_by_its_pages(self, images: ImageBuilder) -> None:
        images.inventory(None)
        images.pages((0x100000, 3, PRESENT), page_size=65536)
        assert survey(images.path).page_size == 65536
        assert wrong(survey(images.path)) == []

    def test_two_directories_of_a_page_server(self) -> None:
        alone = survey(DATA / "page-server-4.1.1/src")
        assert [line.partition(" ")[0] for line in wrong(alone)] == [
            "src/pagemap-24563.img", "src/stats-dump", "src/stats-dump",
        ]  # fmt: skip
        both = survey(DATA / "page-server-4.1.1/src", DATA / "page-server-4.1.1/dst")
        assert wrong(both) == []


class TestWhatIsMissing:
    def test_no_directory_and_no_images(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="no such directory"):
            survey(tmp_path / "no")
        with pytest.raises(ImageError, match="has no images"):
            survey(tmp_path)

    def test_a_parent_that_is_gone(self, chain: list[ImageBuilder]) -> None:
        shutil.rmtree(chain[0].path)
        lines = wrong(survey(chain[2].path))
        assert lines[0] == "2/parent 0x0 0 leads to no directory"
        assert [line.split()[:3] for line in lines[1:]] == [
            ["images/pagemap-7.img", "0x10", "1"],
            ["images/pagemap-7.img", "0x12", "1"],
        ]

    def test_a_page_that_the_parent_does_not_have(self, chain: list[ImageBuilder]) -> None:
        chain[1].pages((0x10000, 1, PARENT), (0x13000, 1, PRESENT))
        (line,) = wrong(survey(chain[2].path))
        assert line.startswith("2/pagemap-7.img 0x11 2 the directory before says")

    def test_a_parent_without_the_process(self, chain: list[ImageBuilder]) -> None:
        (chain[1].path / "pagemap-7.img").unlink()
        (line,) = wrong(survey(chain[2].path))
        assert line.startswith("images/pagemap-7.img 0x10 3 their bytes are in a parent")

    def test_pages_that_stayed_at_the_source(self, images: ImageBuilder) -> None:
        images.simple().pages((0x10000, 2, PRESENT), (0x13000, 4, LAZY))
        (line,) = wrong(survey(images.path))
        assert line == "images/pagemap-7.img 0x13 4 stayed at the source (lazy pages)"

    def test_a_pages_file_that_is_too_short(self, chain: list[ImageBuilder]) -> None:
        (chain[0].path / "pages-1.img").write_bytes(bytes(PAGE))
        (line,) = wrong(survey(chain[2].path, page_size=PAGE))
        assert line.startswith("1/pages-1.img 0x0 0 4096 bytes, and the pagemap has 5 pages")

    def test_pages_outside_of_all_mappings(self, images: ImageBuilder) -> None:
        images.simple().pages((0x10000, 2, PRESENT), (0x1F000, 3, PRESENT))
        (line,) = wrong(survey(images.path))
        assert line == "images/pagemap-7.img 0x20 2 lie in no mapping of the process"

    def test_stats_that_tell_of_other_pages(self, tmp_path: Path) -> None:
        shutil.copytree(DATA / "full-4.2.1", tmp_path / "copy")
        shutil.copy(DATA / "full-4.1.1/stats-dump", tmp_path / "copy/stats-dump")
        (line,) = wrong(survey(tmp_path / "copy"))
        assert line == "copy/stats-dump 0x0 0 pages_written is 70, and the pagemaps have 69"

    @pytest.mark.parametrize("name", ["pstree.img", "mm-7.img", "inventory.img", "core-7.img"])
    def test_damaged_images_are_told_of_and_the_rest_is_shown(
        self, images: ImageBuilder, name: str
    ) -> None:
        (images.simple().path / name).write_bytes(b"????????")
        found = survey(images.path)
        assert f"images/{name} 0x0 0 begins with" in wrong(found)[0]
        assert next(found.page_sets).resolved == 3

    def test_claims_of_a_damaged_pagemap_take_no_memory(self, chain: list[ImageBuilder]) -> None:
        chain[2].pages((0x10000, 1 << 51, PARENT))
        lines = wrong(survey(chain[2].path))
        assert any("lie in no mapping" in line for line in lines)
        assert any("0x15" in line and "2/pagemap-7.img" in line for line in lines)


class TestDifferences:
    def test_none(self, chain: list[ImageBuilder]) -> None:
        assert compare(chain[2].path, chain[2].path).same

    def test_pages_are_compared_as_they_resolve(self, chain: list[ImageBuilder]) -> None:
        """The full dump has the same bytes in one directory, but for page 0x12."""
        whole = type(chain[0])(chain[0].path.parent / "whole")
        whole.inventory()
        whole.tree()
        whole.process()
        whole.pages((0x10000, 4, PRESENT), (0x15000, 1, PRESENT), fill=b"aBzxy")
        found = compare(chain[2].path, whole.path)
        (pages,) = found.pages
        assert pages.ranges(pages.different) == [(0x12000, 0x13000)]
        assert pages.equal == 4
        assert not found.same

    def test_zeros_that_only_one_has_are_no_difference(self, images: ImageBuilder) -> None:
        images.simple()
        other = type(images)(images.path.parent / "other")
        other.simple().pages(
            (0x10000, 2, PRESENT), (0x12000, 1, PRESENT), (0x15000, 1, PRESENT), fill=b"\1\2\0\3"
        )
        found = compare(images.path, other.path)
        assert found.same
        assert found.pages[0].zeros == 1

    def test_pages_and_mappings_that_only_one_has(self, images: ImageBuilder) -> None:
        images.simple()
        other = type(images)(images.path.parent / "other")
        other.simple().process(other.vma(), other.vma(0x50000, 2))
        other.pages((0x10000, 2, PRESENT), (0x15000, 1, PRESENT), (0x50000, 1, PRESENT))
        found = compare(images.path, other.path)
        assert found.pages[0].ranges(found.pages[0].only_second) == [(0x50000, 0x51000)]
        (layout,) = found.layouts
        assert [(vma.start, vma.end) for vma in layout.only_second] == [(0x50000, 0x52000)]

    def test_page_sizes_that_differ(self, images: ImageBuilder) -> None:
        images.simple()
        other = type(images)(images.path.parent / "other")
        other.simple().process(other.vma(0x10000, 32), page_size=16384)
        other.pages((0x10000, 1, PRESENT), page_size=16384)
        with pytest.raises(ImageError, match="pages of 16384 bytes"):
            compare(images.path, other.path)


class TestDedup:
    def content(self, builder: ImageBuilder) -> bytes:
        return (builder.path / "pages-1.img").read_bytes()[::PAGE]

    def test_what_the_directory_has_itself_is_given_back(self, chain: list[ImageBuilder]) -> None:
        done = dedup(chain[2].path, PAGE)
        assert [(d.file.parent.name, d.pages) for d in done] == [("2", 1), ("1", 1)]
        assert [self.content(builder) for builder in chain] == [b"abc\0e", b"B\0", b"xy"]

    def test_with_the_chain_also_what_parents_have(self, chain: list[ImageBuilder]) -> None:
        dedup(chain[2].path, PAGE, chain=True)
        assert [self.content(builder) for builder in chain] == [b"a\0c\0e", b"B\0", b"xy"]

    def test_sizes_stay_and_blocks_go(self, chain: list[ImageBuilder]) -> None:
        (first,) = [d for d in dedup(chain[2].path, PAGE) if d.file.parent.name == "1"]
        assert first.file.stat().st_size == 5 * PAGE
        assert first.bytes_after < first.bytes_before

    def test_the_last_directory_reads_as_before(self, chain: list[ImageBuilder]) -> None:
        before = ImageDirectory.open(chain[2].path)
        addresses = before.processes[0].pages.addresses
        content = before.read_pages(7, addresses)
        dedup(chain[2].path, PAGE, chain=True)
        after = ImageDirectory.open(chain[2].path)
        assert (after.read_pages(7, addresses) == content).all()

    def test_without_a_parent(self, images: ImageBuilder) -> None:
        with pytest.raises(ImageError, match="name a directory that has a parent"):
            dedup(images.simple().path, PAGE)

    def test_a_circle_of_parents(self, chain: list[ImageBuilder]) -> None:
        (chain[0].path / "parent").symlink_to("../images")
        with pytest.raises(ImageError, match="has no end"):
            dedup(chain[2].path, PAGE)
