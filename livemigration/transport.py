"""What a migration needs of the other host, whatever lies in between.

The source's migration loop speaks to this interface; `source_node.grpc_transport` implements it
over gRPC, and tests and sweeps over a receiver in the same process. Frames and results are the
same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from livemigration.v1 import common_pb2, destination_node_pb2


class PageSource(Protocol):
    """The pages that a post-copy left behind. Any thread may call it."""

    def serve(self, request: destination_node_pb2.PageRequest) -> bytes:
        """The frame that answers; `BadRequest` if there is none."""
        ...

    def compare(self, pages: destination_node_pb2.MemoryChunk) -> None:
        """Looks whether the destination has what it was sent."""
        ...


class Transport(Protocol):
    """The destination, as the source sees it. Methods raise `MigrationError` with one line."""

    async def prepare(
        self,
        migration_id: str,
        task: dict[str, Any],
        *,
        base_dir: str,
        clock: str,
        extra_pages: int,
        resident_pages: int,
    ) -> None:
        """Asks for room for the task, which has `resident_pages` now, and opens the transfer."""
        ...

    async def send(self, sequence: int, frame: bytes) -> None:
        """Sends one frame; returns when it may be forgotten by the caller (not when it is applied).

        At most a bounded number of frames is under way; beyond it, this waits.
        """
        ...

    async def flush(self) -> None:
        """Returns when every frame sent is applied at the destination."""
        ...

    async def verify(
        self, chunks: AsyncIterator[destination_node_pb2.VerifyChunk]
    ) -> destination_node_pb2.VerifyReply:
        """Has the destination compare its memory with the source's digests."""
        ...

    def read_back(self) -> AsyncIterator[destination_node_pb2.MemoryChunk]:
        """The destination's memory."""
        ...

    async def open_pages(
        self,
        server: PageSource,
        pace: Callable[[int], Awaitable[None]],
        patience_ns: int,
    ) -> None:
        """Post-copy, before commit: from now on the destination may ask for pages.

        `pace` returns when so many bytes may go out; a stream that breaks is opened again for
        `patience_ns`.
        """
        ...

    async def pages_over(self) -> common_pb2.PostCopyRecord:
        """Returns when the destination needs no more pages, or cannot go on (`halted`).

        Raises `DestinationLost`.
        """
        ...

    async def commit(self, memory_digest: str) -> destination_node_pb2.MigrationStatus:
        """Hands the task over. `CommitInDoubt` if no answer came."""
        ...

    async def abort(self, reason: str) -> None:
        """Tells the destination to forget the task; never raises."""
        ...

    async def settle(self) -> common_pb2.OwnershipState.ValueType:
        """What became of a commit in doubt: COMMITTED, or anything else for never.

        Raises `DestinationLost` if the destination does not answer.
        """
        ...

    async def continue_to(self, workload_ns: int) -> destination_node_pb2.ContinueReply:
        """Lets the task run at the destination until its own time is `workload_ns`."""
        ...

    async def close(self) -> None:
        """Ends the transfer stream and the connection."""
        ...
