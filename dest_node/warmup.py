"""Load the compiled code that a migration needs at the destination, before one comes.

Numba loads a function from its cache when it is first called, which takes a good part of a second
for all of them. A host that has just started would spend that in its first round 0.
"""

from __future__ import annotations

import numpy as np

from dest_node.incoming import IncomingTask, Request
from dest_node.prefetch import make_prefetcher
from livemigration import batch
from livemigration.layout import describe, to_proto
from livemigration.task import ROOT_PID
from livemigration.v1 import common_pb2
from livemigration.warm import encoded_frames, pages_frame, small_task


def warm_up() -> None:
    """Receives a task of a few pages, looks at its digests, and forgets it.

    Then the pages come once more, as those of a post-copy do.
    """
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
    encoded = list(encoded_frames(addresses, task.machine.page_size, sequence=3))
    for frame in encoded:
        incoming.apply(frame)
    incoming.digest()
    sequence, pages = 3 + len(encoded), addresses.size * (1 + len(encoded))
    incoming.apply(batch.encode_end(sequence, 0, common_pb2.RoundEnd(pages=pages)))
    process.lazy_start.extend(process.live_start)
    process.lazy_pages.extend(process.live_pages)
    begin = common_pb2.RoundBegin(processes=[process], post_copy=common_pb2.PostCopyPlan())
    incoming.apply(batch.encode_begin(sequence + 1, 1, begin))
    _fetch(incoming, batch.decode(pages_frame(task, addresses, sequence=1)))
    incoming.give_up()
    task.release()


def _fetch(incoming: IncomingTask, frame: batch.Frame) -> None:
    missing = incoming.missing
    assert missing is not None
    order = make_prefetcher("around-faults", missing.borders, 1)
    order.fault(0)
    missing.request(1, order.next(missing.states, missing.count), urgent=False)
    missing.request(2, np.zeros(1, dtype=np.int64), urgent=True)
    missing.first(ROOT_PID, frame.run_start, 0)
    missing.place(frame, incoming.task.processes)
