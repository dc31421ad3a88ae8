"""Damaged image directories: an ImageError or a directory that can be read, never anything else."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from livemigration.criu.images import ImageDirectory, ImageError, load_into
from mm_model import Machine, ModelConfig

DATA = Path(__file__).parents[1] / "data" / "criu"
READ = [
    "inventory.img",
    "pstree.img",
    "core-24665.img",
    "mm-24665.img",
    "files.img",
    "memfd.img",
    "pagemap-24665.img",
    "pagemap-shmem-1267.img",
    "pages-1.img",
    "pages-2.img",
]


def use(path: Path) -> None:
    """Opens a directory and reads all there is in it."""
    try:
        images = ImageDirectory.open(path)
        for process in images.processes:
            data = images.read_pages(process.pid, process.pages.addresses)
            assert data.size == len(process.pages) * images.page_size
        machine = Machine(ModelConfig(page_size=images.page_size, frames=512))
        spaces = load_into(machine, images)
        for process in images.processes:
            held = process.pages.addresses[:1]
            if held.size and held[0] < 1 << 47:
                expected = images.read_pages(process.pid, held).tobytes()
                found = spaces[process.pid].peek(int(held[0]), images.page_size)
                assert found in (expected, bytes(images.page_size))
        machine.release()
    except ImageError as error:
        assert "\n" not in str(error)
        assert error.advice


def with_damage(name: str, damage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images"
        shutil.copytree(DATA / "full-4.2.1", path)
        (path / name).write_bytes(damage)
        use(path)


@given(name=st.sampled_from(READ), share=st.floats(0, 1))
def test_cut_files(name: str, share: float) -> None:
    whole = (DATA / "full-4.2.1" / name).read_bytes()
    with_damage(name, whole[: int(len(whole) * share)])


@given(
    name=st.sampled_from(READ[:8]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_changed_bytes(name: str, changes: list[tuple[float, int]]) -> None:
    damaged = bytearray((DATA / "full-4.2.1" / name).read_bytes())
    for place, value in changes:
        damaged[int(place * (len(damaged) - 1))] = value
    with_damage(name, bytes(damaged))


@given(
    name=st.sampled_from(READ[:8]), garbage=st.binary(max_size=200), keep=st.sampled_from([0, 8])
)
def test_garbage(name: str, garbage: bytes, keep: int) -> None:
    whole = (DATA / "full-4.2.1" / name).read_bytes()
    with_damage(name, whole[:keep] + garbage)


@given(order=st.permutations(range(69)), size=st.integers(0, 69))
def test_pages_are_read_in_any_order(order: list[int], size: int) -> None:
    images = ImageDirectory.open(DATA / "full-4.2.1")
    (process,) = images.processes
    everything = (DATA / "full-4.2.1" / "pages-2.img").read_bytes()
    wanted = np.array(order[:size], np.int64)
    data = images.read_pages(process.pid, process.pages.addresses[wanted])
    assert data.tobytes() == b"".join(everything[i * 4096 : (i + 1) * 4096] for i in wanted)
