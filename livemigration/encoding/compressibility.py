"""What a page would shrink to, measured on pages that look like it.

Compressing every page to see whether it is worth it costs what it was to save. Storage systems
look at a sample instead (Harnik et al., "To Zip or not to Zip", FAST 2013; btrfs_compress_heuristic
in Linux): how unevenly the byte values are spread tells random bytes from the rest. Here the sample
only says which class a page belongs to; what pages of a class shrink to is measured, by compressing
a few of them now and again. So nothing is assumed of the content, and as it depends on bytes alone
the same run gives the same answers on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from livemigration.compiled import compiled
from livemigration.digest import page_words
from livemigration.encoding.codecs import Codec

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

SAMPLE_WORDS = 32
"""64-bit words looked at in a page, evenly spread: 256 bytes."""

TRIAL_BYTES = 32 << 10
"""Page bytes of one class that are compressed to measure it."""

TRIAL_EVERY = 32
"""Frames with pages of a class from one measurement of it to the next."""

_SAMPLE = 8 * SAMPLE_WORDS
_STEPS = 16
_BORDERS = np.array([int(_SAMPLE * 2 ** (k / 2)) for k in range(1, _STEPS + 1)], dtype=np.int64)
"""Between the classes: half powers of two, from all sampled bytes different to all the same."""


class Compressibility:
    """Knows for some codecs what pages shrink to; learns from the pages it is asked about."""

    def __init__(self, codecs: Sequence[Codec], page_size: int) -> None:
        self._codecs = codecs
        self._page_size = page_size
        self._trial_pages = max(1, TRIAL_BYTES // page_size)
        self._before = np.zeros(_STEPS + 1, np.int64)  # bytes tried, of each class
        self._after = np.zeros((_STEPS + 1, len(codecs)), np.int64)  # and what came of them
        self._seen = np.zeros(_STEPS + 1, np.int64)  # frames since the last trial

    def estimate(self, pages: U8) -> tuple[I64, I64]:
        """What each codec would make of each page, int64[n, codecs] bytes; and what it cost to
        know: of how many bytes trials were made, and of how many of them each codec made fewer,
        int64[1 + codecs].
        """
        classes = page_classes(pages, self._page_size)
        rows = pages.reshape(-1, self._page_size)
        tried = np.zeros(1 + len(self._codecs), np.int64)
        for kind in np.unique(classes).tolist():
            if self._before[kind] == 0 or self._seen[kind] >= TRIAL_EVERY:
                sample = np.flatnonzero(classes == kind)[: self._trial_pages]
                tried += self._try(kind, rows[sample].tobytes())
            self._seen[kind] += 1
        sizes = self._page_size * self._after[classes] // self._before[classes, None]
        return sizes, tried

    def _try(self, kind: int, sample: bytes) -> I64:
        """Measures a class anew; half of what was known counts on."""
        self._seen[kind] = 0
        made = np.array([len(codec.compress(sample)) for codec in self._codecs], np.int64)
        self._before[kind] = self._before[kind] // 2 + len(sample)
        self._after[kind] = self._after[kind] // 2 + made
        shrunk = np.where(made < len(sample), len(sample), 0)
        return np.concatenate((np.array([len(sample)], np.int64), shrunk))


def page_classes(pages: U8, page_size: int) -> I64:
    """The class of each page in uint8[n * page_size], int64[n]: 0 is all different bytes.

    It is the logarithm, in half powers of two, of how often two sampled bytes are equal.
    """
    words = page_words(pages, page_size)
    equal = np.empty(words.shape[0], np.int64)
    _count_equal(words, np.empty(256, np.int64), equal)
    return np.searchsorted(_BORDERS, equal, side="right").astype(np.int64)


@compiled
def _count_equal(words: U64, counts: I64, out: I64) -> None:
    """The sum of squares of how often each byte value is in the sample."""
    step = words.shape[1] // SAMPLE_WORDS
    for i in range(words.shape[0]):
        counts[:] = 0
        for k in range(SAMPLE_WORDS):
            word = words[i, k * step]
            for shift in range(0, 64, 8):
                counts[np.int64((word >> np.uint64(shift)) & np.uint64(0xFF))] += 1
        total = 0
        for value in range(256):
            total += counts[value] * counts[value]
        out[i] = total
