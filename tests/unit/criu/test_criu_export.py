"""A task written as images: what it came with is there again, and its memory byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from livemigration.criu.images import (
    CarriedImages,
    Flavour,
    ImageDirectory,
    ImageError,
    RoundPages,
    export_task,
    load_task,
)
from livemigration.criu.magic import PAGEMAP_MAGIC
from livemigration.criu.pb.pagemap_pb2 import PagemapEntry, PagemapHead
from livemigration.criu.records import Records
from livemigration.task import Task
from mm_model import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, Machine, ModelConfig

DATA = Path(__file__).parents[2] / "data" / "criu"
SAMPLES = {
    "full-4.1.1": (DATA / "full-4.1.1", None),
    "full-4.2.1": (DATA / "full-4.2.1", None),
    "page-server-4.1.1": (DATA / "page-server-4.1.1/src", DATA / "page-server-4.1.1/dst"),
    "page-server-4.2.1": (DATA / "page-server-4.2.1/src", DATA / "page-server-4.2.1/dst"),
}
PAGE = 4096
TOUCHED = 0x10000000
"""Anonymous memory of the samples' program."""


def imported(name: str) -> tuple[Task, CarriedImages]:
    images = ImageDirectory.open(*SAMPLES[name])
    task = load_task(Machine(ModelConfig(frames=images.pages + 2048)), images)
    return task, CarriedImages.read(*SAMPLES[name])


def pagemap(file: Path) -> tuple[bytes, list[tuple[int, int, int]]]:
    """The entries as (address, pages, flags), and the bytes of the pages file."""
    records = Records(file, PAGEMAP_MAGIC, "")
    pages_id = records.first(PagemapHead).pages_id
    entries = [
        (e.vaddr, e.nr_pages or e.compat_nr_pages, e.flags) for e in records.rest(PagemapEntry)
    ]
    return (file.parent / f"pages-{pages_id}.img").read_bytes(), entries


@pytest.mark.parametrize("name", SAMPLES)
class TestSamplesThereAndBack:
    """Every directory that real CRIU wrote, imported and exported again."""

    def test_images_beside_the_pages_are_the_same_bytes(self, name: str, tmp_path: Path) -> None:
        task, carried = imported(name)
        export_task(task, tmp_path / "out", carried=carried)
        for file in SAMPLES[name][0].glob("*.img"):
            if not file.name.startswith("page"):
                assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name

    def test_pagemaps_list_the_same_pages_with_the_same_bytes(
        self, name: str, tmp_path: Path
    ) -> None:
        task, carried = imported(name)
        export_task(task, tmp_path / "out", carried=carried)
        for file in (SAMPLES[name][1] or SAMPLES[name][0]).glob("pagemap-*.img"):
            assert pagemap(tmp_path / "out" / file.name) == pagemap(file), file.name

    def test_the_flavour_of_the_dump_gives_the_dump_s_own_pagemaps(
        self, name: str, tmp_path: Path
    ) -> None:
        task, carried = imported(name)
        old = name.endswith("4.1.1")
        flavour = Flavour.OLD if old else Flavour.NEW
        export_task(task, tmp_path / "out", carried=carried, flavour=flavour)
        for file in (SAMPLES[name][1] or SAMPLES[name][0]).glob("pagemap-*.img"):
            again = (tmp_path / "out" / file.name).read_bytes()
            # A page server counts its pages files from 65537.
            assert _without_head(again) == _without_head(file.read_bytes())


def _without_head(pagemap: bytes) -> bytes:
    return pagemap[12 + int.from_bytes(pagemap[8:12], "little") :]


