"""Streams of stores: which page each goes to (patterns), where in it, and with which bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from livemigration.workload.base import Tally
from livemigration.workload.content import Content
from livemigration.workload.kernels import (
    I64,
    U32,
    draw_alias,
    draw_below,
    draw_hotspot,
    draw_sideways,
    probability,
    stream_key,
    sweep,
    wrapping,
)
from livemigration.workload.targets import Targets
from livemigration.workload.zipf import alias_table, scramble, zipf_weights
from mm_model import Mm

_BATCH_BYTES = 512 * 1024  # payload of a batch: stays in the second-level cache
_BATCH_OPS = 16384


def batch_ops(write_size: int) -> int:
    """Stores of ``write_size`` bytes that are made and executed together."""
    return max(8, min(_BATCH_OPS, _BATCH_BYTES // write_size))


class Pattern(ABC):
    """Which page (0 .. pages-1) an operation goes to."""

    def __init__(self, pages: int) -> None:
        self.pages = pages

    @abstractmethod
    def fill(self, first: int, turn: int, out: I64) -> None:
        """Pages of operations ``first`` on, into out int64[n].

        ``turn`` is the first one's number among those of this pattern alone, which differs from
        ``first`` where patterns take turns.
        """


class Uniform(Pattern):
    """All pages alike."""

    def __init__(self, pages: int, seed: int) -> None:
        super().__init__(pages)
        self._key = np.uint64(stream_key(seed, "page"))

    def fill(self, first: int, turn: int, out: I64) -> None:
        """See `Pattern.fill`."""
        with wrapping():
            draw_below(self._key, np.uint64(first), np.uint64(self.pages), out)


class Zipf(Pattern):
    """Zipf's law with constant ``theta``, popular pages scattered or side by side."""

    def __init__(self, pages: int, seed: int, theta: float, scrambled: bool) -> None:
        super().__init__(pages)
        self._key = np.uint64(stream_key(seed, "page"))
        self._choice = np.uint64(stream_key(seed, "choice"))
        self._table = alias_table(zipf_weights(pages, theta))
        self._order: U32 = (
            scramble(pages, stream_key(seed, "scramble"))
            if scrambled
            else np.arange(pages, dtype=np.uint32)
        )

    def fill(self, first: int, turn: int, out: I64) -> None:
        """See `Pattern.fill`."""
        with wrapping():
            draw_alias(self._choice, self._key, np.uint64(first), self._table, self._order, out)


class Hotspot(Pattern):
    """The first ``fraction`` of the pages takes ``chance`` of the operations."""

    def __init__(self, pages: int, seed: int, fraction: float, chance: float) -> None:
        super().__init__(pages)
        self._key = np.uint64(stream_key(seed, "page"))
        self._choice = np.uint64(stream_key(seed, "choice"))
        hot = max(1, int(fraction * pages))
        self._hot = np.uint64(hot)
        # With nothing but hot pages there is nowhere else to go.
        self._chance = np.uint64(probability(chance if hot < pages else 1.0))

    def fill(self, first: int, turn: int, out: I64) -> None:
        """See `Pattern.fill`."""
        with wrapping():
            draw_hotspot(
                self._choice,
                self._key,
                np.uint64(first),
                self._hot,
                np.uint64(self.pages),
                self._chance,
                out,
            )


class Sequential(Pattern):
    """Page after page, round and round."""

    def fill(self, first: int, turn: int, out: I64) -> None:
        """See `Pattern.fill`."""
        sweep(turn, self.pages, out)


class Sideways(Pattern):
    """Another pattern, but ``chance`` of the operations go to ``others`` pages after its own."""

    def __init__(self, pattern: Pattern, others: int, seed: int, chance: float) -> None:
        super().__init__(pattern.pages + others)
        self._pattern = pattern
        self._others = np.uint64(others)
        self._key = np.uint64(stream_key(seed, "sideways page"))
        self._choice = np.uint64(stream_key(seed, "sideways choice"))
        self._chance = np.uint64(probability(chance))

    def fill(self, first: int, turn: int, out: I64) -> None:
        """See `Pattern.fill`."""
        self._pattern.fill(first, turn, out)
        with wrapping():
            draw_sideways(
                self._choice,
                self._key,
                np.uint64(first),
                np.uint64(self._pattern.pages),
                self._others,
                self._chance,
                out,
            )


class StoreStream:
    """Stores of one size to the pages of a pattern; generated and executed in batches."""

    def __init__(
        self,
        pattern: Pattern,
        targets: Targets,
        *,
        write_size: int,
        content: Content,
        seed: int,
        name: str = "stores",
    ) -> None:
        """``name`` tells apart the random streams of several of these in one workload."""
        if pattern.pages > targets.count:
            raise ValueError(f"pattern of {pattern.pages} pages over {targets.count}")
        self._pattern = pattern
        self._targets = targets
        self._size = write_size
        self._content = content
        self._slot_key = stream_key(seed, f"{name} slot")
        self._payload_key = stream_key(seed, f"{name} payload")
        self._batch = batch_ops(write_size)
        self._pages = np.empty(self._batch, dtype=np.int64)
        self._addresses = np.empty(self._batch, dtype=np.uint64)
        self._sizes = np.full(self._batch, write_size, dtype=np.uint32)
        self._words = np.empty(self._batch * (write_size // 8), dtype=np.uint64)

    def run(self, mm: Mm, first: int, stop: int, tally: Tally, turn: int | None = None) -> None:
        """Execute the stores of operations [first, stop) in ``mm``; see `Pattern.fill` for turn."""
        turn = first if turn is None else turn
        for begin in range(first, stop, self._batch):
            count = min(self._batch, stop - begin)
            self._batch_of(begin, count, turn + begin - first)
            tally.faults += self._store(mm, count)
            tally.stores += count
            tally.bytes += count * self._size

    def _batch_of(self, first: int, count: int, turn: int) -> None:
        pages, addresses = self._pages[:count], self._addresses[:count]
        self._pattern.fill(first, turn, pages)
        self._targets.stores(pages, self._size, self._slot_key, first, addresses)
        words = self._size // 8
        self._content.words(self._payload_key, first, words, self._words[: count * words])

    def _store(self, mm: Mm, count: int) -> int:
        words = self._words[: count * (self._size // 8)]
        if self._size == 8:
            return mm.store_words(self._addresses[:count], words)
        return mm.store(self._addresses[:count], self._sizes[:count], words.view(np.uint8))


def populate(mm: Mm, targets: Targets, content: Content, seed: int, first: int = 0) -> int:
    """Write every page of ``targets`` once, each with content of its own; returns the faults.

    ``first`` numbers the first page for its content, where several regions are populated.
    """
    tally = Tally()
    stream = StoreStream(
        Sequential(targets.count),
        targets,
        write_size=targets.page_size,
        content=content,
        seed=seed,
        name="populate",
    )
    stream.run(mm, first, first + targets.count, tally, turn=0)
    return tally.faults
