"""A host of simulated tasks that serves CRIU's RPC, and programs that ask it."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from livemigration.criu.rpc.service import serving
from predump.criu_host.host import HostConfig, SimulatedHost
from predump.criu_shim.install import install
from predump.scenario import Scenario, scenario_from_mapping


def scenario() -> Scenario:
    return scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "name": "store",
            "memory": "1MiB",
            "workload": {"kind": "hotspot", "rate": "400 pages/s"},
        }
    )


@asynccontextmanager
async def simulated(
    folder: Path, config: HostConfig | None = None
) -> AsyncIterator[tuple[SimulatedHost, dict[str, str]]]:
    """A host that serves, and the environment in which `criu` is ours and asks it."""
    host = SimulatedHost(config)
    path = folder / "criu.socket"
    shim = install(folder / "bin")
    environment = {
        **os.environ,
        "PREDUMP_CRIU_SOCKET": str(path),
        "PATH": f"{shim.parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
    }
    try:
        async with serving(path, host):
            yield host, environment
    finally:
        await host.close()


async def ran(
    *command: object, environment: dict[str, str], folder: Path, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Runs a command while the host serves it."""
    done = await asyncio.to_thread(
        subprocess.run,
        [str(part) for part in command],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, f"{done.args}: {done.stdout}{done.stderr}"
    return done
