"""Pages into and out of real CRIU, beside what real CRIU takes for the same bytes in the same run.

* out of `criu dump --page-server`: into our receiver, against a real `criu page-server`; the time
  is the dump's own (``memwrite_time`` of stats-dump), so both are measured by the same clock;
* into a real `criu page-server`: from our source, against that real dump;
* out of `criu dump --lazy-pages`: into our client, against that dump to a page server, since a real
  lazy restore next to the frozen process would find its pid taken.

The directories are in memory (/dev/shm), so that no disk is measured. Runs take turns and the
medians are compared.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.measure import Line
from dest_node.criu_pages import CriuPages, CriuPagesConfig
from livemigration.criu.page_server.endpoint import connect
from livemigration.criu.page_server.lazy import LazyClient
from livemigration.criu.page_server.lazy_images import fetch_into
from livemigration.criu.page_server.protocol import DIALECTS, Dialect
from livemigration.criu.pb.stats_pb2 import StatsEntry
from predump.criu_send import send_scenario
from predump.scenario import scenario_from_mapping
from source_node.criu_migration import PageServers

_ROOT = Path(__file__).parents[1]
_SUITES = {"trixie": "4.1", "sid": "4.2"}
_TARGET = 0.8
_PAGE = 4096
_COUNTER = 0x10000008  # in the program's memory
_PATIENCE_S = 300.0
_PIPE_LIMIT = Path("/proc/sys/fs/pipe-max-size")
_LAZY_DUMP_PIPE = 4 << 20


def page_server_lines(*, quick: bool) -> list[Line]:
    """Both versions of CRIU, 1 GiB (32 MiB if quick)."""
    size, turns = (32 << 20, 1) if quick else (1 << 30, 3)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="predump-bench-", dir=_memory_folder()) as name:
        folder = Path(name)
        program = folder / "toucher"
        source = _ROOT / "tests" / "interop" / "toucher.c"
        subprocess.run(["gcc", "-O2", "-static", "-o", program, source], check=True)
        for suite, version in _SUITES.items():
            fetched = [_ROOT / "scripts" / "criu.sh", "criu", suite]
            criu = subprocess.run(fetched, check=True, stdout=subprocess.PIPE, text=True).stdout
            with _running(program, size) as pid:
                bench = _Bench(Path(criu.strip()), DIALECTS[version], folder, pid, size)
                lines += bench.lines(turns)
    return lines


def _memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextmanager
def _running(program: Path, size: int) -> Iterator[int]:
    """The program with that many bytes of pages filled, of which it changes none any more."""
    # Every second page of the last quarter stays untouched: 7/8 are filled.
    pages = size // _PAGE * 8 // 7
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    # -R: a heap put somewhere by chance would lie where the program wants its pages.
    process = subprocess.Popen(
        ["setarch", "-R", program, str(pages), "1"],
        start_new_session=True,
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
        **quiet,
    )
    try:
        _wait(partial(_counts, process.pid))
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _counts(pid: int) -> bool:
    """Whether all pages are filled: then the program begins to count in the first one."""
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(_COUNTER)
            return any(memory.read(8))
    except OSError:
        return False


def _wait(met: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _PATIENCE_S
    while not met():
        if time.monotonic() > give_up:
            raise RuntimeError("a program of the benchmark did not get ready")
        time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    rows = (row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


class _Bench:
    """One version of CRIU, and a process whose pages go here and there."""

    def __init__(self, criu: Path, dialect: Dialect, folder: Path, pid: int, size: int) -> None:
        self._criu = criu
        self._dialect = dialect
        self._folder = folder
        self._pid = pid
        self._size = size
        self._real_cpu_s: list[float] = []
        self._our_cpu_s: list[float] = []

    def lines(self, turns: int) -> list[Line]:
        """Megabytes a second of each way."""
        ways = {
            "real dump to real server": self._real_to_real,
            "real dump to our server": self._real_to_ours,
            "our source to real server": self._ours_to_real,
            "real lazy dump to our client": self._lazy_to_ours,
        }
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(turns):
            for way, run in ways.items():
                speeds[way].append(run())
                if way.endswith("to real server") and not way.startswith("real"):
                    self._real_cpu_s.pop()  # only what took the same dump is compared
        base = statistics.median(speeds.pop("real dump to real server"))
        name = f"CRIU {self._dialect.name}"
        result = [Line("page-server", f"{name}: real dump to real server", base, "MB/s")]
        for way, measured in speeds.items():
            speed = statistics.median(measured)
            judged = not way.startswith("real lazy")
            result.append(
                Line(
                    "page-server",
                    f"{name}: {way}",
                    speed,
                    "MB/s",
                    baseline=base,
                    baseline_name="real to real",
                    ratio=speed / base,
                    sign=">=" if judged else "",
                    target=_TARGET if judged else None,
                    target_is_ratio=judged,
                    note=f"{min(measured):.0f} to {max(measured):.0f}",
                )
            )
        ours, real = statistics.median(self._our_cpu_s), statistics.median(self._real_cpu_s)
        result.append(
            Line(
                "page-server",
                f"{name}: CPU of our server for such a dump",
                ours,
                "s",
                baseline=real,
                baseline_name="real server",
                ratio=ours / real,
                note="whatever else the machine does",
            )
        )
        return result

    @contextmanager
    def _fresh(self, name: str) -> Iterator[Path]:
        made = self._folder / name
        made.mkdir()
        try:
            yield made
        finally:
            shutil.rmtree(made)

    @contextmanager
    def _real_server(self, images: Path) -> Iterator[int]:
        port = _free_port()
        where = ["-D", images, "--address", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen([self._criu, "page-server", *where, "-v0"])
        try:
            _wait(partial(_listens, port))
            yield port
            _, status, used = os.wait4(server.pid, 0)
            server.returncode = status
            self._real_cpu_s.append(used.ru_utime + used.ru_stime)
            if status:
                raise RuntimeError("the real page server failed")
        finally:
            if server.returncode is None:
                server.kill()
                server.wait()

    def _dump(self, images: Path, port: int) -> float:
        """MB/s of a real dump to a page server, as it measures itself."""
        where = ["--page-server", "--address", "127.0.0.1", "--port", str(port)]
        command = [self._criu, "dump", "-R", "-t", str(self._pid), "-D", images, *where, "-v0"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        data = (images / "stats-dump").read_bytes()
        (length,) = struct.unpack_from("<I", data, 8)
        stats = StatsEntry.FromString(data[12 : 12 + length]).dump
        return stats.pages_written * _PAGE / stats.memwrite_time

    def _real_to_real(self) -> float:
        with (
            self._fresh("src") as images,
            self._fresh("dst") as there,
            self._real_server(there) as port,
        ):
            return self._dump(images, port)

    def _real_to_ours(self) -> float:
        with self._fresh("src") as images, self._fresh("state") as state:
            pages = CriuPages(state, CriuPagesConfig("127.0.0.1:0"))
            began = time.process_time()  # nothing else runs in this process meanwhile
            try:
                return self._dump(images, int(pages.address.rpartition(":")[2]))
            finally:
                pages.close()
                self._our_cpu_s.append(time.process_time() - began)

    def _ours_to_real(self) -> float:
        scenario = scenario_from_mapping(
            {
                "schema": "predump.scenario/1",
                "memory": self._size,
                "clock": "wall",
                "workload": {"kind": "idle"},
                "policy": {"kind": "stop-and-copy"},
                "link": {"bandwidth": "unlimited"},
            }
        )
        with self._fresh("dst") as there, self._real_server(there) as port:
            servers = PageServers((f"127.0.0.1:{port}",), self._dialect)
            sent = asyncio.run(send_scenario(scenario, servers, lambda line: None))
        if sent.outcome.error:
            raise RuntimeError(sent.outcome.error)
        down = sent.outcome.downtime
        took_us = (down.dump_ns + down.transfer_ns) / 1000
        return sent.outcome.rounds[-1].pages_sent * _PAGE / took_us

    def _lazy_to_ours(self) -> float:
        limit = _PIPE_LIMIT.read_text()
        if int(limit) < _LAZY_DUMP_PIPE:
            _PIPE_LIMIT.write_text(str(_LAZY_DUMP_PIPE))
        port = _free_port()
        try:
            with self._fresh("src") as images, self._fresh("out") as out:
                where = ["--lazy-pages", "--address", "127.0.0.1", "--port", str(port)]
                command = [self._criu, "dump", "-R", "-t", str(self._pid), "-D", images, *where]
                with subprocess.Popen([*command, "-v0"], stdin=subprocess.DEVNULL) as dumping:
                    _wait(partial(_listens, port))
                    with connect(f"127.0.0.1:{port}", wait_s=10, patience_s=60) as channel:
                        client = LazyClient(channel, self._dialect, _PAGE)
                        began = time.perf_counter()
                        done = fetch_into(images, out / "whole", client, _PAGE)
                        took_s = time.perf_counter() - began
                    if dumping.wait(_PATIENCE_S):
                        raise RuntimeError("the real lazy dump failed")
                return done.fetched * _PAGE / took_s / 1e6
        finally:
            _PIPE_LIMIT.write_text(limit)
