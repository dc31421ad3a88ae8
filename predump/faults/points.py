"""Points of a migration, by what passes between the hosts: exact, as no timer is.

A fault strikes while the message that marks its point is held; nothing else happens meanwhile.
"""

from __future__ import annotations

from livemigration import batch

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
)
BEFORE_COMMIT = ("prepare", "round-0", "round-1", "final", "verify")

CALLS = {"Prepare": "prepare", "Verify": "verify", "Commit": "commit", "Continue": "continue"}
"""The call that marks a point, before it is passed on."""


class Frames:
    """Follows the frames of a transfer and says at which of them a point is reached."""

    def __init__(self) -> None:
        self._point = ""

    def reach(self, message: bytes) -> str:
        """The point that this message marks; "" if it marks none."""
        frame = batch.decode(message)
        if frame.begin is not None:
            self._point = "final" if frame.begin.final else f"round-{frame.round}"
            return ""
        # The first pages of the round, or its end if it has none.
        point, self._point = self._point, ""
        return point
