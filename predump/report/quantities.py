"""Values of scenario keys as numbers with a unit, for axes; and numbers as text, for labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from livemigration.units import (
    format_size,
    parse_bandwidth,
    parse_rate,
    parse_size,
    parse_time_ns,
)

Unit = str
"""What a number counts: "pages/s", "bit/s", "B", "s" or "" (nothing but itself)."""

_SIZES = (
    *("memory", "page_size", "encoding.cache"),
    *("workload.working_set", "workload.write_size", "workload.arena"),
)


def quantity(key: str, value: Any, page_size: int = 4096) -> tuple[float, Unit] | None:
    """The number that a key's value stands for, with its unit; None if it stands for none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value), "B" if key in _SIZES else ""
    if not isinstance(value, str):
        return None
    readings: tuple[tuple[Callable[[str], float], Unit], ...] = (
        (lambda text: parse_time_ns(text) / 1e9, "s"),
        (lambda text: float(parse_bandwidth(text)), "bit/s"),
        (lambda text: float(parse_rate(text, page_size)), "pages/s"),
        (lambda text: float(parse_size(text)), "B"),
    )
    if key == "workload.rate":  # bytes per second are pages there
        readings = (readings[2],)
    for read, unit in readings:
        try:
            return read(value), unit
        except ValueError:
            continue
    return None


def shown(value: Any, unit: Unit = "") -> str:
    """A value for a label: ``1 Gbit/s``, ``64 MiB``, ``10k pages/s``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if unit == "bit/s":
        return "unlimited" if value == 0 else f"{short(float(value), ' ')}bit/s"
    if unit == "B":
        return _spaced(format_size(int(value)))
    if unit == "s":
        return seconds(float(value))
    if unit == "pages/s":
        return f"{short(float(value))} pages/s"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _spaced(text: str) -> str:
    """``64MiB`` as ``64 MiB``."""
    at = next((k for k, letter in enumerate(text) if letter.isalpha()), len(text))
    return f"{text[:at]} {text[at:]}"


def short(number: float, gap: str = "") -> str:
    """``31.6k``, ``2.5M``: three figures, then after `gap` a power of a thousand."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g}{gap}{letter}"
    return f"{number:.3g}{gap}"


def seconds(number: float) -> str:
    """``1.25 s``, ``31 ms``, ``87 µs``."""
    if number == 0 or number >= 1:
        return f"{number:.3g} s"
    return f"{number * 1e3:.3g} ms" if number >= 1e-3 else f"{number * 1e6:.3g} µs"


def mebibytes(size: float) -> str:
    """``12.5 MiB``."""
    return f"{size / 2**20:.3g} MiB" if size < 1000 * 2**20 else f"{size / 2**30:.3g} GiB"
