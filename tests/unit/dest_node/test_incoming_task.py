"""A task on its way in: frames are applied once and in order, or refused; whatever the source does
to its address space between two rounds, the destination ends up equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dest_node.incoming import IncomingTask, Request
from livemigration.errors import DamagedFrame, NoSpace, WrongState
from livemigration.ownership import Ownership
from livemigration.snapshot import digest_task
from livemigration.v1 import common_pb2
from livemigration.verification import Comparison, chunks
from mm_model import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    MmError,
)
from source_node.tracker import Tracker
from tests.unit.dest_node.sender import BASE, PAGE, RW, Sender, checksum, page, sealed, u64

Frame = common_pb2.TransferFrame
WRITTEN = (0, 1, 2, 3, 5, 6)


def receiver(sender: Sender) -> IncomingTask:
    return IncomingTask.prepare(Request("m", sender.struct, "", "virtual"), None)


@pytest.fixture
def sender() -> Iterator[Sender]:
    """A source with eight pages, six of them written."""
    sender = Sender()
    sender.map(0, 8)
    sender.write(*WRITTEN)
    yield sender
    sender.task.release()


@pytest.fixture
def incoming(sender: Sender) -> Iterator[IncomingTask]:
    incoming = receiver(sender)
    yield incoming
    incoming.give_up()


def apply(incoming: IncomingTask, frames: list[bytes]) -> int:
    return [incoming.apply(frame) for frame in frames][-1]


def equal(sender: Sender, incoming: IncomingTask) -> bool:
    return incoming.digest().memory_digest == sender.memory_digest()


def refusal(incoming: IncomingTask, frame: Frame) -> str:
    """The line in which a frame is refused, which does not count as applied."""
    before = incoming.sequence
    with pytest.raises(DamagedFrame) as refused:
        incoming.apply(sealed(frame))
    assert incoming.sequence == before
    line = str(refused.value)
    assert line
    assert "\n" not in line
    return line


# -- once and in order


def test_a_round_makes_the_destination_equal(sender: Sender, incoming: IncomingTask) -> None:
    assert apply(incoming, sender.round(final=True)) == 3
    assert equal(sender, incoming)
    assert incoming.complete
    assert incoming.task.processes[1].peek(page(5), 8) == (1).to_bytes(8, "little")


def test_a_frame_that_comes_again_is_applied_once(sender: Sender, incoming: IncomingTask) -> None:
    first = sender.round()
    apply(incoming, first)
    sender.write(1, value=7)
    apply(incoming, sender.round({1: u64(page(1))}, final=True))
    # Otherwise the page's old content would come back with the frame.
    assert [incoming.apply(frame) for frame in first] == [6, 6, 6]
    assert equal(sender, incoming)


def test_a_stream_that_begins_anew_in_the_middle_of_a_round_goes_on(
    sender: Sender, incoming: IncomingTask
) -> None:
    frames = sender.round(final=True)
    apply(incoming, frames[:2])
    apply(incoming, frames)  # a count of pages that took the second one twice would not fit
    assert equal(sender, incoming)
    assert incoming.complete


@pytest.mark.parametrize("missing", [0, 1])
def test_a_gap_in_the_numbers_is_refused_and_can_be_filled(
    sender: Sender, incoming: IncomingTask, missing: int
) -> None:
    frames = sender.round(final=True)
    for frame in frames[:missing]:
        incoming.apply(frame)
    assert refusal(incoming, Frame.FromString(frames[missing + 1])) == (
        f"frame {missing + 2} came after frame {missing}; some are missing"
    )
    apply(incoming, frames[missing:])
    assert equal(sender, incoming)


def test_frames_of_a_migration_that_is_over_are_refused(
    sender: Sender, incoming: IncomingTask
) -> None:
    frames = sender.round()
    apply(incoming, frames[:2])
    incoming.give_up()
    with pytest.raises(WrongState, match="aborted here and cannot get more pages"):
        incoming.apply(frames[2])


# -- damage


def _spoil_page(frame: Frame) -> None:
    frame.pages = frame.pages[:100] + bytes([frame.pages[100] ^ 1]) + frame.pages[101:]


def _swap_runs(frame: Frame) -> None:
    frame.run_start[:] = reversed(frame.run_start)
    frame.run_pages[:] = reversed(frame.run_pages)


def _shift(frame: Frame) -> None:
    frame.run_start[0] += PAGE


def _no_checksum(frame: Frame) -> None:
    frame.checksum = 0


@pytest.mark.parametrize("damage", [_spoil_page, _swap_runs, _shift, _no_checksum])
def test_pages_whose_checksum_is_wrong_are_refused_and_none_is_applied(
    sender: Sender, incoming: IncomingTask, damage: Callable[[Frame], None]
) -> None:
    begin, good, end = sender.round(final=True)
    incoming.apply(begin)
    empty = digest_task(incoming.task).pages
    bad = Frame.FromString(good)
    damage(bad)
    assert refusal(incoming, bad).startswith("frame 2: checksum ")
    assert digest_task(incoming.task).pages == empty == 0
    apply(incoming, [good, end])
    assert equal(sender, incoming)


def _short_page(frame: Frame) -> None:
    frame.pages = frame.pages[:-1]


def _more_runs(frame: Frame) -> None:
    frame.run_start.append(page(9))


def _more_pages(frame: Frame) -> None:
    frame.run_pages[0] += 1


def _odd_address(frame: Frame) -> None:
    frame.run_start[0] += 8


def _odd_zero(frame: Frame) -> None:
    frame.zero_start.append(page(7) + 8)
    frame.zero_pages.append(1)


def _more_zeros(frame: Frame) -> None:
    frame.zero_start.append(page(7))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_short_page, "page bytes for 6 pages"),
        (_more_runs, "columns of different lengths"),
        (_more_pages, "page bytes for 7 pages"),
        (_odd_address, "not a multiple of 4096"),
        (_odd_zero, "not a multiple of 4096"),
        (_more_zeros, "columns of different lengths"),
    ],
)
def test_pages_that_do_not_fit_their_addresses_are_refused_whatever_the_checksum(
    sender: Sender, incoming: IncomingTask, damage: Callable[[Frame], None], says: str
) -> None:
    begin, good, _ = sender.round()
    incoming.apply(begin)
    bad = Frame.FromString(good)
    damage(bad)
    bad.checksum = checksum(bad)
    assert says in refusal(incoming, bad)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"\x08", "ends in the middle of a number"),
        (b"\x08" + b"\xff" * 11, "more than 64 bits"),
        (b"\x7a\x05ab", "cut short"),
        (b"\x0b", "wire type 3"),
        (b"\x22\x02\xff\xff", "does not parse"),
    ],
)
def test_bytes_that_are_no_frame_are_refused(
    incoming: IncomingTask, message: bytes, says: str
) -> None:
    with pytest.raises(DamagedFrame, match=says):
        incoming.apply(message)
    assert incoming.sequence == 0


@pytest.mark.parametrize("place", ["run", "zero"])
@pytest.mark.parametrize("address", [page(8), BASE - PAGE, 0, 1 << 60])
def test_pages_outside_of_the_areas_are_refused(
    sender: Sender, incoming: IncomingTask, place: str, address: int
) -> None:
    incoming.apply(sealed(sender.begin()))
    if place == "run":
        frame = sender.frame(pid=1, run_start=[address], run_pages=[1], pages=bytes(PAGE))
    else:
        frame = sender.frame(pid=1, zero_start=[address], zero_pages=[1])
    frame.checksum = checksum(frame)
    assert refusal(incoming, frame).startswith("frame 2 does not fit the address space: ")


def test_pages_of_a_process_that_is_not_there_are_refused(
    sender: Sender, incoming: IncomingTask
) -> None:
    incoming.apply(sealed(sender.begin()))
    frame = sender.pages(u64(page(0)))
    frame.pid = 7
    assert refusal(incoming, frame) == "frame 2 is for process 7, unknown here"


def test_pages_outside_of_a_round_are_refused(sender: Sender, incoming: IncomingTask) -> None:
    apply(incoming, sender.round())
    assert refusal(incoming, sender.pages()) == "frame 4 brings pages outside of a round"


@pytest.mark.parametrize("claimed", [5, 7, 0])
def test_a_round_with_another_number_of_pages_than_it_says_is_refused(
    sender: Sender, incoming: IncomingTask, claimed: int
) -> None:
    apply(incoming, [sealed(sender.begin()), sender.pages().SerializeToString()])
    wanted = f"round 0: 6 pages arrived, {claimed} were sent"
    assert refusal(incoming, sender.end(claimed)) == wanted


def test_a_round_without_the_first_process_is_refused(
    sender: Sender, incoming: IncomingTask
) -> None:
    begin = sender.begin()
    begin.begin.processes[0].pid = 2
    assert refusal(incoming, begin) == "a round without the task's first process"


def test_an_area_of_an_unknown_shared_object_is_refused(
    sender: Sender, incoming: IncomingTask
) -> None:
    begin = sender.begin()
    begin.begin.processes[0].vmas[0].shared_id = 3
    begin.begin.processes[0].vmas[0].flags = MAP_SHARED | MAP_ANONYMOUS
    assert refusal(incoming, begin) == f"VMA {BASE:#x} is of shared object 3, unknown"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("start", BASE + 8, "is empty, odd or out of order"),
        ("end", BASE, "is empty, odd or out of order"),
        ("end", BASE - PAGE, "is empty, odd or out of order"),
        ("end", 1 << 60, "does not fit the address space"),
    ],
)
def test_an_impossible_area_is_refused(
    sender: Sender, incoming: IncomingTask, field: str, value: int, says: str
) -> None:
    begin = sender.begin()
    setattr(begin.begin.processes[0].vmas[0], field, value)
    assert says in refusal(incoming, begin)
    assert incoming.task.processes[1].vmas() == []


def test_areas_that_overlap_are_refused(sender: Sender, incoming: IncomingTask) -> None:
    begin = sender.begin()
    vma = begin.begin.processes[0].vmas.add()
    vma.CopyFrom(begin.begin.processes[0].vmas[0])
    vma.start += PAGE
    assert refusal(incoming, begin).endswith("is empty, odd or out of order")


# -- the address space moves on between two rounds

Change = Callable[[Sender], Any]


def _fork_and_write(sender: Sender) -> None:
    child = sender.task.fork(1)
    sender.task.processes[child].store_words(u64(page(2), page(4)), u64(8, 9))
    sender.write(2, value=10)


CHANGES: dict[str, Change] = {
    "unmapped whole": lambda s: s.mm.munmap(BASE, 8 * PAGE),
    "unmapped in the middle": lambda s: s.mm.munmap(page(2), 2 * PAGE),
    "unmapped and mapped again": lambda s: (s.mm.munmap(page(1), 2 * PAGE), s.map(1, 2)),
    "mapped over": lambda s: s.map(1, 3),
    "given back": lambda s: s.mm.madvise(page(1), 2 * PAGE, MADV_DONTNEED),
    "grown": lambda s: s.mm.mremap(BASE, 8 * PAGE, 12 * PAGE, MREMAP_MAYMOVE),
    "shrunk": lambda s: s.mm.mremap(BASE, 8 * PAGE, 3 * PAGE),
    "moved": lambda s: s.mm.mremap(
        page(0), 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, page(40)
    ),
    "moved onto its neighbour": lambda s: s.mm.mremap(
        page(0), 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, page(5)
    ),
    "protected": lambda s: s.mm.mprotect(page(2), 3 * PAGE, PROT_READ),
    "out of reach": lambda s: s.mm.mprotect(page(2), 3 * PAGE, PROT_NONE),
    "another mapping": lambda s: (s.map(20, 4), s.write(21, 22)),
    "a heap": lambda s: (s.mm.set_brk_base(page(50)), s.mm.brk(page(53)), s.write(51)),
    "shared instead of private": lambda s: (
        s.mm.munmap(page(1), 4 * PAGE),
        s.mm.mmap(
            page(1),
            4 * PAGE,
            RW,
            MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
            shared_id=s.task.machine.create_shared(4),
        ),
        s.write(2, 4, value=9),
    ),
    "a child": _fork_and_write,
    "zeros written over": lambda s: s.write(1, 2, value=0),
    "nothing": lambda s: None,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_address_space_between_two_rounds_is_followed(
    sender: Sender, incoming: IncomingTask, change: Change
) -> None:
    apply(incoming, sender.round())
    change(sender)
    apply(incoming, sender.round(final=True))
    assert equal(sender, incoming)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_and_so_is_its_undoing(sender: Sender, incoming: IncomingTask, change: Change) -> None:
    """From a source after the change to one that never changed."""
    other = Sender()
    other.map(0, 8)
    other.write(*WRITTEN)
    change(other)
    apply(incoming, other.round())
    sender.sequence, sender.number = other.sequence, other.number
    apply(incoming, sender.round(final=True))
    assert equal(sender, incoming)
    other.task.release()


def test_memory_given_back_does_not_live_on_though_no_page_is_sent(
    sender: Sender, incoming: IncomingTask
) -> None:
    apply(incoming, sender.round())
    sender.mm.madvise(BASE, 8 * PAGE, MADV_DONTNEED)
    apply(incoming, sender.round(final=True))
    assert equal(sender, incoming)
    assert digest_task(incoming.task).pages == 0


def test_a_child_that_ended_is_ended_here(sender: Sender, incoming: IncomingTask) -> None:
    child = sender.task.fork(1)
    sender.task.processes[child].store_words(u64(page(4)), u64(9))
    apply(incoming, sender.round())
    assert sorted(incoming.task.processes) == [1, child]
    sender.task.exit(child)
    apply(incoming, sender.round(final=True))
    assert sorted(incoming.task.processes) == [1]
    assert equal(sender, incoming)


_STEP = st.tuples(
    st.sampled_from(["write", "zero", "map", "unmap", "move", "protect", "forget", "out", "round"]),
    st.integers(0, 15),
    st.integers(1, 6),
    st.integers(0, 15),
)


def _step(sender: Sender, action: str, first: int, pages: int, other: int) -> None:
    """One thing that a program does; what the kernel refuses has no effect."""
    mm, length = sender.mm, pages * PAGE
    match action:
        case "write":
            sender.write(*range(first, first + pages), value=first * 100 + pages)
        case "zero":
            sender.write(first, value=0)
        case "map":
            sender.map(first, pages)
        case "unmap":
            mm.munmap(page(first), length)
        case "move":
            flags = MREMAP_MAYMOVE | MREMAP_FIXED
            mm.mremap(page(first), length, length, flags, page(20 + other))
        case "protect":
            mm.mprotect(page(first), length, PROT_READ if other % 2 else RW)
        case "forget":
            mm.madvise(page(first), length, MADV_DONTNEED)
        case "out":
            mm.madvise(page(first), length, 21)  # MADV_PAGEOUT


@settings(max_examples=60)
@given(steps=st.lists(_STEP, max_size=25))
def test_rounds_of_soft_dirty_pages_end_equal_whatever_the_program_does(
    steps: list[tuple[str, int, int, int]],
) -> None:
    sender, tracker = Sender(), Tracker()
    incoming = receiver(sender)
    sender.map(0, 12)

    def send(*, final: bool = False) -> None:
        scan = tracker.scan(sender.task, first=sender.number < 0)
        for mm in sender.task.processes.values():
            mm.clear_refs(4)
        apply(incoming, sender.round({p.space.pid: p.send for p in scan.processes}, final=final))

    for action, first, pages, other in steps:
        if action == "round":
            send()
            continue
        try:
            _step(sender, action, first, pages, other)
        except MmError:
            continue
    send(final=True)
    assert equal(sender, incoming)
    incoming.give_up()
    sender.task.release()


@pytest.mark.parametrize("kind", [MAP_PRIVATE, MAP_SHARED])
def test_huge_pages_arrive_in_the_final_round(sender: Sender, kind: int) -> None:
    """They are mapped from the first round on, and filled when the task is frozen."""
    tracker, incoming = Tracker(), receiver(sender)
    start, size = 0x30_0000_0000, 64 << 10
    flags = kind | MAP_ANONYMOUS | MAP_FIXED | MAP_HUGETLB | 16 << MAP_HUGE_SHIFT
    sender.mm.mmap(start, 2 * size, RW, flags)
    for value in (7, 8):
        sender.mm.store_words(u64(start + 8 * value), u64(value))
        final = value == 8
        scan = tracker.scan(sender.task, first=value == 7, final=final)
        sender.mm.clear_refs(4)
        sent = {process.space.pid: process.send for process in scan.processes}
        assert bool((sent[1] >= start).any()) == final
        apply(incoming, sender.round(sent, final=final))
    assert equal(sender, incoming)
    here = incoming.task.processes[1]
    assert [vma.flags & flags for vma in here.vmas()][-1] == flags & ~MAP_FIXED
    assert here.hugetlb_pages == size // PAGE
    assert here.load(start + 64, 1) == b"\x08"


# -- proof and hand-over


def test_a_different_page_is_found_by_its_address(sender: Sender, incoming: IncomingTask) -> None:
    frames = sender.round(final=True)
    apply(incoming, frames)
    sender.write(2, 5, value=77)
    comparison = Comparison(PAGE)
    for chunk in chunks("m", digest_task(sender.task), PAGE):
        comparison.add(chunk)
    reply = comparison.compare(incoming.digest())
    assert not reply.equal
    assert [(m.pid, m.start, m.pages) for m in reply.mismatches] == [
        (1, page(2), 1),
        (1, page(5), 1),
    ]


def test_the_memory_that_is_read_back_is_the_sources(
    sender: Sender, incoming: IncomingTask
) -> None:
    apply(incoming, sender.round(final=True))
    back: dict[int, bytes] = {}
    for chunk in incoming.memory():
        at = 0
        for start, pages in zip(chunk.run_start, chunk.run_pages, strict=True):
            for number in range(pages):
                back[start + number * PAGE] = chunk.pages[at : at + PAGE]
                at += PAGE
        assert at == len(chunk.pages)
    assert back == {page(n): sender.mm.peek(page(n), PAGE) for n in WRITTEN}


def test_only_a_complete_and_equal_task_can_be_taken_over(
    sender: Sender, incoming: IncomingTask
) -> None:
    digest = "0" * 16
    with pytest.raises(WrongState, match="receiving here and cannot be taken over"):
        incoming.take_over(digest)
    apply(incoming, sender.round())
    incoming.verified(equal=True)
    assert incoming.ownership.state is Ownership.RECEIVING, "the final round is missing"
    apply(incoming, sender.round({}, final=True))
    incoming.verified(equal=False)
    assert incoming.ownership.state is Ownership.RECEIVING


def test_the_workload_goes_on_from_the_state_that_came_with_the_final_round() -> None:
    sender = Sender()
    workload = sender.workload()
    workload.run_until(sender.task, 10_000_000)
    incoming = receiver(sender)
    apply(incoming, sender.round(final=True, workload=workload))
    digest = incoming.digest().memory_digest
    incoming.verified(equal=True)
    with pytest.raises(WrongState, match="verify again"):
        incoming.take_over("another digest")
    incoming.take_over(digest)
    incoming.take_over(digest)  # asked again
    assert incoming.ownership.state is Ownership.COMMITTED
    assert incoming.execution is not None
    assert incoming.execution.workload.ops_done == workload.ops_done > 0
    assert not incoming.execution.running
    # The same next operations on both hosts give the same memory.
    workload.run_until(sender.task, 20_000_000)
    incoming.execution.workload.run_until(incoming.task, 20_000_000)
    assert digest_task(incoming.task).memory_digest == sender.memory_digest() != digest
    incoming.give_up()
    assert incoming.ownership.state is Ownership.COMMITTED, "a task taken over is never dropped"


def test_more_pages_than_this_host_has_room_for_are_refused(sender: Sender) -> None:
    """More pages than the memory that was asked for can hold, with all its slack."""
    incoming = receiver(sender)
    frames = incoming.task.machine.free_frames
    sender.mm.mmap(1 << 40, (frames + 1) * PAGE, RW, MAP_ANONYMOUS | MAP_FIXED | 2)
    incoming.apply(sealed(sender.begin()))
    addresses = np.uint64(1 << 40) + np.arange(frames + 1, dtype=np.uint64) * np.uint64(PAGE)
    whole = sender.frame(
        pid=1, run_start=[1 << 40], run_pages=[addresses.size], pages=b"\1" * addresses.size * PAGE
    )
    whole.checksum = checksum(whole)
    with pytest.raises(NoSpace, match="more pages than there is memory for"):
        incoming.apply(sealed(whole))
    assert incoming.sequence == 1
    incoming.give_up()


# -- files of the task


def file_begin(sender: Sender, *live: int, pages: int = 8) -> Frame:
    """A round's begin that tells of a file on a disk, mapped shared and private."""
    frame = sender.begin()
    frame.begin.shared.add(
        id=7,
        pages=pages,
        kind=common_pb2.OBJECT_KIND_DISK,
        live_start=list(live),
        live_pages=[1] * len(live),
    )
    for start, flags in ((page(100), MAP_SHARED), (page(200), MAP_PRIVATE)):
        frame.begin.processes[0].vmas.add(
            start=start, end=start + 8 * PAGE, prot=RW, flags=flags, shared_id=7
        )
    return frame


