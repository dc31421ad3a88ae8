"""A Mosquitto on a free port, with a configuration of its own, gone when the test is over.

    with running_broker(tmp_path) as broker:
        ... broker.url ...
        broker.kill(); broker.start()        # same port, as an operator would restart it

The programs are Debian's packages mosquitto and mosquitto-clients.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgpack

# Below the ports that the kernel gives to outgoing connections (32768 and up): nobody takes one of
# these by chance while a broker is down, and a client cannot end up connected to itself.
_PORTS: Final = range(15000, 32000)
_START_S: Final = 60.0

MARK: Final = "mark/"
"""Topics that a test's own listener uses; `Broker.retained` leaves them out."""


class BrokerError(AssertionError):
    """A broker that cannot be had."""


def program(name: str) -> str:
    """Path of a Mosquitto program; also where only root's PATH has it."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise BrokerError(f"{name} is missing: apt install mosquitto mosquitto-clients")
    return found


class Broker:
    """One Mosquitto on 127.0.0.1. `config` is appended to its configuration file."""

    def __init__(self, folder: Path, *, persistence: bool = False, config: str = "") -> None:
        self._folder = folder
        self._persistence = persistence
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "mosquitto.log"
        self.port = 0

    @property
    def url(self) -> str:
        """As `--mqtt` takes it."""
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it: on the port it had, or the first time on one that is free."""
        if self.port:
            if not self._start_on(self.port):
                raise BrokerError(f"mosquitto did not start again:\n{self._log.read_text()}")
            return
        for port in random.sample(_PORTS, 20):
            # Whoever loses a race for the port sees its mosquitto end, and takes another.
            if _free(port) and self._start_on(port):
                self.port = port
                return
        raise BrokerError(f"mosquitto did not start:\n{self._log.read_text()}")

    def stop(self) -> None:
        """End it in good order, so that it saves what it is to keep."""
        self._end(kill=False)

    def kill(self) -> None:
        """kill -9."""
        self._end(kill=True)

    def retained(self, topics: str = "#", *, wait_s: int = 1) -> dict[str, dict[str, object]]:
        """Decoded payloads of all retained messages, as mosquitto_sub gets them, by topic."""
        command = [program("mosquitto_sub"), "-h", "127.0.0.1", "-p", str(self.port)]
        command += ["-t", topics, "-q", "1", "--retained-only", "-W", str(wait_s), "-F", "%t %x"]
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        lines = [line.split(" ") for line in output.splitlines()]
        return {
            topic: msgpack.unpackb(bytes.fromhex(payload))
            for topic, payload in lines
            if not topic.startswith(MARK)
        }

    def _start_on(self, port: int) -> bool:
        lines = [
            f"listener {port} 127.0.0.1",
            "allow_anonymous true",
            f"user {'root' if os.geteuid() == 0 else 'mosquitto'}",
            f"log_dest file {self._log}",
            f"persistence {'true' if self._persistence else 'false'}",
            f"persistence_location {self._folder}/",
            self._config,
        ]
        path = self._folder / "mosquitto.conf"
        path.write_text("\n".join(lines) + "\n")
        self._log.write_text("")
        self._process = subprocess.Popen(
            [program("mosquitto"), "-c", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self._process = None
                return False
            # Its own word, as another process could be the one that listens there.
            if " running" in self._log.read_text() and not _free(port):
                return True
            time.sleep(0.01)
        self.kill()
        return False

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(_START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def running_broker(
    folder: Path, *, persistence: bool = False, config: str = ""
) -> Iterator[Broker]:
    """A Broker that runs now and is gone, whatever happened to it, when the context ends."""
    broker = Broker(folder, persistence=persistence, config=config)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()
