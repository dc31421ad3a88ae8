"""Cells of a live page map against a plain count over every page."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemigration.layout import AddressSpace
from mm_model import Vma
from source_node.live_pages import CELLS, MOST_VMAS, LiveRound
from source_node.page_server import PageServer
from source_node.tracker import DirtyVma, ProcessScan, RoundScan

PAGE = 4096


def vma(start_page: int, pages: int) -> Vma:
    return Vma(start_page * PAGE, (start_page + pages) * PAGE, 3, 0x22, 0, 0, False, "", False, 0)


def live_round(vmas: list[Vma], send: np.ndarray, sent: int) -> LiveRound:
    space = AddressSpace(1, 0, tuple(vmas), 0, 0)
    scan = RoundScan(processes=[ProcessScan(space, send, send, [send])], to_send=send.size)
    return LiveRound(2, False, scan, Counter({1: sent}))


@given(
    gaps=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 9000)), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    share=st.floats(0, 1),
)
def test_every_page_is_counted_once_in_its_cell(
    gaps: list[tuple[int, int]], seed: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    vmas, at = [], 16
    for gap, pages in gaps:
        vmas.append(vma(at + gap, pages))
        at += gap + pages
    every = np.concatenate([np.arange(v.start, v.end, PAGE, dtype=np.uint64) for v in vmas])
    send = every[rng.random(every.size) < 0.4]
    sent = int(share * send.size)
    dirty = [DirtyVma(1, v, rng.random((v.end - v.start) // PAGE) < 0.3) for v in vmas]
    told = live_round(vmas, send, sent).cells(dirty, PAGE)

    cell = told["cell_bytes"]
    assert isinstance(cell, int) and cell & (cell - 1) == 0
    assert sum(len(v["sent"]) for v in told["vmas"]) <= CELLS + len(vmas)  # type: ignore[attr-defined]
    for shown, mapping in zip(told["vmas"], dirty, strict=True):  # type: ignore[call-overload]
        start, end = mapping.vma.start, mapping.vma.end
        assert (shown["start"], shown["end"]) == (f"{start:#x}", f"{end:#x}")
        written = [start + PAGE * int(k) for k in np.flatnonzero(mapping.dirty)]
        for name, pages in (
            ("sent", send[:sent].tolist()),
            ("pending", send[sent:].tolist()),
            ("soft_dirty", written),
        ):
            expected = Counter((page - start) // cell for page in pages if start <= page < end)
            assert shown[name] == [expected[k] for k in range(-(-(end - start) // cell))]
    assert told["pages_sent"] == sent
    assert told["pages_pending"] == send.size - sent
    assert told["pages_soft_dirty"] == sum(int(d.dirty.sum()) for d in dirty)


def test_a_mapping_that_came_after_the_scan_has_nothing_to_send() -> None:
    old, new = vma(16, 10), vma(40, 10)
    send = np.arange(old.start, old.end, PAGE, dtype=np.uint64)
    forked = DirtyVma(2, new, np.ones(10, np.bool_))
    told = live_round([old], send, 4).cells(
        [DirtyVma(1, old, np.zeros(10, np.bool_)), forked], PAGE
    )
    first, second = told["vmas"]  # type: ignore[misc]
    assert (sum(first["sent"]), sum(first["pending"]), sum(first["soft_dirty"])) == (4, 6, 0)
    assert (sum(second["sent"]), sum(second["pending"]), sum(second["soft_dirty"])) == (0, 0, 10)


def test_pages_count_as_sent_when_their_frame_went_and_gone_ones_with_the_next() -> None:
    mapping = vma(16, 10)
    send = np.arange(mapping.start, mapping.end, PAGE, dtype=np.uint64)
    there = live_round([mapping], send, 0)
    now = [DirtyVma(1, mapping, np.zeros(10, np.bool_))]

    def told() -> tuple[object, object, int]:
        cells = there.cells(now, PAGE)
        return cells["pages_sent"], cells["pages_pending"], there.bytes_wire

    there.gathered(7, 1, 4)
    assert told() == (0, 10, 0)
    there.went(6, 100)  # the frame that opens the round has no pages
    there.went(7, 4 * PAGE)
    assert told() == (4, 6, 100 + 4 * PAGE)
    there.skipped(1, 3)
    there.gathered(8, 1, 2)
    there.went(8, 2 * PAGE)
    assert told()[:2] == (9, 1)
    there.skipped(1, 1)
    there.over = True
    assert told()[:2] == (10, 0)


def test_pages_left_behind_are_pending_until_they_are_asked_for() -> None:
    anonymous, shared = vma(16, 40), vma(100, 10)
    send = np.arange(shared.start, shared.end, PAGE, dtype=np.uint64)
    there = live_round([anonymous, shared], send, 0)
    lazy = np.arange(anonymous.start, anonymous.end, 2 * PAGE, dtype=np.uint64)  # every other page
    there.later = PageServer(cast("Any", None), {1: lazy}, 3, lambda *_: None)
    there.over = True
    now = [
        DirtyVma(1, v, np.zeros((v.end - v.start) // PAGE, np.bool_)) for v in (anonymous, shared)
    ]

    def counts() -> list[tuple[list[int], list[int]]]:
        told = there.cells(now, PAGE)
        assert told["pages_sent"] + told["pages_pending"] == lazy.size + send.size  # type: ignore[operator]
        return [(v["sent"], v["pending"]) for v in told["vmas"]]  # type: ignore[attr-defined]

    assert counts() == [([0] * 40, [1, 0] * 20), ([1] * 10, [0] * 10)]
    asked = np.zeros(lazy.size, np.bool_)
    asked[[0, 19]] = True
    there.later.asked[1] = asked
    (sent, pending), _ = counts()
    assert (sent[0], sent[38], sum(sent)) == (1, 1, 2)
    assert (pending[0], pending[38], sum(pending)) == (0, 0, 18)


def test_pages_that_differ_are_counted_wherever_they_are() -> None:
    first, second = vma(16, 4000), vma(9000, 3)
    now = [DirtyVma(1, v, np.zeros((v.end - v.start) // PAGE, np.bool_)) for v in (first, second)]
    there = live_round([first, second], np.zeros(0, np.uint64), 0)
    wrong = np.array([17, 18, 3999, 9001], dtype=np.uint64) * np.uint64(PAGE)
    told = there.cells(now, PAGE, {1: wrong})
    cell = cast("int", told["cell_bytes"]) // PAGE
    shown = [v["different"] for v in told["vmas"]]  # type: ignore[attr-defined]
    assert (shown[0][0], shown[0][(3999 - 16) // cell], sum(shown[0])) == (2, 1, 3)
    assert sum(shown[1]) == 1
    assert "different" not in there.cells(now, PAGE)["vmas"][0]  # type: ignore[index]


def test_of_very_many_mappings_the_largest_are_shown_in_order() -> None:
    vmas = [vma(100 * k, 1 + k % 7) for k in range(1, 1000)]
    now = [DirtyVma(1, v, np.ones((v.end - v.start) // PAGE, np.bool_)) for v in vmas]
    told = live_round(vmas, np.zeros(0, np.uint64), 0).cells(now, PAGE)
    shown = told["vmas"]
    assert isinstance(shown, list) and len(shown) == MOST_VMAS
    assert told["vmas_left_out"] == len(vmas) - MOST_VMAS
    assert told["pages_soft_dirty"] == sum(d.dirty.size for d in now)
    starts = [int(v["start"], 16) for v in shown]
    assert starts == sorted(starts)
    assert min(int(v["end"], 16) - int(v["start"], 16) for v in shown) == 6 * PAGE


@pytest.mark.parametrize("pages", [4 * 2**20])
def test_four_million_pages_make_a_small_record_soon(pages: int) -> None:
    mapping = vma(16, pages)
    send = np.arange(mapping.start, mapping.end, PAGE, dtype=np.uint64)
    dirty = DirtyVma(1, mapping, np.ones(pages, np.bool_))
    there = live_round([mapping], send, pages // 3)
    began = time.perf_counter()
    told = there.cells([dirty], PAGE)
    assert time.perf_counter() - began < 1.0
    (shown,) = told["vmas"]  # type: ignore[misc]
    assert len(shown["sent"]) == CELLS
    assert sum(shown["sent"]) == pages // 3
    assert sum(shown["soft_dirty"]) == pages
