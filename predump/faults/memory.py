"""A task's memory at its destination, byte for byte against that of a task that never moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable

import numpy as np
from numpy.typing import NDArray

from livemigration.digest import gather_bytes
from livemigration.runs import from_runs
from livemigration.snapshot import digest_task, nonzero_pages
from livemigration.v1 import destination_node_pb2
from source_node.hosting import TaskRequest, build_task

Memory = dict[int, tuple[NDArray[np.uint64], bytes]]
"""By process: addresses of the pages that are not zeros, ascending, and their bytes."""


def memory_of(request: TaskRequest, operations: int) -> tuple[Memory, str]:
    """Of a new task after so many operations, and its digest; nothing of it has ever moved."""
    task, workload, _ = build_task(request)
    try:
        if operations:
            workload.run_until(task, workload.due_ns(operations - 1) + 1, max_ops=operations)
        memory: Memory = {}
        for pid, mm in task.processes.items():
            pages = nonzero_pages(pid, mm)
            memory[pid] = pages.addresses, gather_bytes(task.machine.content, pages.rows)
        return memory, digest_task(task).memory_digest
    finally:
        task.release()


async def read_memory(
    chunks: AsyncIterable[destination_node_pb2.MemoryChunk], page_size: int
) -> Memory:
    """As a destination streams it back; AioRpcError."""
    addresses: dict[int, list[NDArray[np.uint64]]] = {}
    pages: dict[int, list[bytes]] = {}
    async for chunk in chunks:
        starts = np.array(chunk.run_start, dtype=np.uint64)
        counts = np.array(chunk.run_pages, dtype=np.uint64)
        addresses.setdefault(chunk.pid, []).append(from_runs(starts, counts, page_size))
        pages.setdefault(chunk.pid, []).append(chunk.pages)
    return {pid: (np.concatenate(addresses[pid]), b"".join(pages[pid])) for pid in addresses}


def difference(there: Memory, expected: Memory, page_size: int) -> str:
    """The first page that differs, in words; "" if none does."""
    for pid in sorted(there.keys() | expected.keys()):
        found, data = there.get(pid, (np.zeros(0, np.uint64), b""))
        known, right = expected.get(pid, (np.zeros(0, np.uint64), b""))
        if not np.array_equal(found, known):
            page = int(np.setxor1d(found, known)[0])
            where = "is missing" if page in known else "is too much"
            return f"page {page:#x} of process {pid} {where} at the destination"
        if data != right:
            rows = np.frombuffer(data, np.uint8) != np.frombuffer(right, np.uint8)
            page = int(found[int(np.argmax(rows)) // page_size])
            return f"page {page:#x} of process {pid} differs at the destination"
    return ""


async def memory_like(request: TaskRequest, operations: int) -> tuple[Memory, str]:
    """`memory_of`, beside the event loop."""
    return await asyncio.to_thread(memory_of, request, operations)
