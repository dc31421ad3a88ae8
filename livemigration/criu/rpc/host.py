"""What a service needs of the host that it speaks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from livemigration.criu.pb import rpc_pb2
from livemigration.criu.rpc.log import RequestLog
from livemigration.criu.rpc.options import Request


@dataclass(frozen=True, slots=True)
class Version:
    """The version of CRIU that a host answers as."""

    major: int
    minor: int
    sublevel: int

    def __str__(self) -> str:
        parts = (self.major, self.minor, self.sublevel)
        return ".".join(str(part) for part in (parts if self.sublevel else parts[:2]))


DEFAULT_VERSION = Version(4, 2, 1)


@dataclass(frozen=True, slots=True)
class Features:
    """What a host's kernel and CRIU can do."""

    mem_track: bool
    lazy_pages: bool
    pidfd_store: bool


@dataclass(frozen=True, slots=True)
class PageServerIs:
    """A page server that was started: its process (or what stands for it) and its port."""

    pid: int
    port: int


class Notifier(Protocol):
    """Tells the client which point was reached, and waits for it to go on."""

    async def reached(self, point: str, pid: int = 0) -> None:
        """`point` is CRIU's name of it. Raises RpcFailure if the client does not agree."""
        ...


class Host(Protocol):
    """A machine with tasks. Failures are RpcFailure; the journal gets what is done."""

    version: Version
    features: Features

    async def check(self) -> None:
        """Whether dumps can be made here."""
        ...

    async def pre_dump(self, request: Request, journal: RequestLog) -> None:
        """Writes the pages of a task, which runs on."""
        ...

    async def dump(self, request: Request, journal: RequestLog, notify: Notifier) -> None:
        """Writes all of a task, which ends here unless it is to be left."""
        ...

    async def restore(self, request: Request, journal: RequestLog, notify: Notifier) -> int:
        """Makes a task of images and lets it run; its pid."""
        ...

    async def start_page_server(self, request: Request, journal: RequestLog) -> PageServerIs:
        """Receives pages into a directory; returns once it listens."""
        ...

    async def control(self, control: rpc_pb2.RpcControl) -> list[rpc_pb2.RpcTask]:
        """Does what is asked to the host itself; the tasks that there are afterwards."""
        ...

    async def wait(self, pid: int) -> int:
        """Waits until a task or page server has ended; its status as waitpid gives it."""
        ...
