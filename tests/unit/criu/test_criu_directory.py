"""Image directories: real ones of two CRIU versions, and every way in which one can be wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from livemigration.criu.images import ImageDirectory, ImageError
from livemigration.criu.pb.pagemap_pb2 import PagemapEntry, PagemapHead

if TYPE_CHECKING:
    from conftest import ImageBuilder
else:
    ImageBuilder = Any

DATA = Path(__file__).parents[2] / "data" / "criu"
SAMPLES = {
    "full-4.1.1": (DATA / "full-4.1.1", None),
    "full-4.2.1": (DATA / "full-4.2.1", None),
    "page-server-4.1.1": (DATA / "page-server-4.1.1/src", DATA / "page-server-4.1.1/dst"),
    "page-server-4.2.1": (DATA / "page-server-4.2.1/src", DATA / "page-server-4.2.1/dst"),
}
PAGE = 4096
PARENT, LAZY, PRESENT = 1, 2, 4
PRIVATE, SHARED = 0x10000000, 0x20000000
TOUCHED = [i for i in range(64) if i < 48 or i % 2 == 0]


def open_sample(name: str) -> ImageDirectory:
    return ImageDirectory.open(*SAMPLES[name])


def expect_error(path: Path, text: str, also: Path | None = None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        ImageDirectory.open(path, also)
    line = str(caught.value)
    assert text in line
    assert "\n" not in line
    assert line.startswith(f"{caught.value.file}: ")
    return caught.value


@pytest.mark.parametrize("name", SAMPLES)
class TestRealDumps:
    def test_the_process(self, name: str) -> None:
        images = open_sample(name)
        assert images.page_size == PAGE
        (process,) = images.processes
        assert process.pid == (24563 if name.endswith("4.1.1") else 24665)
        assert (process.ppid, process.comm) == (0, "memtouch")
        assert images.process(process.pid) is process

    def test_its_mappings(self, name: str) -> None:
        (process,) = open_sample(name).processes
        by_start = {vma.start: vma for vma in process.vmas}
        private, shared = by_start[PRIVATE], by_start[SHARED]
        assert (private.end - private.start) // PAGE == 64
        assert private.is_anon_private
        assert not private.is_file
        assert (shared.end - shared.start) // PAGE == 8
        assert shared.is_anon_shared
        assert not shared.is_file
        assert [vma.name for vma in process.vmas if vma.is_file] == ["/opt/memtouch/memtouch"] * 5
        (heap,) = [vma for vma in process.vmas if vma.is_heap]
        assert (heap.start, heap.end) == (process.start_brk, process.brk)
        (stack,) = [vma for vma in process.vmas if vma.is_stack]
        assert stack.end > 0x7FF000000000
        assert len([vma for vma in process.vmas if vma.is_kernel_data]) == 2

    def test_touched_pages_are_there_and_untouched_ones_are_not(self, name: str) -> None:
        (process,) = open_sample(name).processes
        addresses = process.pages.addresses
        found = addresses[(addresses >= PRIVATE) & (addresses < PRIVATE + 64 * PAGE)]
        assert ((found - PRIVATE) // PAGE).tolist() == TOUCHED

    def test_private_pages_hold_what_the_program_wrote(self, name: str) -> None:
        images = open_sample(name)
        addresses = np.array([PRIVATE + i * PAGE for i in TOUCHED], np.uint64)
        data = images.read_pages(images.processes[0].pid, addresses).reshape(-1, PAGE)
        for i, page in zip(TOUCHED, data, strict=True):
            assert int.from_bytes(page[:8].tobytes(), "little") == i
            counter = page[8:16].tobytes()
            assert (counter != bytes([i]) * 8) == (i < 16)
            assert page[16:].tobytes() == bytes([i]) * (PAGE - 16)

    def test_shared_pages_hold_what_the_program_wrote(self, name: str) -> None:
        images = open_sample(name)
        (segment,) = images.shared.values()
        assert segment.size == 8 * PAGE
        assert segment.shmid == (1260 if name.endswith("4.1.1") else 1267)
        offsets = np.arange(8, dtype=np.uint64) * np.uint64(PAGE)
        data = images.read_shared(segment.shmid, offsets).reshape(-1, PAGE)
        assert data.tolist() == [[0xA0 + i] * PAGE for i in range(8)]

    def test_all_pages_read_in_order_are_the_pages_file(self, name: str) -> None:
        images = open_sample(name)
        (process,) = images.processes
        data = images.read_pages(process.pid, process.pages.addresses)
        number = "65538" if name.startswith("page-server") else "2"
        folder = SAMPLES[name][1] or SAMPLES[name][0]
        assert data.tobytes() == (folder / f"pages-{number}.img").read_bytes()
        assert images.pages == len(process.pages) + 8

    def test_any_order_of_addresses_is_answered_in_that_order(self, name: str) -> None:
        images = open_sample(name)
        (process,) = images.processes
        order = np.random.default_rng(1).permutation(len(process.pages))
        straight = images.read_pages(process.pid, process.pages.addresses).reshape(-1, PAGE)
        mixed = images.read_pages(process.pid, process.pages.addresses[order])
        assert mixed.tobytes() == straight[order].tobytes()


def test_both_versions_dumped_the_same_private_pages_but_for_the_counters() -> None:
    pages = []
    for name in ("full-4.1.1", "full-4.2.1"):
        images = open_sample(name)
        addresses = np.array([PRIVATE + i * PAGE for i in TOUCHED], np.uint64)
        data = images.read_pages(images.processes[0].pid, addresses).reshape(-1, PAGE)
        data[:16, 8:16] = 0
        pages.append(data)
    assert np.array_equal(pages[0], pages[1])


class TestReading:
    def test_an_address_without_a_page_is_refused(self, images: ImageBuilder) -> None:
        opened = ImageDirectory.open(images.simple().path)
        with pytest.raises(ValueError, match="page 0x12000 is not in the images"):
            opened.read_pages(7, np.array([0x10000, 0x12000], np.uint64))
        with pytest.raises(ValueError, match="page 0x16000 is not in the images"):
            opened.read_pages(7, np.array([0x16000], np.uint64))

    def test_no_addresses_no_bytes(self, images: ImageBuilder) -> None:
        opened = ImageDirectory.open(images.simple().path)
        assert opened.read_pages(7, np.array([], np.uint64)).size == 0

    def test_a_pages_file_cut_after_opening(self, images: ImageBuilder) -> None:
        opened = ImageDirectory.open(images.simple().path)
        (images.path / "pages-1.img").write_bytes(bytes(PAGE + 5))
        with pytest.raises(ImageError, match=r"pages-1\.img: ends at 4101 bytes, within a page"):
            opened.read_pages(7, np.array([0x11000], np.uint64))
        (images.path / "pages-1.img").unlink()
        with pytest.raises(ImageError, match=r"pages-1\.img: No such file"):
            opened.read_pages(7, np.array([0x11000], np.uint64))

    @pytest.mark.parametrize("dialect", ["4.2", "4.1", "3.0"])
    def test_dialects(self, images: ImageBuilder, dialect: str) -> None:
        images.simple()
        images.pages((0x10000, 2, PRESENT), (0x15000, 3, PRESENT), dialect=dialect)
        (process,) = ImageDirectory.open(images.path).processes
        expected = [0x10000, 0x11000, 0x15000, 0x16000, 0x17000]
        assert process.pages.addresses.tolist() == expected

    def test_page_size_is_that_of_the_auxiliary_vector(self, images: ImageBuilder) -> None:
        images.inventory()
        images.tree()
        images.process(page_size=16384)
        images.pages((0x14000, 2, PRESENT), page_size=16384)
        opened = ImageDirectory.open(images.path)
        assert opened.page_size == 16384
        data = opened.read_pages(7, np.array([0x18000], np.uint64))
        assert data.tobytes() == bytes([2]) * 16384

    def test_zombies_are_left_out(self, images: ImageBuilder) -> None:
        images.simple()
        images.tree((7, 0), (8, 7))
        images.write("core-8", bytes([0x08, 1, 0x1A, 2, 0x08, 2]))  # mtype 1, task_state 2
        assert [process.pid for process in ImageDirectory.open(images.path).processes] == [7]

    def test_a_tree_of_processes(self, images: ImageBuilder) -> None:
        images.simple()
        images.tree((7, 0), (9, 7))
        images.process(pid=9, comm=b"caf\xe9")
        images.pages((0x1F000, 1, PRESENT), name="pagemap-9", pages_id=2)
        first, second = ImageDirectory.open(images.path).processes
        assert (first.pid, first.ppid, len(first.pages)) == (7, 0, 3)
        assert (second.pid, second.ppid, len(second.pages)) == (9, 7, 1)
        assert second.comm == "caf\N{REPLACEMENT CHARACTER}"


class TestParents:
    def chain(self, images: ImageBuilder) -> list[ImageBuilder]:
        """Three levels. In the last, pages 0..3 are: here, level 1, level 2, level 2."""
        make = type(images)
        root = images.path.parent
        levels = [images, make(root / "pre1"), make(root / "pre0")]
        images.simple()
        images.pages((0x10000, 1, PRESENT), (0x11000, 3, PARENT), fill=b"\x30")
        entries = [(0x10000, 2, PRESENT), (0x12000, 2, PARENT)]
        levels[1].pages(*entries, pages_id=4, fill=b"\x20\x21")
        levels[2].pages((0x10000, 4, PRESENT), fill=b"\x10\x11\x12\x13")
        (images.path / "parent").symlink_to("../pre1")
        (levels[1].path / "parent").symlink_to("../pre0")
        return levels

    def test_each_page_comes_from_the_newest_level_that_has_it(self, images: ImageBuilder) -> None:
        self.chain(images)
        opened = ImageDirectory.open(images.path)
        (process,) = opened.processes
        assert process.pages.addresses.tolist() == [0x10000, 0x11000, 0x12000, 0x13000]
        assert process.pages.level.tolist() == [0, 1, 2, 2]
        data = opened.read_pages(7, process.pages.addresses)
        assert data.reshape(-1, PAGE)[:, 0].tolist() == [0x30, 0x21, 0x12, 0x13]

    def test_no_pages_file_is_needed_if_nothing_is_new(self, images: ImageBuilder) -> None:
        levels = self.chain(images)
        levels[0].pages((0x10000, 2, PARENT))
        (images.path / "pages-1.img").unlink()
        data = ImageDirectory.open(images.path).read_pages(7, np.array([0x10000], np.uint64))
        assert data[0] == 0x20

    def test_no_link(self, images: ImageBuilder) -> None:
        self.chain(images)
        (images.path / "parent").unlink()
        expect_error(images.path, "leads to no directory")

    def test_dangling_link(self, images: ImageBuilder) -> None:
        self.chain(images)
        shutil.rmtree(images.path.parent / "pre0")
        error = expect_error(images.path, "leads to no directory")
        assert error.file == images.path / "../pre1/pagemap-7.img"

    def test_parent_that_does_not_know_the_process(self, images: ImageBuilder) -> None:
        levels = self.chain(images)
        (levels[1].path / "pagemap-7.img").unlink()
        expect_error(images.path, "there is no")

    @pytest.mark.parametrize("pages", [1, 2])
    def test_parent_that_lacks_the_page(self, images: ImageBuilder, pages: int) -> None:
        levels = self.chain(images)
        levels[2].pages((0x10000, pages, PRESENT), (0x14000, 5, PRESENT))
        error = expect_error(images.path, "page 0x12000 is said to be in the parent")
        assert error.file == images.path / "../pre1/pagemap-7.img"

    def test_only_the_immediate_parent_is_asked(self, images: ImageBuilder) -> None:
        levels = self.chain(images)
        levels[1].pages((0x10000, 2, PRESENT), (0x12000, 1, PARENT), pages_id=4)
        error = expect_error(images.path, "page 0x13000 is said to be in the parent")
        assert error.file == images.path / "pagemap-7.img"

    def test_parent_that_is_its_own_parent(self, images: ImageBuilder) -> None:
        levels = self.chain(images)
        (levels[1].path / "parent").unlink()
        (levels[1].path / "parent").symlink_to(".")
        expect_error(images.path, "the chain of parents has no end")


class TestWrongDirectories:
    def test_no_directory(self, tmp_path: Path) -> None:
        expect_error(tmp_path / "nowhere", "no such directory")

    def test_empty_directory(self, tmp_path: Path) -> None:
        expect_error(tmp_path, "inventory.img: no such file; give the directory of a complete")

    @pytest.mark.parametrize(
        "name", ["inventory", "pstree", "core-24563", "mm-24563", "memfd", "pagemap-24563"]
    )
    def test_each_missing_file_is_named(self, tmp_path: Path, name: str) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(SAMPLES["full-4.1.1"][0], copy)
        (copy / f"{name}.img").unlink()
        expect_error(copy, f"{name}.img: no such file")

    def test_missing_pages_file(self, images: ImageBuilder) -> None:
        (images.simple().path / "pages-1.img").unlink()
        expect_error(images.path, "pages-1.img: no such file, but a pagemap names it")

    def test_page_server_dump_without_the_servers_directory(self) -> None:
        expect_error(SAMPLES["page-server-4.1.1"][0], "give the server's directory too")

    def test_files_img_is_not_needed_without_memfds(self, images: ImageBuilder) -> None:
        vma = images.vma(0x10000, 16, status=1 | 1 << 6, flags=2, shmid=3)
        images.simple().process(vma)
        (process,) = ImageDirectory.open(images.path).processes
        assert process.vmas[0].is_file
        assert process.vmas[0].name == ""

    def test_pre_dump(self, images: ImageBuilder) -> None:
        images.simple().inventory(None)
        expect_error(images.path, "belongs to a pre-dump")

    def test_unknown_image_version(self, images: ImageBuilder) -> None:
        images.simple().inventory(3)
        expect_error(images.path, "image version 3 is unknown")

    def test_wrong_magic(self, images: ImageBuilder) -> None:
        images.simple()
        shutil.copy(images.path / "pstree.img", images.path / "mm-7.img")
        expect_error(images.path, "mm-7.img: begins with 1943565430302750, which is not what")

    @pytest.mark.parametrize(
        ("size", "text"),
        [
            (0, "cut off after 0 bytes"),
            (7, "cut off after 7 bytes"),
            (8, "has no record"),
            (10, "cut off within a record's size"),
            (14, "cut off: a record of"),
        ],
    )
    def test_cut_image(self, images: ImageBuilder, size: int, text: str) -> None:
        file = images.simple().path / "mm-7.img"
        file.write_bytes(file.read_bytes()[:size])
        expect_error(images.path, f"mm-7.img: {text}")

    def test_record_that_is_no_protobuf(self, images: ImageBuilder) -> None:
        images.simple().write("mm-7", b"\xff\xff\xff")
        expect_error(images.path, "the record of 3 bytes at 12 is no protobuf")

    def test_directory_in_place_of_a_file(self, images: ImageBuilder) -> None:
        (images.simple().path / "pstree.img").unlink()
        (images.path / "pstree.img").mkdir()
        expect_error(images.path, "pstree.img: Is a directory")

    def test_no_tasks(self, images: ImageBuilder) -> None:
        images.simple().write("pstree")
        expect_error(images.path, "pstree.img: has no task with memory")

    def test_task_twice(self, images: ImageBuilder) -> None:
        images.simple().tree((7, 0), (7, 0))
        expect_error(images.path, "has task 7 twice")

    def test_task_without_pid(self, images: ImageBuilder) -> None:
        images.simple().write("pstree", b"\x10\x00")
        expect_error(images.path, "pstree.img: a record has no pid")

    def test_no_mappings(self, images: ImageBuilder) -> None:
        images.simple().write("mm-7", b"\x30\x00")
        expect_error(images.path, "mm-7.img: has no mappings")

    def test_impossible_page_size(self, images: ImageBuilder) -> None:
        images.simple().process(page_size=8192)
        expect_error(images.path, "page size 8192 is not possible")

    @pytest.mark.parametrize(
        ("start", "pages"), [(0x10001, 1), (0x20000, 0), (0x18000, 1)], ids=["odd", "none", "twice"]
    )
    def test_impossible_mapping(self, images: ImageBuilder, start: int, pages: int) -> None:
        images.simple().process(images.vma(), images.vma(start, pages))
        expect_error(images.path, f"the mapping {start:#x}-")

    def test_system_v_shared_memory(self, images: ImageBuilder) -> None:
        images.simple().process(images.vma(), images.vma(0x80000, status=1 | 1 << 8 | 1 << 10))
        expect_error(images.path, "is System V shared memory; dump a program without it")

    def test_page_outside_all_mappings(self, images: ImageBuilder) -> None:
        images.simple().pages((0x1F000, 2, PRESENT))
        expect_error(images.path, "page 0x20000 lies in no mapping")
        images.pages((0xF000, 2, PRESENT))
        expect_error(images.path, "page 0xf000 lies in no mapping")


class TestWrongPagemaps:
    @pytest.mark.parametrize(
        ("flags", "text"),
        [
            (8 | PRESENT, "at 0x11000 have unknown flags 0xc"),
            (LAZY, "at 0x11000 stayed at the source (lazy pages)"),
            (0, "at 0x11000 stayed at the source"),
            (PARENT | PRESENT, "at 0x11000 are both here and in the parent"),
        ],
    )
    def test_flags(self, images: ImageBuilder, flags: int, text: str) -> None:
        images.simple().pages((0x11000, 1, flags))
        expect_error(images.path, f"pagemap-7.img: pages {text}")

    @pytest.mark.parametrize(
        "second", [(0x11000, 1), (0x13800, 1), (0x13000, 0), (0x13000, 1 << 60)]
    )
    def test_order_and_size(self, images: ImageBuilder, second: tuple[int, int]) -> None:
        images.simple()
        images.pages((0x10000, 2, PRESENT), (*second, PRESENT), fill=b"\1")
        expect_error(images.path, "do not follow the entry before (up to 0x12000)")

    def test_more_pages_than_any_file_holds_do_not_take_memory(self, images: ImageBuilder) -> None:
        images.simple()
        images.pages((0x10000, 1 << 50, PARENT))
        parent = type(images)(images.path.parent / "pre")
        parent.pages((0x10000, 1, PRESENT))
        (images.path / "parent").symlink_to("../pre")
        expect_error(images.path, "page 0x10000 is said to be in the parent")

    @pytest.mark.parametrize("change", [-1, 1, -PAGE, PAGE])
    def test_pages_file_of_another_size(self, images: ImageBuilder, change: int) -> None:
        file = images.simple().path / "pages-1.img"
        file.write_bytes(bytes(3 * PAGE + change))
        expect_error(images.path, f"{3 * PAGE + change} bytes, but the pagemap has 3 pages")

    def test_no_number_of_pages_file(self, images: ImageBuilder) -> None:
        images.simple().write("pagemap-7", b"")
        expect_error(images.path, "pagemap-7.img: a record has no pages_id")


class TestSharedSegments:
    def with_segment(self, images: ImageBuilder, *, pgoff: int = PAGE) -> ImageBuilder:
        shared = images.vma(0x40000, 2, status=1 | 1 << 8, flags=0x21, shmid=5, pgoff=pgoff)
        images.simple().process(images.vma(), shared)
        images.pages((0, 1, PRESENT), (0x2000, 1, PRESENT), name="pagemap-shmem-5", pages_id=2)
        return images

    def test_segment_is_as_long_as_its_mappings_and_pages_need(self, images: ImageBuilder) -> None:
        opened = ImageDirectory.open(self.with_segment(images).path)
        assert opened.shared[5].size == 3 * PAGE
        assert opened.read_shared(5, np.array([0x2000], np.uint64))[0] == 2
        assert opened.pages == 5
        images.pages((0x9000, 1, PRESENT), name="pagemap-shmem-5", pages_id=2)
        assert ImageDirectory.open(images.path).shared[5].size == 10 * PAGE

    def test_odd_offset(self, images: ImageBuilder) -> None:
        expect_error(self.with_segment(images, pgoff=5).path, "offset 0x5 in a shared segment")

    def test_missing_pagemap(self, images: ImageBuilder) -> None:
        (self.with_segment(images).path / "pagemap-shmem-5.img").unlink()
        expect_error(images.path, "pagemap-shmem-5.img: no such file")

    def test_memfd_that_no_file_names(self, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(SAMPLES["full-4.2.1"][0], copy)
        (copy / "files.img").unlink()
        expect_error(copy, "is of memfd 2, which files.img does not have")


class TestThingsThatAreNoImages:
    """A directory may come from anybody: nothing in it may be waited for, or believed unseen."""

    @pytest.mark.parametrize("name", ["pstree.img", "mm-7.img", "pagemap-7.img", "pages-1.img"])
    def test_a_pipe_that_nobody_writes_to(self, images: ImageBuilder, name: str) -> None:
        (images.simple().path / name).unlink()
        os.mkfifo(images.path / name)
        expect_error(images.path, f"{name}: is no regular file")

    def test_a_device_without_an_end(self, images: ImageBuilder) -> None:
        (images.simple().path / "files.img").symlink_to("/dev/zero")
        expect_error(images.path, "files.img: is no regular file")

    def test_an_image_as_large_as_a_disk(self, images: ImageBuilder) -> None:
        os.truncate(images.simple().path / "mm-7.img", 1 << 40)
        expect_error(images.path, f"mm-7.img: {1 << 40} bytes are too many")

    def test_pages_that_are_all_holes(self, images: ImageBuilder) -> None:
        images.simple().process(images.vma(0x10000, 1 << 30))
        claim = PagemapEntry(vaddr=0x10000, compat_nr_pages=0, flags=PRESENT, nr_pages=1 << 28)
        head = PagemapHead(pages_id=1)
        images.write("pagemap-7", head.SerializeToString(), claim.SerializeToString())
        (images.path / "pages-1.img").touch()
        os.truncate(images.path / "pages-1.img", 1 << 40)
        expect_error(images.path, f"lists pages of {1 << 40} bytes, and no task has more")

    def test_parents_in_a_circle(self, images: ImageBuilder) -> None:
        images.simple().pages((0x10000, 1, PARENT))
        (images.path / "parent").symlink_to(".")
        expect_error(images.path, "the chain of parents has no end")
