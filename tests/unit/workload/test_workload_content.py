"""What is written: how well it compresses, that every write is new, that a seed decides it."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest

from livemigration.workload.content import Content
from livemigration.workload.spec import ContentSpec
from tests.unit.workload.harness import SECOND, memory_of, pages_of, spec, start
from tests.unit.workload.spy import watched


def compressed_share(data: bytes) -> float:
    return len(zlib.compress(data, 6)) / len(data)


def populated(**keys: Any) -> bytes:
    """The memory of a fresh task."""
    _, task = start(spec("uniform", **keys))
    return b"".join(page for _, page in sorted(pages_of(task.processes[1]).items()))


def written(write_size: int, **keys: Any) -> bytes:
    workload, task, spy = watched(spec("uniform", write_size=write_size, **keys))
    workload.run_until(task, SECOND // 10)
    return spy.written


@pytest.mark.parametrize("source", [populated, lambda **keys: written(256, **keys)])
class TestHowItCompresses:
    def test_random_bytes_do_not(self, source: Any) -> None:
        assert compressed_share(source()) > 0.99
        assert compressed_share(source(content="random")) > 0.99

    def test_text_does_like_text(self, source: Any) -> None:
        data = source(content="text")
        assert 0.2 < compressed_share(data) < 0.5
        assert set(data) <= set(range(0x20, 0x7F)) | {0x0A}
        assert len(set(data)) > 40

    def test_zero_words_do_well(self, source: Any) -> None:
        assert compressed_share(source(content="zero")) < 0.25


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_compressibility_is_the_share_of_words_that_are_zero(share: float) -> None:
    words = np.frombuffer(populated(compressibility=share), dtype=np.uint64)
    # The first word of each page of 512 is never zero.
    assert (words == 0).mean() == pytest.approx(share * 511 / 512, abs=0.003)


def test_zero_is_seven_words_of_eight() -> None:
    words = np.frombuffer(populated(content="zero"), dtype=np.uint64)
    assert (words == 0).mean() == pytest.approx(7 / 8, abs=0.003)


@pytest.mark.parametrize("keys", [{}, {"content": "text"}, {"content": "zero"}])
@pytest.mark.parametrize("write_size", [8, 64, 4096])
def test_no_two_writes_are_the_same(write_size: int, keys: dict[str, Any]) -> None:
    data = written(write_size, **keys)
    pieces = {data[at : at + write_size] for at in range(0, len(data), write_size)}
    assert len(pieces) == 2000


def test_a_write_of_other_content_goes_to_the_same_place() -> None:
    places = []
    for content in ("random", "text", "zero"):
        workload, task, spy = watched(spec("zipf", content=content))
        workload.run_until(task, SECOND // 10)
        places.append(spy.addresses.tolist())
    assert places[0] == places[1] == places[2]


@pytest.mark.parametrize("kind", ["uniform", "append-heap", "fork-cow", "swap-pressure"])
def test_a_seed_gives_the_same_memory_every_time(kind: str) -> None:
    runs = []
    for seed in (3, 3, 4):
        workload, task = start(spec(kind), seed=seed)
        workload.run_until(task, SECOND // 5)
        runs.append(memory_of(task))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("keys", [{}, {"content": "text"}, {"compressibility": 0.5}])
def test_payloads_of_any_number_of_bytes_are_the_beginnings_of_whole_words(
    keys: dict[str, Any],
) -> None:
    content = Content.of(ContentSpec.model_validate(keys))
    words = np.empty(4 * 5, dtype=np.uint64)
    content.words(99, 1000, 4, words)
    whole = words.view(np.uint8).reshape(5, 32)
    sizes = np.array([1, 31, 8, 9, 32], dtype=np.uint32)
    out = np.empty(int(sizes.sum()), dtype=np.uint8)
    content.bytes(99, 1000, sizes, out)
    expected = b"".join(whole[i, :size].tobytes() for i, size in enumerate(sizes.tolist()))
    assert out.tobytes() == expected


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_a_fresh_task_has_every_page_with_content_of_its_own(page_size: int) -> None:
    _, task = start(spec("uniform", content="zero"), page_size=page_size)
    pages = pages_of(task.processes[1])
    assert len(pages) == 2 * 2**20 // page_size
    assert len(set(pages.values())) == len(pages)
