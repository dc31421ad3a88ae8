"""However time is cut, whatever is moved: a workload does the same to memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livemigration.workload.spec import WorkloadSpec
from tests.unit.workload.harness import KINDS, SECOND, make, memory_of, move, spec, start
from tests.unit.workload.raw_traces import RECORDS, good_items, packed

MEMORY = 512 * 1024
UNTIL = SECOND // 10
SIZES = st.sampled_from([8, 24, 64, 512, 4096])
RATES = st.integers(1, 40_000).map(lambda rate: f"{rate} pages/s")
SHARES = st.floats(0, 1)
SEEDS = st.integers(0, 2**53 - 1)


def fields(kind: str, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"kind": st.just(kind)},
        optional={
            "rate": RATES,
            "write_size": SIZES,
            "compressibility": SHARES,
            **more,
        },
    )


def spread(kind: str, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return fields(kind, working_set=st.integers(1, 128).map(lambda pages: pages * 4096), **more)


def phases() -> st.SearchStrategy[dict[str, Any]]:
    duration = st.integers(500_000, 40_000_000).map(lambda ns: f"{ns}ns")
    writing = st.fixed_dictionaries(
        {"kind": st.sampled_from(["uniform", "zipf", "hotspot", "sequential"])},
        optional={"rate": RATES, "write_size": SIZES},
    )
    phase = st.one_of(writing, st.just({"kind": "idle"}))
    timed = st.builds(lambda fields, duration: {**fields, "duration": duration}, phase, duration)
    return st.builds(
        lambda phases: {"kind": "phased", "phases": phases}, st.lists(timed, min_size=1, max_size=4)
    )


SPECS = {
    "uniform": spread("uniform"),
    "zipf": spread("zipf", theta=st.floats(0, 5), scramble=st.booleans()),
    "hotspot": spread("hotspot", hot_fraction=SHARES, hot_probability=SHARES),
    "sequential": spread("sequential"),
    "phased": phases(),
    "append-heap": fields("append-heap", arena=st.sampled_from([4096, 8192, 65536]), mutate=SHARES),
    "fork-cow": fields(
        "fork-cow",
        child_life=st.integers(2, 800),
        fork_every=st.integers(100, 1000),
        access=st.sampled_from(["uniform", "zipf"]),
        shared_probability=SHARES,
        child_writes=st.integers(0, 5),
    ).map(lambda fields: {"child_life": 500, "fork_every": 300, **fields}),
    "swap-pressure": spread(
        "swap-pressure",
        window=st.integers(1, 128).map(lambda pages: pages * 4096),
        every=st.integers(10, 500),
        reads=st.integers(0, 40),
        protect_every=st.integers(0, 5),
    ),
    "script": st.fixed_dictionaries(
        {
            "kind": st.just("script"),
            "setup": st.just(KINDS["script"]["setup"]),
            "script": st.just(KINDS["script"]["script"]),
        },
        optional={
            "every": st.integers(100_000, 10_000_000).map(lambda ns: f"{ns}ns"),
            "write_size": SIZES,
            "compressibility": SHARES,
            "loop": st.booleans(),
        },
    ),
}
CUTS = st.lists(st.integers(0, UNTIL), max_size=8).map(sorted)


@pytest.mark.parametrize("kind", SPECS)
def test_slices_do_not_matter(kind: str) -> None:
    @settings(max_examples=settings().max_examples // 5)
    @given(fields=SPECS[kind], seed=SEEDS, cuts=CUTS, most=st.none() | st.integers(50, 5000))
    def check(fields: dict[str, Any], seed: int, cuts: list[int], most: int | None) -> None:
        what = spec(**fields)
        whole, reference = start(what, seed=seed, memory=MEMORY)
        whole.run_until(reference, UNTIL)
        sliced, task = start(what, seed=seed, memory=MEMORY)
        for cut in cuts:
            sliced.run_until(task, cut, max_ops=most)
        while sliced.run_until(task, UNTIL, max_ops=most).ops == most:
            pass
        assert sliced.state() == whole.state()
        assert memory_of(task) == memory_of(reference)

    check()


@pytest.mark.parametrize("kind", SPECS)
def test_moves_do_not_matter(kind: str) -> None:
    @settings(max_examples=settings().max_examples // 10)
    @given(fields=SPECS[kind], seed=SEEDS, cuts=CUTS.filter(lambda cuts: len(cuts) < 4))
    def check(fields: dict[str, Any], seed: int, cuts: list[int]) -> None:
        what = spec(**fields)
        whole, reference = start(what, seed=seed, memory=MEMORY)
        whole.run_until(reference, UNTIL)
        moving, task = start(what, seed=seed, memory=MEMORY)
        for cut in cuts:
            moving.run_until(task, cut)
            moving, task = move(moving, task, what)
        moving.run_until(task, UNTIL)
        assert moving.state() == whole.state()
        assert memory_of(task) == memory_of(reference)

    check()


@pytest.fixture(scope="module")
def trace_of(tmp_path_factory: pytest.TempPathFactory) -> WorkloadSpec:
    path = tmp_path_factory.mktemp("traces") / "t"
    path.write_bytes(packed(good_items(RECORDS[:2], RECORDS[2:])))
    return spec("trace", file=str(path), speed=0.01)


@given(seed=SEEDS, cuts=CUTS)
def test_slices_of_a_trace_do_not_matter(
    trace_of: WorkloadSpec, seed: int, cuts: list[int]
) -> None:
    whole, reference = start(trace_of, seed=seed, memory=MEMORY)
    whole.run_until(reference, UNTIL)
    sliced, task = start(trace_of, seed=seed, memory=MEMORY)
    for cut in [*cuts, UNTIL]:
        sliced.run_until(task, cut)
    assert sliced.state() == whole.state()
    assert memory_of(task) == memory_of(reference)


@given(fields=st.one_of(*SPECS.values()), times=st.lists(st.integers(0, 10**15), max_size=10))
def test_due_times_and_operations_due_agree(fields: dict[str, Any], times: list[int]) -> None:
    workload = make(spec(**fields), memory=MEMORY)
    for k in (0, 1, 2, 1000, 10**9):
        due = workload.due_ns(k)
        assert workload._clock.due_before(due) <= k
        if due < 2**62:
            assert workload._clock.due_before(due + 1) > k
    for time in times:
        done = workload._clock.due_before(time)
        assert workload.due_ns(done) >= time
        assert done == 0 or workload.due_ns(done - 1) < time
