"""KubeVirt's tuning of QEMU's downtime limit: it begins low and rises until the migration ends.

github.com/kubevirt/kubevirt/pull/17480: the limit starts at 150 ms and rises linearly with time
after the bulk copy, up to 1,050 ms. How fast is not said there.
"""

from livemigration.policy import Decision, RoundView


class RampedLimit:
    """Freezes when the dirty pages fit into a limit that rises with time after round 0."""

    def __init__(self, start_ms: float, rise_ms_per_s: float, most_ms: float) -> None:
        self._start, self._rise, self._most = start_ms, rise_ms_per_s, most_ms
        self._ramped_s = 0.0

    def decide(self, view: RoundView) -> Decision:
        """As QEMU's rule, with the limit of this moment."""
        if view.round:
            self._ramped_s += view.duration_ns / 1e9
        limit = min(self._start + self._rise * self._ramped_s, self._most)
        expected = view.pages_dirty * view.page_size * view.duration_ns / view.bytes_wire / 1e6
        return Decision(expected <= limit, f"expected {expected:.0f} ms, limit {limit:.0f} ms")
