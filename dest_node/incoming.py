"""One task on its way in: address spaces and pages, frame by frame, until it may run here.

Every frame is applied once and in order. The frame that opens a round says what the source's
address spaces look like and which pages have content at all; whatever this host has beyond that is
dropped, so that memory given back or moved at the source does not live on here.
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dest_node.checkpoint import describe_task
from dest_node.missing import MissingPages
from dest_node.page_channel import PageChannel
from dest_node.page_file import PageFile
from dest_node.post_copy import VirtualRun, WallRun
from dest_node.reserve import reserve
from dest_node.store import CommitRecord, StateDirectory
from livemigration import batch
from livemigration.criu.carried import CarriedImages
from livemigration.criu.export import DumpTimes, export_task
from livemigration.digest import gather_bytes
from livemigration.encoding.decoder import Decoder
from livemigration.errors import BadRequest, DamagedFrame, NoSpace, WrongState
from livemigration.execution import Execution
from livemigration.files import drop_holes, file_pages, offsets, unmapped_pages
from livemigration.layout import from_proto, huge_objects, reconcile, restore_advice
from livemigration.ownership import Event, Ownership, OwnershipMachine
from livemigration.runs import from_runs, to_runs
from livemigration.snapshot import TaskDigests, digest_task, nonzero_pages, own_pages
from livemigration.spec import TaskSpec
from livemigration.task import ROOT_PID, Task, build_machine, model_config
from livemigration.v1 import common_pb2, destination_node_pb2
from livemigration.workload import build_workload
from mm_model import MAP_SHARED, Mm, MmError
from mm_model.state import NEXT_FRAME

U64 = NDArray[np.uint64]

_MORE_ROOM = 16 << 20
"""Bytes for which room is taken beyond what is at hand, when a task has grown."""


@dataclass(frozen=True, slots=True)
class Request:
    """What Prepare asked for."""

    migration_id: str
    struct: dict[str, Any]
    base_dir: str
    clock: str
    extra_pages: int = 0
    resident_pages: int = 0  # what the task has now; a recovered one needs no more

    def spec(self) -> TaskSpec:
        """The task's spec, checked; ValueError with one line."""
        return TaskSpec.from_struct(self.struct)


