"""Frames at the destination: the pages that a checked frame brings, as they are in memory.

Nothing of a frame is handed on before all its pages are decoded and their checksum is that of the
source's own bytes, and nothing is remembered before it is in place. So a delta against another base
than the source's is found here, whichever way the two came apart, and so is a codec that decodes to
something else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from livemigration.batch import Frame
from livemigration.digest import buffer_checksum
from livemigration.encoding import delta
from livemigration.encoding.codecs import Codec, Lz4, Zstd
from livemigration.encoding.remembered import RememberedPages, owner_of
from livemigration.errors import DamagedFrame
from livemigration.runs import from_runs
from livemigration.v1 import common_pb2

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_DELTAS = (
    common_pb2.PAGE_ENCODING_DELTA,
    common_pb2.PAGE_ENCODING_DELTA_ZSTD,
    common_pb2.PAGE_ENCODING_DELTA_LZ4,
)


class Decoder:
    """For one migration."""

    def __init__(self, page_size: int, cache_pages: int = 0) -> None:
        """`cache_pages`: what the source announced. Raises MemoryError if there is no room."""
        self._page_size = page_size
        self._remembered = RememberedPages(cache_pages, page_size) if cache_pages else None
        zstd, lz4 = Zstd(), Lz4()
        self._codecs: dict[int, Codec] = {
            common_pb2.PAGE_ENCODING_ZSTD: zstd,
            common_pb2.PAGE_ENCODING_LZ4: lz4,
            common_pb2.PAGE_ENCODING_DELTA_ZSTD: zstd,
            common_pb2.PAGE_ENCODING_DELTA_LZ4: lz4,
        }

    def decode(self, frame: Frame) -> U8:
        """The pages of the frame's runs in their order, uint8[n * page_size].

        The frame has passed `batch.check`. Raises `DamagedFrame` if it does not decode to the
        source's bytes.
        """
        if frame.encodings.size == 0:
            return frame.pages
        pages = self._decode(frame)
        if buffer_checksum(pages) != frame.content_checksum:
            raise DamagedFrame(
                f"frame {frame.sequence}: the pages that it decodes to are not those that were "
                "encoded"
            )
        return pages

    def remember(self, frame: Frame, pages: U8) -> None:
        """The pages of a frame, as `decode` gave them, are in place now: bases for later ones."""
        if self._remembered is not None:
            owner = owner_of(frame.pid, frame.object_id)
            addresses = from_runs(frame.run_start, frame.run_pages, self._page_size)
            self._remembered.remember(owner, addresses, pages, frame.round)

    def _decode(self, frame: Frame) -> U8:
        words = np.empty((frame.encodings.size, self._page_size // 8), np.uint64)
        slots = self._bases(frame)
        at = 0
        body = frame.pages.data
        kinds = np.unique(frame.encodings).tolist()
        for kind, size in zip(kinds, frame.block_bytes.tolist(), strict=True):
            which = np.flatnonzero(frame.encodings == kind)
            words[which] = self._block(kind, body[at : at + size], slots[which])
            at += size
        return words.reshape(-1).view(np.uint8)

    def _bases(self, frame: Frame) -> I64:
        """Where the bases of the frame's deltas are, int64[n]; -1 for other pages."""
        slots = np.full(frame.encodings.size, -1, np.int64)
        deltas = np.isin(frame.encodings, _DELTAS)
        if not deltas.any():
            return slots
        addresses = from_runs(frame.run_start, frame.run_pages, self._page_size)
        if self._remembered is not None:
            slots = self._remembered.find(owner_of(frame.pid, frame.object_id), addresses)
        missing = deltas & (slots < 0)
        if missing.any():
            raise DamagedFrame(
                f"frame {frame.sequence}: a delta of the page at "
                f"{int(addresses[np.argmax(missing)]):#x}, of which no version is remembered here"
            )
        return slots

    def _block(self, kind: int, block: memoryview, slots: I64) -> U64:
        """The pages of one block, uint64[n, words]."""
        shape = (slots.size, self._page_size // 8)
        if kind == common_pb2.PAGE_ENCODING_RAW:
            return np.frombuffer(block, np.uint64).reshape(shape)
        bases = None if self._remembered is None else self._remembered.pages
        if kind == common_pb2.PAGE_ENCODING_DELTA:
            assert bases is not None
            out = np.empty(shape, np.uint64)
            delta.decode(block, bases, slots, out)
            return out
        data = self._codecs[kind].decompress(block, slots.size * self._page_size)
        words = np.frombuffer(data, np.uint64).reshape(shape)
        if kind in _DELTAS:
            assert bases is not None
            return words ^ bases[slots]
        return words
