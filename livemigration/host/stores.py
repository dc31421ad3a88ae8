"""A batch of stores into real memory, as machine code.

Every word is stored, also one that is there already: a processor does not look either, and the
kernel counts both as a write. The stamps, by which the tracker is judged, change only with bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from livemigration.compiled import compiled

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

_3 = np.uint64(3)


@compiled
def store_words(
    memory: U64,
    versions: U64,
    counter: U64,
    base: np.uint64,
    page_words: int,
    addresses: U64,
    sizes: U32,
    payload: U64,
) -> int:
    """Store ``sizes[n] / 8`` words at each address, taken from ``payload`` one after another.

    memory: uint64[pages * page_words], which the task has at ``base``; versions: uint64[pages],
    stamped from counter (uint64[1]) on. Addresses and sizes are multiples of 8. Returns how many
    stores are done; fewer than there are means that the next one lies outside.
    """
    position = np.int64(0)
    for n in range(addresses.shape[0]):
        count = np.int64(sizes[n]) >> 3
        if addresses[n] < base:
            return n
        at = np.int64((addresses[n] - base) >> _3)
        if at + count > memory.shape[0]:
            return n
        page = at // np.int64(page_words)
        changed = np.uint64(0)
        if versions[page] == np.uint64(0):
            # Never written, so it holds zeros; to look would be one more fault.
            for word in range(count):
                changed |= payload[position + word]
                memory[at + word] = payload[position + word]
        else:
            for word in range(count):
                changed |= memory[at + word] ^ payload[position + word]
                memory[at + word] = payload[position + word]
        if changed != np.uint64(0):
            counter[0] += np.uint64(1)
            versions[page] = counter[0]
        position += count
    return addresses.size
