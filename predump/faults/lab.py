"""A place where two nodes run and things can be made to go wrong.

`Laboratory` is what a fault needs of such a place; `LocalLaboratory` has the nodes as processes on
this machine, behind a link and a relay of its own. Signals go to processes that it started itself,
and to no other. (`predump.faults.docker_lab` has them in containers.)
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import grpc
import grpc.aio

from livemigration.channel import open_channel, why
from livemigration.errors import MigrationError
from livemigration.v1 import common_pb2, destination_node_pb2_grpc
from predump.faults.clock import JumpingClock
from predump.faults.link import Gate, Link
from predump.faults.relay import Relay, Watcher
from predump.hosts import NodeProcess, state_folder
from predump.testing.broker import Broker, BrokerError

READY_S = 30.0
_POLL_S = 0.05


class NotHere(MigrationError):
    """This place cannot do that."""


class Laboratory(Protocol):
    """Two hosts and what lies between them. Whatever goes wrong can be made good again."""

    @property
    def source(self) -> str:
        """The source node, HOST:PORT."""
        ...

    @property
    def destination(self) -> str:
        """The destination node as it is reached beside the link."""
        ...

    @property
    def between(self) -> str:
        """The destination as the source reaches it."""
        ...

    def watch(self, watcher: Watcher) -> None:
        """Who is told of the points of a migration from now on."""
        ...

    async def ready(self) -> None:
        """Both nodes run, and the source can reach the destination."""
        ...

    async def kill_source(self) -> None:
        """kill -9."""
        ...

    async def start_source(self) -> None:
        """A new process at the same address; nothing if it runs."""
        ...

    async def kill_destination(self) -> None:
        """kill -9."""
        ...

    async def start_destination(self) -> None:
        """A new process at the same address, with the same state directory; nothing if it runs."""
        ...

    async def pause(self, role: str) -> None:
        """ "source" or "destination" does nothing any more."""
        ...

    async def resume(self, role: str) -> None:
        """It goes on."""
        ...

    async def cut_link(self) -> None:
        """Connections end, and none can be made."""
        ...

    async def silence_link(self) -> None:
        """Nothing passes, and nobody is told."""
        ...

    async def slow_link(self, rate: int) -> None:
        """So many bytes per second."""
        ...

    async def heal_link(self) -> None:
        """As it was."""
        ...

    async def lose_broker(self) -> None:
        """kill -9 of the broker."""
        ...

    async def bring_broker(self) -> None:
        """It is started again."""
        ...

    async def fill_disk(self) -> None:
        """The destination can write no more to its state directory."""
        ...

    async def free_disk(self) -> None:
        """It can again."""
        ...

    async def jump_clock(self, seconds: int) -> None:
        """The wall clock of both hosts is wrong by so much from now on."""
        ...


class OnCable(ABC):
    """A laboratory with the link and the relay in this process, wherever its hosts are."""

    ready_s = READY_S
    """How long the hosts may take until one can be reached from the other."""

    def __init__(self) -> None:
        self._link = Link()
        self._relay: Relay | None = None
        self.between = ""

    @abstractmethod
    async def start_source(self) -> None:
        """See `Laboratory`."""

    @abstractmethod
    async def start_destination(self) -> None:
        """See `Laboratory`."""

    def watch(self, watcher: Watcher) -> None:
        """Who is told of the points of a migration from now on."""
        assert self._relay is not None
        self._relay.watcher = watcher

    async def ready(self) -> None:
        """Starts what does not run, and waits until the destination answers through the link."""
        await self.start_source()
        await self.start_destination()
        await reached(self.between, self.ready_s)


class LocalLaboratory(OnCable):
    """Processes on this machine, started on entering and stopped on leaving."""

    def __init__(self, memory: int, *, broker: bool = False, clock: bool = False) -> None:
        """`memory`: of the largest task; `broker`, `clock`: whether one is needed."""
        super().__init__()
        self._memory = memory
        self._with_broker = broker
        self._with_clock = clock
        self._broker: Broker | None = None
        self._clock: JumpingClock | None = None
        self._gates: list[Gate] = []
        self._stopped: set[int] = set()

    async def __aenter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="predump-faults-"))
        self.state_dir = state_folder(self._memory)
        self.source_node = NodeProcess("source", self.folder)
        self.destination_node = NodeProcess(
            "dest", self.folder, ["--state-dir", str(self.state_dir)]
        )
        try:
            if self._with_clock:
                self._clock = await asyncio.to_thread(JumpingClock, self.folder)
                for node in (self.source_node, self.destination_node):
                    node.environment = self._clock.environment
            if self._with_broker:
                self._broker = Broker(self.folder)
                await self._start_broker(self._broker)
                for node in (self.source_node, self.destination_node):
                    node.arguments = [*node.arguments, "--mqtt", self._broker.url]
            await asyncio.gather(self.source_node.start(), self.destination_node.start())
            behind = Gate(self._link, self.destination_node.address)
            self._relay = Relay(await behind.open())
            before = Gate(self._link, await self._relay.open())
            self._gates = [behind, before]
            self.between = await before.open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        for role in ("source", "destination"):
            await self.resume(role)
        for gate in self._gates:
            await gate.close()
        if self._relay is not None:
            await self._relay.close()
        await asyncio.gather(self.source_node.stop(), self.destination_node.stop())
        if self._broker is not None:
            await asyncio.to_thread(self._broker.kill)
        shutil.rmtree(self.state_dir, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def source(self) -> str:
        """The source node, HOST:PORT."""
        return self.source_node.address

    @property
    def destination(self) -> str:
        """The destination node as it is reached beside the link."""
        return self.destination_node.address

    # -- hosts

    async def kill_source(self) -> None:
        """kill -9."""
        await _kill(self.source_node)

    async def start_source(self) -> None:
        """A new process on the same port; nothing if it runs."""
        await _start(self.source_node)

    async def kill_destination(self) -> None:
        """kill -9."""
        await _kill(self.destination_node)

    async def start_destination(self) -> None:
        """A new process on the same port with the same directory; nothing if it runs."""
        await _start(self.destination_node)

    async def pause(self, role: str) -> None:
        """SIGSTOP."""
        pid = self._pid(role)
        if pid is not None:
            self._stopped.add(pid)
            os.kill(pid, signal.SIGSTOP)

    async def resume(self, role: str) -> None:
        """SIGCONT, if it was paused."""
        pid = self._pid(role)
        if pid in self._stopped:
            self._stopped.discard(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _pid(self, role: str) -> int | None:
        node = self.source_node if role == "source" else self.destination_node
        process = node.process
        return process.pid if process is not None and process.returncode is None else None

    # -- the link

    async def cut_link(self) -> None:
        """Connections end, and none can be made."""
        self._link.sever()

    async def silence_link(self) -> None:
        """Nothing passes, and nobody is told."""
        self._link.silence()

    async def slow_link(self, rate: int) -> None:
        """So many bytes per second."""
        self._link.slow(rate)

    async def heal_link(self) -> None:
        """As it was."""
        self._link.heal()

    # -- what is around them

    async def lose_broker(self) -> None:
        """kill -9 of the broker."""
        if self._broker is None:
            raise NotHere("this laboratory has no broker")
        await asyncio.to_thread(self._broker.kill)

    async def bring_broker(self) -> None:
        """It is started again, on its port."""
        if self._broker is not None:
            await self._start_broker(self._broker)

    async def _start_broker(self, broker: Broker) -> None:
        try:
            await asyncio.to_thread(broker.start)
        except BrokerError as error:
            raise NotHere(str(error)) from error

    async def fill_disk(self) -> None:
        """No file of the destination can grow: what a full disk and a used-up quota have in common.

        A limit of its process, since a file system of its own needs rights that a test has not.
        """
        self._limit_files(0)

    async def free_disk(self) -> None:
        """Files may grow again."""
        self._limit_files(resource.RLIM_INFINITY)

    def _limit_files(self, size: int) -> None:
        pid = self._pid("destination")
        if pid is None:
            return
        _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        if most != resource.RLIM_INFINITY:
            size = min(size, most) if size != resource.RLIM_INFINITY else most
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))

    async def jump_clock(self, seconds: int) -> None:
        """The wall clock of both nodes is wrong by so much from now on."""
        if self._clock is None:
            raise NotHere("this laboratory has no clock of its own")
        self._clock.jump(seconds)


async def reached(destination: str, within_s: float = READY_S) -> None:
    """Returns when a destination node answers at this address; `NotHere` if it does not in time."""
    deadline = time.monotonic() + within_s
    async with open_channel(destination) as channel:
        stub = destination_node_pb2_grpc.DestinationNodeStub(channel)
        while True:
            try:
                await stub.Describe(common_pb2.DescribeRequest(), timeout=within_s)
                return
            except grpc.aio.AioRpcError as error:
                if time.monotonic() > deadline:
                    raise NotHere(f"the destination cannot be reached: {why(error)}") from error
            await asyncio.sleep(_POLL_S)


async def _kill(node: NodeProcess) -> None:
    process = node.process
    if process is not None and process.returncode is None:
        process.kill()
        await process.wait()


async def _start(node: NodeProcess) -> None:
    if node.process is None or node.process.returncode is not None:
        await node.start()
