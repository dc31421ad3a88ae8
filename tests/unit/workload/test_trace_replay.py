"""Replay: the recorded pages at the recorded addresses, in the recorded order and time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from livemigration.workload.spec import WorkloadSpec
from livemigration.workload.trace import TraceError
from tests.unit.workload.harness import MIB, SECOND, empty_task, make, pages_of, spec, start
from tests.unit.workload.raw_traces import RECORDS, Record, chunk, footer, good_items, header, write
from tests.unit.workload.spy import watched

MS = 10**6
ADDRESSES = [page * 4096 + first for _, page, first, _, _ in RECORDS]
SIZES = [last - first + 1 for _, _, first, last, _ in RECORDS]


def trace_spec(path: Path, *chunks: list[Record], **keys: object) -> WorkloadSpec:
    return spec("trace", file=str(write(path / "t", good_items(*(chunks or [RECORDS])))), **keys)


def test_every_record_is_one_store_of_the_bytes_from_first_to_last(tmp_path: Path) -> None:
    workload, task, spy = watched(trace_spec(tmp_path, RECORDS[:2], RECORDS[2:], loop=False))
    stats = workload.run_until(task, SECOND)
    assert spy.addresses.tolist() == ADDRESSES
    assert spy.sizes.tolist() == SIZES
    assert (stats.ops, stats.stores, stats.bytes) == (5, 5, sum(SIZES))


def test_a_record_is_due_at_its_instruction(tmp_path: Path) -> None:
    """A million instructions per second: an instruction is a microsecond."""
    workload = make(trace_spec(tmp_path))
    assert [workload.due_ns(k) for k in range(5)] == [10_000, 10_000, 250_000, 400_000, 999_000]
    # The program has 1000 instructions and begins again after the last one.
    assert [workload.due_ns(k) for k in (5, 7)] == [1_011_000, 1_251_000]


def test_again_from_the_beginning_the_same_pages_get_other_bytes(tmp_path: Path) -> None:
    workload, task, spy = watched(trace_spec(tmp_path))
    workload.run_until(task, 2 * MS + 1)
    assert spy.addresses.tolist() == ADDRESSES * 2
    half = len(spy.written) // 2
    assert spy.written[:half] != spy.written[half:]


def test_the_pages_that_the_trace_touches_are_there_before_it_runs(tmp_path: Path) -> None:
    _, task = start(trace_spec(tmp_path))
    assert set(pages_of(task.processes[1])) == {0x4000_000, 0x4001_000, 0x7FFF0_000}


def test_pages_near_each_other_share_an_area(tmp_path: Path) -> None:
    rows: list[Record] = [(1, page, 0, 7, 1) for page in (100, 101, 110, 127, 145)]
    _, task = start(trace_spec(tmp_path, rows))
    areas = [(vma.start // 4096, vma.end // 4096) for vma in task.processes[1].vmas()]
    # 16 untouched pages between two touched ones are bridged, 17 are not.
    assert areas == [(100, 128), (145, 146)]
    assert len(pages_of(task.processes[1])) == 5


@pytest.mark.parametrize("page_size", [16384, 65536])
def test_a_trace_of_small_pages_runs_on_larger_ones(tmp_path: Path, page_size: int) -> None:
    workload, task, spy = watched(trace_spec(tmp_path, loop=False), page_size=page_size)
    workload.run_until(task, SECOND)
    assert spy.addresses.tolist() == ADDRESSES
    expected = {address // page_size * page_size for address in ADDRESSES}
    assert set(pages_of(task.processes[1])) == expected


def test_a_trace_of_large_pages_does_not_run_on_smaller_ones(tmp_path: Path) -> None:
    items = [header(page_size=16384), chunk(0, RECORDS[:1]), footer(RECORDS[:1])]
    path = write(tmp_path / "t", items)
    with pytest.raises(TraceError) as error:
        make(spec("trace", file=str(path)))
    assert str(error.value) == (
        f"{path}: recorded with pages of 16384 bytes; page_size must be at least that, not 4096"
    )


def test_memory_must_hold_what_the_trace_writes(tmp_path: Path) -> None:
    what = trace_spec(tmp_path)
    make(what, memory=3 * 4096)
    with pytest.raises(TraceError, match=r"the trace writes 12KiB of memory; memory must be"):
        make(what, memory=2 * 4096)


def test_the_lowest_and_the_highest_page_can_be_written(tmp_path: Path) -> None:
    rows: list[Record] = [(1, 0, 0, 4095, 1), (2, 2**36 - 1, 0, 4095, 1)]
    workload, task = start(trace_spec(tmp_path, rows))
    workload.run_until(task, MS)
    assert set(pages_of(task.processes[1])) == {0, 2**48 - 4096}


def test_a_trace_without_stores_is_an_idle_task(tmp_path: Path) -> None:
    what = spec("trace", file=str(write(tmp_path / "t", [header(), footer()])))
    workload, task = start(what)
    assert workload.run_until(task, 10 * SECOND).ops == 0
    assert task.processes[1].vmas() == []


def test_the_file_is_found_beside_the_scenario(tmp_path: Path) -> None:
    from livemigration.workload import build_workload

    write(tmp_path / "recorded", good_items(RECORDS))
    what = spec("trace", file="recorded")
    workload = build_workload(what, seed=1, memory_bytes=MIB, page_size=4096, base_dir=tmp_path)
    assert workload.peak_pages == 3
    with pytest.raises(TraceError, match="No such file or directory"):
        build_workload(what, seed=1, memory_bytes=MIB, page_size=4096, base_dir=tmp_path / "x")


def test_only_written_pages_are_soft_dirty(tmp_path: Path) -> None:
    workload = make(trace_spec(tmp_path, loop=False))
    task = empty_task(workload)
    workload.setup(task, populate=True)
    mm = task.processes[1]
    mm.clear_refs(4)
    workload.run_until(task, 300_000)
    dirty = {
        vma.start + int(at) * 4096
        for vma in mm.vmas()
        for at in np.flatnonzero(
            mm.pagemap(vma.start, (vma.end - vma.start) // 4096) & np.uint64(1 << 55)
        )
    }
    assert dirty == {0x4000_000, 0x4001_000}
