"""Two hosts that are containers, and what lies between them: faults through the Docker API.

Runs as the service ``faults`` of docker-compose.yml, with the engine's socket. The hosts are the
services ``fault-source`` and ``fault-dest``, with a broker of their own. Both are on two networks:
``link`` is the cable that migrations use, with this container in the middle of it (`link`,
`relay`); ``default`` is where the hosts are asked beside the cable.

Addresses are asked of the engine, not of its name server: a name is on all networks that a service
is on, and one that is gone for the moment is asked of the name servers of the world.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from livemigration.channel import open_channel, why
from predump.faults.clock import ClockFile
from predump.faults.disk import FullDisk
from predump.faults.docker_project import Project
from predump.faults.lab import NotHere, OnCable
from predump.faults.link import Gate, Link
from predump.faults.relay import Relay

SOURCE = "fault-source"
DESTINATION = "fault-dest"
BROKER = "fault-broker"
CABLE = "link"
BESIDE = "default"
PORTS = {SOURCE: 50051, DESTINATION: 50052}
STATE = Path("/state")
READY_S = 120.0
"""The first start on another kind of processor than the image's compiles."""

_POLL_S = 0.05
_T = TypeVar("_T")


def warn(text: str) -> None:
    """What a user should know, beside the results."""
    print(f"predump: {text}", file=sys.stderr)


