"""The model's memory made from images: what a dump carries is there, what it does not is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from livemigration.criu.images import ImageDirectory, ImageError, load_into
from mm_model import Machine, Mm, ModelConfig, Vma

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
PRESENT = 4
READ_WRITE = 3
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS = 1, 2, 0x20


def load_sample(name: str) -> tuple[Machine, Mm]:
    machine = Machine(ModelConfig(frames=512))
    (mm,) = load_into(machine, ImageDirectory.open(*SAMPLES[name])).values()
    return machine, mm


def load(images: ImageBuilder, frames: int = 256) -> tuple[Machine, dict[int, Mm]]:
    machine = Machine(ModelConfig(frames=frames))
    return machine, load_into(machine, ImageDirectory.open(images.path))


def vma_at(mm: Mm, start: int) -> Vma:
    (found,) = [vma for vma in mm.vmas() if vma.start == start]
    return found


@pytest.mark.parametrize("name", SAMPLES)
class TestRealDumps:
    def test_memory_is_the_pages_file_byte_for_byte(self, name: str) -> None:
        """Every frame of the process, in address order, against the file that CRIU wrote."""
        _, mm = load_sample(name)
        found = b""
        for vma in mm.vmas():
            if vma.shared_id:
                continue
            rows = mm.frames(vma.start, (vma.end - vma.start) // PAGE)
            found += b"".join(
                mm.peek(vma.start + i * PAGE, PAGE) for i in np.flatnonzero(rows >= 0)
            )
        folder = SAMPLES[name][1] or SAMPLES[name][0]
        number = "65538" if name.startswith("page-server") else "2"
        assert found == (folder / f"pages-{number}.img").read_bytes()

    def test_shared_memory_is_in_the_object_and_not_in_the_page_table(self, name: str) -> None:
        _, mm = load_sample(name)
        assert vma_at(mm, 0x20000000).flags == MAP_SHARED | MAP_ANONYMOUS
        expected = b"".join(bytes([0xA0 + i]) * PAGE for i in range(8))
        assert mm.peek(0x20000000, 8 * PAGE) == expected
        assert (mm.frames(0x20000000, 8) > 0).all()
        assert not (mm.pagemap(0x20000000, 8) >> np.uint64(63)).any()
        assert mm.load(0x20000000, 8 * PAGE) == expected

    def test_mappings(self, name: str) -> None:
        _, mm = load_sample(name)
        names = [vma.name for vma in mm.vmas()]
        assert names.count("/opt/memtouch/memtouch (dumped pages only)") >= 1
        assert [names.count(name) for name in ("[heap]", "[stack]", "[vdso]")] == [1, 1, 1]
        assert vma_at(mm, 0x10000000).flags == MAP_PRIVATE | MAP_ANONYMOUS
        assert vma_at(mm, 0x10000000).prot == READ_WRITE
        assert max(vma.end for vma in mm.vmas()) < 1 << 47  # no vsyscall

    def test_the_program_could_go_on(self, name: str) -> None:
        machine, mm = load_sample(name)
        mm.clear_refs()
        mm.store_words(np.array([0x10000008], np.uint64), np.array([77], np.uint64))
        assert mm.load(0x10000000, 24) == bytes(8) + (77).to_bytes(8, "little") + bytes(8)
        dirty = (mm.pagemap(0x10000000, 64) >> np.uint64(55)) & np.uint64(1)
        assert np.flatnonzero(dirty).tolist() == [0]
        heap_end = mm.brk(0)
        assert mm.brk(heap_end + PAGE) == heap_end + PAGE
        assert machine.faults.livelocks == 0


def test_pages_that_were_not_dumped_are_not_there(images: ImageBuilder) -> None:
    _, spaces = load(images.simple())
    assert (spaces[7].frames(0x10000, 16) > 0).nonzero()[0].tolist() == [0, 1, 5]


def test_frames_taken_are_those_of_the_dump(images: ImageBuilder) -> None:
    images.simple()
    machine, _ = load(images)
    assert machine.used_frames == Machine(ModelConfig(frames=256)).used_frames + 3


def test_zero_pages_of_the_dump_are_frames_of_zeros(images: ImageBuilder) -> None:
    images.simple().pages((0x10000, 2, PRESENT), fill=b"\0\1")
    _, spaces = load(images)
    assert (spaces[7].frames(0x10000, 2) > 0).all()
    assert spaces[7].peek(0x10000, PAGE) == bytes(PAGE)


def test_read_only_memory_has_its_pages_and_stays_read_only(images: ImageBuilder) -> None:
    images.simple().process(images.vma(prot=1))
    _, spaces = load(images)
    assert spaces[7].peek(0x11000, PAGE) == bytes([2]) * PAGE
    assert vma_at(spaces[7], 0x10000).prot == 1


def test_processes_share_a_segment_at_their_own_offsets(images: ImageBuilder) -> None:
    images.simple().tree((7, 0), (8, 7))
    segment = {"status": 1 | 1 << 8, "flags": 0x21, "shmid": 5}
    images.process(images.vma(), images.vma(0x40000, 4, **segment))
    images.process(images.vma(0x70000, 2, pgoff=2 * PAGE, **segment), pid=8)
    images.pages(name="pagemap-8", pages_id=2)
    images.pages((0x1000, 3, PRESENT), name="pagemap-shmem-5", pages_id=3, fill=b"abc")
    machine, spaces = load(images)
    assert spaces[7].peek(0x40000, 4 * PAGE)[::PAGE] == b"\0abc"
    assert spaces[8].peek(0x70000, 2 * PAGE)[::PAGE] == b"bc"
    spaces[8].store_words(np.array([0x70000], np.uint64), np.array([0x5A], np.uint64))
    assert spaces[7].load(0x42000, 1) == b"\x5a"
    assert len(machine.mms) == 2  # nothing is left of how the pages came in


def test_shared_file_is_empty_shared_memory_with_a_name_that_says_so(images: ImageBuilder) -> None:
    images.simple()
    vma = images.vma(0x40000, 4, status=1 | 1 << 7, flags=1, shmid=3)
    images.process(images.vma(), vma)
    _, spaces = load(images)
    found = vma_at(spaces[7], 0x40000)
    assert found.shared_id > 0
    assert found.name == "file (dumped pages only)"
    assert spaces[7].peek(0x40000, 4 * PAGE) == bytes(4 * PAGE)


def test_vvar_is_left_out_with_pages_that_a_dump_should_not_have(images: ImageBuilder) -> None:
    images.simple().process(images.vma(0x10000, 1), images.vma(0x11000, 5, status=1 | 1 << 12))
    images.pages((0x10000, 2, PRESENT))
    _, spaces = load(images)
    assert [(vma.start, vma.end) for vma in spaces[7].vmas()] == [(0x10000, 0x11000)]


def test_more_pages_than_one_piece_holds(images: ImageBuilder) -> None:
    pages = (16 << 20) // PAGE + 3
    images.simple().process(images.vma(0x10000, pages))
    images.pages((0x10000, pages, PRESENT))
    _, spaces = load(images, frames=pages + 256)
    expected = bytes(i % 255 + 1 for i in range(pages))
    assert spaces[7].peek(0x10000, pages * PAGE)[::PAGE] == expected


class TestRefused:
    def test_another_page_size(self, images: ImageBuilder) -> None:
        opened = ImageDirectory.open(images.simple().path)
        with pytest.raises(ImageError, match=r"pages of 4096 bytes.*set page_size = 4096"):
            load_into(Machine(ModelConfig(page_size=16384, frames=64)), opened)

    def test_too_few_frames(self, images: ImageBuilder) -> None:
        images.simple().pages((0x10000, 16, PRESENT))
        with pytest.raises(ImageError, match="the model cannot hold it: "):
            load(images, frames=8)

    def test_addresses_beyond_the_model(self, images: ImageBuilder) -> None:
        images.simple().process(images.vma(), images.vma(1 << 55))
        with pytest.raises(ImageError, match="the model cannot hold it: "):
            load(images)

    def test_absurd_segment(self, images: ImageBuilder) -> None:
        vma = images.vma(0x40000, status=1 | 1 << 8, flags=0x21, shmid=5, pgoff=1 << 60)
        images.simple().process(images.vma(), vma)
        images.pages(name="pagemap-shmem-5", pages_id=3)
        with pytest.raises(ImageError, match="the model cannot hold it: "):
            load(images)


@pytest.mark.parametrize("status", [1 | 1 << 9, 1 | 1 << 8], ids=["private", "shared"])
def test_mappings_that_no_model_can_hold(images: ImageBuilder, status: int) -> None:
    images.simple()
    vast = images.vma(0x40000, 1 << 30, status=status, flags=0x21, shmid=5)
    images.process(images.vma(), vast)
    images.pages(name="pagemap-shmem-5", pages_id=2)
    with pytest.raises(ImageError, match="the model cannot hold it: mappings of"):
        load(images)
