"""Real pre-dumps: CRIU in a kernel that tracks, over a network, into the destination's page server.

This machine's own kernel need not have soft-dirty tracking: Debian's stock one has, and runs in
QEMU (`criu_guest.py`). In it a process with a child (`memtouch.c`) changes pages that are known
while real `criu pre-dump --track-mem --page-server` sends its memory three times, and `criu dump`
what is left. What arrived is compared with the stopped process's memory, and restored in the guest.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from livemigration.channel import open_channel
from livemigration.criu.images import ImageDirectory
from livemigration.criu.magic import STATS_MAGIC
from livemigration.criu.pagemap import PageSet, read_page_set
from livemigration.criu.pb.stats_pb2 import DumpStats, StatsEntry
from livemigration.criu.records import Records
from livemigration.v1 import destination_node_pb2, destination_node_pb2_grpc
from predump.cli import app
from tests.e2e.node import node
from tests.interop import memtouch
from tests.interop.criu_guest import HOST, CriuGuest
from tests.interop.memtouch import PAGE, Status, alive, hot, in_regions, written_by
from tests.interop.memtouch_model import modelled_rounds
from tests.interop.real_criu import RealCriu

# A guest is emulated: on a busy machine it takes minutes.
pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

PRE_DUMPS = 3
OTHER_PAGES = 16
"""Of a process's data, stack and heap, written in a round: far fewer than were written at first."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What can be read of a stopped process, as the guest's `memory` leaves it."""

    starts: NDArray[np.uint64]
    pages: NDArray[np.uint8]
    """u8[n, PAGE], of all mappings, in order."""
    anonymous: NDArray[np.bool_]
    """bool[n]: of memory without a file."""

    @classmethod
    def read(cls, file: Path) -> Memory:
        starts: list[NDArray[np.uint64]] = []
        anonymous: list[NDArray[np.bool_]] = []
        for line in Path(f"{file}.maps").read_text().splitlines():
            span, perms, _, _, inode, *name = line.split()
            if perms[0] != "r" or name in (["[vvar]"], ["[vsyscall]"]):
                continue
            first, end = (int(part, 16) for part in span.split("-"))
            starts.append(np.arange(first, end, PAGE, dtype=np.uint64))
            anonymous.append(np.full(starts[-1].size, inode == "0" or name[:1] == ["/dev/zero"]))
        addresses = np.concatenate(starts)
        pages = np.fromfile(file, np.uint8).reshape(addresses.size, PAGE)
        return cls(addresses, pages, np.concatenate(anonymous))

    def at(self, addresses: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Bytes of these pages, u8[n, PAGE]; all must be there."""
        index = np.searchsorted(self.starts, addresses)
        assert (self.starts[index] == addresses).all()
        return self.pages[index]


class Task:
    """memtouch and its child in the guest."""

    def __init__(self, guest: CriuGuest, folder: str) -> None:
        self.guest = guest
        self.folder = folder
        guest.sh(f"mkdir -p {folder}")
        guest.sh(f"setsid memtouch {folder}/st child > /dev/null 2>&1 < /dev/null & pid=$!")
        self.pid = int(guest.sh("echo $pid"))
        self.passes_on(0)
        self.child = int(guest.sh(f"cat /proc/{self.pid}/task/{self.pid}/children"))

    def statuses(self) -> list[Status]:
        said = self.guest.sh(f"cat {self.folder}/st {self.folder}/st.child")
        return [Status.read(line) for line in said.splitlines()]

    def passes_on(self, step: int) -> None:
        """Both take ``step`` and pass their checks twice more."""
        self.guest.sh(f"passes {self.folder}/st {step} && passes {self.folder}/st.child {step}")
        assert [(each.step, each.verdict) for each in self.statuses()] == [(step, "PASS")] * 2

    def take_step(self, step: int) -> None:
        self.guest.sh(f"kill -USR1 {self.pid}")
        self.passes_on(step)


