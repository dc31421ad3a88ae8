"""`predump watch` against a real Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgpack
import pytest
from rich.console import Console

from livemigration.telemetry import Telemetry, open_telemetry
from predump.testing.broker import Broker, running_broker
from predump.watch import run_watch
from tests.e2e.mosquitto_fixture import run_tool

_WATCH = """
import sys
from predump.watch import run_watch
url, *options = sys.argv[1:]
sys.exit(run_watch(url, as_json="json" in options))
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with running_broker(tmp_path) as running:
        yield running


def _console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=150, force_terminal=terminal, color_system=None)


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def _fill(broker: Broker) -> None:
    """What two hosts leave behind of one migration; another one is still going on."""
    async with open_telemetry(broker.url, role="source", host_id="alpha") as source:
        _migrate(source)
    async with open_telemetry(broker.url, role="dest", host_id="beta") as dest:
        dest.state("m-1", state="done", owner="destination")
        dest.state("m-2", state="received", owner="source", round=0)


def _migrate(source: Telemetry) -> None:
    source.state("m-1", state="round", owner="source")
    record = {"round": 0, "pages_sent": 65536, "pages_soft_dirty": 65536, "bytes_wire": 268_900_000}
    source.round("m-1", {**record, "duration_s": 2.0})
    source.state("m-1", **record)
    source.state("m-1", state="done", owner="destination", downtime_s=0.0421)


