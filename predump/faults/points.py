"""Points of a migration, by what passes between the hosts: exact, as no timer is.

A fault strikes while the message that marks its point is held; nothing else happens meanwhile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from livemigration import batch
from livemigration.v1 import destination_node_pb2

POINTS = (
    "prepare",  # the source asks for room
    "round-0",  # the first pages of the full copy are on their way
    "round-1",  # ... of the first pre-dump
    "final",  # ... of the final round: the task is frozen
    "verify",  # the memory is about to be compared
    "commit",  # the hand-over is on its way
    "taken",  # it is done, and the answer on its way
    "continue",  # the task is to go on over there
    "pages",  # post-copy: the first page that the destination asked for is on its way
    "pages-over",  # post-copy: the destination's word that it has all of them is on its way
)
BEFORE_COMMIT = ("prepare", "round-0", "round-1", "final", "verify")

CALLS = {"Prepare": "prepare", "Verify": "verify", "Commit": "commit", "Continue": "continue"}
"""The call that marks a point, before it is passed on."""

_SHARE = re.compile(r"pages-([1-9][0-9]?)%")
"""Post-copy: so many percent of the pages that were left behind have been passed on."""


def is_point(text: str) -> bool:
    """Whether there is such a point."""
    return text in POINTS or _SHARE.fullmatch(text) is not None


def order(point: str) -> float:
    """Where it is among the others: for a table."""
    share = _SHARE.fullmatch(point)
    if share is None:
        return POINTS.index(point)
    return POINTS.index("pages") + int(share[1]) / 100


Runs = tuple[int, NDArray[np.uint64], NDArray[np.uint64]]
"""Pages of a process: its pid, addresses, and how many from each on."""


@dataclass(slots=True)
class Pages:
    """Follows the pages of a post-copy that come after the hand-over, over all its streams."""

    left_behind: list[Runs]
    passed: list[Runs] = field(default_factory=list)
    _by_request: dict[int, int] = field(default_factory=dict)
    _percent: int = -1

    def reach(self, message: bytes) -> list[str]:
        """The points that this frame marks: the first of all, and each percent that it fills."""
        frame = batch.decode(message)
        points = ["pages"] if not self.passed else []
        runs: list[Runs] = [
            (frame.pid, frame.run_start, frame.run_pages),
            (frame.pid, frame.zero_start, frame.zero_pages),
        ]
        self.passed += runs
        self._by_request[frame.sequence] = _count(runs)
        percent = 100 * sum(self._by_request.values()) // max(1, _count(self.left_behind))
        points += [f"pages-{share}%" for share in range(self._percent + 1, percent + 1)]
        self._percent = max(self._percent, percent)
        return points

    @staticmethod
    def over(message: bytes) -> bool:
        """Whether the destination says that it needs no more."""
        return destination_node_pb2.PageRequest.FromString(message).HasField("over")


class Frames:
    """Follows the frames of a transfer and says at which of them a point is reached."""

    def __init__(self) -> None:
        self._point = ""
        self.pages: Pages | None = None  # those left behind, once the final round has begun

    def reach(self, message: bytes) -> str:
        """The point that this message marks; "" if it marks none."""
        frame = batch.decode(message)
        if frame.begin is not None:
            self._point = "final" if frame.begin.final else f"round-{frame.round}"
            if frame.begin.HasField("post_copy"):
                self.pages = Pages(
                    [
                        (
                            process.pid,
                            np.array(process.lazy_start, dtype=np.uint64),
                            np.array(process.lazy_pages, dtype=np.uint64),
                        )
                        for process in frame.begin.processes
                    ]
                )
            return ""
        # The first pages of the round, or its end if it has none.
        point, self._point = self._point, ""
        return point


def _count(runs: list[Runs]) -> int:
    return sum(int(pages.sum()) for _, _, pages in runs)
