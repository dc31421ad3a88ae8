"""A process that notes what is done to it, and small helpers to look at the notes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from livemigration.task import Task
from livemigration.workload import Workload
from livemigration.workload.spec import WorkloadSpec
from mm_model import Mm
from tests.unit.workload.harness import start

U64 = NDArray[np.uint64]
_NOTED = {"mmap", "munmap", "mprotect", "mremap", "brk", "madvise"}


class SpyMm:
    """Stands in for an `Mm`: does everything that it does, and keeps the accesses and the calls."""

    def __init__(self, mm: Mm) -> None:
        self.mm = mm
        self.calls: list[tuple[Any, ...]] = []
        self.read: list[int] = []
        self.children: list[SpyMm] = []
        self._addresses: list[U64] = []
        self._sizes: list[NDArray[np.uint32]] = []
        self._bytes: list[bytes] = []

    def store(self, addresses: U64, sizes: NDArray[np.uint32], payload: NDArray[np.uint8]) -> int:
        self._note(addresses, sizes, payload.tobytes())
        return self.mm.store(addresses, sizes, payload)

    def store_words(self, addresses: U64, values: U64) -> int:
        self._note(addresses, np.full(addresses.size, 8, dtype=np.uint32), values.tobytes())
        return self.mm.store_words(addresses, values)

    def touch(self, addresses: U64) -> int:
        self.read += addresses.tolist()
        return self.mm.touch(addresses)

    def fork(self) -> SpyMm:
        self.children.append(SpyMm(self.mm.fork()))
        return self.children[-1]

    def _note(self, addresses: U64, sizes: NDArray[np.uint32], payload: bytes) -> None:
        self._addresses.append(addresses.copy())
        self._sizes.append(sizes.copy())
        self._bytes.append(payload)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.mm, name)
        if name not in _NOTED:
            return found
        return self._noting(name, found)

    def _noting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keys: Any) -> Any:
            self.calls.append((name, *args))
            return method(*args, **keys)

        return call

    @property
    def addresses(self) -> U64:
        """Addresses of all stores, in order."""
        return np.concatenate([np.zeros(0, dtype=np.uint64), *self._addresses])

    @property
    def sizes(self) -> NDArray[np.uint32]:
        """Their sizes in bytes."""
        return np.concatenate([np.zeros(0, dtype=np.uint32), *self._sizes])

    @property
    def written(self) -> bytes:
        """Their bytes, one after the other."""
        return b"".join(self._bytes)

    def pages(self, base: int) -> NDArray[np.int64]:
        """The page of each store, counted from ``base``."""
        page_size = np.uint64(self.mm.machine.page_size)
        return ((self.addresses - np.uint64(base)) // page_size).astype(np.int64)

    def offsets(self) -> NDArray[np.int64]:
        """The place of each store in its page."""
        return (self.addresses % np.uint64(self.mm.machine.page_size)).astype(np.int64)


def watched(what: WorkloadSpec, **how: Any) -> tuple[Workload, Task, SpyMm]:
    """A workload that is set up, its task, and the spy that process 1 has become."""
    workload, task = start(what, **how)
    spy = SpyMm(task.processes[1])
    task.processes[1] = spy  # type: ignore[assignment]
    return workload, task, spy


def chi_square(counts: NDArray[np.int64], shares: NDArray[np.float64]) -> float:
    """How many standard deviations Pearson's statistic is from its mean.

    For ``shares`` that add up to 1 and are those the counts were drawn by, this is a number of
    about normal distribution (the chi-square distribution has mean n-1 and variance 2(n-1)).
    """
    expected = shares * counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.size - 1
    return (statistic - freedom) / float(2 * freedom) ** 0.5
