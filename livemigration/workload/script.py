"""A task that does what a script says, one operation after the other, while it is migrated.

Operations are system calls and accesses in the language of `livemigration.operations`. They are due
at fixed times and each depends on its number alone, so that the same happens wherever the task runs
and however its time is cut. One that fails ends the run with its line and errno, unless the script
lets it fail.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from fractions import Fraction
from functools import partial
from typing import Any, Final

import numpy as np

from livemigration.operations import BASE, FILES, STRIDE, Op
from livemigration.workload.base import (
    READ_WRITE,
    ROOT,
    Setting,
    Tally,
    Task,
    Workload,
    WorkloadError,
)
from livemigration.workload.clock import NEVER_NS, RateClock
from livemigration.workload.content import Content
from livemigration.workload.kernels import U64
from livemigration.workload.script_text import Step, parse_script, peak_pages
from livemigration.workload.spec import ScriptSpec
from livemigration.workload.targets import Targets
from mm_model import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    Livelock,
    Mm,
    MmError,
    NotModelled,
)

_SECOND_NS: Final = 10**9
_PROT: Final = {"none": PROT_NONE, "r": PROT_READ, "rw": READ_WRITE}
_HUGETLB_SHIFT: Final = {"hugetlb64k": 16, "hugetlb2m": 21}
_ADVICE: Final = {
    "willneed": MADV_WILLNEED,
    "dontneed": MADV_DONTNEED,
    "remove": MADV_REMOVE,
    "dontfork": MADV_DONTFORK,
    "hugepage": MADV_HUGEPAGE,
    "nohugepage": MADV_NOHUGEPAGE,
    "wipeonfork": MADV_WIPEONFORK,
    "cold": MADV_COLD,
    "pageout": MADV_PAGEOUT,
    "populate_read": MADV_POPULATE_READ,
    "populate_write": MADV_POPULATE_WRITE,
    "collapse": MADV_COLLAPSE,
}


class StepFailed(MmError):
    """An operation of the script that failed and may not; ``str()`` is one line."""

    def __str__(self) -> str:
        return str(self.strerror)


class ScriptWorkload(Workload):
    """The script's operations in turn, again and again."""

    def __init__(self, spec: ScriptSpec, setting: Setting) -> None:
        setting.check_write_size(spec.write_size)
        self._before = parse_script(spec.setup, setting.page_size)
        self._steps = parse_script(spec.script, setting.page_size)
        super().__init__(setting, _ScriptClock(spec, len(self._steps)), Content.of(spec))
        self._write_size = spec.write_size
        self._slot_key = setting.key("script slot")
        self._payload_key = setting.key("script payload")
        self._written = 0
        """Pages written so far: numbers each write, so that no two have the same content."""
        self._child = 0
        self._files: dict[int, int] = {}
        """Region to the number of the file that is mapped there."""

    @property
    def peak_pages(self) -> int:
        """Each region to its farthest page; twice, since a child may have copies of its own.

        Or a file may have them on its disk.
        """
        return 2 * peak_pages((*self._before, *self._steps))

    @property
    def swap_pages(self) -> int:
        """All of it could be out."""
        return self.peak_pages

    def setup(self, task: Task, *, populate: bool, from_image: bool = False) -> None:
        """See `Workload.setup`; what is mapped and written is the script's business alone."""
        if from_image:
            raise WorkloadError(
                "source.images and workload.kind = script both bring memory of their own; "
                "drop one of them"
            )
        tally = Tally()
        for step in self._before:
            try:
                self._run(task, step, tally)
            except MmError as error:
                raise WorkloadError(f"workload.setup: {error.strerror}") from error

    def _stores(self, task: Task, first: int, stop: int, tally: Tally) -> None:
        for k in range(first, stop):
            self._run(task, self._steps[k % len(self._steps)], tally)
            self.ops_done = k + 1

    def operation_at(self, position: int) -> int:
        """See `Workload.operation_at`: a step is one operation, whatever it accesses."""
        return self.ops_done

    def _run(self, task: Task, step: Step, tally: Tally) -> None:
        before = task.machine.faults.minor
        try:
            self._execute(task, step.op, tally)
        except MmError as error:
            # What never ends, or is not modelled, is no result that a script could want.
            if not step.may_fail or isinstance(error, Livelock | NotModelled):
                name = errno.errorcode.get(error.errno or 0, "failed")
                raise StepFailed(error.errno or 0, f"{step}: {name}: {error.strerror}") from error
        tally.faults += task.machine.faults.minor - before

    # -- the operations

    def _execute(self, task: Task, op: Op, tally: Tally) -> None:
        mm, machine = task.processes[ROOT], task.machine
        at, length = self._at(op), op.count * self.setting.page_size
        match op.verb:
            case "map":
                self._map(task, op)
            case "attach":
                self._attach(task, op)
            case "remap":
                mm.mmap(at, length, READ_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS)
            case "munmap":
                mm.munmap(at, length)
            case "mprotect":
                mm.mprotect(at, length, _PROT[op.prot])
            case "mremap":
                self._move(mm, op, 0)
            case "mremap_dontunmap":
                self._move(mm, op, MREMAP_DONTUNMAP)
            case "mexpand":
                mm.mremap(at, length, op.new_count * self.setting.page_size)
            case "mlock":
                mm.mlock(at, length)
            case "munlock":
                mm.munlock(at, length)
            case "write":
                self._write(mm, op, tally)
            case "cwrite":
                self._write(self._child_of(task), op, tally)
            case "fill":
                self._fill(mm, op, bytes([op.value & 0xFF]), tally)
            case "sysread":
                self._fill(mm, op, bytes(8), tally)
            case "read":
                mm.touch(self._addresses(op))
            case "cread":
                self._child_of(task).touch(self._addresses(op))
            case "memwrite":
                self._force(mm, op, tally)
            case "memread":
                for address in self._addresses(op).tolist():
                    mm.gup_read(address, 8)
            case "fwrite":
                self._file_write(task, op, tally)
            case "msync":
                mm.msync(at, length)
            case "fork":
                self._end_child(task)
                self._child = task.fork(ROOT)
            case "cexit":
                self._end_child(task)
            case "ksm":
                mm.madvise(at, length, MADV_MERGEABLE)
                machine.ksm_scan()
            case "unmerge":
                machine.ksm_unmerge()
            case "compact":
                machine.compact()
            case "thpsplit":
                mm.split_huge_pages(at, length)
            case "swapoff":
                machine.swapoff()
            case "swapon":
                machine.swapon()
            case verb:
                mm.madvise(at, length, _ADVICE[verb])

    def _address(self, region: int, page: int) -> int:
        return BASE + region * STRIDE + page * self.setting.page_size

    def _at(self, op: Op) -> int:
        return self._address(op.region, op.page)

    def _addresses(self, op: Op) -> U64:
        size = np.uint64(self.setting.page_size)
        return np.uint64(self._at(op)) + np.arange(op.count, dtype=np.uint64) * size

    def _map(self, task: Task, op: Op) -> None:
        kind, _, sharing = op.kind.rpartition("-")
        if kind in FILES:
            self._files[op.region] = task.create_file(op.count, on_disk=kind == "file")
            self._map_file(task, op, sharing)
            return
        flags = MAP_FIXED_NOREPLACE | MAP_ANONYMOUS
        flags |= MAP_SHARED if sharing == "shared" else MAP_PRIVATE
        if op.kind.startswith("hugetlb"):
            shift = _HUGETLB_SHIFT[op.kind.removesuffix("-shared")]
            flags |= MAP_HUGETLB | shift << MAP_HUGE_SHIFT
        length = op.count * self.setting.page_size
        task.processes[ROOT].mmap(self._at(op), length, READ_WRITE, flags)

    def _attach(self, task: Task, op: Op) -> None:
        if op.to_region not in self._files:
            raise MmError(errno.EBADF, f"region {op.to_region} has no file")
        self._files[op.region] = self._files[op.to_region]
        self._map_file(task, op, op.sharing)

    def _map_file(self, task: Task, op: Op, sharing: str) -> None:
        file = task.files[self._files[op.region]]
        task.processes[ROOT].mmap(
            self._at(op),
            op.count * self.setting.page_size,
            READ_WRITE,
            MAP_FIXED_NOREPLACE | (MAP_SHARED if sharing == "shared" else MAP_PRIVATE),
            shared_id=file.object_id,
        )

    def _move(self, mm: Mm, op: Op, more: int) -> None:
        length = op.count * self.setting.page_size
        target = self._address(op.to_region, op.to_page)
        mm.mremap(self._at(op), length, length, MREMAP_MAYMOVE | MREMAP_FIXED | more, target)
        if op.region in self._files:
            self._files[op.to_region] = self._files[op.region]

    def _write(self, mm: Mm, op: Op, tally: Tally) -> None:
        """``write_size`` bytes at a place drawn at random in each page."""
        size, first = self._write_size, self._take_numbers(op.count)
        where = np.empty(op.count, dtype=np.uint64)
        targets = Targets.region(self._at(op), op.count, self.setting.page_size)
        targets.stores(np.arange(op.count, dtype=np.int64), size, self._slot_key, first, where)
        self._store(mm, where, size, self._payload(first, op.count, size), tally)

    def _fill(self, mm: Mm, op: Op, unit: bytes, tally: Tally) -> None:
        """``unit``, one byte over the whole page or a few bytes at its start, in each page."""
        size = self.setting.page_size if len(unit) == 1 else len(unit)
        data = np.frombuffer(unit * (size // len(unit) * op.count), dtype=np.uint8)
        self._store(mm, self._addresses(op), size, data, tally)

    @staticmethod
    def _store(
        mm: Mm, where: U64, size: int, data: np.ndarray[Any, np.dtype[np.uint8]], tally: Tally
    ) -> None:
        mm.store(where, np.full(where.size, size, dtype=np.uint32), data)
        tally.stores += where.size
        tally.bytes += data.size

    def _take_numbers(self, count: int) -> int:
        first = self._written
        self._written += count
        return first

    def _payload(self, first: int, count: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        words = np.empty(count * (size // 8), dtype=np.uint64)
        self._content.words(self._payload_key, first, size // 8, words)
        return words.view(np.uint8)

    def _force(self, mm: Mm, op: Op, tally: Tally) -> None:
        """As a debugger writes: through /proc/PID/mem, whatever the protection."""
        data = self._payload(self._take_numbers(op.count), op.count, 8).tobytes()
        for k, address in enumerate(self._addresses(op).tolist()):
            mm.gup_write(address, data[8 * k : 8 * k + 8])
        tally.stores += op.count
        tally.bytes += len(data)

    def _file_write(self, task: Task, op: Op, tally: Tally) -> None:
        """write(2) to the region's file: the same pages of it, if it is mapped from its start."""
        if op.region not in self._files:
            raise MmError(errno.EBADF, f"region {op.region} has no file")
        file, size = task.files[self._files[op.region]], self._write_size
        data = self._payload(self._take_numbers(op.count), op.count, size).tobytes()
        write = partial(task.machine.file_write, file.object_id)
        for k in range(op.count):
            write((op.page + k) * self.setting.page_size, data[k * size : (k + 1) * size])
        tally.stores += op.count
        tally.bytes += len(data)

    def _child_of(self, task: Task) -> Mm:
        if not self._child:
            raise MmError(errno.ESRCH, "there is no child")
        return task.processes[self._child]

    def _end_child(self, task: Task) -> None:
        if self._child:
            task.exit(self._child)
            self._child = 0

    # -- state

    def _extra_state(self) -> dict[str, Any]:
        return {
            "written": self._written,
            "child": self._child,
            "files": [list(pair) for pair in sorted(self._files.items())],
        }

    def _restore_extra(self, state: Mapping[str, Any]) -> None:
        self._written, self._child = int(state["written"]), int(state["child"])
        self._files = {int(region): int(number) for region, number in state["files"]}


class _ScriptClock(RateClock):
    """One operation every so often, for ever or to the script's end."""

    def __init__(self, spec: ScriptSpec, steps: int) -> None:
        super().__init__(Fraction(_SECOND_NS, spec.every_ns))
        self._most = None if spec.loop else steps

    def due_ns(self, k: int) -> int:
        """See `OpClock`."""
        return NEVER_NS if self._most is not None and k >= self._most else super().due_ns(k)

    def due_before(self, until_ns: int) -> int:
        """See `OpClock`."""
        due = super().due_before(until_ns)
        return due if self._most is None else min(due, self._most)