@dataclass(frozen=True, slots=True)
class Chain:
    """What one CRIU did: image directories of the destination, 0 to 3, and the task's memory."""

    task: Task
    folders: list[Path]
    local: list[Path]
    """What CRIU wrote in the guest: all but the pages."""
    memory: dict[int, Memory]

    def sent(self, number: int, pid: int) -> set[int]:
        """Pages that came with this image directory, not with one before."""
        pages = self.pages(number, pid)
        return {int(address) for address in pages.addresses[pages.level == 0]}

    def pages(self, number: int, pid: int) -> PageSet:
        return read_page_set(self.folders[number], f"pagemap-{pid}.img", PAGE)


@pytest.fixture(scope="module")
def destination(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a destination node that also is a page server."""
    folder = tmp_path_factory.mktemp("dest")
    server = ("--criu-page-server", "127.0.0.1:0")
    with node("dest", folder, "--state-dir", folder / "state", *server) as dest:
        yield dest.address


async def received(
    destination: str, *, new_chain: bool = False
) -> destination_node_pb2.ListCheckpointsReply:
    """What dumps have brought there; the next one starts a new chain if that is asked for."""
    async with open_channel(destination) as channel:
        dest: Any = destination_node_pb2_grpc.DestinationNodeStub(channel)
        request = destination_node_pb2.ListCheckpointsRequest(new_chain=new_chain)
        return await dest.ListCheckpoints(request, timeout=60)


def test_three_pre_dumps_and_a_dump(
    real_criu: RealCriu, criu_guest: CriuGuest, destination: str
) -> None:
    """All that is found of a version's chain: making one takes long."""
    chain = dump_chain(criu_guest, real_criu.name, destination)
    first_pre_dump_has_all_that_was_written(chain)
    for step in range(2, PRE_DUMPS + 2):
        later_ones_have_what_was_written_since_and_no_more(chain, step)
    model_of_the_same_program_sends_the_same(chain)
    as_many_pages_came_as_criu_counted(chain)
    chain_is_the_memory_of_the_stopped_processes(chain)
    chain_restores_in_the_guest(chain, real_criu.name)


def dump_chain(guest: CriuGuest, name: str, destination: str) -> Chain:
    """Three pre-dumps and a dump by CRIU ``name``; processes are left stopped, and then killed."""
    criu = f"criu-{name}"
    begun = asyncio.run(received(destination, new_chain=True))
    _, _, port = begun.address.rpartition(":")
    server = f"--page-server --address {HOST} --port {port}"
    task = Task(guest, f"/tmp/{name}")
    for k in range(1, PRE_DUMPS + 1):
        task.take_step(k)
        images = f"/tmp/{name}/{k}"
        parent = f"--prev-images-dir ../{k - 1}" if k > 1 else ""
        guest.sh(
            f"mkdir {images}; {criu} pre-dump -t {task.pid} -D {images} --track-mem {parent} "
            f"{server}"
        )
    task.take_step(PRE_DUMPS + 1)
    images = f"/tmp/{name}/{PRE_DUMPS + 1}"
    guest.sh(
        f"mkdir {images}; {criu} dump -t {task.pid} -D {images} --track-mem "
        f"--prev-images-dir ../{PRE_DUMPS} {server} --leave-stopped"
    )
    memory = {}
    for pid in (task.pid, task.child):
        guest.sh(f"memory {pid} /share/{pid}.memory")
        memory[pid] = Memory.read(guest.share / f"{pid}.memory")
    guest.sh(f"kill -9 {task.pid} {task.child}; cp -a /tmp/{name} /share/{name}")
    numbers = range(1, PRE_DUMPS + 2)
    came = asyncio.run(received(destination)).checkpoints[len(begun.checkpoints) :]
    assert [(each.number, each.complete, each.error) for each in came] == [
        (k, True, "") for k in numbers
    ]
    folders = [Path(each.folder) for each in came]
    return Chain(task, folders, [guest.share / name / str(k) for k in numbers], memory)


def chain_is_the_memory_of_the_stopped_processes(chain: Chain) -> None:
    """Every page of the images equals the process's; what they do not have is zero."""
    images = ImageDirectory.open(chain.local[-1], also=chain.folders[-1])
    assert {process.pid for process in images.processes} == set(chain.memory)
    for process in images.processes:
        memory = chain.memory[process.pid]
        found = process.pages.addresses
        differ = (memory.at(found) != process.pages.read(found).reshape(-1, PAGE)).any(axis=1)
        assert [hex(page) for page in found[differ]] == []
        for vma in process.vmas:
            if vma.is_anon_shared and vma.start == memtouch.SHARED:
                segment = images.shared[vma.shmid].pages
                at = segment.addresses + np.uint64(vma.start)
                assert {int(offset) for offset in segment.addresses} == memtouch.shared()
                assert (memory.at(at).reshape(-1) == segment.read(segment.addresses)).all()
                found = np.union1d(found, at)
        left_out = memory.starts[memory.anonymous & ~np.isin(memory.starts, found)]
        assert not memory.at(left_out).any()


def first_pre_dump_has_all_that_was_written(chain: Chain) -> None:
    for pid in chain.memory:
        assert {page for page in chain.sent(0, pid) if in_regions(page)} == alive(1)


def later_ones_have_what_was_written_since_and_no_more(chain: Chain, step: int) -> None:
    """Also pages of memory that was mapped meanwhile, and none that were given back."""
    for pid in chain.memory:
        sent = chain.sent(step - 1, pid)
        assert {page for page in sent if in_regions(page)} == hot() | written_by(step)
        assert 0 < len([page for page in sent if not in_regions(page)]) <= OTHER_PAGES
        listed = {int(page) for page in chain.pages(step - 1, pid).addresses}
        assert {page for page in listed if in_regions(page)} == alive(step)


def model_of_the_same_program_sends_the_same(chain: Chain) -> None:
    """As x86-64, whose kernel this is, and as arm64 with the patch."""
    for arch in ("x86_64", "arm64"):
        rounds = modelled_rounds(arch, PRE_DUMPS + 1)
        shared = {memtouch.SHARED + offset for offset in memtouch.shared()}
        # Real CRIU writes them as a segment (chain_is_the_memory...), the model as the parent's.
        assert shared <= rounds[-1][0]
        rounds[-1][0] -= shared
        for number, modelled in enumerate(rounds):
            real = [chain.sent(number, pid) for pid in chain.memory]
            assert modelled == [{page for page in pages if in_regions(page)} for pages in real]


def as_many_pages_came_as_criu_counted(chain: Chain) -> None:
    for number, stats in enumerate(stats_of(chain)):
        came = [chain.pages(number, pid) for pid in chain.memory]
        assert stats.pages_written == sum(int((pages.level == 0).sum()) for pages in came)
        assert stats.pages_skipped_parent == sum(int((pages.level > 0).sum()) for pages in came)
    # Shared memory is left to the last one: test_shared_memory.py has all kinds of it.
    shared = [stats.shpages_written for stats in stats_of(chain)]
    assert shared == [0, 0, 0, len(memtouch.shared())]


def stats_of(chain: Chain) -> list[DumpStats]:
    files = [folder / "stats-dump" for folder in chain.local]
    return [Records(file, STATS_MAGIC, "dump again").first(StatsEntry).dump for file in files]


def chain_restores_in_the_guest(chain: Chain, name: str) -> None:
    guest = chain.task.guest
    # What a tool does after a migration: the page server's directories, and the dump's own files.
    merged = guest.share / f"{name}-merged"
    for number, (folder, local) in enumerate(zip(chain.folders, chain.local, strict=True), start=1):
        shutil.copytree(folder, merged / str(number), symlinks=True)
        for file in local.iterdir():
            if not file.is_symlink():
                shutil.copy(file, merged / str(number))
    assert os.readlink(merged / str(PRE_DUMPS + 1) / "parent") == f"../{PRE_DUMPS}"
    verified = CliRunner().invoke(app, ["criu", "verify", str(merged / str(PRE_DUMPS + 1))])
    assert verified.exit_code == 0, verified.output
    before = chain.task.statuses()
    images = f"/tmp/{name}-merged"
    guest.sh(f"cp -a /share/{name}-merged {images}")
    guest.sh(f"criu-{name} restore -D {images}/{PRE_DUMPS + 1} -d")
    chain.task.passes_on(PRE_DUMPS + 1)
    chain.task.take_step(PRE_DUMPS + 2)
    after = chain.task.statuses()
    assert all(now.passes > then.passes for now, then in zip(after, before, strict=True))
    guest.sh(f"kill -9 {chain.task.pid}")
