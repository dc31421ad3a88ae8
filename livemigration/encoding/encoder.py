"""Frames at the source: pages as they were copied in, encoded, with what that took.

Every kind of ``[encoding]`` but raw goes through here. A frame's pages are copied once while the
task cannot change them; choosing and compressing goes on after that, when the task runs again.

Whatever the choice, a block that its codec does not make smaller travels raw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from livemigration import batch
from livemigration.costs import CostSpec
from livemigration.digest import buffer_checksum, page_words
from livemigration.encoding import delta
from livemigration.encoding.choice import choose
from livemigration.encoding.codecs import Codec, Lz4, Zstd
from livemigration.encoding.compressibility import Compressibility
from livemigration.encoding.cpu import CodecCosts, CpuTime
from livemigration.encoding.remembered import RememberedPages, owner_of
from livemigration.encoding.tally import Tally
from livemigration.packing import Packing
from livemigration.runs import from_runs
from livemigration.spec import (
    AutoEncodingSpec,
    DeltaEncodingSpec,
    EncodingSpec,
    Lz4EncodingSpec,
    RawEncodingSpec,
    ZstdEncodingSpec,
)
from livemigration.v1 import common_pb2

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

RAW: int = common_pb2.PAGE_ENCODING_RAW
ZSTD: int = common_pb2.PAGE_ENCODING_ZSTD
LZ4: int = common_pb2.PAGE_ENCODING_LZ4
DELTA: int = common_pb2.PAGE_ENCODING_DELTA
DELTA_ZSTD: int = common_pb2.PAGE_ENCODING_DELTA_ZSTD
DELTA_LZ4: int = common_pb2.PAGE_ENCODING_DELTA_LZ4

_DELTAS = {"run-length": DELTA, "zstd": DELTA_ZSTD, "lz4": DELTA_LZ4}
_COMPRESSED = (ZSTD, LZ4)
_Block = list[Any]  # bytes and arrays, to be written one after the other


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame and what it took: `cpu` by the cost model, beyond copying the pages."""

    message: bytes
    tally: Tally
    cpu: CpuTime


@dataclass(frozen=True, slots=True)
class _Pages:
    """The pages of one frame: as words uint64[n, words], and where their bases are, int64[n]."""

    words: U64
    slots: I64
    change: delta.Change

    def bytes_of(self, which: I64) -> memoryview:
        """Their bytes, one after the other."""
        if which.size == self.words.shape[0]:
            return self.words.data.cast("B")
        return np.ascontiguousarray(self.words[which]).data.cast("B")


