"""Directories that Predump writes, in the hands of real CRIU's tools, in every version."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from livemigration.criu.dedup import dedup
from livemigration.criu.images import CarriedImages, ImageDirectory, export_task, load_task
from livemigration.criu.pb import (
    core_pb2,
    files_pb2,
    inventory_pb2,
    mm_pb2,
    pagemap_pb2,
    pstree_pb2,
    stats_pb2,
)
from mm_model import Machine, ModelConfig
from predump.criu_export import export_run
from predump.scenario import scenario_from_mapping
from tests.interop.real_criu import RealCriu

HERE = Path(__file__).parent
DATA = HERE.parent / "data" / "criu"
SAMPLES = {
    "full-4.1.1": (DATA / "full-4.1.1", None),
    "full-4.2.1": (DATA / "full-4.2.1", None),
    "page-server-4.1.1": (DATA / "page-server-4.1.1/src", DATA / "page-server-4.1.1/dst"),
    "page-server-4.2.1": (DATA / "page-server-4.2.1/src", DATA / "page-server-4.2.1/dst"),
}
PAGE = 4096


def with_pycriu(criu: RealCriu, script: str, *arguments: Path) -> Any:
    """Runs a script of this folder with that version's crit and pycriu; nothing else is on its
    path."""
    ran = subprocess.run(
        [sys.executable, "-S", str(HERE / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(criu.root / "usr/lib/python3/dist-packages"),
            "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
        },
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return json.loads(ran.stdout)


def crit(criu: RealCriu, folder: Path, *commands: tuple[str, ...]) -> list[str]:
    """What each crit command printed; anything on standard error is a failure."""
    (folder / "commands.json").write_text(json.dumps(commands))
    answers: list[str] = with_pycriu(criu, "crit_all.py", folder / "commands.json")
    return answers


RUNS: dict[str, dict[str, Any]] = {
    "fork-cow": {"workload": {"kind": "fork-cow", "rate": "5000 pages/s", "shared": "128KiB"}},
    "files": {
        "memory": "1MiB",
        "workload": {
            "kind": "script",
            "every": "500us",
            "setup": "map 0 file-shared 64; write 0 0 64; attach 1 private 64 0; write 1 32 8; "
            "map 2 anon-shared 32; write 2 0 32; map 3 anon-private 16; write 3 0 9",
            "script": "fwrite 0 8 4; write 1 40 2; write 3 1 2",
        },
    },
    "huge-pages": {
        "memory": "5MiB",
        "workload": {
            "kind": "script",
            "every": "500us",
            "setup": "map 0 anon-private 64; write 0 0 64; map 1 hugetlb2m 2MiB; write 1 3 1",
            "script": "write 0 1 3; write 1 9 1",
        },
    },
    "64K pages": {"page_size": 65536, "memory": "2MiB"},
    "real images": {
        "source": {"images": str(DATA / "full-4.2.1")},
        "workload": {"kind": "uniform", "rate": "50000 pages/s"},
    },
}


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The rounds of a run as directories 1 to 4; each run once for all versions."""

    @cache
    def made(name: str) -> Path:
        folder = tmp_path_factory.mktemp("chain") / "chain"
        tables = {
            "schema": "predump.scenario/1",
            "memory": "512KiB",
            "workload": {"kind": "zipf", "rate": "20000 pages/s"},
            "policy": {"kind": "fixed", "rounds": 2},
            "migration": {"run_after": "1ms"},
        }
        result, directories = asyncio.run(
            export_run(scenario_from_mapping(tables | RUNS[name]), folder)
        )
        assert result.verified
        assert len(directories) == 4
        return folder

    return made


