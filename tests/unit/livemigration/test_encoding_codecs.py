"""Codecs: what comes back is what went in, and a block never becomes more than was announced."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from livemigration.encoding.codecs import ZSTD_LEVEL_PERCENT, Codec, Lz4, Zstd
from livemigration.errors import DamagedFrame

CODECS = pytest.mark.parametrize("make", [Zstd, Lz4, lambda: Zstd(19)])
SIZE = 4096


def refusal(codec: Codec, block: bytes, size: int = SIZE) -> str:
    with pytest.raises(DamagedFrame) as refused:
        codec.decompress(memoryview(block), size)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@CODECS
@given(data=st.binary(min_size=1, max_size=5000), repeats=st.integers(1, 20))
def test_what_comes_back_is_what_went_in(
    make: Callable[[], Codec], data: bytes, repeats: int
) -> None:
    whole = data * repeats
    codec = make()
    block = codec.compress(memoryview(whole))
    assert make().decompress(memoryview(block), len(whole)) == whole


@CODECS
@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1, 0])
def test_a_block_of_another_size_than_its_pages_is_refused(
    make: Callable[[], Codec], size: int
) -> None:
    block = make().compress(bytes(range(256)) * 16)
    assert refusal(make(), block, size)


@CODECS
@given(block=st.binary(max_size=300))
def test_any_bytes_are_a_block_or_refused_in_one_line(
    make: Callable[[], Codec], block: bytes
) -> None:
    try:
        assert len(make().decompress(memoryview(block), SIZE)) == SIZE
    except DamagedFrame as error:
        assert "\n" not in str(error)


@CODECS
def test_a_block_that_is_cut_or_goes_on_is_refused(make: Callable[[], Codec]) -> None:
    block = make().compress(bytes(range(256)) * 16)
    for damaged in (block[:-1], block[: len(block) // 2], block + b"more", block + block, b""):
        assert refusal(make(), damaged)


@pytest.mark.parametrize("codec", [Zstd(), Lz4()], ids=["zstd", "lz4"])
def test_a_bomb_is_refused_without_taking_room_for_what_it_holds(codec: Codec) -> None:
    size = 256 << 20
    if isinstance(codec, Zstd):
        bomb = zstandard.ZstdCompressor().compress(bytes(size))
    else:
        bomb = lz4.block.compress(bytes(size), store_size=False)
    assert len(bomb) < size // 200
    tracemalloc.start()
    try:
        assert refusal(codec, bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_zstandard_frame_that_does_not_say_its_size_is_refused() -> None:
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(SIZE))
    assert "bytes; its pages have 4096" in refusal(Zstd(), silent)


def test_levels_are_stronger_and_dearer() -> None:
    words = b"a page of a running program has words of its own again and again ".split()
    text = b" ".join(words[i * i % len(words)] + b"%d" % (i % 97) for i in range(6000))
    assert len(Zstd(19).compress(text)) < len(Zstd(1).compress(text))
    assert len(ZSTD_LEVEL_PERCENT) == 19
    assert list(ZSTD_LEVEL_PERCENT) == sorted(ZSTD_LEVEL_PERCENT)
