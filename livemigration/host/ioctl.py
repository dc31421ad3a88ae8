"""How Linux numbers ioctls (include/uapi/asm-generic/ioctl.h; x86-64, arm64 and riscv alike)."""

from __future__ import annotations

_WRITE = 1
_READ = 2


def _number(direction: int, kind: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | kind << 8 | number


def ior(kind: int, number: int, size: int) -> int:
    """_IOR: the name says that the kernel writes; UFFDIO_UNREGISTER has it though it reads."""
    return _number(_READ, kind, number, size)


def iowr(kind: int, number: int, size: int) -> int:
    """_IOWR: the kernel reads the argument of `size` bytes and writes it back."""
    return _number(_READ | _WRITE, kind, number, size)
