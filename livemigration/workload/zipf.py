"""Zipf's law over pages, exactly and repeatably: integer weights, an alias table, a scramble.

Rank r (from 1) has weight r^-theta, as in YCSB (theta 0.99 by default). YCSB's own generator (Gray
et al., SIGMOD 1994) approximates it with pow at every draw; here a table is made once, so a draw is
two hashes and one look-up, and only + - * / are used (see exact_math). Weights are integers of up
to 40 bits: the smallest ranks are off by at most one part in 2**40 / r^theta.
"""

from __future__ import annotations

import numpy as np

from livemigration.workload.exact_math import pow_exact
from livemigration.workload.kernels import GOLDEN, U32, U64, make_alias, mix_all, wrapping

_WEIGHT_BITS = 40
_TOTAL_BITS = 62


def zipf_weights(n: int, theta: float) -> U64:
    """Integer weights uint64[n] of ranks 0 .. n-1, proportional to (rank + 1)^-theta.

    The first is the largest, at most 2**40; none is zero; their sum is less than 2**62.
    """
    bits = min(_WEIGHT_BITS, _TOTAL_BITS - n.bit_length())
    ranks = np.arange(1, n + 1, dtype=np.float64)
    scaled = np.ldexp(pow_exact(ranks, -theta), bits)
    return np.maximum(np.floor(scaled).astype(np.uint64), np.uint64(1))


def alias_table(weights: U64) -> U64:
    """Alias table uint64[n, 2] (53-bit threshold, alias) of weights uint64[n]."""
    table = np.empty((weights.size, 2), dtype=np.uint64)
    total = weights.sum()
    with wrapping():
        make_alias(weights * np.uint64(weights.size), np.uint64(total), table)
    return table


def scramble(n: int, key: int) -> U32:
    """A permutation of 0 .. n-1 (uint32[n]) drawn by ``key``: the order of n distinct hashes."""
    with wrapping():
        keys = mix_all(np.uint64(key) + np.arange(n, dtype=np.uint64) * GOLDEN)
    return np.argsort(keys).astype(np.uint32)
