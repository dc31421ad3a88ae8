"""What is remembered of pages sent: the last version, as long as nobody else needs the place."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from livemigration.encoding.remembered import RememberedPages, owner_of

PAGE = 4096
Bytes = NDArray[np.uint8]


def u64(*numbers: int) -> NDArray[np.uint64]:
    """Addresses of pages by number."""
    return np.array(numbers, np.uint64) * np.uint64(PAGE)


def pages(*marks: int) -> Bytes:
    """One page for each mark, full of it."""
    return np.repeat(np.array(marks, np.uint8), PAGE)


def marks(remembered: RememberedPages, owner: int, *numbers: int) -> list[int | None]:
    """What is remembered of pages; None for nothing."""
    slots = remembered.find(owner, u64(*numbers)).tolist()
    return [None if s < 0 else int(remembered.pages[s, 0]) & 0xFF for s in slots]


def test_the_version_sent_last_is_found_by_process_and_address() -> None:
    remembered = RememberedPages(16, PAGE)
    assert marks(remembered, 1, 3) == [None]
    assert remembered.remember(1, u64(3, 4), pages(30, 40), 0) == 2
    remembered.remember(1, u64(3), pages(31), 0)
    assert marks(remembered, 1, 3, 4, 5) == [31, 40, None]
    assert marks(remembered, 2, 3) == [None]


def test_a_file_and_a_process_of_the_same_number_are_two_owners() -> None:
    assert owner_of(7, 0) != owner_of(0, 7)


def test_memory_that_fits_is_remembered_whole_wherever_it_lies() -> None:
    for start in (0, 5, 0x10_0000):
        remembered = RememberedPages(64, PAGE)
        numbers = range(start, start + 64)
        assert remembered.remember(1, u64(*numbers), pages(*range(64)), 0) == 64
        assert marks(remembered, 1, *numbers) == list(range(64))


def test_a_page_keeps_its_place_for_this_round_and_the_next() -> None:
    remembered = RememberedPages(1, PAGE)
    remembered.remember(1, u64(1), pages(1), 4)
    assert remembered.remember(1, u64(2), pages(2), 4) == 0
    assert remembered.remember(1, u64(2), pages(2), 5) == 0
    assert marks(remembered, 1, 1, 2) == [1, None]
    assert remembered.remember(1, u64(2), pages(2), 6) == 1
    assert marks(remembered, 1, 1, 2) == [None, 2]


def test_a_page_that_is_sent_again_keeps_its_place_for_longer() -> None:
    remembered = RememberedPages(1, PAGE)
    remembered.remember(1, u64(1), pages(1), 0)
    remembered.remember(1, u64(1), pages(2), 1)
    assert remembered.remember(1, u64(2), pages(9), 2) == 0
    assert marks(remembered, 1, 1) == [2]


@given(
    st.integers(1, 9),
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.lists(st.integers(0, 30), max_size=6, unique=True),
            st.integers(0, 1),
        ),
        max_size=12,
    ),
)
def test_what_is_found_is_always_the_version_sent_last(
    slots: int, frames: list[tuple[int, list[int], int]]
) -> None:
    """Whatever is driven out: a wrong base is never offered."""
    remembered = RememberedPages(slots, PAGE)
    last: dict[tuple[int, int], int] = {}
    round_number = 0
    for mark, (owner, numbers, more) in enumerate(frames, start=1):
        round_number += more
        numbers.sort()
        remembered.remember(owner, u64(*numbers), pages(*[mark] * len(numbers)), round_number)
        last |= {(owner, number): mark for number in numbers}
        for (who, number), sent in last.items():
            assert marks(remembered, who, number)[0] in (None, sent)
    assert sum(marks(remembered, who, n) != [None] for who, n in last) <= slots
