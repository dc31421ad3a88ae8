"""A migration whose rounds go to CRIU page servers, as `criu pre-dump` and `criu dump` send theirs.

Rounds, tracker, policy, clocks and link are those of every migration; only the other end is
another. A page server takes pages and nothing else: it cannot verify, and nobody there takes the
task over. So the task stays here and goes on, as after `criu dump --leave-running`; what arrived
can be compared with it while it is still frozen, if the server's images can be read.

A real page server serves one connection and exits. Each round is a connection of its own, and the
server of the next round is the one that was started with --prev-images-dir.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from livemigration.clock import Clock
from livemigration.criu.errors import ImageError
from livemigration.criu.magic import PageFlags
from livemigration.criu.page_server.endpoint import connect
from livemigration.criu.page_server.protocol import Dialect, TargetKind
from livemigration.criu.page_server.sender import Sender
from livemigration.criu.pagemap import PageSet, read_page_set
from livemigration.digest import gather_pages, pages_equal
from livemigration.errors import BadRequest
from livemigration.execution import Execution
from livemigration.ownership import OwnershipMachine
from livemigration.policy import Policy
from livemigration.spec import LazySpec, MigrationSpec
from livemigration.transport import Transport
from livemigration.v1 import common_pb2
from livemigration.verification import ranges
from source_node.criu_plan import Part, names_of, plan
from source_node.migration import Migration, Observer, TaskOrigin
from source_node.tracker import RoundScan

U64 = NDArray[np.uint64]

_WINDOW_BYTES = 4 << 20
"""So much is gathered and sent at once."""

_RUN_PAGES = 8
"""Shorter runs of pages cost more as buffers of their own than as a copy."""

_WRITTEN_WITHIN_S = 5.0
_LOOK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class PageServers:
    """Where the rounds go.

    addresses: one for each round, the last one for all that follow; wait_s: how long a round waits
    for its server to listen; patience_s: how long a server may keep silent; page_size: of the
    server's machine, which the protocol does not tell; images: the directory that the last round
    made, to be compared with the memory.
    """

    addresses: tuple[str, ...]
    dialect: Dialect
    wait_s: float = 30.0
    patience_s: float = 60.0
    tls: ssl.SSLContext | None = None
    page_size: int = 4096
    images: Path | None = None

    def of_round(self, number: int) -> str:
        """The server of a round."""
        return self.addresses[min(number, len(self.addresses) - 1)]


class _Nobody:
    """The destination of a migration that nobody takes over."""

    async def flush(self) -> None:
        """A page server has said that it has everything by now."""

    async def abort(self, reason: str) -> None:
        """There is nothing to forget."""


async def _no_reference(operations: int) -> str:
    raise AssertionError("nothing goes on at a page server")


class PageServerMigration(Migration):
    """Runs once; the task goes on here afterwards, whatever happens."""

    def __init__(
        self,
        *,
        migration_id: str,
        spec: MigrationSpec,
        origin: TaskOrigin,
        execution: Execution,
        ownership: OwnershipMachine,
        policy: Policy,
        clock: Clock,
        observer: Observer,
        servers: PageServers,
    ) -> None:
        """Raises BadRequest for what CRIU's protocol cannot carry."""
        page_size = execution.task.machine.page_size
        if page_size != servers.page_size:
            raise BadRequest(
                f"the task has pages of {page_size} bytes and the page server's machine of "
                f"{servers.page_size}: nothing in the protocol tells them; set page_size to "
                f"{servers.page_size}"
            )
        if isinstance(spec.policy, LazySpec):
            raise BadRequest(
                f'policy "{spec.policy.kind}" leaves pages behind, which a page server cannot ask '
                "for; take one without post-copy, or `predump criu lazy-server`"
            )
        super().__init__(
            migration_id=migration_id,
            spec=spec,
            origin=origin,
            execution=execution,
            ownership=ownership,
            transport=cast("Transport", _Nobody()),
            policy=policy,
            clock=clock,
            observer=observer,
            reference=_no_reference,
        )
        self._servers = servers
        self._names = names_of(execution.task, origin.images)
        self._sender: Sender | None = None
        self._parts: list[Part] = []  # of the round under way, or of the last one
        self._holes = 0
        self._window = np.empty(_WINDOW_BYTES, np.uint8)
        self.holes: list[int] = []
        """Pages left to the parent, by round."""

    async def _migrate(self) -> None:
        began = time.monotonic_ns()
        try:
            await self._rounds()
        finally:
            if self._sender is not None:
                self._sender.close()
        self.outcome.transfer_wall_ns = time.monotonic_ns() - began
        if self._servers.images is not None:
            self._say("verify", f"comparing the images in {self._servers.images}")
            wrong = await self._in_thread(self._compare_images, self._servers.images)
            self.outcome.mismatches = self._with_rounds(wrong)
            self.outcome.mismatched_pages = sum(m.pages for m in wrong)
            self.outcome.verified = not wrong
        await self._keep_task("", "the page server has the images")

    async def _get_ready(self, number: int) -> None:
        """Connects: a server that is not there yet must not keep the task frozen."""
        address = self._servers.of_round(number)
        self._say("connect", f"waiting for the page server at {address}")
        self._sender = await self._in_thread(self._connect, address)

    def _connect(self, address: str) -> Sender:
        channel = connect(
            address,
            wait_s=self._servers.wait_s,
            patience_s=self._servers.patience_s,
            tls=self._servers.tls,
        )
        return Sender(channel, self._servers.dialect, self._servers.page_size)

    async def _deliver(self, scan: RoundScan, number: int, *, final: bool) -> None:
        await self._in_thread(self._send_round, scan, number, final)

    def _send_round(self, scan: RoundScan, number: int, final: bool) -> None:
        sender = self._sender
        assert sender is not None
        self._holes = 0
        with self._execution.lock:
            self._parts = plan(
                self._execution.task,
                scan,
                self._names,
                final=final,
                shared_in_rounds=self._spec.shared_memory == "rounds",
            )
        with sender:
            for part in self._parts:
                if not sender.open(part.target):
                    part = part.all()
                for first, last in _windows(part, self._window.size // self._page_size):
                    self._check_abort()
                    self._send_window(sender, part, slice(first, last), number)
            sender.finish()
        self.holes.append(self._holes)
        self._traffic.bytes_wire += sender.bytes_sent

    def _send_window(self, sender: Sender, part: Part, window: slice, number: int) -> None:
        began, page_size = time.monotonic_ns(), self._page_size
        task = self._execution.task
        addresses, send = part.addresses[window], part.send[window]
        wanted = addresses[send]
        with self._execution.lock:
            rows, versions = part.look(task, wanted) if wanted.size else _NOTHING
            there = rows > 0
            data = self._bytes(rows[there])
            self._note_sent(part, wanted[there], versions[there], number)
        # A page that is gone by now is not alive at the next scan either.
        left = ~send
        left[send] = there
        addresses, send = addresses[left], send[left]
        starts, pages, flags = _entries(addresses, send, page_size)
        traffic = self._traffic
        traffic.gather_ns += time.monotonic_ns() - began
        traffic.ahead_ns = traffic.ahead_ns or traffic.gather_ns
        while (wait := self._bucket.delay()) > 0:
            time.sleep(wait)
        before = sender.bytes_sent
        sender.add(starts, pages, flags, data)
        sent = sender.bytes_sent - before
        self._bucket.take(sent)
        self._holes += int(np.count_nonzero(~send))
        payload = int(np.count_nonzero(send)) * page_size
        traffic.payload_bytes += payload
        traffic.pages_sent += payload // page_size
        if self._execution.running:
            self._clock.spend(max(self._link.transmit_ns(sent), self._spec.costs.copy_ns(payload)))

    def _bytes(self, rows: NDArray[np.int64]) -> list[memoryview]:
        """The pages in these content rows, one after the other; good until the next call.

        Of a task that stands still they are its memory itself, where many follow one another. Of
        one that runs they are a copy: the model may give a frame to another page meanwhile.
        """
        content = self._execution.task.machine.content
        if rows.size == 0:
            return []
        if not self._execution.running:
            first = np.concatenate(([0], np.flatnonzero(np.diff(rows) != 1) + 1))
            if first.size <= rows.size // _RUN_PAGES + 1:
                last = np.append(first[1:], rows.size) - 1
                return [
                    content[start : end + 1].reshape(-1).data
                    for start, end in zip(rows[first].tolist(), rows[last].tolist(), strict=True)
                ]
        data = self._window[: rows.size * self._page_size]
        gather_pages(content, rows, data)
        return [data.data]

    def _note_sent(self, part: Part, addresses: U64, versions: U64, number: int) -> None:
        if part.target.kind is TargetKind.PROCESS:
            self._tracker.note(part.model_id, addresses, versions, number)
            return
        for claim in part.claims:
            at = np.minimum(np.searchsorted(addresses, claim.offsets), max(addresses.size - 1, 0))
            if addresses.size == 0:
                continue
            found = addresses[at] == claim.offsets
            self._tracker.note(claim.pid, claim.addresses[found], versions[at[found]], number)

    # -- proof

    def _compare_images(self, folder: Path) -> list[common_pb2.Mismatch]:
        """The images of the last round and its parents, byte by byte, with the frozen memory.

        Pages that one side lacks count as different.
        """
        task, page_size = self._execution.task, self._page_size
        wrong: list[common_pb2.Mismatch] = []
        with self._execution.lock:
            for part in self._parts:
                pages = self._written(folder, part)
                both = np.intersect1d(pages.addresses, part.addresses, assume_unique=True)
                bad = [np.setxor1d(pages.addresses, part.addresses, assume_unique=True)]
                step = _WINDOW_BYTES // page_size
                for at in range(0, both.size, step):
                    some = both[at : at + step]
                    rows, _ = part.look(task, some)
                    equal = pages_equal(task.machine.content, rows, pages.read(some))
                    bad.append(some[~equal])
                pid = part.model_id if part.target.kind is TargetKind.PROCESS else 0
                wrong += ranges(pid, np.sort(np.concatenate(bad)), page_size)
        return wrong

    def _written(self, folder: Path, part: Part) -> PageSet:
        """The pages that the images have of a part.

        CRIU 4.2 writes the end of a pagemap only after it has said that all is there, so what is
        not complete is looked at again for a while.
        """
        give_up = time.monotonic() + _WRITTEN_WITHIN_S
        while True:
            late = time.monotonic() > give_up
            try:
                pages = read_page_set(folder, part.target.pagemap_name, self._page_size)
                if late or np.array_equal(pages.addresses, part.addresses):
                    return pages
            except ImageError:
                if late:
                    raise
            time.sleep(_LOOK_AGAIN_S)

    def _verdict(self) -> str:
        if self.outcome.error:
            return self.outcome.error
        if self.outcome.verified:
            return "the images are equal to the memory; the task goes on here"
        if self._servers.images is not None:
            return f"{self.outcome.mismatched_pages} pages differ; the task goes on here"
        return "all rounds are at the page servers, not compared; the task goes on here"


_NOTHING = np.zeros(0, np.int64), np.zeros(0, np.uint64)


def _windows(part: Part, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of the part's pages with at most `most` pages to send in each."""
    ends = np.flatnonzero(part.send)[most - 1 :: most] + 1
    first = 0
    for last in ends.tolist():
        yield first, last
        first = last
    if first < part.addresses.size:
        yield first, part.addresses.size


def _entries(addresses: U64, send: NDArray[np.bool_], page_size: int) -> tuple[U64, U64, U64]:
    """Pages as runs: starts, numbers of pages, flags."""
    if addresses.size == 0:
        nothing = np.zeros(0, np.uint64)
        return nothing, nothing, nothing
    breaks = (np.diff(addresses) != np.uint64(page_size)) | (send[1:] != send[:-1])
    first = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    pages = np.diff(np.append(first, addresses.size)).astype(np.uint64)
    flags = np.where(send[first], np.uint64(PageFlags.PRESENT), np.uint64(PageFlags.PARENT))
    return addresses[first], pages, flags
