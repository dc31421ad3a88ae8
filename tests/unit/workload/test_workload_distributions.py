"""Which pages are written, and where in them: shapes that the documentation promises.

Seeds are fixed, so nothing here fails by chance; bounds are five standard deviations.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from livemigration.workload.base import REGION_BASE
from tests.unit.workload.harness import MIB, SECOND, spec
from tests.unit.workload.spy import SpyMm, chi_square, watched

PAGES = 2 * MIB // 4096
WRITES = 40_000
BOUND = 5


def run(kind: str, *, seed: int = 7, writes: int = WRITES, **keys: object) -> SpyMm:
    workload, task, spy = watched(spec(kind, **keys), seed=seed, populate=False)
    workload.run_until(task, 10**9 * SECOND, max_ops=writes)
    return spy


def counts_of(spy: SpyMm, pages: int = PAGES) -> np.ndarray:
    return np.bincount(spy.pages(REGION_BASE), minlength=pages)


def zipf_shares(pages: int, theta: float) -> np.ndarray:
    """Zipf's law by the book, from libm's pow."""
    weights = [math.pow(rank, -theta) for rank in range(1, pages + 1)]
    return np.array(weights) / math.fsum(weights)


@pytest.mark.parametrize("seed", [0, 1, 2**53 - 1])
def test_uniform_takes_every_page_alike(seed: int) -> None:
    counts = counts_of(run("uniform", seed=seed))
    assert counts.size == PAGES
    assert abs(chi_square(counts, np.full(PAGES, 1 / PAGES))) < BOUND


@pytest.mark.parametrize("pages", [1, 3, 100, 511])
def test_uniform_stays_within_the_working_set(pages: int) -> None:
    counts = counts_of(run("uniform", working_set=pages * 4096))
    assert counts[:pages].min() > 0
    assert counts[pages:].sum() == 0


def test_successive_pages_are_independent() -> None:
    """Pairs of successive pages, 16 classes each: a generator with a pattern shows it here."""
    classes = run("uniform").pages(REGION_BASE) // (PAGES // 16)
    pairs = np.bincount(classes[:-1] * 16 + classes[1:], minlength=256)
    assert abs(chi_square(pairs, np.full(256, 1 / 256))) < BOUND


@pytest.mark.parametrize("theta", [0.5, 0.99, 1.5])
def test_zipf_follows_the_law(theta: float) -> None:
    counts = counts_of(run("zipf", theta=theta, scramble=False))
    shares = zipf_shares(PAGES, theta)
    # Ranks so rare that they are seldom drawn are counted together.
    often = int((shares * WRITES >= 10).sum())
    folded = np.append(counts[:often], counts[often:].sum())
    expected = np.append(shares[:often], shares[often:].sum())
    kept = expected > 0
    assert abs(chi_square(folded[kept], expected[kept])) < BOUND


def test_the_zipf_constant_is_ycsbs_unless_given() -> None:
    default = run("zipf")
    assert default.addresses.tolist() == run("zipf", theta=0.99, scramble=True).addresses.tolist()


def test_a_zipf_constant_of_zero_is_uniform() -> None:
    assert abs(chi_square(counts_of(run("zipf", theta=0)), np.full(PAGES, 1 / PAGES))) < BOUND


def test_scrambled_zipf_has_the_same_shares_on_pages_that_lie_anywhere() -> None:
    counts = counts_of(run("zipf"))
    ranked = np.sort(counts)[::-1] / WRITES
    shares = zipf_shares(PAGES, 0.99)
    for rank in range(5):
        deviation = math.sqrt(shares[rank] / WRITES)
        assert ranked[rank] == pytest.approx(shares[rank], abs=BOUND * deviation)
    hottest = np.argsort(counts)[::-1][:32]
    # 32 pages drawn at random out of 512 have a mean near the middle, and few neighbours.
    assert abs(hottest.mean() - PAGES / 2) < BOUND * PAGES / math.sqrt(12 * 32)
    assert (np.diff(np.sort(hottest)) == 1).sum() < 12


def test_another_seed_scrambles_in_another_way() -> None:
    hottest = {int(counts_of(run("zipf", seed=seed)).argmax()) for seed in range(6)}
    assert len(hottest) >= 5


@pytest.mark.parametrize(
    ("fraction", "probability", "hot_pages"), [(0.2, 0.8, 102), (0.05, 0.5, 25), (0.5, 1.0, 256)]
)
def test_the_hot_set_takes_its_share(fraction: float, probability: float, hot_pages: int) -> None:
    counts = counts_of(run("hotspot", hot_fraction=fraction, hot_probability=probability))
    deviation = math.sqrt(probability * (1 - probability) / WRITES)
    assert counts[:hot_pages].sum() / WRITES == pytest.approx(probability, abs=BOUND * deviation)
    hot, cold = counts[:hot_pages], counts[hot_pages:]
    assert abs(chi_square(hot, np.full(hot.size, 1 / hot.size))) < BOUND
    if cold.sum():
        assert abs(chi_square(cold, np.full(cold.size, 1 / cold.size))) < BOUND


def test_the_default_hot_set_is_a_fifth_with_four_fifths_of_the_writes() -> None:
    given = run("hotspot", hot_fraction=0.2, hot_probability=0.8)
    assert run("hotspot").addresses.tolist() == given.addresses.tolist()


def test_there_is_always_a_hot_page_and_all_hot_pages_are_all_pages() -> None:
    assert set(run("hotspot", hot_fraction=0, hot_probability=1).pages(REGION_BASE)) == {0}
    everywhere = counts_of(run("hotspot", hot_fraction=1, hot_probability=0.1))
    assert abs(chi_square(everywhere, np.full(PAGES, 1 / PAGES))) < BOUND


def test_sequential_goes_round_and_round() -> None:
    pages = run("sequential", working_set="100KiB", writes=80).pages(REGION_BASE)
    assert pages.tolist() == [*range(25), *range(25), *range(25), *range(5)]


def test_a_sequential_phase_goes_on_where_its_last_turn_stopped() -> None:
    workload, task, spy = watched(
        spec(
            "phased",
            phases=[
                {"kind": "sequential", "duration": "10ms", "rate": "1000 pages/s"},
                {"kind": "uniform", "duration": "1ms", "rate": "2000 pages/s"},
            ],
        )
    )
    workload.run_until(task, 44 * 10**6)
    pages = spy.pages(REGION_BASE).reshape(4, 12)
    assert pages[:, :10].ravel().tolist() == list(range(40))


def test_each_phase_has_its_own_shape_and_working_set() -> None:
    workload, task, spy = watched(
        spec(
            "phased",
            phases=[
                {"kind": "hotspot", "duration": "1s", "rate": "5000 pages/s"},
                {
                    "kind": "uniform",
                    "duration": "1s",
                    "rate": "3000 pages/s",
                    "working_set": "64KiB",
                    "write_size": 8,
                },
            ],
        )
    )
    workload.run_until(task, 2 * SECOND)
    pages, sizes = spy.pages(REGION_BASE), spy.sizes
    assert (pages[:5000] < 102).mean() == pytest.approx(0.8, abs=0.03)
    assert pages[5000:].max() == 15
    assert set(sizes[:5000].tolist()) == {64}
    assert set(sizes[5000:].tolist()) == {8}


@pytest.mark.parametrize("write_size", [8, 64, 512, 4096])
def test_writes_lie_anywhere_in_the_page_at_multiples_of_their_size(write_size: int) -> None:
    spy = run("uniform", write_size=write_size)
    assert set(spy.sizes.tolist()) == {write_size}
    assert len(spy.written) == WRITES * write_size
    offsets = spy.offsets()
    assert (offsets % write_size == 0).all()
    places = 4096 // write_size
    if places > 1:
        counts = np.bincount(offsets // write_size, minlength=places)
        assert abs(chi_square(counts, np.full(places, 1 / places))) < BOUND


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize("write_size", [24, 1000, 3000])
def test_no_write_leaves_its_page_though_its_size_does_not_divide_it(
    page_size: int, write_size: int
) -> None:
    workload, task, spy = watched(spec("uniform", write_size=write_size), page_size=page_size)
    workload.run_until(task, SECOND)
    assert (spy.offsets() + write_size <= page_size).all()
    assert (spy.offsets() % write_size == 0).all()
    # Some write uses the last place.
    assert spy.offsets().max() > page_size - 3 * write_size


def test_page_and_place_are_independent() -> None:
    spy = run("uniform")
    cells = spy.pages(REGION_BASE) // (PAGES // 8) * 8 + spy.offsets() // 512
    assert abs(chi_square(np.bincount(cells, minlength=64), np.full(64, 1 / 64))) < BOUND
