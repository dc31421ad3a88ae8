"""One connection of CRIU's RPC, from its first request to its end.

Who may ask what, and what ends a connection, is CRIU's (criu/cr-service.c): one request for each
connection, except that ``keep_open`` keeps it for requests that leave nothing behind, and that a
pre-dump is followed by more of them until the dump. A client that asks for notifications
(``notify_scripts``) is told of each point that is reached, and must answer before anything goes on.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from livemigration.criu.pb import rpc_pb2
from livemigration.criu.rpc.errors import PeerGone, RpcFailure
from livemigration.criu.rpc.host import Host
from livemigration.criu.rpc.log import RequestLog
from livemigration.criu.rpc.options import opened
from livemigration.criu.rpc.packets import PacketSocket

_KEPT_OPEN = frozenset(
    {
        rpc_pb2.RPC_PAGE_SERVER,
        rpc_pb2.RPC_PAGE_SERVER_CHLD,
        rpc_pb2.RPC_CPUINFO_DUMP,
        rpc_pb2.RPC_CPUINFO_CHECK,
        rpc_pb2.RPC_FEATURE_CHECK,
        rpc_pb2.RPC_VERSION,
    }
)
"""Requests after which a connection may stay open."""

_WITHOUT_ERRNO = frozenset(
    {
        rpc_pb2.RPC_PRE_DUMP,
        rpc_pb2.RPC_SINGLE_PRE_DUMP,
        rpc_pb2.RPC_PAGE_SERVER,
        rpc_pb2.RPC_WAIT_PID,
    }
)
"""CRIU answers these without: what serves them is a process of its own, whose errno is lost."""


@dataclass(frozen=True, slots=True)
class ClientNotifier:
    """Notifications over the connection that asked for them; none are sent if it did not."""

    packets: PacketSocket
    wanted: bool

    async def reached(self, point: str, pid: int = 0) -> None:
        """See `host.Notifier`."""
        if not self.wanted:
            return
        answer = rpc_pb2.RpcResponse(type=rpc_pb2.RPC_NOTIFY, success=True)
        answer.notify.script = point
        if pid:
            answer.notify.pid = pid
        await self.packets.send(answer.SerializeToString())
        reply = _parsed(await self.packets.receive())
        if reply.type != rpc_pb2.RPC_NOTIFY or not reply.notify_success:
            raise RpcFailure(f"the client reported that its script {point} failed")


class Session:
    """Serves one connection for a host."""

    def __init__(self, packets: PacketSocket, host: Host) -> None:
        self._packets = packets
        self._host = host

    async def serve(self) -> None:
        """Until the connection's end. Raises PeerGone where the client ended it too early."""
        message = await self._packets.receive()
        while True:
            request = _parsed(message)
            if request.keep_open and request.type not in _KEPT_OPEN:
                raise PeerGone(
                    f"keep_open is not possible with request {_name(request)}; it is refused"
                )
            if not await self._answer(request) or not request.keep_open:
                return
            message = await self._packets.receive()

    async def _answer(self, request: rpc_pb2.RpcRequest) -> bool:
        """Serves one request; whether it went well."""
        if request.HasField("control"):
            return await self._control(request)
        match request.type if request.HasField("type") else rpc_pb2.RPC_EMPTY:
            case rpc_pb2.RPC_VERSION:
                return await self._version()
            case rpc_pb2.RPC_FEATURE_CHECK:
                return await self._features(request)
            case rpc_pb2.RPC_CHECK:
                return await self._check(request)
            case rpc_pb2.RPC_PRE_DUMP:
                return await self._pre_dumps(request)
            case rpc_pb2.RPC_SINGLE_PRE_DUMP:
                return await self._pre_dump(request)
            case rpc_pb2.RPC_DUMP:
                return await self._dump(request)
            case rpc_pb2.RPC_RESTORE:
                return await self._restore(request)
            case rpc_pb2.RPC_PAGE_SERVER | rpc_pb2.RPC_PAGE_SERVER_CHLD:
                return await self._page_server(request)
            case rpc_pb2.RPC_WAIT_PID:
                return await self._wait(request)
            case rpc_pb2.RPC_CPUINFO_DUMP | rpc_pb2.RPC_CPUINFO_CHECK:
                # A simulated task has no processor that a restore could miss.
                failure = RpcFailure("simulated tasks have no cpuinfo image", errno.ENOTSUP)
                return await self._send(_answer_to(request.type), failure)
            case _:
                return await self._send(_answer_to(rpc_pb2.RPC_EMPTY), RpcFailure("Invalid req"))

    async def _send(
        self,
        answer: rpc_pb2.RpcResponse,
        failure: RpcFailure | None = None,
        log: RequestLog | None = None,
    ) -> bool:
        """Sends an answer; whether it is a good one."""
        answer.success = failure is None
        if failure is not None:
            if failure.errno and answer.type not in _WITHOUT_ERRNO:
                answer.cr_errno = failure.errno
            first = log.first_error if log is not None else ""
            answer.cr_errmsg = first or f"Error (predump): {failure.message}"
        await self._packets.send(answer.SerializeToString())
        return failure is None

    # -- requests that touch no task

    async def _version(self) -> bool:
        version = self._host.version
        answer = _answer_to(rpc_pb2.RPC_VERSION)
        answer.version.major_number = version.major
        answer.version.minor_number = version.minor
        if version.sublevel:
            answer.version.sublevel = version.sublevel
        return await self._send(answer)

    async def _features(self, request: rpc_pb2.RpcRequest) -> bool:
        asked, has = request.features, self._host.features
        answer = _answer_to(rpc_pb2.RPC_FEATURE_CHECK)
        # All of them are answered; those that were not asked for are "no", as CRIU says it.
        answer.features.mem_track = asked.mem_track and has.mem_track
        answer.features.lazy_pages = asked.lazy_pages and has.lazy_pages
        answer.features.pidfd_store = asked.pidfd_store and has.pidfd_store
        return await self._send(answer)

    async def _check(self, request: rpc_pb2.RpcRequest) -> bool:
        # A check opens no directory: many clients give none.
        answer = _answer_to(rpc_pb2.RPC_CHECK)
        try:
            await self._host.check()
        except RpcFailure as failure:
            return await self._send(answer, failure)
        return await self._send(answer)

    async def _control(self, request: rpc_pb2.RpcRequest) -> bool:
        answer = _answer_to(rpc_pb2.RPC_EMPTY)
        try:
            answer.tasks.extend(await self._host.control(request.control))
        except RpcFailure as failure:
            return await self._send(answer, failure)
        return await self._send(answer)

    async def _wait(self, request: rpc_pb2.RpcRequest) -> bool:
        answer = _answer_to(rpc_pb2.RPC_WAIT_PID)
        try:
            answer.status = await self._waited(request.pid)
        except RpcFailure as failure:
            return await self._send(answer, failure)
        return await self._send(answer)

    async def _waited(self, pid: int) -> int:
        """Waits for the host, but not longer than the client does."""
        waiting = asyncio.ensure_future(self._host.wait(pid))
        gone = asyncio.ensure_future(self._packets.receive())
        try:
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            gone.result()
            raise PeerGone("a message came while the client waits for a process")
        finally:
            for task in (waiting, gone):
                task.cancel()
            await asyncio.gather(waiting, gone, return_exceptions=True)

    # -- dumps and restores

    async def _pre_dumps(self, request: rpc_pb2.RpcRequest) -> bool:
        """Pre-dumps on one connection, up to the dump that ends them."""
        while request.type == rpc_pb2.RPC_PRE_DUMP:
            if not await self._pre_dump(request):
                return False
            request = _parsed(await self._packets.receive())
        if request.type != rpc_pb2.RPC_DUMP:
            failure = RpcFailure(f"Bad req seq: {_name(request)} after a pre-dump")
            return await self._send(_answer_to(rpc_pb2.RPC_EMPTY), failure)
        return await self._dump(request)

    async def _pre_dump(self, request: rpc_pb2.RpcRequest) -> bool:
        answer = _answer_to(request.type)
        log: RequestLog | None = None
        try:
            with opened(request.opts, self._packets.peer) as (asked, log):
                try:
                    await self._host.pre_dump(asked, log)
                    log.info("Pre-dumping finished successfully")
                except RpcFailure as failure:
                    log.error(failure.message)
                    log.error("Pre-dumping FAILED.")
                    raise
        except RpcFailure as failure:
            return await self._send(answer, failure, log)
        return await self._send(answer)

    async def _dump(self, request: rpc_pb2.RpcRequest) -> bool:
        answer = _answer_to(rpc_pb2.RPC_DUMP)
        answer.dump.restored = False
        log: RequestLog | None = None
        try:
            with opened(request.opts, self._packets.peer) as (asked, log):
                try:
                    notify = ClientNotifier(self._packets, asked.notify)
                    await self._host.dump(asked, log, notify)
                    log.info("Dumping finished successfully")
                except RpcFailure as failure:
                    log.error(failure.message)
                    log.error("Dumping FAILED.")
                    raise
        except RpcFailure as failure:
            return await self._send(answer, failure, log)
        return await self._send(answer)

    async def _restore(self, request: rpc_pb2.RpcRequest) -> bool:
        answer = _answer_to(rpc_pb2.RPC_RESTORE)
        answer.restore.pid = -1
        log: RequestLog | None = None
        try:
            with opened(request.opts, self._packets.peer) as (asked, log):
                try:
                    notify = ClientNotifier(self._packets, asked.notify)
                    answer.restore.pid = await self._host.restore(asked, log, notify)
                    log.info("Restore finished successfully. Tasks resumed.")
                except RpcFailure as failure:
                    log.error(failure.message)
                    log.error("Restoring FAILED.")
                    raise
        except RpcFailure as failure:
            return await self._send(answer, failure, log)
        return await self._send(answer)

    async def _page_server(self, request: rpc_pb2.RpcRequest) -> bool:
        answer = _answer_to(rpc_pb2.RPC_PAGE_SERVER)  # CRIU answers both kinds so
        log: RequestLog | None = None
        try:
            with opened(request.opts, self._packets.peer) as (asked, log):
                try:
                    server = await self._host.start_page_server(asked, log)
                except RpcFailure as failure:
                    log.error(failure.message)
                    raise
                answer.ps.pid, answer.ps.port = server.pid, server.port
        except RpcFailure as failure:
            return await self._send(answer, failure, log)
        return await self._send(answer)


def _answer_to(kind: rpc_pb2.RpcType.ValueType) -> rpc_pb2.RpcResponse:
    return rpc_pb2.RpcResponse(type=kind, success=True)


def _parsed(message: bytes) -> rpc_pb2.RpcRequest:
    try:
        return rpc_pb2.RpcRequest.FromString(message)
    except DecodeError as error:
        raise PeerGone("a message is no request of CRIU's RPC") from error


def _name(request: rpc_pb2.RpcRequest) -> str:
    return rpc_pb2.RpcType.Name(request.type).removeprefix("RPC_")
