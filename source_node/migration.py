"""One migration, from round 0 to the task running at the destination.

The order is CRIU's (criu/cr-dump.c, criu/mem.c): freeze, read the pagemaps, note the pages,
clear_refs, thaw, and only then copy and send while the task runs on. A page written during the copy
is soft-dirty again, so a copy that is newer than the scan is repaired by the next round. The final
round is sent frozen, together with the workload's own state; then the destination proves its memory
equal, takes the task over and lets it go on.

Whatever goes wrong before commit, the source still owns the task and lets it go on here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from livemigration import batch
from livemigration.clock import Clock
from livemigration.criu.carried import CarriedImages
from livemigration.digest import pages_equal
from livemigration.encoding.encoder import build_encoder
from livemigration.encoding.tally import Tally
from livemigration.errors import (
    Aborted,
    CommitInDoubt,
    DestinationLost,
    MigrationError,
)
from livemigration.execution import Execution, core_of
from livemigration.files import describe_file, describe_shared, offsets
from livemigration.layout import huge_objects, to_proto
from livemigration.link import Link, TokenBucket
from livemigration.ownership import Event, Ownership, OwnershipMachine, fate
from livemigration.packing import Packing, pack, pack_from
from livemigration.policy import Decision, Policy, RoundView
from livemigration.runs import from_runs, to_runs
from livemigration.snapshot import (
    ProcessDigests,
    TaskDigests,
    digest_task,
    nonzero_pages,
    without_pages,
)
from livemigration.spec import MigrationSpec, PolicySpec, lazy_of
from livemigration.transport import Transport
from livemigration.v1 import common_pb2, destination_node_pb2
from livemigration.verification import addresses_of, chunks, ranges
from mm_model import MmError
from source_node.dirty import build_tracker
from source_node.frames import FrameMaker, Heading, Made
from source_node.live_pages import LiveRound
from source_node.outcome import NS, Downtime, Outcome, Round
from source_node.page_map import PageMaps
from source_node.page_server import PageServer, make_plan, split_scan
from source_node.tracker import ProcessScan, RoundScan

U64 = NDArray[np.uint64]

GATHER_BATCHES = 4
"""Batches gathered at once: a switch between threads costs as much as gathering one."""

LAST_WORDS_S = 5.0
"""How long a destination whose task failed may take to say how its pages came."""

_Gathering = asyncio.Future[list[tuple[bytes, int]]]


class Observer(Protocol):
    """Hears of every step; must not block and must not raise."""

    def phase(self, phase: str, at_ns: int, message: str) -> None:
        """A step begins or ends; the message is for people."""
        ...

    def round(self, record: Round, at_ns: int) -> None:
        """A round is over."""
        ...

    def handed_over(self, outcome: Outcome, at_ns: int) -> None:
        """Post-copy: the task runs at the destination, whose pages come from here."""
        ...


@dataclass(frozen=True, slots=True)
class TaskOrigin:
    """What the destination must know to rebuild the task: the spec as StartTask took it."""

    struct: dict[str, Any]
    base_dir: str
    memory_bytes: int
    extra_pages: int  # beyond the spec's memory, from an image directory
    tracker: str = "soft-dirty"
    images: CarriedImages | None = None  # of a task from such a directory, beside its memory


@dataclass(slots=True)
class _Traffic:
    """Bytes and pages of the round under way."""

    bytes_wire: int = 0
    payload_bytes: int = 0
    pages_sent: int = 0
    pages_zero: int = 0
    gather_ns: int = 0
    ahead_ns: int = 0  # of that, before the first batch went out
    encode_ns: int = 0
    decode_ns: int = 0  # by the cost model
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Pages to send together: of a process, or of a file or a shared object at offsets."""

    pid: int
    addresses: U64
    file: int = -1  # number of the file
    object_id: int = 0  # of shared memory that no process maps

    @property
    def of_process(self) -> bool:
        """Whether the addresses are a process'."""
        return self.file < 0 and not self.object_id


