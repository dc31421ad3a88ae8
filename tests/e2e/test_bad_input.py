"""Bad input to real commands: the exit status, one line that says what to change, no traceback.

Status 2 is bad input, 1 is everything else that fails. What the command line library itself refuses
(an option that there is not) is shown in its own form, with status 2 as well.
"""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from livemigration.v1 import source_node_pb2, source_node_pb2_grpc
from predump.result import Result
from predump.scenario import load_scenario
from tests.e2e.node import SCENARIO, Node, node, predump


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good scenario and files that are none."""
    folder = tmp_path_factory.mktemp("input")
    (folder / "good.toml").write_text(SCENARIO)
    (folder / "empty.toml").write_text("")
    (folder / "broken.toml").write_text('schema = "predump.scenario/1"\nname = nobody\n')
    (folder / "binary.toml").write_bytes(bytes(range(256)))
    (folder / "directory.toml").mkdir()
    (folder / "costs.toml").write_text(SCENARIO + "[costs]\nfreeze = true\n")
    (folder / "huge.toml").write_text(SCENARIO.replace("2MiB", "65GiB"))
    (folder / "images.toml").write_text(SCENARIO + '[source]\nimages = "none"\n')
    (folder / "no-dump.toml").write_text(SCENARIO + '[source]\nimages = "."\n')
    (folder / "trace.toml").write_text(
        'schema = "predump.scenario/1"\n[workload]\nkind = "trace"\nfile = "good.toml"\n'
    )
    return folder


# -- predump run: scenario files and options


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("none.toml", "there is no such file"),
        ("empty.toml", 'schema: missing; write schema = "predump.scenario/1"'),
        ("broken.toml", "line 2"),
        ("binary.toml", "is not UTF-8 text"),
        ("directory.toml", "is a directory"),
        ("costs.toml", "costs.freeze: true is no cost; write a whole number of nanoseconds"),
        ("huge.toml", "memory: 65GiB is more than a task can have; write at most 64GiB"),
        ("images.toml", "there is no such directory; name a directory of CRIU images"),
    ],
)
def test_run_names_the_file_and_what_is_wrong_with_it(folder: Path, file: str, says: str) -> None:
    ended = predump("run", folder / file)
    assert (ended.status, ended.out) == (2, "")
    assert ended.line().startswith(f"{folder / file}: ")
    assert says in ended.line()


@pytest.mark.parametrize(
    ("file", "says"),
    [("no-dump.toml", "inventory"), ("trace.toml", "good.toml: damaged at byte 0")],
)
def test_what_only_the_source_can_see_is_bad_input_too(folder: Path, file: str, says: str) -> None:
    ended = predump("run", folder / file)
    assert ended.status == 2
    line = ended.err.splitlines()[-1] if ended.err else ended.out.splitlines()[-1]
    assert line.startswith("predump: error: ")
    assert says in line


# -- nodes that are not there, or are something else


@dataclass(frozen=True)
class Peers:
    """What may listen at an address."""

    source: Node
    dest: Node
    web: str
    nobody: str


@contextmanager
def _web_server() -> Iterator[str]:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    folder = tmp_path_factory.mktemp("peers")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    with (
        node("source", folder) as source,
        node("dest", folder) as dest,
        _web_server() as web,
    ):
        yield Peers(source, dest, web, nobody)


@pytest.mark.parametrize("command", ["run", "migrate"])
@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nobody", "not reachable ("),
        ("web", "not reachable ("),
        ("dest", "no such Predump node is there (Method not found!); is this the right address?"),
        ("unknown", "not reachable ("),
    ],
)
def test_a_source_that_is_none_is_named(
    folder: Path, peers: Peers, command: str, source: str, says: str
) -> None:
    addresses = {
        "nobody": peers.nobody,
        "web": peers.web,
        "dest": peers.dest.address,
        "unknown": "host.invalid:7001",
    }
    address = addresses[source]
    scenario = (folder / "good.toml",) if command == "run" else ("--scenario", folder / "good.toml")
    ended = predump(command, *scenario, "--source", address, "--dest", peers.dest.address)
    assert ended.status == 1
    assert ended.err.startswith(f"predump: error: source {address}: {says}")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("dest", "says"),
    [
        ("nobody", "not reachable ("),
        ("web", "not reachable ("),
        ("source", "no such Predump node is there (Method not found!); is this the right address?"),
    ],
)
def test_a_destination_that_is_none_is_named_and_the_source_keeps_the_task(
    folder: Path, peers: Peers, dest: str, says: str
) -> None:
    address = {"nobody": peers.nobody, "web": peers.web, "source": peers.source.address}[dest]
    hosts = ("--source", peers.source.address, "--dest", address)
    ended = predump("run", folder / "good.toml", *hosts, "--json", "-")
    assert ended.status == 1
    result = Result.from_json(ended.out)
    assert result.owner == "source"
    assert result.error is not None
    assert result.error.startswith(f"destination {address} is lost: {says}")
    assert result.error.endswith("the source kept the task and resumed it")


def test_after_all_that_the_nodes_still_serve(folder: Path, peers: Peers) -> None:
    hosts = ("--source", peers.source.address, "--dest", peers.dest.address)
    ended = predump("migrate", *hosts, "--scenario", folder / "good.toml")
    assert ended.status == 0, ended.err


def test_a_source_with_a_task_says_so_and_keeps_it(folder: Path, peers: Peers) -> None:
    start = source_node_pb2.StartTaskRequest(clock="virtual")
    start.spec.update(load_scenario(folder / "good.toml").task.to_struct())
    with grpc.insecure_channel(peers.source.address) as channel:
        stub = source_node_pb2_grpc.SourceNodeStub(channel)
        stub.StartTask(start, timeout=30)
        hosts = ("--source", peers.source.address, "--dest", peers.dest.address)
        ended = predump("migrate", *hosts, "--scenario", folder / "good.toml")
        assert ended.status == 1
        assert ended.line() == (
            f"source {peers.source.address}: this host has a task already; stop it first"
        )
        assert stub.StopTask(source_node_pb2.StopTaskRequest(), timeout=30).running


# -- predump serve


@pytest.mark.parametrize("role", ["source", "dest"])
def test_a_port_in_use_is_named(peers: Peers, role: str) -> None:
    address = f"127.0.0.1:{peers.source.port}"
    ended = predump("serve", role, "--listen", address)
    assert (ended.status, ended.out) == (1, "")
    assert ended.line() == f"cannot listen on {address}: Address already in use"


def test_an_address_that_is_not_this_hosts_is_named() -> None:
    ended = predump("serve", "source", "--listen", "192.0.2.1:0")
    assert (ended.status, ended.out) == (1, "")
    assert ended.line() == "cannot listen on 192.0.2.1:0: Cannot assign requested address"
    ended = predump("serve", "source", "--listen", "host.invalid:0")
    assert (ended.status, ended.out) == (1, "")
    # What the resolver says after that differs from network to network.
    assert ended.line().startswith("cannot listen on host.invalid:0: ")


def test_a_port_file_that_cannot_be_written_is_named(folder: Path) -> None:
    ended = predump("serve", "dest", "--port-file", folder)
    assert (ended.status, ended.out) == (2, "")
    assert ended.line() == f"--port-file {folder}: is a directory; name a file in it"
    ended = predump("serve", "dest", "--port-file", "/proc/port")
    assert (ended.status, ended.out) == (1, "")
    assert ended.line().startswith("port file /proc/port: ")


def test_a_state_directory_that_cannot_be_is_named(folder: Path) -> None:
    ended = predump("serve", "dest", "--state-dir", folder / "good.toml")
    assert (ended.status, ended.out) == (1, "")
    assert ended.line() == f"state directory {folder / 'good.toml'}: File exists"


# -- predump watch


def test_watch_refuses_what_is_no_broker_address() -> None:
    ended = predump("watch", "--mqtt", "localhost:1883")
    assert (ended.status, ended.out) == (2, "")
    assert ended.line().startswith("--mqtt: broker URL 'localhost:1883' does not start with mqtt:")


def test_watch_gives_up_on_a_broker_that_is_not_there(peers: Peers) -> None:
    ended = predump("watch", "--mqtt", f"mqtt://{peers.nobody}", "--once", "--timeout", "0.5")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.splitlines() == [
        f"no broker at {peers.nobody} (Connection refused); trying again",
        f"gave up after 0.5 s without the broker at {peers.nobody}",
    ]


def test_watch_gives_up_on_what_is_no_broker(peers: Peers) -> None:
    ended = predump("watch", "--mqtt", f"mqtt://{peers.web}", "--once", "--timeout", "1")
    assert (ended.status, ended.out) == (1, "")
    first, last = ended.err.splitlines()
    assert first.startswith(f"no broker at {peers.web} (")
    assert last == f"gave up after 1 s without the broker at {peers.web}"


# -- predump workload


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "none"], "none: cannot read the trace: No such file or directory"),
        (["show", "."], ".: cannot read the trace: Is a directory"),
        (["show", "/dev/null"], "/dev/null: not a trace of `predump workload record`"),
        (["replay", "none"], "none: cannot read the trace: No such file or directory"),
        (["replay", "none", "--page-size", "5KiB"], "--page-size = 5KiB: it must be 4096, 16384"),
        (["record", "-o", "/no/file", "--", "true"], "/no/file: cannot write the trace: No such"),
        (["record", "--", "no-such-program"], "no-such-program: no such program; give a command"),
    ],
)
def test_workload_names_what_is_wrong(arguments: list[str], says: str) -> None:
    ended = predump("workload", *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert ended.line().startswith(says)


# -- what the command line library refuses


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "SCENARIO"),
        (["run", "a.toml", "--colour"], "--colour"),
        (["migrate", "--source", "a:1"], "--dest"),
        (["serve", "middle"], "middle"),
        (["serve", "source", "--state-dir", "x"], "--state-dir"),
        (["watch", "--timeout", "soon"], "--timeout"),
        (["workload", "replay", "t", "--speed", "fast"], "--speed"),
        (["workload", "record"], "CMD"),
        (["hunks", "all"], "all"),
    ],
)
def test_wrong_usage_is_status_2_and_names_the_word(arguments: list[str], says: str) -> None:
    ended = predump(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert says in ended.err
