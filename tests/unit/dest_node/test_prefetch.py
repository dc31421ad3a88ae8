"""The order in which missing pages are fetched while nobody waits for one."""

import numpy as np
import pytest

from dest_node.prefetch import (
    ASKED,
    DROPPED,
    HERE,
    MISSING,
    AroundFaults,
    Demand,
    Prefetcher,
    Sequential,
    make_prefetcher,
)


def states(text: str) -> np.ndarray:
    """``.`` missing, ``a`` asked for, ``h`` here, ``d`` dropped."""
    codes = {".": MISSING, "a": ASKED, "h": HERE, "d": DROPPED}
    return np.array([codes[letter] for letter in text], dtype=np.uint8)


def borders(*at: int) -> np.ndarray:
    return np.array(at, dtype=np.int64)


def asked(prefetcher: Prefetcher, pages: np.ndarray, most: int) -> list[int]:
    """The next batch, which is asked for from then on."""
    found = prefetcher.next(pages, most)
    pages[found] = ASKED
    return found.tolist()


def test_without_prefetch_nothing_is_fetched_unasked() -> None:
    demand = Demand()
    demand.fault(3)
    assert demand.next(states("......"), 4).size == 0


def test_sequential_goes_up_and_leaves_out_what_need_not_come() -> None:
    pages, order = states(".h..d..."), Sequential(borders(0, 8))
    assert asked(order, pages, 3) == [0, 2, 3]
    assert asked(order, pages, 3) == [5, 6, 7]
    assert asked(order, pages, 3) == []


def test_a_batch_is_of_one_process() -> None:
    pages, order = states("......"), Sequential(borders(0, 2, 6))
    assert asked(order, pages, 4) == [0, 1]
    assert asked(order, pages, 4) == [2, 3, 4, 5]


def test_a_bubble_grows_to_both_sides_of_the_fault() -> None:
    pages, order = states("." * 12), AroundFaults(borders(0, 12), pivots=1)
    pages[6] = ASKED
    order.fault(6)
    assert asked(order, pages, 4) == [4, 5, 7, 8]
    assert asked(order, pages, 4) == [2, 3, 9, 10]


def test_a_side_that_is_at_its_end_leaves_its_share_to_the_other() -> None:
    pages, order = states("." * 8), AroundFaults(borders(0, 8), pivots=1)
    pages[1] = ASKED
    order.fault(1)
    assert asked(order, pages, 4) == [0, 2, 3, 4]
    pages, order = states("." * 8), AroundFaults(borders(0, 8), pivots=1)
    pages[6] = ASKED
    order.fault(6)
    assert asked(order, pages, 4) == [3, 4, 5, 7]


def test_bubbles_take_turns_and_the_newest_fault_comes_first() -> None:
    pages, order = states("." * 30), AroundFaults(borders(0, 30), pivots=2)
    for fault in (5, 25, 15):  # the first one is too old with two pivots
        pages[fault] = ASKED
        order.fault(fault)
    assert [asked(order, pages, 2) for _ in range(3)] == [[14, 16], [24, 26], [13, 17]]


def test_a_bubble_stays_in_its_process() -> None:
    pages, order = states("." * 6), AroundFaults(borders(0, 3, 6), pivots=1)
    pages[3] = ASKED
    order.fault(3)
    assert asked(order, pages, 4) == [4, 5]


def test_when_all_bubbles_are_full_the_rest_comes_in_order() -> None:
    pages, order = states("." * 6), AroundFaults(borders(0, 3, 6), pivots=1)
    pages[4] = ASKED
    order.fault(4)
    assert asked(order, pages, 4) == [3, 5]
    assert asked(order, pages, 4) == [0, 1, 2]
    assert asked(order, pages, 4) == []


def test_without_any_fault_the_pages_come_in_order() -> None:
    assert asked(AroundFaults(borders(0, 4), pivots=4), states("...."), 3) == [0, 1, 2]


def test_an_unknown_order_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="use none, sequential or around-faults"):
        make_prefetcher("sideways", borders(0, 1), 1)
