"""What goes wrong is an OSError with the kernel's errno and one line that says it."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable

import pytest

from mm_model import (
    MAP_FIXED_NOREPLACE,
    Livelock,
    MmError,
    ModelConfig,
    NotModelled,
    SegFault,
)
from tests.unit.mm_model.kernel_box import ANON_PRIVATE, BASE, RW, Region, make_machine, new_region

CALLS: list[tuple[str, Callable[[Region], object], int]] = [
    ("load", lambda r: r.mm.load(r.at(9), 1), errno.EFAULT),
    ("mmap", lambda r: r.mm.mmap(None, 0, RW, ANON_PRIVATE), errno.EINVAL),
    (
        "mmap over",
        lambda r: r.mm.mmap(r.start, 1, RW, ANON_PRIVATE | MAP_FIXED_NOREPLACE),
        errno.EEXIST,
    ),
    ("munmap", lambda r: r.mm.munmap(r.start + 1, 1), errno.EINVAL),
    ("mprotect", lambda r: r.mm.mprotect(r.at(9), 1, RW), errno.ENOMEM),
    ("mremap", lambda r: r.mm.mremap(r.at(9), 1, 1), errno.EFAULT),
    ("madvise", lambda r: r.mm.madvise(r.start, 1, 77), errno.EINVAL),
    ("huge pages", lambda r: r.mm.machine.set_mthp(8, "always"), errno.ENOENT),
    ("mlock", lambda r: r.mm.mlock(r.at(9), 1), errno.ENOMEM),
    ("clear_refs", lambda r: r.mm.clear_refs(9), errno.EINVAL),
    ("pagemap", lambda r: r.mm.pagemap(r.start + 1, 1), errno.EINVAL),
    ("mem", lambda r: r.mm.gup_write(r.at(9), b"x"), errno.EIO),
    ("object", lambda r: r.mm.machine.create_shared(-1), errno.EINVAL),
    ("no object", lambda r: r.mm.machine.close_shared(5), errno.EBADF),
    ("swapon", lambda r: r.mm.machine.swapon(), errno.EBUSY),
]


@pytest.mark.parametrize(
    ("call", "number"), [call[1:] for call in CALLS], ids=[call[0] for call in CALLS]
)
def test_errno_and_one_line(call: Callable[[Region], object], number: int) -> None:
    region = new_region(make_machine(), 1)
    with pytest.raises(MmError) as caught:
        call(region)
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == number
    assert caught.value.strerror
    assert "\n" not in caught.value.strerror
    assert len(caught.value.strerror) < 100


def test_each_kind_is_an_mm_error() -> None:
    assert SegFault(BASE, 11, "x").errno == errno.EFAULT
    assert Livelock(BASE, "x").errno == errno.ELOOP
    assert NotModelled("x").errno == errno.EOPNOTSUPP
    for kind in (SegFault, Livelock, NotModelled):
        assert issubclass(kind, MmError)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"page_size": 8192}, "page_size 8192: must be one of 4096, 16384, 65536"),
        ({"kernel": "5.4"}, "kernel profile '5.4': must be one of 6.12, 6.1, seed"),
        ({"frames": -1}, "frames and swap_slots must not be negative"),
        ({"swap_slots": -1}, "frames and swap_slots must not be negative"),
    ],
)
def test_a_bad_setting_says_what_is_allowed(settings: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        ModelConfig(**settings)  # type: ignore[arg-type]
