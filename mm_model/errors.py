"""What can go wrong, as the kernel would say it.

``MmError``       a system call failed; ``errno`` says how.
``SegFault``      an access was answered with SIGSEGV (11) or SIGBUS (7).
``Livelock``      a fault that the kernel takes again and again without progress; a real machine
                  would hang.
``NotModelled``   the model does not know this part of the kernel (yet).
"""

from __future__ import annotations

import errno as _errno


class MmError(OSError):
    """A call into the model failed. ``errno`` is set and ``strerror`` is one line."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)


class SegFault(MmError):
    """The task would have got ``signal`` (11 SIGSEGV, 7 SIGBUS) for an access to ``address``."""

    def __init__(self, address: int, signal: int, message: str) -> None:
        super().__init__(_errno.EFAULT, message)
        self.address = address
        self.signal = signal


class Livelock(MmError):
    """The same fault came back ``RETRY_LIMIT`` times without progress; ``address`` is where."""

    def __init__(self, address: int, message: str) -> None:
        super().__init__(_errno.ELOOP, message)
        self.address = address


class NotModelled(MmError):
    """Asked for a part of the kernel that this model does not have yet."""

    def __init__(self, message: str) -> None:
        super().__init__(_errno.EOPNOTSUPP, message)
