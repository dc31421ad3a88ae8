"""The generators beneath: hashes, draws, powers, weights, tables, permutations."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from livemigration.workload.exact_math import exp_exact, log_exact, pow_exact
from livemigration.workload.kernels import ALWAYS, below, draw, draw_below, probability, stream_key
from livemigration.workload.zipf import alias_table, scramble, zipf_weights


def test_draws_are_those_of_splitmix64() -> None:
    """The first outputs for seed 0 and 1234567 that the reference implementation in C gives."""
    assert [int(draw(np.uint64(0), np.uint64(k))) for k in (1, 2, 3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]
    assert [int(draw(np.uint64(1234567), np.uint64(k))) for k in (1, 2, 3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 1000, 2**31, 2**32 - 1])
@pytest.mark.parametrize("word", [0, 1, 2**32 - 1, 2**32, 0xDEADBEEF12345678, 2**64 - 1])
def test_a_draw_below_n_is_the_word_scaled_down(word: int, n: int) -> None:
    assert int(below(np.uint64(word), np.uint64(n))) == (word * n) >> 64


def test_numbers_can_be_drawn_from_anywhere() -> None:
    key, n = np.uint64(stream_key(5, "page")), np.uint64(777)
    whole = np.empty(1000, dtype=np.int64)
    draw_below(key, np.uint64(0), n, whole)
    part = np.empty(10, dtype=np.int64)
    draw_below(key, np.uint64(432), n, part)
    assert part.tolist() == whole[432:442].tolist()
    assert 0 <= whole.min() < 10
    assert 767 < whole.max() < 777


def test_streams_of_a_seed_and_seeds_of_a_stream_have_different_keys() -> None:
    names = ("page", "choice", "stores slot", "stores payload", "scramble", "reads")
    keys = {stream_key(seed, name) for seed in range(100) for name in names}
    assert len(keys) == 600
    assert all(0 <= key < 2**64 for key in keys)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.99, 1.0])
def test_probabilities_are_exact_to_the_last_bit(share: float) -> None:
    assert Fraction(probability(share), ALWAYS) <= Fraction(share)
    assert Fraction(share) - Fraction(probability(share), ALWAYS) < Fraction(1, ALWAYS)


class TestPowers:
    @pytest.mark.parametrize("exponent", [0.0, -0.2, -0.5, -0.99, -1.0, -1.5, -2.0, -5.0])
    def test_agree_with_libm(self, exponent: float) -> None:
        bases = np.unique(
            np.concatenate((np.arange(1.0, 3000.0), np.floor(np.geomspace(3000, 2**24, 3000))))
        )
        ours = pow_exact(bases, exponent)
        for base, power in zip(bases.tolist(), ours.tolist(), strict=True):
            assert math.isclose(power, math.pow(base, exponent), rel_tol=1e-12)

    def test_logarithms_and_exponentials_agree_with_libm(self) -> None:
        x = np.geomspace(1e-12, 1e12, 999)
        for value, log in zip(x.tolist(), log_exact(x).tolist(), strict=True):
            assert math.isclose(log, math.log(value), rel_tol=1e-13, abs_tol=1e-15)
        y = np.linspace(-600, 600, 999)
        for value, power in zip(y.tolist(), exp_exact(y).tolist(), strict=True):
            assert math.isclose(power, math.exp(value), rel_tol=1e-12)

    def test_are_exact_where_they_can_be(self) -> None:
        assert log_exact(np.array([1.0])).tolist() == [0.0]
        assert pow_exact(np.array([1.0]), -0.99).tolist() == [1.0]


class TestZipfWeights:
    @pytest.mark.parametrize("n", [1, 2, 1000, 2**18])
    @pytest.mark.parametrize("theta", [0.0, 0.99, 5.0])
    def test_fall_and_fit(self, n: int, theta: float) -> None:
        weights = zipf_weights(n, theta)
        assert weights.size == n
        assert weights.min() >= 1
        assert (weights[1:] <= weights[:-1]).all()
        assert sum(weights.tolist()) < 2**62

    def test_are_proportional_to_a_power_of_the_rank(self) -> None:
        weights = zipf_weights(10_000, 0.99)
        for rank in (2, 3, 10, 100, 1000, 10_000):
            ratio = int(weights[0]) / int(weights[rank - 1])
            assert math.isclose(ratio, math.pow(rank, 0.99), rel_tol=1e-7)


@pytest.mark.parametrize(
    "weights",
    [[1], [5, 5, 5], [1, 2, 3, 4], [1000, 1, 1, 1, 1], [7, 1, 9, 3, 3, 8, 1, 1, 30, 2]],
)
def test_an_alias_table_gives_each_its_weight(weights: list[int]) -> None:
    table = alias_table(np.array(weights, dtype=np.uint64))
    shares = [Fraction(0)] * len(weights)
    for column, (threshold, alias) in enumerate(table.tolist()):
        keep = Fraction(threshold, 2**53)
        assert 0 <= keep <= 1
        shares[column] += keep / len(weights)
        shares[alias] += (1 - keep) / len(weights)
    assert sum(shares) == 1
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - Fraction(weight, sum(weights))) < Fraction(1, 2**50)


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_a_scramble_is_a_permutation(n: int) -> None:
    assert sorted(scramble(n, 1).tolist()) == list(range(n))


def test_a_key_gives_one_scramble() -> None:
    assert scramble(1000, 1).tolist() == scramble(1000, 1).tolist()
    assert scramble(1000, 1).tolist() != scramble(1000, 2).tolist()
