"""A task that runs before its pages are there: faults, prefetch, and what they cost.

CRIU's lazy-pages daemon (criu/uffd.c) is the model: the destination asks, the source only answers.
A page that the task waits for is asked for by itself, before everything else; beside that, batches
of missing pages are fetched in the order of a `Prefetcher` until all are here.

On the virtual clock (`VirtualRun`) time is computed where it passes. The source's line is one
queue: batches follow each other without a gap, since requests for them are sent ahead, and the
answer to a fault waits for the batch that is on the line when its request arrives. What is under
way matters only when the task needs a page, so arrivals are worked off then, in the order of their
times: the same run gives the same faults and times everywhere. On the wall clock (`WallRun`) the
same things happen, and are measured.

A source that is lost brings nothing for now. A task that needs a missing page then stands still in
the middle of its access, and goes on from there when the source is back; nothing is made up, and
nothing is done twice. For good it stops only when a page came that is not what the source had, when
the task itself failed, or when nobody waits any more.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dest_node.lazy_task import LazyTask
from dest_node.missing import MissingPages
from dest_node.page_channel import PageChannel
from dest_node.prefetch import HERE, MISSING, Demand, Indices, Sequential, make_prefetcher
from livemigration.batch import Frame
from livemigration.errors import DamagedFrame, MigrationError, SourceLost
from livemigration.execution import Execution
from livemigration.link import Link
from livemigration.ownership import stands_still
from livemigration.task import Task
from livemigration.v1 import common_pb2
from mm_model import MmError

log = logging.getLogger(__name__)

WINDOW_BYTES = 512 << 10
"""What is under way unasked on the wall clock, at least two batches: requests go ahead, so that the
line does not run dry."""

KIB = 1024


class PageDiffers(MigrationError):
    """A page came that is not what the source had at the freeze."""


class _Run:
    """What both clocks have in common."""

    def __init__(
        self,
        execution: Execution,
        missing: MissingPages,
        plan: common_pb2.PostCopyPlan,
        channel: PageChannel,
        when_whole: Callable[[], None],
    ) -> None:
        """Takes the execution's task, whose workload works on a `LazyTask` from now on.

        `when_whole`: called when the last page has come and the task is at rest, before the source
        hears of it; it may raise `MigrationError`, which only costs what it is for. ValueError for
        a plan that is none.
        """
        self.missing = missing
        self.task: Task = execution.task
        self.record = common_pb2.PostCopyRecord(pages_lazy=missing.count)
        self._execution = execution
        self._plan = plan
        self._channel = channel
        self._when_whole = when_whole
        self._prefetcher = make_prefetcher(plan.prefetch, missing.borders, max(1, plan.pivots))
        self._most = max(1, plan.batch_bytes // missing.page_size)
        self._number = 0
        self._over = False  # all pages are here, or the task cannot go on
        execution.task = LazyTask(self.task, self)  # type: ignore[assignment]

    def fetch(self, page: int, position: int) -> None:
        """See `lazy_task.Waiting`."""
        raise NotImplementedError

    def _next(self) -> Indices:
        """The next batch to fetch unasked."""
        return self._prefetcher.next(self.missing.states, self._most)

    def _ask(self, indices: Indices, *, urgent: bool) -> int:
        self._number += 1
        self._channel.ask(self.missing.request(self._number, indices, urgent=urgent))
        return self._number

    def _place(self, frame: Frame, size: int, *, urgent: bool) -> None:
        """Puts a frame's pages in place; the caller holds the execution's lock."""
        missing, processes = self.missing, self.task.processes
        try:
            came = missing.place(frame, processes)
        except MmError as error:
            raise DamagedFrame(
                f"frame {frame.sequence} does not fit the address space: {error.strerror}"
            ) from error
        if self._plan.read_back:
            pages = missing.read_back(frame.pid, came, processes)
            if pages.run_start:
                self._channel.tell(pages)
        record = self.record
        record.bytes_wire += size
        record.payload_bytes += int(frame.pages.size)
        record.pages_zero += int(frame.zero_pages.sum())
        if not urgent:
            record.pages_prefetched += int(came.size)
        if self.missing.different:
            where = self.missing.different[0].start
            raise PageDiffers(f"page {where:#x} came and is not what the source had")

    def _waited(self, duration_ns: int) -> None:
        self.record.stalled_ns += duration_ns
        self.record.longest_stall_ns = max(self.record.longest_stall_ns, duration_ns)

    def _take(self, page: int) -> tuple[Frame, int]:
        """The next frame; without a source, the task stands still until there is one.

        `page`: what it needs. `SourceLost` if nobody waits any more.
        """
        while True:
            try:
                return self._channel.take()
            except SourceLost as lost:
                needs = (
                    f"the task stands still and needs {self.missing.name(page)}, one of "
                    f"{self.missing.left} that are missing"
                )
                self._write_down(f"{lost}; {needs}", why_none_come=str(lost))
                self._channel.wait_for_source()
                self._write_down("")

    def _close(self, halted: str = "") -> None:
        """Everything is here, or the task cannot go on."""
        self._over = True
        self._write_down(halted)
        if not halted:
            self._execution.task = self.task
            try:
                self._when_whole()
            except MigrationError as error:
                log.warning("the task runs on, but is not kept: %s", error)
                self.record.not_kept = str(error)
        self._channel.over(self.record)

    @property
    def stopped(self) -> str:
        """Why the task stopped for good; "": it did not."""
        return self.record.halted if self._over else ""

    def status(self) -> common_pb2.PostCopyRecord:
        """How it is now."""
        status = common_pb2.PostCopyRecord()
        status.CopyFrom(self.record)
        status.pages_missing = self.missing.left
        if not stands_still(halted=bool(status.halted), over=self._over, held=self._channel.held):
            status.halted = ""
        return status

    def _write_down(self, halted: str, *, why_none_come: str = "") -> None:
        record, missing = self.record, self.missing
        record.pages_dropped = missing.dropped
        record.working_set = int(np.count_nonzero(missing.touched))
        record.pages_missing = missing.left
        record.halted = halted
        record.source_lost = why_none_come
        del record.missing[:], record.different[:]
        if missing.left and (halted or why_none_come):
            record.missing.extend(missing.still_missing())
        record.different.extend(missing.different)
        record.pages_different = sum(m.pages for m in missing.different)


@dataclass(slots=True)
class _UnderWay:
    """A frame on the line."""

    arrives_ns: int
    frame: Frame
    size: int
    urgent: bool


class VirtualRun(_Run):
    """On the virtual clock; time 0 is when the task could run."""

    def __init__(
        self,
        execution: Execution,
        missing: MissingPages,
        plan: common_pb2.PostCopyPlan,
        channel: PageChannel,
        when_whole: Callable[[], None],
    ) -> None:
        """See `_Run`."""
        super().__init__(execution, missing, plan, channel, when_whole)
        self._link = Link(plan.bandwidth_bps, plan.latency_ns, plan.stream_kib_ns)
        self._began = execution.workload_ns
        self._offset = -execution.workload_ns  # from the task's own time to the clock's
        self._free = plan.latency_ns  # when the source's line is: it hears of the commit first
        self._line: deque[_UnderWay] = deque()
        self._last_ns = 0
        self._running = False

    def lost(self, error: SourceLost) -> None:
        """Nothing comes for now; called in the event loop."""
        if not self._running and not self._over and self.missing.left:
            # Time passes here only when the source says so.
            self._write_down(
                f"{error}; the task stands still, with {self.missing.left} pages missing",
                why_none_come=str(error),
            )

    def back(self) -> None:
        """Pages come again; called in the event loop."""
        if not self._running and not self._over:
            self._write_down("")

    async def run_to(self, workload_ns: int) -> None:
        """The task runs until its own time is `workload_ns`, and longer if pages are missing.

        Afterwards `record` says how it went, also if it could not go on.
        """
        if self.stopped:
            return
        self._running = True
        try:
            await asyncio.to_thread(self._run_to, workload_ns)
        finally:
            self._running = False

    def close(self) -> None:
        """Nothing to end."""

    def _run_to(self, workload_ns: int) -> None:
        with self._execution.lock:
            try:
                if isinstance(self._prefetcher, Demand):
                    self._work(workload_ns)
                    self._prefetcher = Sequential(self.missing.borders)
                    self._free = max(self._free, self._now())
                    self._drain()
                self._run_until_complete()
            except MigrationError as error:
                self._close(str(error))
                return
            assert not self.missing.left
            if self.record.residual_ns == 0:
                self._finish()
            self._work(workload_ns)

    def _finish(self) -> None:
        # Without pages that come, it was the task that made the last one unnecessary.
        self.record.residual_ns = self._last_ns or self._now()
        self.record.workload_ns = self._execution.workload_ns - self._began
        self._close()

    def _now(self) -> int:
        return self._execution.workload_ns + self._offset

    def _work(self, workload_ns: int) -> None:
        execution = self._execution
        if workload_ns > execution.workload_ns:
            execution.workload.run_until(execution.task, workload_ns)
            execution.workload_ns = workload_ns

    def _run_until_complete(self) -> None:
        """The task runs from arrival to arrival."""
        while self.missing.left:
            if not self._line and self._free > self._now():
                # What the task asks for until then can come first.
                self._work(self._free - self._offset)
                continue
            if not self._line and not self._push_one():
                return
            self._work(self._line[0].arrives_ns - self._offset)
            self._pass(self._now())

    def _drain(self) -> None:
        """What is left comes, while the task does nothing."""
        while self.missing.left and (self._line or self._push_one()):
            self._land()

    # -- the line

    def _push_one(self) -> bool:
        """The next batch goes onto the line as soon as it is free; False: there is none."""
        indices = self._next()
        if not indices.size:
            return False
        self._put_on_line(indices, self._free, urgent=False)
        return True

    def _put_on_line(self, indices: Indices, ready_ns: int, *, urgent: bool) -> None:
        """Has the source send pages: not before `ready_ns`, nor before its line is free."""
        number = self._ask(indices, urgent=urgent)
        frame, size = self._take(int(indices[0]))  # without it, no time passes here
        if frame.sequence != number:
            raise DamagedFrame(f"frame {frame.sequence} came for request {number}")
        copy = self._plan.copy_kib_ns * int(frame.pages.size) // KIB
        transmit = self._link.transmit_ns(size)
        # A batch is gathered while the one before it is on the line; a fault finds nothing ready.
        busy = copy + transmit if urgent else max(copy, transmit)
        self._free = max(ready_ns, self._free) + busy
        self._line.append(_UnderWay(self._free + self._plan.latency_ns, frame, size, urgent))

    def _land(self) -> int:
        """The next frame arrives: when."""
        first = self._line.popleft()
        self._place(first.frame, first.size, urgent=first.urgent)
        self._last_ns = first.arrives_ns
        return first.arrives_ns

    def _pass(self, until_ns: int) -> None:
        """The line, up to a time: what the source began to send before it, what arrived by it."""
        more = True
        while more:
            more = self._free < until_ns and self._push_one()
            while self._line and self._line[0].arrives_ns <= until_ns:
                self._land()

    # -- the task

    def fetch(self, page: int, position: int) -> None:
        """See `lazy_task.Waiting`."""
        workload, states = self._execution.workload, self.missing.states
        due = workload.due_ns(workload.operation_at(position))
        at = max(due, self._execution.workload_ns) + self._offset
        self._pass(at)
        if states[page] == HERE:
            return
        self.record.faults += 1
        reaches = at + self._plan.latency_ns
        self._pass_unheard(reaches)
        if states[page] == MISSING:
            self.record.faults_remote += 1
            self._put_on_line(np.array([page]), reaches, urgent=True)
        self._prefetcher.fault(page)
        there = at
        while states[page] != HERE:
            there = self._land()
        plan = self._plan
        there = max(at, there) + plan.fault_ns + plan.place_kib_ns * self.missing.page_size // KIB
        self._pass(there)
        self._offset += there - at
        self._waited(there - at)

    def _pass_unheard(self, until_ns: int) -> None:
        """What the source begins to send before it hears of a fault; it arrives later."""
        while self._free < until_ns and self._push_one():
            pass


class WallRun(_Run):
    """On the wall clock: the workload's thread waits, arrivals are placed between its slices."""

    def __init__(
        self,
        execution: Execution,
        missing: MissingPages,
        plan: common_pb2.PostCopyPlan,
        channel: PageChannel,
        when_whole: Callable[[], None],
    ) -> None:
        """See `_Run`. Nothing is asked for before `start`."""
        super().__init__(execution, missing, plan, channel, when_whole)
        self._window = max(2, WINDOW_BYTES // (self._most * missing.page_size))
        self._ahead: set[int] = set()  # requests for batches that nobody waits for
        self._complete: Future[None] = Future()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pages")
        self._began_ns = 0
        self._began_workload = execution.workload_ns
        self._closed = threading.Event()
        self._called = threading.Event()  # the arrivals' turn is coming

    def start(self) -> None:
        """The task runs from now on."""
        self._began_ns = time.monotonic_ns()
        self._pool.submit(self._arrivals)

    def arrived(self) -> None:
        """A frame is in the channel; called in the event loop."""
        if not self._closed.is_set() and not self._called.is_set():
            self._called.set()  # one turn takes all that has arrived by then
            self._pool.submit(self._arrivals)

    def lost(self, error: SourceLost) -> None:
        """Nothing comes for now; called in the event loop."""
        self._submit(self._tell_state)

    def back(self) -> None:
        """Pages come again; called in the event loop."""
        self._submit(self._tell_state)

    def _submit(self, call: Callable[[], None]) -> None:
        if not self._closed.is_set():
            self._pool.submit(call)

    async def run_to(self, workload_ns: int) -> None:
        """See `VirtualRun.run_to`."""
        execution = self._execution
        if isinstance(self._prefetcher, Demand):
            await self._run_execution(workload_ns)
            with execution.lock:
                self._prefetcher = Sequential(self.missing.borders)
            self.arrived()
        await asyncio.shield(asyncio.wrap_future(self._complete))
        if not self.stopped:
            await self._run_execution(workload_ns)

    def close(self) -> None:
        """Ends the thread that places pages."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run_execution(self, workload_ns: int) -> None:
        try:
            await self._execution.run_to(workload_ns)
        except MigrationError as error:
            self._pool.submit(self._halt, str(error))

    def _arrivals(self) -> None:
        with self._execution.lock:
            self._called.clear()
            try:
                while (found := self._channel.poll()) is not None:
                    self._arrive(*found)
                self._fill()
            except MigrationError as error:
                self._end(str(error))
            else:
                self._end_if_complete()

    def _arrive(self, frame: Frame, size: int) -> None:
        urgent = frame.sequence not in self._ahead
        self._ahead.discard(frame.sequence)
        self._place(frame, size, urgent=urgent)

    def _fill(self) -> None:
        """Keeps batches under way."""
        while len(self._ahead) < self._window:
            indices = self._next()
            if not indices.size:
                return
            self._ahead.add(self._ask(indices, urgent=False))

    def _end_if_complete(self) -> None:
        if not self.missing.left:
            self._end("")

    def _tell_state(self) -> None:
        """The task runs on, with a source or without, until it needs a page that does not come."""
        with self._execution.lock:
            if not self._closed.is_set():
                lost = self._channel.lost
                self._write_down("", why_none_come="" if lost is None else str(lost))

    def _halt(self, why: str) -> None:
        with self._execution.lock:
            self._end(why)

    def _end(self, halted: str) -> None:
        """Nothing more will come; the lock is held."""
        if self._closed.is_set():
            return
        self._closed.set()
        self.record.residual_ns = time.monotonic_ns() - self._began_ns
        self.record.workload_ns = self._execution.workload_ns - self._began_workload
        if halted:
            self._execution.running = False
        # Not from here: the task may be in the middle of an access.
        self._pool.submit(self._conclude, halted)

    def _conclude(self, halted: str) -> None:
        with self._execution.lock:
            self._close(halted)
        self._complete.set_result(None)

    def fetch(self, page: int, position: int) -> None:
        """See `lazy_task.Waiting`; in the workload's thread, which holds the lock."""
        began = time.monotonic_ns()
        try:
            waited = self._wait_for(page)
        except MigrationError as error:
            self._end(str(error))
            raise
        if waited:
            stalled = time.monotonic_ns() - began
            self._waited(stalled)
            self._execution.stood_still(stalled)
        self._end_if_complete()

    def _wait_for(self, page: int) -> bool:
        """False: it had come already."""
        states = self.missing.states
        while (found := self._channel.poll()) is not None:
            self._arrive(*found)
        if states[page] == HERE:
            return False
        self.record.faults += 1
        if states[page] == MISSING:
            self.record.faults_remote += 1
            self._ask(np.array([page]), urgent=True)
        self._prefetcher.fault(page)
        while states[page] != HERE:
            self._arrive(*self._take(page))
            self._fill()
        return True
