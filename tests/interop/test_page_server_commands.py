"""`predump serve dest --criu-page-server` and `predump criu ...`, as a person types them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.node import node, predump
from tests.interop.real_criu import RealCriu, fetched
from tests.interop.toucher import compiled, touching, wait_for

SLOW_S = 200
"""A busy machine takes long to start Python."""


@pytest.fixture(scope="module")
def criu() -> RealCriu:
    """One version is enough here: the protocol's own tests have both."""
    return fetched("sid")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_node_takes_a_real_dump_and_says_what_came(criu: RealCriu, tmp_path: Path) -> None:
    program, port, images = compiled(tmp_path), free_port(), tmp_path / "images"
    images.mkdir()
    page_server = ["--criu-page-server", f"127.0.0.1:{port}"]
    with (
        node("dest", tmp_path, "--state-dir", tmp_path / "state", *page_server) as dest,
        touching(program) as toucher,
    ):
        where = ["--page-server", "--address", "127.0.0.1", "--port", port]
        criu.run("dump", "-R", "-t", toucher.pid, "-D", images, *where, "-v4", "-o", "dump.log")
        listed = predump("criu", "received", dest.address, "--json", timeout=SLOW_S)
        plain = predump("criu", "received", dest.address, timeout=SLOW_S)
    (came,) = json.loads(listed.out)["checkpoints"]
    assert came["complete"]
    assert (came["chain"], came["number"], came["dialect"]) == (1, 1, "4.2")
    assert Path(came["folder"], f"pagemap-{toucher.pid}.img").exists()
    assert plain.out.splitlines()[0] == f"page server at 127.0.0.1:{port}: 1 checkpoints"
    assert came["digest"][:16] in plain.out

    # And those pages go to whoever asks for them.
    serve = [sys.executable, "-m", "predump", "criu", "lazy-server", came["folder"]]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        address = serving.stdout.readline().split()[-1]
        lazy = lazy_copy(Path(came["folder"]), tmp_path / "lazy", toucher.pid)
        whole = ["-o", tmp_path / "got", "--page-server", address]
        got = predump("criu", "fetch", lazy, *whole, timeout=SLOW_S)
        assert got.status == 0, got.err
        assert serving.wait(20) == 0
    name = f"pagemap-{toucher.pid}.img"
    pages = [file.name for file in Path(came["folder"]).glob("pages-*.img")]
    for file in pages:
        assert (tmp_path / "got" / file).read_bytes() == Path(came["folder"], file).read_bytes()
    assert (tmp_path / "got" / name).exists()


def lazy_copy(images: Path, copy: Path, pid: int) -> Path:
    """The images as if all pages of the process had stayed with it."""
    from livemigration.criu.page_images import PageImage
    from livemigration.criu.pagemap import read_page_set

    shutil.copytree(images, copy)
    known = read_page_set(images, f"pagemap-{pid}.img", 4096)
    (copy / f"pagemap-{pid}.img").unlink()
    known_file = copy / known.files[0].name
    known_file.unlink()
    number = int(known_file.stem.removeprefix("pages-"))
    with PageImage(copy, f"pagemap-{pid}.img", number, 4096) as image:
        for address in known.addresses.tolist():
            image.lazy(address, 1)
    return copy


def test_rounds_are_sent_and_compared(criu: RealCriu, tmp_path: Path) -> None:
    port, images = free_port(), tmp_path / "images"
    images.mkdir()
    scenario = tmp_path / "one.toml"
    scenario.write_text(
        'schema = "predump.scenario/1"\nmemory = "1MiB"\n'
        '[workload]\nkind = "idle"\n[policy]\nkind = "stop-and-copy"\n'
    )
    where = ["--address", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen([criu.criu, "page-server", "-D", images, *where]) as server:
        wait_for(lambda: f":{port:04X} " in Path("/proc/net/tcp").read_text())
        sent = predump(
            "criu", "send", scenario, "--page-server", f"127.0.0.1:{port}",
            "--verify-images", images, "--json", timeout=SLOW_S,
        )  # fmt: skip
        assert sent.status == 0, sent.err
        assert server.wait(20) == 0
    told = json.loads(sent.out)
    assert told["verified"]
    assert [r["pages_sent"] for r in told["rounds"]] == [256]
