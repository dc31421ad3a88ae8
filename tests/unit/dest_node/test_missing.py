"""Pages that come after the task: each once, where it belongs by then, and compared."""

import numpy as np
import pytest

from dest_node.missing import MissingPages, Runs
from dest_node.prefetch import ASKED, DROPPED, HERE, MISSING
from livemigration import batch
from livemigration.digest import page_digests
from livemigration.errors import BadRequest, DamagedFrame
from livemigration.packing import encode, pack_from
from livemigration.snapshot import digest_task
from tests.unit.dest_node.lazy import PAGE, Lazy, addresses, page, task_of


def missing(*numbers: int, pid: int = 1) -> MissingPages:
    return MissingPages({pid: addresses(*numbers)}, PAGE)


def first(pages: MissingPages, *accesses: int) -> tuple[int, int]:
    return pages.first(1, np.array(accesses, dtype=np.uint64), 0)


def test_an_access_is_to_the_page_that_it_lies_in() -> None:
    pages = missing(2, 3, 7)
    assert first(pages, page(0), page(1) + 4088, page(3) + 8, page(7)) == (2, 1)
    assert first(pages, page(8), page(6)) == (2, -1)
    assert first(pages, page(4) - 1) == (0, 1)


def test_a_page_that_is_under_way_is_missing_still() -> None:
    pages = missing(0, 1)
    pages.request(1, np.array([1]), urgent=True)
    assert pages.states.tolist() == [MISSING, ASKED]
    assert first(pages, page(1)) == (0, 1)


def test_the_search_goes_on_behind_what_was_found() -> None:
    pages = missing(0, 1)
    accesses = addresses(5, 0, 1)
    assert pages.first(1, accesses, 0) == (1, 0)
    assert pages.first(1, accesses, 2) == (2, 1)


def test_what_is_unmapped_is_not_missing_any_more() -> None:
    pages = missing(0, 1, 2, 3)
    pages.drop(1, page(1), page(3))
    assert pages.states.tolist() == [MISSING, DROPPED, DROPPED, MISSING]
    assert (pages.left, pages.dropped) == (2, 2)
    assert first(pages, page(1), page(2), page(3)) == (2, 3)


def test_a_page_moves_with_its_mapping() -> None:
    pages = missing(0, 1, 2, 3)
    pages.move(1, page(1), page(3), page(10))
    assert first(pages, page(1), page(2), page(11)) == (2, 2)
    assert [(m.start, m.pages) for m in pages.still_missing()] == [
        (page(0), 1),
        (page(3), 1),
        (page(10), 2),
    ]


def test_a_forked_page_is_needed_until_both_processes_have_let_it_go() -> None:
    pages = missing(0, 1)
    pages.fork(1, 2)
    pages.drop(1, page(0), page(1))
    assert pages.states.tolist() == [MISSING, MISSING]
    assert pages.first(2, addresses(0), 0) == (0, 0)
    pages.exit(2)
    assert pages.states.tolist() == [DROPPED, MISSING]


def test_a_page_of_parent_and_child_comes_once_and_is_put_in_both() -> None:
    lazy = Lazy.of(task_of(2))
    lazy.seen.fork(1)
    lazy.bring(np.array([0, 1]))
    assert lazy.missing.left == 0
    for pid in (1, 2):
        assert lazy.task.processes[pid].peek(page(1), 8) == (2).to_bytes(8, "little")


def test_a_page_comes_to_where_it_was_moved() -> None:
    lazy = Lazy.of(task_of(4))
    lazy.mm.mremap(page(1), 2 * PAGE, 2 * PAGE, 3, page(20))
    lazy.bring(np.array([0, 1, 2, 3]))
    assert lazy.task.processes[1].peek(page(21), 8) == (3).to_bytes(8, "little")


def test_a_page_that_was_dropped_on_its_way_is_put_nowhere() -> None:
    lazy = Lazy.of(task_of(2))
    under_way = lazy.ask(np.array([0, 1]))
    lazy.mm.munmap(page(0), PAGE)
    lazy.deliver(under_way)
    assert lazy.missing.states.tolist() == [DROPPED, HERE]
    assert lazy.missing.left == 0
    assert [vma.start for vma in lazy.task.processes[1].vmas()] == [page(1)]


