"""The RPC service: a SEQPACKET unix socket on which clients ask for dumps and restores.

One bad client costs its own connection and one log line. Connections beyond a number are closed at
once, and so are those on which nothing is asked for a minute.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from livemigration.criu.rpc.errors import PeerGone
from livemigration.criu.rpc.host import Host
from livemigration.criu.rpc.packets import PacketSocket
from livemigration.criu.rpc.session import Session

MOST_CONNECTIONS = 64
"""At the same time."""

_BACKLOG = 16
_log = logging.getLogger(__name__)


class CannotServe(OSError):
    """The socket cannot be made; one line."""


def listen_at(path: Path) -> socket.socket:
    """A listening socket at `path`, which only this user may connect to.

    A socket that nobody listens on is replaced. Raises CannotServe.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        _remove_stale(path)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if isinstance(error, CannotServe):
            raise
        raise CannotServe(f"{path}: cannot listen there: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def _remove_stale(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise CannotServe(f"{path}: is there already and is no socket; name another file")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            try:
                probe.connect(str(path))
            except (ConnectionRefusedError, FileNotFoundError):
                path.unlink()
                return
            except OSError:
                raise CannotServe(
                    f"{path}: another kind of service listens there; name another file"
                ) from None
        raise CannotServe(f"{path}: another service listens there; stop it or name another file")


class Service:
    """Answers the clients of one socket for a host."""

    def __init__(self, host: Host, *, most_connections: int = MOST_CONNECTIONS) -> None:
        self._host = host
        self._most = most_connections
        self._open = 0

    async def serve(self, listener: socket.socket) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:  # out of descriptors: clients that go give some back
                    _log.warning("cannot accept a client: %s", error.strerror)
                    await asyncio.sleep(0.1)
                    continue
                if self._open >= self._most:
                    _log.warning("a client was refused: %d are connected already", self._open)
                    connection.close()
                    continue
                self._open += 1
                group.create_task(self._serve_one(connection))

    async def _serve_one(self, connection: socket.socket) -> None:
        try:
            packets = PacketSocket(connection)
        except OSError as error:
            _log.warning("a client was gone at once: %s", error.strerror)
            connection.close()
            self._open -= 1
            return
        pid = packets.peer.pid
        try:
            await Session(packets, self._host).serve()
        except PeerGone as gone:
            _log.info("client %d: %s", pid, gone)
        except Exception as error:  # noqa: BLE001  one client's trouble stays its own
            name, where = type(error).__name__, _where(error)
            _log.error("client %d: unexpected %s: %s (%s)", pid, name, error, where)
        finally:
            packets.close()
            self._open -= 1


@asynccontextmanager
async def serving(path: Path, host: Host) -> AsyncIterator[Path]:
    """Serves `host` at `path` for as long as the block lasts; removes the socket afterwards."""
    listener = listen_at(path)
    task = asyncio.create_task(Service(host).serve(listener), name="criu-rpc")
    try:
        yield path
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        listener.close()
        _remove(path)


def _where(error: BaseException) -> str:
    """Where an error came from, for a line about it."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-4:][::-1])


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
