"""The encodings by which the pages of a frame are through in the least time.

A frame is encoded at the source, sent, and decoded at the destination. While the task runs these
overlap from frame to frame, so the slowest of the three counts; in the final round they follow each
other, so their sum does. Encoding a page makes one of them shorter and the others longer. With a
weight for the link against one for the processors each page by itself has a best encoding. From
"processor time is all that counts", where every page is raw, the weights go step by step to "the
link is all that counts"; in a step the pages whose best encoding changes are changed one after the
other, and after each the time of the whole frame is looked at. The least one wins. So a choice
never takes longer than raw by its own reckoning, and pages that are all alike can still share the
work between a slow link and a slow processor.

Everything is in whole nanoseconds and depends on sizes alone: the same pages give the same choice
on every machine and every clock.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from livemigration.compiled import compiled

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

_NS_BITS = 8 * 1_000_000_000
_STEPS = 16
_NEVER = np.int64(2**62)


def choose(
    sizes: I64,
    encode_ns: I64,
    decode_ns: I64,
    *,
    fixed_ns: tuple[int, int],
    bandwidth: int,
    one_after_other: bool,
) -> U8:
    """The encoding of each page, uint8[n]: a column of `sizes`.

    sizes: int64[n, k], bytes that a page takes in each encoding, -1 where it cannot have it; every
    page can have the first. encode_ns, decode_ns: int64[k], processor time of a page. fixed_ns:
    what the frame takes anyway at the source and at the destination; bandwidth: bit/s, above 0.
    """
    best = np.empty((_STEPS + 1, sizes.shape[0]), np.uint8)
    step, changed = _choose(sizes, encode_ns, decode_ns, fixed_ns, bandwidth, one_after_other, best)
    return np.concatenate((best[step, :changed], best[max(step - 1, 0), changed:]))


@compiled
def _best(
    sizes: I64, encode_ns: I64, decode_ns: I64, bandwidth: int, weight: int, page: int
) -> np.int64:
    """The encoding of a page when the link counts `weight` parts in _STEPS."""
    least, found = _NEVER, np.int64(0)
    for k in range(sizes.shape[1]):
        if sizes[page, k] < 0:
            continue
        link = sizes[page, k] * _NS_BITS // bandwidth
        score = weight * link + (_STEPS - weight) * (encode_ns[k] + decode_ns[k])
        if score < least:
            least, found = score, np.int64(k)
    return found


@compiled
def _choose(
    sizes: I64,
    encode_ns: I64,
    decode_ns: I64,
    fixed_ns: tuple[int, int],
    bandwidth: int,
    one_after_other: bool,
    best: U8,
) -> tuple[int, int]:
    """Fills `best`, uint8[_STEPS + 1, n], with each step's encodings; returns the step and how many
    pages have changed to it when the frame takes the least time."""
    wire, encoding, decoding = np.int64(0), np.int64(fixed_ns[0]), np.int64(fixed_ns[1])
    least, least_wire, at_step, at_page = _NEVER, _NEVER, 0, 0
    for step in range(_STEPS + 1):
        for i in range(sizes.shape[0]):
            new = _best(sizes, encode_ns, decode_ns, bandwidth, step, i)
            best[step, i] = new
            if step:
                old = best[step - 1, i]
                if old == new:
                    continue
                wire -= sizes[i, old]
                encoding -= encode_ns[old]
                decoding -= decode_ns[old]
            wire += sizes[i, new]
            encoding += encode_ns[new]
            decoding += decode_ns[new]
            if step == 0 and i < sizes.shape[0] - 1:
                continue
            link = wire * _NS_BITS // bandwidth
            if one_after_other:
                time = link + encoding + decoding
            else:
                time = max(link, encoding, decoding)
            # What shortens the frame and costs no time is taken as well.
            if time < least or (time == least and wire < least_wire):
                least, least_wire, at_step, at_page = time, wire, step, i + 1
    return at_step, at_page
