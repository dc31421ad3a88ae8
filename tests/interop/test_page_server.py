"""Pages to and from real CRIU, both ways and of every version, byte for byte."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trustme

from dest_node.criu_pages import CriuPages, CriuPagesConfig
from livemigration.criu.magic import PageFlags
from livemigration.criu.page_images import PageImage
from livemigration.criu.page_server.endpoint import accept, connect, listen
from livemigration.criu.page_server.lazy import LazyClient, LazyServer
from livemigration.criu.page_server.lazy_images import LazyImages, fetch_into
from livemigration.criu.page_server.protocol import (
    DIALECTS,
    Dialect,
    PageServerError,
    Target,
    TargetKind,
)
from livemigration.criu.page_server.sender import Sender
from livemigration.criu.pagemap import read_page_set
from livemigration.criu.pb.inventory_pb2 import InventoryEntry
from livemigration.tls import TlsConfig, client_context, server_context
from predump.criu_send import Sent, send_scenario
from predump.scenario import scenario_from_mapping
from source_node.criu_migration import PageServers
from tests.interop.real_criu import RealCriu
from tests.interop.toucher import (
    PAGE,
    PRIVATE,
    SHARED,
    SHARED_PAGES,
    Toucher,
    compiled,
    end,
    touching,
    wait_for,
)

PIPE_LIMIT = Path("/proc/sys/fs/pipe-max-size")
LAZY_DUMP_PIPE = 4 << 20
"""`criu dump --lazy-pages` wants pipes of 819 pages, which without CAP_SYS_RESOURCE is limited."""


def dialect_of(criu: RealCriu) -> Dialect:
    return DIALECTS["4.2" if criu.version >= (4, 2) else "4.1"]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("toucher"))


@pytest.fixture
def toucher(program: Path) -> Iterator[Toucher]:
    with touching(program) as running:
        yield running


@pytest.fixture
def large_pipes() -> Iterator[None]:
    before = PIPE_LIMIT.read_text()
    if int(before) < LAZY_DUMP_PIPE:
        PIPE_LIMIT.write_text(str(LAZY_DUMP_PIPE))
    yield
    PIPE_LIMIT.write_text(before)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    return folder


def criu_tls(pki: Path) -> list[str | Path]:
    files = ["--tls-cacert", pki / "ca.pem", "--tls-cert", pki / "cert.pem"]
    return ["--tls", *files, "--tls-key", pki / "key.pem", "--tls-no-cn-verify"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    wanted = f":{port:04X} "
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(wanted in row.split()[1] + " " and row.split()[3] == "0A" for row in rows)


@contextmanager
def page_servers(
    criu: RealCriu,
    folder: Path,
    rounds: int,
    *options: str | Path,
    status: tuple[int, ...] = (),
) -> Iterator[list[str]]:
    """A real page server for each round, as a tool would start them; their addresses."""
    started: list[subprocess.Popen[bytes]] = []
    addresses = []
    try:
        for number in range(rounds):
            directory, port = folder / str(number), free_port()
            directory.mkdir()
            parent = ["--prev-images-dir", f"../{number - 1}"] if number else []
            where = ["-D", directory, "--address", "127.0.0.1", "--port", str(port)]
            command = [criu.criu, "page-server", *where, *parent, *options, "-v4", "-o", "log"]
            started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            addresses.append(f"127.0.0.1:{port}")
            wait_for(partial(listens, port))
        yield addresses
        assert [server.wait(10) for server in started] == list(status or [0] * rounds)
    finally:
        for server in started:
            server.kill()
            server.wait()


SHARED_AND_PRIVATE = {
    "schema": "predump.scenario/1",
    "memory": "2MiB",
    "workload": {"kind": "uniform", "rate": "2000 pages/s", "write_size": 64},
    "policy": {"kind": "fixed", "rounds": 1},
    "link": {"bandwidth": "200Mbit/s"},
}


async def sent_to(servers: PageServers, **changes: object) -> Sent:
    return await send_scenario(
        scenario_from_mapping(SHARED_AND_PRIVATE | changes), servers, lambda line: None
    )


async def test_three_rounds_of_a_source_are_a_chain_that_equals_its_memory(
    real_criu: RealCriu, tmp_path: Path
) -> None:
    with page_servers(real_criu, tmp_path, 3) as addresses:
        sent = await sent_to(
            PageServers(tuple(addresses), dialect_of(real_criu), wait_s=10, images=tmp_path / "2")
        )
    assert sent.outcome.error == ""
    assert sent.outcome.verified
    pages = [record.pages_sent for record in sent.outcome.rounds]
    assert pages[0] == 512
    assert 0 < pages[1] < 512
    assert [kept + left for kept, left in zip(pages, sent.holes, strict=True)] == [512] * 3
    # And without our own comparison: every level lists all pages, each where it was sent.
    known = read_page_set(tmp_path / "2", "pagemap-1.img", PAGE)
    assert len(known) == 512
    assert np.bincount(known.level, minlength=3)[0] == pages[2]


async def test_a_real_process_goes_through_the_source_and_is_restored_by_real_criu(
    real_criu: RealCriu, toucher: Toucher, tmp_path: Path
) -> None:
    """Its own pid and segment, so that with the rest of its images it is whole again."""
    images = tmp_path / "dumped"
    images.mkdir()
    toucher.stop()
    real_criu.run("dump", "-R", "-t", toucher.pid, "-D", images, "-v4", "-o", "dump.log")
    (tmp_path / "servers").mkdir()
    with page_servers(real_criu, tmp_path / "servers", 2) as addresses:
        sent = await sent_to(
            PageServers(tuple(addresses), dialect_of(real_criu), images=tmp_path / "servers" / "1"),
            source={"images": str(images)},
            workload={"kind": "idle"},
            policy={"kind": "fixed", "rounds": 0},
        )
    assert sent.outcome.error == ""
    assert sent.outcome.verified
    last = tmp_path / "servers" / "1"
    equal_to_memory(last, toucher)
    for file in images.glob("*.img"):
        if not file.name.startswith("pages-") and not (last / file.name).exists():
            shutil.copy(file, last)
    restored_equals(real_criu, last, toucher)


async def test_images_of_an_earlier_round_differ(real_criu: RealCriu, tmp_path: Path) -> None:
    with page_servers(real_criu, tmp_path, 3) as addresses:
        sent = await sent_to(
            PageServers(tuple(addresses), dialect_of(real_criu), images=tmp_path / "0")
        )
    assert not sent.outcome.verified
    assert 0 < sent.outcome.mismatched_pages <= sum(r.pages_sent for r in sent.outcome.rounds[1:])


def test_a_hole_that_the_parent_lacks_ends_the_conversation(
    real_criu: RealCriu, tmp_path: Path
) -> None:
    """What a lost page comes to: said to be unchanged, though it was never sent."""
    starts, one = np.array([PRIVATE], np.uint64), np.array([1], np.uint64)
    with page_servers(real_criu, tmp_path, 2, status=(0, 1)) as addresses:
        with say_to(addresses[0], real_criu) as sender:
            assert not sender.open(Target(TargetKind.PROCESS, 7))
            sender.add(starts, one, one * np.uint64(PageFlags.PRESENT), [memoryview(bytes(PAGE))])
            sender.finish()
        with say_to(addresses[1], real_criu) as sender:
            assert sender.open(Target(TargetKind.PROCESS, 7))
            sender.add(starts + np.uint64(PAGE), one, one * np.uint64(PageFlags.PARENT), [])
            with pytest.raises(PageServerError, match="in its parent images, and has not"):
                sender.finish()


def say_to(address: str, criu: RealCriu) -> Sender:
    return Sender(connect(address, wait_s=10, patience_s=20), dialect_of(criu), PAGE)


async def test_rounds_go_over_tls(real_criu: RealCriu, tmp_path: Path, pki: Path) -> None:
    files = TlsConfig(pki / "ca.pem", pki / "cert.pem", pki / "key.pem")
    with page_servers(real_criu, tmp_path, 2, *criu_tls(pki)) as addresses:
        sent = await sent_to(
            PageServers(
                tuple(addresses),
                dialect_of(real_criu),
                tls=client_context(files),
                images=tmp_path / "1",
            ),
            policy={"kind": "fixed", "rounds": 0},
        )
    assert sent.outcome.error == ""
    assert sent.outcome.verified


async def test_a_server_of_the_other_dialect_is_named(real_criu: RealCriu, tmp_path: Path) -> None:
    """A newer server waits for the rest of a header, an older one makes nothing of it."""
    wrong = next(d for d in DIALECTS.values() if d is not dialect_of(real_criu))
    with page_servers(real_criu, tmp_path, 1, status=(1,)) as addresses:
        sent = await sent_to(PageServers(tuple(addresses), wrong, patience_s=1.0))
    assert f"--criu-version {dialect_of(real_criu).name}" in sent.outcome.error


@contextmanager
def destination(folder: Path, pki: Path | None = None) -> Iterator[CriuPages]:
    folder.mkdir()
    tls = None
    if pki is not None:
        tls = server_context(pki / "cert.pem", pki / "key.pem", pki / "ca.pem")
    pages = CriuPages(folder, CriuPagesConfig("127.0.0.1:0", tls))
    try:
        yield pages
    finally:
        pages.close()


def dump(criu: RealCriu, toucher: Toucher, images: Path, address: str, *options: object) -> None:
    images.mkdir()
    port = address.rpartition(":")[2]
    server = ["--page-server", "--address", "127.0.0.1", "--port", port]
    criu.run(
        "dump", "-t", toucher.pid, "-D", images, "-R", *server, *options, "-v4", "-o", "dump.log"
    )


def equal_to_memory(images: Path, toucher: Toucher) -> None:
    """The process' own pages, and the shared ones, are what the kernel shows of it."""
    own = read_page_set(images, f"pagemap-{toucher.pid}.img", PAGE)
    assert PRIVATE in own.addresses
    assert own.read(own.addresses).tobytes() == toucher.memory(own.addresses)
    (shared,) = images.glob("pagemap-shmem-*.img")
    there = read_page_set(images, shared.name, PAGE)
    assert len(there) == SHARED_PAGES
    at = there.addresses + np.uint64(SHARED)
    assert there.read(there.addresses).tobytes() == toucher.memory(at)


