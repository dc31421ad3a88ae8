"""A batch does what its accesses do one at a time, and compiled code what Python does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_model import (
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    ModelConfig,
    SegFault,
)
from mm_model import _compiled as compiled
from tests.property.mm_story import story

ROOT = Path(__file__).parents[2]
BASE, PAGES = 1 << 36, 12
RW = PROT_READ | PROT_WRITE


@dataclass(frozen=True, slots=True)
class Start:
    """The state that a batch meets: some pages read, written, cleared, swapped or closed."""

    page_size: int
    dbm: bool
    written: frozenset[int]
    swapped: frozenset[int]
    closed: frozenset[int]
    forked: bool

    def build(self) -> Mm:
        machine = Machine(
            ModelConfig(page_size=self.page_size, frames=64, swap_slots=16, dbm=self.dbm)
        )
        mm = machine.create_mm()
        mm.mmap(BASE, PAGES * self.page_size, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
        for page in sorted(self.written):
            mm.store_words(self.at(page), np.array([page + 1], np.uint64))
        mm.clear_refs()
        for page in sorted(self.swapped):
            mm.madvise(BASE + page * self.page_size, self.page_size, MADV_PAGEOUT)
        if self.forked:
            mm.fork()
        for page in sorted(self.closed):
            mm.mprotect(BASE + page * self.page_size, self.page_size, PROT_READ)
        return mm

    def at(self, page: int) -> np.ndarray:
        return np.array([BASE + page * self.page_size], np.uint64)


some = st.frozensets(st.integers(0, PAGES - 1))
few = st.frozensets(st.integers(0, PAGES - 1), max_size=1)
starts = st.builds(
    Start,
    page_size=st.sampled_from((4096, 16384, 65536)),
    dbm=st.booleans(),
    written=some,
    swapped=some,
    closed=few,
    forked=st.booleans(),
)
stores = st.lists(
    st.tuples(st.integers(0, PAGES), st.integers(0, 4000), st.integers(1, 96)), max_size=30
)


def everything(mm: Mm) -> list[object]:
    """All that the model keeps, save where it keeps it."""
    machine, size = mm.machine, mm.machine.page_size
    views = (mm.ptes, mm.pagemap, mm.frames, mm.versions)
    seen = [view(BASE, PAGES).tolist() for view in views]
    kept = (machine.phys.mapcount, machine.phys.flags, machine.phys.slot_count)
    state = [column.tolist() for column in kept]
    return [*seen, *state, machine.faults, mm.rss_pages, mm.peek(BASE, PAGES * size)]


def outcome(call: Callable[[], object]) -> int | None:
    """Where the access failed, if it did."""
    try:
        call()
    except SegFault as fault:
        return fault.address
    return None


def one_at_a_time(calls: list[Callable[[], object]]) -> int | None:
    """The same, stopping at the first that fails as a batch does."""
    return next((where for call in calls if (where := outcome(call)) is not None), None)


@given(start=starts, chosen=stores)
def test_store(start: Start, chosen: list[tuple[int, int, int]]) -> None:
    where = np.array([BASE + p * start.page_size + o for p, o, _ in chosen], np.uint64)
    sizes = np.array([size for _, _, size in chosen], np.uint32)
    parts = [np.full(size, k + 1, np.uint8) for k, size in enumerate(sizes.tolist())]
    whole, single = start.build(), start.build()
    payload = np.concatenate([*parts, np.zeros(0, np.uint8)])
    failed = outcome(lambda: whole.store(where, sizes, payload))
    singles: list[Callable[[], object]] = [
        partial(single.store, where[k : k + 1], sizes[k : k + 1], parts[k])
        for k in range(len(chosen))
    ]
    assert failed == one_at_a_time(singles)
    assert everything(whole) == everything(single)


@given(start=starts, chosen=stores)
def test_store_words_is_also_what_store_does_with_eight_bytes(
    start: Start, chosen: list[tuple[int, int, int]]
) -> None:
    where = np.array([BASE + p * start.page_size + o for p, o, _ in chosen], np.uint64)
    values = np.arange(1, len(chosen) + 1, dtype=np.uint64) * np.uint64(0x0101010101010101)
    whole, single, as_bytes = start.build(), start.build(), start.build()
    failed = outcome(lambda: whole.store_words(where, values))
    singles: list[Callable[[], object]] = [
        partial(single.store_words, where[k : k + 1], values[k : k + 1]) for k in range(len(chosen))
    ]
    assert failed == one_at_a_time(singles)
    eights = np.full(len(chosen), 8, np.uint32)
    assert failed == outcome(lambda: as_bytes.store(where, eights, values.view(np.uint8)))
    assert everything(whole) == everything(single) == everything(as_bytes)


@pytest.mark.parametrize("access", [Mm.touch, Mm.touch_write], ids=["touch", "touch_write"])
@given(start=starts, chosen=st.lists(st.integers(0, PAGES), max_size=30))
def test_touch(access: Callable[[Mm, np.ndarray], int], start: Start, chosen: list[int]) -> None:
    where = np.array([BASE + page * start.page_size for page in chosen], np.uint64)
    whole, single = start.build(), start.build()
    failed = outcome(lambda: access(whole, where))
    singles: list[Callable[[], object]] = [
        partial(access, single, where[k : k + 1]) for k in range(len(chosen))
    ]
    assert failed == one_at_a_time(singles)
    assert everything(whole) == everything(single)


@given(start=starts, chosen=st.lists(st.integers(0, PAGES - 1), unique=True, max_size=PAGES))
def test_install_and_discard(start: Start, chosen: list[int]) -> None:
    size = start.page_size
    where = np.array([BASE + page * size for page in chosen], np.uint64)
    data = np.repeat(np.arange(1, len(chosen) + 1, dtype=np.uint8), size)
    whole, single = start.build(), start.build()
    whole.install(where, data)
    for k in range(len(chosen)):
        single.install(where[k : k + 1], data[k * size : (k + 1) * size])
    assert everything(whole) == everything(single)
    whole.discard(where)
    for k in range(len(chosen)):
        single.discard(where[k : k + 1])
    assert everything(whole) == everything(single)


def test_python_and_compiled_code_tell_the_same_story() -> None:
    other_mode = {"NUMBA_DISABLE_JIT": "1" if compiled.is_enabled() else "0"}
    told = subprocess.run(
        [sys.executable, "-m", "tests.property.mm_story"],
        cwd=ROOT,
        env=os.environ | other_mode,
        capture_output=True,
        text=True,
        check=True,
    )
    here = story(dbm=True, seed=1, steps=200), story(dbm=False, seed=2, steps=200)
    assert told.stdout.split() == list(here)
