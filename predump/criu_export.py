"""A run's rounds as image directories: each pre-dump and the final dump, one after the other.

The run is made in this process, in virtual time. Each round's frames are looked at on their way
into the destination, whose memory then has just the pages of that round as they went: from there
they are written when the round is over. So `DIR/1` has the pages of round 0, `DIR/2` those of
round 1 and says of the others that they are in its parent, and the last one is a full dump, written
when the destination has proved its memory equal and taken the task over. Segments of shared memory
are in the dump alone, unless the run sent them in every round.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from livemigration import batch
from livemigration.costs import CostSpec
from livemigration.criu.export import check_new
from livemigration.criu.images import (
    CarriedImages,
    DumpTimes,
    Exported,
    Flavour,
    RoundPages,
    export_task,
)
from livemigration.runs import from_runs
from livemigration.spec import MigrationSpec, TaskSpec, TelemetrySpec, UserPolicySpec
from livemigration.v1 import common_pb2, destination_node_pb2
from mm_model import MAP_SHARED
from predump.inprocess import InProcessTransport, migrate_in_process
from predump.result import Result
from predump.scenario import Scenario, load_scenario
from predump.versions import versions
from source_node.outcome import Outcome, Round

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

FIRST_DIRECTORY: Final = 1
"""Directories are numbered from here, as CRIU's own examples do."""


class ExportError(ValueError):
    """A run that cannot be written as images; ``str()`` is one line for the user."""


@dataclass(frozen=True, slots=True)
class RoundDirectory:
    """One directory that was written, for the round `record`."""

    folder: Path
    record: Round
    exported: Exported


@dataclass(slots=True)
class _RoundSent:
    """What went in the round under way: addresses by process, page numbers by file."""

    processes: dict[int, list[U64]] = field(default_factory=dict)
    files: dict[int, list[U64]] = field(default_factory=dict)


