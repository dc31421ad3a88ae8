"""Quantities as people write them in scenario files, and the exact integers the code computes with.

Sizes are binary (``256MiB``), bandwidths count bits per second (``1Gbit/s``; byte units are
understood too), dirty rates are pages per second, times are nanoseconds. Parsing is exact: a
quantity that does not come to a whole number of bytes, bits or nanoseconds is refused rather than
rounded, and every ``format_*`` function gives text that its ``parse_*`` reads back as the same
number. All refusals are ``ValueError`` with one line that says what is allowed.
"""

import re
from collections.abc import Mapping
from fractions import Fraction

UNLIMITED = 0
"""Bandwidth of a link that is not shaped (bits per second)."""

_LARGEST = 2**63 - 1
_QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z/\u00b5\u03bc]*)\s*")

_SIZE_UNITS: Mapping[str, int] = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_BIT_UNITS: Mapping[str, int] = {
    "bit/s": 1,
    "kbit/s": 10**3,
    "Mbit/s": 10**6,
    "Gbit/s": 10**9,
    "Tbit/s": 10**12,
}
_BYTE_RATE_UNITS: Mapping[str, int] = {
    "B/s": 1,
    "kB/s": 10**3,
    "MB/s": 10**6,
    "GB/s": 10**9,
    "KiB/s": 2**10,
    "MiB/s": 2**20,
    "GiB/s": 2**30,
}
_BANDWIDTH_UNITS: Mapping[str, int] = {
    **_BIT_UNITS,
    **{unit: 8 * factor for unit, factor in _BYTE_RATE_UNITS.items()},
}
_TIME_UNITS: Mapping[str, int] = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,  # micro sign
    "\u03bcs": 10**3,  # Greek mu, which keyboards produce as often
    "ms": 10**6,
    "s": 10**9,
    "min": 60 * 10**9,
}

SIZE_FORMS = 'a size like "64KiB", "256MiB" or "2GiB"'
BANDWIDTH_FORMS = 'a bandwidth like "1Gbit/s", "100MiB/s" or "unlimited"'
RATE_FORMS = 'a rate like "20000 pages/s" or "80MiB/s"'
TIME_FORMS = 'a time like "100us", "300ms" or "1.5s"'


def _split(text: object, forms: str) -> tuple[Fraction, str]:
    """Number and unit of a quantity; refuses anything that does not look like one."""
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not a quantity with a unit; write {forms}")
    match = _QUANTITY.fullmatch(text)
    if match is None or len(text) > 64:
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise ValueError(f"{shown!r} is not understood; write {forms}")
    return Fraction(match[1].replace("_", "")), match[2]


def _factor(unit: str, units: Mapping[str, int], text: object, forms: str) -> int:
    """The factor of ``unit``; spelling in other letter cases is accepted where only one fits."""
    if unit in units:
        return units[unit]
    folded = {factor for name, factor in units.items() if name.lower() == unit.lower()}
    # "Mb/s" must not become megabytes: a lone b is a byte only when it is written B.
    if len(folded) == 1 and not re.fullmatch(r"[kmg]?b(/s)?", unit, re.IGNORECASE):
        return folded.pop()
    if not unit:
        raise ValueError(f"{text!r} has no unit; write {forms}")
    raise ValueError(f"{text!r}: unknown unit {unit!r}; write {forms}")


def _whole(value: Fraction, text: object, noun: str, forms: str) -> int:
    if value.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of {noun}; write {forms}")
    if value > _LARGEST:
        raise ValueError(f"{text!r} is too large; write {forms}")
    return int(value)


def _largest_exact(value: int, units: Mapping[str, int]) -> str:
    """``value`` in the unit of ``units`` that gives the smallest whole number."""
    unit = max((u for u, f in units.items() if value % f == 0), key=lambda u: units[u])
    return f"{value // units[unit]}{unit}"


def _check_not_negative(value: int | Fraction, noun: str) -> None:
    if value < 0:
        raise ValueError(f"a {noun} cannot be negative: {value}")


