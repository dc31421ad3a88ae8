"""A run's rounds as directories: what went in each, and in the end the source's memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from livemigration import batch
from livemigration.criu.compare import compare
from livemigration.criu.images import ImageDirectory, ImageError, export_task, load_task
from livemigration.criu.pagemap import read_pagemap
from livemigration.criu.survey import survey
from livemigration.task import Task
from livemigration.v1 import destination_node_pb2
from mm_model import MAP_SHARED, Machine, ModelConfig
from predump.criu_export import ExportError, RoundDirectory, RoundWriter, export_run, load_run
from predump.result import Result
from predump.scenario import Scenario, scenario_from_mapping
from source_node.hosting import HostedTask, TaskRequest

PAGE = 4096
DATA = Path(__file__).parents[2] / "data" / "criu"


def scenario(**changes: Any) -> Scenario:
    tables: dict[str, Any] = {
        "schema": "predump.scenario/1",
        "memory": "512KiB",
        "workload": {"kind": "zipf", "rate": "20000 pages/s"},
        "policy": {"kind": "fixed", "rounds": 2},
        "migration": {"run_after": "10ms"},
    }
    return scenario_from_mapping(tables | changes)


RUNS = {
    "private memory": scenario(),
    "deltas": scenario(encoding={"kind": "delta"}),
    "pages of 16K": scenario(page_size=16384),
    "processes that share, fork and exit": scenario(
        workload={"kind": "fork-cow", "rate": "5000 pages/s", "shared": "128KiB"}
    ),
    "files": scenario(
        memory="1MiB",
        workload={
            "kind": "script",
            "every": "500us",
            "setup": "map 0 file-shared 64; write 0 0 64; attach 1 private 64 0; write 1 32 8; "
            "map 2 tmpfs-shared 32; write 2 0 32; remove 2 4 4; map 3 anon-private 16; write 3 0 9",
            "script": "fwrite 0 8 4; write 1 40 2; fwrite 0 40 2; dontneed 1 32 4; write 2 16 2; "
            "write 3 1 2",
        },
    ),
    "shared memory in every round": scenario(
        shared_memory="rounds",
        workload={"kind": "fork-cow", "rate": "5000 pages/s", "shared": "128KiB"},
    ),
    "real images": scenario(
        memory="512KiB",
        source={"images": str(DATA / "full-4.2.1")},
        workload={"kind": "uniform", "rate": "2000 pages/s"},
    ),
}


@dataclass(slots=True)
class Seen:
    """What happened in a run, by other means than the exporter's."""

    source: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    """At the hand-over: by process, each mapping's address and bytes."""
    sent: list[list[bytes]] = field(default_factory=list)
    """By round: the bytes of each page of a process that was on the wire (raw ones)."""
    sent_of_files: list[int] = field(default_factory=list)
    """By round: how many pages of files were."""


def memory(task: Task) -> dict[int, list[tuple[int, bytes]]]:
    return {
        pid: [(vma.start, mm.peek(vma.start, vma.end - vma.start)) for vma in mm.vmas()]
        for pid, mm in task.processes.items()
    }


@dataclass(frozen=True, slots=True)
class Made:
    """An exported run, and what was seen of it."""

    folder: Path
    result: Result
    directories: list[RoundDirectory]
    seen: Seen


