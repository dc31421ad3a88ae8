"""Processor time of encoding and decoding, by the cost model."""

from __future__ import annotations

from dataclasses import dataclass

from livemigration.costs import KIB, CostSpec
from livemigration.encoding.codecs import ZSTD_LEVEL_PERCENT


@dataclass(frozen=True, slots=True)
class CodecCosts:
    """What a codec takes, in nanoseconds per KiB of page."""

    compress: int
    fail: int  # of blocks that do not get smaller
    decompress: int

    @classmethod
    def zstd(cls, costs: CostSpec, level: int) -> CodecCosts:
        """Of zstd at a level: those above 1 cost what was measured that they take more."""
        percent = ZSTD_LEVEL_PERCENT[level - 1]
        return cls(
            costs.zstd_kib * percent // 100,
            costs.zstd_random_kib * percent // 100,
            costs.unzstd_kib,
        )

    @classmethod
    def lz4(cls, costs: CostSpec) -> CodecCosts:
        """Of LZ4."""
        return cls(costs.lz4_kib, costs.lz4_random_kib, costs.unlz4_kib)

    def compress_ns(self, size: int, *, smaller: bool) -> int:
        """Compressing `size` bytes, which got smaller or did not."""
        return (self.compress if smaller else self.fail) * size // KIB

    def decompress_ns(self, size: int) -> int:
        """Getting `size` bytes back."""
        return self.decompress * size // KIB


@dataclass(slots=True)
class CpuTime:
    """Nanoseconds at the source and at the destination."""

    encode_ns: int = 0
    decode_ns: int = 0
