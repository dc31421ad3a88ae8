"""Connections of the page-server protocol: made to a server, or taken on a port.

A real page server serves one connection and exits, and the next one is started for the next round:
`connect` waits for it. `Listener` takes any number of connections, a few at a time, each in a
thread of its own; what is beyond waits to be accepted.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from livemigration.criu.page_server.channel import Channel, PeerLost
from livemigration.criu.page_server.protocol import PageServerError
from livemigration.errors import BadRequest, MigrationError
from livemigration.service import CannotListen, split_address

log = logging.getLogger(__name__)

_TRY_AGAIN_S: Final = 0.05
_BACKLOG: Final = 16
_STOP_S: Final = 5.0


def connect(
    address: str,
    *,
    wait_s: float,
    patience_s: float,
    tls: ssl.SSLContext | None = None,
) -> Channel:
    """A connection to ``HOST:PORT``, tried until `wait_s` are over.

    Raises PageServerError if nobody listens or TLS fails, BadRequest if it is no address.
    """
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    give_up = time.monotonic() + wait_s
    while True:
        try:
            left = max(give_up - time.monotonic(), _TRY_AGAIN_S)
            plain = socket.create_connection((_bare(host), port), timeout=left)
            break
        except OSError as error:
            if time.monotonic() + _TRY_AGAIN_S > give_up or isinstance(error, socket.gaierror):
                why = error.strerror or str(error)
                raise PageServerError(
                    f"no page server at {address} within {wait_s:g} s: {why}. A real one serves "
                    "one round and exits: start the next one with --prev-images-dir"
                ) from None
            time.sleep(_TRY_AGAIN_S)
    if tls is None:
        return Channel(plain, patience_s)
    try:
        plain.settimeout(patience_s)
        return Channel(tls.wrap_socket(plain, server_hostname=_bare(host)), patience_s)
    except (OSError, ssl.CertificateError) as error:
        plain.close()
        raise PageServerError(f"{address}: TLS failed: {_tls_reason(error)}") from None


def listen(address: str) -> socket.socket:
    """A socket that listens at ``HOST:PORT``. Raises CannotListen."""
    try:
        host, port = split_address(address)
        family, kind, _, _, place = socket.getaddrinfo(
            _bare(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind)
    except ValueError as error:
        raise CannotListen(str(error)) from None
    except OSError as error:
        raise CannotListen(f"cannot listen on {address}: {error.strerror}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise CannotListen(f"cannot listen on {address}: {error.strerror}") from None
    return listening


def accept(
    listening: socket.socket, patience_s: float, tls: ssl.SSLContext | None
) -> tuple[Channel, str]:
    """The next connection, after its TLS handshake, and whose it is. Raises PeerLost, OSError."""
    connection, peer = listening.accept()
    return _wrapped(connection, patience_s, tls), _name(peer)


def _wrapped(connection: socket.socket, patience_s: float, tls: ssl.SSLContext | None) -> Channel:
    if tls is None:
        return Channel(connection, patience_s)
    try:
        connection.settimeout(patience_s)
        return Channel(tls.wrap_socket(connection, server_side=True), patience_s)
    except OSError as error:
        connection.close()
        raise PeerLost(f"TLS failed: {_tls_reason(error)}") from None


def _tls_reason(error: OSError | ssl.CertificateError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return error.strerror or str(error)


def _bare(host: str) -> str:
    return host.removeprefix("[").removesuffix("]")


def _name(peer: tuple[object, ...] | str) -> str:
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else peer or "a local peer"


class Listener:
    """Serves a port until it is closed.

    `serve` gets each connection, in a thread; what it raises is one line in the log and the end of
    that connection.
    """

    def __init__(
        self,
        address: str,
        serve: Callable[[Channel, str], None],
        *,
        most: int,
        patience_s: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Listens at once. `most`: connections at a time. Raises CannotListen."""
        self._serve = serve
        self._patience_s = patience_s
        self._tls = tls
        self._free = threading.Semaphore(most)
        self._listening = listen(address)
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket | Channel] = {}
        self._closed = False
        host = split_address(address)[0]
        self.address = f"{host}:{self._listening.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept_all, name="page-server", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Ends all connections and their threads."""
        with self._lock:
            self._closed = True
            open_now = dict(self._connections)
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in open_now.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # its thread closes it
        self._free.release()
        for thread in (self._accepting, *open_now):
            thread.join(_STOP_S)

    def _accept_all(self) -> None:
        while True:
            self._free.acquire()
            try:
                connection, peer = self._listening.accept()
            except OSError as error:
                if self._closed:
                    return
                # Too many files, for example: that passes when other connections end.
                log.warning("page server: cannot accept: %s", error.strerror)
                self._free.release()
                time.sleep(_TRY_AGAIN_S)
                continue
            thread = threading.Thread(
                target=self._run, args=(connection, _name(peer)), name="page-server", daemon=True
            )
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._connections[thread] = connection
            thread.start()

    def _run(self, connection: socket.socket, peer: str) -> None:
        try:
            with connection, _wrapped(connection, self._patience_s, self._tls) as channel:
                with self._lock:
                    self._connections[threading.current_thread()] = channel
                self._serve(channel, peer)
        except MigrationError as error:
            if not self._closed:
                log.warning("page server: %s: %s", peer, error)
        finally:
            with self._lock:
                del self._connections[threading.current_thread()]
            self._free.release()
