"""Compiled code does what the same functions do as plain Python: all operations, all that is kept.

Hypothesis makes up lives (`mm_life`); this process lives them compiled, another one uncompiled, and
after every step both must keep exactly the same. `make test` tries a few thousand operations, the
same ones every time; `make fuzz-jit` tries AGREE_OPERATIONS (100,000), others every time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm_model import HUNKS, VARIANTS
from mm_model import _compiled as compiled
from tests.property.mm_life import PLACES, VERBS, Step, live

ROOT = Path(__file__).parents[2]
STEPS = 40
OPERATIONS = int(os.environ.get("AGREE_OPERATIONS", "0"))

_VARIANTS = {each.name for each in VARIANTS}
_TLB = "clear-refs-no-tlb-flush"


def _machines() -> Iterator[dict[str, Any]]:
    """Every setting of the model that compiled code looks at, the common ones more often."""
    for _ in range(6):
        yield {}
        yield {"hunks_off": ["contpte-access-flags-fixed"]}
    yield from ({"kernel": "6.1"}, {"kernel": "seed"}, {"dbm": False}, {"frames": 700})
    yield from ({"page_size": 16384}, {"page_size": 65536, "frames": 700})
    for kernel in ("6.12", "6.1"):
        yield {"arch": "x86_64", "kernel": kernel}
    yield {"arch": "x86_64", "cpus": 2, "tlb_entries": 16}
    yield {"cpus": 2, "tlb_entries": 16, "dbm": False}
    for each in HUNKS + VARIANTS:
        needs = {"tlb_entries": 16, "cpus": 2} if each.name == _TLB else {}
        yield {"hunks_off": [each.name], **needs}


MACHINES = [{"frames": 2048, "swap_slots": 256} | machine for machine in _machines()]
steps: st.SearchStrategy[Step] = st.tuples(
    st.sampled_from(VERBS),
    st.integers(0, PLACES - 1),
    st.one_of(st.integers(1, 4), st.integers(1, 16)),
    st.integers(0, 255),
)


class OtherMode:
    """A process that lives lives compiled where this one does not, or the other way round."""

    def __init__(self) -> None:
        other = {"NUMBA_DISABLE_JIT": "1" if compiled.is_enabled() else "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.property.mm_life"],
            cwd=ROOT,
            env=os.environ | other,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, config: dict[str, Any], story: list[Step]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([config, story]) + "\n")
        self._process.stdin.flush()

    def end(self) -> list[str]:
        assert self._process.stdout is not None
        told: list[str] = json.loads(self._process.stdout.readline())
        return told

    def close(self) -> None:
        self._process.communicate(timeout=60)


@contextmanager
def other_mode() -> Iterator[OtherMode]:
    other = OtherMode()
    try:
        yield other
    finally:
        other.close()


@pytest.mark.timeout(900)  # where nothing is in the cache, both architectures are compiled first
def test_compiled_and_uncompiled_code_keep_the_same(record_property: Any) -> None:
    ran: Counter[str] = Counter()

    @settings(
        max_examples=max(1, (OPERATIONS or 4000) // STEPS),
        derandomize=not OPERATIONS,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.sampled_from(MACHINES), st.lists(steps, min_size=STEPS, max_size=STEPS))
    def agree(config: dict[str, Any], story: list[Step]) -> None:
        other.begin(config, story)
        here = live(config, story)
        there = other.end()
        ran.update(verb for verb, *_ in story)
        for number, (one, two) in enumerate(zip(here, there, strict=False)):
            step = story[number - 1] if 0 < number <= len(story) else "the end"
            assert one == two, f"step {number}: {step}"
        assert len(here) == len(there), there

    with other_mode() as other:
        agree()
    record_property("operations", ran.total())
    print(f"\n{ran.total():,} operations, the same in both modes: {dict(ran.most_common())}")
    assert ran.total() >= (OPERATIONS or 4000) // STEPS * STEPS
    assert ran.keys() == set(VERBS)


def test_a_difference_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest feels one bit of one entry, one stamp, one counter."""
    from tests.property.mm_life import Life, ModelConfig

    life = Life(ModelConfig(**MACHINES[0]))  # type: ignore[arg-type]
    life.act(("write", 0, 4, 0))
    before = life.digest()
    phys = life.machine.phys
    for array, index in ((phys.tables, -1), (phys.version, 1), (phys.ctr, 3), (phys.mapcount, 2)):
        at = int(phys.tables.nonzero()[0][-1]) if index < 0 else index
        array[at] ^= 1
        assert life.digest() != before
        array[at] ^= 1
    assert life.digest() == before
    with_content = life.digest(content=True)
    phys.content[1, 3] ^= 1
    assert life.digest() == before
    assert life.digest(content=True) != with_content
    life.machine.release()
