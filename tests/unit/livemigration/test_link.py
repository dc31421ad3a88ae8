"""The link: exact on the virtual clock, a token bucket in real time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemigration.clock import VirtualClock
from livemigration.link import Link, TokenBucket

MIB = 1 << 20


def test_a_mebibyte_at_a_gigabit() -> None:
    assert Link(10**9, 0).transmit_ns(MIB) == MIB * 8


def test_unlimited_takes_no_time() -> None:
    assert Link(0, 100).transmit_ns(10**12) == 0


@given(st.integers(1, 10**12), st.integers(0, 10**10))
def test_time_is_rounded_up_never_down(bandwidth: int, size: int) -> None:
    taken = Link(bandwidth, 0).transmit_ns(size)
    assert taken * bandwidth >= size * 8 * 10**9
    assert (taken - 1) * bandwidth < size * 8 * 10**9


class _Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    st.lists(st.integers(1, 2 * MIB), min_size=200, max_size=300),
    st.lists(st.floats(0, 0.02), min_size=300, max_size=300),
)
def test_the_bucket_holds_the_rate_whatever_the_messages_and_oversleeping(
    sizes: list[int], late: list[float]
) -> None:
    clock = _Time()
    rate, burst = 125e6, MIB
    bucket = TokenBucket(rate, burst, now=clock)
    for size, extra in zip(sizes, late, strict=False):
        wait = bucket.delay()
        if wait:
            clock.now += wait + extra
        bucket.take(size)
    # Never more than the rate allows, but for the burst and the last message's overdraft.
    assert sum(sizes) <= rate * clock.now + burst + sizes[-1] + 1


def test_a_bucket_without_a_rate_never_waits() -> None:
    bucket = TokenBucket(0, 1)
    bucket.take(10**12)
    assert bucket.delay() == 0


def test_a_bucket_needs_a_burst() -> None:
    with pytest.raises(ValueError, match="burst"):
        TokenBucket(1, 0)


def test_the_virtual_clock_lets_the_task_run_along() -> None:
    ran: list[int] = []
    clock = VirtualClock(ran.append)
    clock.spend(5)
    clock.spend(7)
    assert (clock.now_ns, ran) == (12, [5, 7])
    with pytest.raises(ValueError, match="backwards"):
        clock.spend(-1)


@given(st.integers(0, 10**9), st.integers(0, 5000), st.integers(0, 10**11))
def test_the_two_ends_may_be_slower_than_the_network(size: int, kib: int, bandwidth: int) -> None:
    network = Link(bandwidth, 0).transmit_ns(size)
    ends = Link(0, 0, kib).transmit_ns(size)
    assert (ends - 1) * 1024 < size * kib <= ends * 1024
    assert Link(bandwidth, 0, kib).transmit_ns(size) == max(network, ends)


def test_an_idle_link_is_not_faster_afterwards() -> None:
    clock = _Time()
    bucket = TokenBucket(1000, 500, now=clock)
    bucket.start()
    bucket.take(100)
    assert bucket.delay() == pytest.approx(0.1)
    clock.now += 10
    assert bucket.delay() == 0
    bucket.start()
    bucket.take(100)
    assert bucket.delay() == pytest.approx(0.1)
    bucket.start()  # a debt stays one
    assert bucket.delay() == pytest.approx(0.1)


class _Passing(_Time):
    """Time goes on with every look."""

    def __call__(self) -> float:
        self.now += 0.0004
        return self.now


async def test_what_was_sent_is_through_when_the_bucket_is_drained() -> None:
    clock = _Passing()
    bucket = TokenBucket(1e9, 1, now=clock)
    bucket.take(10**6)  # a millisecond's worth
    sent = clock.now
    await bucket.drain()
    assert clock.now >= sent + 0.001
    assert bucket.delay() == 0
