"""A simulated task made of an image directory.

The memory is the images'. With `state.STATE_FILE` beside them the workload goes on where it was
when it was dumped; without, as with a dump by real CRIU, the task is there and does nothing.
"""

from __future__ import annotations

from pathlib import Path

from livemigration.costs import CostSpec
from livemigration.criu.errors import ImageError
from livemigration.criu.images import ImageDirectory, load_task
from livemigration.criu.magic import STATS_MAGIC
from livemigration.criu.naming import model_pids
from livemigration.criu.pb.stats_pb2 import RestoreStats, StatsEntry
from livemigration.criu.record_writer import write_image
from livemigration.execution import Execution
from livemigration.spec import TaskSpec
from livemigration.task import Task, build_machine
from livemigration.workload import Workload, build_workload
from predump.criu_host.state import STATE_FILE, Core, State, read_state
from predump.criu_host.task import SimulatedTask

_ADVICE = "restore what the same Predump dumped, or remove the file: the task is idle then"


def load_images(folder: Path, costs: CostSpec, pid: int = 0) -> SimulatedTask:
    """The task of a directory, at rest; `pid`: its own, 0 for that of the images.

    Raises ImageError.
    """
    images = ImageDirectory.open(folder)
    found = read_state(folder)
    spec = found[0].task if found is not None else _idle_spec(images)
    if spec.page_size != images.page_size:
        raise ImageError(folder / STATE_FILE, f"pages of {spec.page_size} bytes", _ADVICE)
    task = load_task(build_machine(spec, images.pages), images)
    outside = {inside: process for process, inside in model_pids(_parents(images)).items()}
    if found is not None:
        outside = _rename(task, outside, found[0], found[1], folder)
    workload = _workload(spec, found, folder)
    core = found[1] if found is not None else Core({}, 0, task.next_pid)
    state = found[0] if found is not None else None
    wall = state is not None and state.clock == "wall"
    execution = Execution(
        task,
        workload,
        wall=wall,
        workload_ns=core.workload_ns,
        write_fault_ns=0 if wall else costs.write_fault,
    )
    root = outside[min(outside)]
    pids = {inside: pid if pid and name == root else name for inside, name in outside.items()}
    return SimulatedTask(
        pid=pid or root,
        name=state.name if state is not None else images.processes[0].comm,
        spec=spec,
        costs=costs,
        clock="wall" if wall else "virtual",
        step_ns=state.step_ns if state is not None else 0,
        task=task,
        workload=workload,
        execution=execution,
        base_dir=Path(state.base_dir) if state is not None else folder,
        pids=pids,
        own_net=state is not None and state.own_net,
        extra_pages=images.pages,
    )


def write_restore_stats(folder: Path, task: SimulatedTask, pages: int, took_ns: int) -> None:
    """``stats-restore`` in the work directory. Raises OSError."""
    if not task.wall:
        vmas = sum(len(list(mm.vmas())) for mm in task.task.processes.values())
        took_ns = task.costs.restore_ns(vmas, pages * task.spec.page_size, pages)
    stats = RestoreStats(
        pages_compared=0,
        pages_skipped_cow=0,
        forking_time=0,
        restore_time=min(took_ns // 1000, (1 << 32) - 1),
        pages_restored=pages,
    )
    write_image(folder / "stats-restore", STATS_MAGIC, StatsEntry(restore=stats))


def _parents(images: ImageDirectory) -> dict[int, int]:
    return {process.pid: process.ppid for process in images.processes}


def _idle_spec(images: ImageDirectory) -> TaskSpec:
    pages = max(images.pages, 1)
    return TaskSpec.model_validate(
        {
            "page_size": images.page_size,
            "memory": pages * images.page_size,
            "workload": {"kind": "idle"},
        }
    )


def _rename(
    task: Task, outside: dict[int, int], state: State, core: Core, folder: Path
) -> dict[int, int]:
    """Gives the processes the model's pids that they had, which the workload goes by."""
    inside = {name: pid for pid, name in state.pids.items()}
    missing = [name for name in outside.values() if name not in inside]
    if missing or len(inside) != len(state.pids):
        raise ImageError(folder / STATE_FILE, "names other processes than pstree.img", _ADVICE)
    new = {now: inside[name] for now, name in outside.items()}
    if new.get(1) != 1 or max(new.values()) >= core.next_pid:
        raise ImageError(folder / STATE_FILE, "names a process that cannot be", _ADVICE)
    parents = {new[pid]: new.get(parent, 0) for pid, parent in task.parents.items()}
    processes = {new[pid]: mm for pid, mm in task.processes.items()}
    task.processes, task.parents, task.next_pid = processes, parents, core.next_pid
    return {new[now]: name for now, name in outside.items()}


def _workload(spec: TaskSpec, found: tuple[State, Core] | None, folder: Path) -> Workload:
    workload = build_workload(
        spec.workload,
        seed=spec.seed,
        memory_bytes=spec.memory,
        page_size=spec.page_size,
        base_dir=Path(found[0].base_dir) if found is not None else folder,
    )
    if found is not None:
        try:
            workload.restore(found[1].workload)
        except (KeyError, TypeError, ValueError) as error:
            raise ImageError(
                folder / STATE_FILE, f"core.workload does not fit the task: {error!r}", _ADVICE
            ) from error
    return workload
