"""Bytes on one core: digests, gathering, comparison, against copying the same memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xxhash
from numpy.typing import NDArray

from bench.measure import Line, best
from livemigration import digest

_PIECE = 1 << 20


def content_lines(*, quick: bool) -> list[Line]:
    """Group "content"."""
    size, rounds = (64 << 20, 3) if quick else (256 << 20, 5)
    words = np.random.default_rng(1).integers(0, 1 << 63, size // 8 + 8192, dtype=np.uint64)
    whole = words.view(np.uint8)
    target = np.zeros(size, np.uint8)
    lines: list[Line] = []
    for page_size in (4096, 16384, 65536):
        actions = _actions(whole[: size + page_size].reshape(-1, page_size), target)
        for action in actions[:3]:
            action()  # compiles what is not in the cache
        hashed, gathered, compared, library, pieces, copied = (
            size / taken / 1e9 for taken in best(actions, rounds)
        )
        name = f"{page_size >> 10} KiB pages"
        for what, value, base, base_name, goal in (
            ("page digests", hashed, copied, "memcpy", 5.0),
            ("page digests", hashed, library, "xxhash package, page by page", None),
            ("gather into 1 MiB messages", gathered, pieces, "memcpy of 1 MiB pieces", None),
            ("compare pages", compared, copied, "memcpy", None),
        ):
            lines.append(
                Line(
                    "content",
                    f"{what}, {name}",
                    value,
                    "GB/s",
                    base,
                    base_name,
                    value / base,
                    ">=" if goal else "",
                    goal,
                )
            )
    return lines


def _actions(content: NDArray[np.uint8], target: NDArray[np.uint8]) -> list[Callable[[], object]]:
    """Digests, gathering, comparison; then the baselines. Frame 0 is left alone: it means zeros."""
    pages_per_piece = _PIECE // content.shape[1]
    rows = np.arange(1, content.shape[0])
    batches = [rows[at : at + pages_per_piece] for at in range(0, rows.size, pages_per_piece)]
    theirs = content[1:].reshape(-1)
    piece = np.zeros(_PIECE, np.uint8)

    def gather() -> None:
        for batch in batches:
            digest.gather_bytes(content, batch, b"head")

    def copy_pieces() -> None:
        for at in range(0, theirs.size, _PIECE):
            piece[:] = theirs[at : at + _PIECE]

    def hash_library() -> None:
        for page in content[1:]:
            xxhash.xxh3_64_intdigest(page)

    return [
        lambda: digest.page_digests(content, rows),
        gather,
        lambda: digest.pages_equal(content, rows, theirs),
        hash_library,
        copy_pieces,
        lambda: np.copyto(target, theirs),
    ]
