"""Runs a recorded scenario against `mm_model` and compares what each of the two shows.

The player does to the model what the probe program did to the kernel, through the model's public
interface only; it holds no idea of its own of what ought to happen. The probe is one task with
at most one child, regions 1 GiB apart, and these operations:

* ``write``/``read``: a 4-byte access to each page, up to the first that faults (result: signal);
* ``fill``: the whole page; ``cwrite``/``cread``: the same accesses, made by the child;
* ``memwrite``/``memread``: /proc/self/mem, page by page (forced access through GUP);
* ``sysread``: read(2) of zeros into the page: a store by the kernel, -EFAULT if it may not;
* ``fork`` ends an older child first.

Numbers (advice, mmap and mremap flags, pagemap bits) are those of the Linux uapi, written down
here again so that a wrong constant in the model shows.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mm_model import Livelock, Machine, Mm, MmError, ModelConfig, NotModelled, SegFault

from .trace import Op, RegionState, Scenario, Snapshot, VmaRecord

U64 = NDArray[np.uint64]

BASE = 0x10_0000_0000
STRIDE = 1 << 30

PROT = {"none": 0, "r": 1, "rw": 3}
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE = 1, 2, 16, 32, 1 << 20
MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
ADVICE = {
    "willneed": 3,
    "dontneed": 4,
    "free": 8,
    "dontfork": 10,
    "wipeonfork": 18,
    "cold": 20,
    "pageout": 21,
    "populate_read": 22,
    "populate_write": 23,
    "collapse": 25,
}
PAGEMAP_BITS = {"present": 63, "swap": 62, "soft_dirty": 55, "file": 61, "uffd_wp": 57}

# Bits of an arm64 stage 1 descriptor, and of the patch (soft-dirty).
PTE_RDONLY, PTE_WRITE, PTE_CONT, PTE_DIRTY, PTE_SOFT_DIRTY = 7, 51, 52, 55, 63

NO_CHILD = -1000
"""The probe's result of an operation on a child that is not there."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """The first place where the model shows something else than the kernel did."""

    scenario: str
    op_index: int
    """Index of the operation after which it shows; -1 before the first."""
    what: str
    kernel: str
    model: str
    script: tuple[str, ...]
    """The operations up to and with ``op_index``, in the script language."""

    def __str__(self) -> str:
        lines = [f"{self.scenario}, after operation {self.op_index}: {self.what}"]
        lines += [f"  kernel {self.kernel}", f"  model  {self.model}"]
        if len(self.kernel) == len(self.model) and set(self.kernel) <= {"0", "1"}:
            pairs = zip(self.kernel, self.model, strict=True)
            differs = [kernel != model for kernel, model in pairs]
            pages = [page for page, differ in enumerate(differs) if differ]
            marks = "".join("^" if differ else " " for differ in differs)
            lines.append(f"         {marks.rstrip()}")
            lines.append(f"  pages  {', '.join(map(str, pages[:20]))}")
        lines.append("  operations so far:")
        lines += [f"    {number:3} {line}" for number, line in enumerate(self.script)]
        return "\n".join(lines)


