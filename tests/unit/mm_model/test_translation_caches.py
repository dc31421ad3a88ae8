"""CPUs that remember translations, and the mistakes around write-protecting for tracking."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mm_model import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PM_SOFT_DIRTY,
    PROT_READ,
    PROT_WRITE,
    Machine,
    Mm,
    ModelConfig,
    SegFault,
)

PAGE = 4096
RW = PROT_READ | PROT_WRITE
BASE = 0x10_0000_0000
ARCHES = pytest.mark.parametrize("arch", ["arm64", "x86_64"])


def at(*pages: int) -> NDArray[np.uint64]:
    return np.uint64(BASE) + np.array(pages, np.uint64) * np.uint64(PAGE)


class Task:
    """A process with 8 pages, all written, on a machine with ``settings``."""

    def __init__(self, *mistakes: str, **settings: object) -> None:
        config = {"frames": 128, "swap_slots": 32, "hunks_off": frozenset(mistakes)} | settings
        self.machine = Machine(ModelConfig(**config))  # type: ignore[arg-type]
        self.mm: Mm = self.machine.create_mm()
        self.mm.mmap(BASE, 8 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
        self.stamp = 0
        self.write(*range(8))
        self.mm.clear_refs()
        self.machine.flush_tlb()

    def write(self, *pages: int, cpu: int = 0) -> None:
        self.stamp += 1
        self.mm.run_on(cpu)
        self.mm.store_words(at(*pages), np.full(len(pages), self.stamp, np.uint64))

    def soft_dirty(self) -> list[int]:
        return np.flatnonzero(self.mm.pagemap(BASE, 8) & PM_SOFT_DIRTY).tolist()

    def lost(self, *pages: int, cpu: int = 0) -> list[int]:
        """Which of the pages can be written after ``clear_refs`` without anyone noticing."""
        self.mm.clear_refs()
        before = self.mm.versions(BASE, 8)
        self.write(*pages, cpu=cpu)
        changed = np.flatnonzero(self.mm.versions(BASE, 8) != before).tolist()
        assert changed == list(pages)
        return sorted(set(changed) - set(self.soft_dirty()))


@ARCHES
def test_nothing_is_lost_when_all_cpus_are_told(arch: str) -> None:
    task = Task(arch=arch, cpus=2, tlb_entries=64)
    task.write(0, 1, 2)
    task.write(2, 3, cpu=1)
    assert task.lost(0, 2, 3) == []
    assert task.lost(0, 2, 3, cpu=1) == []


@ARCHES
def test_unflushed_cpu_goes_on_writing_unnoticed_and_another_one_is_noticed(arch: str) -> None:
    mistake = "clear-refs-no-tlb-flush"
    task = Task(mistake, arch=arch, cpus=2, tlb_entries=64)
    task.write(0, 1, 2)
    assert task.lost(0, 1, 5) == [0, 1]  # it has not written to 5
    task = Task(mistake, arch=arch, cpus=2, tlb_entries=64)
    task.write(0, 1, 2)
    assert task.lost(0, 1, 2, cpu=1) == []


def test_cpu_forgets_what_its_cache_has_no_room_for() -> None:
    task = Task("clear-refs-no-tlb-flush", tlb_entries=2)
    task.write(0, 1, 2, 3)
    assert task.lost(0, 1, 2, 3) == []
    task.write(4, 5)
    assert task.lost(4, 5) == [4, 5]


def test_clean_page_with_dbm_needs_the_page_table_and_hardware_sets_no_software_bit() -> None:
    """A CPU that only read a page remembers nothing that would let it write."""
    task = Task("clear-refs-no-tlb-flush", tlb_entries=64)
    task.mm.touch(at(3))
    assert task.lost(3) == []


@ARCHES
def test_clearing_without_write_protecting_loses_everything_that_is_writable(arch: str) -> None:
    task = Task("clear-refs-no-wrprotect", arch=arch)
    assert task.lost(0, 7) == [0, 7]
    task.mm.madvise(BASE, PAGE, MADV_PAGEOUT)
    assert 0 not in task.lost(0, 7)  # swapped in, it is asked about


@pytest.mark.parametrize(("dbm", "lost"), [(True, [0, 7]), (False, [])])
def test_dbm_left_on_loses_what_hardware_may_make_writable(dbm: bool, lost: list[int]) -> None:
    assert Task("clear-refs-keeps-dbm", dbm=dbm).lost(0, 7) == lost


@ARCHES
@pytest.mark.parametrize("change", ["copy-on-write", "dontneed", "protect", "swap", "other"])
def test_no_stale_translation_survives_what_the_kernel_flushes(change: str, arch: str) -> None:
    task = Task(arch=arch, cpus=2, tlb_entries=64)
    task.write(0, 1)
    task.write(0, 1, cpu=1)
    if change == "copy-on-write":
        child = task.mm.fork()
        task.write(0)
        assert child.peek(BASE, 8) != task.mm.peek(BASE, 8)
    elif change == "dontneed":
        task.mm.madvise(BASE, PAGE, MADV_DONTNEED)
    elif change == "swap":
        task.mm.madvise(BASE, PAGE, MADV_PAGEOUT)
    elif change == "protect":
        task.mm.mprotect(BASE, PAGE, PROT_READ)
        with pytest.raises(SegFault):
            task.write(0, cpu=1)
        return
    else:
        child = task.mm.fork()
        child.store_words(at(0), at(0))
    task.write(0, cpu=1)
    assert task.mm.peek(BASE, 8) == task.stamp.to_bytes(8, "little")
    task.mm.run_on(0)
    assert task.mm.load(BASE, 8) == task.stamp.to_bytes(8, "little")


def test_byte_stores_go_through_the_caches_as_well() -> None:
    task = Task("clear-refs-no-tlb-flush", tlb_entries=64)
    sizes, data = np.array([3], np.uint32), np.array([1, 2, 3], np.uint8)
    task.mm.store(at(0), sizes, data)
    task.mm.clear_refs()
    task.mm.store(at(0), sizes, data + np.uint8(1))
    assert task.mm.peek(BASE, 3) == b"\2\3\4" and task.soft_dirty() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpus": 0}, "cpus 0: must be at least 1"),
        ({"tlb_entries": 48}, "tlb_entries 48: must be 0 or a power of two"),
        ({"hunks_off": frozenset({"clear-refs-no-tlb-flush"})}, "set tlb_entries"),
        ({"arch": "x86_64", "hunks_off": frozenset({"clear-refs-keeps-dbm"})}, "is for arm64"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        ModelConfig(**settings)  # type: ignore[arg-type]
    assert message in str(refused.value)


def test_only_one_mistake_of_write_protection_and_only_cpus_that_exist() -> None:
    with pytest.raises(ValueError, match="only one"):
        Task("clear-refs-no-wrprotect", "clear-refs-keeps-dbm")
    with pytest.raises(ValueError, match="cpu 1: the machine has 1"):
        Task().mm.run_on(1)
