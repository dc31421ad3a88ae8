"""A Mosquitto for nodes under test, which can die and come back on its port."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from livemigration.errors import MigrationError

# Below the ports that the kernel gives to outgoing connections, so that nobody takes it meanwhile.
_PORTS = range(15000, 32000)
_START_S = 10.0
_POLL_S = 0.02


class BrokerFailed(MigrationError):
    """There is no Mosquitto here, or it does not start."""


class Broker:
    """One process; configuration and log in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """As nodes take it."""
        return f"mqtt://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Starts it, on the port it had if it had one."""
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin"])
        program = shutil.which("mosquitto", path=path)
        if program is None:
            raise BrokerFailed("mosquitto is missing: apt install mosquitto")
        for port in [self.port] if self.port else random.sample(_PORTS, 20):
            if await self._start_on(program, port):
                self.port = port
                return
        raise BrokerFailed("mosquitto did not start")

    async def _start_on(self, program: str, port: int) -> bool:
        config = self._folder / "mosquitto.conf"
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        self._process = await asyncio.create_subprocess_exec(
            program,
            *("-c", str(config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        deadline = asyncio.get_running_loop().time() + _START_S
        while self._process.returncode is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(_POLL_S)
        await self.kill()
        return False

    async def kill(self) -> None:
        """kill -9."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
