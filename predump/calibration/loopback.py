"""A bare TCP connection over loopback: what no protocol on this host can beat."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

from predump.calibration.sample import Sample

_MESSAGE = 1 << 20

_RECEIVER = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection, _ = server.accept()
    with connection:
        room = bytearray(1 << 20)
        left = int(sys.argv[1])
        while left:
            got = connection.recv_into(room)
            if not got:
                break
            left -= got
        connection.sendall(b"e")
"""


def measure_loopback(size: int, repeats: int) -> Sample:
    """Real time of `size` bytes from one process to another, to the last byte's answer, per KiB."""
    values = [_once(size) * 1024 / size for _ in range(repeats)]
    return Sample(
        f"{size >> 20} MiB through a bare TCP connection over loopback", "ns per KiB", values
    )


def _once(size: int) -> int:
    with subprocess.Popen(
        [sys.executable, "-c", _RECEIVER, str(size)], stdout=subprocess.PIPE
    ) as receiver:
        assert receiver.stdout is not None
        port = int(receiver.stdout.readline())
        message = bytes(_MESSAGE)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            start = time.monotonic_ns()
            left = size
            while left:
                part = memoryview(message)[: min(left, _MESSAGE)]
                connection.sendall(part)
                left -= len(part)
            connection.recv(1)
            return time.monotonic_ns() - start