@pytest.mark.parametrize("name", RUNS)
def test_crit_reads_every_directory(
    real_criu: RealCriu, chain: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    """Shows and decodes every image of every round, explores the full dump, and finds all pages."""
    files = [
        file
        for number in "1234"
        for file in sorted((chain(name) / number).iterdir())
        if file.name != "parent" and not file.name.startswith("pages-")
    ]
    last = chain(name) / "4"
    answers = crit(
        real_criu,
        tmp_path,
        *(("show", str(file)) for file in files),
        *(("decode", "-i", str(file)) for file in files),
        *(("x", str(last), what) for what in ("ps", "mems", "fds")),
    )
    shown, decoded = answers[: len(files)], answers[len(files) : 2 * len(files)]
    for file, text, plain in zip(files, shown, decoded, strict=True):
        entries = json.loads(plain)["entries"]
        assert len(entries) == len(json.loads(text)["entries"]), file
        assert entries or file.name.startswith("fdinfo"), file
    ps, mems, fds = answers[2 * len(files) :]
    assert "root" in fds
    counts = {
        file.name: sum(entry["nr_pages"] for entry in json.loads(plain)["entries"][1:])
        for file, plain in zip(files, decoded, strict=True)
        if file.parent == last and file.name.startswith("pagemap")
    }
    images = ImageDirectory.open(last)
    assert counts == {
        f"pagemap-{process.pid}.img": len(process.pages) for process in images.processes
    } | {f"pagemap-shmem-{shmid}.img": len(s.pages) for shmid, s in images.shared.items()}
    for process in images.processes:
        assert str(process.pid) in ps
        for vma in process.vmas:
            assert f"{vma.start:x}" in mems


@pytest.mark.parametrize("name", [name for name in RUNS if name != "64K pages"])
def test_criu_dedup_takes_the_chain_and_leaves_what_ours_leaves(
    real_criu: RealCriu, chain: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    """Without a warning; then pages files are compared byte for byte, holes as zeros."""
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    for copy in (theirs, mine):
        shutil.copytree(chain(name), copy, symlinks=True)
    real_criu.run("dedup", "-D", theirs / "4", "-v4", "-o", "log")
    log = (theirs / "4/log").read_text()
    assert "Deduplicated" in log
    assert [line for line in log.splitlines() if "Warn" in line or "Error" in line] == []
    dedup(mine / "4", PAGE)
    segments = _segment_files(mine)
    for file in sorted(mine.glob("*/pages-*.img")):
        if file not in segments:  # criu leaves shared memory alone
            assert file.read_bytes() == (theirs / file.relative_to(mine)).read_bytes(), file
    if name == "huge-pages":
        return  # they are in the last directory alone: nothing is there twice
    assert any(
        file.read_bytes() != (chain(name) / file.relative_to(mine)).read_bytes()
        for file in mine.glob("*/pages-*.img")
    )


def _segment_files(chain: Path) -> set[Path]:
    return {
        file.parent / f"pages-{json_id}.img"
        for file in chain.glob("*/pagemap-shmem-*.img")
        for json_id in [_pages_id(file)]
    }


def _pages_id(file: Path) -> int:
    head = file.read_bytes()[8:]
    size = int.from_bytes(head[:4], "little")
    return pagemap_pb2.PagemapHead.FromString(head[4 : 4 + size]).pages_id


@pytest.mark.parametrize("sample", SAMPLES)
def test_samples_come_back_as_crit_decodes_them(
    real_criu: RealCriu, sample: str, tmp_path: Path
) -> None:
    """Imported, exported, decoded: the same content. What may differ: the number of a pages file
    (a page server counts from 65537), where a pagemap entry has its number of pages, and the
    times and counters of the dump itself in stats-dump."""
    folders = [folder for folder in SAMPLES[sample] if folder is not None]
    images = ImageDirectory.open(*SAMPLES[sample])
    task = load_task(Machine(ModelConfig(frames=images.pages + 2048)), images)
    out = tmp_path / "out"
    export_task(task, out, carried=CarriedImages.read(*SAMPLES[sample]))
    files = [file for folder in folders for file in sorted(folder.glob("*.img"))]
    files = [file for file in files if not file.name.startswith("pages-")]
    before = crit(real_criu, tmp_path, *(("decode", "-i", str(file)) for file in files))
    after = crit(real_criu, tmp_path, *(("decode", "-i", str(out / file.name)) for file in files))
    # An old crit does not find the numbers of pages in a new dump; it does in ours.
    counted = real_criu.version >= (4, 2) or sample.endswith("4.1.1")
    for file, then, now in zip(files, before, after, strict=True):
        assert _content(json.loads(now), counted=counted) == _content(
            json.loads(then), counted=counted
        ), file.name
    assert {file.name for file in files} == {
        file.name for file in out.glob("*.img") if not file.name.startswith("pages-")
    }


def _content(image: dict[str, Any], *, counted: bool) -> dict[str, Any]:
    if image["magic"] == "PAGEMAP":
        for entry in image["entries"]:
            entry.pop("pages_id", None)
            old, new = entry.pop("compat_nr_pages", 0), entry.pop("nr_pages", 0)
            if counted:
                entry["pages"] = old or new
    return image


NAMES = {
    "CoreEntry": "core_entry",
    "TaskCore": "task_core_entry",
    "KobjIds": "task_kobj_ids_entry",
    "ThreadCore": "thread_core_entry",
    "Creds": "creds_entry",
    "SignalQueue": "signal_queue_entry",
    "SigInfo": "siginfo_entry",
    "SigAction": "sa_entry",
    "TaskTimers": "task_timers_entry",
    "Itimer": "itimer_entry",
    "TaskRlimits": "task_rlimits_entry",
    "Rlimit": "rlimit_entry",
    "ThreadInfoAarch64": "thread_info_aarch64",
    "RegsAarch64": "user_aarch64_regs_entry",
    "FpsimdAarch64": "user_aarch64_fpsimd_context_entry",
    "ThreadInfoX86": "thread_info_x86",
    "RegsX86": "user_x86_regs_entry",
    "FileEntry": "file_entry",
    "RegFileEntry": "reg_file_entry",
    "MemfdFileEntry": "memfd_file_entry",
    "MemfdInodeEntry": "memfd_inode_entry",
    "FownEntry": "fown_entry",
    "FdinfoEntry": "fdinfo_entry",
    "FsEntry": "fs_entry",
    "SeccompEntry": "seccomp_entry",
    "SeccompFilter": "seccomp_filter",
    "TimensEntry": "timens_entry",
    "Timespec": "timespec",
    "InventoryEntry": "inventory_entry",
    "MmEntry": "mm_entry",
    "VmaEntry": "vma_entry",
    "PagemapHead": "pagemap_head",
    "PagemapEntry": "pagemap_entry",
    "PstreeEntry": "pstree_entry",
    "StatsEntry": "stats_entry",
    "DumpStats": "dump_stats_entry",
    "RestoreStats": "restore_stats_entry",
}
"""What CRIU calls our messages."""

AS_IT_TRAVELS = {
    FieldDescriptor.TYPE_STRING: FieldDescriptor.TYPE_BYTES,
    FieldDescriptor.TYPE_ENUM: FieldDescriptor.TYPE_UINT32,
}
"""Types that look the same on the wire."""


def test_fields_have_the_numbers_and_types_of_criu_s(real_criu: RealCriu) -> None:
    theirs = with_pycriu(real_criu, "pycriu_fields.py")
    modules = (core_pb2, files_pb2, inventory_pb2, mm_pb2, pagemap_pb2, pstree_pb2, stats_pb2)
    messages: dict[str, Descriptor] = {
        name: message
        for module in modules
        for name, message in module.DESCRIPTOR.message_types_by_name.items()
    }
    assert messages.keys() == NAMES.keys()
    for name, message in messages.items():
        fields = {number: (kind, many) for number, kind, many in theirs[NAMES[name]].values()}
        for field in message.fields:
            if field.number not in fields and real_criu.version < (4, 2):
                continue  # younger than this version
            kind, many = fields[field.number]
            assert AS_IT_TRAVELS.get(kind, kind) == field.type, f"{name}.{field.name}"
            assert many == field.is_repeated, f"{name}.{field.name}"
