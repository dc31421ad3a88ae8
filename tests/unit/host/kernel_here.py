"""Whether the kernel that the tests run on can track writes, and a small region to try it with."""

from __future__ import annotations

import os

import numpy as np
import pytest
from numpy.typing import NDArray

from livemigration.errors import BadRequest
from livemigration.host.memory import HostMm, host_memory, host_task
from livemigration.host.region import Region
from livemigration.host.written import THERE, WRITTEN, SoftDirtyBits, WpAsync
from mm_model import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE

PAGE = os.sysconf("SC_PAGE_SIZE")
BASE = 0x10_0000_0000
U64 = NDArray[np.uint64]


def why_not(method: str) -> str:
    """Why this kernel cannot track by `method`; empty if it can."""
    try:
        {"wp-async": WpAsync, "soft-dirty": SoftDirtyBits}[method](Region(1, PAGE)).close()
    except BadRequest as error:
        return str(error)
    return ""


def needs(method: str) -> pytest.MarkDecorator:
    """Skips where the kernel itself cannot do it, and says what it lacks."""
    reason = why_not(method)
    return pytest.mark.skipif(bool(reason), reason=reason)


METHODS = [
    pytest.param("wp-async", marks=needs("wp-async")),
    pytest.param("soft-dirty", marks=needs("soft-dirty")),
]


def memory(pages: int, method: str = "auto", forget: int = 0) -> HostMm:
    """A task's memory of untouched pages at `BASE`."""
    mm = host_memory(host_task(pages, PAGE, method, forget))
    mm.mmap(BASE, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    return mm


def write(mm: HostMm, *pages: int, value: int = 1) -> int:
    """Stores one word into each of the pages; returns the faults."""
    where = np.uint64(BASE) + np.array(pages, np.uint64) * np.uint64(PAGE)
    return mm.store_words(where, np.full(len(pages), value, np.uint64))


def written(mm: HostMm) -> list[int]:
    """Numbers of the pages that the kernel calls written."""
    flags = mm.flags(BASE, mm.pages)
    return np.flatnonzero(flags == THERE | WRITTEN).tolist()


def there(mm: HostMm) -> list[int]:
    """Numbers of the pages that have content."""
    return np.flatnonzero(mm.flags(BASE, mm.pages) & THERE).tolist()
