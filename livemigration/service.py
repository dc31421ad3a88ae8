"""What every node's process has: a gRPC server with health checking and reflection, started and
stopped.

The server listens before anything is announced, so the address given out is the real one (port 0
chooses a free port). SIGTERM and SIGINT end it gracefully.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from livemigration.channel import SERVER_OPTIONS

log = logging.getLogger(__name__)

GRACE_S = 2.0
"""How long calls under way may still take when the server stops."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True, slots=True)
class ListenConfig:
    """Where a node listens. `address` is ``HOST:PORT``; port 0 takes a free one."""

    address: str = "127.0.0.1:0"
    credentials: grpc.ServerCredentials | None = None
    port_file: Path | None = None  # gets "HOST:PORT" once the node serves


class CannotListen(ValueError):
    """The address is taken, or none, or cannot be announced."""


def keep_freed_memory() -> None:
    """Tells glibc to keep what a message's buffer took, for the next message.

    Otherwise each received batch is mapped, faulted in page by page and given back, which costs
    about a quarter of the throughput (docs/benchmarks.md). Other C libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)


def default_host_id(role: str, listen: ListenConfig) -> str:
    """A name for a node that was given none: role, host, and port (or process id)."""
    port = split_address(listen.address)[1]
    return f"{role}-{socket.gethostname()}-{port or os.getpid()}"


def split_address(address: str) -> tuple[str, int]:
    """``HOST:PORT`` -> (host, port); ValueError with what is allowed."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not an address; write HOST:PORT, port 0 for a free one")
    return host, int(port)


async def serve(
    listen: ListenConfig,
    add_services: Callable[[grpc.aio.Server], tuple[str, ...]],
    *,
    on_ready: Callable[[str], None],
    close: Callable[[], Awaitable[None]],
    stop: asyncio.Event | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> None:
    """Serves until a signal comes or `stop` is set. `add_services` returns the services' full
    names.
    """
    keep_freed_memory()
    host, port = split_address(listen.address)
    check_free(listen.address)
    server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=list(interceptors))
    checker = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    names = add_services(server)
    reflection.enable_server_reflection(
        (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    try:
        if listen.credentials is None:
            bound = server.add_insecure_port(listen.address)
        else:
            bound = server.add_secure_port(listen.address, listen.credentials)
    except RuntimeError as error:
        raise CannotListen(
            f"cannot listen on {listen.address}: it is taken or not an address of this host"
        ) from error
    if bound == 0 and port != 0:
        raise CannotListen(f"cannot listen on {listen.address}")
    address = f"{host}:{bound}"
    stopping = stop if stop is not None else asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await server.start()
    try:
        for name in ("", *names):
            await checker.set(name, health_pb2.HealthCheckResponse.SERVING)
        if listen.port_file is not None:
            _write_atomically(listen.port_file, address + "\n")
        on_ready(address)
        await stopping.wait()
    finally:
        await checker.enter_graceful_shutdown()
        await close()
        await server.stop(GRACE_S)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        if listen.port_file is not None:
            with suppress(OSError):
                listen.port_file.unlink(missing_ok=True)


def check_free(address: str) -> None:
    """`CannotListen` with the system's reason, which gRPC only writes to its own log."""
    host, port = split_address(address)
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            host.removeprefix("[").removesuffix("]"),
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
        with socket.socket(family, kind) as probe:
            # As gRPC's own socket: connections that ended lately do not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise CannotListen(f"cannot listen on {address}: {error.strerror}") from error


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CannotListen(f"port file {path}: {error.strerror}") from error
