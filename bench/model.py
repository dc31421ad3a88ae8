"""The memory model on one core: write faults, clear_refs and dirty scans, per page.

The baselines are what NumPy takes for the least that could be done: the same bits changed or
looked at in a flat array of as many 64-bit entries.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.measure import Line, best, seconds
from mm_model import MAP_ANONYMOUS, MAP_PRIVATE, PM_SOFT_DIRTY, Machine, Mm, ModelConfig

_BASE = 0x10_0000_0000
_READ_WRITE = 3
_RDONLY = np.uint64(1 << 7)
_NS = 1e9


def model_lines(*, quick: bool) -> list[Line]:
    """Group "model"."""
    pages, rounds = (1 << 16, 3) if quick else (1 << 20, 5)
    _warm_up()
    return [*_page_tables(pages, rounds), *_with_content(pages // 4, rounds)]


def _populated(pages: int) -> tuple[Machine, Mm]:
    machine = Machine(ModelConfig(frames=pages + 1024))
    mm = machine.create_mm()
    mm.mmap(_BASE, pages * 4096, _READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    return machine, mm


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
    machine.release()


def _page_tables(pages: int, rounds: int) -> list[Line]:
    machine, mm = _populated(pages)
    where = _addresses(pages)
    mixed = np.random.default_rng(1).permutation(where)
    index = ((mixed - np.uint64(_BASE)) >> np.uint64(12)).astype(np.int64)
    flat = np.full(pages, 0xFFFF_0000, np.uint64)
    first_touch = seconds(lambda: mm.touch_write(where))

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