class TestAChangedTask:
    """What the workload did to the address space since the dump is in the images."""

    def test_new_and_unmapped_memory(self, tmp_path: Path) -> None:
        task, carried = imported("full-4.2.1")
        mm = task.processes[1]
        mm.munmap(TOUCHED + 4 * PAGE, 2 * PAGE)
        mm.mmap(0x30000000, 3 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS)
        mm.store_words(np.array([0x30001000], np.uint64), np.array([7], np.uint64))
        export_task(task, tmp_path / "out", carried=carried)
        (process,) = ImageDirectory.open(tmp_path / "out").processes
        spans = [(v.start, v.end) for v in process.vmas if TOUCHED <= v.start < 0x40000000]
        assert (TOUCHED, TOUCHED + 4 * PAGE) in spans
        assert (TOUCHED + 6 * PAGE, TOUCHED + 64 * PAGE) in spans
        assert (0x30000000, 0x30003000) in spans
        new = process.pages.addresses[process.pages.addresses >= 0x30000000][0]
        assert new == 0x30001000
        assert process.pages.read(np.array([new]))[:8].tobytes() == (7).to_bytes(8, "little")
        untouched = [v for v in process.vmas if v.is_file]
        (before,) = ImageDirectory.open(DATA / "full-4.2.1").processes
        assert untouched == [v for v in before.vmas if v.is_file]
        assert [v for v in process.vmas if v.is_kernel_data] == [
            v for v in before.vmas if v.is_kernel_data
        ]

    def test_heap_that_grew(self, tmp_path: Path) -> None:
        task, carried = imported("full-4.1.1")
        mm = task.processes[1]
        end = mm.brk(mm.brk(0) + 5 * PAGE)
        export_task(task, tmp_path / "out", carried=carried)
        (process,) = ImageDirectory.open(tmp_path / "out").processes
        assert process.brk == end
        assert max(v.end for v in process.vmas if v.is_heap) == end

    def test_a_process_that_no_dump_has(self, tmp_path: Path) -> None:
        task, carried = imported("full-4.1.1")
        task.fork(1)
        with pytest.raises(ImageError, match="has 1 processes, and the task has 2 now"):
            export_task(task, tmp_path / "out", carried=carried)
        assert list(tmp_path.iterdir()) == []

    def test_a_page_that_lacks_the_bytes_of_its_file(self, tmp_path: Path) -> None:
        """The program's data at 0x4a4000 lies in a file: the dump has five pages of it."""
        task, carried = imported("full-4.1.1")
        task.processes[1].store_words(np.array([0x4A6000], np.uint64), np.array([1], np.uint64))
        export_task(task, tmp_path / "in-the-dump", carried=carried)
        mm = task.processes[1]
        mm.mprotect(0x401000, 0x1000 * 0x78, 7)
        mm.store_words(np.array([0x402000], np.uint64), np.array([1], np.uint64))
        with pytest.raises(
            ImageError, match=r"page 0x402000 of /opt/memtouch/memtouch was written"
        ):
            export_task(task, tmp_path / "out", carried=carried)

    def test_shared_memory_that_no_image_has(self, tmp_path: Path) -> None:
        task, carried = imported("full-4.1.1")
        task.processes[1].mmap(0x30000000, PAGE, 3, MAP_SHARED | MAP_ANONYMOUS)
        with pytest.raises(ImageError, match="0x30000000-0x30001000 was made in the model"):
            export_task(task, tmp_path / "out", carried=carried)


class TestWhereItIsWritten:
    def test_never_over_something(self, tmp_path: Path) -> None:
        task, carried = imported("full-4.1.1")
        (tmp_path / "file").write_text("mine")
        with pytest.raises(ImageError, match="is there already"):
            export_task(task, tmp_path, carried=carried)
        with pytest.raises(ImageError, match="is there already"):
            export_task(task, tmp_path / "file", carried=carried)

    def test_an_empty_directory_is_used(self, tmp_path: Path) -> None:
        task, carried = imported("full-4.1.1")
        export_task(task, tmp_path, carried=carried)
        assert ImageDirectory.open(tmp_path).pages == 78


class TestRounds:
    """What is in the parent is written nowhere else, so it must be there."""

    def task(self) -> Task:
        task = Task(Machine(ModelConfig(frames=1024)))
        task.processes[1].mmap(0x10000000, 4 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | 0x10)
        self.touch(task, 0x10000000, 0x10001000)
        return task

    @staticmethod
    def touch(task: Task, *pages: int) -> RoundPages:
        where = np.array(pages, np.uint64)
        task.processes[1].store_words(where, where)
        return RoundPages({1: where})

    def test_a_page_that_went_in_no_round_is_not_lost_silently(self, tmp_path: Path) -> None:
        task = self.task()
        export_task(task, tmp_path / "1", pre_dump=True)
        self.touch(task, 0x10002000)
        sent = self.touch(task, 0x10003000)
        with pytest.raises(ImageError, match="page 0x10002000 is neither among the pages"):
            export_task(task, tmp_path / "2", parent="../1", pages=sent)
        assert [folder.name for folder in tmp_path.iterdir()] == ["1"]

    def test_nor_without_a_parent(self, tmp_path: Path) -> None:
        task = self.task()
        with pytest.raises(ImageError, match="page 0x10001000 is neither among the pages"):
            export_task(task, tmp_path / "1", pages=self.touch(task, 0x10000000))

    def test_pages_given_back_are_in_no_list(self, tmp_path: Path) -> None:
        task = self.task()
        export_task(task, tmp_path / "1", pre_dump=True)
        task.processes[1].madvise(0x10000000, PAGE, 4)
        export_task(task, tmp_path / "2", parent="../1", pages=RoundPages())
        (process,) = ImageDirectory.open(tmp_path / "2").processes
        assert process.pages.addresses.tolist() == [0x10001000]
        assert process.pages.level.tolist() == [1]