def file_pages(sender: Sender, *numbers: int, object_id: int = 7) -> Frame:
    """Pages of the file, each filled with its own number."""
    frame = sender.frame(
        object=object_id,
        run_start=[number * PAGE for number in numbers],
        run_pages=[1] * len(numbers),
        pages=b"".join(bytes([number]) * PAGE for number in numbers),
    )
    frame.checksum = checksum(frame)
    return frame


def test_a_files_pages_show_in_all_its_mappings(sender: Sender, incoming: IncomingTask) -> None:
    for frame in (file_begin(sender, 2, 5), file_pages(sender, 2, 5), sender.end(2)):
        incoming.apply(sealed(frame))
    mm = incoming.task.processes[1]
    for first in (100, 200):
        assert mm.peek(page(first + 5), PAGE) == bytes([5]) * PAGE
        assert mm.peek(page(first + 4), PAGE) == bytes(PAGE)
    (file,) = incoming.task.files
    assert (file.pages, file.on_disk) == (8, True)
    for frame in (file_begin(sender, 2), sender.end(0)):
        incoming.apply(sealed(frame))
    assert mm.peek(page(205), PAGE) == bytes(PAGE)  # a hole at the source by now
    assert mm.peek(page(102), PAGE) == bytes([2]) * PAGE
    assert len(incoming.task.files) == 1


