"""userfaultfd, as far as asynchronous write-protection needs it.

UFFD_FEATURE_WP_ASYNC came with Linux 6.7, and works where the architecture has userfaultfd's
write-protection at all (CONFIG_HAVE_ARCH_USERFAULTFD_WP): x86-64 had it before, arm64 has it since
6.10 ("arm64/mm: Add uffd write-protect support").

With UFFD_FEATURE_WP_ASYNC nobody answers faults: the kernel itself takes the protection from a page
that is written, and PAGEMAP_SCAN tells which pages have lost it. So no message is ever read here,
and UFFD_USER_MODE_ONLY, which needs no privilege (vm.unprivileged_userfaultfd), does no harm: it
only refuses to wait in faults of the kernel itself, and with WP_ASYNC none waits.

Structures and numbers: include/uapi/linux/userfaultfd.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct

from livemigration.errors import BadRequest
from livemigration.host.ioctl import ior, iowr

UFFD_API = 0xAA
UFFD_USER_MODE_ONLY = 1
UFFD_FEATURE_WP_ASYNC = 1 << 15
UFFDIO_REGISTER_MODE_WP = 1 << 1

_API = struct.Struct("=QQQ")  # api, features, ioctls
_REGISTER = struct.Struct("=QQQQ")  # start, length, mode, ioctls
_RANGE = struct.Struct("=QQ")  # start, length

UFFDIO_API = iowr(UFFD_API, 0x3F, _API.size)
UFFDIO_REGISTER = iowr(UFFD_API, 0x00, _REGISTER.size)
UFFDIO_UNREGISTER = ior(UFFD_API, 0x01, _RANGE.size)

_SYSCALL = {"x86_64": 323}
_SYSCALL_ELSEWHERE = 282  # include/uapi/asm-generic/unistd.h: arm64, riscv, loongarch


def syscall_number() -> int:
    """Of userfaultfd(2) on this machine."""
    return _SYSCALL.get(platform.machine(), _SYSCALL_ELSEWHERE)


def _open() -> int:
    """userfaultfd(2), which the C library has no function for."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_int(os.O_CLOEXEC | UFFD_USER_MODE_ONLY)
    made: int = libc.syscall(ctypes.c_long(syscall_number()), flags)
    if made < 0:
        code = ctypes.get_errno()
        if code == errno.EPERM:
            raise BadRequest(
                "userfaultfd is not permitted (a container's seccomp profile?); allow that call"
            )
        raise BadRequest(f"userfaultfd: {os.strerror(code)}; the kernel must have it compiled in")
    return made


class Userfaultfd:
    """One userfaultfd in WP_ASYNC mode. `BadRequest` with one line where there is none."""

    def __init__(self) -> None:
        self._fd = _open()
        try:
            fcntl.ioctl(self._fd, UFFDIO_API, _API.pack(UFFD_API, UFFD_FEATURE_WP_ASYNC, 0))
        except OSError as error:
            self.close()
            raise BadRequest(
                "userfaultfd has no WP_ASYNC here; it came with Linux 6.7 on x86-64, 6.10 on arm64"
            ) from error

    def register(self, start: int, length: int) -> None:
        """Track the mapping [start, start + length); nothing is protected by it yet."""
        request = _REGISTER.pack(start, length, UFFDIO_REGISTER_MODE_WP, 0)
        fcntl.ioctl(self._fd, UFFDIO_REGISTER, request)

    def unregister(self, start: int, length: int) -> None:
        """Track it no longer; every page of it loses its protection."""
        fcntl.ioctl(self._fd, UFFDIO_UNREGISTER, _RANGE.pack(start, length))

    def close(self) -> None:
        """Ends all tracking; once is enough."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
