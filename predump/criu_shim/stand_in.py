"""A real process that stands for a restored task: what a tool finds under the task's pid.

Container tools look at the process that they restored: its start time, its cgroups, and its end.
The stand-in is a child of the shim's own parent (CLONE_PARENT, as CRIU's --restore-sibling) or of
nobody, does nothing but wait for the task's end at the service, and ends in the same way.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from livemigration.criu.pb import rpc_pb2
from livemigration.criu.rpc.client import RpcError
from predump.criu_shim.errors import ShimError
from predump.criu_shim.service_at import connect

_CLONE_PARENT: Final = 0x8000
_SYS_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_GO: Final = b"g"


@dataclass(slots=True)
class StandIn:
    """A process that waits to be told that its task is there."""

    pid: int
    _pipe: int
    _told: bool = False

    def go(self) -> None:
        """The task was restored: the process stands for it from now on."""
        os.write(self._pipe, _GO)
        self._told = True


@contextmanager
def stand_in(*, sibling: bool) -> Iterator[StandIn]:
    """A stand-in, which ends with the block unless it was told to `go`."""
    ours, theirs = os.pipe()
    pid = _clone(_CLONE_PARENT if sibling else 0)
    if pid == 0:
        _be(ours)
    os.close(ours)
    try:
        yield StandIn(pid, theirs)
    finally:
        os.close(theirs)


def _clone(flags: int) -> int:
    """fork(), and with CLONE_PARENT as a child of this process' parent."""
    if not flags:
        return os.fork()
    number = _SYS_CLONE.get(platform.machine())
    if number is None:
        raise ShimError(f"--restore-sibling is not possible on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_long(0)
    pid = libc.syscall(
        ctypes.c_long(number), ctypes.c_long(flags | signal.SIGCHLD), zero, zero, zero, zero
    )
    if pid < 0:
        raise ShimError(f"can't fork a sibling: {os.strerror(ctypes.get_errno())}")
    return int(pid)


def _be(pipe: int) -> None:
    """The stand-in's life. Does not return."""
    status = 1
    try:
        pid = os.getpid()
        limit = os.sysconf("SC_OPEN_MAX")
        # Whoever reads what the command says waits until nobody has the pipe any more.
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        os.closerange(3, pipe)
        os.closerange(pipe + 1, limit)
        if os.read(pipe, 1) == _GO:
            with connect() as service:
                answer = service.ask(rpc_pb2.RpcRequest(type=rpc_pb2.RPC_WAIT_PID, pid=pid))
            status = answer.status if answer.success else 1 << 8
            if os.WIFSIGNALED(status):
                os.kill(pid, os.WTERMSIG(status))
            status = os.waitstatus_to_exitcode(status)
    except (OSError, RpcError, ShimError):
        status = 1  # the service is gone, and the task with it
    finally:
        os._exit(status)