class Player:
    """The probe program's part: executes operations on a fresh machine of the model."""

    def __init__(self, config: ModelConfig) -> None:
        self.machine = Machine(config)
        self.page_size = config.page_size
        self.mm: Mm = self.machine.create_mm()
        self.child: Mm | None = None
        self.pages: dict[int, int] = {}
        self._counter = 1

    # -- the operations ------------------------------------------------------------------

    def execute(self, op: Op) -> int:
        """Execute one operation; its result as the probe records it. `Livelock` passes through."""
        match op.verb:
            case "map":
                return self._map(op)
            case "remap":
                flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS
                rc = self._call(
                    lambda: self.mm.mmap(self._at(op), self._length(op), PROT["rw"], flags)
                )
                return self._mapped(rc, op.region, op.page + op.count)
            case "munmap":
                return self._call(lambda: self.mm.munmap(self._at(op), self._length(op)))
            case "mremap" | "mremap_dontunmap":
                return self._mremap(op)
            case "mexpand":
                grown = op.new_count * self.page_size
                rc = self._call(lambda: self.mm.mremap(self._at(op), self._length(op), grown, 0))
                return self._mapped(rc, op.region, op.page + op.new_count)
            case "mprotect":
                return self._call(
                    lambda: self.mm.mprotect(self._at(op), self._length(op), PROT[op.prot])
                )
            case "mlock":
                return self._call(lambda: self.mm.mlock(self._at(op), self._length(op)))
            case "munlock":
                return self._call(lambda: self.mm.munlock(self._at(op), self._length(op)))
            case "write":
                return self._write(self.mm, op)
            case "read":
                return self._call(lambda: self.mm.touch(self._addresses(op)))
            case "fill":
                whole = bytes([op.value & 0xFF]) * self.page_size
                return self._store(self.mm, op, whole * op.count)
            case "memwrite":
                value = self._next().to_bytes(4, "little")
                return self._each(op, lambda address: self.mm.gup_write(address, value))
            case "memread":
                return self._each(op, lambda address: self.mm.gup_read(address, 4))
            case "sysread":
                # The kernel stores where the task may store; it gets an error and no signal.
                return -errno.EFAULT if self._store(self.mm, op, bytes(8) * op.count) else 0
            case "clear":
                return self._call(lambda: self.mm.clear_refs(4))
            case "clear1":
                return self._call(lambda: self.mm.clear_refs(1))
            case "cclear":
                child = self.child
                return NO_CHILD if child is None else self._call(lambda: child.clear_refs(4))
            case "fork":
                self._end_child()
                self.child = self.mm.fork()
                return 0
            case "cexit":
                self._end_child()
                return 0
            case "cwrite":
                return NO_CHILD if self.child is None else self._write(self.child, op)
            case "cread":
                child = self.child
                if child is None:
                    return NO_CHILD
                return self._call(lambda: child.touch(self._addresses(op)))
            case "swapoff":
                return self._call(self.machine.swapoff)
            case "swapon":
                return self._call(self.machine.swapon)
            case verb if verb in ADVICE:
                return self._call(
                    lambda: self.mm.madvise(self._at(op), self._length(op), ADVICE[verb])
                )
            case verb:
                raise NotImplementedError(f"the player does not know the operation {verb!r}")

    @staticmethod
    def _call(call: Callable[[], object]) -> int:
        """0, the signal of a fault, or -errno."""
        try:
            call()
        except (Livelock, NotModelled):
            raise
        except SegFault as fault:
            return int(fault.signal)
        except MmError as error:
            if error.errno is None:
                raise
            return -error.errno
        return 0

    def _next(self) -> int:
        self._counter += 1
        return self._counter

    @staticmethod
    def _address(region: int) -> int:
        return BASE + region * STRIDE

    def _at(self, op: Op) -> int:
        return self._address(op.region) + op.page * self.page_size

    def _length(self, op: Op) -> int:
        return op.count * self.page_size

    def _addresses(self, op: Op) -> U64:
        return np.uint64(self._at(op)) + np.arange(op.count, dtype=np.uint64) * np.uint64(
            self.page_size
        )

    def _mapped(self, rc: int, region: int, end: int) -> int:
        """A region is as long as the last page ever mapped in it."""
        if not rc:
            self.pages[region] = max(end, self.pages.get(region, 0))
        return rc

    def _map(self, op: Op) -> int:
        shared = op.kind.endswith("shared")
        flags = MAP_FIXED_NOREPLACE | (MAP_SHARED if shared else MAP_PRIVATE)
        shared_id = 0
        if op.kind.startswith("tmpfs"):
            shared_id = self.machine.create_shared(op.count)
        else:
            flags |= MAP_ANONYMOUS
        start = self._address(op.region)
        rc = self._call(
            lambda: self.mm.mmap(
                start, self._length(op), PROT["rw"], flags, shared_id=shared_id, pgoff=0
            )
        )
        return self._mapped(rc, op.region, op.count)

    def _mremap(self, op: Op) -> int:
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        if op.verb == "mremap_dontunmap":
            flags |= MREMAP_DONTUNMAP
        target = self._address(op.to_region) + op.to_page * self.page_size
        length = self._length(op)
        rc = self._call(lambda: self.mm.mremap(self._at(op), length, length, flags, target))
        return self._mapped(rc, op.to_region, op.to_page + op.count)

    def _write(self, mm: Mm, op: Op) -> int:
        values = b"".join(self._next().to_bytes(4, "little") for _ in range(op.count))
        return self._store(mm, op, values)

    def _store(self, mm: Mm, op: Op, payload: bytes) -> int:
        sizes = np.full(op.count, len(payload) // op.count, dtype=np.uint32)
        data = np.frombuffer(payload, dtype=np.uint8)
        return self._call(lambda: mm.store(self._addresses(op), sizes, data))

    def _each(self, op: Op, access: Callable[[int], object]) -> int:
        for address in self._addresses(op).tolist():
            rc = self._call(lambda address=address: access(address))
            if rc:
                return rc
        return 0

    def _end_child(self) -> None:
        if self.child is not None:
            self.child.exit()
            self.child = None

    # -- what shows ----------------------------------------------------------------------

    def show(self, who: str, region: int, *, descriptors: bool) -> RegionState:
        """The region as the probe would have recorded it."""
        mm = self.mm if who == "self" else self.child
        if mm is None:
            raise LookupError("the recording shows a child that the player does not have")
        start, npages = self._address(region), self.pages[region]
        entries = mm.pagemap(start, npages)
        fields = {name: _text(_bit(entries, bit)) for name, bit in PAGEMAP_BITS.items()}
        if descriptors:
            present = _bit(entries, PAGEMAP_BITS["present"])
            fields |= {
                name: _text(bits & present)
                for name, bits in descriptor_bits(mm.ptes(start, npages)).items()
            }
        return RegionState(fields, self._vmas(mm, start, npages))

    def _vmas(self, mm: Mm, start: int, npages: int) -> tuple[VmaRecord, ...]:
        end = start + npages * self.page_size
        return tuple(
            VmaRecord(
                start=(vma.start - start) // self.page_size,
                end=(vma.end - start) // self.page_size,
                perms="".join(
                    letter if vma.prot & bit else "-"
                    for letter, bit in (("r", 1), ("w", 2), ("x", 4))
                )
                + ("s" if vma.flags & MAP_SHARED else "p"),
                soft_dirty=vma.soft_dirty,
            )
            for vma in mm.vmas()
            if start <= vma.start < end
        )


def _bit(entries: U64, bit: int) -> NDArray[np.bool_]:
    return (entries >> np.uint64(bit) & np.uint64(1)).astype(np.bool_)


def _text(bits: NDArray[np.bool_]) -> str:
    return (bits + np.uint8(ord("0"))).tobytes().decode("ascii")


def descriptor_bits(ptes: U64) -> dict[str, NDArray[np.bool_]]:
    """The instrumented kernel's answers (pte_write(), pte_dirty(), ...) for raw descriptors."""
    write, rdonly = _bit(ptes, PTE_WRITE), _bit(ptes, PTE_RDONLY)
    return {
        "cont": _bit(ptes, PTE_CONT),
        "pte_write": write,
        # Dirty in software, or by hardware: writable and no longer read-only.
        "pte_dirty": _bit(ptes, PTE_DIRTY) | (write & ~rdonly),
        "pte_sd": _bit(ptes, PTE_SOFT_DIRTY),
        "pte_rdonly": rdonly,
    }


# -- the judge -----------------------------------------------------------------------------


@dataclass(slots=True)
class Judge:
    """Replays one scenario, whose complete list of operations is ``ops``, under ``config``."""

    scenario: Scenario
    ops: tuple[Op, ...]
    config: ModelConfig
    pages_compared: int = 0

    def first_disagreement(self) -> Disagreement | None:
        """None if the model shows all that the kernel showed."""
        player = Player(self.config)
        try:
            return self._replay(player)
        finally:
            player.machine.release()

    def _replay(self, player: Player) -> Disagreement | None:
        if found := self._compare(player, -1):
            return found
        for index, op in enumerate(self.scenario.ops):
            try:
                rc = player.execute(op)
            except Livelock as hang:
                return self._disagreement(index, "end of the operation", f"rc {op.rc}", f"{hang}")
            if rc != op.rc:
                return self._disagreement(index, "result", f"rc {op.rc}", f"rc {rc}")
            if found := self._compare(player, index):
                return found
        if self.scenario.killed:
            return self._hangs(player, len(self.scenario.ops))
        return None

    def _hangs(self, player: Player, index: int) -> Disagreement | None:
        """The operation from which the kernel never came back must be a livelock in the model."""
        try:
            rc = player.execute(self.ops[index])
        except Livelock:
            return None
        return self._disagreement(index, "end of the operation", "never ends", f"rc {rc}")

    def _compare(self, player: Player, index: int) -> Disagreement | None:
        for snap in self.scenario.snaps:
            if snap.after == index:
                if found := self._compare_snapshot(player, snap):
                    return found
        return None

    def _compare_snapshot(self, player: Player, snap: Snapshot) -> Disagreement | None:
        regions = sorted(snap.regions)
        if regions != sorted(player.pages):
            return self._disagreement(
                snap.after, "regions", f"{regions}", f"{sorted(player.pages)}"
            )
        descriptors = self.scenario.has_descriptors
        for number, kernel in snap.regions.items():
            model = player.show(snap.who, number, descriptors=descriptors)
            where = f"of region {number}, {snap.who}"
            for name, shown in model.fields.items():
                if shown != kernel.fields[name]:
                    what = f"{name} {where}"
                    return self._disagreement(snap.after, what, kernel.fields[name], shown)
            if model.vmas != kernel.vmas:
                return self._disagreement(
                    snap.after, f"vmas {where}", _vma_text(kernel.vmas), _vma_text(model.vmas)
                )
            self.pages_compared += kernel.npages
        return None

    def _disagreement(self, index: int, what: str, kernel: str, model: str) -> Disagreement:
        script = tuple(op.script() for op in self.ops[: index + 1])
        return Disagreement(self.scenario.name, index, what, kernel, model, script)


def _vma_text(vmas: tuple[VmaRecord, ...]) -> str:
    return " ".join(
        f"{vma.start}-{vma.end} {vma.perms}{' sd' if vma.soft_dirty else ''};" for vma in vmas
    )