class DockerLaboratory(OnCable):
    """Made whole on entering; as it was found on leaving, with the containers running."""

    ready_s = READY_S

    def __init__(
        self,
        project: Callable[[], Project] = Project.here,
        *,
        state: Path = STATE,
        say: Callable[[str], None] = warn,
    ) -> None:
        """`state`: where the destination's state directory is mounted here; `say`: is told that a
        fault is done in another way than docs/faults.md says.
        """
        super().__init__()
        self._find_project = project
        self._disk = FullDisk(state)
        self._say = say
        self._behind = Gate(self._link, "")
        self._beside = {name: Gate(Link(), "") for name in PORTS}
        self._clock: ClockFile | None = None
        self._one_at_a_time = asyncio.Lock()
        self._shaped = False
        self._stack = AsyncExitStack()
        self.source = self.destination = ""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._project = await asyncio.to_thread(self._find_project)
            stack.callback(self._project.close)
            clock = os.environ.get("PREDUMP_CLOCK")
            if clock:
                self._clock = ClockFile(Path(clock))
            stack.push_async_callback(self._make_good)
            await self._make_good()
            for gate in (*self._beside.values(), self._behind):
                stack.push_async_callback(gate.close)
            self.source = await self._beside[SOURCE].open()
            self.destination = await self._beside[DESTINATION].open()
            self._relay = Relay(await self._behind.open())
            stack.push_async_callback(self._relay.close)
            before = Gate(self._link, await self._relay.open())
            stack.push_async_callback(before.close)
            self.between = await before.open(await self._ask(self._project.own_address, CABLE))
            await self.ready()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _make_good(self) -> None:
        """Whatever an earlier run may have left broken, too."""
        for service in (SOURCE, DESTINATION, BROKER):
            await self._ask(self._project.resume, service)
            await self._start(service)
        await self.free_disk()
        await self.heal_link()
        if self._clock is not None:
            self._clock.jump(0)

    async def _ask(self, call: Callable[..., _T], *arguments: str) -> _T:
        """The engine, which is asked one thing at a time."""
        async with self._one_at_a_time:
            return await asyncio.to_thread(call, *arguments)

    # -- hosts

    async def kill_source(self) -> None:
        """SIGKILL of all that the container runs."""
        await self._ask(self._project.kill, SOURCE)

    async def start_source(self) -> None:
        """The same container again, and waits until it serves; nothing if it runs."""
        await self._start(SOURCE)
        await self._serves(self.source)

    async def kill_destination(self) -> None:
        """SIGKILL of all that the container runs."""
        await self._ask(self._project.kill, DESTINATION)

    async def start_destination(self) -> None:
        """The same container again with its volume; nothing if it runs."""
        await self._start(DESTINATION)
        await self._serves(self.destination)

    async def _start(self, service: str) -> None:
        await self._ask(self._project.start, service)
        if service in PORTS:
            # It may have another address than before.
            address = await self._ask(self._project.address, service, BESIDE)
            self._beside[service].target = f"{address}:{PORTS[service]}"
        if service == DESTINATION and await self._ask(self._project.connected, service, CABLE):
            await self._find_on_cable()

    async def _find_on_cable(self) -> None:
        address = await self._ask(self._project.address, DESTINATION, CABLE)
        self._behind.target = f"{address}:{PORTS[DESTINATION]}"

    async def _serves(self, address: str) -> None:
        async with open_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                async with asyncio.timeout(READY_S):
                    while True:
                        try:
                            await stub.Check(health_pb2.HealthCheckRequest(), timeout=READY_S)
                            return
                        except grpc.aio.AioRpcError as error:
                            said = why(error)
                        await asyncio.sleep(_POLL_S)
            except TimeoutError as error:
                raise NotHere(f"the node at {address} does not serve: {said}") from error

    async def pause(self, role: str) -> None:
        """The container's processes are frozen."""
        await self._ask(self._project.pause, _service(role))

    async def resume(self, role: str) -> None:
        """They go on, if they were."""
        await self._ask(self._project.resume, _service(role))

    # -- the link

    async def cut_link(self) -> None:
        """The gates end all connections and let none be made; then the destination is taken off the
        network. (In this order, since it would not hear of their end any more.)
        """
        self._link.sever()
        await self._link.idle()
        await self._ask(self._project.disconnect, DESTINATION, CABLE)

    async def silence_link(self) -> None:
        """The destination's interface has no carrier any more, and the gates pass nothing on."""
        self._link.silence()
        await self._set_carrier("down")

    async def slow_link(self, rate: int) -> None:
        """A token bucket on what either host sends. Without that in the kernel: the gates."""
        self._shaped = True
        for service in PORTS:
            device = await self._ask(self._project.device, service, CABLE)
            bucket = ("root", "tbf", "rate", f"{rate}bps", "burst", "256kb", "latency", "50ms")
            try:
                await self._ask(
                    self._project.root, service, "tc", "qdisc", "replace", "dev", device, *bucket
                )
            except NotHere as error:
                self._say(f"{error}; the gates slow the link down in its place")
                self._link.slow(rate)
                return

    async def heal_link(self) -> None:
        """Plugged in, with a carrier, as fast as it goes."""
        if not await self._ask(self._project.connected, DESTINATION, CABLE):
            await self._ask(self._project.connect, DESTINATION, CABLE)
        await self._find_on_cable()
        await self._set_carrier("up")
        if self._shaped:
            await self._unshape()
        self._link.heal()

    async def _set_carrier(self, state: str) -> None:
        device = await self._ask(self._project.device, DESTINATION, CABLE)
        await self._ask(self._project.root, DESTINATION, "ip", "link", "set", device, state)

    async def _unshape(self) -> None:
        for service in PORTS:
            device = await self._ask(self._project.device, service, CABLE)
            shown = await self._ask(
                self._project.root, service, "tc", "qdisc", "show", "dev", device
            )
            if " tbf " in shown:
                await self._ask(
                    self._project.root, service, "tc", "qdisc", "del", "dev", device, "root"
                )
        self._shaped = False

    # -- what is around them

    async def lose_broker(self) -> None:
        """SIGKILL."""
        await self._ask(self._project.kill, BROKER)

    async def bring_broker(self) -> None:
        """The same container again."""
        await self._ask(self._project.start, BROKER)

    async def fill_disk(self) -> None:
        """The destination's state directory is on a file system without one free block."""
        await asyncio.to_thread(self._disk.fill)

    async def free_disk(self) -> None:
        """The blocks are free again."""
        await asyncio.to_thread(self._disk.free)

    async def jump_clock(self, seconds: int) -> None:
        """The wall clock of both nodes is wrong by so much from now on."""
        if self._clock is None:
            raise NotHere("the nodes have no clock of their own: PREDUMP_CLOCK is not set")
        self._clock.jump(seconds)


def _service(role: str) -> str:
    return SOURCE if role == "source" else DESTINATION