async def export_watched(run: Scenario, folder: Path) -> Made:
    found = Seen()
    hosted: list[HostedTask] = []
    start, commit, send = HostedTask.start, RoundWriter.commit, RoundWriter.send

    async def started(request: TaskRequest) -> HostedTask:
        hosted.append(await start(request))
        return hosted[-1]

    async def committed(writer: RoundWriter, digest: str) -> destination_node_pb2.MigrationStatus:
        found.source = memory(hosted[0].task)
        return await commit(writer, digest)

    async def sent(writer: RoundWriter, sequence: int, message: bytes) -> None:
        frame = batch.decode(message)
        if frame.begin is not None:
            found.sent.append([])
            found.sent_of_files.append(0)
        size = run.task.page_size
        if frame.object_id:
            found.sent_of_files[-1] += int(frame.run_pages.sum() + frame.zero_pages.sum())
            return await send(writer, sequence, message)
        if not frame.encodings.size:
            raw = frame.pages.tobytes()
            found.sent[-1] += [raw[at : at + size] for at in range(0, len(raw), size)]
        found.sent[-1] += [bytes(size)] * int(frame.zero_pages.sum())
        return await send(writer, sequence, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostedTask, "start", started)
        patch.setattr(RoundWriter, "commit", committed)
        patch.setattr(RoundWriter, "send", sent)
        return Made(folder, *await export_run(run, folder), found)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Each run once for all tests."""

    @cache
    def make(name: str) -> Made:
        folder = tmp_path_factory.mktemp("run") / "chain"
        return asyncio.run(export_watched(RUNS[name], folder))

    return make


def resolved(folder: Path) -> dict[int, list[tuple[int, bytes]]]:
    """Each mapping of each process, made of the images alone: pages, and zeros between them."""
    images = ImageDirectory.open(folder)
    size = images.page_size
    found: dict[int, list[tuple[int, bytes]]] = {}
    for number, process in enumerate(images.processes, 1):
        found[number] = []
        for vma in process.vmas:
            if vma.is_kernel_data:
                continue
            content = bytearray(vma.end - vma.start)
            if vma.has_segment:
                pages = images.shared[vma.shmid].pages
                offsets = pages.addresses
                inside = (offsets >= vma.pgoff) & (offsets < vma.pgoff + len(content))
                for at in offsets[inside].tolist():
                    data = pages.read(np.array([at], np.uint64)).tobytes()
                    content[at - vma.pgoff : at - vma.pgoff + size] = data
            own = process.pages.addresses
            for at in own[(own >= vma.start) & (own < vma.end)].tolist():
                data = process.pages.read(np.array([at], np.uint64)).tobytes()
                content[at - vma.start : at - vma.start + size] = data
            found[number].append((vma.start, bytes(content)))
    return found


def joined(mappings: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Mappings without the borders between neighbours, which are the kernel's bookkeeping."""
    whole: list[tuple[int, bytes]] = []
    for start, content in mappings:
        if whole and whole[-1][0] + len(whole[-1][1]) == start:
            whole[-1] = (whole[-1][0], whole[-1][1] + content)
        else:
            whole.append((start, content))
    return whole


def present_pages(folder: Path, size: int) -> list[bytes]:
    """The bytes of all pages that a directory has itself."""
    found = []
    for file in folder.glob("pagemap-*.img"):
        pages_id, _ = read_pagemap(file, size)
        raw = (folder / f"pages-{pages_id}.img").read_bytes()
        found += [raw[at : at + size] for at in range(0, len(raw), size)]
    return found


@pytest.mark.parametrize("name", RUNS)
def test_the_chain_is_the_source_memory_byte_for_byte(
    name: str, made: Callable[[str], Made]
) -> None:
    run = made(name)
    assert run.result.verified
    assert [written.folder.name for written in run.directories] == ["1", "2", "3", "4"]
    exported, source = resolved(run.directories[-1].folder), run.seen.source
    assert len(exported) == len(source)
    for mine, theirs in zip(exported.values(), source.values(), strict=True):
        assert joined(mine) == joined(theirs)
    for written in run.directories:
        assert survey(written.folder).everything_wrong() == [], written.folder


@pytest.mark.parametrize("name", [name for name in RUNS if name != "deltas"])
def test_each_directory_has_the_pages_that_went_in_its_round(
    name: str, made: Callable[[str], Made]
) -> None:
    run = made(name)
    for written, sent, files, record in zip(
        run.directories, run.seen.sent, run.seen.sent_of_files, run.result.rounds, strict=True
    ):
        there = present_pages(written.folder, RUNS[name].task.page_size)
        if name == "files" and written is run.directories[-1]:
            # Files are memfds in images, whose content is in the dump, whole.
            segments = ImageDirectory.open(written.folder).shared.values()
            assert sum(len(segment.pages) for segment in segments) == 64 + 32 - 4
            assert len(there) == len(sent) + 64 + 32 - 4
            assert all(there.count(page) >= sent.count(page) for page in sent)
        else:
            assert sorted(there) == sorted(sent)
        assert len(sent) + files == record.pages_sent


@pytest.mark.parametrize(
    ("name", "segments"),
    [
        ("processes that share, fork and exit", [0, 0, 0, 1]),
        ("files", [0, 0, 0, 2]),
        ("shared memory in every round", [1, 1, 1, 1]),
    ],
)
def test_segments_are_in_the_dump_alone_unless_they_went_in_every_round(
    name: str, segments: list[int], made: Callable[[str], Made]
) -> None:
    run = made(name)
    found = [written.folder.glob("pagemap-shmem-*.img") for written in run.directories]
    assert [len(list(files)) for files in found] == segments
    for written in run.directories:
        stats = survey(written.folder).stats
        assert stats is not None
        shared = written.exported.shared
        assert (stats.shpages_written, shared.parent) == (shared.present, 0)
        assert stats.shpages_scanned >= stats.shpages_written


