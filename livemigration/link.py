"""The link between the hosts: how long bytes take.

On the virtual clock a link is a formula (`Link.transmit_ns`). On the wall clock it is a token
bucket (`TokenBucket`) that holds the sender back, as tc's tbf does, so that the measured rate is
the shape's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Link:
    """`bandwidth` in bit/s (0: unlimited), `latency_ns` one way.

    `kib_ns`: what the two ends take for each KiB, which no network makes shorter.
    """

    bandwidth: int
    latency_ns: int
    kib_ns: int = 0

    def transmit_ns(self, size: int) -> int:
        """Time on the wire of `size` bytes, without latency, rounded up to whole nanoseconds."""
        ends = -(-size * self.kib_ns // 1024)
        if self.bandwidth == 0:
            return ends
        return max(ends, -(-size * 8 * NS // self.bandwidth))


class TokenBucket:
    """Holds a sender to `rate` bytes/s, with at most `burst` bytes at once.

    Debt instead of waiting beforehand: a message goes out while the bucket is not empty and may
    overdraw it; the next one waits until the debt is paid. So messages larger than the burst pass,
    and sleeping too long is made up for (up to the burst), which keeps the long-run rate exact.
    """

    def __init__(
        self, rate: float, burst: int, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        if rate < 0 or burst <= 0:
            raise ValueError("a token bucket needs a rate of at least 0 and a burst above 0")
        self._rate = rate
        self._burst = burst
        self._now = now
        self._tokens = float(burst)
        self._last = now()

    def _refill(self) -> None:
        now = self._now()
        self._tokens = min(float(self._burst), self._tokens + (now - self._last) * self._rate)
        self._last = now

    def delay(self) -> float:
        """Seconds until the bucket is not in debt any more."""
        if self._rate == 0:
            return 0.0
        self._refill()
        return max(0.0, -self._tokens / self._rate)

    def take(self, size: int) -> None:
        """`size` bytes went out."""
        if self._rate:
            self._refill()
            self._tokens -= size

    def start(self) -> None:
        """The sender begins anew: a link that was idle is not faster afterwards."""
        self._refill()
        self._tokens = min(self._tokens, 0.0)

    async def send(self, size: int) -> None:
        """Waits until `size` bytes may go out, and counts them."""
        await self.drain()
        self.take(size)

    async def drain(self) -> None:
        """Waits until all that went out would be through a link of this rate."""
        while (wait := self.delay()) > 0:
            await asyncio.sleep(wait)
