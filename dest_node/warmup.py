"""Load the compiled code that a migration needs at the destination, before one comes.

Numba loads a function from its cache when it is first called, which takes a good part of a second
for all of them. A host that has just started would spend that in its first round 0.
"""

from __future__ import annotations

from dest_node.incoming import IncomingTask, Request
from livemigration import batch
from livemigration.layout import describe, to_proto
from livemigration.task import ROOT_PID
from livemigration.v1 import common_pb2
from livemigration.warm import encoded_frames, pages_frame, small_task


def warm_up() -> None:
    """Receives a task of a few pages, looks at its digests, and forgets it."""
    task, addresses = small_task()
    process = to_proto(describe(ROOT_PID, 0, task.processes[ROOT_PID]))
    process.live_start.append(int(addresses[0]))
    process.live_pages.append(addresses.size)
    spec = {
        "memory": addresses.size * task.machine.page_size,
        "workload": {"kind": "idle"},
    }
    incoming = IncomingTask.prepare(Request("warm-up", spec, "", "virtual"), None)
    begin = common_pb2.RoundBegin(processes=[process], delta_cache_pages=addresses.size)
    incoming.apply(batch.encode_begin(1, 0, begin))
    incoming.apply(pages_frame(task, addresses, sequence=2))
    for frame in encoded_frames(addresses, task.machine.page_size, sequence=3):
        incoming.apply(frame)
    incoming.digest()
    incoming.give_up()
    task.release()