def parse_size(value: int | float | str) -> int:
    """Bytes of ``"256MiB"``, ``"4096"`` or ``4096`` (units B, KiB, MiB, GiB, TiB).

    A whole ``float`` is accepted, since integers come back from protobuf's Struct as doubles.
    Raises ValueError when it is not a size, is negative or not a whole number of bytes.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a size; write {SIZE_FORMS}")
    if isinstance(value, int | float):
        if value != value or value in (float("inf"), float("-inf")) or value < 0:
            raise ValueError(f"{value!r} is not a size; write {SIZE_FORMS}")
        return _whole(Fraction(value), value, "bytes", SIZE_FORMS)
    number, unit = _split(value, SIZE_FORMS)
    factor = _factor(unit, _SIZE_UNITS, value, SIZE_FORMS) if unit else 1
    return _whole(number * factor, value, "bytes", SIZE_FORMS)


def format_size(size: int) -> str:
    """``size`` bytes in the largest unit that keeps it a whole number: ``4096`` is ``"4KiB"``."""
    _check_not_negative(size, "size")
    return _largest_exact(size, _SIZE_UNITS) if size else "0B"


def parse_bandwidth(value: str) -> int:
    """Bits per second of ``"1Gbit/s"`` or ``"100 MiB/s"``; ``"unlimited"`` is 0.

    Units: bit/s, kbit/s ... Tbit/s (powers of ten), KiB/s, MiB/s, GiB/s (powers of two), B/s, kB/s,
    MB/s, GB/s. Raises ValueError for anything else and for a bandwidth of zero, which would never
    deliver anything.
    """
    if str(value).strip().lower() == "unlimited":
        return UNLIMITED
    number, unit = _split(value, BANDWIDTH_FORMS)
    factor = _factor(unit, _BANDWIDTH_UNITS, value, BANDWIDTH_FORMS)
    bits = _whole(number * factor, value, "bits per second", BANDWIDTH_FORMS)
    if bits == 0:
        raise ValueError(f"{value!r} would never deliver anything; write {BANDWIDTH_FORMS}")
    return bits


def format_bandwidth(bits_per_second: int) -> str:
    """Shortest exact spelling: ``10**9`` is ``"1Gbit/s"``, ``0`` is ``"unlimited"``."""
    _check_not_negative(bits_per_second, "bandwidth")
    if bits_per_second == UNLIMITED:
        return "unlimited"
    binary = {u: f for u, f in _BANDWIDTH_UNITS.items() if "iB" in u and bits_per_second % f == 0}
    exact_bits = _largest_exact(bits_per_second, _BIT_UNITS)
    if not binary:
        return exact_bits
    exact_bytes = _largest_exact(bits_per_second, binary)
    return min(exact_bits, exact_bytes, key=len)


def parse_rate(value: str, page_size: int) -> Fraction:
    """Pages per second of ``"20000 pages/s"`` or ``"80MiB/s"`` (bytes of whole pages), exactly.

    Returns a Fraction, because a byte rate need not be a whole number of pages; its denominator
    has only the factors 2 and 5. Raises ValueError for anything else.
    """
    if page_size <= 0:
        raise ValueError(f"page size must be positive, not {page_size}")
    number, unit = _split(value, RATE_FORMS)
    if unit.lower() in ("pages/s", "page/s"):
        rate = number
    else:
        rate = number * _factor(unit, _BYTE_RATE_UNITS, value, RATE_FORMS) / page_size
    if rate > _LARGEST:
        raise ValueError(f"{value!r} is too large; write {RATE_FORMS}")
    return rate


def format_rate(pages_per_second: Fraction | int) -> str:
    """``"20000 pages/s"``, with decimals where needed; ValueError if no decimal is exact."""
    _check_not_negative(pages_per_second, "rate")
    rate = Fraction(pages_per_second)
    digits, scaled = 0, rate
    while scaled.denominator != 1:
        if scaled.denominator % 2 and scaled.denominator % 5:
            raise ValueError(f"{rate} pages/s has no exact decimal form")
        digits, scaled = digits + 1, scaled * 10
    if digits == 0:
        return f"{scaled.numerator} pages/s"
    figures = str(scaled.numerator).rjust(digits + 1, "0")
    return f"{figures[:-digits]}.{figures[-digits:]} pages/s"


def parse_time_ns(value: str) -> int:
    """Nanoseconds of ``"100us"``, ``"300ms"``, ``"1.5s"``, ``"0s"`` (units ns, us, ms, s, min)."""
    number, unit = _split(value, TIME_FORMS)
    factor = _factor(unit, _TIME_UNITS, value, TIME_FORMS)
    return _whole(number * factor, value, "nanoseconds", TIME_FORMS)


def format_time_ns(nanoseconds: int) -> str:
    """``nanoseconds`` in the largest of ns, us, ms and s that keeps it a whole number."""
    _check_not_negative(nanoseconds, "time")
    if nanoseconds == 0:
        return "0s"
    units = {unit: _TIME_UNITS[unit] for unit in ("ns", "us", "ms", "s")}
    return _largest_exact(nanoseconds, units)
