"""The dashboard from start to end: its feed, its server, and nodes of its own if it was given none.

Ctrl-C and SIGTERM end it in good order: streams end, nodes that it started are stopped.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from livemigration.service import CannotListen, split_address
from livemigration.telemetry.address import parse_broker_url
from livemigration.telemetry.messages import Topics
from livemigration.tls import channel_credentials
from predump.dashboard.board import LiveBoard
from predump.dashboard.control import Control
from predump.dashboard.feed import FeedState, follow_broker, follow_node
from predump.dashboard.finished import Finished
from predump.dashboard.guard import Guard, is_loopback
from predump.dashboard.web import Dashboard, application
from predump.hosts import LocalHosts, NodeFailed
from predump.runner import Hosts

GRACE_S = 3
_WAITING = 64
_ROOM = 2**30
"""Memory that nodes of our own are made for: what fits twice is kept in shared memory."""


@dataclass(frozen=True, slots=True)
class DashboardConfig:
    """How a dashboard is started.

    `hosts`: the nodes to act on; with neither these nor a broker it starts two of its own.
    """

    listen: str = "127.0.0.1:7080"
    mqtt: str = ""
    hosts: Hosts | None = None
    results: Sequence[Path] = ()
    scenarios: Path | None = None
    names: Sequence[str] = ()
    allow_control: bool = False
    port_file: Path | None = None


class _Server(uvicorn.Server):
    """uvicorn's server, whose process has signal handlers of its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: uvicorn would end the process by the signal again, before the nodes end."""
        yield


async def serve_dashboard(config: DashboardConfig, on_ready: Callable[[str], None]) -> None:
    """Serves until a signal comes. `on_ready` gets the page's address. CannotListen."""
    host, _ = split_address(config.listen)
    listening = _listen(config.listen)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        stack.callback(listening.close)
        hosts = config.hosts
        if hosts is None and not config.mqtt:
            allowed = [str(config.scenarios.resolve())] if config.scenarios is not None else []
            try:
                local = await stack.enter_async_context(LocalHosts(_ROOM, policies=allowed))
            except TimeoutError as error:
                raise NodeFailed("the nodes did not start in time") from error
            hosts = Hosts(local.source.address, local.dest.address)
        finished = Finished(config.results)
        control = None
        if hosts is not None and (config.allow_control or is_loopback(host)):
            control = Control(hosts, finished, config.scenarios)
            stack.push_async_callback(control.close)
        address = parse_broker_url(config.mqtt) if config.mqtt else None
        board = LiveBoard(Topics(address.prefix if address is not None else ""))
        feed = FeedState("MQTT" if address is not None else "gRPC")
        server = _Server(
            uvicorn.Config(
                application(
                    Dashboard(
                        board,
                        feed,
                        finished,
                        control,
                        Guard((host, *config.names)),
                        ending=stopping.is_set,
                    )
                ),
                log_level="error",
                access_log=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        async with asyncio.TaskGroup() as tasks:
            feeds = []
            if address is not None:
                feeds.append(tasks.create_task(follow_broker(address, board, feed)))
            elif hosts is not None:
                credentials = channel_credentials(hosts.tls) if hosts.tls is not None else None
                feeds += [
                    tasks.create_task(follow_node(node, credentials, board, feed))
                    for node in (hosts.source, hosts.dest)
                ]
            serving = tasks.create_task(server.serve([listening]))
            bound = f"{host}:{listening.getsockname()[1]}"
            if config.port_file is not None:
                _announce(config.port_file, bound)
                stack.callback(config.port_file.unlink, missing_ok=True)
            on_ready(f"http://{bound}/")
            await stopping.wait()
            server.should_exit = True
            await serving
            for task in feeds:
                task.cancel()


def _announce(port_file: Path, address: str) -> None:
    try:
        port_file.write_text(address + "\n")
    except OSError as error:
        raise CannotListen(f"port file {port_file}: {error.strerror}") from error


def _listen(address: str) -> socket.socket:
    """The listening socket, so that port 0 and a port that is taken are known at once."""
    host, port = split_address(address)
    host = host.removeprefix("[").removesuffix("]")
    listening = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_WAITING)  # who comes before the server is ready waits
    except OSError as error:
        if listening is not None:
            listening.close()
        raise CannotListen(f"cannot listen on {address}: {error.strerror}") from error
    return listening
