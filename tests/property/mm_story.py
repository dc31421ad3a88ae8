"""A long pseudo-random life of a machine, told as one digest of everything the model keeps.

Run as a module it prints the digest, so that another process can compare: with and without
compiled code it must be the same.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import numpy as np

from mm_model import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    Machine,
    Mm,
    MmError,
    ModelConfig,
)

BASE, PAGES = (1 << 36) + (500 << 12), 40  # across the border of a table
SIZE = 4096


def _steps(mm: Mm, rng: random.Random) -> list[Callable[[], object]]:
    """One of each operation, at a random place."""
    first, count = rng.randrange(PAGES), rng.randrange(1, 9)
    start, length = BASE + first * SIZE, min(count, PAGES - first) * SIZE
    where = start + np.arange(length // SIZE, dtype=np.uint64) * np.uint64(SIZE)
    kind = rng.choice((MAP_PRIVATE, MAP_PRIVATE, MAP_SHARED)) | MAP_ANONYMOUS | MAP_FIXED
    prot, advice = rng.randrange(4), rng.choice((MADV_DONTNEED, MADV_FREE, MADV_PAGEOUT))
    target = BASE + rng.randrange(64, 64 + PAGES) * SIZE
    values = np.array([rng.getrandbits(64) for _ in where], np.uint64)
    shift = np.uint64(rng.randrange(SIZE - 8))
    sizes = np.full(where.shape[0], rng.randrange(1, 9), np.uint32)
    payload = np.frombuffer(rng.randbytes(int(sizes.sum())), np.uint8)
    return [
        lambda: mm.mmap(start, length, 3, kind),
        lambda: mm.munmap(start, SIZE),
        lambda: mm.mprotect(start, length, prot),
        lambda: mm.mprotect(start, length, 3),
        lambda: mm.mremap(start, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, target),
        lambda: mm.madvise(start, length, advice),
        lambda: mm.madvise(start, length, MADV_PAGEOUT),
        lambda: mm.store_words(where + shift, values),
        lambda: mm.store_words(where, values),
        lambda: mm.store(where + shift, sizes, payload),
        lambda: mm.touch(where),
        lambda: mm.gup_write(start + 100, payload.tobytes()),
        mm.clear_refs,
        lambda: mm.clear_refs(1),
        lambda: mm.mlock(start, SIZE),
        lambda: mm.munlock(start, length),
        mm.machine.swapoff,
        mm.machine.swapon,
    ]


def story(dbm: bool, seed: int, steps: int) -> str:
    """SHA-256 over results, errors, pagemap, entries and content after every step."""
    rng = random.Random(seed)
    machine = Machine(ModelConfig(frames=400, swap_slots=100, dbm=dbm))
    mms = [machine.create_mm()]
    mms[0].mmap(BASE, PAGES * SIZE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    digest = hashlib.sha256()
    for number in range(steps):
        mm = rng.choice(mms)
        if number % 50 == 25 and len(mms) < 3:
            mms.append(mm.fork())
        try:
            result = rng.choice(_steps(mm, rng))()
        except MmError as error:
            result = f"{type(error).__name__} {error.errno} {error.strerror}"
        digest.update(f"{number} {result} {machine.faults} {mm.vmas()}".encode())
        for view in (mm.pagemap, mm.ptes, mm.frames, mm.versions):
            digest.update(view(BASE, 3 * PAGES).tobytes())
        digest.update(mm.peek(BASE, 3 * PAGES * SIZE))
    return digest.hexdigest()


if __name__ == "__main__":
    print(story(dbm=True, seed=1, steps=200), story(dbm=False, seed=2, steps=200))
