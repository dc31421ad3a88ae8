"""Any layout of memory and any chain of rounds, written and read back: the same bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from livemigration.criu.compare import compare
from livemigration.criu.dedup import dedup
from livemigration.criu.images import (
    Flavour,
    ImageDirectory,
    RoundPages,
    export_task,
    load_task,
)
from livemigration.criu.survey import survey
from livemigration.task import Task
from mm_model import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, Machine, Mm, ModelConfig

PAGE = 4096
BASE = 0x10000000
SPAN = 24
"""Pages of each mapping, at most."""

MAPPINGS = st.lists(
    st.tuples(
        st.sampled_from(["private", "read-only", "shared", "file-shared", "file-private"]),
        st.integers(1, SPAN),  # pages
        st.integers(0, 3),  # pages between it and the one before
    ),
    min_size=1,
    max_size=4,
)
WRITES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, SPAN - 1), st.integers(0, 2**64 - 1)), max_size=12
)
"""(mapping, page, value) of each write in a round."""


class Author:
    """A task under construction, and what its memory is by a plain model: address -> bytes."""

    def __init__(self, mappings: list[tuple[str, int, int]]) -> None:
        self.task = Task(Machine(ModelConfig(frames=2048)))
        self.mm: Mm = self.task.processes[1]
        self.places: list[tuple[int, int, str]] = []
        at = BASE
        for kind, pages, gap in mappings:
            at += gap * PAGE
            self._map(kind, at, pages)
            self.places.append((at, pages, kind))
            at += pages * PAGE

    def _map(self, kind: str, at: int, pages: int) -> None:
        flags, shared_id = MAP_PRIVATE | MAP_ANONYMOUS, 0
        if kind == "shared":
            flags, shared_id = MAP_SHARED | MAP_ANONYMOUS, self.task.machine.create_shared(pages)
        elif kind.startswith("file"):
            number = self.task.create_file(pages, on_disk=False)
            shared_id = self.task.files[number].object_id
            flags = MAP_SHARED if kind == "file-shared" else MAP_PRIVATE
        self.mm.mmap(at, pages * PAGE, 3, flags | 0x10, shared_id=shared_id)

    def write(self, writes: list[tuple[int, int, int]]) -> RoundPages:
        """Writes, and says which pages of the task that changed: the round that sends them."""
        private: set[int] = set()
        objects: dict[int, set[int]] = {}
        for number, page, value in writes:
            start, pages, kind = self.places[number % len(self.places)]
            page %= pages
            address = start + page * PAGE
            self.mm.store_words(np.array([address], np.uint64), np.array([value], np.uint64))
            (vma,) = [vma for vma in self.mm.vmas() if vma.start <= address < vma.end]
            if vma.shared_id:  # a private copy of a file's page was read from the file first
                at = vma.pgoff + (address - vma.start) // PAGE
                objects.setdefault(vma.shared_id, set()).add(at)
            if kind not in ("shared", "file-shared"):
                private.add(address)
        return RoundPages(
            {1: np.array(sorted(private), np.uint64)},
            {number: np.array(sorted(pages), np.int64) for number, pages in objects.items()},
        )

    def protect(self) -> None:
        for start, pages, kind in self.places:
            if kind == "read-only":
                self.mm.mprotect(start, pages * PAGE, 1)

    def memory(self) -> list[bytes]:
        return [self.mm.peek(start, pages * PAGE) for start, pages, _ in self.places]


def loaded(folder: Path, author: Author) -> list[bytes]:
    images = ImageDirectory.open(folder)
    task = load_task(Machine(ModelConfig(frames=2048)), images)
    try:
        return [task.processes[1].peek(at, pages * PAGE) for at, pages, _ in author.places]
    finally:
        task.release()


@given(MAPPINGS, st.lists(WRITES, min_size=1, max_size=4), st.sampled_from(list(Flavour)))
@settings(max_examples=20)
def test_a_chain_of_rounds(
    mappings: list[tuple[str, int, int]],
    rounds: list[list[tuple[int, int, int]]],
    flavour: Flavour,
) -> None:
    author = Author(mappings)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, writes in enumerate(rounds, 1):
            sent = author.write(writes)
            last = number == len(rounds)
            if last:
                author.protect()
            export_task(
                author.task,
                folder / str(number),
                pre_dump=not last,
                parent=f"../{number - 1}" if number > 1 else "",
                pages=sent,
                flavour=flavour,
            )
            assert survey(folder / str(number)).everything_wrong() == []
        last_folder = folder / str(len(rounds))
        assert loaded(last_folder, author) == author.memory()
        # The same task in one directory has the same pages; so has one made of the chain.
        export_task(author.task, folder / "whole")
        assert compare(last_folder, folder / "whole").same
        again = load_task(Machine(ModelConfig(frames=2048)), ImageDirectory.open(last_folder))
        export_task(again, folder / "again")
        assert compare(last_folder, folder / "again").same
        if len(rounds) > 1:
            dedup(last_folder, PAGE, chain=True)
            assert loaded(last_folder, author) == author.memory()
    author.task.release()
    again.release()