def build_encoder(
    spec: EncodingSpec,
    costs: CostSpec,
    *,
    bandwidth: int,
    page_size: int,
    memory_pages: int,
) -> Encoder | None:
    """What encodes the frames of one migration; None if all of them are raw.

    bandwidth: of the link in bit/s, 0 for unlimited: on such a link the automatic choice is always
    raw. memory_pages: the most pages that the task can have.
    """
    if isinstance(spec, RawEncodingSpec) or (isinstance(spec, AutoEncodingSpec) and not bandwidth):
        return None
    slots = 0
    if isinstance(spec, DeltaEncodingSpec | AutoEncodingSpec):
        slots = min(spec.cache // page_size, memory_pages)
    return Encoder(spec, costs, bandwidth=bandwidth, page_size=page_size, slots=slots)


class Encoder:
    """For one migration, and one thread at a time."""

    def __init__(
        self, spec: EncodingSpec, costs: CostSpec, *, bandwidth: int, page_size: int, slots: int
    ) -> None:
        """`slots`: pages to be remembered at both ends; 0 for kinds without deltas."""
        level = getattr(spec, "level", 1)
        self._spec = spec
        self._costs = costs
        self._bandwidth = bandwidth
        self._page_size = page_size
        self._codecs: dict[int, Codec] = {ZSTD: Zstd(level), LZ4: Lz4()}
        self._codec_costs = {ZSTD: CodecCosts.zstd(costs, level), LZ4: CodecCosts.lz4(costs)}
        self._compressibility = Compressibility([self._codecs[k] for k in _COMPRESSED], page_size)
        self._remembered = RememberedPages(slots, page_size) if slots else None

    @property
    def cache_pages(self) -> int:
        """What the destination has to be told before round 0."""
        return 0 if self._remembered is None else self._remembered.pages.shape[0]

    def encode(
        self,
        packing: Packing,
        pages: U8,
        *,
        sequence: int,
        round_number: int,
        pid: int,
        object_id: int = 0,
        one_after_other: bool = False,
    ) -> EncodedFrame:
        """The frame that brings these pages, uint8[n * page_size], those of ``packing.rows``.

        one_after_other: nothing overlaps in this round, since the task stands still.
        """
        tally, cpu = Tally(), CpuTime()
        tally.count(common_pb2.PAGE_ENCODING_ZERO, int(packing.zero_pages.sum()), 0)
        owner = owner_of(pid, object_id)
        addresses = from_runs(packing.run_start, packing.run_pages, self._page_size)
        looked = self._look(pages, owner, addresses, tally, cpu)
        wanted = self._choose(looked, pages, cpu, one_after_other=one_after_other)
        blocks = self._blocks(looked, wanted, tally, cpu)
        if self._remembered is not None:
            kept = self._remembered.remember(owner, addresses, pages, round_number)
            copied = self._costs.copy_ns(kept * self._page_size)
            cpu.encode_ns += copied
            cpu.decode_ns += copied
        all_raw = not wanted.any()
        message = batch.encode_blocks(
            sequence=sequence,
            round_number=round_number,
            pid=pid,
            run_start=packing.run_start,
            run_pages=packing.run_pages,
            zero_start=packing.zero_start,
            zero_pages=packing.zero_pages,
            object_id=object_id,
            encodings=wanted[:0] if all_raw else wanted,
            content_checksum=0 if all_raw else buffer_checksum(pages),
            blocks=blocks,
        )
        return EncodedFrame(message, tally, cpu)

    def _look(self, pages: U8, owner: int, addresses: U64, tally: Tally, cpu: CpuTime) -> _Pages:
        """The pages beside the versions of them that were sent before."""
        words = page_words(pages, self._page_size)
        if self._remembered is None:
            none = np.full(addresses.size, -1, np.int64)
            zero = np.zeros(addresses.size, np.int64)
            return _Pages(words, none, delta.Change(none >= 0, zero, zero, self._page_size))
        slots = self._remembered.find(owner, addresses)
        change = delta.compare(words, self._remembered.pages, slots)
        hits = int(np.count_nonzero(change.found))
        tally.delta_hits += hits
        tally.delta_misses += addresses.size - hits
        tally.delta_overflows += int(np.count_nonzero(change.sizes == self._page_size))
        cpu.encode_ns += self._costs.delta_ns(hits * self._page_size)
        return _Pages(words, slots, change)

    def _choose(self, looked: _Pages, pages: U8, cpu: CpuTime, *, one_after_other: bool) -> U8:
        """The encoding that each page is to have, uint8[n]."""
        match self._spec:
            case ZstdEncodingSpec():
                return np.full(looked.slots.size, ZSTD, np.uint8)
            case Lz4EncodingSpec():
                return np.full(looked.slots.size, LZ4, np.uint8)
            case DeltaEncodingSpec():
                shorter = looked.change.found & (looked.change.sizes < self._page_size)
                return np.where(shorter, _DELTAS[self._spec.codec], RAW).astype(np.uint8)
            case _:
                return self._least_time(looked, pages, cpu, one_after_other=one_after_other)

    def _least_time(self, looked: _Pages, pages: U8, cpu: CpuTime, *, one_after_other: bool) -> U8:
        size, count = self._page_size, looked.slots.size
        if count == 0:
            return np.zeros(0, np.uint8)
        compressed, tried = self._compressibility.estimate(pages)
        cpu.encode_ns += self._costs.estimate_page * count
        sample = int(tried[0])
        for shrunk, kind in zip(tried[1:].tolist(), _COMPRESSED, strict=True):
            costs = self._codec_costs[kind]
            cpu.encode_ns += costs.compress_ns(shrunk, smaller=True)
            cpu.encode_ns += costs.compress_ns(sample - shrunk, smaller=False)
        sizes = np.empty((count, 4), np.int64)
        sizes[:, RAW] = size
        sizes[:, ZSTD], sizes[:, LZ4] = compressed.T
        sizes[:, DELTA] = np.where(looked.change.sizes < size, looked.change.sizes, -1)
        encode_ns, decode_ns = np.zeros(4, np.int64), np.zeros(4, np.int64)
        for kind in _COMPRESSED:
            encode_ns[kind] = self._codec_costs[kind].compress_ns(size, smaller=True)
            decode_ns[kind] = self._codec_costs[kind].decompress_ns(size)
        decode_ns[DELTA] = self._costs.undelta_ns(size)
        copied = self._costs.copy_ns(pages.size)  # to be sent, and to be remembered
        return choose(
            sizes,
            encode_ns,
            decode_ns,
            fixed_ns=(cpu.encode_ns + 2 * copied, copied),
            bandwidth=self._bandwidth,
            one_after_other=one_after_other,
        )

    # -- blocks

    def _blocks(self, looked: _Pages, wanted: U8, tally: Tally, cpu: CpuTime) -> list[_Block]:
        """The blocks by ascending encoding. Pages of a block that does not get smaller become RAW
        in `wanted`, or DELTA if they are one.
        """
        made: dict[int, _Block] = {}
        for kind in (ZSTD, LZ4, DELTA_ZSTD, DELTA_LZ4):
            which = np.flatnonzero(wanted == kind)
            if which.size:
                made |= self._compressed(looked, wanted, which, kind, cpu)
        for kind, block in ((RAW, self._raw), (DELTA, self._deltas)):
            which = np.flatnonzero(wanted == kind)
            if which.size:
                made[kind] = block(looked, which, cpu)
        for kind, parts in made.items():
            tally.count(
                kind,
                int(np.count_nonzero(wanted == kind)),
                sum(memoryview(part).nbytes for part in parts),
            )
        return [made[kind] for kind in sorted(made)]

    def _raw(self, looked: _Pages, which: I64, cpu: CpuTime) -> _Block:
        return [looked.bytes_of(which)]

    def _deltas(self, looked: _Pages, which: I64, cpu: CpuTime) -> _Block:
        assert self._remembered is not None
        cpu.decode_ns += self._costs.undelta_ns(which.size * self._page_size)
        return list(
            delta.encode(looked.words, self._remembered.pages, looked.slots, looked.change, which)
        )

    def _compressed(
        self, looked: _Pages, wanted: U8, which: I64, kind: int, cpu: CpuTime
    ) -> dict[int, _Block]:
        """The block of a codec, unless it is not smaller: then the pages are given up to another
        encoding.
        """
        size = which.size * self._page_size
        if kind in _COMPRESSED:
            codec, data, busy = kind, looked.bytes_of(which), size
            instead, limit = RAW, size
        else:
            assert self._remembered is not None
            codec = ZSTD if kind == DELTA_ZSTD else LZ4
            changes = delta.xor(looked.words, self._remembered.pages, looked.slots, which)
            data, busy = changes.data.cast("B"), 8 * int(looked.change.words[which].sum())
            instead, limit = DELTA, int(looked.change.sizes[which].sum())
        block = self._codecs[codec].compress(data)
        costs, smaller = self._codec_costs[codec], len(block) < size
        # What did not change is zeros, over which a codec goes as fast as over what it gives up.
        cpu.encode_ns += costs.compress_ns(busy, smaller=smaller)
        cpu.encode_ns += costs.compress_ns(size - busy, smaller=False)
        if len(block) >= limit:
            wanted[which] = instead
            return {}
        cpu.decode_ns += costs.decompress_ns(busy)
        if kind not in _COMPRESSED:
            cpu.decode_ns += self._costs.undelta_ns(size)
        return {kind: [block]}