class Watch:
    """`run_watch` as a process of its own; `text` is what it printed so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.text = ""

    async def shows(self, text: str, timeout_s: float = 120.0) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while text not in self.text:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{text!r} is not in {self.text[-2000:]!r}") from None

    async def take(self, output: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal
            while data := await output.read(4096):
                self.text += data.decode(errors="replace")

    async def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def _watching(broker: Broker, *options: str, terminal: bool = False) -> AsyncIterator[Watch]:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    environment = {**os.environ, "COLUMNS": "150", "LINES": "40", "TERM": "xterm"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WATCH, broker.url, *options,
        stdout=theirs, stderr=theirs, stdin=asyncio.subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    os.close(theirs)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", 0)
    )
    watch = Watch(process)
    task = asyncio.create_task(watch.take(reader))
    try:
        yield watch
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await task
        transport.close()


# -- once


async def test_once_prints_the_table_of_what_is_retained(broker: Broker) -> None:
    await _fill(broker)
    out, err = _console(terminal=True), _console()
    status = await asyncio.to_thread(run_watch, broker.url, once=True, out=out, err=err)
    assert (status, _text(err)) == (0, "")
    done = next(line for line in _text(out).splitlines() if "m-1" in line)
    for text in ("source done, dest done", "destination", "65,536", "268.9 MB", "42.1 ms"):
        assert text in done
    # Its host said goodbye without having ended it.
    assert "dest received (host lost)" in _text(out)


async def test_once_for_one_migration_as_lines_and_as_json(broker: Broker) -> None:
    await _fill(broker)
    out, err = _console(), _console()
    status = await asyncio.to_thread(
        run_watch, broker.url, migration_id="m-2", once=True, out=out, err=err
    )
    assert (status, _text(out), _text(err)) == (
        0,
        "m-2 dest state=received owner=source round=0\n",
        "",
    )
    out = _console()
    status = await asyncio.to_thread(
        run_watch, broker.url, migration_id="m-1", once=True, as_json=True, out=out, err=err
    )
    snapshot = json.loads(_text(out))
    assert (status, snapshot["schema"], snapshot["malformed"]) == (0, "predump.watch/1", 0)
    assert [migration["migration_id"] for migration in snapshot["migrations"]] == ["m-1"]
    assert snapshot["migrations"][0]["pages_sent"] == 65536
    assert snapshot["migrations"][0]["states"]["source"]["downtime_s"] == 0.0421
    assert snapshot["hosts"]["alpha"]["status"] == "offline"


async def test_once_for_a_migration_that_the_broker_does_not_know_fails(broker: Broker) -> None:
    out, err = _console(), _console()
    status = await asyncio.to_thread(
        run_watch, broker.url, migration_id="m-9", once=True, out=out, err=err
    )
    assert (status, _text(err)) == (1, "the broker knows no migration 'm-9'\n")


@pytest.mark.parametrize("options", [{"once": True, "timeout": 0.5}, {"timeout": 1.0}])
async def test_without_a_broker_it_says_so_once_and_gives_up(
    broker: Broker, options: dict[str, float]
) -> None:
    broker.stop()
    out, err = _console(), _console()
    status = await asyncio.to_thread(run_watch, broker.url, **options, out=out, err=err)  # type: ignore[arg-type]
    where = f"127.0.0.1:{broker.port}"
    assert status == 1
    assert _text(err).splitlines() == [
        f"no broker at {where} (Connection refused); trying again",
        f"gave up after {options['timeout']:g} s without the broker at {where}",
    ]


def test_a_bad_url_is_one_line_and_status_2() -> None:
    out, err = _console(), _console()
    assert run_watch("localhost:1883", once=True, out=out, err=err) == 2
    assert len(_text(err).splitlines()) == 1
    assert "mqtt://" in _text(err)


# -- live


async def test_on_a_terminal_it_shows_a_table_until_ctrl_c(broker: Broker) -> None:
    async with _watching(broker, terminal=True) as watch:
        await watch.shows("connected to the broker")
        async with open_telemetry(broker.url, role="source", host_id="alpha") as source:
            _migrate(source)
            source.event("m-1", "freeze", message="all stop")
            await watch.shows("m-1 source freeze message=all stop")
            await watch.shows("source done")
            await watch.shows("134.4 MB/s")
        assert await watch.interrupt() == 0
    assert "Traceback" not in watch.text


async def test_in_a_pipe_it_prints_lines_and_outlives_the_broker(broker: Broker) -> None:
    async with (
        _watching(broker) as watch,
        open_telemetry(broker.url, role="source", host_id="alpha") as source,
    ):
        await watch.shows("host alpha online")
        _migrate(source)
        await watch.shows(
            "m-1 source round 0: 65,536 pages sent, 65,536 soft-dirty, 268.9 MB in 2 s"
        )
        await watch.shows("m-1 source state=done owner=destination")
        broker.kill()
        await watch.shows("no broker at")
        broker.start()
        await watch.shows("connected to the broker")
        source.event("m-1", "again")
        source.state("m-2", state="prepare")
        await watch.shows("m-2 source state=prepare")
        assert await watch.interrupt() == 0
    lines = watch.text.splitlines()
    assert sum(line.startswith("no broker at") for line in lines) == 1
    assert "Traceback" not in watch.text


async def test_what_others_publish_is_ignored_and_counted(broker: Broker) -> None:
    async with _watching(broker, "json") as watch:
        for topic, payload in (
            ("predump/v1/m/source/state", b"\xc1 not msgpack"),
            ("predump/v1/m/source/state", msgpack.packb({"state": 7})),
            ("predump/v1/nobody/knows", b"x"),
        ):
            await run_tool(
                "mosquitto_pub", broker, "-q", "1", "-r", "-t", topic, "-s", stdin=payload
            )
        async with open_telemetry(broker.url, role="source", host_id="alpha") as source:
            source.state("m-1", state="round", note=float("nan"), raw=b"\xff")
            await watch.shows('"m-1"')
            await watch.shows("malformed")
        assert await watch.interrupt() == 0
    lines = watch.text.splitlines()
    messages = [json.loads(line) for line in lines if line.startswith("{")]
    state = next(message for message in messages if message["kind"] == "state")
    assert (state["migration_id"], state["role"], state["payload"]["state"]) == (
        "m-1",
        "source",
        "round",
    )
    assert [line for line in lines if not line.startswith("{")] == ["ignored 1 malformed message"]
