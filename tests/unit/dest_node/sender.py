"""A source as the protocol describes it, made of the generated messages alone: frames by hand.

Nothing here is shared with the sending code of `source_node`, so a destination that agrees with it
agrees with docs/protocol.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from livemigration.layout import describe, to_proto
from livemigration.runs import to_runs
from livemigration.snapshot import digest_task, live_pages
from livemigration.spec import TaskSpec
from livemigration.task import ROOT_PID, Task, model_config
from livemigration.v1 import common_pb2
from livemigration.workload import Workload, build_workload
from mm_model import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE, Machine

U64 = NDArray[np.uint64]

PAGE = 4096
BASE = 0x10_0000_0000
RW = PROT_READ | PROT_WRITE
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
STRUCT: dict[str, Any] = {"memory": 64 * PAGE, "workload": {"kind": "uniform"}, "seed": 3}


def u64(*values: int) -> U64:
    """Some addresses."""
    return np.array(values, dtype=np.uint64)


def page(number: int) -> int:
    """Address of a page of the task's first mapping."""
    return BASE + number * PAGE


def checksum(frame: common_pb2.TransferFrame) -> int:
    """As common.proto has it: XXH3-64 of fields 6, 7, 9, 10 (little-endian) and 15."""
    columns = (frame.run_start, frame.run_pages, frame.zero_start, frame.zero_pages)
    whole = b"".join(np.array(column, dtype="<u8").tobytes() for column in columns)
    return xxhash.xxh3_64_intdigest(whole + frame.pages)


def sealed(frame: common_pb2.TransferFrame) -> bytes:
    """The frame as it goes out: what opens or closes a round gets its checksum."""
    for name in ("begin", "end"):
        if frame.HasField(name):
            body = getattr(frame, name).SerializeToString(deterministic=True)
            frame.checksum = xxhash.xxh3_64_intdigest(body)
    return frame.SerializeToString(deterministic=True)


@dataclass
class Sender:
    """A task and the frames that bring it elsewhere, numbered as they are made."""

    struct: dict[str, Any] = field(default_factory=lambda: dict(STRUCT))
    sequence: int = 0
    number: int = -1
    spec: TaskSpec = field(init=False)
    task: Task = field(init=False)

    def __post_init__(self) -> None:
        self.spec = TaskSpec.from_struct(self.struct)
        self.task = Task(Machine(model_config(self.spec)))

    @property
    def mm(self) -> Any:
        """The first process."""
        return self.task.processes[ROOT_PID]

    def map(self, first: int = 0, pages: int = 8, **options: Any) -> Sender:
        """Private memory at `page(first)`."""
        flags = options.pop("flags", PRIVATE)
        self.mm.mmap(page(first), pages * PAGE, options.pop("prot", RW), flags, **options)
        return self

    def write(self, *numbers: int, value: int = 1) -> Sender:
        """Eight bytes into each of these pages."""
        addresses = u64(*(page(number) for number in numbers))
        self.mm.store_words(addresses, np.full(addresses.size, value, dtype=np.uint64))
        return self

    def workload(self) -> Workload:
        """The task's workload, set up in its memory."""
        workload = build_workload(
            self.spec.workload,
            seed=self.spec.seed,
            memory_bytes=self.spec.memory,
            page_size=self.spec.page_size,
            base_dir=Path(),
        )
        workload.setup(self.task, populate=True)
        return workload

    # -- frames

    def frame(self, **fields: Any) -> common_pb2.TransferFrame:
        """The next frame."""
        self.sequence += 1
        return common_pb2.TransferFrame(sequence=self.sequence, round=max(0, self.number), **fields)

    def begin(
        self, *, final: bool = False, workload: Workload | None = None
    ) -> common_pb2.TransferFrame:
        """Opens a round with the address spaces as they are now."""
        self.number += 1
        begin = common_pb2.RoundBegin(final=final)
        shared: set[int] = set()
        for pid in sorted(self.task.processes):
            mm = self.task.processes[pid]
            space = describe(pid, self.task.parents[pid], mm)
            process = to_proto(space)
            starts, counts = to_runs(live_pages(mm)[0], PAGE)
            process.live_start.extend(starts.tolist())
            process.live_pages.extend(counts.tolist())
            begin.processes.append(process)
            shared |= {vma.shared_id for vma in space.vmas if vma.shared_id}
        for shared_id in sorted(shared):
            begin.shared.add(id=shared_id, pages=self.task.machine.shared(shared_id).npages)
        if final and workload is not None:
            begin.core = json.dumps(
                {
                    "workload": workload.state(),
                    "workload_ns": workload.due_ns(workload.ops_done),
                    "next_pid": self.task.next_pid,
                }
            )
        return self.frame(begin=begin)

    def pages(
        self, addresses: U64 | None = None, *, pid: int = ROOT_PID
    ) -> common_pb2.TransferFrame:
        """Pages as they are now, all that have content unless told which."""
        mm = self.task.processes[pid]
        if addresses is None:
            addresses = live_pages(mm)[0]
        starts, counts = to_runs(addresses, PAGE)
        frame = self.frame(
            pid=pid,
            run_start=starts.tolist(),
            run_pages=counts.tolist(),
            pages=b"".join(mm.peek(address, PAGE) for address in addresses.tolist()),
        )
        frame.checksum = checksum(frame)
        return frame

    def end(self, pages: int, *, final: bool = False) -> common_pb2.TransferFrame:
        """Closes a round."""
        return self.frame(end=common_pb2.RoundEnd(pages=pages, final=final))

    def round(
        self,
        send: dict[int, U64] | None = None,
        *,
        final: bool = False,
        workload: Workload | None = None,
    ) -> list[bytes]:
        """A whole round, all of the memory unless told which pages of which processes."""
        if send is None:
            send = {pid: live_pages(mm)[0] for pid, mm in self.task.processes.items()}
        frames = [self.begin(final=final, workload=workload)]
        frames += [self.pages(addresses, pid=pid) for pid, addresses in send.items()]
        frames.append(self.end(sum(a.size for a in send.values()), final=final))
        return [sealed(frame) for frame in frames]

    def memory_digest(self) -> str:
        """What a destination that is equal has as well."""
        return digest_task(self.task).memory_digest
