"""Failure drills: a node that dies, or stops, at an exact point of a migration.

A node started with ``--drill kill@PHASE`` sends itself SIGKILL when it gets there: nothing is
cleaned up, as when a host dies. ``pause@PHASE`` stops answering instead. Tests of migration tooling
need both at points that no timer hits.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

DESTINATION_PHASES = (
    "round-0",  # in the middle of round 0
    "round-1",  # in the middle of the first pre-dump of soft-dirty pages
    "final",  # in the middle of the final round
    "verify",  # asked to compare, before the answer
    "before-commit",  # asked to take over, nothing written yet
    "in-commit",  # took over (and wrote so), the answer not yet sent
    "after-commit",  # the task runs here
    "pages",  # post-copy: in the middle of the pages that come while the task runs
    "pages-kept",  # post-copy: all of them are in the state directory, and nobody knows yet
    "pages-over",  # post-copy: all of them are here, and the source has been told
)
SOURCE_PHASES = ("serving",)  # post-copy: in the middle of the pages that the destination asks for
ACTIONS = ("kill", "pause")


@dataclass(frozen=True, slots=True)
class Drill:
    """What to do at which phase; the default does nothing anywhere."""

    action: str = ""
    phase: str = ""

    @classmethod
    def parse(cls, text: str, phases: tuple[str, ...] = DESTINATION_PHASES) -> Drill:
        """``"kill@final"``; ValueError with what is allowed."""
        if not text:
            return cls()
        action, _, phase = text.partition("@")
        if action not in ACTIONS or phase not in phases:
            raise ValueError(
                f"{text!r} is not a drill; write ACTION@PHASE with action {' or '.join(ACTIONS)} "
                f"and phase {', '.join(phases)}"
            )
        return cls(action, phase)

    def reach(self, phase: str) -> None:
        """The node is at this point now."""
        if phase != self.phase:
            return
        os.kill(os.getpid(), signal.SIGKILL if self.action == "kill" else signal.SIGSTOP)
