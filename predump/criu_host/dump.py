"""One pre-dump or dump of a simulated task: from the freeze to images on disk or at a page server.

As CRIU has it (criu/cr-dump.c, cr_pre_dump_tasks and cr_dump_tasks): what is not soft-dirty is left
to the parent if memory is tracked and there is one; a pre-dump's pages are written while the task
runs on; a dump's directory also has what a restore needs.

Stricter than CRIU in two places, where it would write images that cannot be right and say nothing:
a parent that is not the task's last dump, and a dump after one that failed when soft-dirty bits had
been cleared already. Both end the request with one line.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from livemigration.criu.born import born_naming
from livemigration.criu.dedup import dedup
from livemigration.criu.magic import INVENTORY_MAGIC, STATS_MAGIC
from livemigration.criu.page_server.channel import Channel
from livemigration.criu.page_server.endpoint import connect
from livemigration.criu.page_server.protocol import DIALECTS, Target, TargetKind
from livemigration.criu.page_server.sender import Sender
from livemigration.criu.pb.inventory_pb2 import InventoryEntry
from livemigration.criu.pb.stats_pb2 import DumpStats, StatsEntry
from livemigration.criu.record_writer import write_image
from livemigration.criu.rpc.errors import RpcFailure
from livemigration.criu.rpc.log import RequestLog
from livemigration.criu.rpc.options import Request
from livemigration.errors import MigrationError
from livemigration.files import file_pages
from mm_model import MmError
from predump.criu_host.descriptors import borrowed_socket
from predump.criu_host.pages import DirectorySink, PageCounts, PageSink, write_pages
from predump.criu_host.state import STATE_FILE, write_state
from predump.criu_host.task import Directory, SimulatedTask, Timing
from source_node.criu_plan import Part, plan
from source_node.tracker import RoundScan

_PATIENCE_S = 60.0
_CONNECT_S = 1.0


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Whatever goes wrong with images, pages or peers, as a failed request of one line."""
    try:
        yield
    except (MigrationError, MmError) as error:
        raise RpcFailure(str(error)) from error
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise RpcFailure(f"{what}:{where} {error.strerror or error}", error.errno or 0) from error
    except ValueError as error:
        raise RpcFailure(f"{what}: {error}") from error


