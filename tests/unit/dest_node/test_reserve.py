"""Room for a task is taken before its pages come, or is said to be missing."""

import ctypes
import mmap
from pathlib import Path

import numpy as np
import pytest

from dest_node.reserve import reserve

PAGES = 64


def _resident(buffer: np.ndarray) -> int:
    """Host pages of a page-aligned buffer that have memory behind them (mincore(2))."""
    count = -(-buffer.nbytes // mmap.PAGESIZE)
    vector = (ctypes.c_ubyte * count)()
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_size_t(buffer.nbytes)
    assert libc.mincore(ctypes.c_void_p(buffer.ctypes.data), size, vector) == 0
    return sum(entry & 1 for entry in vector)


def _mapped(path: Path) -> np.ndarray:
    with path.open("w+b") as file:
        file.truncate(PAGES * mmap.PAGESIZE)
        mapping = mmap.mmap(file.fileno(), PAGES * mmap.PAGESIZE)
    return np.frombuffer(mapping, dtype=np.uint8)


def test_memory_is_behind_every_page_and_its_content_stays(tmp_path: Path) -> None:
    buffer = _mapped(tmp_path / "pages")
    buffer[5 * mmap.PAGESIZE] = 7
    reserve(buffer)
    assert _resident(buffer) == PAGES
    assert buffer[5 * mmap.PAGESIZE] == 7
    assert np.count_nonzero(buffer) == 1


def test_no_more_is_taken_than_was_asked_for() -> None:
    mapping = mmap.mmap(-1, PAGES * mmap.PAGESIZE)
    mapping.madvise(mmap.MADV_NOHUGEPAGE)
    buffer = np.frombuffer(mapping, dtype=np.uint8)
    reserve(buffer[: 10 * mmap.PAGESIZE])
    assert _resident(buffer) == 10


def test_part_of_a_page_and_nothing_are_no_error() -> None:
    buffer = np.zeros(3 * mmap.PAGESIZE, dtype=np.uint8)
    reserve(buffer[:0])
    reserve(buffer[:100])
    reserve(buffer[1:])
    assert not buffer.any()


def test_a_file_cut_short_is_no_room_and_not_a_crash(tmp_path: Path) -> None:
    """What a full file system does to a mapping: a touch would end the process with SIGBUS."""
    buffer = _mapped(tmp_path / "pages")
    (tmp_path / "pages").write_bytes(b"")
    with pytest.raises(MemoryError, match="no room"):
        reserve(buffer)
