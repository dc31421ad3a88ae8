"""Making the frames of pages, raw or encoded.

Pages are copied while the task cannot change them (`FrameMaker.copy`, under the task's lock): raw
ones straight into their frame, others into a block from which they are encoded when the task may
run again (`FrameMaker.finish`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from livemigration.digest import gather_pages
from livemigration.encoding.encoder import Encoder
from livemigration.encoding.tally import Tally
from livemigration.packing import Packing, encode
from livemigration.v1 import common_pb2

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Heading:
    """What a frame says beside its pages: of a process, or at offsets of a file."""

    sequence: int
    round_number: int
    pid: int
    object_id: int = 0


@dataclass(frozen=True, slots=True)
class Copied:
    """The pages of a frame as they were at one moment: in the frame, or uint8[n] to encode."""

    heading: Heading
    packing: Packing
    frame: bytes = b""
    pages: Bytes | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A frame and what it takes beyond copying its pages.

    `encode_ns` is by the cost model, or measured on the wall clock; `decode_ns` by the cost model.
    """

    frame: bytes
    tally: Tally
    encode_ns: int = 0
    decode_ns: int = 0


class FrameMaker:
    """For one migration. Without an encoder all pages are raw."""

    def __init__(self, encoder: Encoder | None, *, measured: bool) -> None:
        """`measured`: encoding takes what it really takes, not what the cost model says."""
        self._encoder = encoder
        self._measured = measured

    @property
    def cache_pages(self) -> int:
        """How many pages the destination has to remember."""
        return 0 if self._encoder is None else self._encoder.cache_pages

    def forget(self) -> None:
        """The migration is over: no more frames, and nothing needs to be remembered."""
        self._encoder = None

    def copy(self, packing: Packing, content: Bytes, heading: Heading) -> Copied:
        """The pages ``content[packing.rows]`` as they are now."""
        if self._encoder is None:
            frame = encode(
                packing,
                content,
                sequence=heading.sequence,
                round_number=heading.round_number,
                pid=heading.pid,
                object_id=heading.object_id,
            )
            return Copied(heading, packing, frame)
        pages = np.empty(packing.rows.size * content.shape[1], np.uint8)
        gather_pages(content, packing.rows, pages)
        return Copied(heading, packing, pages=pages)

    def finish(self, copied: Copied, page_size: int, *, one_after_other: bool) -> Made:
        """The frame; `one_after_other`: the task stands still, and nothing overlaps."""
        heading, packing = copied.heading, copied.packing
        if self._encoder is None or copied.pages is None:
            full = int(packing.rows.size)
            tally = Tally()
            tally.count(common_pb2.PAGE_ENCODING_RAW, full, full * page_size)
            tally.count(common_pb2.PAGE_ENCODING_ZERO, int(packing.addresses.size) - full, 0)
            return Made(copied.frame, tally)
        began = time.monotonic_ns()
        encoded = self._encoder.encode(
            packing,
            copied.pages,
            sequence=heading.sequence,
            round_number=heading.round_number,
            pid=heading.pid,
            object_id=heading.object_id,
            one_after_other=one_after_other,
        )
        took = time.monotonic_ns() - began if self._measured else encoded.cpu.encode_ns
        return Made(encoded.message, encoded.tally, took, encoded.cpu.decode_ns)
