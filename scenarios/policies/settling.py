"""A policy of one's own: stop as soon as another round would hardly help.

Pre-dumping is worth its traffic while rounds shrink. Once a round sends nearly as much as the one
before, what is left is the working set, and more rounds only repeat it. `settling.toml` runs it.
"""

from livemigration.policy import Decision, RoundView


class Settling:
    """Freezes when the dirty pages have shrunk by less than `least_percent` since last time."""

    def __init__(self, least_percent: int = 10, max_rounds: int = 20) -> None:
        if not 0 < least_percent < 100:
            raise ValueError(f"least_percent = {least_percent}: must be between 0 and 100")
        self._least = least_percent
        self._most = max_rounds
        self._before: int | None = None

    def decide(self, view: RoundView) -> Decision:
        """Called after every pre-dump; `view` says what it sent and what is dirty now."""
        before, self._before = self._before, view.pages_dirty
        if view.round >= self._most:
            return Decision(True, f"{view.round} rounds done")
        if before is None:
            return Decision(False, f"{view.pages_dirty} pages dirty")
        shrunk = 100 * (before - view.pages_dirty) / before if before else 0.0
        if shrunk < self._least:
            return Decision(True, f"only {shrunk:.0f} % fewer dirty pages than a round ago")
        return Decision(False, f"{shrunk:.0f} % fewer dirty pages than a round ago")
