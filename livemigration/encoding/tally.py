"""How many pages went in which encoding, and what that took."""

from __future__ import annotations

from dataclasses import dataclass, field

from livemigration.v1 import common_pb2

ENCODINGS = tuple(common_pb2.PageEncoding.values())


def encoding_name(encoding: int) -> str:
    """``"delta-zstd"`` for PAGE_ENCODING_DELTA_ZSTD, and so on."""
    name = common_pb2.PageEncoding.Name(encoding)  # type: ignore[arg-type]
    return name.removeprefix("PAGE_ENCODING_").lower().replace("_", "-")


def _none() -> list[int]:
    return [0] * len(ENCODINGS)


@dataclass(slots=True)
class Tally:
    """Pages and bytes of page content on the wire by PageEncoding, and how the bases were found."""

    pages: list[int] = field(default_factory=_none)
    bytes: list[int] = field(default_factory=_none)
    delta_hits: int = 0
    delta_misses: int = 0
    delta_overflows: int = 0

    def count(self, encoding: int, pages: int, size: int) -> None:
        """So many pages more, which took `size` bytes."""
        self.pages[encoding] += pages
        self.bytes[encoding] += size

    def add(self, other: Tally) -> None:
        """Everything of `other` as well."""
        for encoding in ENCODINGS:
            self.count(encoding, other.pages[encoding], other.bytes[encoding])
        self.delta_hits += other.delta_hits
        self.delta_misses += other.delta_misses
        self.delta_overflows += other.delta_overflows

    def to_proto(self) -> list[common_pb2.EncodingCount]:
        """Those encodings that were used."""
        return [
            common_pb2.EncodingCount(
                encoding=encoding, pages=self.pages[encoding], bytes=self.bytes[encoding]
            )
            for encoding in ENCODINGS
            if self.pages[encoding]
        ]
