"""What a post-copy leaves behind, and how it answers for it."""

from __future__ import annotations

import numpy as np
import pytest

from livemigration import batch
from livemigration.errors import BadRequest
from livemigration.execution import Execution
from livemigration.task import ROOT_PID, Task
from livemigration.v1 import destination_node_pb2
from mm_model import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    Machine,
    ModelConfig,
)
from source_node.page_server import PageServer, split_scan
from source_node.tracker import Tracker

PAGE = 4096
BASE = 0x10_0000_0000
FAR = 0x40_0000_0000
RW = 3
ANON = MAP_ANONYMOUS | MAP_FIXED


def page(number: int, base: int = BASE) -> int:
    return base + number * PAGE


@pytest.fixture
def task() -> Task:
    """Private pages 0 to 3, four far away, and pages of kinds that cannot come later."""
    task = Task(Machine(ModelConfig(frames=4096)))
    mm = task.processes[ROOT_PID]
    for base in (BASE, FAR):
        mm.mmap(base, 4 * PAGE, RW, MAP_PRIVATE | ANON)
        write(task, *(page(n, base) for n in range(4)))
    return task


def write(task: Task, *where: int, value: int = 0) -> None:
    addresses = np.array(where, dtype=np.uint64)
    values = addresses if value == 0 else np.full(addresses.size, value, dtype=np.uint64)
    task.processes[ROOT_PID].store_words(addresses, values)


def left_behind(task: Task) -> dict[int, list[int]]:
    return {pid: a.tolist() for pid, a in split_scan(scanned(task))[1].items()}


def scanned(task: Task):  # type: ignore[no-untyped-def]
    return Tracker().scan(task, first=True, final=True)


def server(task: Task) -> PageServer:
    lazy = split_scan(scanned(task))[1]
    execution = Execution(task, None, wall=False)  # type: ignore[arg-type]
    return PageServer(execution, lazy, 3, lambda *_: None)


def request(*where: int, number: int = 5, pid: int = 1) -> destination_node_pb2.PageRequest:
    return destination_node_pb2.PageRequest(
        id=number, pid=pid, run_start=where, run_pages=[1] * len(where)
    )


def test_private_anonymous_pages_are_left_behind(task: Task) -> None:
    assert left_behind(task) == {
        1: [*(page(n) for n in range(4)), *(page(n, FAR) for n in range(4))]
    }


@pytest.mark.parametrize("kind", ["shared", "locked", "hugetlb", "file"])
def test_what_userfaultfd_does_not_bring_is_sent_frozen(task: Task, kind: str) -> None:
    mm, at = task.processes[ROOT_PID], 0x30_0000_0000
    length = 2 * PAGE
    match kind:
        case "shared":
            mm.mmap(at, length, RW, MAP_SHARED | ANON)
        case "locked":
            mm.mmap(at, length, RW, MAP_PRIVATE | ANON)
            mm.mlock(at, length)
        case "hugetlb":
            length = 2 << 20
            mm.mmap(at, length, RW, MAP_PRIVATE | ANON | MAP_HUGETLB | 21 << MAP_HUGE_SHIFT)
        case "file":
            file = task.files[task.create_file(2, on_disk=True)]
            mm.mmap(at, length, RW, MAP_PRIVATE | MAP_FIXED, shared_id=file.object_id)
    write(task, at, at + PAGE)
    before = scanned(task)
    scan, lazy = split_scan(before)
    assert sorted(lazy) == [1]
    assert (lazy[1] < at).sum() + (lazy[1] >= FAR).sum() == lazy[1].size == 8
    assert scan.processes[0].send.min() == at
    assert scan.to_send == before.to_send - 8
    assert sum(pages.size for pages in scan.processes[0].send_by_vma) == scan.processes[0].send.size


def test_an_answer_has_just_the_pages_asked_for_under_the_requests_number(task: Task) -> None:
    frame = batch.decode(server(task).serve(request(page(1), page(2), page(3, FAR), number=9)))
    batch.check(frame, PAGE)
    assert (frame.sequence, frame.round, frame.pid) == (9, 3, 1)
    assert frame.run_start.tolist() == [page(1), page(3, FAR)]
    assert frame.run_pages.tolist() == [2, 1]
    words = frame.pages.view(np.uint64)[:: PAGE // 8]
    assert words.tolist() == [page(1), page(2), page(3, FAR)]


def test_a_page_of_zeros_takes_no_room(task: Task) -> None:
    write(task, page(2), value=1)
    task.processes[ROOT_PID].store_words(
        np.array([page(2)], dtype=np.uint64), np.zeros(1, dtype=np.uint64)
    )
    frame = batch.decode(server(task).serve(request(page(2))))
    assert (frame.pages.size, frame.zero_start.tolist()) == (0, [page(2)])


def test_the_same_request_gets_the_same_answer_again(task: Task) -> None:
    pages = server(task)
    first = pages.serve(request(page(0)))
    assert first == pages.serve(request(page(0)))
    # It went out twice, and is one page for those who look on.
    assert pages.bytes_wire == 2 * len(first)
    assert pages.lazy[1][pages.asked[1]].tolist() == [page(0)]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (request(page(4)), r"page 0x1000004000 of process 1 was not left behind"),
        (request(page(0), pid=2), "process 2 has no pages"),
        (request(), "asks for nothing"),
    ],
)
def test_what_was_not_left_behind_is_not_served(
    task: Task, asked: destination_node_pb2.PageRequest, why: str
) -> None:
    with pytest.raises(BadRequest, match=why):
        server(task).serve(asked)


def test_bytes_that_come_back_different_are_found(task: Task) -> None:
    pages = server(task)
    frame = batch.decode(pages.serve(request(page(0), page(1))))
    wrong = bytearray(frame.pages.tobytes())
    wrong[PAGE + 17] ^= 1
    pages.compare(
        destination_node_pb2.MemoryChunk(
            pid=1, run_start=[page(0)], run_pages=[2], pages=bytes(wrong)
        )
    )
    assert pages.compared == 2
    assert [(m.start, m.pages) for m in pages.different] == [(page(1), 1)]
