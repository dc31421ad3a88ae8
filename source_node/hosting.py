"""The task on the source host: made from its spec, run, and made again for comparison."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from livemigration.criu.carried import CarriedImages
from livemigration.criu.images import ImageDirectory, load_task
from livemigration.errors import BadRequest
from livemigration.execution import Execution
from livemigration.host.memory import host_task
from livemigration.ownership import Event, Ownership, OwnershipMachine
from livemigration.snapshot import digest_task
from livemigration.spec import TaskSpec
from livemigration.task import Task, build_machine
from livemigration.workload import Workload, build_workload
from source_node.migration import TaskOrigin


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """What StartTask asked for."""

    spec: TaskSpec
    struct: dict[str, Any]
    clock: str
    base_dir: Path


def build_task(request: TaskRequest) -> tuple[Task, Workload, int]:
    """A new task before its first operation: (task, workload, pages beyond the spec's memory).

    Memory comes from the CRIU image directory if there is one, else from the workload's set-up.
    Raises ValueError (one line) for images or traces that cannot be used.
    """
    spec = request.spec
    workload = build_workload(
        spec.workload,
        seed=spec.seed,
        memory_bytes=spec.memory,
        page_size=spec.page_size,
        base_dir=request.base_dir,
    )
    if not spec.source.images:
        task = _empty_task(spec)
        workload.setup(task, populate=spec.source.populate)
        return task, workload, 0
    images = ImageDirectory.open(request.base_dir / spec.source.images)
    if images.page_size != spec.page_size:
        raise BadRequest(
            f"{spec.source.images} has pages of {images.page_size} bytes, the task of "
            f"{spec.page_size}; set page_size to {images.page_size}"
        )
    extra = images.pages
    task = load_task(build_machine(spec, extra), images)
    workload.setup(task, populate=False, from_image=True)
    return task, workload, extra


def _empty_task(spec: TaskSpec) -> Task:
    """In the model, or in memory of this process; `BadRequest` if its kernel cannot track."""
    if spec.tracker == "host":
        return host_task(spec.pages, spec.page_size, spec.host.method, spec.host.forget)
    return Task(build_machine(spec))


@dataclass(slots=True)
class HostedTask:
    """The one task of a source host."""

    request: TaskRequest
    task: Task
    workload: Workload
    execution: Execution
    extra_pages: int
    images: CarriedImages | None = None  # those beside the memory, if the task came out of some
    ownership: OwnershipMachine = field(default_factory=lambda: OwnershipMachine(source=True))
    migration_id: str = ""

    @classmethod
    async def start(cls, request: TaskRequest) -> HostedTask:
        """Builds the task and lets it run."""
        task, workload, extra = await asyncio.to_thread(build_task, request)
        images = None
        if request.spec.source.images:
            folder = request.base_dir / request.spec.source.images
            images = await asyncio.to_thread(CarriedImages.read, folder)
        execution = Execution(task, workload, wall=request.clock == "wall")
        hosted = cls(request, task, workload, execution, extra, images)
        hosted.ownership.on(Event.START)
        execution.thaw()
        return hosted

    @property
    def origin(self) -> TaskOrigin:
        """What a destination must know of it."""
        return TaskOrigin(
            struct=self.request.struct,
            base_dir=str(self.request.base_dir),
            memory_bytes=self.request.spec.memory,
            extra_pages=self.extra_pages,
            tracker=self.request.spec.tracker,
            images=self.images,
        )

    async def reference(self, operations: int) -> str:
        """Memory digest of the same task after so many operations, had it never moved.

        Only after the destination owns the task: its memory here is freed first, so that this host
        never holds two guests.
        """
        self.ownership.require(Ownership.RELEASED)
        await self.execution.close()
        self.task.release()
        return await asyncio.to_thread(reference_digest, self.request, operations)

    async def end(self) -> None:
        """Stops the task and frees its memory."""
        await self.execution.close()
        self.task.release()


def reference_digest(request: TaskRequest, operations: int) -> str:
    """Memory digest of a new task like the one asked for, after so many operations."""
    if request.spec.tracker == "host":
        # The model does the same stores: what real memory holds is then checked by other code.
        spec = request.spec.model_copy(update={"tracker": "soft-dirty"})
        request = replace(request, spec=spec)
    task, workload, _ = build_task(request)
    try:
        if operations:
            workload.run_until(task, workload.due_ns(operations - 1) + 1, max_ops=operations)
        return digest_task(task).memory_digest
    finally:
        task.release()
