"""zstd and LZ4 over blocks of pages.

Pages of one frame that share a codec are compressed together, as QEMU's multifd compresses its
packets of pages (migration/multifd-zstd.c): the libraries are called once per block instead of once
per page, which is faster by half, and matches across pages count. Both libraries release the
interpreter while they work.

A decoder never gives more bytes than the caller said there are: a Zstandard frame (RFC 8878) has to
say its content's size, which is looked at before anything is decoded, and an LZ4 block is decoded
into a buffer of the size that is expected.
"""

from __future__ import annotations

from typing import Protocol

import lz4.block
import zstandard

from livemigration.errors import DamagedFrame

ZSTD_LEVEL_PERCENT = (
    *(100, 140, 190, 270, 390, 520, 630, 780, 850, 1000),
    *(1300, 1320, 5300, 5700, 6300, 9500, 10500, 11800, 13700),
)
"""What levels 1 to 19 cost, in percent of level 1: geometric mean over text and words of which half
are zero (`python -m bench encoding`)."""

_LARGEST_WINDOW = 8 << 20
"""Beyond it a Zstandard frame asks its decoder for more memory than any frame's pages have
(zstd's own limit without --long is the same)."""


class Codec(Protocol):
    """Compresses blocks of bytes and gives them back."""

    def compress(self, data: bytes | memoryview) -> bytes:
        """The compressed block; it may be longer than `data`."""
        ...

    def decompress(self, block: memoryview, size: int) -> bytes:
        """The `size` bytes that were compressed; `DamagedFrame` if there are others."""
        ...


class Zstd:
    """Zstandard at one level; for one thread at a time."""

    def __init__(self, level: int = 1) -> None:
        self._compressor = zstandard.ZstdCompressor(
            level=level, write_checksum=False, write_content_size=True, write_dict_id=False
        )
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)

    def compress(self, data: bytes | memoryview) -> bytes:
        """One Zstandard frame that says its content's size."""
        return self._compressor.compress(data)

    def decompress(self, block: memoryview, size: int) -> bytes:
        """The content of exactly one frame."""
        try:
            said = zstandard.get_frame_parameters(block).content_size
            if said != size:
                # Told before anything is decoded: the library would take room for what it says.
                raise DamagedFrame(
                    f"a Zstandard block says that it has {said} bytes; its pages have {size}"
                )
            data = self._decompressor.decompress(block, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise DamagedFrame(f"a Zstandard block cannot be decoded: {error}") from error
        return _exactly(data, size, "Zstandard")


class Lz4:
    """LZ4's fast mode, without a size before the block."""

    def compress(self, data: bytes | memoryview) -> bytes:
        """One LZ4 block."""
        return bytes(lz4.block.compress(data, store_size=False))

    def decompress(self, block: memoryview, size: int) -> bytes:
        """The content of one block."""
        try:
            data = lz4.block.decompress(block, uncompressed_size=size)
        except lz4.block.LZ4BlockError as error:
            raise DamagedFrame(f"an LZ4 block cannot be decoded: {error}") from error
        return _exactly(bytes(data), size, "LZ4")


def _exactly(data: bytes, size: int, name: str) -> bytes:
    if len(data) != size:
        raise DamagedFrame(f"a block of {name} has {len(data)} bytes; its pages have {size}")
    return data
