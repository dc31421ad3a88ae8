"""The compiled loops of the generators: hashes, draws, addresses, payload bytes.

All randomness is a counter-based hash (the finaliser of splitmix64, Steele, Lea and Flood, OOPSLA
2014), so number k is found without the k-1 before it. Every function works on uint64 with wrap-
around; draws below n take the high half of a 64 by 32 bit product, so that no division is needed.
Uncompiled (NUMBA_DISABLE_JIT=1) they give the same results; NumPy then remarks on wrap-around,
which callers silence with `wrapping`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from livemigration.compiled import compiled, compiled_brief

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

MOST_PAGES = 2**32 - 1
"""Draws below n work for n of 32 bits."""

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
GOLDEN = np.uint64(_GOLDEN)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S6 = np.uint64(6)
_S8 = np.uint64(8)
_S10 = np.uint64(10)
_S11 = np.uint64(11)
_S27 = np.uint64(27)
_S30 = np.uint64(30)
_S31 = np.uint64(31)
_S32 = np.uint64(32)
_LOW32 = np.uint64(0xFFFFFFFF)
_LOW10 = np.uint64(0x3FF)
_LOW6 = np.uint64(0x3F)

ALWAYS = 1 << 53
"""A probability of one, as the 53-bit integer that draws are compared with."""


class wrapping(np.errstate):  # noqa: N801  a context manager that reads as a word
    """Within it, 64-bit overflow is what we want (compiled code never minds)."""

    def __init__(self) -> None:
        super().__init__(over="ignore")


def probability(share: float) -> int:
    """``share`` (0 to 1) as a 53-bit integer, exact for every double that matters."""
    return int(share * ALWAYS)


def stream_key(seed: int, stream: str) -> int:
    """The 64-bit key of a named stream of random numbers of a run with this seed."""
    name = 0xCBF29CE484222325  # FNV-1a
    for byte in stream.encode():
        name = ((name ^ byte) * 0x100000001B3) & _MASK
    return _mix_int(_mix_int((seed + _GOLDEN) & _MASK) ^ name)


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


@compiled_brief
def mix(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64: a bijection of 64-bit words that looks random."""
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


def mix_all(words: U64) -> U64:
    """`mix` of every word."""
    words = (words ^ (words >> _S30)) * _M1
    words = (words ^ (words >> _S27)) * _M2
    return words ^ (words >> _S31)


@compiled_brief
def draw(key: np.uint64, k: np.uint64) -> np.uint64:
    """Random word number k of the stream ``key``."""
    return mix(key + k * GOLDEN)


@compiled_brief
def below(word: np.uint64, n: np.uint64) -> np.uint64:
    """A random word as a number below n (n of at most 32 bits): floor(word * n / 2**64)."""
    return ((word >> _S32) * n + (((word & _LOW32) * n) >> _S32)) >> _S32


@compiled_brief
def draw_below(key: np.uint64, first: np.uint64, n: np.uint64, out: I64) -> None:
    """out[i] = a number below n for operation first + i."""
    for i in range(out.size):
        out[i] = np.int64(below(draw(key, first + np.uint64(i)), n))


@compiled_brief
def draw_hotspot(
    choice: np.uint64,
    key: np.uint64,
    first: np.uint64,
    hot: np.uint64,
    n: np.uint64,
    chance: np.uint64,
    out: I64,
) -> None:
    """Pages [0, hot) with probability chance / 2**53, pages [hot, n) otherwise."""
    for i in range(out.size):
        k = first + np.uint64(i)
        word = draw(key, k)
        if (draw(choice, k) >> _S11) < chance:
            out[i] = np.int64(below(word, hot))
        else:
            out[i] = np.int64(hot + below(word, n - hot))


@compiled_brief
def draw_alias(
    choice: np.uint64, key: np.uint64, first: np.uint64, table: U64, order: U32, out: I64
) -> None:
    """Ranks by an alias table uint64[n, 2] (threshold of 53 bits, alias), mapped by ``order``."""
    n = np.uint64(table.shape[0])
    for i in range(out.size):
        k = first + np.uint64(i)
        column = below(draw(key, k), n)
        if (draw(choice, k) >> _S11) < table[column, 0]:
            out[i] = order[column]
        else:
            out[i] = order[table[column, 1]]


@compiled_brief
def draw_sideways(
    choice: np.uint64,
    key: np.uint64,
    first: np.uint64,
    n: np.uint64,
    others: np.uint64,
    chance: np.uint64,
    out: I64,
) -> None:
    """With probability chance / 2**53 replace out[i] by one of the ``others`` pages after n."""
    for i in range(out.size):
        k = first + np.uint64(i)
        if (draw(choice, k) >> _S11) < chance:
            out[i] = np.int64(n + below(draw(key, k), others))


@compiled_brief
def sweep(first: int, n: int, out: I64) -> None:
    """out[i] = (first + i) mod n."""
    page = first % n
    for i in range(out.size):
        out[i] = page
        page += 1
        if page == n:
            page = 0