@dataclass(slots=True)
class IncomingTask:
    """A migration at its destination. Methods that touch the model hold `lock`."""

    request: Request
    spec: TaskSpec
    task: Task
    store: StateDirectory | None
    pages: PageFile | None = None  # the task's memory, if there is a store; not of a recovered one
    ownership: OwnershipMachine = field(default_factory=lambda: OwnershipMachine(source=False))
    lock: threading.Lock = field(default_factory=threading.Lock)
    sequence: int = 0
    round: int = -1
    begin: common_pb2.RoundBegin | None = None
    round_over: bool = True
    complete: bool = False  # the final round is here
    digests: TaskDigests | None = None
    execution: Execution | None = None
    recovered: bool = False
    missing: MissingPages | None = None  # post-copy: the pages that come after the hand-over
    channel: PageChannel | None = None  # ... and who brings them
    post_copy: VirtualRun | WallRun | None = None  # ... once the task is this host's
    came: common_pb2.PostCopyRecord | None = None  # ... how they did, if a process before saw it
    when_kept: Callable[[], None] = lambda: None  # called when they are in the state directory
    export_to: Path | None = None  # where the task is written as CRIU images when it is taken over
    images: CarriedImages | None = None  # those that the task came with, beside its memory
    _received: int = 0  # pages of the round so far
    _decoder: Decoder | None = None  # while pages come
    _shared: dict[int, int] = field(default_factory=dict)
    _files: dict[int, int] = field(default_factory=dict)  # the source's object -> file number

    @classmethod
    def prepare(
        cls, request: Request, store: StateDirectory | None, export_to: Path | None = None
    ) -> IncomingTask:
        """Makes room; `NoSpace` if there is none, ValueError if the spec is not one."""
        spec = request.spec()
        config = model_config(spec, request.extra_pages)
        room = min(request.resident_pages + 1, config.frames)
        pages = None if store is None else store.pages(config.frames, config.page_size, room)
        try:
            content = None if pages is None else pages.content
            task = Task(build_machine(spec, request.extra_pages, content))
            reserve(task.machine.content[:room])
        except MemoryError as error:
            if store is not None:
                store.forget()
            raise NoSpace(f"no room for {spec.memory} bytes of memory") from error
        incoming = cls(request, spec, task, store, pages, export_to=export_to)
        incoming.ownership.on(Event.PREPARE)
        return incoming

    @classmethod
    def recover(cls, store: StateDirectory) -> IncomingTask | None:
        """The committed task of a state directory, ready to go on; `BadRequest` if damaged."""
        record = store.committed()
        if record is None:
            return None
        request = Request(
            record.migration_id, record.task, record.base_dir, record.clock, record.extra_pages
        )
        spec = request.spec()
        task = Task(build_machine(spec, request.extra_pages))
        incoming = cls(request, spec, task, store)
        incoming._open_round(0, common_pb2.RoundBegin.FromString(record.begin))
        most = max(1, batch.BATCH_BYTES // spec.page_size)
        for pid, (addresses, rows) in record.rows.items():
            for at in range(0, addresses.size, most):
                task.processes[pid].install(
                    addresses[at : at + most],
                    store.read_pages(rows[at : at + most], spec.page_size),
                )
        kept = [file.object_id for file in task.files] + [at for at, _ in unmapped_pages(task)]
        for object_id, (pages, rows) in zip(kept, record.files, strict=False):
            for at in range(0, pages.size, most):
                incoming._install_in_object(
                    object_id,
                    offsets(pages[at : at + most], spec.page_size),
                    store.read_pages(rows[at : at + most], spec.page_size),
                )
        if incoming.digest().memory_digest != record.memory_digest:
            raise BadRequest(
                f"state directory {store.path}: the memory of migration {record.migration_id} is "
                "not what was committed: the page file was changed; restore it, or move the "
                "directory away to start without that task"
            )
        incoming.execution = incoming._restore()
        incoming._decoder = None
        incoming.recovered = incoming.complete = incoming.round_over = True
        if record.post_copy:
            incoming.came = common_pb2.PostCopyRecord.FromString(record.post_copy)
        incoming.ownership.on(Event.FIND_COMMITTED)
        return incoming

    # -- receiving

    def apply(self, message: bytes) -> int:
        """Applies one frame; returns the sequence number up to which everything is applied."""
        frame = batch.decode(message)
        with self.lock:
            self.ownership.check(Event.FRAME)
            if frame.sequence <= self.sequence:
                return self.sequence  # sent again after a break; once is enough
            if frame.sequence != self.sequence + 1:
                raise DamagedFrame(
                    f"frame {frame.sequence} came after frame {self.sequence}; some are missing"
                )
            batch.check(frame, self.spec.page_size)
            try:
                self._apply(frame)
            except MemoryError as error:
                raise NoSpace("the destination ran out of memory") from error
            except MmError as error:
                if error.errno == errno.ENOMEM:
                    raise NoSpace(
                        f"frame {frame.sequence} brings more pages than there is memory for: the "
                        f"task was announced with {self.spec.memory} bytes; announce all it has"
                    ) from error
                raise DamagedFrame(
                    f"frame {frame.sequence} does not fit the address space: {error.strerror}"
                ) from error
            self.sequence = frame.sequence
        return self.sequence

    def _apply(self, frame: batch.Frame) -> None:
        if frame.begin is not None:
            self._open_round(frame.round, frame.begin)
        elif frame.end is not None:
            self._close_round(frame.end)
        else:
            self._place(frame)

    def _open_round(self, number: int, begin: common_pb2.RoundBegin) -> None:
        self.round = number
        self.begin = begin
        self._received = 0
        self.round_over = False
        self._open_decoder(begin)
        if begin.images:
            if not begin.final:
                raise DamagedFrame("images beside the memory come with the final round alone")
            self.images = CarriedImages.received(begin.images)
        machine = self.task.machine
        spaces = {process.pid: from_proto(process) for process in begin.processes}
        sizes = huge_objects(spaces.values())
        for shared in begin.shared:
            self._open_object(shared, sizes.get(shared.id, 0))
        wanted = {process.pid for process in begin.processes}
        if ROOT_PID not in wanted:
            raise DamagedFrame("a round without the task's first process")
        for pid in [pid for pid in self.task.processes if pid not in wanted]:
            self.task.exit(pid)
        for process in begin.processes:
            if process.pid not in self.task.processes:
                self.task.processes[process.pid] = machine.create_mm()
            self.task.parents[process.pid] = process.ppid
            mm = self.task.processes[process.pid]
            reconcile(mm, spaces[process.pid], self._shared)
            self._drop_dead(mm, process)
        if begin.HasField("post_copy"):
            self._expect_lazy_pages(begin)

    def _expect_lazy_pages(self, begin: common_pb2.RoundBegin) -> None:
        """Pages that come later; what an earlier round brought of them is out of date."""
        page_size = self.spec.page_size
        lazy: dict[int, U64] = {}
        for process in begin.processes:
            starts = np.array(process.lazy_start, dtype=np.uint64)
            pages = np.array(process.lazy_pages, dtype=np.uint64)
            if starts.size != pages.size:
                raise DamagedFrame("the lazy pages of a process are columns of different lengths")
            if starts.size:
                addresses = from_runs(starts, pages, page_size)
                if (addresses[1:] <= addresses[:-1]).any():
                    raise DamagedFrame("the lazy pages of a process are out of order")
                self.task.processes[process.pid].discard(addresses)
                lazy[process.pid] = addresses
        self.missing = MissingPages(lazy, page_size)

    def _open_decoder(self, begin: common_pb2.RoundBegin) -> None:
        """The first round says how many pages are to be remembered for deltas."""
        wanted = begin.delta_cache_pages
        if self._decoder is not None:
            if wanted:
                raise DamagedFrame("only the first round says how many pages are remembered")
            return
        most = self.spec.pages + self.request.extra_pages
        if wanted > most:
            raise DamagedFrame(f"{wanted} pages to be remembered of a task that has {most}")
        self._decoder = Decoder(self.spec.page_size, wanted)

    def _open_object(self, shared: common_pb2.SharedObject, huge_bytes: int) -> None:
        """A shared object or file, as it is at the source but for the bytes to come.

        `huge_bytes`: the size of its pages if it is hugetlb memory, else 0.
        """
        machine = self.task.machine
        if shared.kind == common_pb2.OBJECT_KIND_ANONYMOUS:
            if shared.id not in self._shared:
                if huge_bytes and huge_bytes not in machine.huge_page_sizes:
                    raise DamagedFrame(f"object {shared.id} has huge pages of {huge_bytes} bytes")
                huge = (huge_bytes // machine.page_size).bit_length() - 1 if huge_bytes else 0
                self._shared[shared.id] = machine.create_shared(shared.pages, keep=True, huge=huge)
            elif shared.live_told and not huge_bytes:
                drop_holes(machine, self._shared[shared.id], shared)
            return
        if shared.id not in self._files:
            on_disk = shared.kind == common_pb2.OBJECT_KIND_DISK
            self._files[shared.id] = self.task.create_file(shared.pages, on_disk=on_disk)
        file = self.task.files[self._files[shared.id]]
        self._shared[shared.id] = file.object_id
        drop_holes(machine, file.object_id, shared)

    def object_here(self, source_object: int) -> int:
        """This host's object for a file, or other shared object, of the source's."""
        return self._shared[source_object]

    def _drop_dead(self, mm: Mm, process: common_pb2.Process) -> None:
        """Private pages that have no content at the source any more go away here."""
        starts = np.array(process.live_start, dtype=np.uint64)
        pages = np.array(process.live_pages, dtype=np.uint64)
        if starts.size != pages.size:
            raise DamagedFrame("the live pages of a process are columns of different lengths")
        have = private_pages(mm)
        if have.size == 0:
            return
        if starts.size == 0:
            mm.discard(have)
            return
        ends = starts + pages * np.uint64(self.spec.page_size)
        at = np.searchsorted(starts, have, side="right").astype(np.int64) - 1
        dead = (at < 0) | (have >= ends[np.maximum(at, 0)])
        if dead.any():
            mm.discard(have[dead])

    def _close_round(self, end: common_pb2.RoundEnd) -> None:
        if self._received != end.pages:
            raise DamagedFrame(
                f"round {self.round}: {self._received} pages arrived, {end.pages} were sent"
            )
        self.round_over = True
        self.complete = end.final
        if self.complete:
            self._decoder = None  # and what it remembers

    def _place(self, frame: batch.Frame) -> None:
        if self.round_over:
            raise DamagedFrame(f"frame {frame.sequence} brings pages outside of a round")
        install = self._installer(frame)
        page_size = self.spec.page_size
        self._take_room(int(frame.run_pages.sum()) + int(frame.zero_pages.sum()))
        if frame.run_start.size:
            assert self._decoder is not None
            addresses = from_runs(frame.run_start, frame.run_pages, page_size)
            pages = self._decoder.decode(frame)
            install(addresses, pages)
            self._decoder.remember(frame, pages)
            self._received += int(addresses.size)
        if frame.zero_start.size:
            addresses = from_runs(frame.zero_start, frame.zero_pages, page_size)
            install(addresses, np.zeros(addresses.size * page_size, dtype=np.uint8))
            self._received += int(addresses.size)

    def _take_room(self, pages: int) -> None:
        """For so many more, where the task has outgrown the room that was taken for it.

        `NoSpace` if there is none: said now, since the hand-over has no time for it.
        """
        if self.store is None or self.pages is None:
            return
        used = self._rows_used()
        if used + pages <= self.pages.room:
            return
        more = _MORE_ROOM // self.spec.page_size
        try:
            self.store.take_room(self.pages, used + pages + more, used)
        except NoSpace:  # there may be as much as is needed
            self.store.take_room(self.pages, used + pages, used)

    def _rows_used(self) -> int:
        """Rows that ever had content; those beyond are zeros."""
        return int(self.task.machine.phys.ctr[NEXT_FRAME])

    def _installer(self, frame: batch.Frame) -> Callable[[U64, NDArray[np.uint8]], None]:
        """What puts the pages of a frame in place: into a process, or into a file."""
        if not frame.object_id:
            mm = self.task.processes.get(frame.pid)
            if mm is None:
                raise DamagedFrame(
                    f"frame {frame.sequence} is for process {frame.pid}, unknown here"
                )
            return mm.install
        object_id = self._shared.get(frame.object_id)
        if object_id is None or self.task.machine.shared(object_id).huge:
            raise DamagedFrame(
                f"frame {frame.sequence} is for object {frame.object_id}, unknown here"
            )
        return partial(self._install_in_object, object_id)

    def _install_in_object(self, object_id: int, where: U64, pages: NDArray[np.uint8]) -> None:
        numbers = (where // np.uint64(self.spec.page_size)).astype(np.int64)
        self.task.machine.install_object(object_id, numbers, pages)

    # -- proof

    def digest(self) -> TaskDigests:
        """This host's own digests of what it has, from its page tables."""
        with self.lock:
            self.digests = digest_task(self.task)
            return self.digests

    def memory(self) -> Iterator[destination_node_pb2.MemoryChunk]:
        """All pages that are not zeros, read from the page tables, in batches.

        A batch stays within one VMA, so that the source looks at one range for it. Of a task that
        is this host's, once it has run to the time that was asked for.
        """
        self.ownership.require(Ownership.RECEIVING, Ownership.VERIFIED, Ownership.COMMITTED)
        wall = self.request.clock == "wall"  # on the virtual clock it runs when it is asked to
        if self.execution is not None and (self.lacks_pages or (wall and self.execution.running)):
            raise WrongState("the task runs here; its memory can be read once it is at rest")
        page_size = self.spec.page_size
        most = max(1, batch.BATCH_BYTES // page_size)
        for pid in sorted(self.task.processes):
            mm = self.task.processes[pid]
            pages = nonzero_pages(pid, mm)
            for vma in mm.vmas():
                borders = np.array([vma.start, vma.end], dtype=np.uint64)
                first, last = np.searchsorted(pages.addresses, borders).tolist()
                for at in range(first, last, most):
                    window = slice(at, min(at + most, last))
                    starts, counts = to_runs(pages.addresses[window], page_size)
                    yield destination_node_pb2.MemoryChunk(
                        pid=pid,
                        run_start=starts.tolist(),
                        run_pages=counts.tolist(),
                        pages=gather_bytes(self.task.machine.content, pages.rows[window]),
                    )

    def verified(self, *, equal: bool, lazy: Mapping[int, tuple[U64, U64]] | None = None) -> None:
        """The comparison's result; `lazy`: the digests of pages that come later, by process."""
        if self.missing is not None:
            self.missing.expect(lazy or {})
        if equal and self.complete:
            self.ownership.on(Event.EQUAL)

    # -- hand-over

    def take_over(self, memory_digest: str) -> None:
        """Makes the task this host's. After this returns it never goes back."""
        if self.ownership.state is Ownership.COMMITTED:
            return  # asked again
        self.ownership.check(Event.COMMIT)
        if self.digests is None or self.digests.memory_digest != memory_digest:
            raise WrongState("what was verified is not what is to be committed; verify again")
        with self.lock:
            # Everything that can fail comes before the point of no return.
            self.execution = self._restore()
            if self.missing is not None:
                self._take_over_without_pages(self.missing)
            else:
                self._export(self.execution)
                self._keep()
            self.ownership.on(Event.COMMIT)

    def _export(self, execution: Execution) -> None:
        """Writes the task, which is whole and at rest, as images; `ImageError` if it cannot."""
        if self.export_to is None:
            return
        export_task(
            self.task,
            self.export_to,
            carried=self.images,
            name=f"predump-{self.spec.workload.kind}",
            times=DumpTimes(uptime_ns=execution.workload_ns),
        )

    def _keep(self) -> None:
        """The point of no return, of a host that keeps its task over a restart."""
        if self.store is None:
            return
        self._commit(self.store, self._record())

    def _commit(self, store: StateDirectory, record: CommitRecord) -> None:
        """The task's memory is in the directory as it is, and its own from here on."""
        assert self.pages is not None
        used = self._rows_used()
        store.take_room(self.pages, used, used)  # nearly always there already
        private = store.private_pages(self.pages, used)
        store.commit(record)
        self.task.machine.replace_content(private)
        self.pages = None

    def _take_over_without_pages(self, missing: MissingPages) -> None:
        assert self.begin is not None
        assert self.execution is not None
        if self.channel is None:
            raise WrongState("post-copy: the source has not opened the page stream")
        kind = WallRun if self.request.clock == "wall" else VirtualRun
        self.post_copy = kind(
            self.execution, missing, self.begin.post_copy, self.channel, self._whole
        )
        if self.store is not None:
            self.store.note_taken(self.request.migration_id)

    def _whole(self) -> None:
        """The last page of a post-copy has come, and the task is at rest for a moment."""
        assert self.execution is not None
        assert self.post_copy is not None
        self._export(self.execution)
        if self.store is None:
            return
        begin = describe_task(self.execution, self.task)
        if self.images is not None:
            begin.images.extend(self.images.messages())
        self._commit(
            self.store,
            replace(
                self._record(),
                begin=begin.SerializeToString(),
                memory_digest=digest_task(self.task).memory_digest,
                post_copy=self.post_copy.record.SerializeToString(),
            ),
        )
        self.when_kept()

    async def run_to(self, workload_ns: int) -> None:
        """The task runs until its own time is `workload_ns`; `WrongState` if it cannot go on."""
        assert self.execution is not None
        if self.post_copy is None:
            await self.execution.run_to(workload_ns)
            return
        await self.post_copy.run_to(workload_ns)
        if self.post_copy.stopped:
            raise WrongState(self.post_copy.stopped)

    def _restore(self) -> Execution:
        """The workload, with the state it had when it was frozen, on the memory that is here."""
        if self.begin is None or not self.begin.core:
            raise WrongState("the final round with the task's state has not arrived")
        core = json.loads(self.begin.core)
        for process in self.begin.processes:
            restore_advice(self.task.processes[process.pid], from_proto(process))
        self.task.next_pid = core["next_pid"]
        workload = build_workload(
            self.spec.workload,
            seed=self.spec.seed,
            memory_bytes=self.spec.memory,
            page_size=self.spec.page_size,
            base_dir=Path(self.request.base_dir),
        )
        workload.restore(core["workload"])
        return Execution(
            self.task,
            workload,
            wall=self.request.clock == "wall",
            workload_ns=core["workload_ns"],
        )

    def _record(self) -> CommitRecord:
        assert self.begin is not None
        assert self.digests is not None
        return CommitRecord(
            migration_id=self.request.migration_id,
            task=self.request.struct,
            base_dir=self.request.base_dir,
            clock=self.request.clock,
            extra_pages=self.request.extra_pages,
            begin=self.begin.SerializeToString(),
            memory_digest=self.digests.memory_digest,
            rows={pid: own_pages(self.task, pid) for pid in self.task.processes},
            files=[
                *(file_pages(self.task.machine, file) for file in self.task.files),
                *(
                    (pages, self.task.machine.object_frames(object_id)[pages])
                    for object_id, pages in unmapped_pages(self.task)
                ),
            ],
        )

    @property
    def lacks_pages(self) -> bool:
        """Whether pages of a post-copy have still to come."""
        return self.post_copy is not None and self.missing is not None and self.missing.left > 0

    def give_up(self) -> None:
        """Forgets the task for good, unless it is this host's."""
        self._forget(Event.ABORT)

    def refuse(self) -> None:
        """Forgets a task that could not be taken over: whoever is told so may go on with it."""
        self._forget(Event.REFUSE)

    def _forget(self, event: Event) -> None:
        with self.lock:
            before = self.ownership.state
            if not self.ownership.allows(event):
                return
            # What a hand-over that failed may have written goes first: as long as it is there, the
            # next process would take the task for its own, and nobody may be told otherwise.
            if before in (Ownership.RECEIVING, Ownership.VERIFIED) and self.store is not None:
                self.store.forget()
            self.ownership.on(event)
            if self.ownership.state is Ownership.ABORTED and before is not Ownership.ABORTED:
                self.task.release()


def private_pages(mm: Mm) -> U64:
    """Addresses of all pages with content in private mappings, ascending."""
    page_size = mm.machine.page_size
    parts = []
    for vma in mm.vmas():
        if vma.flags & MAP_SHARED:
            continue
        rows = mm.frames(vma.start, (vma.end - vma.start) // page_size)
        index = np.flatnonzero(rows >= 0)
        parts.append(np.uint64(vma.start) + index.astype(np.uint64) * np.uint64(page_size))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)