class TestADirectoryOfAPreDump:
    def test_has_what_criu_leaves(self, made: Callable[[str], Made]) -> None:
        folder = made("private memory").folder
        assert sorted(file.name for file in (folder / "2").iterdir()) == [
            "inventory.img", "pagemap-1.img", "pages-1.img", "parent", "stats-dump",
        ]  # fmt: skip
        assert (folder / "2/parent").readlink() == Path("../1")
        assert not (folder / "1/parent").exists()
        assert survey(folder / "2").kind == "pre-dump"

    def test_counts_what_it_has_and_what_its_parent_has(self, made: Callable[[str], Made]) -> None:
        run = made("private memory")
        stats = survey(run.folder / "2").stats
        assert stats is not None
        record = run.directories[1].record
        assert stats.pages_written == record.pages_sent > 0
        assert stats.pages_written + stats.pages_skipped_parent == 128
        assert stats.pages_scanned == record.pages_scanned
        assert stats.frozen_time > 0


def test_files_of_the_task_come_back_as_its_files(
    made: Callable[[str], Made], tmp_path: Path
) -> None:
    """Mapped shared and private, written by write(2) and in part not mapped any more."""
    task = load_task(
        Machine(ModelConfig(frames=4096)),
        ImageDirectory.open(made("files").directories[-1].folder),
    )
    assert [(file.pages, file.on_disk) for file in task.files] == [(64, False), (32, False)]
    kinds = [bool(vma.flags & MAP_SHARED) for vma in task.processes[1].vmas() if vma.shared_id]
    assert kinds == [True, False, True]
    assert joined(memory(task)[1]) == joined(made("files").seen.source[1])
    again = export_task(task, tmp_path / "again")
    assert again.shared.present == 64 + 32 - 4  # a hole of the file stays one
    difference = compare(made("files").directories[-1].folder, tmp_path / "again")
    assert difference.same


def test_a_post_copy_leaves_its_pages_lazy(tmp_path: Path) -> None:
    run = scenario(policy={"kind": "hybrid", "rounds": 1})
    result, directories = asyncio.run(export_run(run, tmp_path / "chain"))
    assert result.post_copy is not None
    last = directories[-1]
    assert last.exported.private.lazy == result.post_copy.pages_lazy > 0
    wrong = survey(last.folder).everything_wrong()
    assert sum(trouble.pages for trouble in wrong) == last.exported.private.lazy
    assert {trouble.what for trouble in wrong} == {"stayed at the source (lazy pages)"}


class TestWhatCannotBeExported:
    def test_a_run_that_loses_pages(self, tmp_path: Path) -> None:
        lossy = scenario(hunks={"off": ["ptep_set_access_flags"]})
        result, directories = asyncio.run(export_run(lossy, tmp_path / "chain"))
        assert not result.verified
        assert directories == []
        assert list(tmp_path.iterdir()) == []

    def test_a_result_that_does_not_repeat(
        self, made: Callable[[str], Made], tmp_path: Path
    ) -> None:
        told = json.loads(made("private memory").result.to_json())
        told["rounds"][1]["pages_sent"] += 1
        (tmp_path / "result.json").write_text(json.dumps(told))
        again, expected = load_run(tmp_path / "result.json")
        with pytest.raises(ExportError, match="round 1 sent"):
            asyncio.run(export_run(again, tmp_path / "twice", expected=expected))
        assert not (tmp_path / "twice").exists()

    def test_a_result_repeats_byte_for_byte(
        self, made: Callable[[str], Made], tmp_path: Path
    ) -> None:
        run = made("private memory")
        (tmp_path / "result.json").write_text(run.result.to_json())
        again, expected = load_run(tmp_path / "result.json")
        _, second = asyncio.run(export_run(again, tmp_path / "twice", expected=expected))
        for a, b in zip(run.directories, second, strict=True):
            for file in a.folder.iterdir():
                if file.name != "parent":
                    assert file.read_bytes() == (b.folder / file.name).read_bytes(), file

    @pytest.mark.parametrize(
        ("content", "line"),
        [
            ("{", "not a predump.result/1 object"),
            (None, "cannot be read"),
        ],
    )
    def test_no_result(self, tmp_path: Path, content: str | None, line: str) -> None:
        file = tmp_path / "result.json"
        if content is not None:
            file.write_text(content)
        with pytest.raises(ExportError, match=line):
            load_run(file)

    def test_over_something(self, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("")
        with pytest.raises(ImageError, match="is there already"):
            asyncio.run(export_run(scenario(), tmp_path))
