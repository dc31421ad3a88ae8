"""Pagemaps written by NumPy are what protobuf would write, record for record."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemigration.criu.pagemap_entries import Flavour, entries, runs_of
from livemigration.criu.pb.pagemap_pb2 import PagemapEntry
from livemigration.criu.record_writer import record

PAGE = 4096
PRESENT, LAZY, PARENT = 4, 2, 1


def numbers(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, np.uint64)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**64 - 1), st.integers(1, 2**32 - 1), st.sampled_from([1, 2, 4, 6])
        ),
        max_size=30,
    ),
    st.sampled_from(list(Flavour)),
)
def test_records_are_protobufs_own(runs: list[tuple[int, int, int]], flavour: Flavour) -> None:
    expected = b""
    for start, pages, flags in runs:
        entry = PagemapEntry(vaddr=start, compat_nr_pages=pages, flags=flags, nr_pages=pages)
        if flavour is Flavour.NEW:
            entry.compat_nr_pages = 0
        if flavour is Flavour.OLD:
            entry.ClearField("nr_pages")
        expected += record(entry)
    columns = [numbers(*(run[i] for run in runs)) for i in range(3)]
    assert b"".join(entries(*columns, flavour)) == expected


def test_more_runs_than_are_made_at_once() -> None:
    starts = np.arange(70_000, dtype=np.uint64) * np.uint64(2 * PAGE)
    ones = np.ones(70_000, np.uint64)
    pieces = list(entries(starts, ones, ones * np.uint64(4), Flavour.BOTH))
    last = record(PagemapEntry(vaddr=int(starts[-1]), compat_nr_pages=1, flags=4, nr_pages=1))
    assert len(pieces) == 3
    assert pieces[-1].endswith(last)


def test_runs_end_at_gaps_and_where_flags_change() -> None:
    where = numbers(0x1000, 0x2000, 0x3000, 0x5000, 0x6000)
    flags = np.array([PRESENT, PRESENT, PARENT, PARENT, PARENT], np.uint8)
    starts, pages, kinds = runs_of(where, flags, PAGE)
    assert starts.tolist() == [0x1000, 0x3000, 0x5000]
    assert pages.tolist() == [2, 1, 2]
    assert kinds.tolist() == [PRESENT, PARENT, PARENT]


def test_a_run_too_long_for_the_old_field_is_refused() -> None:
    with pytest.raises(ValueError, match="old flavour"):
        list(entries(numbers(0), numbers(2**32), numbers(4), Flavour.OLD))


def test_a_run_too_long_for_the_old_field_has_the_new_one_alone() -> None:
    (written,) = entries(numbers(0), numbers(2**32), numbers(4), Flavour.BOTH)
    assert written == record(PagemapEntry(vaddr=0, compat_nr_pages=0, flags=4, nr_pages=2**32))
