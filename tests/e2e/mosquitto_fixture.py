"""A real Mosquitto for tests: its own configuration and port, stopped when the test is over.

with running_broker(tmp_path) as broker:
    ... broker.url ...
    broker.kill(); broker.start()        # same port, as an operator would restart it
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgpack

# Below the ports that the kernel gives to outgoing connections (32768 and up): nobody takes one of
# these by chance while a broker is down, and a client cannot end up connected to itself.
_PORTS = range(15000, 32000)
_START_S = 10.0
_MARK = "mark/"


class BrokerProgramMissing(Exception):
    pass


def program(name: str) -> str:
    """Path of a Mosquitto program; also where only root's PATH has it."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise BrokerProgramMissing(f"{name} is missing: apt install mosquitto mosquitto-clients")
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
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it: on the port it had, or the first time on one that is free."""
        if self.port:
            if not self._start_on(self.port):
                raise RuntimeError(f"mosquitto did not start again:\n{self._log.read_text()}")
            return
        for port in random.sample(_PORTS, 20):
            # Whoever loses a race for the port sees its mosquitto end, and takes another.
            if _free(port) and self._start_on(port):
                self.port = port
                return
        raise RuntimeError(f"mosquitto did not start:\n{self._log.read_text()}")

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
            if not topic.startswith(_MARK)
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


@dataclass(frozen=True, slots=True)
class Heard:
    """One message as mosquitto_sub got it."""

    topic: str
    qos: int
    retained: bool
    payload: dict[str, object]


class Listener:
    """mosquitto_sub beside a test: another implementation of MQTT than the one under test."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self._news = asyncio.Event()

    def on(self, kind: str) -> list[dict[str, object]]:
        """Payloads of the topics that end with `kind`, in the order of their arrival."""
        return [heard.payload for heard in self.heard if heard.topic.endswith(f"/{kind}")]

    async def until(self, holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait until `holds()`, looking again at each message."""
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s:g} s; heard {self.heard[-20:]}") from None

    async def take(self, output: asyncio.StreamReader) -> None:
        async for raw in output:
            topic, qos, retained, payload = raw.decode().rstrip("\n").split(" ")
            decoded = msgpack.unpackb(bytes.fromhex(payload)) if payload else None
            fields = decoded if isinstance(decoded, dict) else {}
            self.heard.append(Heard(topic, int(qos), retained == "1", fields))
            self._news.set()


@asynccontextmanager
async def listening(broker: Broker, topics: str = "predump/#") -> AsyncIterator[Listener]:
    """A Listener whose subscription the broker has taken."""
    mark = _MARK + secrets.token_hex(4)
    address = ["-h", "127.0.0.1", "-p", str(broker.port), "-q", "1"]
    publish = [program("mosquitto_pub"), *address, "-t", mark, "-r"]
    process = await asyncio.create_subprocess_exec(*publish, "-m", "0")
    assert await process.wait() == 0
    # The mark is retained, so it arrives as soon as the subscriptions stand.
    subscribe = [program("mosquitto_sub"), *address, "-t", topics, "-t", mark]
    process = await asyncio.create_subprocess_exec(
        *subscribe, "-F", "%t %q %r %x", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    listener = Listener()
    task = asyncio.create_task(listener.take(process.stdout))
    try:
        await listener.until(lambda: any(heard.topic == mark for heard in listener.heard))
        yield listener
    finally:
        process.kill()
        await process.wait()
        await task


class Gate:
    """A TCP relay to a broker that can be shut, so that a test says when the way is open again."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._pipes: set[asyncio.Task[None]] = set()
        self.open = True
        self.port = 0

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def shut(self) -> None:
        """Break what goes through, and let nothing through any more."""
        self.open = False
        for pipe in self._pipes:
            pipe.cancel()

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        try:
            if self.open:
                there = await asyncio.open_connection("127.0.0.1", self._broker.port)
                try:
                    async with asyncio.TaskGroup() as group:
                        up = group.create_task(_copy(reader, there[1]))
                        group.create_task(_copy(there[0], writer)).add_done_callback(
                            lambda _: up.cancel()
                        )
                finally:
                    there[1].close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._pipes.discard(task)
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()


@asynccontextmanager
async def gate_to(broker: Broker) -> AsyncIterator[Gate]:
    """A Gate, open."""
    gate = Gate(broker)
    server = await asyncio.start_server(gate.relay, "127.0.0.1", 0)
    gate.port = server.sockets[0].getsockname()[1]
    try:
        yield gate
    finally:
        gate.shut()
        server.close()
        await server.wait_closed()


async def run_tool(
    name: str, broker: Broker | None, *arguments: str, stdin: bytes | None = None
) -> bytes:
    """Output of one of Mosquitto's tools, pointed at `broker`."""
    address = ["-h", "127.0.0.1", "-p", str(broker.port)] if broker is not None else []
    process = await asyncio.create_subprocess_exec(
        program(name),
        *address,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await process.communicate(stdin)
    return output
