"""A running task as a state directory keeps it: its memory and its workload's state, as of now.

What was committed at the hand-over is the task of the freeze. A task that went on before its pages
came was never whole then; it is kept as it is when the last one has come.
"""

from __future__ import annotations

from livemigration.execution import Execution, core_of
from livemigration.files import describe_file, file_pages
from livemigration.layout import describe, to_proto
from livemigration.runs import to_runs
from livemigration.snapshot import own_pages
from livemigration.task import Task
from livemigration.v1 import common_pb2


def describe_task(execution: Execution, task: Task) -> common_pb2.RoundBegin:
    """What the first frame of a final round says of a task at rest."""
    page_size = task.machine.page_size
    begin = common_pb2.RoundBegin(final=True, core=core_of(execution))
    shared_ids: set[int] = set()
    for pid in sorted(task.processes):
        space = describe(pid, task.parents[pid], task.processes[pid])
        process = to_proto(space)
        starts, pages = to_runs(own_pages(task, pid)[0], page_size)
        process.live_start.extend(starts.tolist())
        process.live_pages.extend(pages.tolist())
        begin.processes.append(process)
        shared_ids |= {vma.shared_id for vma in space.vmas if vma.shared_id}
    for file in task.files:
        begin.shared.append(describe_file(file, file_pages(task.machine, file)[0]))
        shared_ids.discard(file.object_id)
    for shared_id in sorted(shared_ids):
        begin.shared.add(id=shared_id, pages=task.machine.shared(shared_id).npages)
    return begin