def test_a_real_dump_into_a_destination_equals_the_process_and_restores(
    real_criu: RealCriu, toucher: Toucher, tmp_path: Path
) -> None:
    toucher.stop()
    with destination(tmp_path / "state") as there:
        dump(real_criu, toucher, tmp_path / "src", there.address)
        (came,) = there.describe().checkpoints
        images = Path(came.folder)
        equal_to_memory(images, toucher)
    assert came.complete
    assert came.dialect == dialect_of(real_criu).name
    assert [image.shared for image in came.images] == [True, False]
    for file in (tmp_path / "src").glob("*.img"):
        shutil.copy(file, images)
    restored_equals(real_criu, images, toucher)


def restored_equals(criu: RealCriu, images: Path, toucher: Toucher, *options: object) -> None:
    """Restored by real criu the process has the same memory, and counts on."""
    before = toucher.filled()
    end(toucher.pid)
    criu.run("restore", "-D", images, "-d", "-v4", "-o", "restore.log", *options)
    try:
        assert toucher.filled() == before
        toucher.go_on()
    finally:
        end(toucher.pid)


def test_each_dump_is_the_next_of_its_chain(
    real_criu: RealCriu, toucher: Toucher, tmp_path: Path
) -> None:
    with destination(tmp_path / "state") as there:
        toucher.stop()
        dump(real_criu, toucher, tmp_path / "src0", there.address)
        toucher.go_on()
        toucher.stop()
        as_if_tracked(tmp_path / "src0" / "inventory.img")
        parent = ("--prev-images-dir", "../src0")
        dump(real_criu, toucher, tmp_path / "src1", there.address, *parent)
        toucher.go_on()
        there.new_chain()
        toucher.stop()
        dump(real_criu, toucher, tmp_path / "src2", there.address)
        came = there.describe().checkpoints
        equal_to_memory(Path(came[2].folder), toucher)
    got = [(c.chain, c.number, c.complete) for c in came]
    assert got == [(1, 1, True), (1, 2, True), (2, 1, True)]
    assert os.readlink(Path(came[1].folder) / "parent") == "../1"
    assert not (Path(came[2].folder) / "parent").exists()
    assert len({c.digest for c in came}) == 3
    # A node that starts again knows them.
    again = CriuPages(tmp_path / "state", CriuPagesConfig("127.0.0.1:0"))
    try:
        assert [c.digest for c in again.describe().checkpoints] == [c.digest for c in came]
    finally:
        again.close()


