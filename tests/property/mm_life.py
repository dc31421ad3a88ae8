"""Lives of a machine: a configuration and steps, told as one digest after each step.

Every operation that the model has is among the verbs. A digest covers all that the model keeps, not
only what shows: frames, tables, swap, counters, mappings, translation caches, stamps of content.

Run as a module it reads lives from standard input, one a line, and answers each with a line: so can
a process with other settings of the compiler be held against this one.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import astuple, is_dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from mm_model import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE_IS_PRESENT,
    PAGE_IS_SOFT_DIRTY,
    PAGE_IS_SWAPPED,
    PAGE_IS_WRITTEN,
    PM_SCAN_WP_MATCHING,
    Machine,
    Mm,
    MmError,
    ModelConfig,
    SegFault,
    Userfaultfd,
    uapi,
)
from mm_model.state import NEXT_FRAME, NEXT_TABLE

Step = tuple[str, int, int, int]
"""Verb, place (0 to 87), extent (1 to 16), choice (0 to 255)."""

SMALL, LARGE, PLACES = 64, 80, 88
SHARED_FROM, FILE_FROM, COPY_FROM = 40, 48, 56
CHUNK = 32  # pages: places from SMALL on are chunks of an area for large folios
RUN = 16  # pages: places from LARGE on are pieces of an area for hugetlb pages
HUGETLB = (64 << 10, 64 << 10, 2 << 20, 2 << 20, 32 << 20, 4 << 20)
ADVICES = tuple(
    value for name, value in sorted(vars(uapi).items()) if name.startswith("MADV_")
)  # fmt: skip
PROTECTIONS = (3, 3, 1, 0, 3, 1, 4, 7)
MODES = ("always", "madvise", "never")
KILOBYTES = (16, 32, 64, 128, 256, 512, 1024, 2048)
CATEGORIES = (PAGE_IS_SOFT_DIRTY, PAGE_IS_WRITTEN, PAGE_IS_PRESENT | PAGE_IS_SWAPPED, 0)

VERBS = (
    "nothing", "write", "write", "write", "fill", "bytes", "store", "touch", "touch", "touch_write",
    "load", "force", "peer", "advise", "advise", "advise", "protect", "protect", "clear", "clear",
    "clear", "clear_mode", "pagemap", "scan", "swapoff", "swapon", "mlock", "munlock", "anon",
    "anon", "shared", "file", "copy", "unmap", "move", "keep", "grow", "shrink", "brk", "stack",
    "fork", "fork", "exit", "switch", "switch", "merge", "unmerge", "migrate", "migrated",
    "compact", "register", "unregister", "mark", "mark", "sync", "msync", "drop", "punch",
    "file_write", "file_read", "thp", "mthp", "mthp", "split", "install", "discard", "cpu",
    "hugepage", "collapse", "pageout", "pageout", "hugetlb", "hugetlb",
)  # fmt: skip


class Life:
    """A machine with up to three processes, one of which acts."""

    def __init__(self, config: ModelConfig) -> None:
        self.machine = machine = Machine(config)
        self.size = config.page_size
        self.base = (1 << 36) + (500 * self.size)  # the small area crosses the border of a table
        self.large = 1 << 37
        self.huge = 1 << 38
        self.mms: list[Mm] = [machine.create_mm()]
        self.acting = 0
        self.uffds: dict[int, Userfaultfd] = {}
        self.stamp = 0
        self.object = machine.create_shared(FILE_FROM - SHARED_FROM, keep=True)
        self.file = machine.create_file(COPY_FROM - FILE_FROM)
        pages = CHUNK * (LARGE - SMALL)
        rw, anon = 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        self.mm.mmap(self.base, SHARED_FROM * self.size, rw, anon)
        self.mm.mmap(self.large, pages * self.size, rw, anon)
        for verb, place in (("shared", SHARED_FROM), ("file", FILE_FROM), ("copy", COPY_FROM)):
            self.act((verb, place, 8, 0))

    @property
    def mm(self) -> Mm:
        return self.mms[self.acting % len(self.mms)]

    def span(self, place: int, extent: int) -> tuple[int, int]:
        """Start and length in bytes."""
        if place < SMALL:
            return self.base + place * self.size, min(extent, SMALL - place) * self.size
        if place >= LARGE:
            run = RUN * self.size
            return self.huge + (place - LARGE) * run, min(extent, PLACES - place) * run
        chunk = CHUNK * self.size
        return self.large + (place - SMALL) * chunk, min(extent, LARGE - place) * chunk

    def act(self, step: Step) -> str:
        """Carry out one step; what it answers, in words that do not depend on NumPy's types."""
        verb, place, extent, choice = step
        self.stamp += 1
        try:
            answer = getattr(self, f"_{verb}")(*self.span(place, extent), choice)
        except SegFault as fault:
            return f"signal {fault.signal} at {fault.address:#x}"
        except MmError as error:
            return f"{type(error).__name__} {error.errno} {error.strerror}"
        return _plain(answer)

    def digest(self, *, content: bool = False) -> str:
        """All that the model keeps; bytes of frames only if asked for, else their stamps."""
        state = xxhash.xxh3_64()
        phys = self.machine.phys
        table = 1 << int(self.machine.arch.table_shift)
        used = {"tables": int(phys.ctr[NEXT_TABLE]) * table, "content": 0}
        if content:
            used["content"] = int(phys.ctr[NEXT_FRAME])
        for name, array in zip(phys._fields, phys, strict=True):
            state.update(array[: used.get(name)].tobytes())
        for array in self.machine.tlb or ():
            state.update(array.tobytes())
        for mm in self.mms:
            state.update(mm.space.regs.tobytes())
            state.update(mm.space.vmas.tobytes())
            state.update(repr(mm.vmas()).encode())
        return state.hexdigest()

    # -- accesses

    def _where(self, start: int, length: int) -> NDArray[np.uint64]:
        return np.arange(start, start + length, self.size, dtype=np.uint64)

    def _nothing(self, start: int, length: int, choice: int) -> object:
        return None

    def _write(self, start: int, length: int, choice: int) -> object:
        where = self._where(start, length)
        return self.mm.store_words(where, where + np.uint64(self.stamp))

    def _bytes(self, start: int, length: int, choice: int) -> object:
        where = self._where(start, length) + np.uint64(choice)
        return self.mm.store_words(where, where * np.uint64(self.stamp))

    def _store(self, start: int, length: int, choice: int) -> object:
        where = self._where(start, length) + np.uint64(choice)
        sizes = np.arange(1, where.shape[0] + 1, dtype=np.uint32)
        return self.mm.store(where, sizes, np.full(int(sizes.sum()), self.stamp & 255, np.uint8))

    def _fill(self, start: int, length: int, choice: int) -> object:
        where = self._where(start, length)[:8]
        sizes = np.full(where.shape[0], self.size, np.uint32)
        data = np.full(where.shape[0] * self.size, choice % 3, np.uint8)
        return self.mm.store(where, sizes, data)

    def _touch(self, start: int, length: int, choice: int) -> object:
        return self.mm.touch(self._where(start, length))

    def _touch_write(self, start: int, length: int, choice: int) -> object:
        return self.mm.touch_write(self._where(start, length)[:: 1 + choice % 3])

    def _load(self, start: int, length: int, choice: int) -> object:
        return xxhash.xxh3_64_hexdigest(self.mm.load(start, length))

    def _force(self, start: int, length: int, choice: int) -> object:
        self.mm.gup_write(start + choice, bytes([self.stamp & 255]) * (choice * 37 % length + 1))
        return None

    def _peer(self, start: int, length: int, choice: int) -> object:
        return xxhash.xxh3_64_hexdigest(self.mm.gup_read(start + choice, length // 2))

    # -- system calls

    def _advise(self, start: int, length: int, choice: int) -> object:
        return self.mm.madvise(start, length, ADVICES[choice % len(ADVICES)])

    def _pageout(self, start: int, length: int, choice: int) -> object:
        return self.mm.madvise(start, length, uapi.MADV_PAGEOUT)

    def _hugepage(self, start: int, length: int, choice: int) -> object:
        length = max(length, 16 * CHUNK * self.size)
        return self.mm.madvise(self.large, length, uapi.MADV_HUGEPAGE)

    def _collapse(self, start: int, length: int, choice: int) -> object:
        return self.mm.madvise(self.large, 16 * CHUNK * self.size, uapi.MADV_COLLAPSE)

    def _protect(self, start: int, length: int, choice: int) -> object:
        return self.mm.mprotect(start, length, PROTECTIONS[choice % len(PROTECTIONS)])

    def _mlock(self, start: int, length: int, choice: int) -> object:
        return self.mm.mlock(start, length)

    def _munlock(self, start: int, length: int, choice: int) -> object:
        return self.mm.munlock(start, length)

    def _map(self, start: int, length: int, flags: int, object_id: int = 0, pgoff: int = 0) -> int:
        flags |= MAP_FIXED | (0 if object_id else MAP_ANONYMOUS)
        return self.mm.mmap(start, length, 3, flags, shared_id=object_id, pgoff=pgoff)

    def _anon(self, start: int, length: int, choice: int) -> object:
        return self._map(start, length, MAP_PRIVATE if choice % 4 else MAP_SHARED)

    def _hugetlb(self, start: int, length: int, choice: int) -> object:
        """Sizes that this page size does not offer are refused, which is an answer too."""
        huge = HUGETLB[choice % len(HUGETLB)]
        if start >= self.huge and huge <= RUN * self.size:
            start &= ~(huge - 1)
        else:
            start = self.huge
        kind = MAP_SHARED if choice % 5 == 0 else MAP_PRIVATE
        flags = kind | MAP_HUGETLB | (huge.bit_length() - 1) << MAP_HUGE_SHIFT
        return self._map(start, max(length, huge) & ~(huge - 1), flags)

    def _shared(self, start: int, length: int, choice: int) -> object:
        return self._map(start, min(length, 8 * self.size), MAP_SHARED, self.object, choice % 4)

    def _file(self, start: int, length: int, choice: int) -> object:
        return self._map(start, min(length, 8 * self.size), MAP_SHARED, self.file, choice % 4)

    def _copy(self, start: int, length: int, choice: int) -> object:
        which = self.file if choice % 2 else self.object
        return self._map(start, min(length, 8 * self.size), MAP_PRIVATE, which, choice % 4)

    def _unmap(self, start: int, length: int, choice: int) -> object:
        return self.mm.munmap(start, length)

    def _target(self, start: int, choice: int) -> int:
        if start >= self.large:
            return self.large + (16 + choice % 20) * CHUNK * self.size
        return self.base + choice % 90 * self.size

    def _move(self, start: int, length: int, choice: int) -> object:
        target = self._target(start, choice)
        return self.mm.mremap(start, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, target)

    def _keep(self, start: int, length: int, choice: int) -> object:
        flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
        return self.mm.mremap(start, length, length, flags, self._target(start, choice))

    def _grow(self, start: int, length: int, choice: int) -> object:
        flags = MREMAP_MAYMOVE if choice % 2 else 0
        return self.mm.mremap(start, length, length + choice % 8 * self.size, flags)

    def _shrink(self, start: int, length: int, choice: int) -> object:
        return self.mm.mremap(start, length, max(self.size, length - choice % 8 * self.size))

    def _brk(self, start: int, length: int, choice: int) -> object:
        end = self.mm.brk((1 << 32) + choice % 12 * self.size)
        heap = self._where(1 << 32, end - (1 << 32))
        return self.mm.store_words(heap, heap)

    def _stack(self, start: int, length: int, choice: int) -> object:
        top, flags = 1 << 40, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN
        if choice % 4 == 0:
            self.mm.mmap(top, 2 * self.size, 3, flags)
        return self.mm.touch_write(self._where(top - choice % 16 * self.size, self.size))

    def _userfaultfd(self) -> Userfaultfd:
        key = id(self.mm)
        if key not in self.uffds:
            self.uffds[key] = self.mm.userfaultfd()
        return self.uffds[key]

    def _register(self, start: int, length: int, choice: int) -> object:
        return self._userfaultfd().register(start, length)

    def _unregister(self, start: int, length: int, choice: int) -> object:
        return self._userfaultfd().unregister(start, length)

    def _mark(self, start: int, length: int, choice: int) -> object:
        return self._userfaultfd().writeprotect(start, length, enable=choice % 4 != 0)

    # -- the /proc files

    def _clear(self, start: int, length: int, choice: int) -> object:
        return self.mm.clear_refs(4)

    def _clear_mode(self, start: int, length: int, choice: int) -> object:
        return self.mm.clear_refs(1 + choice % 5)

    def _pagemap(self, start: int, length: int, choice: int) -> object:
        return xxhash.xxh3_64_hexdigest(self.mm.pagemap(start, length // self.size).tobytes())

    def _scan(self, start: int, length: int, choice: int) -> object:
        return self.mm.pagemap_scan(
            start,
            start + length,
            flags=PM_SCAN_WP_MATCHING if choice & 64 else 0,
            category_mask=CATEGORIES[choice % 4],
            category_anyof_mask=CATEGORIES[choice // 4 % 4],
            max_pages=choice & 7,
        )

    # -- processes

    def _fork(self, start: int, length: int, choice: int) -> object:
        if len(self.mms) == 3:
            self._exit(start, length, choice)
        self.mms.append(self.mm.fork())
        return len(self.mms)

    def _exit(self, start: int, length: int, choice: int) -> object:
        if len(self.mms) > 1:
            self.mms.pop(choice % len(self.mms)).exit()
        return len(self.mms)

    def _switch(self, start: int, length: int, choice: int) -> object:
        self.acting = choice
        return None

    def _cpu(self, start: int, length: int, choice: int) -> object:
        return self.mm.run_on(choice % self.machine.config.cpus)

    def _install(self, start: int, length: int, choice: int) -> object:
        where = self._where(start, length)[:8]
        data = np.full(where.shape[0] * self.size, self.stamp & 255, np.uint8)
        return self.mm.install(where, data)

    def _discard(self, start: int, length: int, choice: int) -> object:
        return self.mm.discard(self._where(start, length)[:8])

    def _split(self, start: int, length: int, choice: int) -> object:
        return self.mm.split_huge_pages(start, length)

    def _msync(self, start: int, length: int, choice: int) -> object:
        return self.mm.msync(start, length)

    # -- the machine

    def _swapoff(self, start: int, length: int, choice: int) -> object:
        return self.machine.swapoff()

    def _swapon(self, start: int, length: int, choice: int) -> object:
        return self.machine.swapon()

    def _merge(self, start: int, length: int, choice: int) -> object:
        if choice % 2:
            self.mm.madvise(start, length, uapi.MADV_MERGEABLE)
        return self.machine.ksm_scan()

    def _unmerge(self, start: int, length: int, choice: int) -> object:
        return self.machine.ksm_unmerge()

    def _migrate(self, start: int, length: int, choice: int) -> object:
        return self.machine.migrate_start(self.mm, start, length // self.size)

    def _migrated(self, start: int, length: int, choice: int) -> object:
        return self.machine.migrate_finish()

    def _compact(self, start: int, length: int, choice: int) -> object:
        return self.machine.compact()

    def _sync(self, start: int, length: int, choice: int) -> object:
        return self.machine.sync_file(self.file)

    def _drop(self, start: int, length: int, choice: int) -> object:
        return self.machine.drop_caches()

    def _punch(self, start: int, length: int, choice: int) -> object:
        which = self.file if choice % 2 else self.object
        return self.machine.punch_hole(which, choice % 7, 1 + choice % 3)

    def _file_write(self, start: int, length: int, choice: int) -> object:
        data = bytes([self.stamp & 255]) * (choice * 31 + 1)
        return self.machine.file_write(self.file, choice * 117, data)

    def _file_read(self, start: int, length: int, choice: int) -> object:
        data = self.machine.file_read(self.file, choice * 117, choice * 31)
        return xxhash.xxh3_64_hexdigest(data)

    def _thp(self, start: int, length: int, choice: int) -> object:
        return self.machine.set_thp(MODES[choice % 3])

    def _mthp(self, start: int, length: int, choice: int) -> object:
        # The first of three times "always", or most lives would have no large folios.
        return self.machine.set_mthp(KILOBYTES[choice % 8], MODES[choice // 8 % 4 % 3])


def _plain(answer: object) -> str:
    if isinstance(answer, np.ndarray):
        return str(answer.tolist())
    if is_dataclass(answer) and not isinstance(answer, type):
        return " ".join(map(_plain, astuple(answer)))
    if isinstance(answer, (int, np.integer)):
        return str(int(answer))
    return repr(answer)


def live(config: dict[str, Any], steps: Sequence[Step]) -> list[str]:
    """What each step answered, with the digest after it; the last word covers all bytes."""
    settings = config | {"hunks_off": frozenset(config.get("hunks_off", ()))}
    life = Life(ModelConfig(**settings))
    told = [f"start {life.digest()}"]
    for step in steps:
        answer = life.act(step)
        told.append(f"{answer} {life.digest()}")
    told.append(life.digest(content=True))
    life.machine.release()
    return told


def serve(read: Callable[[], str], write: Callable[[str], object]) -> None:
    """Answer lives until there is no more line."""
    while line := read():
        config, steps = json.loads(line)
        try:
            told = live(config, steps)
        except Exception:  # noqa: BLE001  (whatever it was, the other side wants to know)
            told = [traceback.format_exc()]
        write(json.dumps(told) + "\n")


if __name__ == "__main__":
    warnings.simplefilter("error")

    def answer(line: str) -> None:
        sys.stdout.write(line)
        sys.stdout.flush()

    serve(sys.stdin.readline, answer)
