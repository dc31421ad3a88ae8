"""Runs a simulated host until it is told to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from livemigration.criu.rpc.service import MOST_CONNECTIONS, serving
from livemigration.units import format_size
from predump.criu_host.host import HostConfig, SimulatedHost
from predump.scenario import Scenario


async def serve_host(
    socket: Path,
    config: HostConfig,
    scenarios: Sequence[tuple[Scenario, int]],
    say: Callable[[str], None],
) -> None:
    """Serves at `socket`, with a task for each (scenario, pid), until SIGTERM or SIGINT.

    `say` gets a line for each task and one when clients may come. Raises RpcFailure, CannotServe.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # A client whose page server does not answer must not keep the others waiting.
    loop.set_default_executor(ThreadPoolExecutor(MOST_CONNECTIONS))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    host = SimulatedHost(config)
    try:
        for scenario, pid in scenarios:
            task = await host.start(scenario, pid)
            size = format_size(task.spec.memory)
            say(f"task {task.pid}: {task.name}, {size}, {task.clock} clock")
        async with serving(socket, host):
            say(f"predump criu service listening on {socket}")
            await stop.wait()
    finally:
        await host.close()
