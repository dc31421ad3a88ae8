"""What changed in a page since a version that both ends have, as runs of changed 64-bit words.

The idea is delta compression as Svard et al. gave it to live migration (VEE 2011,
10.1145/1952682.1952698) and as QEMU has it (XBZRLE, docs/devel/migration/main.rst): XOR the page
with the version sent last and run-length encode the zeros, that is, what did not change. Words
instead of bytes are compared, since stores are rarely smaller and a word is one comparison.

A block holds the deltas of n pages, all numbers little-endian:

* how many runs each page has: uint16[n];
* for each run, how many words are skipped before it and how many it has: uint16[runs, 2];
* the words of all runs, old XOR new: uint64[words].

A page that did not change at all takes two bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from livemigration.compiled import compiled
from livemigration.errors import DamagedFrame

Words = NDArray[np.uint64]
I64 = NDArray[np.int64]
U16 = NDArray[np.uint16]

_COUNT_BYTES, _RUN_BYTES, _WORD_BYTES = 2, 4, 8
_LOOK = 8
"""Words that are compared before anybody asks whether one of them differs."""


@dataclass(frozen=True, slots=True)
class Change:
    """How much of each page differs from its base: int64[n] runs and words.

    Without a base both are 0, see `found`; a page whose delta would not be shorter than the page is
    not looked at to its end, and `sizes` gives the page's own size for it.
    """

    found: NDArray[np.bool_]
    runs: I64
    words: I64
    page_size: int

    @property
    def sizes(self) -> I64:
        """Bytes of each page's delta, int64[n]: at most the page's size; -1 without a base."""
        sizes = _COUNT_BYTES + _RUN_BYTES * self.runs + _WORD_BYTES * self.words
        return np.where(self.found, np.minimum(sizes, self.page_size), -1)


def compare(pages: Words, bases: Words, slots: I64) -> Change:
    """How pages uint64[n, words] differ from ``bases[slots]``; slots -1: there is no base."""
    runs, words = np.zeros(slots.size, np.int64), np.zeros(slots.size, np.int64)
    _compare(pages, bases, slots, runs, words)
    return Change(slots >= 0, runs, words, pages.shape[1] * _WORD_BYTES)


def encode(
    pages: Words, bases: Words, slots: I64, change: Change, which: I64
) -> list[NDArray[Any]]:
    """The block with the deltas of ``pages[which]``, as arrays to be written one after the other.

    which: int64[k], pages whose delta is shorter than the page.
    """
    counts = change.runs[which].astype(np.uint16)
    pairs = np.empty((int(change.runs[which].sum()), 2), np.uint16)
    words = np.empty(int(change.words[which].sum()), np.uint64)
    _encode(pages, bases, slots, which, pairs, words)
    return [counts, pairs.reshape(-1), words]


def decode(block: memoryview, bases: Words, slots: I64, out: Words) -> None:
    """The pages that deltas make of ``bases[slots]``, into out uint64[n, words].

    Raises `DamagedFrame` if the block is anything but the deltas of n pages; slots are valid.
    """
    pages = slots.size
    if len(block) < _COUNT_BYTES * pages:
        raise DamagedFrame("a block of deltas is cut short")
    counts = np.frombuffer(block, "<u2", pages).astype(np.uint16)
    runs = int(counts.sum(dtype=np.int64))
    head = _COUNT_BYTES * pages + _RUN_BYTES * runs
    if len(block) < head or (len(block) - head) % _WORD_BYTES:
        raise DamagedFrame("a block of deltas does not have the runs that it says")
    pairs = np.frombuffer(block, "<u2", 2 * runs, _COUNT_BYTES * pages).astype(np.uint16)
    words = np.frombuffer(block, "<u8", (len(block) - head) // _WORD_BYTES, head).astype(np.uint64)
    if not _decode(counts, pairs.reshape(runs, 2), words, bases, slots, out):
        raise DamagedFrame("a run of a delta goes past its page or past its words")


def xor(pages: Words, bases: Words, slots: I64, which: I64) -> Words:
    """``pages[which] ^ bases[slots[which]]``: uint64[k, words]."""
    out = np.empty((which.size, pages.shape[1]), np.uint64)
    _xor(pages, bases, slots, which, out)
    return out


@compiled
def _compare(pages: Words, bases: Words, slots: I64, runs: I64, words: I64) -> None:
    size = pages.shape[1]
    for i in range(slots.size):
        slot = slots[i]
        if slot < 0:
            continue
        inside = False
        for at in range(0, size, _LOOK):
            seen = np.uint64(0)
            for j in range(at, at + _LOOK):
                seen |= pages[i, j] ^ bases[slot, j]
            if not seen:
                inside = False
                continue
            for j in range(at, at + _LOOK):
                changed = pages[i, j] != bases[slot, j]
                if changed:
                    words[i] += 1
                    if not inside:
                        runs[i] += 1
                inside = changed
            if _COUNT_BYTES + _RUN_BYTES * runs[i] + _WORD_BYTES * words[i] >= _WORD_BYTES * size:
                break


@compiled
def _encode(pages: Words, bases: Words, slots: I64, which: I64, pairs: U16, words: Words) -> None:
    size = pages.shape[1]
    run, filled = -1, 0
    for k in range(which.size):
        i = which[k]
        slot = slots[i]
        inside = False
        end = 0  # of the run before
        for at in range(0, size, _LOOK):
            seen = np.uint64(0)
            for j in range(at, at + _LOOK):
                seen |= pages[i, j] ^ bases[slot, j]
            if not seen:
                inside = False
                continue
            for j in range(at, at + _LOOK):
                difference = pages[i, j] ^ bases[slot, j]
                if difference:
                    if not inside:
                        run += 1
                        pairs[run, 0] = j - end
                        pairs[run, 1] = 0
                    pairs[run, 1] += 1
                    end = j + 1
                    words[filled] = difference
                    filled += 1
                inside = difference != 0


@compiled
def _decode(counts: U16, pairs: U16, words: Words, bases: Words, slots: I64, out: Words) -> bool:
    """False if a run does not fit, or words are left."""
    size = out.shape[1]
    run = used = 0
    for i in range(slots.size):
        slot = slots[i]
        for j in range(size):
            out[i, j] = bases[slot, j]
        at = 0
        for _ in range(counts[i]):
            at += int(pairs[run, 0])
            length = int(pairs[run, 1])
            run += 1
            if at + length > size or used + length > words.size:
                return False
            for j in range(length):
                out[i, at + j] ^= words[used + j]
            at += length
            used += length
    return bool(used == words.size)


@compiled
def _xor(pages: Words, bases: Words, slots: I64, which: I64, out: Words) -> None:
    for k in range(which.size):
        i = which[k]
        for j in range(pages.shape[1]):
            out[k, j] = pages[i, j] ^ bases[slots[i], j]
