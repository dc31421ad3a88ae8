"""Whatever is stored in whatever order: the pages that the host's kernel calls written are exactly
those that were written since the last reset, and those that are there are those ever written.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from livemigration.workload.base import Tally
from livemigration.workload.content import Content
from livemigration.workload.spec import UniformSpec
from livemigration.workload.stream import Pattern, Sequential, StoreStream, Uniform, Zipf
from livemigration.workload.targets import Targets
from tests.unit.host.kernel_here import BASE, PAGE, memory, needs, there, written

pytestmark = needs("wp-async")

PATTERNS = {
    "uniform": Uniform,
    "zipf": lambda pages, seed: Zipf(pages, seed, 0.99, True),
    "sequential": lambda pages, seed: Sequential(pages),
}
CONTENT = Content.of(UniformSpec(kind="uniform"))


class Recorded(Pattern):
    """Another pattern, and which pages it chose."""

    def __init__(self, pattern: Pattern) -> None:
        super().__init__(pattern.pages)
        self._pattern = pattern
        self.chosen: set[int] = set()

    def fill(self, first: int, turn: int, out: np.ndarray) -> None:
        self._pattern.fill(first, turn, out)
        self.chosen |= set(out.tolist())


batches = st.lists(
    st.tuples(
        st.sampled_from(sorted(PATTERNS)),
        st.integers(0, 2**32),
        st.sampled_from([8, 64, PAGE]),
        st.integers(1, 300),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@given(pages=st.integers(1, 400), steps=batches)
@settings(max_examples=60)
def test_the_kernel_reports_exactly_the_pages_written_since_the_last_reset(
    pages: int, steps: list[tuple[str, int, int, int, bool]]
) -> None:
    mm = memory(pages)
    ever: set[int] = set()
    since: set[int] = set()
    for name, seed, size, count, reset in steps:
        pattern = Recorded(PATTERNS[name](pages, seed))
        stream = StoreStream(
            pattern,
            Targets.region(BASE, pages, PAGE),
            write_size=size,
            content=CONTENT,
            seed=seed,
        )
        tally = Tally()
        stream.run(mm, 0, count, tally)  # type: ignore[arg-type]
        assert tally.stores == count
        since |= pattern.chosen
        ever |= pattern.chosen
        assert written(mm) == sorted(since)
        assert there(mm) == sorted(ever)
        if reset:
            mm.machine.written.reset()
            since = set()
            assert written(mm) == []
    mm.machine.release()
