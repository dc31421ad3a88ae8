"""The bytes that a workload writes: random, text-like, or with many zero words.

Compressibility matters to a migration (encodings, the link), so it is a property of the workload.
Text is made of four-letter syllables, two to a word: printable, about 20 bits of news per 8 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from livemigration.workload.kernels import (
    U8,
    U32,
    U64,
    fill_bytes,
    fill_words,
    probability,
    wrapping,
)
from livemigration.workload.spec import ContentSpec

ZERO_SHARE = 7 / 8
"""Share of zero words in ``content = "zero"``."""

_CONSONANTS = b"bcdfghjklmnprstv"
_VOWELS = b"aeio"
_ENDINGS = b" nrstlao.,e\nidym"


def _syllables() -> U32:
    """1024 four-letter syllables as little-endian uint32."""
    made = [
        bytes((first, vowel, last, after))
        for first in _CONSONANTS
        for vowel in _VOWELS
        for last in _ENDINGS[1:5]
        for after in b" " + _VOWELS[:3]
    ]
    return np.frombuffer(b"".join(made), dtype="<u4").astype(np.uint32)


_LETTERS: U8 = np.frombuffer(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .", dtype=np.uint8
).copy()
_NO_TOKENS: U32 = np.zeros(0, dtype=np.uint32)


@dataclass(frozen=True, slots=True)
class Content:
    """How payloads look: the 53-bit probability of a zero word, and the tokens of text, if text."""

    zeros: int
    tokens: U32 = field(repr=False)

    @classmethod
    def of(cls, spec: ContentSpec) -> Content:
        """What the keys ``content`` and ``compressibility`` ask for."""
        if spec.compressibility is not None:
            return cls(probability(spec.compressibility), _NO_TOKENS)
        if spec.content == "text":
            return cls(0, _syllables())
        return cls(probability(ZERO_SHARE if spec.content == "zero" else 0.0), _NO_TOKENS)

    def words(self, key: int, first: int, words: int, out: U64) -> None:
        """Payloads of ``words`` words for operations ``first`` on, into out uint64[n * words]."""
        with wrapping():
            fill_words(
                np.uint64(key),
                np.uint64(first),
                words,
                np.uint64(self.zeros),
                self.tokens,
                _LETTERS,
                out,
            )

    def bytes(self, key: int, first: int, sizes: U32, out: U8) -> None:
        """Payloads of ``sizes`` uint32[n] bytes one after the other, into out uint8[sum(sizes)]."""
        longest = int(sizes.max(initial=0))
        scratch = np.empty(longest // 8 + 1, dtype=np.uint64)
        with wrapping():
            fill_bytes(
                np.uint64(key),
                np.uint64(first),
                sizes,
                np.uint64(self.zeros),
                self.tokens,
                _LETTERS,
                scratch,
                out,
            )
