"""Beside a broker in a test: another implementation of MQTT, and a way to it that can be shut."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgpack

from predump.testing.broker import MARK, Broker, program


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

    def last(self, kind: str) -> dict[str, object]:
        """The newest of them; {} while there is none."""
        return next(reversed(self.on(kind)), {})

    async def until(self, holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
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
    mark = MARK + secrets.token_hex(4)
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