@dataclass(slots=True)
class Dump:
    """One dump of a task that nobody else dumps meanwhile."""

    task: SimulatedTask
    request: Request
    journal: RequestLog
    final: bool
    dialect: str = "4.2"
    timing: Timing = field(default_factory=Timing)
    counts: PageCounts = field(default_factory=PageCounts)
    _scan: RoundScan = field(default_factory=RoundScan)
    _parent: Path | None = None
    _sink: PageSink | None = None

    @property
    def tracks(self) -> bool:
        """Whether soft-dirty bits are cleared, for a dump that is to follow."""
        return self.request.track_mem or not self.final

    async def prepare(self, stack: ExitStack) -> None:
        """Finds the parent and where pages go, while the task still runs."""
        self._parent = self._find_parent()
        self._sink = await asyncio.to_thread(self._open_sink, stack)

    async def freeze(self) -> None:
        """Stops the task."""
        began = time.monotonic_ns()
        await self.task.freeze()
        cost = self.task.costs.freeze_ns(len(self.task.task.processes))
        self.timing.freezing = self._took(began, cost)
        self.journal.debug(
            f"Frozen task {self.task.pid}: {len(self.task.task.processes)} processes"
        )

    async def write(self) -> None:
        """Pages, and in the end all else. The task is frozen; a pre-dump lets it go on."""
        task, request = self.task, self.request
        self.journal.info(f"Dumping pages of task {task.pid} (tracking: {self.tracks})")
        if self.tracks:
            task.last = None  # what is left out of this dump is lost if it fails from here on
        holes = self._parent is not None and self.tracks
        began = time.monotonic_ns()
        self._scan = await task.scan(first=not holes, final=self.final, reset=self.tracks)
        cost = task.costs.scan_ns(self._scan.scanned)
        cost += task.costs.clear_ns(self._scan.present) if self.tracks else 0
        self.timing.memdump = self._took(began, cost)
        self._name_new_processes()
        self.timing.frozen = self.timing.freezing + self.timing.memdump
        if not self.final:
            task.thaw()
        began = time.monotonic_ns()
        await self._write_pages(holes=holes)
        size = (self.counts.written + self.counts.shared_written) * task.spec.page_size
        self.timing.memwrite = self._took(began, task.costs.copy_ns(size))
        if self.final:
            self.timing.frozen += self.timing.memwrite
        if request.auto_dedup and self._parent is not None and request.page_server is None:
            # What this dump has is never looked up in its parents again.
            await asyncio.to_thread(dedup, request.images, task.spec.page_size)
        await asyncio.to_thread(self._write_others)
        if self.tracks:
            task.last = Directory.of(request.images)
        self.journal.info(
            f"Wrote {self.counts.written} pages, left {self.counts.in_parent} to the parent"
        )

    # -- where pages go

    def _open_sink(self, stack: ExitStack) -> PageSink:
        server = self.request.page_server
        page_size = self.task.spec.page_size
        if server is None:
            return stack.enter_context(DirectorySink(self.request.images, self._parent, page_size))
        if server.fd >= 0:
            channel = Channel(borrowed_socket(server.pid, server.fd), _PATIENCE_S)
        else:
            address = f"{server.address or '127.0.0.1'}:{server.port}"
            channel = connect(address, wait_s=_CONNECT_S, patience_s=_PATIENCE_S)
        self.journal.info("Connected to the page server")
        return stack.enter_context(Sender(channel, DIALECTS[self.dialect], page_size))

    async def _write_pages(self, *, holes: bool) -> None:
        task, sink = self.task, self._sink
        assert sink is not None
        parts = await asyncio.to_thread(self._parts)

        def copied(size: int) -> None:
            # The task runs on while its pages are copied.
            if not task.wall and task.execution.running:
                task.execution.advance(task.costs.copy_ns(size))

        for part in parts:
            await asyncio.to_thread(
                write_pages, task, part, sink, self.counts, holes=holes, copied=copied
            )
        server = self.request.page_server
        await asyncio.to_thread(sink.finish, lent=server is not None and server.fd >= 0)

    def _parts(self) -> list[Part]:
        """The images of pages. The task's files are memfds, whose content is dumped whole."""
        task = self.task.task
        parts = plan(task, self._scan, final=self.final)
        if not self.final:
            return parts
        page_size = np.uint64(task.machine.page_size)
        for file in task.files:
            pages, _ = file_pages(task.machine, file)
            target = Target(TargetKind.SHARED, file.object_id)
            offsets = pages.astype(np.uint64) * page_size
            parts.append(Part(target, offsets, np.ones(pages.size, np.bool_)))
        return parts

    # -- parents

    def _find_parent(self) -> Path | None:
        """The parent directory, with the link to it made. Raises RpcFailure."""
        if not self.request.parent:
            return None
        link = self.request.images / "parent"
        if self.request.parent.startswith("/"):
            self.journal.warning("the parent's path is absolute: images that are moved lose it")
        try:
            os.symlink(self.request.parent, link)
        except FileExistsError:
            there = os.readlink(link) if link.is_symlink() else "something else"
            if there != self.request.parent:
                raise RpcFailure(
                    f"{link} leads to {there} already, not to {self.request.parent}; dump into "
                    "an empty directory"
                ) from None
        if not link.is_dir():
            raise RpcFailure(
                f"no parent image found: {self.request.parent} is no directory, seen from "
                f"{self.request.images}"
            )
        if not self.tracks:
            self.journal.warning("track_mem is not set: all pages are dumped again")
            return link
        if self.task.last is None:
            raise RpcFailure(
                f"task {self.task.pid} has no last dump that {self.request.parent} could be: none "
                "was made with track_mem, or it failed half-way; dump without a parent"
            )
        if Directory.of(link) != self.task.last:
            raise RpcFailure(
                f"{self.request.parent} is not the last dump of task {self.task.pid}: pages "
                "written in between would be lost; name the last one"
            )
        return link

    # -- all but pages

    def _name_new_processes(self) -> None:
        """Pids for processes that were forked since the last dump."""
        known = self.task.pids
        for pid in sorted(self.task.task.processes):
            if pid not in known:
                known[pid] = max(known.values()) + 1

    def _write_others(self) -> None:
        task, folder = self.task, self.request.images
        uptime = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        if self.final:
            pids = task.pids
            spaces = {
                pids[process.space.pid]: replace(
                    process.space,
                    pid=pids[process.space.pid],
                    ppid=pids.get(process.space.ppid, 0),
                )
                for process in self._scan.processes
            }
            with task.execution.lock:
                naming = born_naming(task.task, spaces, task.name)
            for name, data in naming.images.items():
                (folder / name).write_bytes(data)
            write_state(task, folder)
        else:
            mode = 2 if self.request.read_mode else 1
            entry = InventoryEntry(img_version=0, dump_uptime=uptime, pre_dump_mode=mode)
            write_image(folder / "inventory.img", INVENTORY_MAGIC, entry)
            with suppress(FileNotFoundError):
                (folder / STATE_FILE).unlink()
        write_image(self.request.work / "stats-dump", STATS_MAGIC, self._stats())

    def _stats(self) -> StatsEntry:
        counts, timing = self.counts, self.timing
        return StatsEntry(
            dump=DumpStats(
                freezing_time=timing.freezing,
                frozen_time=timing.frozen,
                memdump_time=timing.memdump,
                memwrite_time=timing.memwrite,
                pages_scanned=self._scan.scanned,
                pages_skipped_parent=counts.in_parent,
                pages_written=counts.written,
                irmap_resolve=0,
                pages_lazy=0,
                page_pipes=0,
                page_pipe_bufs=0,
                shpages_scanned=counts.shared_scanned,
                shpages_skipped_parent=0,
                shpages_written=counts.shared_written,
            )
        )

    def _took(self, began_ns: int, cost_ns: int) -> int:
        """Microseconds since then, or on the virtual clock what it costs."""
        took = time.monotonic_ns() - began_ns if self.task.wall else cost_ns
        return min(took // 1000, (1 << 32) - 1)