class RoundWriter(InProcessTransport):
    """A destination in this process that writes each round as a directory, and hears of the rounds
    (`source_node.migration.Observer`)."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        costs: CostSpec,
        carried: CarriedImages | None = None,
        flavour: Flavour = Flavour.BOTH,
        shared_in_rounds: bool = False,
    ) -> None:
        """`folder` is new or empty. `name`: the program's, of a task without images of its own."""
        super().__init__()
        self.folder = folder
        self.directories: list[RoundDirectory] = []
        self._name = name
        self._costs = costs
        self._carried = carried
        self._flavour = flavour
        self._shared_in_rounds = shared_in_rounds
        self._sent = _RoundSent()
        self._over: tuple[Round, int] | None = None  # a round that is not written yet, and when

    # -- what the rounds bring

    async def send(self, sequence: int, frame: bytes) -> None:
        """Applies the frame, and remembers what it brought."""
        seen = batch.decode(frame)
        if seen.begin is not None:
            await self._write_pre_dump()
            self._sent = _RoundSent()
        await super().send(sequence, frame)
        page_size = self._there.spec.page_size
        for starts, pages in ((seen.run_start, seen.run_pages), (seen.zero_start, seen.zero_pages)):
            if starts.size and seen.object_id:
                where = from_runs(starts, pages, page_size)
                self._sent.files.setdefault(seen.object_id, []).append(where)
            elif starts.size:
                where = from_runs(starts, pages, page_size)
                self._sent.processes.setdefault(seen.pid, []).append(where)

    async def commit(self, memory_digest: str) -> destination_node_pb2.MigrationStatus:
        """Hands the task over, and writes it while it stands still."""
        status = await super().commit(memory_digest)
        await asyncio.to_thread(self._write, pre_dump=False)
        return status

    def phase(self, phase: str, at_ns: int, message: str) -> None:
        """Not of interest."""

    def round(self, record: Round, at_ns: int) -> None:
        """The round's figures."""
        self._over = (record, at_ns)

    def handed_over(self, outcome: Outcome, at_ns: int) -> None:
        """Not of interest."""

    # -- writing

    async def _write_pre_dump(self) -> None:
        if self._over is not None:
            await asyncio.to_thread(self._write, pre_dump=True)

    def _write(self, *, pre_dump: bool) -> None:
        assert self._over is not None
        (record, at_ns), self._over = self._over, None
        number = FIRST_DIRECTORY + len(self.directories)
        folder = self.folder / str(number)
        exported = export_task(
            self._there.task,
            folder,
            carried=self._carried,
            name=self._name,
            pre_dump=pre_dump,
            parent=f"../{number - 1}" if self.directories else "",
            pages=self._round_pages(),
            times=self._times(record, at_ns),
            flavour=self._flavour,
        )
        self.directories.append(RoundDirectory(folder, record, exported))

    def _round_pages(self) -> RoundPages:
        """What the round brought, as this host's task has it."""
        task, begin = self._there.task, self._there.begin
        assert begin is not None
        page_size = np.uint64(self._there.spec.page_size)
        processes: dict[int, U64] = {}
        objects: dict[int, list[I64]] = {}
        for source_object, parts in self._sent.files.items():
            where = (np.concatenate(parts) // page_size).astype(np.int64)
            objects.setdefault(self._there.object_here(source_object), []).append(where)
        for pid, parts in self._sent.processes.items():
            addresses = np.unique(np.concatenate(parts))
            processes[pid] = addresses
            for vma in task.processes[pid].vmas():
                if not vma.flags & MAP_SHARED:
                    continue
                borders = np.array([vma.start, vma.end], np.uint64)
                first, last = np.searchsorted(addresses, borders).tolist()
                offsets = (addresses[first:last] - np.uint64(vma.start)) // page_size
                pages = offsets.astype(np.int64) + vma.pgoff
                objects.setdefault(vma.shared_id, []).append(pages)
        segments = {number: np.unique(np.concatenate(parts)) for number, parts in objects.items()}
        return RoundPages(
            processes,
            segments if self._shared_in_rounds else None,
            _lazy_pages(begin, int(page_size)),
        )

    def _times(self, record: Round, at_ns: int) -> DumpTimes:
        """By the cost model, as the run's own times."""
        freezing = self._costs.freeze_ns(len(self._there.task.processes))
        return DumpTimes(
            freezing_ns=freezing,
            frozen_ns=max(0, record.frozen_ns - freezing),
            memdump_ns=self._costs.scan_ns(record.pages_scanned),
            memwrite_ns=max(0, record.duration_ns - record.frozen_ns),
            uptime_ns=at_ns,
            scanned=record.pages_scanned,
        )


def _lazy_pages(begin: common_pb2.RoundBegin, page_size: int) -> dict[int, U64]:
    """The pages that a post-copy leaves at the source."""
    return {
        process.pid: from_runs(
            np.array(process.lazy_start, np.uint64),
            np.array(process.lazy_pages, np.uint64),
            page_size,
        )
        for process in begin.processes
        if process.lazy_start
    }


def load_run(path: Path) -> tuple[Scenario, Result | None]:
    """What a scenario file says, or what a result says was run. Raises ExportError,
    ScenarioError."""
    if path.suffix != ".json":
        return load_scenario(path), None
    try:
        result = Result.from_json(path.read_bytes())
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ExportError(f"{path}: {error}") from error
    if result.scenario is None:
        raise ExportError(f"{path}: does not say what was run; give its scenario file")
    try:
        task = TaskSpec.from_struct(result.scenario.get("task", {}))
        migration = MigrationSpec.from_struct(result.scenario.get("migration", {}))
    except ValueError as error:
        raise ExportError(f"{path}: {error}") from error
    if isinstance(migration.policy, UserPolicySpec):
        raise ExportError(f"{path}: was run with a policy of one's own; give its scenario file")
    return Scenario(result.name, task, migration, TelemetrySpec()), result


async def export_run(
    scenario: Scenario,
    folder: Path,
    *,
    expected: Result | None = None,
    flavour: Flavour = Flavour.BOTH,
) -> tuple[Result, list[RoundDirectory]]:
    """Makes the run again, in virtual time, and writes its rounds below `folder`.

    The directories are there if the run was verified; otherwise none is, and the result says why.
    `expected`: what the run gave before. Raises ExportError if it cannot be made again alike,
    ImageError, BadRequest.
    """
    if scenario.task.tracker == "host":
        raise ExportError(
            'tracker = "host" is a run in real time; choose "soft-dirty" or "uffd-wp"'
        )
    made_here = await asyncio.to_thread(_check_folder, folder)
    virtual = Scenario(
        scenario.name,
        scenario.task,
        scenario.migration.model_copy(update={"clock": "virtual"}),
        scenario.telemetry,
        scenario.policies,
    )
    images = scenario.task.source.images
    writer = RoundWriter(
        folder,
        name=f"predump-{scenario.task.workload.kind}",
        costs=scenario.migration.costs,
        carried=CarriedImages.read(images) if images else None,
        flavour=flavour,
        shared_in_rounds=scenario.migration.shared_memory == "rounds",
    )
    try:
        result = await migrate_in_process(virtual, transport=writer, observer=writer)
        await writer.end()
        if expected is not None and scenario.migration.clock == "virtual":
            _check_same(result, expected)
    except BaseException:
        _remove(writer, folder, made_here=made_here)
        raise
    if not result.verified:
        _remove(writer, folder, made_here=made_here)
        return result, []
    return result, writer.directories


def _check_folder(folder: Path) -> bool:
    """Whether the directory has yet to be made."""
    check_new(folder)
    return not folder.exists()


def _check_same(result: Result, expected: Result) -> None:
    """A run on the virtual clock is the same wherever it is made, with the same versions."""
    for now, then in zip(result.rounds, expected.rounds, strict=False):
        if now.pages_sent != then.pages_sent:
            raise ExportError(
                f"the run cannot be made again here: round {now.round} sent {now.pages_sent} "
                f"pages, not {then.pages_sent}; it was made by {_named(expected.versions)}, and "
                f"this is {_named(versions())}"
            )
    if len(result.rounds) != len(expected.rounds):
        raise ExportError(
            f"the run cannot be made again here: it had {len(result.rounds)} rounds, not "
            f"{len(expected.rounds)}"
        )


def _named(found: dict[str, str]) -> str:
    return f"predump {found.get('predump', 'unknown')}"


def _remove(writer: RoundWriter, folder: Path, *, made_here: bool) -> None:
    for written in writer.directories:
        shutil.rmtree(written.folder, ignore_errors=True)
    if made_here and folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
