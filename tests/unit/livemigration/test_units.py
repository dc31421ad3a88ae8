"""Quantities: what people may write, what it comes to exactly, and what is refused."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemigration.units import (
    UNLIMITED,
    format_bandwidth,
    format_rate,
    format_size,
    format_time_ns,
    parse_bandwidth,
    parse_rate,
    parse_size,
    parse_time_ns,
)

WHOLE = st.integers(min_value=0, max_value=2**63 - 1)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MiB", 268435456),
        ("256 MiB", 268435456),
        (" 4KiB ", 4096),
        ("1.5GiB", 1610612736),
        ("2GiB", 2147483648),
        ("4096", 4096),
        ("4096B", 4096),
        ("1_024KiB", 1048576),
        ("64mib", 67108864),
        (4096, 4096),
        (4096.0, 4096),
        (0, 0),
    ],
)
def test_sizes(text: str | int | float, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("1Gbit/s", 10**9),
        ("1 gbit/s", 10**9),
        ("2.5Gbit/s", 2_500_000_000),
        ("100 MiB/s", 838_860_800),
        ("125MB/s", 10**9),
        ("1bit/s", 1),
        ("unlimited", UNLIMITED),
        ("Unlimited", UNLIMITED),
    ],
)
def test_bandwidths_are_bits_per_second(text: str, bits: int) -> None:
    assert parse_bandwidth(text) == bits


@pytest.mark.parametrize(
    ("text", "page_size", "rate"),
    [
        ("20000 pages/s", 4096, Fraction(20000)),
        ("20000pages/s", 65536, Fraction(20000)),
        ("0.5 pages/s", 4096, Fraction(1, 2)),
        ("1 page/s", 4096, Fraction(1)),
        ("80MiB/s", 4096, Fraction(20480)),
        ("80MiB/s", 65536, Fraction(1280)),
        ("1kB/s", 4096, Fraction(1000, 4096)),
    ],
)
def test_rates_are_pages_per_second(text: str, page_size: int, rate: Fraction) -> None:
    assert parse_rate(text, page_size) == rate


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("100us", 100_000),
        ("100\u00b5s", 100_000),
        ("100\u03bcs", 100_000),
        ("300ms", 300_000_000),
        ("1.5s", 1_500_000_000),
        ("2min", 120_000_000_000),
        ("7ns", 7),
        ("0s", 0),
    ],
)
def test_times_are_nanoseconds(text: str, nanoseconds: int) -> None:
    assert parse_time_ns(text) == nanoseconds


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("", "is not understood"),
        ("MiB", "is not understood"),
        ("-4KiB", "is not understood"),
        ("4KiB4", "is not understood"),
        ("\u0664KiB", "is not understood"),
        ("1e3", "is not understood"),
        ("0x1000", "is not understood"),
        ("256MB", "unknown unit 'MB'"),
        ("256Mb", "unknown unit 'Mb'"),
        ("0.3B", "not a whole number of bytes"),
        ("9999999999TiB", "too large"),
        (-1, "is not a size"),
        (1.5, "not a whole number of bytes"),
        (float("nan"), "is not a size"),
        (float("inf"), "is not a size"),
        (True, "is not a size"),
        (None, "is not a size"),
        ("9" * 100, "is not understood"),
    ],
)
def test_what_is_no_size_is_refused_in_one_line(value: object, part: str) -> None:
    with pytest.raises(ValueError, match="64KiB") as caught:
        parse_size(value)  # type: ignore[arg-type]
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("1Gb/s", "unknown unit 'Gb/s'"),
        ("1Gbps", "unknown unit 'Gbps'"),
        ("1mb/s", "unknown unit 'mb/s'"),
        ("1000", "has no unit"),
        ("0Mbit/s", "never deliver"),
        ("0.5bit/s", "not a whole number of bits per second"),
        ("none", "is not understood"),
        (1000, "is not a quantity"),
    ],
)
def test_what_is_no_bandwidth_is_refused(text: object, part: str) -> None:
    with pytest.raises(ValueError, match="unlimited") as caught:
        parse_bandwidth(text)  # type: ignore[arg-type]
    assert part in str(caught.value)


@pytest.mark.parametrize("text", ["20000", "20000 pages", "5 pages/min", "80Mbit/s", "-1 pages/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="pages/s"):
        parse_rate(text, 4096)


def test_a_rate_needs_a_page_size() -> None:
    with pytest.raises(ValueError, match="page size must be positive"):
        parse_rate("1MiB/s", 0)


@pytest.mark.parametrize("text", ["300", "300 minutes", "0.1ns", "soon", "1h", "-1s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="300ms"):
        parse_time_ns(text)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_size(268435456), "256MiB"),
        (format_size(4097), "4097B"),
        (format_bandwidth(10**9), "1Gbit/s"),
        (format_bandwidth(838_860_800), "100MiB/s"),
        (format_bandwidth(0), "unlimited"),
        (format_rate(20000), "20000 pages/s"),
        (format_rate(Fraction(1, 4)), "0.25 pages/s"),
        (format_time_ns(300_000_000), "300ms"),
        (format_time_ns(0), "0s"),
    ],
)
def test_quantities_are_shown_in_their_largest_exact_unit(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_third_of_a_page_has_no_decimal_form() -> None:
    with pytest.raises(ValueError, match="no exact decimal form"):
        format_rate(Fraction(1, 3))


@pytest.mark.parametrize("form", [format_size, format_bandwidth, format_rate, format_time_ns])
def test_nothing_negative_is_shown(form: object) -> None:
    with pytest.raises(ValueError, match="cannot be negative"):
        form(-1)  # type: ignore[operator]


@given(WHOLE)
def test_every_size_is_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(WHOLE)
def test_every_bandwidth_is_read_back(bits: int) -> None:
    assert parse_bandwidth(format_bandwidth(bits)) == bits


@given(WHOLE)
def test_every_time_is_read_back(nanoseconds: int) -> None:
    assert parse_time_ns(format_time_ns(nanoseconds)) == nanoseconds


@given(
    st.integers(min_value=0, max_value=2**40),
    st.sampled_from(["B/s", "KiB/s", "MB/s", "pages/s"]),
    st.sampled_from([4096, 16384, 65536]),
)
def test_every_rate_that_can_be_written_is_read_back(number: int, unit: str, page: int) -> None:
    rate = parse_rate(f"{number} {unit}", page)
    assert parse_rate(format_rate(rate), page) == rate


@given(st.text(max_size=80))
def test_any_text_is_a_quantity_or_refused_in_one_line(text: str) -> None:
    for parse in (parse_size, parse_bandwidth, parse_time_ns, lambda t: parse_rate(t, 4096)):
        try:
            value = parse(text)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert value >= 0