class Migration:
    """Runs once. The caller keeps `execution` and `ownership`, which outlive a failed migration."""

    def __init__(
        self,
        *,
        migration_id: str,
        spec: MigrationSpec,
        origin: TaskOrigin,
        execution: Execution,
        ownership: OwnershipMachine,
        transport: Transport,
        policy: Policy,
        clock: Clock,
        observer: Observer,
        reference: Callable[[int], Awaitable[str]],
    ) -> None:
        """`reference`: memory digest of a run that never moved, after so many operations."""
        self._id = migration_id
        self._spec = spec
        self._origin = origin
        self._execution = execution
        self._ownership = ownership
        self._transport = transport
        self._policy = policy
        self._clock = clock
        self._observer = observer
        self._reference = reference
        self._link = Link(spec.link.bandwidth_bps, spec.link.latency_ns, spec.costs.stream_kib)
        self._bucket = TokenBucket(
            spec.link.bandwidth_bps / 8 if clock.name == "wall" else 0, batch.BATCH_BYTES // 2
        )
        self._page_maps = PageMaps(spec.record.bins) if spec.record.pages else None
        self._tracker = build_tracker(
            origin.tracker, shared_in_rounds=spec.shared_memory == "rounds"
        )
        self._frames = self._frame_maker()
        self._abort_reason: str | None = None
        self._next_policy: tuple[PolicySpec, Policy] | None = None
        self._decided = False  # the final round comes, whatever a policy would say
        self._live: LiveRound | None = None
        self._sequence = 0
        self._traffic = _Traffic()
        self._last_frame_ns = 0
        self._scan_pages = 0
        self._present = 0
        self._skipped = 0
        self._left = 0
        self._vmas = 0
        self._server: PageServer | None = None
        self._served = False  # the destination had the task, without all pages
        self._doubt = ""
        self._started_ns = 0
        self._runnable_ns = 0  # when the task could run at the destination
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="migration")
        self.outcome = Outcome(
            migration_id, memory_bytes=origin.memory_bytes, ownership=ownership.state
        )

    def _frame_maker(self) -> FrameMaker:
        page_size = self._execution.task.machine.page_size
        encoder = build_encoder(
            self._spec.encoding,
            self._spec.costs,
            bandwidth=self._spec.link.bandwidth_bps,
            page_size=page_size,
            memory_pages=self._origin.memory_bytes // page_size + self._origin.extra_pages,
        )
        return FrameMaker(encoder, measured=self._clock.name == "wall")

    @property
    def _page_size(self) -> int:
        return self._execution.task.machine.page_size

    @property
    def abort_requested(self) -> bool:
        """Whether somebody wanted it to end."""
        return self._abort_reason is not None

    def request_abort(self, reason: str) -> None:
        """Ends the migration at the next batch; the task stays here."""
        self._abort_reason = reason

    def change_policy(self, spec: PolicySpec, policy: Policy) -> bool:
        """`policy` decides from the end of this round on. False: nothing is left to decide."""
        if self._decided or not self._policy.pre_dumps:
            return False
        self._next_policy = (spec, policy)
        return True

    def look(self) -> dict[str, object] | None:
        """Where the pages are now (docs/telemetry.md, `pages`); None before the first scan.

        May be called from any thread. Holds the task up for one look at its page tables, and takes
        no time of the virtual clock.
        """
        live = self._live
        if live is None:
            return None
        if live.final:
            now = live.at_rest(self._page_size)  # frozen, and perhaps gone by now
        else:
            with self._execution.lock:
                now = self._tracker.written_since(self._execution.task)
        mismatches = self.outcome.mismatches
        different = {
            pid: addresses_of(mismatches, pid, self._page_size)
            for pid in {m.pid for m in mismatches}
        }
        wire = sum(record.bytes_wire for record in self.outcome.rounds)
        if self._server is not None:
            wire += self._server.bytes_wire
        serving = self._served and self.outcome.post_copy is None
        # The virtual clock spends a frame's time when it is made, the wall clock when it goes out.
        under_way = live if self._clock.name == "wall" else self._traffic
        return {
            "round": live.number,
            "final": live.final,
            "serving": serving,
            "over": live.over and not serving,
            "at_s": (self._clock.now_ns - self._started_ns) / NS,
            "bytes_wire": wire if live.over else wire + under_way.bytes_wire,
            "page_size": self._page_size,
            **live.cells(now, self._page_size, different),
        }

    async def run(self) -> Outcome:
        """Migrates; never raises for what can go wrong in a migration, see `Outcome.error`."""
        wall = time.monotonic_ns()
        try:
            await self._migrate()
        except CommitInDoubt as error:
            await self._settle_doubt(error)
        except (MigrationError, MmError) as error:
            await self._keep_task(str(error))
        except asyncio.CancelledError:
            if self._ownership.allows(Event.GIVE_UP):
                await self._keep_task("the migration was cancelled")
            raise
        except Exception as error:
            # A fault of ours must not leave the task frozen; whoever called hears of it all the
            # same.
            await self._keep_task(f"internal error: {type(error).__name__}: {error}")
            raise
        finally:
            self._pool.shutdown(wait=True)
            self._frames.forget()
            self.outcome.ownership = self._ownership.state
            self.outcome.wall_ns = time.monotonic_ns() - wall
        self._say("failed" if self.outcome.error else "done", self._verdict())
        return self.outcome

    # -- the whole way

    async def _migrate(self) -> None:
        self._say("prepare", "asking the destination for room")
        await self._transport.prepare(
            self._id,
            self._origin.struct,
            base_dir=self._origin.base_dir,
            clock=self._clock.name,
            extra_pages=self._origin.extra_pages,
            resident_pages=self._execution.task.machine.used_frames,
        )
        first_frame = time.monotonic_ns()
        final = await self._rounds()
        digests = await self._verify()
        self.outcome.transfer_wall_ns = time.monotonic_ns() - first_frame
        if self.outcome.verified:
            await self._commit(digests, final)
            await self._go_on()

    async def _rounds(self) -> Round:
        """All rounds, up to the last, which leaves the task frozen."""
        self._started_ns = self._clock.now_ns
        number = 0
        if not self._policy.pre_dumps:
            self._decided = True
            decision = self._policy.decide(RoundView(0, 0, 0, 0, 0, 0, self._page_size))
        while self._policy.pre_dumps:
            record = await self._pre_dump(number)
            decision = await self._decide(record)
            record.reason = decision.reason
            self._execution.throttle(decision.throttle_percent)
            self._observer.round(record, self._clock.now_ns)
            number += 1
            if decision.freeze:
                self._decided = True
                break
        final = await self._final_round(number, post_copy=decision.post_copy)
        self._observer.round(final, self._clock.now_ns)
        return final

    async def _get_ready(self, number: int) -> None:
        """Before the task is stopped for a round: whatever may take long without it."""

    async def _deliver(self, scan: RoundScan, number: int, *, final: bool) -> None:
        """Sends what a scan found, up to the last frame's leaving."""
        await self._send_frame(
            batch.encode_begin(self._next(), number, self._begin(scan, final=final))
        )
        await self._copy(scan, number)
        await self._send_frame(batch.encode_end(self._next(), number, self._end(final=final)))

    async def _pre_dump(self, number: int) -> Round:
        self._say("round", f"round {number}")
        await self._get_ready(number)
        start = self._clock.now_ns
        self._traffic = _Traffic()
        await self._freeze()
        scan = await self._in_thread(self._scan, number == 0)
        self._live = LiveRound(number, False, scan)
        frozen = self._clock.now_ns - start
        self._thaw()
        self._bucket.start()
        await self._deliver(scan, number, final=False)
        await self._pass_time(self._link.latency_ns + self._spec.costs.round_ns(scan.present))
        await self._flush()
        return self._record(number, scan, start, frozen)

    async def _decide(self, record: Round) -> Decision:
        changed = self._take_policy()
        dirty = 0
        if self._policy.counts_dirty:
            dirty = await self._in_thread(self._count_dirty)
        decision = self._policy.decide(
            RoundView(
                round=record.round,
                pages_written=record.pages_sent,
                pages_skipped=self._skipped,
                bytes_wire=record.bytes_wire,
                duration_ns=record.duration_ns,
                pages_dirty=dirty,
                page_size=self._page_size,
                pages_left=self._left,
            )
        )
        return replace(decision, reason=changed + decision.reason)

    def _take_policy(self) -> str:
        """Puts the policy in charge that somebody asked for, and says so."""
        if self._next_policy is None:
            return ""
        (spec, self._policy), self._next_policy = self._next_policy, None
        self._spec = self._spec.model_copy(update={"policy": spec})
        return f"policy changed to {self._policy.name}: "

    async def _final_round(self, number: int, *, post_copy: bool) -> Round:
        await self._get_ready(number)
        self._say("freeze", "freezing the task for the final round")
        down = self.outcome.downtime
        start = self._clock.now_ns
        self._traffic = _Traffic()
        await self._freeze()
        self._ownership.on(Event.FREEZE)
        down.freeze_ns = self._clock.now_ns - start
        scan = await self._in_thread(self._scan, number == 0, True)
        down.scan_ns = self._clock.now_ns - start - down.freeze_ns
        if post_copy:
            scan = self._leave_behind(scan, number)
        self._live = LiveRound(number, True, scan, later=self._server)
        self._say("final", f"final round: {scan.to_send} pages, frozen")
        before = self._clock.now_ns
        self._bucket.start()
        self._last_frame_ns = 0
        await self._deliver(scan, number, final=True)
        await self._flush()
        self._spend_final(down, self._clock.now_ns - before)
        reason = "final round, frozen"
        if self._server is not None:
            reason = f"frozen; {self._server.pages} pages come later"
        return self._record(number, scan, start, self._clock.now_ns - start, reason)

    def _leave_behind(self, scan: RoundScan, number: int) -> RoundScan:
        """The final round without the pages that can come later; they are served afterwards."""
        scan, lazy = split_scan(scan)
        if lazy:
            self._server = PageServer(self._execution, lazy, number, self._tracker.note)
        return scan

    def _spend_final(self, down: Downtime, elapsed_ns: int) -> None:
        """Dump and transfer of the final round, in which the task is frozen.

        Dump is what has to be gathered before the first page goes; the rest is gathered while
        others are on their way.
        """
        if self._clock.name == "wall":
            down.dump_ns = min(self._traffic.ahead_ns, elapsed_ns)
            down.transfer_ns = elapsed_ns - down.dump_ns
            return
        payload, ahead = self._traffic.payload_bytes, GATHER_BATCHES * batch.BATCH_BYTES
        gathered = self._spec.costs.copy_ns(payload) + self._traffic.encode_ns
        down.dump_ns = gathered if payload <= ahead else gathered * ahead // payload
        sent = max(self._link.transmit_ns(self._traffic.bytes_wire), gathered - down.dump_ns)
        down.transfer_ns = sent + self._link.latency_ns
        down.transfer_ns += self._spec.costs.round_ns(self._present)
        self._clock.spend(down.dump_ns + down.transfer_ns)

    # -- stopping, scanning, going on

    async def _freeze(self) -> None:
        self._check_abort()
        await self._execution.freeze()
        self._clock.spend(self._spec.costs.freeze_ns(len(self._execution.task.processes)))

    def _thaw(self) -> None:
        self._execution.thaw()
        self._clock.spend(self._spec.costs.thaw)

    def _scan(self, first: bool, final: bool = False) -> RoundScan:
        """Pagemaps, then the reset, under one lock: the task stands still in between."""
        task, costs = self._execution.task, self._spec.costs
        with self._execution.lock:
            scan = self._tracker.scan(task, first=first, final=final)
            self._tracker.reset(task)
        self._clock.spend(costs.scan_ns(scan.scanned) + costs.clear_ns(scan.present))
        self._skipped = scan.skipped
        self._left = scan.left
        self._scan_pages = scan.scanned
        self._present = scan.present
        self._vmas = scan.vmas
        return scan

    def _count_dirty(self) -> int:
        with self._execution.lock:
            dirty = self._tracker.count_dirty(self._execution.task)
        self._clock.spend(self._spec.costs.scan_ns(self._scan_pages))
        return dirty

    # -- frames

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _begin(self, scan: RoundScan, *, final: bool) -> common_pb2.RoundBegin:
        begin = common_pb2.RoundBegin(final=final)
        if self._sequence == 1:
            begin.delta_cache_pages = self._frames.cache_pages
        machine = self._execution.task.machine
        shared_ids: set[int] = set()
        for process in scan.processes:
            begin.processes.append(_process_message(process, machine.page_size))
            shared_ids |= {vma.shared_id for vma in process.space.vmas if vma.shared_id}
        for found in scan.files:
            begin.shared.append(describe_file(found.file, found.live))
            shared_ids.discard(found.file.object_id)
        huge = huge_objects(process.space for process in scan.processes)
        with self._execution.lock:
            for shared_id in sorted(shared_ids):
                begin.shared.append(describe_shared(machine, shared_id, huge=shared_id in huge))
        if final:
            begin.core = core_of(self._execution)
            if self._origin.images is not None:
                begin.images.extend(self._origin.images.messages())
            if self._server is not None:
                begin.post_copy.CopyFrom(make_plan(self._spec))
                self._server.describe(begin)
        return begin

    def _end(self, *, final: bool) -> common_pb2.RoundEnd:
        return common_pb2.RoundEnd(
            pages=self._traffic.pages_sent + self._traffic.pages_zero, final=final
        )

    async def _send_frame(self, frame: bytes) -> None:
        self._traffic.bytes_wire += len(frame)
        if self._execution.running:
            await self._pass_time(self._link.transmit_ns(len(frame)))
        await self._send(frame, self._sequence)

    async def _flush(self) -> None:
        """Returns when the link has carried what was sent and the destination has applied it."""
        await self._bucket.drain()
        await self._transport.flush()

    async def _send(self, frame: bytes, sequence: int) -> None:
        await self._bucket.send(len(frame))
        await self._transport.send(sequence, frame)
        if self._live is not None:
            self._live.went(sequence, len(frame))

    async def _copy(self, scan: RoundScan, number: int) -> None:
        """Gathers and sends; while some batches are on their way the next ones are gathered."""
        self._last_frame_ns = 0
        batches = self._batches(scan)
        pending = self._gather_next(batches, number)
        while pending is not None:
            frames = await pending
            self._traffic.ahead_ns = self._traffic.ahead_ns or self._traffic.gather_ns
            self._check_abort()
            pending = self._gather_next(batches, number)
            try:
                for frame, sequence in frames:
                    await self._send(frame, sequence)
            except BaseException:
                if pending is not None:
                    await pending  # it holds the lock and the model: let it end first
                raise
        await self._pass_time(self._last_frame_ns)
        self._last_frame_ns = 0

    def _gather_next(self, batches: Iterator[_Batch], number: int) -> _Gathering | None:
        """Starts to gather the next few batches in the migration's thread; None after the last."""
        some = list(islice(batches, GATHER_BATCHES))
        if not some:
            return None
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._pool, self._gather_some, some, number)

    def _gather_some(self, some: list[_Batch], number: int) -> list[tuple[bytes, int]]:
        """Frames and sequence numbers of those batches of which anything is left."""
        return [made for part in some if (made := self._gather(part, number)) is not None]

    def _batches(self, scan: RoundScan) -> Iterator[_Batch]:
        page_size = self._execution.task.machine.page_size
        most = max(1, batch.BATCH_BYTES // page_size)
        for found in scan.files:
            for at in range(0, found.send.size, most):
                where = offsets(found.send[at : at + most], page_size)
                yield _Batch(0, where, found.number)
        for object_id, numbers in scan.unmapped:
            for at in range(0, numbers.size, most):
                where = offsets(numbers[at : at + most], page_size)
                yield _Batch(0, where, object_id=object_id)
        for process in scan.processes:
            for pages in process.send_by_vma:
                for at in range(0, pages.size, most):
                    yield _Batch(process.space.pid, pages[at : at + most])

    def _gather(self, part: _Batch, number: int) -> tuple[bytes, int] | None:
        """One batch as it is in memory now, (frame, sequence); None if all of it is gone."""
        # The frame before is on its way meanwhile, and the task runs on.
        self._clock.spend(self._last_frame_ns)
        self._last_frame_ns = 0
        began = time.monotonic_ns()
        task = self._execution.task
        with self._execution.lock:
            found = self._look(part)
            if found is None:
                if part.of_process and self._live is not None:
                    self._live.skipped(part.pid, int(part.addresses.size))
                return None
            packing, object_id = found
            heading = Heading(self._next(), number, part.pid, object_id)
            copied = self._frames.copy(packing, task.machine.content, heading)
            self._note(part, packing, number)
        # The task may go on while the copy is encoded.
        made = self._frames.finish(
            copied, task.machine.page_size, one_after_other=not self._execution.running
        )
        self._count(made, packing, time.monotonic_ns() - began)
        if part.of_process and self._live is not None:
            self._live.gathered(heading.sequence, part.pid, int(part.addresses.size))
        return made.frame, heading.sequence

    def _count(self, made: Made, packing: Packing, took_ns: int) -> None:
        """The frame goes into the round's figures, and is on its way for so long."""
        full = int(packing.rows.size)
        payload = full * self._execution.task.machine.page_size
        traffic = self._traffic
        traffic.bytes_wire += len(made.frame)
        traffic.payload_bytes += payload
        traffic.pages_sent += full
        traffic.pages_zero += int(packing.addresses.size) - full
        traffic.gather_ns += took_ns
        traffic.encode_ns += made.encode_ns
        traffic.decode_ns += made.decode_ns
        traffic.tally.add(made.tally)
        if self._execution.running:
            # Source, link and destination work on frames that follow each other.
            self._last_frame_ns = max(
                self._link.transmit_ns(len(made.frame)),
                self._spec.costs.copy_ns(payload) + made.encode_ns,
                made.decode_ns,
            )

    def _look(self, part: _Batch) -> tuple[Packing, int] | None:
        """What there is of a batch, and the object it belongs to (0: a process); None if nothing.

        A page that is gone by now is not live at the next scan, which says so.
        """
        task = self._execution.task
        object_id = part.object_id
        if not part.of_process:
            if part.file >= 0:
                object_id = task.files[part.file].object_id
            first = int(part.addresses[0]) // task.machine.page_size
            try:
                rows = task.machine.object_frames(object_id)[first:]
            except MmError:
                return None  # the task runs, and has unmapped the last of it
            versions = task.machine.phys.version[rows]
            packing = pack(task.machine.content, part.addresses, rows, versions)
        else:
            mm = task.processes.get(part.pid)
            if mm is None:
                return None
            packing = pack_from(mm, part.addresses)
        return (packing, object_id) if packing.addresses.size else None

    def _note(self, part: _Batch, packing: Packing, number: int) -> None:
        """These pages went out as they were now."""
        if part.object_id:
            return
        if part.file < 0:
            self._tracker.note(part.pid, packing.addresses, packing.versions, number)
            return
        page_size = np.uint64(self._execution.task.machine.page_size)
        pages = (packing.addresses // page_size).astype(np.int64)
        self._tracker.note_file(part.file, pages, packing.versions, number)

    def _record(
        self, number: int, scan: RoundScan, start_ns: int, frozen_ns: int, reason: str = ""
    ) -> Round:
        record = Round(
            round=number,
            pages_sent=self._traffic.pages_sent + self._traffic.pages_zero,
            pages_soft_dirty=scan.soft_dirty,
            pages_written=scan.written,
            pages_zero=self._traffic.pages_zero,
            bytes_wire=self._traffic.bytes_wire,
            payload_bytes=self._traffic.payload_bytes,
            duration_ns=self._clock.now_ns - start_ns,
            frozen_ns=frozen_ns,
            reason=reason,
            pages_lost=scan.lost,
            pages_spurious=scan.spurious,
            pages_scanned=scan.scanned,
            page_map=self._page_maps.of(scan) if self._page_maps is not None else None,
            tally=self._traffic.tally,
            encode_ns=self._traffic.encode_ns,
            decode_ns=self._traffic.decode_ns,
        )
        self.outcome.rounds.append(record)
        if self._live is not None:
            self._live.over = True
        return record

    # -- proof, hand-over, going on

    async def _verify(self) -> TaskDigests:
        self._say("verify", "both hosts digest their memory")
        before = self._clock.now_ns
        collected: list[TaskDigests] = []
        reply = await self._transport.verify(self._own_digests(collected))
        digests = collected[0]
        mismatches = list(reply.mismatches)
        if self._spec.verify.mode == "bytes":
            mismatches = await self._compare_bytes()
        self.outcome.mismatches = self._with_rounds(mismatches)
        self.outcome.mismatched_pages = sum(m.pages for m in mismatches)
        self.outcome.verified = reply.equal and not mismatches
        self.outcome.verify_ns = self._clock.now_ns - before
        if not self.outcome.verified:
            count = self.outcome.mismatched_pages
            why = (
                f"{count} pages differ at the destination"
                if count
                else "the address space, or what nobody maps, differs at the destination"
            )
            await self._keep_task("", why)
        return digests

    async def _own_digests(
        self, collected: list[TaskDigests]
    ) -> AsyncIterator[destination_node_pb2.VerifyChunk]:
        # The first message only starts the destination's digest, which runs beside the one here.
        yield destination_node_pb2.VerifyChunk(migration_id=self._id)
        digests = await self._in_thread(self._digest)
        self.outcome.memory_digest = digests.memory_digest
        later: tuple[ProcessDigests, ...] = ()
        if self._server is not None:
            later = self._server.digests(digests)
            digests = without_pages(self._execution.task, digests, self._server.lazy)
        collected.append(digests)
        for chunk in chunks(self._id, digests, self._page_size, later):
            yield chunk

    def _digest(self) -> TaskDigests:
        with self._execution.lock:
            return digest_task(self._execution.task)

    async def _compare_bytes(self) -> list[common_pb2.Mismatch]:
        """The destination's memory, streamed back, against the memory here, byte by byte."""
        self._say("verify", "the destination's memory comes back for comparison")
        page_size = self._execution.task.machine.page_size
        seen: dict[int, list[U64]] = {}
        wrong: dict[int, list[U64]] = {}
        async for chunk in self._transport.read_back():
            starts = np.array(chunk.run_start, dtype=np.uint64)
            counts = np.array(chunk.run_pages, dtype=np.uint64)
            addresses = from_runs(starts, counts, page_size)
            bad = await self._in_thread(self._differing, chunk.pid, addresses, chunk.pages)
            seen.setdefault(chunk.pid, []).append(addresses)
            wrong.setdefault(chunk.pid, []).append(bad)
        mismatches: list[common_pb2.Mismatch] = []
        for pid in sorted(self._execution.task.processes.keys() | seen.keys()):
            bad = np.concatenate(
                [*wrong.get(pid, []), await self._in_thread(self._not_seen, pid, seen.get(pid, []))]
            )
            mismatches += ranges(pid, np.unique(bad), page_size)
        return mismatches

    def _differing(self, pid: int, addresses: U64, data: bytes) -> U64:
        """Pages whose bytes here are not `data`; pages that are not here read as zeros."""
        task = self._execution.task
        mm = task.processes.get(pid)
        if mm is None:
            return addresses
        page_size = task.machine.page_size
        with self._execution.lock:
            first = int(addresses[0])
            span = (int(addresses[-1]) - first) // page_size + 1
            index = ((addresses - np.uint64(first)) // np.uint64(page_size)).astype(np.int64)
            rows = mm.frames(first, span)[index]
            return addresses[~pages_equal(task.machine.content, rows, data)]

    def _not_seen(self, pid: int, seen: list[U64]) -> U64:
        """Pages with content here that the destination did not send back."""
        mm = self._execution.task.processes.get(pid)
        if mm is None:
            return np.zeros(0, dtype=np.uint64)
        with self._execution.lock:
            here = nonzero_pages(pid, mm).addresses
        later = [] if self._server is None else [self._server.lazy.get(pid, here[:0])]
        return np.setdiff1d(here, np.concatenate([here[:0], *seen, *later]))

    def _with_rounds(self, mismatches: list[common_pb2.Mismatch]) -> list[common_pb2.Mismatch]:
        """The ranges cut where the round that last sent the pages changes."""
        page_size = self._execution.task.machine.page_size
        result: list[common_pb2.Mismatch] = []
        for pid in sorted({m.pid for m in mismatches}):
            addresses = addresses_of(mismatches, pid, page_size)
            rounds = self._tracker.last_rounds(pid, addresses)
            for number in np.unique(rounds).tolist():
                for part in ranges(pid, addresses[rounds == number], page_size):
                    part.last_round = number
                    result.append(part)
        return sorted(result, key=lambda m: (m.pid, m.start))

    async def _commit(self, digests: TaskDigests, final: Round) -> None:
        self._say("commit", "the memory is equal: handing the task over")
        self._check_abort()
        down, costs = self.outcome.downtime, self._spec.costs
        before = self._clock.now_ns
        if self._server is not None:
            await self._transport.open_pages(
                self._server, self._bucket.send, lazy_of(self._spec.policy).lost_after_ns
            )
        self._ownership.on(Event.SEND_COMMIT)
        status = await self._offer(digests.memory_digest)
        if self._clock.name == "wall":
            down.restore_ns = status.restore_ns
            down.resume_ns = max(0, self._clock.now_ns - before - status.restore_ns)
        else:
            restore = costs.restore_ns(self._vmas, final.payload_bytes, self._present)
            down.restore_ns = restore + final.decode_ns
            down.resume_ns = costs.resume
            self._clock.spend(down.restore_ns + down.resume_ns)
        self._handed_over()

    async def _offer(self, memory_digest: str) -> destination_node_pb2.MigrationStatus:
        """Asks the destination to take the task over; one that refuses does so for good."""
        try:
            return await self._transport.commit(memory_digest)
        except CommitInDoubt:
            raise
        except MigrationError:
            self._take_back(Event.REFUSED)
            raise

    def _handed_over(self) -> None:
        """The task is the destination's; with post-copy not all of its pages are there yet."""
        self._runnable_ns = self._clock.now_ns
        if self._server is None:
            self._released(Event.TAKEN)
        else:
            self._ownership.on(Event.TAKEN_WITHOUT_PAGES)
            self._served = True
            self._observer.handed_over(self.outcome, self._clock.now_ns)
        self._say("resume", "the task runs at the destination")

    def _released(self, event: Event) -> None:
        self._ownership.on(event)
        verify = self.outcome.verify_ns if self._clock.name == "wall" else 0
        later = 0 if self.outcome.post_copy is None else self.outcome.post_copy.residual_ns
        runnable = self._runnable_ns or self._clock.now_ns
        self.outcome.total_ns = runnable + later - self._started_ns - verify

    async def _go_on(self) -> None:
        """The workload goes on over there; the caller compares with a run that never moved."""
        until = self._execution.workload_ns + self._spec.run_after_ns
        self._say("continue", "the workload goes on at the destination")
        continuing = asyncio.create_task(self._transport.continue_to(until))
        try:
            if self._server is not None and not await self._serve(continuing):
                return
            if continuing.done() and isinstance(continuing.exception(), DestinationLost):
                # It was away for a while, and asked for its pages again since.
                continuing = asyncio.create_task(self._transport.continue_to(until))
            await self._compare_afterwards(await continuing)
        except MigrationError as error:
            self.outcome.error = (
                f"the task was handed over and is the destination's; afterwards: {error}"
            )
        finally:
            continuing.cancel()
            await asyncio.gather(continuing, return_exceptions=True)

    async def _serve(self, continuing: asyncio.Task[destination_node_pb2.ContinueReply]) -> bool:
        """Post-copy: answers until the destination has all pages. False: it will not have them."""
        assert self._server is not None
        self._say("serve", f"{self._server.pages} pages come while the task runs")
        try:
            record = await self._pages_over(continuing)
        except MigrationError as error:
            self._lose_sight(
                f"{error}. It had taken the task over and lacked pages of it", "did there since"
            )
            return False
        self.outcome.post_copy = record
        self._clock.spend(record.residual_ns)
        wrong = [*record.different, *self._server.different]
        if wrong:
            self.outcome.mismatches = self._with_rounds(wrong)
            self.outcome.mismatched_pages = sum(m.pages for m in wrong)
            self.outcome.verified = False
        if record.halted:
            self._lose_sight(f"the destination stopped the task: {record.halted}", "did there")
            return False
        not_seen = record.pages_lazy - record.pages_dropped - self._server.compared
        if self._spec.verify.mode == "bytes" and not_seen > 0:
            self.outcome.verified = False
            self.outcome.error = (
                f"{not_seen} pages were not read back for comparison: the page stream broke; "
                'migrate again, or verify with mode = "digest"'
            )
        if record.not_kept:
            self.outcome.error = (
                "all pages are at the destination, and it could not keep the task, which would be "
                f"lost with that process: {record.not_kept}"
            )
        self._released(Event.PAGES_OVER)
        self._say("released", f"all pages are at the destination: {record.faults} faults")
        return True

    async def _pages_over(
        self, continuing: asyncio.Task[destination_node_pb2.ContinueReply]
    ) -> common_pb2.PostCopyRecord:
        serving = asyncio.create_task(self._transport.pages_over())
        both: list[asyncio.Task[Any]] = [serving, continuing]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
            if not serving.done() and not isinstance(continuing.exception(), DestinationLost):
                # A task that failed asks for no more pages; it may say why.
                await asyncio.wait([serving], timeout=LAST_WORDS_S)
                if not serving.done():
                    continuing.result()
            return await serving  # which finds out by itself whether the destination is lost
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    def _lose_sight(self, why: str, did: str) -> None:
        """The task is not here, and not whole there: what becomes of it is somebody's decision."""
        self._ownership.on(Event.LOSE_SIGHT)
        self._doubt = why
        self.outcome.verified = False
        self.outcome.error = (
            f"{why}. The source keeps the memory as it was at the freeze: settle the migration by "
            "ASK to serve its pages once more, when the destination can be reached and has the "
            f"task; by KEEP to go on from the freeze, which undoes what the task {did}; or by "
            "RELEASE to let go"
        )

    async def _compare_afterwards(self, reply: destination_node_pb2.ContinueReply) -> None:
        self.outcome.continued = True
        self.outcome.operations = reply.operations
        self._say("compare", "the same workload runs here without a migration, for comparison")
        expected = await self._reference(reply.operations)
        self.outcome.continued_equal = reply.memory_digest == expected

    # -- when it does not go well

    def _check_abort(self) -> None:
        if self._abort_reason is not None:
            raise Aborted(f"aborted: {self._abort_reason}")

    async def _keep_task(self, error: str, reason: str = "") -> None:
        """The destination forgets the task, and it goes on here, unless it was handed over."""
        if not self._ownership.allows(Event.GIVE_UP):
            standing = "the task is in doubt: settle the migration"
            if self._ownership.state is not Ownership.IN_DOUBT:
                standing = "the task was handed over and is the destination's"
            self.outcome.error = f"{error}; {standing}"
            return
        await self._transport.abort(reason or error)
        self._take_back(Event.GIVE_UP)
        if error:
            self.outcome.error = f"{error}; the source kept the task and resumed it"

    def _take_back(self, event: Event) -> None:
        self._ownership.on(event)
        self._execution.throttle(0)
        with self._execution.lock:
            self._tracker.stop(self._execution.task)
        self._execution.thaw()

    async def _settle_doubt(self, error: CommitInDoubt) -> None:
        """Commit was sent without an answer: only the destination can say what became of it."""
        self._say("commit", "no answer to the hand-over: asking the destination what became of it")
        self._doubt = str(error)
        try:
            await self.settle()
        except DestinationLost as lost:
            self.outcome.error = (
                f"{error}, and asked later: {lost}. The task is in doubt: it stands still at the "
                "source with all its memory. Start the destination again with the state directory "
                "it had, then settle the migration"
            )

    async def settle(self) -> None:
        """Asks the destination what became of the hand-over, and ends the doubt.

        Raises `DestinationLost` if there is no answer that counts; the doubt stays.
        """
        self._ownership.require(Ownership.IN_DOUBT)
        event = fate(Ownership(await self._transport.settle()), served=self._served)
        if event is Event.LOSE_SIGHT:
            self._lose_sight(
                "the destination had taken the task over and died with it", "did there"
            )
            return
        if event is Event.NEVER_TAKEN:
            self._keep_after_doubt(event)
            return
        self._say("commit", "the destination had taken the task over")
        self.outcome.error = ""
        self.outcome.verified = True  # it was, before the hand-over; pages that come are compared
        self._handed_over()
        await self._go_on()
        self.outcome.ownership = self._ownership.state

    def decide(self, *, keep: bool) -> None:
        """Ends the doubt: the task goes on here, or it is the destination's."""
        self._ownership.require(Ownership.IN_DOUBT)
        if keep:
            self._keep_after_doubt(Event.KEEP)
        else:
            self._released(Event.RELEASE)
            self._say("resume", "the task is the destination's")
            self.outcome.error = f"{self._doubt}; the task is the destination's"
        self.outcome.ownership = self._ownership.state

    def _keep_after_doubt(self, event: Event) -> None:
        self._take_back(event)
        never = "" if self._served else "it never took the task, and "
        self.outcome.error = f"{self._doubt}; {never}the source resumed it"
        self.outcome.ownership = self._ownership.state

    # -- small things

    async def _pass_time(self, duration_ns: int) -> None:
        """Spends virtual time, in which the task runs; real time passes by itself."""
        if self._clock.name == "virtual":
            await self._in_thread(self._clock.spend, duration_ns)

    async def _in_thread(self, call: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)

    def _say(self, phase: str, message: str) -> None:
        self._observer.phase(phase, self._clock.now_ns, message)

    def _verdict(self) -> str:
        if self.outcome.error:
            return self.outcome.error
        if not self.outcome.verified:
            return (
                f"not verified: {self.outcome.mismatched_pages} pages differ; "
                "the source kept the task and resumed it"
            )
        return "verified; the destination owns the task"


def _process_message(process: ProcessScan, page_size: int) -> common_pb2.Process:
    message = to_proto(process.space)
    starts, pages = to_runs(process.live, page_size)
    message.live_start.extend(starts.tolist())
    message.live_pages.extend(pages.tolist())
    return message