def test_a_page_that_nobody_asked_for_is_refused() -> None:
    source = task_of(2)
    lazy = Lazy.of(source)
    mm = source.processes[1]
    frame = encode(
        pack_from(mm, addresses(1)), source.machine.content, sequence=1, round_number=0, pid=1
    )
    with pytest.raises(DamagedFrame, match=r"page 0x1000001000 .* was not asked for"):
        lazy.missing.place(batch.decode(frame), lazy.task.processes)


def test_a_page_that_came_is_not_taken_twice() -> None:
    lazy = Lazy.of(task_of(2))
    request = lazy.ask(np.array([0]))
    lazy.deliver(request)
    with pytest.raises(DamagedFrame, match="not asked for"):
        lazy.deliver(request)


def test_a_page_that_is_not_what_the_source_had_never_counts_as_here() -> None:
    source = task_of(2)
    lazy = Lazy.of(source)
    other = task_of(2)
    other.processes[1].store_words(addresses(1), np.array([99], dtype=np.uint64))

    def another_memory(message: bytes) -> bytes:
        # A frame whose checksum is right, so that only the digest can tell.
        packing = pack_from(other.processes[1], addresses(0, 1))
        return encode(packing, other.machine.content, sequence=1, round_number=0, pid=1)

    lazy.spoil = another_memory
    lazy.bring(np.array([0, 1]))
    assert lazy.missing.states.tolist() == [HERE, ASKED]
    assert [(m.start, m.pages) for m in lazy.missing.different] == [(page(1), 1)]


def test_the_digests_must_be_of_the_pages_that_were_left_behind() -> None:
    pages = missing(0, 1)
    with pytest.raises(BadRequest, match="process 1"):
        pages.expect({1: (addresses(0), np.zeros(1, dtype=np.uint64))})


def test_pages_of_zeros_come_as_zeros_and_are_compared() -> None:
    source = task_of(2)
    source.processes[1].store_words(addresses(1), np.zeros(1, dtype=np.uint64))
    lazy = Lazy.of(source)
    lazy.bring(np.array([0, 1]))
    assert lazy.missing.left == 0
    assert digest_task(lazy.task).memory_digest == digest_task(source).memory_digest


def test_what_is_shown_for_comparison_is_read_from_where_the_page_is_now() -> None:
    lazy = Lazy.of(task_of(3))
    lazy.mm.mremap(page(0), PAGE, PAGE, 3, page(20))
    lazy.mm.munmap(page(1), PAGE)
    lazy.bring(np.array([0, 2]))
    shown = lazy.missing.read_back(1, np.array([0, 2]), lazy.task.processes)
    assert shown.run_start == [page(2), page(0)]
    content = lazy.source.machine.content
    rows = lazy.source.processes[1].frames(page(0), 3)[[2, 0]]
    assert shown.pages == content[rows].tobytes()
    lazy.server.compare(shown)
    assert (lazy.server.compared, lazy.server.different) == (2, [])


@pytest.mark.parametrize(
    ("start", "end", "left"),
    [(0, 8, []), (2, 3, [(0, 2), (3, 5)]), (0, 1, [(1, 7)]), (7, 9, [(0, 7)]), (9, 9, [(0, 8)])],
)
def test_taking_a_range_out_of_a_run(start: int, end: int, left: list[tuple[int, int]]) -> None:
    runs = Runs(addresses(0), np.array([8], dtype=np.uint64), np.array([100]))
    taken = runs.take(page(start), page(end), PAGE)
    assert list(zip(runs.start.tolist(), runs.pages.tolist(), strict=True)) == [
        (page(at), count) for at, count in left
    ]
    whole = sorted([*runs.indices().tolist(), *taken.indices().tolist()])
    assert whole == list(range(100, 108))


def test_a_digest_says_nothing_about_a_page_that_is_nowhere() -> None:
    """The check is of this host's memory, not of the message."""
    lazy = Lazy.of(task_of(1))
    lazy.bring(np.array([0]))
    machine = lazy.task.machine
    row = lazy.task.processes[1].frames(page(0), 1)
    assert page_digests(machine.content, row)[0] == lazy.missing.digests[0]
