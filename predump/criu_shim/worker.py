"""`criu swrk FD`: the service on a socket that the caller made, as go-criu and libcriu start it.

Requests are passed on to the simulated host's service and answers back. In between, what only makes
sense beside the caller is done here: its descriptors are opened, a task that is to be restored as
its child gets a stand-in, and descriptors that a restored task would inherit are left alone.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import ExitStack
from typing import Final

from google.protobuf.message import DecodeError

from livemigration.criu.pb import rpc_pb2
from livemigration.criu.rpc.client import RpcClient, RpcError
from livemigration.criu.rpc.log import RequestLog
from livemigration.criu.rpc.packets import Peer, peer_of
from predump.criu_shim.errors import ShimError
from predump.criu_shim.service_at import connect
from predump.criu_shim.stand_in import StandIn, stand_in

_MOST_BYTES: Final = 256 * 1024
_DIRECTORIES: Final = ("images_dir_fd", "work_dir_fd")


def serve(descriptor: int) -> int:
    """Serves the caller until it or the service ends the connection; the exit status."""
    try:
        caller = socket.socket(fileno=descriptor)
        right = caller.family == socket.AF_UNIX and caller.type == socket.SOCK_SEQPACKET
        peer = peer_of(caller)
    except OSError as error:
        raise ShimError(f"swrk {descriptor}: not a socket ({error.strerror})") from error
    if not right:
        raise ShimError(f"swrk {descriptor}: not a SEQPACKET unix socket")
    os.set_inheritable(descriptor, False)
    with caller, ExitStack() as stack:
        return _Worker(caller, peer, stack).run()


class _Worker:
    def __init__(self, caller: socket.socket, peer: Peer, stack: ExitStack) -> None:
        self._caller = caller
        self._peer = peer
        self._stack = stack
        self._service: RpcClient | None = None
        self._standing: StandIn | None = None
        self._good = False
        """Whether the last answer was a good one, after which the caller may end it."""

    def run(self) -> int:
        """Passes messages both ways."""
        while True:
            watched: list[socket.socket] = [self._caller]
            if self._service is not None:
                watched.append(self._service.socket)
            ready, _, _ = select.select(watched, [], [])
            if self._service is not None and self._service.socket in ready:
                if not self._answer():
                    return 0 if self._good else 1
            elif not self._request():
                return 0 if self._good else 1

    def _request(self) -> bool:
        """Passes one message of the caller on; False at its end."""
        try:
            raw = self._caller.recv(_MOST_BYTES)
        except OSError:
            return False
        if not raw:
            return False
        self._good = False
        try:
            request = rpc_pb2.RpcRequest.FromString(raw)
        except DecodeError:
            return False
        try:
            if self._service is None:
                self._service = self._stack.enter_context(connect())
            if request.HasField("opts") or request.type == rpc_pb2.RPC_DUMP:
                self._adapt(request)
            self._service.send(request)
        except (ShimError, RpcError) as error:
            self._refuse(request, str(error))
            return False
        return True

    def _answer(self) -> bool:
        """Passes one answer of the service back; False at its end."""
        assert self._service is not None
        try:
            answer = self._service.receive()
        except RpcError:
            return False
        if answer.type != rpc_pb2.RPC_NOTIFY:
            self._good = answer.success
        if answer.type == rpc_pb2.RPC_RESTORE and answer.success and self._standing is not None:
            self._standing.go()
        return self._tell(answer)

    def _tell(self, answer: rpc_pb2.RpcResponse) -> bool:
        try:
            self._caller.sendall(answer.SerializeToString())
        except OSError:
            return False
        return True

    def _adapt(self, request: rpc_pb2.RpcRequest) -> None:
        """Makes a request of the caller's one of this process. Raises ShimError."""
        options = request.opts
        if not options.HasField("pid"):
            options.pid = self._peer.pid
        for name in _DIRECTORIES:
            number = getattr(options, name)
            if options.HasField(name) and number >= 0:
                setattr(options, name, self._open(name, number))
        options.ClearField("inherit_fd")
        if options.rst_sibling and request.type == rpc_pb2.RPC_RESTORE:
            self._standing = self._stack.enter_context(stand_in(sibling=True))
            options.stand_in = self._standing.pid
        options.ClearField("rst_sibling")

    def _open(self, name: str, number: int) -> int:
        path = f"/proc/{self._peer.pid}/fd/{number}"
        try:
            mine = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ShimError(f"can't open {name} {number} ({path}): {error.strerror}") from error
        self._stack.callback(os.close, mine)
        return mine

    def _refuse(self, request: rpc_pb2.RpcRequest, why: str) -> None:
        """Tells the caller, and the log that it will look into, why nothing was done."""
        answer = rpc_pb2.RpcResponse(type=request.type, success=False)
        answer.cr_errmsg = f"Error (predump): {why}"
        if request.type == rpc_pb2.RPC_RESTORE:
            answer.restore.pid = -1
        options = request.opts
        number = options.work_dir_fd if options.HasField("work_dir_fd") else options.images_dir_fd
        if options.log_file and "/" not in options.log_file and number >= 0:
            self._log(number, options.log_file, why)
        self._tell(answer)

    def _log(self, directory: int, name: str, why: str) -> None:
        try:
            log = RequestLog.create(self._open("directory", directory), name, 1)
        except (OSError, ShimError):
            return
        log.error(why)
        log.close()
