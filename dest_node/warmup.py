"""Load the compiled code that a migration needs at the destination, before one comes.

Numba loads a function from its cache when it is first called, which takes a good part of a second
for all of them. A host that has just started would spend that in its first round 0.
"""

from __future__ import annotations

import numpy as np

from dest_node.incoming import IncomingTask, Request
from livemigration import batch
from livemigration.layout import describe, to_proto
from livemigration.runs import to_runs
from livemigration.task import ROOT_PID
from livemigration.v1 import common_pb2
from mm_model import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, Machine, ModelConfig

_PAGES = 16


def warm_up() -> None:
    """Receives a task of a few pages, looks at its digests, and forgets it."""
    machine = Machine(ModelConfig(frames=4 * _PAGES))
    mm = machine.create_mm()
    page_size = machine.page_size
    start = mm.mmap(None, _PAGES * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    process = to_proto(describe(ROOT_PID, 0, mm))
    process.live_start.append(start)
    process.live_pages.append(_PAGES)
    task = {"memory": _PAGES * page_size, "workload": {"kind": "idle"}}
    incoming = IncomingTask.prepare(Request("warm-up", task, "", "virtual"), None)
    addresses = np.uint64(start) + np.arange(_PAGES, dtype=np.uint64) * np.uint64(page_size)
    run_start, run_pages = to_runs(addresses, page_size)
    pages = np.ones((_PAGES, page_size), dtype=np.uint8)
    incoming.apply(batch.encode_begin(1, 0, common_pb2.RoundBegin(processes=[process])))
    incoming.apply(
        batch.encode_pages(
            sequence=2,
            round_number=0,
            pid=ROOT_PID,
            run_start=run_start,
            run_pages=run_pages,
            zero_start=run_start[:0],
            zero_pages=run_pages[:0],
            content=pages,
            rows=np.arange(_PAGES, dtype=np.int64),
        )
    )
    incoming.digest()
    incoming.give_up()
