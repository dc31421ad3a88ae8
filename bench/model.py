"""The memory model on one core: write faults, clear_refs and dirty scans, per page.

The baselines are what NumPy takes for the least that could be done: the same bits changed or
looked at in a flat array of as many 64-bit entries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from bench.measure import Line, best, seconds
from mm_model import MAP_ANONYMOUS, MAP_PRIVATE, PM_SOFT_DIRTY, Machine, Mm, ModelConfig
from mm_model.state import LARGE_FOLIOS

_BASE = 0x10_0000_0000
_READ, _READ_WRITE = 1, 3
_PMD_PAGES = 512
_RDONLY = np.uint64(1 << 7)
_NS = 1e9


def model_lines(*, quick: bool) -> list[Line]:
    """Group "model"."""
    pages, rounds = (1 << 16, 3) if quick else (1 << 20, 5)
    _warm_up()
    return [
        *_page_tables(pages, rounds),
        *_fork_and_mprotect(pages, rounds),
        *_large_folios(pages, rounds, "contpte", 16),
        *_large_folios(pages, rounds, "THP", 512),
        *_with_content(pages // 4, rounds),
    ]


def _populated(pages: int) -> tuple[Machine, Mm]:
    machine = Machine(ModelConfig(frames=pages + 1024))
    mm = machine.create_mm()
    mm.mmap(_BASE, pages * 4096, _READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    return machine, mm


def _first_touch(pages: int, rounds: int) -> float:
    """The least of several machines: what the host gives them is memory that it has used before."""
    taken = []
    where = _addresses(pages)
    for _ in range(rounds):
        machine, mm = _populated(pages)
        taken.append(seconds(partial(mm.touch_write, where)))
        machine.release()
    return min(taken)


def _addresses(pages: int) -> np.ndarray:
    return np.uint64(_BASE) + np.arange(pages, dtype=np.uint64) * np.uint64(4096)


def _warm_up() -> None:
    """Everything that is measured, once on a few pages: compiles what is not in the cache."""
    machine, mm = _populated(64)
    where = _addresses(64)
    mm.touch_write(where)
    mm.clear_refs()
    mm.store_words(where, where)
    mm.pagemap(_BASE, 64)
    mm.mprotect(_BASE, 64 * 4096, _READ)
    mm.fork().exit()
    machine.release()
    for name, block in (("contpte", 16), ("THP", 512)):
        _large_folios(2 * block, 1, name, block)


def _page_tables(pages: int, rounds: int) -> list[Line]:
    first_touch = _first_touch(pages, rounds)
    machine, mm = _populated(pages)
    where = _addresses(pages)
    mm.touch_write(where)
    mixed = np.random.default_rng(1).permutation(where)
    index = ((mixed - np.uint64(_BASE)) >> np.uint64(12)).astype(np.int64)
    flat = np.full(pages, 0xFFFF_0000, np.uint64)

    def change(order: np.ndarray) -> None:
        flat[order] &= ~_RDONLY

    straight = np.arange(pages)
    clear, fault, clear_again, fault_mixed = _alternate(
        rounds, mm.clear_refs, lambda: mm.touch_write(where), lambda: mm.touch_write(mixed)
    )
    mm.clear_refs()
    mm.touch_write(where[::4])
    found = np.flatnonzero(mm.pagemap(_BASE, pages) & PM_SOFT_DIRTY)
    if found.size != pages // 4:
        raise AssertionError(f"{found.size} dirty pages of {pages // 4}: a wrong model is no use")
    scan, scan_and_list = best(
        [
            lambda: mm.pagemap(_BASE, pages),
            lambda: np.flatnonzero(mm.pagemap(_BASE, pages) & PM_SOFT_DIRTY),
        ],
        rounds,
    )
    flat_fault, flat_mixed, flat_clear, flat_scan, flat_list = best(
        [
            lambda: change(straight),
            lambda: change(index),
            lambda: np.bitwise_or(flat, _RDONLY, out=flat),
            lambda: flat & PM_SOFT_DIRTY,
            lambda: np.flatnonzero(flat & PM_SOFT_DIRTY),
        ],
        rounds,
    )
    machine.release()

    def line(
        name: str, taken: float, flat_taken: float, what: str, target: float | None = None
    ) -> Line:
        return Line(
            "model",
            name,
            taken / pages * _NS,
            "ns/page",
            flat_taken / pages * _NS,
            f"NumPy, {what}",
            taken / flat_taken,
            "<=" if target is not None else "",
            target,
            note=f"{pages} pages",
        )

    return [
        Line("model", "first touch", first_touch / pages * _NS, "ns/page", note=f"{pages} pages"),
        line("write fault, no content, in order", fault, flat_fault, "indexed change", 15.0),
        line("write fault, no content, mixed", fault_mixed, flat_mixed, "indexed change", 15.0),
        line("clear_refs", min(clear, clear_again), flat_clear, "mask in place", 2.0),
        line("dirty scan (pagemap)", scan, flat_scan, "mask", 1.5),
        line("dirty scan and list", scan_and_list, flat_list, "mask and flatnonzero"),
    ]


def _alternate(
    rounds: int,
    clear: Callable[[], None],
    write: Callable[[], int],
    write_mixed: Callable[[], int],
) -> tuple[float, float, float, float]:
    """Best times of clear, write, clear, write mixed, each after the one before."""
    taken = best([clear, write, clear, write_mixed], rounds)
    return taken[0], taken[1], taken[2], taken[3]


def _fork_and_mprotect(pages: int, rounds: int) -> list[Line]:
    """What takes every entry in hand."""
    machine, mm = _populated(pages)
    mm.touch_write(_addresses(pages))
    length = pages * 4096
    fork, protect, unprotect = best(
        [
            lambda: mm.fork().exit(),
            lambda: mm.mprotect(_BASE, length, _READ),
            lambda: mm.mprotect(_BASE, length, _READ_WRITE),
        ],
        rounds,
    )
    machine.release()
    return [
        Line("model", name, taken / pages * _NS, "ns/page", note=f"{pages} pages")
        for name, taken in (
            ("fork and exit", fork),
            ("mprotect, to read-only and back", protect + unprotect),
        )
    ]


def _large_folios(pages: int, rounds: int, name: str, block: int) -> list[Line]:
    """The same in folios of ``block`` pages: contiguous entries, or PMD entries of 512 pages.

    Of a contiguous block each page takes its own fault, the first of which unfolds the block; of a
    huge page the first write is the only one that faults. clear_refs meets blocks that were
    written, unfolded and dirty, as in a pre-dump loop.
    """
    machine, mm = _populated(pages)
    if block == _PMD_PAGES:
        machine.set_thp("always")
    else:
        machine.set_mthp(block * 4, "always")
    where = _addresses(pages)
    each = where[::block] if block == _PMD_PAGES else where
    mm.touch_write(where[::block])
    if int(machine.phys.ctr[LARGE_FOLIOS]) != pages // block:
        raise AssertionError(f"{name}: {machine.phys.ctr[LARGE_FOLIOS]} folios: no use")
    clear, fault, scan = best(
        [mm.clear_refs, lambda: mm.touch_write(each), lambda: mm.pagemap(_BASE, pages)], rounds
    )
    machine.release()
    note = f"{pages} pages, {block} in a folio"
    return [
        Line("model", f"{name}: write fault", fault / each.size * _NS, "ns/fault", note=note),
        Line("model", f"{name}: clear_refs", clear / pages * _NS, "ns/page", note=note),
        Line("model", f"{name}: dirty scan", scan / pages * _NS, "ns/page", note=note),
    ]


def _with_content(pages: int, rounds: int) -> list[Line]:
    """Faults with an eight-byte store to each page; a quarter of the pages, to spare memory."""
    machine, mm = _populated(pages)
    where = _addresses(pages)
    mm.store_words(where, where)  # RAM is there from now on
    count = 0

    def store() -> None:
        nonlocal count
        count += 1
        mm.store_words(where, where + np.uint64(count))

    _, fault, again = best([mm.clear_refs, store, store], rounds)
    content = machine.content[1 : pages + 1].view(np.uint64)
    words = where.copy()

    def flat_store() -> None:
        content[:, 0] = words

    (flat,) = best([flat_store], rounds)
    machine.release()
    note = f"{pages} pages"

    def line(name: str, taken: float, target: float | None) -> Line:
        return Line(
            "model",
            name,
            taken / pages * _NS,
            "ns/page",
            flat / pages * _NS,
            "NumPy, a word into each page",
            taken / flat,
            "<=" if target is not None else "",
            target,
            note=note,
        )

    return [
        line("write fault with an 8-byte store", fault, None),
        line("8-byte store without a fault", again, None),
    ]