def test_frames_of_files_that_do_not_fit_are_refused(
    sender: Sender, incoming: IncomingTask
) -> None:
    odd = file_begin(sender, 1)
    del odd.begin.shared[0].live_pages[:]
    assert "columns of different lengths" in refusal(incoming, odd)
    sender.sequence -= 1
    incoming.apply(sealed(file_begin(sender, 1)))
    assert "is for object 9, unknown here" in refusal(incoming, file_pages(sender, 1, object_id=9))
    sender.sequence -= 1
    assert "has no page 8" in refusal(incoming, file_pages(sender, 8))


# -- shared anonymous memory


def shared_begin(sender: Sender, *live: int, told: bool = True) -> Frame:
    """A round's begin with eight pages of shared memory, mapped twice."""
    frame = sender.begin()
    frame.begin.shared.add(
        id=9, pages=8, live_start=list(live), live_pages=[1] * len(live), live_told=told
    )
    for start in (page(100), page(200)):
        frame.begin.processes[0].vmas.add(
            start=start,
            end=start + 8 * PAGE,
            prot=RW,
            flags=MAP_SHARED | MAP_ANONYMOUS,
            shared_id=9,
        )
    return frame


@pytest.mark.parametrize("told", [True, False])
def test_shared_memory_that_was_given_back_is_a_hole_if_the_source_says_so(
    sender: Sender, incoming: IncomingTask, told: bool
) -> None:
    incoming.apply(sealed(shared_begin(sender, 2, 5)))
    pages = sender.frame(
        pid=1, run_start=[page(102), page(105)], run_pages=[1, 1], pages=b"\1" * (2 * PAGE)
    )
    pages.checksum = checksum(pages)
    for frame in (pages, sender.end(2)):
        incoming.apply(sealed(frame))
    mm = incoming.task.processes[1]
    assert mm.peek(page(202), 1) == mm.peek(page(205), 1) == b"\1"
    incoming.apply(sealed(shared_begin(sender, *([5] if told else []), told=told)))
    assert mm.peek(page(202), 1) == mm.peek(page(102), 1) == (b"\0" if told else b"\1")
    assert mm.peek(page(205), 1) == b"\1"


def test_shared_memory_with_more_live_pages_than_it_has_is_refused(
    sender: Sender, incoming: IncomingTask
) -> None:
    incoming.apply(sealed(shared_begin(sender, 1)))
    odd = shared_begin(sender, 1)
    odd.begin.shared[0].live_pages[0] = 2**63
    assert "object 9 of 8 pages has more live ones" in refusal(incoming, odd)