@compiled
def make_alias(weights: U64, total: np.uint64, table: U64) -> None:
    """Vose's alias method in integers: column i keeps itself for a share of exactly its weight.

    ``weights`` (uint64[n], changed) are each already multiplied by n, so that an average column
    holds ``total``. Fills ``table`` uint64[n, 2]: threshold (53 bits), alias.
    """
    n = weights.size
    small = np.empty(n, dtype=np.int64)
    large = np.empty(n, dtype=np.int64)
    smalls = 0
    larges = 0
    for i in range(n - 1, -1, -1):
        table[i, 0] = np.uint64(ALWAYS)
        table[i, 1] = np.uint64(i)
        if weights[i] < total:
            small[smalls] = i
            smalls += 1
        else:
            large[larges] = i
            larges += 1
    while smalls > 0 and larges > 0:
        smalls -= 1
        low = small[smalls]
        high = large[larges - 1]
        # One correctly rounded division and an exact scaling: the same everywhere.
        table[low, 0] = np.uint64(np.float64(weights[low]) / np.float64(total) * np.float64(ALWAYS))
        table[low, 1] = np.uint64(high)
        weights[high] -= total - weights[low]
        if weights[high] < total:
            larges -= 1
            small[smalls] = high
            smalls += 1


@compiled_brief
def place(
    pages: I64,
    slots: np.uint64,
    slot_key: np.uint64,
    first: np.uint64,
    size: np.uint64,
    page_size: np.uint64,
    split: int,
    base: np.uint64,
    other: np.uint64,
    table: U64,
    out: U64,
) -> None:
    """Page numbers to addresses of stores: page by table or by two regions, then a slot in it.

    Pages [0, split) lie from ``base`` on, the rest from ``other`` on; a ``table`` of page
    addresses, if not empty, is used instead. A page has ``slots`` places of ``size`` bytes.
    """
    for i in range(out.size):
        page = pages[i]
        if table.size > 0:
            address = table[page]
        elif page < split:
            address = base + np.uint64(page) * page_size
        else:
            address = other + np.uint64(page - split) * page_size
        if slots > np.uint64(1):
            address += below(draw(slot_key, first + np.uint64(i)), slots) * size
        out[i] = address


@compiled_brief
def fill_words(
    key: np.uint64,
    first: np.uint64,
    words: int,
    zeros: np.uint64,
    tokens: U32,
    letters: U8,
    out: U64,
) -> None:
    """Payloads of ``words`` 8-byte words for operations ``first`` on: out uint64[n * words].

    The first word is a bijection of the operation's number, so no two operations write the same.
    The others are zero with probability zeros / 2**53, else random; with ``tokens`` (four-letter
    syllables, uint32[1024]) they are two tokens each, and the first word is eight ``letters``.
    """
    for row in range(out.size // words):
        start = draw(key, first + np.uint64(row))
        at = row * words
        if tokens.size > 0:
            bits = start
            word = np.uint64(0)
            for _ in range(8):
                word = (word << _S8) | np.uint64(letters[bits & _LOW6])
                bits >>= _S6
            out[at] = word
            for i in range(1, words):
                bits = mix(start + np.uint64(i) * GOLDEN)
                out[at + i] = np.uint64(tokens[bits & _LOW10]) | (
                    np.uint64(tokens[(bits >> _S10) & _LOW10]) << _S32
                )
            continue
        out[at] = start
        for i in range(1, words):
            word = mix(start + np.uint64(i) * GOLDEN)
            if (word >> _S11) < zeros:
                word = np.uint64(0)
            out[at + i] = word


@compiled_brief
def fill_bytes(
    key: np.uint64,
    first: np.uint64,
    sizes: U32,
    zeros: np.uint64,
    tokens: U32,
    letters: U8,
    scratch: U64,
    out: U8,
) -> None:
    """As `fill_words` for payloads of any number of bytes; scratch uint64[largest size / 8 + 1]."""
    at = 0
    for row in range(sizes.size):
        size = int(sizes[row])
        words = (size + 7) // 8
        fill_words(key, first + np.uint64(row), words, zeros, tokens, letters, scratch[:words])
        for i in range(size):
            word = scratch[i // 8]
            out[at + i] = np.uint8((word >> np.uint64(8 * (i % 8))) & np.uint64(0xFF))
        at += size


@compiled_brief
def heap_stores(
    choice: np.uint64,
    key: np.uint64,
    slot_key: np.uint64,
    first: np.uint64,
    arena: np.uint64,
    arena_ops: int,
    slots: np.uint64,
    size: np.uint64,
    page_size: np.uint64,
    chance: np.uint64,
    bases: U64,
    pages: I64,
    out: U64,
) -> None:
    """Addresses of an append-heap's stores: the next place in ``arena``, or one in an older arena.

    ``bases``/``pages`` describe the live arenas; an operation mutates one of them with probability
    chance / 2**53, and leaves its own place in the arena empty.
    """
    for i in range(out.size):
        k = first + np.uint64(i)
        if (draw(choice, k) >> _S11) < chance:
            word = draw(key, k)
            which = below(word, np.uint64(bases.size))
            # The draw's low half is fresh enough to pick the page.
            page = below((word & _LOW32) << _S32, np.uint64(pages[which]))
            slot = below(draw(slot_key, k), slots)
            out[i] = bases[which] + page * page_size + slot * size
        else:
            position = np.uint64(np.int64(k) % arena_ops)
            out[i] = arena + (position // slots) * page_size + (position % slots) * size
