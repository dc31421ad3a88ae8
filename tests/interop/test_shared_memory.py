"""Which kinds of memory real pre-dumps send, and which wait for the dump; and that ours are alike.

In the guest whose kernel tracks (`criu_guest.py`) a process has one mapping of each kind
(`sharing.c`). The second pre-dump runs with CRIU_TRACK_SHMEM, which changes nothing: shared
anonymous memory counts as a memfd, whose content is dumped with files, and so in dumps alone.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from livemigration.criu.magic import STATS_MAGIC
from livemigration.criu.pagemap import read_page_set
from livemigration.criu.pb.stats_pb2 import DumpStats, StatsEntry
from livemigration.criu.records import Records
from livemigration.operations import BASE, STRIDE
from predump.criu_export import export_run
from predump.scenario import scenario_from_mapping
from tests.interop.criu_guest import CriuGuest
from tests.interop.real_criu import RealCriu

# A guest is emulated: on a busy machine it takes minutes.
pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

PAGE: Final = 4096
PAGES: Final = 16
HUGE_PAGES: Final = 512
REAL: Final = {
    "private": 0x1_0000_1000,
    "private copy": 0x1_1000_1000,
    "shared": 0x1_2000_1000,
    "memfd": 0x1_3000_1000,
    "shared file": 0x1_4000_1000,
    "private hugetlb": 0x2_0000_0000,
    "shared hugetlb": 0x2_1000_0000,
}
"""Where `sharing.c` has what."""
OURS: Final = {
    name: BASE + region * STRIDE
    for region, name in enumerate(
        ("private", "private copy", "shared", "memfd", "private hugetlb", "shared hugetlb")
    )
}

ROUNDS: Final = [
    {"private": 5, "private copy": 3},
    {"private": 1, "private copy": 1},
    {"private": 1, "private copy": 1, "private hugetlb": HUGE_PAGES},
]
"""By directory, how many pages of which mapping came with it as the process' own."""
SEGMENTS: Final = {"shared": 7, "memfd": 9, "open memfd": 11, "hugetlb": HUGE_PAGES}
"""The pages of each segment, all of them in the dump, whatever a pre-dump before it had."""


def own_pages(folder: Path, pid: int, places: Mapping[str, int]) -> dict[str, int]:
    """How many pages of each mapping the directory itself has."""
    pages = read_page_set(folder, f"pagemap-{pid}.img", PAGE)
    here = pages.addresses[pages.level == 0]
    found = {}
    for name, start in places.items():
        size = HUGE_PAGES if "hugetlb" in name else PAGES
        first, last = np.searchsorted(here, np.array([start, start + size * PAGE], np.uint64))
        found[name] = int(last - first)
    return {name: count for name, count in found.items() if count}


def segments(folder: Path) -> list[int]:
    """How many pages each segment of a directory has there itself; left to no parent."""
    found = []
    for file in folder.glob("pagemap-shmem-*.img"):
        pages = read_page_set(folder, file.name, PAGE)
        assert not pages.level.any()
        found.append(len(pages))
    return sorted(found)


def stats_of(folder: Path) -> DumpStats:
    return Records(folder / "stats-dump", STATS_MAGIC, "dump again").first(StatsEntry).dump


def test_real_pre_dumps_have_private_memory_alone_and_the_dump_all_else(
    real_criu: RealCriu, criu_guest: CriuGuest
) -> None:
    guest, criu, folder = criu_guest, f"criu-{real_criu.name}", f"/tmp/sharing-{real_criu.name}"
    # Two are for CRIU, which learns from a mapping of its own what hugetlb looks like.
    guest.sh(f"echo 8 > /proc/sys/vm/nr_hugepages; mkdir {folder}; status={folder}/status")
    guest.sh(f"setsid sharing $status {folder}/file > /dev/null 2>&1 < /dev/null & pid=$!")
    pid = int(guest.sh("echo $pid"))
    for number, (command, environment) in enumerate(
        [("pre-dump", ""), ("pre-dump", "CRIU_TRACK_SHMEM=1"), ("dump --leave-stopped", "")], 1
    ):
        if number > 1:
            guest.sh(f"kill -USR1 {pid}")
        guest.sh(f"stepped $status {number}")
        images = f"{folder}/{number}"
        parent = f"--prev-images-dir ../{number - 1}" if number > 1 else ""
        where = f"-t {pid} -D {images} --track-mem {parent}"
        guest.sh(f"mkdir {images}; {environment} {criu} {command} {where}")
    guest.sh(f"kill -9 {pid}; echo 0 > /proc/sys/vm/nr_hugepages; cp -a {folder} /share")
    chain = guest.share / Path(folder).name
    folders = [chain / str(number) for number in (1, 2, 3)]
    assert [own_pages(each, pid, REAL) for each in folders] == ROUNDS
    assert [segments(each) for each in folders] == [[], [], sorted(SEGMENTS.values())]
    counts = [stats_of(each) for each in folders]
    assert [each.shpages_written for each in counts] == [0, 0, sum(SEGMENTS.values())]
    assert [each.shpages_scanned for each in counts] == [0, 0, 3 * PAGES + HUGE_PAGES]
    shutil.rmtree(chain)


SCRIPTED: Final = {
    "schema": "predump.scenario/1",
    "memory": "16MiB",
    "workload": {
        "kind": "script",
        "every": "100us",
        "setup": "map 0 anon-private 16; write 0 0 5; map 1 file-private 16; write 1 0 3; "
        "map 2 anon-shared 16; write 2 0 7; map 3 tmpfs-shared 16; write 3 0 9; "
        "map 4 hugetlb2m 2MiB; write 4 0 1; map 5 hugetlb2m-shared 2MiB; write 5 0 1; "
        "map 6 tmpfs-shared 16; write 6 0 11; munmap 6 0 16",
        "script": "write 0 0 1; write 1 0 1; write 2 0 1; write 3 0 1; write 5 0 1",
    },
    "policy": {"kind": "fixed", "rounds": 1},
    "link": {"bandwidth": "20Mbit/s"},
    "migration": {"run_after": "1ms"},
}


def test_a_run_of_ours_has_the_same_in_the_same_directories(tmp_path: Path) -> None:
    result, directories = asyncio.run(
        export_run(scenario_from_mapping(SCRIPTED), tmp_path / "chain")
    )
    assert result.verified
    folders = [written.folder for written in directories]
    assert [own_pages(each, 1, OURS) for each in folders] == ROUNDS
    # Beside these a file of the disk, which is a memfd in images: the pages that were copied.
    whole = sorted([ROUNDS[0]["private copy"], *SEGMENTS.values()])
    assert [segments(each) for each in folders] == [[], [], whole]
    assert [record.pages_sent for record in result.rounds] == [
        11, 2, 2 + HUGE_PAGES + sum(SEGMENTS.values())
    ]  # fmt: skip
    counts = [stats_of(each) for each in folders]
    assert [each.shpages_written for each in counts] == [0, 0, sum(whole)]
    assert [each.shpages_scanned for each in counts] == [0, 0, 4 * PAGES + HUGE_PAGES]
