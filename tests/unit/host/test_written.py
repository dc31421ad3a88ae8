"""What this kernel says of writes to a real mapping: every write, and nothing else."""

from __future__ import annotations

import os

import numpy as np
import pytest

from livemigration.errors import BadRequest
from livemigration.host import pagemap_scan
from livemigration.host import written as written_module
from livemigration.host.region import Region
from tests.unit.host.kernel_here import (
    BASE,
    METHODS,
    PAGE,
    memory,
    needs,
    there,
    why_not,
    write,
    written,
)

BOTH = pytest.mark.parametrize("method", METHODS)


@BOTH
def test_before_the_first_reset_all_that_is_there_counts_as_written(method: str) -> None:
    mm = memory(8, method)
    assert there(mm) == []
    write(mm, 1, 2, 7)
    assert there(mm) == written(mm) == [1, 2, 7]


@BOTH
def test_after_a_reset_only_new_writes_count(method: str) -> None:
    mm = memory(8, method)
    write(mm, *range(8))
    mm.machine.written.reset()
    assert written(mm) == []
    write(mm, 3, 5, value=2)
    assert written(mm) == [3, 5]
    mm.machine.written.reset()
    assert written(mm) == []
    assert there(mm) == list(range(8))


@BOTH
def test_the_same_bytes_again_are_a_write_and_no_change(method: str) -> None:
    mm = memory(4, method)
    write(mm, 0, 1)
    mm.machine.written.reset()
    before = mm.versions(BASE, 4)
    write(mm, 1)
    assert written(mm) == [1]
    assert np.array_equal(mm.versions(BASE, 4), before)
    write(mm, 1, value=2)
    assert (mm.versions(BASE, 4) != before).tolist() == [False, True, False, False]


@BOTH
def test_first_write_to_an_absent_page_counts_and_reading_does_not(method: str) -> None:
    mm = memory(4, method)
    write(mm, 0)
    mm.machine.written.reset()
    assert int(mm.machine.content[1 + 0].sum()) == 1  # rows begin after the page of zeros
    assert written(mm) == []
    write(mm, 2)
    assert written(mm) == [2]
    assert there(mm) == [0, 2]


@needs("wp-async")
def test_reading_an_absent_page_leaves_it_absent() -> None:
    """It is the kernel's zero page then; soft-dirty's pagemap cannot tell that one."""
    mm = memory(4, "wp-async")
    assert int(mm.machine.content[1 + 3].sum()) == 0
    assert there(mm) == []
    mm.machine.written.reset()
    write(mm, 3)
    assert there(mm) == written(mm) == [3]


@BOTH
def test_writes_of_the_kernel_itself_count(method: str) -> None:
    """read(2) into a protected page: a fault in the kernel, not in user mode."""
    mm = memory(4, method)
    write(mm, *range(4))
    mm.machine.written.reset()
    reader, writer = os.pipe()
    try:
        os.write(writer, b"from the kernel")
        assert os.readv(reader, [mm.machine.content[1 + 2].data]) == 15
    finally:
        os.close(reader)
        os.close(writer)
    assert written(mm) == [2]
    assert mm.machine.content[1 + 2].tobytes().startswith(b"from the kernel")


@needs("wp-async")
def test_more_runs_than_one_call_can_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagemap_scan, "REGIONS", 4)
    mm = memory(64, "wp-async")
    write(mm, *range(64))
    mm.machine.written.reset()
    assert written(mm) == []
    odd = list(range(1, 64, 2))
    write(mm, *odd, value=2)
    assert written(mm) == odd
    mm.machine.written.reset()
    assert written(mm) == []


@needs("wp-async")
def test_each_first_write_takes_one_fault_and_none_once_tracking_stopped() -> None:
    mm = memory(256, "wp-async")
    write(mm, *range(256))
    assert write(mm, *range(256), value=2) == 0
    mm.machine.written.reset()
    assert write(mm, *range(0, 256, 4), value=3) == 64
    assert write(mm, *range(0, 256, 4), value=4) == 0
    mm.machine.written.reset()
    mm.machine.written.stop()
    assert write(mm, *range(256), value=5) == 0
    assert len(written(mm)) == 256  # nothing is protected, so all of it counts again
    mm.machine.written.reset()
    assert written(mm) == []


@BOTH
def test_a_part_of_the_pages_can_be_asked_for(method: str) -> None:
    mm = memory(16, method)
    write(mm, *range(16))
    mm.machine.written.reset()
    write(mm, 4, 9, value=2)
    flags = mm.flags(BASE + 4 * PAGE, 5)
    assert np.flatnonzero(flags & written_module.WRITTEN).tolist() == [0]
    assert np.flatnonzero(flags & written_module.THERE).tolist() == [0, 1, 2, 3, 4]


@BOTH
def test_a_forgetful_kernel_tells_nothing_of_the_first_pages(method: str) -> None:
    mm = memory(8, method, forget=3)
    write(mm, *range(8))
    assert written(mm) == list(range(8))  # round 0 is not touched by the drill
    mm.machine.written.reset()
    write(mm, 1, 2, 3, 6, value=2)
    assert written(mm) == [3, 6]


def test_pages_of_another_size_are_refused() -> None:
    with pytest.raises(BadRequest, match=f"pages are {PAGE} bytes here, not {4 * PAGE}; set page"):
        Region(4, 4 * PAGE)


@pytest.mark.parametrize("method", ["wp-async", "soft-dirty"])
def test_a_method_that_is_asked_for_works_or_says_why_not(method: str) -> None:
    reason = why_not(method)
    if not reason:
        assert memory(1, method).machine.written.method == method
        return
    with pytest.raises(BadRequest, match=f'host.method = "{method}" cannot work here: '):
        memory(1, method)


def test_a_kernel_with_neither_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def __init__(self, region: Region) -> None:
            raise BadRequest(f"{region.pages} page: not here")

    monkeypatch.setattr(written_module, "WpAsync", Missing)
    monkeypatch.setattr(written_module, "SoftDirtyBits", Missing)
    with pytest.raises(BadRequest) as refused:
        memory(1)
    assert str(refused.value) == (
        'tracker = "host" cannot work on this kernel: 1 page: not here; 1 page: not here; '
        'write tracker = "uffd-wp" for the model'
    )


@needs("soft-dirty")
def test_soft_dirty_is_what_is_left_without_wp_async(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(region: Region) -> None:
        raise BadRequest("not here")

    monkeypatch.setattr(written_module, "WpAsync", missing)
    assert memory(1).machine.written.method == "soft-dirty"
