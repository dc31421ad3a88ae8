"""What each kind writes is the same for ever: on any processor, with any version.

Results are compared across machines and releases, so a change of these digests is a change of
what every scenario does and belongs in CHANGELOG.md.
"""

from __future__ import annotations

import hashlib

import pytest

from tests.unit.workload.harness import SECOND, busy_spec, memory_of, start

DIGESTS = {
    "uniform": "193ab3a5742a0ae0",
    "zipf": "f7ba36a25a306c42",
    "hotspot": "ff4ed29bd33762d4",
    "sequential": "a8f24678f4e9efee",
    "phased": "480507e36968a7e5",
    "idle": "5b806f3fa0e947fb",
    "append-heap": "f45a561cd48827dc",
    "fork-cow": "0a486b0462930612",
    "swap-pressure": "b5217df123095261",
    "trace": "1e90d5a8bf61ed4b",
}


@pytest.mark.parametrize(("kind", "digest"), DIGESTS.items())
def test_memory_after_half_a_second(kind: str, digest: str) -> None:
    workload, task = start(busy_spec(kind), seed=2024)
    workload.run_until(task, SECOND // 2)
    memory = memory_of(task)
    found = hashlib.sha256(repr(memory.areas).encode())
    for pid, pages in memory.pages.items():
        for address, page in sorted(pages.items()):
            found.update(f"{pid} {address:#x} ".encode() + page)
    assert found.hexdigest()[:16] == digest
