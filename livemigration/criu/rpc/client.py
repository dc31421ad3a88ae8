"""A client of CRIU's RPC: one connection, one request at a time, blocking.

Imports nothing heavy: `predump criu shim` starts with it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from google.protobuf.message import DecodeError

from livemigration.criu.pb import rpc_pb2

_MOST_BYTES = 256 * 1024

Notified = Callable[[str, int], bool]
"""Called with the point that was reached and a pid (0: none); whether to go on."""


class NoService(OSError):
    """Nobody answers at a socket; one line that says what to do."""


class RpcError(Exception):
    """A connection that ended without an answer, or what was answered cannot be read."""


def _go_on(_point: str, _pid: int) -> bool:
    return True


class RpcClient:
    """A connection to a service. Closes it in the end."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    @classmethod
    def connect(cls, path: Path | str) -> RpcClient:
        """Connects to the service at `path`. Raises NoService."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            raise NoService(
                f"no service at {path} ({error.strerror or error}); start one with `predump criu "
                f"service --socket {path}`"
            ) from error
        return cls(connection)

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()

    def __enter__(self) -> Self:
        """The connection, closed after the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes it."""
        self.close()

    def send(self, request: rpc_pb2.RpcRequest) -> None:
        """Sends a request and waits for nothing."""
        try:
            self.socket.sendall(request.SerializeToString())
        except OSError as error:
            raise RpcError(f"the service is gone: {error.strerror or error}") from error

    def receive(self) -> rpc_pb2.RpcResponse:
        """The next answer or notification. Raises RpcError if there is none."""
        try:
            data = self.socket.recv(_MOST_BYTES)
        except OSError as error:
            raise RpcError(f"the service is gone: {error.strerror or error}") from error
        if not data:
            raise RpcError("the service closed the connection without an answer")
        try:
            return rpc_pb2.RpcResponse.FromString(data)
        except DecodeError as error:
            raise RpcError("what the service answered is no message of CRIU's RPC") from error

    def ask(self, request: rpc_pb2.RpcRequest, notified: Notified = _go_on) -> rpc_pb2.RpcResponse:
        """The answer to `request`; `notified` is asked at each notification before it."""
        self.send(request)
        while True:
            answer = self.receive()
            if answer.type != rpc_pb2.RPC_NOTIFY:
                return answer
            good = notified(answer.notify.script, answer.notify.pid)
            self.send(rpc_pb2.RpcRequest(type=rpc_pb2.RPC_NOTIFY, notify_success=good))
