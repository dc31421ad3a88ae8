"""Descriptors of other processes: sockets that a client has, and processes as descriptors."""

from __future__ import annotations

import ctypes
import os
import socket
from typing import Final

from livemigration.criu.rpc.errors import BadOptions

_SYS_PIDFD_GETFD: Final = 438


def borrowed_socket(pid: int, number: int) -> socket.socket:
    """A copy of the connected stream socket that process `pid` has as `number`.

    Raises BadOptions. The kernel allows it to who may trace that process.
    """
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        raise BadOptions(f"page server fd {number}: no process {pid}: {error.strerror}") from error
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = (ctypes.c_long(value) for value in (_SYS_PIDFD_GETFD, process, number, 0))
        copy = int(libc.syscall(*arguments))
        reason = os.strerror(ctypes.get_errno())
    finally:
        os.close(process)
    if copy < 0:
        raise BadOptions(f"page server fd {number} of process {pid}: {reason}")
    try:
        borrowed = socket.socket(fileno=copy)
    except OSError as error:
        os.close(copy)
        raise BadOptions(f"page server fd {number} is no socket: {error.strerror}") from error
    if borrowed.type != socket.SOCK_STREAM:
        borrowed.close()
        raise BadOptions(f"page server fd {number} is no stream socket")
    return borrowed
