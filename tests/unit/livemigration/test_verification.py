"""Two hosts compare memories by digests that each made itself: every differing page is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from livemigration import verification
from livemigration.errors import BadRequest
from livemigration.snapshot import ProcessDigests, TaskDigests
from livemigration.v1 import common_pb2, destination_node_pb2
from livemigration.verification import Comparison, addresses_of, chunks, differing_pages, ranges

PAGE = 4096
BASE = 0x10_0000_0000
U64 = NDArray[np.uint64]
Memory = dict[int, dict[int, int]]
"""Process -> page number -> digest."""


def address(number: int) -> int:
    return BASE + number * PAGE


def digests(memory: Memory, whole: str = "same") -> TaskDigests:
    processes = []
    for pid, pages in sorted(memory.items()):
        numbers = sorted(pages)
        processes.append(
            ProcessDigests(
                pid,
                np.array([address(n) for n in numbers], dtype=np.uint64),
                np.array([pages[n] for n in numbers], dtype=np.uint64),
            )
        )
    return TaskDigests(tuple(processes), whole)


def compare(here: TaskDigests, there: TaskDigests) -> destination_node_pb2.VerifyReply:
    """What a destination with `there` answers a source with `here`, over the wire."""
    comparison = Comparison(PAGE)
    for chunk in chunks("m", here, PAGE):
        assert chunk.migration_id == "m"
        received = destination_node_pb2.VerifyChunk.FromString(chunk.SerializeToString())
        comparison.add(received)
    return comparison.compare(there)


def places(reply: destination_node_pb2.VerifyReply) -> list[tuple[int, int, int]]:
    return [(m.pid, (m.start - BASE) // PAGE, m.pages) for m in reply.mismatches]


def test_equal_memories_are_equal() -> None:
    memory = {1: {0: 5, 1: 6, 9: 7}, 4: {2: 8}}
    reply = compare(digests(memory), digests(memory))
    assert reply.equal
    assert (reply.pages_compared, reply.pages_different) == (4, 0)
    assert reply.memory_digest == "same"


@pytest.mark.parametrize(
    ("there", "wrong"),
    [
        ({1: {0: 5, 1: 0, 2: 7}}, [(1, 1, 1)]),
        ({1: {0: 5, 2: 7}}, [(1, 1, 1)]),
        ({1: {0: 5, 1: 6, 2: 7, 3: 1, 4: 1}}, [(1, 3, 2)]),
        ({1: {10: 5, 11: 6, 12: 7}}, [(1, 0, 3), (1, 10, 3)]),
        ({1: {}}, [(1, 0, 3)]),
        ({}, [(1, 0, 3)]),
        ({1: {0: 5, 1: 6, 2: 7}, 2: {5: 1}}, [(2, 5, 1)]),
        ({2: {0: 5, 1: 6, 2: 7}}, [(1, 0, 3), (2, 0, 3)]),
        ({1: {0: 7, 1: 6, 2: 5}}, [(1, 0, 1), (1, 2, 1)]),
    ],
)
def test_every_page_that_differs_or_is_on_one_side_only_is_named(
    there: Memory, wrong: list[tuple[int, int, int]]
) -> None:
    reply = compare(digests({1: {0: 5, 1: 6, 2: 7}}), digests(there))
    assert not reply.equal
    assert places(reply) == wrong
    assert reply.pages_different == sum(pages for _, _, pages in wrong)
    assert {m.last_round for m in reply.mismatches} == {-1}, "only the source knows the round"


def test_a_page_with_digest_zero_is_still_a_page() -> None:
    reply = compare(digests({1: {0: 0}}), digests({1: {}}))
    assert places(reply) == [(1, 0, 1)]


def test_equal_pages_in_different_address_spaces_are_not_equal() -> None:
    """The digest of the whole has the areas in it."""
    memory = {1: {0: 5}}
    reply = compare(digests(memory, "one"), digests(memory, "other"))
    assert not reply.equal
    assert reply.pages_different == 0
    assert reply.memory_digest == "other"


def test_a_source_that_never_said_the_digest_of_the_whole_is_not_equal() -> None:
    comparison = Comparison(PAGE)
    for chunk in list(chunks("m", digests({1: {0: 5}}), PAGE))[:-1]:
        comparison.add(chunk)
    assert not comparison.compare(digests({1: {0: 5}})).equal


def test_a_task_without_pages_is_compared_as_well() -> None:
    assert compare(digests({1: {}}), digests({1: {}})).equal
    assert not compare(digests({1: {}}), digests({1: {3: 1}})).equal


def test_many_pages_go_in_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "CHUNK_PAGES", 3)
    memory = {1: {n: n for n in range(0, 20, 2)}, 2: {n: n for n in range(6)}}
    assert len(list(chunks("m", digests(memory), PAGE))) == 4 + 2 + 1
    reply = compare(digests(memory), digests(memory))
    assert reply.equal
    assert reply.pages_compared == 16


@pytest.mark.parametrize(
    "fields",
    [
        {"run_start": [BASE], "run_pages": [2], "digests": bytes(8)},
        {"run_start": [BASE], "run_pages": [1], "digests": bytes(9)},
        {"run_start": [BASE, BASE], "run_pages": [1], "digests": bytes(8)},
        {"run_start": [], "run_pages": [], "digests": bytes(8)},
    ],
)
def test_columns_that_do_not_fit_together_are_refused(fields: dict[str, object]) -> None:
    chunk = destination_node_pb2.VerifyChunk(pid=1, **fields)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match=r"^verification: \d+ digest bytes for \d+ pages$"):
        Comparison(PAGE).add(chunk)


_PAGES = st.dictionaries(st.integers(0, 30), st.integers(0, 3), max_size=20)


@given(here=_PAGES, there=_PAGES)
def test_the_pages_found_are_those_that_a_plain_comparison_finds(
    here: dict[int, int], there: dict[int, int]
) -> None:
    (mine,), (theirs,) = digests({1: here}).processes, digests({1: there}).processes
    wrong, compared = differing_pages(mine, theirs)
    plain = sorted(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
    assert wrong.tolist() == [address(n) for n in plain]
    assert compared == len(here.keys() | there.keys())


@given(numbers=st.sets(st.integers(0, 50), max_size=30))
def test_addresses_survive_as_ranges(numbers: set[int]) -> None:
    mine = np.array([address(n) for n in sorted(numbers)], dtype=np.uint64)
    listed = [*ranges(1, mine, PAGE), common_pb2.Mismatch(pid=2, start=BASE, pages=3)]
    assert addresses_of(listed, 1, PAGE).tolist() == mine.tolist()
    assert addresses_of(listed, 3, PAGE).tolist() == []
