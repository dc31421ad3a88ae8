"""A task's memory in a real mapping answers as the model's does."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from livemigration.host.memory import HostMm
from livemigration.layout import describe
from livemigration.snapshot import digest_task
from livemigration.task import Task
from mm_model import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    Machine,
    MmError,
    ModelConfig,
    SegFault,
)
from tests.unit.host.kernel_here import BASE, PAGE, needs, write

pytestmark = needs("wp-async")
RW = PROT_READ | PROT_WRITE
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
PAGES = 64


def tasks() -> tuple[Task, Task]:
    """One in real memory, one in the model, of the same mapping."""
    from livemigration.host.memory import host_task

    made = host_task(PAGES, PAGE), Task(Machine(ModelConfig(page_size=PAGE, frames=4 * PAGES)))
    for task in made:
        task.processes[1].mmap(BASE, PAGES * PAGE, RW, PRIVATE | MAP_FIXED)
    return made


def random_stores(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Addresses, sizes and bytes of stores of whole words, some of them to the same place."""
    draw = np.random.default_rng(seed)
    sizes = (draw.integers(1, 9, 200) * 8).astype(np.uint32)
    pages = draw.integers(0, PAGES // 2, 200).astype(np.uint64)
    within = draw.integers(0, (PAGE - 64) // 8, 200).astype(np.uint64) * np.uint64(8)
    payload = draw.integers(0, 2, int(sizes.sum()), dtype=np.uint8)
    return np.uint64(BASE) + pages * np.uint64(PAGE) + within, sizes, payload


def test_the_same_stores_give_the_same_memory_and_stamps_that_change_alike() -> None:
    real, model = tasks()
    stamps: list[list[np.ndarray]] = [[], []]
    for seed in range(3):
        for k, task in enumerate((real, model)):
            mm = task.processes[1]
            before = mm.versions(BASE, PAGES)
            mm.store(*random_stores(seed))
            stamps[k].append(mm.versions(BASE, PAGES) != before)
    assert np.array_equal(stamps[0], stamps[1])
    assert digest_task(real).memory_digest == digest_task(model).memory_digest
    rows = real.processes[1].frames(BASE, PAGES)
    assert np.array_equal(rows > 0, model.processes[1].frames(BASE, PAGES) > 0)
    for page in np.flatnonzero(rows > 0).tolist():
        here = real.machine.content[rows[page]].tobytes()
        assert here == model.processes[1].peek(BASE + page * PAGE, PAGE)


def test_the_mapping_is_described_as_the_models() -> None:
    real, model = (describe(1, 0, task.processes[1]).vmas for task in tasks())
    assert [(v.start, v.end, v.prot, v.flags, v.shared_id) for v in real] == [
        (v.start, v.end, v.prot, v.flags, v.shared_id) for v in model
    ]


@pytest.mark.parametrize("address", [BASE - 8, BASE + PAGES * PAGE, 0, 2**63])
def test_a_store_outside_of_the_mapping_is_a_segmentation_fault(address: int) -> None:
    mm: HostMm = tasks()[0].processes[1]  # type: ignore[assignment]
    where = np.array([BASE, address, BASE + 8], np.uint64)
    with pytest.raises(SegFault) as fault:
        mm.store_words(where, np.ones(3, np.uint64))
    assert fault.value.address == address
    words = mm.machine.content[1].view(np.uint64)
    assert words[:2].tolist() == [1, 0]  # what came before it is done, what comes after is not


def test_what_is_no_whole_word_or_no_such_mapping_is_refused() -> None:
    mm: HostMm = tasks()[0].processes[1]  # type: ignore[assignment]
    with pytest.raises(MmError, match="whole words"):
        mm.store_words(np.array([BASE + 4], np.uint64), np.ones(1, np.uint64))
    with pytest.raises(MmError, match="one private anonymous mapping"):
        mm.mmap(BASE, PAGE, RW, PRIVATE)
    other = type(mm)(mm.machine)
    for length, flags in ((PAGE, PRIVATE), (PAGES * PAGE, MAP_SHARED | MAP_ANONYMOUS)):
        with pytest.raises(MmError):
            other.mmap(BASE, length, RW, flags)


def test_memory_goes_when_the_task_ends() -> None:
    task = tasks()[0]
    mm: HostMm = task.processes[1]  # type: ignore[assignment]
    write(mm, *range(PAGES))
    assert task.machine.used_frames == PAGES
    region = weakref.ref(mm.machine.region)
    bytes_of_it = weakref.ref(mm.machine.content.base)
    task.release()
    assert region() is None
    assert bytes_of_it() is None
    assert mm.machine.content.shape == (2, PAGE)
