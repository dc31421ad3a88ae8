"""A growing heap that is collected: pages appear, move and vanish between two rounds.

It models an allocator with a brk heap and mmapped arenas (as glibc's malloc has) under a program
that mostly appends (logs, queues, young objects), and a collector that frees old arenas, gives
their pages back, or moves the survivors. A migration must not bring back what was unmapped, nor
miss what moved: CRIU finds moved and new areas by VM_SOFTDIRTY.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from livemigration.units import format_size
from livemigration.workload.base import (
    PRIVATE,
    READ_WRITE,
    ROOT,
    Setting,
    Tally,
    Task,
    Workload,
    WorkloadError,
)
from livemigration.workload.clock import RateClock
from livemigration.workload.content import Content
from livemigration.workload.kernels import I64, U64, draw, heap_stores, probability, wrapping
from livemigration.workload.spec import AppendHeapSpec
from livemigration.workload.stream import batch_ops, populate
from livemigration.workload.targets import Targets
from mm_model import MADV_DONTNEED, MREMAP_FIXED, MREMAP_MAYMOVE, Mm

HEAP_BASE = 0x08_0000_0000
"""Where the brk heap begins."""
ARENA_BASE = 0x20_0000_0000
"""Where the first mmapped arena can lie."""
_LEAST_ARENAS = 8
_HEAP_SHARE = 4  # a quarter of the arenas is in the brk heap
_SLOTS_PER_ARENA = 4  # places for arenas: fresh ones seldom reuse an address at once


@dataclass(slots=True)
class Arena:
    """``pages`` pages at ``address``, part of the brk heap or mmapped."""

    address: int
    pages: int
    heap: bool


class AppendHeapWorkload(Workload):
    """Allocations fill arena after arena; a quarter of the operations writes to older arenas.

    Every ``arena / write_size`` operations (an event) a new arena is needed. Every fourth comes
    from the brk heap, which is trimmed to half when it is full; the others are mmapped. When all of
    them are taken, one of four things, drawn by the event's number, happens to the oldest: it is
    unmapped; it is emptied by MADV_DONTNEED and used again; it is unmapped and the next one moved
    by mremap; it is shrunk to half, moved and grown again by mremap, and the next one unmapped.
    """

    def __init__(self, spec: AppendHeapSpec, setting: Setting) -> None:
        size = setting.check_write_size(spec.write_size)
        super().__init__(
            setting, RateClock(spec.writes_per_second(setting.page_size)), Content.of(spec)
        )
        self._arena_pages = setting.pages_of("arena", spec.arena, setting.pages // 64)
        arenas = setting.pages // self._arena_pages
        if arenas < _LEAST_ARENAS:
            least = _LEAST_ARENAS * self._arena_pages * setting.page_size
            raise WorkloadError(
                f"workload.kind = append-heap needs memory for {_LEAST_ARENAS} arenas; "
                f"memory must be at least {format_size(least)}, or workload.arena smaller"
            )
        self._spec = spec
        self._most_heap = arenas // _HEAP_SHARE
        self._most_mapped = arenas - self._most_heap
        self._slots = setting.page_size // size
        self._arena_ops = self._arena_pages * self._slots
        self._next_slot = 0
        self._live: list[Arena] = []  # oldest first; the last one is being filled
        self._action_key = np.uint64(setting.key("collection"))
        self._payload_key = setting.key("heap payload")
        self._keys = tuple(np.uint64(setting.key(f"heap {name}")) for name in ("choice", "page"))
        self._slot_key = np.uint64(setting.key("heap slot"))
        self._batch = batch_ops(size)
        self._sizes = np.full(self._batch, size, dtype=np.uint32)
        self._addresses = np.empty(self._batch, dtype=np.uint64)
        self._words = np.empty(self._batch * (size // 8), dtype=np.uint64)
        self._columns_changed()

    @property
    def peak_pages(self) -> int:
        """All arenas."""
        return (self._most_heap + self._most_mapped) * self._arena_pages

    @property
    def _arena_bytes(self) -> int:
        return self._arena_pages * self.setting.page_size

    def setup(self, task: Task, *, populate: bool, from_image: bool = False) -> None:
        """See `Workload.setup`: three quarters of the arenas are there; none without populate.

        With an image the heap is in addition to the image's memory, and is not populated.
        """
        mm = task.processes[ROOT]
        mm.set_brk_base(HEAP_BASE)
        if not populate or from_image:
            return
        for number in range((self._most_heap + self._most_mapped) * 3 // 4):
            self._new_arena(mm, number)
            self._fill(mm, self._live[-1], number)

    def _fill(self, mm: Mm, arena: Arena, number: int) -> None:
        targets = Targets.region(arena.address, arena.pages, self.setting.page_size)
        first = number * self._arena_pages
        populate(mm, targets, self._content, self.setting.seed, first=first)

    # -- arenas come and go

    def _event(self, task: Task, k: int, tally: Tally) -> None:
        if k % self._arena_ops == 0:
            self._new_arena(task.processes[ROOT], k // self._arena_ops)

    def _next_event(self, k: int) -> int:
        return (k // self._arena_ops + 1) * self._arena_ops

    def _new_arena(self, mm: Mm, number: int) -> None:
        """Arena for allocation: the last of ``_live`` afterwards."""
        if number % _HEAP_SHARE == _HEAP_SHARE - 1:
            self._grow_heap(mm)
        else:
            mapped = [arena for arena in self._live if not arena.heap]
            if len(mapped) < self._most_mapped:
                self._map(mm)
            else:
                self._collect(mm, mapped, number)
        self._columns_changed()

    def _grow_heap(self, mm: Mm) -> None:
        """One arena more by brk; a full heap is first trimmed to half, newest arenas first."""
        heap = [arena for arena in self._live if arena.heap]
        if len(heap) >= self._most_heap:
            keep = len(heap) // 2
            self._live = [arena for arena in self._live if arena not in heap[keep:]]
            mm.brk(HEAP_BASE + keep * self._arena_bytes)
            heap = heap[:keep]
        end = HEAP_BASE + len(heap) * self._arena_bytes
        mm.brk(end + self._arena_bytes)
        self._live.append(Arena(end, self._arena_pages, heap=True))

    def _map(self, mm: Mm) -> None:
        address = self._free_slot()
        mm.mmap(address, self._arena_bytes, READ_WRITE, PRIVATE)
        self._live.append(Arena(address, self._arena_pages, heap=False))

    def _collect(self, mm: Mm, mapped: list[Arena], number: int) -> None:
        """Make room for one arena, and take it."""
        oldest, second = mapped[:2]
        with wrapping():
            action = int(draw(self._action_key, np.uint64(number))) >> 62
        if action == 0:
            self._unmap(mm, oldest)
        elif action == 1:
            mm.madvise(oldest.address, self._arena_bytes, MADV_DONTNEED)
            self._live.remove(oldest)
            self._live.append(oldest)
            return
        elif action == 2:
            self._unmap(mm, oldest)
            self._move(mm, second, second.pages, self._free_slot())
        else:
            half = max(1, oldest.pages // 2)
            self._move(mm, oldest, half, self._free_slot())
            mm.mremap(
                oldest.address,
                half * self.setting.page_size,
                self._arena_bytes,
                MREMAP_MAYMOVE,
            )
            self._unmap(mm, second)
        self._map(mm)

    def _unmap(self, mm: Mm, arena: Arena) -> None:
        mm.munmap(arena.address, self._arena_bytes)
        self._live.remove(arena)

    def _move(self, mm: Mm, arena: Arena, pages: int, address: int) -> None:
        """Move the first ``pages`` pages of an arena to ``address``; the rest is lost."""
        mm.mremap(
            arena.address,
            self._arena_bytes,
            pages * self.setting.page_size,
            MREMAP_MAYMOVE | MREMAP_FIXED,
            address,
        )
        arena.address = address

    def _free_slot(self) -> int:
        """The next place for an arena that is not in use; places lie a page apart and more."""
        stride = self._arena_bytes + self.setting.page_size
        used = {arena.address for arena in self._live}
        while True:
            address = ARENA_BASE + self._next_slot * stride
            self._next_slot = (self._next_slot + 1) % (self._most_mapped * _SLOTS_PER_ARENA)
            if address not in used:
                return address

    def _columns_changed(self) -> None:
        self._bases: U64 = np.array([arena.address for arena in self._live], dtype=np.uint64)
        self._pages: I64 = np.array([arena.pages for arena in self._live], dtype=np.int64)

    # -- stores

    def _stores(self, task: Task, first: int, stop: int, tally: Tally) -> None:
        mm, size = task.processes[ROOT], self._spec.write_size
        for begin in range(first, stop, self._batch):
            count = min(self._batch, stop - begin)
            self._place(begin, self._addresses[:count])
            words = self._words[: count * (size // 8)]
            self._content.words(self._payload_key, begin, size // 8, words)
            tally.faults += mm.store(
                self._addresses[:count], self._sizes[:count], words.view(np.uint8)
            )
            tally.stores += count
            tally.bytes += count * size

    def _place(self, first: int, out: U64) -> None:
        """Addresses of the stores of operations ``first`` on."""
        choice, key = self._keys
        with wrapping():
            heap_stores(
                choice,
                key,
                self._slot_key,
                np.uint64(first),
                np.uint64(self._live[-1].address),
                self._arena_ops,
                np.uint64(self._slots),
                np.uint64(self._spec.write_size),
                np.uint64(self.setting.page_size),
                np.uint64(probability(self._spec.mutate)),
                self._bases,
                self._pages,
                out,
            )

    # -- state

    def _extra_state(self) -> dict[str, Any]:
        return {
            "arenas": [[arena.address, arena.pages, int(arena.heap)] for arena in self._live],
            "next_slot": self._next_slot,
        }

    def _restore_extra(self, state: Mapping[str, Any]) -> None:
        self._live = [
            Arena(int(address), int(pages), bool(heap)) for address, pages, heap in state["arenas"]
        ]
        self._next_slot = int(state["next_slot"])
        self._columns_changed()