def as_if_tracked(inventory: Path) -> None:
    """With the time of the dump, which only a dump with --track-mem notes; here none can be made.

    CRIU takes no parent without it.
    """
    data = inventory.read_bytes()
    entry = InventoryEntry.FromString(data[8:])
    entry.dump_uptime = 1 << 40
    record = entry.SerializeToString()
    inventory.write_bytes(data[:4] + struct.pack("<I", len(record)) + record)


def test_a_dump_that_wants_no_parent_begins_a_new_chain(
    real_criu: RealCriu,
    toucher: Toucher,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """CRIU gives up when the server knows a parent and it does not; so its next try works."""
    with destination(tmp_path / "state") as there:
        dump(real_criu, toucher, tmp_path / "src0", there.address)
        with pytest.raises(pytest.fail.Exception):
            dump(real_criu, toucher, tmp_path / "src1", there.address)
        wait_for(lambda: len(there.describe().checkpoints) == 2)
        dump(real_criu, toucher, tmp_path / "src2", there.address)
        came = there.describe().checkpoints
    got = [(c.chain, c.number, c.complete) for c in came]
    assert got == [(1, 1, True), (1, 2, False), (2, 1, True)]
    assert "without --prev-images-dir? The next dump begins chain 2" in came[1].error
    assert [came[1].error in line for line in caplog.messages] == [True]


def test_a_real_dump_comes_over_tls(
    real_criu: RealCriu, toucher: Toucher, tmp_path: Path, pki: Path
) -> None:
    toucher.stop()
    with destination(tmp_path / "state", pki) as there:
        dump(real_criu, toucher, tmp_path / "src", there.address, *criu_tls(pki))
        (came,) = there.describe().checkpoints
        equal_to_memory(Path(came.folder), toucher)
    assert came.complete


def test_lazy_pages_of_a_real_dump_are_fetched(
    real_criu: RealCriu, toucher: Toucher, tmp_path: Path, large_pipes: None
) -> None:
    """The dump holds the process and its pages; with them its images are those of a plain dump."""
    images, port = tmp_path / "lazy", free_port()
    images.mkdir()
    toucher.stop()
    where = ["--lazy-pages", "--address", "127.0.0.1", "--port", str(port)]
    command = [real_criu.criu, "dump", "-R", "-t", str(toucher.pid), "-D", images, *where]
    with subprocess.Popen([*command, "-v4", "-o", "dump.log"], stdin=subprocess.DEVNULL) as dumping:
        try:
            wait_for(partial(listens, port))
            with connect(f"127.0.0.1:{port}", wait_s=10, patience_s=20) as channel:
                client = LazyClient(channel, dialect_of(real_criu), PAGE)
                done = fetch_into(images, tmp_path / "whole", client, PAGE)
            assert dumping.wait(20) == 0
        finally:
            dumping.kill()
    assert done.fetched >= 56  # at least those that the program filled
    equal_to_memory(tmp_path / "whole", toucher)
    restored_equals(real_criu, tmp_path / "whole", toucher)


def test_a_real_lazy_restore_fetches_its_pages_here(
    real_criu: RealCriu, toucher: Toucher, tmp_path: Path
) -> None:
    """Restored without its memory, the process gets each page when it needs it."""
    images = tmp_path / "whole"
    images.mkdir()
    toucher.stop()
    real_criu.run("dump", "-R", "-t", toucher.pid, "-D", images, "-v4", "-o", "dump.log")
    empty, left = without_lazy_pages(images, tmp_path / "empty", f"pagemap-{toucher.pid}.img")
    before = toucher.filled()
    end(toucher.pid)
    with listen("127.0.0.1:0") as listening:
        port = listening.getsockname()[1]
        where = ["-D", empty, "-W", tmp_path, "--page-server", "--address", "127.0.0.1"]
        lazy = subprocess.Popen(
            [real_criu.criu, "lazy-pages", *where, "--port", str(port), "-v4", "-o", "lazy.log"],
            stdin=subprocess.DEVNULL,
        )
        restoring = None
        try:
            wait_for((tmp_path / "lazy-pages.socket").exists)
            command = [real_criu.criu, "restore", "-D", empty, "-W", tmp_path, "--lazy-pages", "-d"]
            restoring = subprocess.Popen([*command, "-v4", "-o", "r.log"], stdin=subprocess.DEVNULL)
            listening.settimeout(20)
            channel, _ = accept(listening, 20, None)
            with channel:
                server = LazyServer(channel, LazyImages(images, PAGE))
                server.run()
            assert restoring.wait(20) == 0
            assert lazy.wait(20) == 0
            assert server.dialect is dialect_of(real_criu)
            assert server.pages == left
            assert toucher.filled() == before
            toucher.go_on()
        finally:
            for started in (lazy, restoring):
                if started is not None:
                    started.kill()
                    started.wait()
            end(toucher.pid)


def without_lazy_pages(images: Path, empty: Path, name: str) -> tuple[Path, int]:
    """The images as a lazy dump would have left them; how many pages are missing."""
    shutil.copytree(images, empty)
    known = read_page_set(images, name, PAGE)
    private = (known.addresses >= PRIVATE) & (known.addresses < PRIVATE + 64 * PAGE)
    pages_file = known.files[0].name
    (empty / name).unlink()
    (empty / pages_file).unlink()
    number = int(pages_file.removeprefix("pages-").removesuffix(".img"))
    with PageImage(empty, name, number, PAGE) as image:
        for address, lazy in zip(known.addresses.tolist(), private.tolist(), strict=True):
            if lazy:
                image.lazy(address, 1)
            else:
                image.write(known.read(np.array([address], np.uint64)).data)
                image.present(address, 1, PageFlags.PRESENT)
    return empty, int(private.sum())
