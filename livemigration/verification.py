"""Comparing two memories: the source's digests as messages, and the destination's answer.

The destination never trusts a digest it was sent: it computes its own (`snapshot.digest_task`) and
compares page by page over the union of both sets of pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from livemigration.errors import BadRequest
from livemigration.runs import from_runs, to_runs
from livemigration.snapshot import ProcessDigests, TaskDigests
from livemigration.v1 import common_pb2, destination_node_pb2

U64 = NDArray[np.uint64]

CHUNK_PAGES = 65536
"""Digests in one message: 512 KiB."""

NOTHING = np.zeros(0, dtype=np.uint64)


def chunks(
    migration_id: str,
    digests: TaskDigests,
    page_size: int,
    lazy: Iterable[ProcessDigests] = (),
) -> Iterator[destination_node_pb2.VerifyChunk]:
    """The source's digests as messages; the last one carries the digest of the whole memory.

    lazy: those of pages that come later, which are not among the others.
    """
    for process, later in [(p, False) for p in digests.processes] + [(p, True) for p in lazy]:
        for at in range(0, max(1, process.addresses.size), CHUNK_PAGES):
            starts, pages = to_runs(process.addresses[at : at + CHUNK_PAGES], page_size)
            yield destination_node_pb2.VerifyChunk(
                migration_id=migration_id,
                pid=process.pid,
                run_start=starts.tolist(),
                run_pages=pages.tolist(),
                digests=process.digests[at : at + CHUNK_PAGES].astype("<u8").tobytes(),
                lazy=later,
            )
    yield destination_node_pb2.VerifyChunk(
        migration_id=migration_id, memory_digest=digests.memory_digest
    )


class Comparison:
    """Collects the source's digests, then compares them with this host's own."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._addresses: dict[int, list[U64]] = {}
        self._digests: dict[int, list[U64]] = {}
        self._lazy: dict[int, list[U64]] = {}
        self._lazy_digests: dict[int, list[U64]] = {}
        self.memory_digest = ""

    @property
    def lazy(self) -> dict[int, tuple[U64, U64]]:
        """By process, (addresses, digests) of the pages that come later."""
        return {
            pid: (np.concatenate(addresses), np.concatenate(self._lazy_digests[pid]))
            for pid, addresses in self._lazy.items()
        }

    def add(self, chunk: destination_node_pb2.VerifyChunk) -> None:
        """One more message; `BadRequest` if its columns do not fit together."""
        if chunk.memory_digest:
            self.memory_digest = chunk.memory_digest
            return
        into = (self._lazy, self._lazy_digests) if chunk.lazy else (self._addresses, self._digests)
        starts = np.array(chunk.run_start, dtype=np.uint64)
        pages = np.array(chunk.run_pages, dtype=np.uint64)
        if starts.size != pages.size or int(pages.sum()) * 8 != len(chunk.digests):
            raise BadRequest(
                f"verification: {len(chunk.digests)} digest bytes for {int(pages.sum())} pages"
            )
        if starts.size:
            addresses = from_runs(starts, pages, self._page_size)
        else:
            addresses = NOTHING
        into[0].setdefault(chunk.pid, []).append(addresses)
        into[1].setdefault(chunk.pid, []).append(np.frombuffer(chunk.digests, dtype="<u8"))

    def compare(self, own: TaskDigests) -> destination_node_pb2.VerifyReply:
        """Page by page, over every page that is not all zeros on either host."""
        here = {p.pid: p for p in own.processes}
        mismatches: list[common_pb2.Mismatch] = []
        compared = different = 0
        for pid in sorted(here.keys() | self._addresses.keys()):
            theirs = ProcessDigests(
                pid,
                np.concatenate(self._addresses.get(pid, [NOTHING])),
                np.concatenate(self._digests.get(pid, [NOTHING])),
            )
            mine = here.get(pid, ProcessDigests(pid, NOTHING, NOTHING))
            wrong, union = differing_pages(theirs, mine)
            compared += union
            different += wrong.size
            mismatches += ranges(pid, wrong, self._page_size)
        equal = different == 0 and own.memory_digest == self.memory_digest
        return destination_node_pb2.VerifyReply(
            equal=equal,
            mismatches=mismatches,
            pages_compared=compared,
            pages_different=different,
            memory_digest=own.memory_digest,
        )


def differing_pages(theirs: ProcessDigests, mine: ProcessDigests) -> tuple[U64, int]:
    """(addresses of pages that differ or are on one side only, number of pages compared)."""
    if np.array_equal(theirs.addresses, mine.addresses):
        wrong = theirs.digests != mine.digests
        return theirs.addresses[wrong], int(theirs.addresses.size)
    union = np.union1d(theirs.addresses, mine.addresses)
    left, has_left = _spread(theirs, union)
    right, has_right = _spread(mine, union)
    return union[(left != right) | (has_left != has_right)], int(union.size)


def _spread(process: ProcessDigests, union: U64) -> tuple[U64, NDArray[np.bool_]]:
    digests = np.zeros(union.size, dtype=np.uint64)
    there = np.zeros(union.size, dtype=np.bool_)
    at = np.searchsorted(union, process.addresses)
    digests[at] = process.digests
    there[at] = True
    return digests, there


def ranges(pid: int, addresses: U64, page_size: int) -> list[common_pb2.Mismatch]:
    """Addresses as ranges, without the round that sent them."""
    starts, pages = to_runs(addresses, page_size)
    return [
        common_pb2.Mismatch(pid=pid, start=start, pages=count, last_round=-1)
        for start, count in zip(starts.tolist(), pages.tolist(), strict=True)
    ]


def addresses_of(mismatches: Iterable[common_pb2.Mismatch], pid: int, page_size: int) -> U64:
    """The pages of one process in a list of ranges, ascending."""
    mine = [m for m in mismatches if m.pid == pid]
    if not mine:
        return NOTHING
    return from_runs(
        np.array([m.start for m in mine], dtype=np.uint64),
        np.array([m.pages for m in mine], dtype=np.uint64),
        page_size,
    )
