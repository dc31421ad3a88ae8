"""Powers that are the same on every machine.

libm's and NumPy's pow, exp and log differ in their last bits between processors (NumPy picks
AVX-512 or SVE kernels at run time), and a workload that depends on them would write other pages at
the destination than at the source. These use only + - * /, rounding to integer and exact scaling
by powers of two, all of which IEEE 754 defines to the last bit.

Accuracy: relative error below 1e-13 for bases up to 2**24 and exponents from -5 to 0 (the tests
hold it against math.pow to 1e-12). Method: ln by the series of 2 artanh((m-1)/(m+1)) for a mantissa
m between sqrt(1/2) and sqrt(2); exp by Taylor's series for a remainder of at most ln(2)/2; ln(2) is
split in two so that multiples of it are exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_LN2_HIGH = float.fromhex("0x1.62e42feep-1")  # low bits are zero: times a small integer is exact
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_INVERSE_LN2 = float.fromhex("0x1.71547652b82fep+0")
_ROOT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")
_LOG_TERMS = 12
_EXP_TERMS = 15


def log_exact(x: F64) -> F64:
    """Natural logarithm of positive finite doubles, float64[n] -> float64[n]."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < _ROOT_HALF
    mantissa = np.where(small, mantissa * 2.0, mantissa)
    twos = (exponent - small).astype(np.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    total = np.full_like(s, 1.0 / (2 * _LOG_TERMS - 1))
    for term in range(_LOG_TERMS - 2, -1, -1):
        total = total * square + 1.0 / (2 * term + 1)
    return twos * _LN2_HIGH + (2.0 * s * total + twos * _LN2_LOW)


def exp_exact(y: F64) -> F64:
    """e to the power y for -700 < y < 700, float64[n] -> float64[n]."""
    twos = np.rint(y * _INVERSE_LN2)
    rest = (y - twos * _LN2_HIGH) - twos * _LN2_LOW
    total = np.full_like(rest, 1.0)
    for term in range(_EXP_TERMS, 0, -1):
        total = total * rest / term + 1.0
    return np.asarray(np.ldexp(total, twos.astype(np.int32)), dtype=np.float64)


def pow_exact(base: F64, exponent: float) -> F64:
    """base to the power ``exponent`` for positive bases, float64[n] -> float64[n]."""
    return exp_exact(exponent * log_exact(base))
