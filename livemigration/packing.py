"""What of a batch's pages travels as bytes, and what as no more than "zeros".

One compiled pass over a batch looks at each page once: is anything there still, is it all zeros,
and does it continue the run before it. That keeps the work of a batch in few calls: between two of
them the thread that gathers must get the interpreter back from the thread that sends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from livemigration import batch
from livemigration.compiled import compiled
from livemigration.digest import CHUNK_WORDS, checked_rows, page_words
from mm_model import Mm

U64 = NDArray[np.uint64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packing:
    """The pages of a batch that have content now.

    addresses, versions: uint64[n], all of them, ascending; rows: int64[m], the content rows of
    those that are not all zeros; the run columns, uint64 each, say where those and the others are.
    """

    addresses: U64
    versions: U64
    rows: Rows
    run_start: U64
    run_pages: U64
    zero_start: U64
    zero_pages: U64


def pack(
    content: NDArray[np.uint8], addresses: U64, found_rows: Rows, found_versions: U64
) -> Packing:
    """Looks at pages as they are now; those without content are left out.

    addresses: uint64[n], n > 0, ascending; found_rows and found_versions: content row and stamp of
    every page from the first address to the last (at least), as `Mm.contents` gives them.
    """
    page_size = content.shape[1]
    size = addresses.size
    words = np.empty((6, size), np.uint64)
    rows = np.empty(size, np.int64)
    there, full, runs, zeros = _pack(
        page_words(content, page_size),
        np.uint64(page_size),
        addresses,
        found_rows,
        found_versions,
        words,
        rows,
    )
    return Packing(
        words[0, :there],
        words[1, :there],
        rows[:full],
        words[2, :runs],
        words[3, :runs],
        words[4, :zeros],
        words[5, :zeros],
    )


def pack_from(mm: Mm, addresses: U64) -> Packing:
    """`pack` of pages of one mapping of an address space."""
    page_size = mm.machine.page_size
    first = int(addresses[0])
    rows, versions = mm.contents(first, (int(addresses[-1]) - first) // page_size + 1)
    return pack(mm.machine.content, addresses, rows, versions)


def encode(
    packing: Packing,
    content: NDArray[np.uint8],
    *,
    sequence: int,
    round_number: int,
    pid: int,
    object_id: int = 0,
) -> bytes:
    """The frame that brings these pages, whose bytes are those of ``content[packing.rows]``."""
    return batch.encode_pages(
        sequence=sequence,
        round_number=round_number,
        pid=pid,
        run_start=packing.run_start,
        run_pages=packing.run_pages,
        zero_start=packing.zero_start,
        zero_pages=packing.zero_pages,
        content=content,
        rows=packing.rows,
        object_id=object_id,
    )


def zero_pages(content: NDArray[np.uint8], rows: Rows) -> NDArray[np.bool_]:
    """Which pages ``content[rows[i]]`` are all zeros: bool[n].

    content: u8[frames, page_size]; rows: i64[n], where 0 (the zero page) and negative rows (nothing
    there) are zeros. Raises IndexError for a row past the end.
    """
    result = np.empty(rows.size, np.bool_)
    words = page_words(content, content.shape[1])
    _zero_rows(words, checked_rows(content, rows), result)
    return result


@compiled
def _is_zero(words: U64, row: np.int64) -> bool:
    for chunk in range(0, words.shape[1], CHUNK_WORDS):
        seen = np.uint64(0)
        for j in range(chunk, chunk + CHUNK_WORDS):
            seen |= words[row, j]
        if seen:
            return False
    return True


@compiled
def _zero_rows(words: U64, rows: Rows, out: NDArray[np.bool_]) -> None:
    for i in range(rows.size):
        row = rows[i]
        out[i] = row <= 0 or _is_zero(words, row)


@compiled
def _pack(
    content: U64,
    page_size: np.uint64,
    addresses: U64,
    found_rows: Rows,
    found_versions: U64,
    words: U64,
    rows: Rows,
) -> tuple[int, int, int, int]:
    """Fills `words` (addresses, versions, run starts, run pages, zero starts, zero pages) and
    `rows`; returns how many there are of the pages, the rows, the runs and the runs of zeros."""
    there = full = runs = zeros = 0
    run_end = zero_end = np.uint64(0)
    for k in range(addresses.shape[0]):
        address = addresses[k]
        at = (address - addresses[0]) // page_size
        row = found_rows[at]
        if row <= 0:
            continue
        words[0, there] = address
        words[1, there] = found_versions[at]
        there += 1
        if _is_zero(content, row):
            if zeros == 0 or zero_end != address:
                words[4, zeros] = address
                words[5, zeros] = 0
                zeros += 1
            words[5, zeros - 1] += np.uint64(1)
            zero_end = address + page_size
        else:
            rows[full] = row
            full += 1
            if runs == 0 or run_end != address:
                words[2, runs] = address
                words[3, runs] = 0
                runs += 1
            words[3, runs - 1] += np.uint64(1)
            run_end = address + page_size
    return there, full, runs, zeros
