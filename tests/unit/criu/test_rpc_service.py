"""CRIU's RPC as a client sees it: what is answered, what is notified, what ends a connection."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from livemigration.criu.pb import rpc_pb2
from livemigration.criu.rpc.client import NoService, RpcClient, RpcError
from livemigration.criu.rpc.errors import RpcFailure
from livemigration.criu.rpc.host import Features, Notifier, PageServerIs, Version
from livemigration.criu.rpc.log import RequestLog
from livemigration.criu.rpc.options import Request
from livemigration.criu.rpc.service import CannotServe, Service, listen_at, serving

T = TypeVar("T")


class Recorder:
    """A host of which only the protocol matters: it notes what is asked and does as it is told."""

    def __init__(self) -> None:
        self.version = Version(4, 2, 1)
        self.features = Features(mem_track=True, lazy_pages=False, pidfd_store=False)
        self.asked: list[tuple[str, Request]] = []
        self.failure: RpcFailure | None = None
        self.points: tuple[str, ...] = ()

    async def _did(self, what: str, request: Request, journal: RequestLog) -> None:
        self.asked.append((what, request))
        journal.info(f"{what} of {request.pid}")
        if self.failure is not None:
            raise self.failure

    async def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def pre_dump(self, request: Request, journal: RequestLog) -> None:
        await self._did("pre-dump", request, journal)

    async def dump(self, request: Request, journal: RequestLog, notify: Notifier) -> None:
        for point in self.points:
            await notify.reached(point)
        await self._did("dump", request, journal)

    async def restore(self, request: Request, journal: RequestLog, notify: Notifier) -> int:
        await notify.reached("setup-namespaces", 4711)
        await self._did("restore", request, journal)
        return 4711

    async def start_page_server(self, request: Request, journal: RequestLog) -> PageServerIs:
        await self._did("page-server", request, journal)
        return PageServerIs(17, 1234)

    async def control(self, control: rpc_pb2.RpcControl) -> list[rpc_pb2.RpcTask]:
        return [rpc_pb2.RpcTask(pid=control.pid)]

    async def wait(self, pid: int) -> int:
        if pid != 17:
            raise RpcFailure(f"no process {pid} to wait for", errno.ECHILD)
        return 9


@asynccontextmanager
async def served(folder: Path, **options: Any) -> AsyncIterator[tuple[Path, Recorder]]:
    host = Recorder()
    path = folder / "criu.socket"
    listener = listen_at(path)
    task = asyncio.create_task(Service(host, **options).serve(listener))
    try:
        yield path, host
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        listener.close()


async def asked(path: Path, talk: Callable[[RpcClient], T]) -> T:
    """What `talk` returns, as a client on a connection of its own."""

    def run() -> T:
        with RpcClient.connect(path) as client:
            client.socket.settimeout(20)
            return talk(client)

    return await asyncio.to_thread(run)


def options(folder: Path, **more: Any) -> rpc_pb2.RpcOptions:
    return rpc_pb2.RpcOptions(images_dir=str(folder), log_level=4, **more)


def request(kind: str, **fields: Any) -> rpc_pb2.RpcRequest:
    return rpc_pb2.RpcRequest(type=rpc_pb2.RpcType.Value(f"RPC_{kind}"), **fields)


async def test_version_and_features(tmp_path: Path) -> None:
    async with served(tmp_path) as (path, _):
        version = (await asked(path, lambda c: c.ask(request("VERSION")))).version
        assert (version.major_number, version.minor_number, version.sublevel) == (4, 2, 1)
        # As CRIU: all three are answered, and one that was not asked for is "no".
        wanted = rpc_pb2.RpcFeatures(mem_track=True, lazy_pages=True)
        answer = await asked(path, lambda c: c.ask(request("FEATURE_CHECK", features=wanted)))
        assert answer.success
        assert (answer.features.mem_track, answer.features.lazy_pages) == (True, False)
        assert answer.features.HasField("pidfd_store")
        answer = await asked(path, lambda c: c.ask(request("FEATURE_CHECK")))
        assert not answer.features.mem_track


async def test_check_needs_no_directory_and_says_why_it_fails(tmp_path: Path) -> None:
    async with served(tmp_path) as (path, host):
        assert (await asked(path, lambda c: c.ask(request("CHECK")))).success
        host.failure = RpcFailure("the kernel is too old", errno.ENOSYS)
        answer = await asked(path, lambda c: c.ask(request("CHECK")))
        assert not answer.success
        assert answer.cr_errno == errno.ENOSYS
        assert answer.cr_errmsg == "Error (predump): the kernel is too old"


async def test_keep_open_serves_more_requests_where_criu_allows_it(tmp_path: Path) -> None:
    async with served(tmp_path) as (path, _):

        def several(client: RpcClient) -> list[int]:
            kinds = [request("VERSION", keep_open=True), request("FEATURE_CHECK", keep_open=True)]
            return [client.ask(one).type for one in [*kinds, request("CHECK")]]

        assert await asked(path, several) == [rpc_pb2.RPC_VERSION, 9, rpc_pb2.RPC_CHECK]

        def once(client: RpcClient) -> None:
            client.ask(request("VERSION"))
            client.ask(request("VERSION"))

        with pytest.raises(RpcError):
            await asked(path, once)
        with pytest.raises(RpcError, match="without an answer"):
            await asked(path, lambda c: c.ask(request("DUMP", keep_open=True)))


async def test_pre_dumps_follow_each_other_up_to_the_dump(tmp_path: Path) -> None:
    async with served(tmp_path) as (path, host):
        opts = options(tmp_path, pid=5)

        def loop(client: RpcClient) -> list[int]:
            kinds = ["PRE_DUMP", "PRE_DUMP", "DUMP"]
            return [client.ask(request(kind, opts=opts)).type for kind in kinds]

        assert await asked(path, loop) == [4, 4, 1]
        assert [what for what, _ in host.asked] == ["pre-dump", "pre-dump", "dump"]

        def other(client: RpcClient) -> rpc_pb2.RpcResponse:
            client.ask(request("PRE_DUMP", opts=opts))
            return client.ask(request("RESTORE", opts=opts))

        answer = await asked(path, other)
        assert answer.type == rpc_pb2.RPC_EMPTY
        assert "Bad req seq" in answer.cr_errmsg

        def single(client: RpcClient) -> rpc_pb2.RpcResponse:
            assert client.ask(request("SINGLE_PRE_DUMP", opts=opts)).type == 13
            return client.ask(request("DUMP", opts=opts))

        with pytest.raises(RpcError):
            await asked(path, single)


async def test_a_client_is_asked_at_each_point_only_if_it_wants_that(tmp_path: Path) -> None:
    async with served(tmp_path) as (path, host):
        host.points = ("pre-dump", "post-dump")
        told: list[tuple[str, int]] = []

        def notified(point: str, pid: int) -> bool:
            told.append((point, pid))
            return point != "setup-namespaces"

        wants = options(tmp_path, notify_scripts=True)
        assert (await asked(path, lambda c: c.ask(request("DUMP", opts=wants), notified))).success
        assert told == [("pre-dump", 0), ("post-dump", 0)]
        answer = await asked(path, lambda c: c.ask(request("RESTORE", opts=wants), notified))
        assert told[-1] == ("setup-namespaces", 4711)
        assert not answer.success  # the client said no
        assert answer.restore.pid == -1
        told.clear()
        quiet = options(tmp_path)
        assert (
            await asked(path, lambda c: c.ask(request("RESTORE", opts=quiet)))
        ).restore.pid == 4711
        assert told == []


async def test_directories_are_the_clients_own_descriptors(tmp_path: Path) -> None:
    images, work = tmp_path / "images", tmp_path / "work"
    images.mkdir()
    work.mkdir()
    numbers = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for folder in (images, work)]
    try:
        async with served(tmp_path) as (path, host):
            opts = rpc_pb2.RpcOptions(
                images_dir_fd=numbers[0], work_dir_fd=numbers[1], log_file="a.log", log_level=4
            )
            assert (await asked(path, lambda c: c.ask(request("DUMP", opts=opts)))).success
            asked_for = host.asked[0][1]
            assert (asked_for.images, asked_for.work) == (images, work)
            assert asked_for.pid == os.getpid()  # none given: the client itself
            log = (work / "a.log").read_text()
            assert f") dump of {os.getpid()}\n" in log
            assert log.startswith("(00.0")
    finally:
        for number in numbers:
            os.close(number)


@pytest.mark.parametrize(
    ("opts", "why"),
    [
        (rpc_pb2.RpcOptions(), "neither images_dir_fd nor images_dir"),
        (rpc_pb2.RpcOptions(images_dir_fd=9999), "can't open images_dir_fd 9999"),
        (rpc_pb2.RpcOptions(images_dir_fd=-7), "images_dir_fd -7 is no descriptor"),
        (rpc_pb2.RpcOptions(images_dir="/nowhere"), "No such file or directory"),
        (rpc_pb2.RpcOptions(images_dir="/", log_file="../x"), "no subdirs are allowed"),
        (rpc_pb2.RpcOptions(images_dir="/tmp", log_file="l", rst_sibling=True), "rst_sibling"),
        (rpc_pb2.RpcOptions(images_dir="/tmp", log_file="l", pid=-4), "pid -4 is no process"),
        (
            rpc_pb2.RpcOptions(
                images_dir="/tmp", log_file="l", ps=rpc_pb2.RpcPageServer(port=70000)
            ),
            "port 70000",
        ),
    ],
)
async def test_bad_options_are_ebadrqc(tmp_path: Path, opts: rpc_pb2.RpcOptions, why: str) -> None:
    if opts.log_file == "l":
        opts = rpc_pb2.RpcOptions.FromString(opts.SerializeToString())
        opts.images_dir = str(tmp_path)
    async with served(tmp_path) as (path, host):
        for kind in ("DUMP", "PRE_DUMP", "RESTORE", "PAGE_SERVER"):
            ask = request(kind, opts=opts)
            answer = await asked(path, lambda c, ask=ask: c.ask(ask))  # type: ignore[misc]
            # Pre-dumps and page servers have no errno in real CRIU either.
            number = errno.EBADRQC if kind in ("DUMP", "RESTORE") else 0
            assert (answer.success, answer.cr_errno) == (False, number)
            assert why in answer.cr_errmsg
        assert host.asked == []


async def test_names_that_are_no_utf8_are_names(tmp_path: Path) -> None:
    images = tmp_path / os.fsdecode(b"im\xffages")
    images.mkdir()
    async with served(tmp_path) as (path, host):

        def ask(folder: bytes) -> rpc_pb2.RpcResponse:
            # Field 68, images_dir, and 10, log_file, as a program in C puts them there.
            body = b"\xa2\x04" + bytes([len(folder)]) + folder + b"\x52\x02l\xfe"
            raw = b"\x08\x01\x12" + bytes([len(body)]) + body
            with RpcClient.connect(path) as client:
                client.socket.settimeout(20)
                client.socket.sendall(raw)
                return client.receive()

        assert (await asyncio.to_thread(ask, os.fsencode(images))).success
        assert host.asked[0][1].images == images
        assert os.listdir(os.fsencode(images)) == [b"l\xfe"]
        answer = await asyncio.to_thread(ask, b"/no\xffwhere")
        assert "no\\udcffwhere" in answer.cr_errmsg


async def test_a_failure_is_told_and_logged(tmp_path: Path) -> None:
    async with served(tmp_path) as (path, host):
        host.failure = RpcFailure("no task 5 here", errno.ESRCH)
        opts = options(tmp_path, pid=5)
        answer = await asked(path, lambda c: c.ask(request("DUMP", opts=opts)))
        assert (answer.type, answer.success, answer.cr_errno) == (1, False, errno.ESRCH)
        assert answer.cr_errmsg == "Error (predump): no task 5 here"
        assert "Error (predump): Dumping FAILED." in (tmp_path / "criu.log").read_text()


async def test_page_server_and_wait(tmp_path: Path) -> None:
    async with served(tmp_path) as (path, _):
        ask = request("PAGE_SERVER_CHLD", opts=options(tmp_path), keep_open=True)

        def talk(client: RpcClient) -> tuple[int, int, int]:
            answer = client.ask(ask)
            waited = client.ask(request("WAIT_PID", pid=answer.ps.pid))
            return answer.type, answer.ps.port, waited.status

        assert await asked(path, talk) == (rpc_pb2.RPC_PAGE_SERVER, 1234, 9)
        answer = await asked(path, lambda c: c.ask(request("WAIT_PID", pid=1)))
        assert not answer.success
        assert "no process 1 to wait for" in answer.cr_errmsg


async def test_cpuinfo_is_refused_and_nonsense_too(tmp_path: Path) -> None:
    async with served(tmp_path) as (path, _):
        answer = await asked(path, lambda c: c.ask(request("CPUINFO_CHECK")))
        assert (answer.success, answer.cr_errno) == (False, errno.ENOTSUP)
        for raw in (b"\x08\x63", b"\x10\x01", request("EMPTY").SerializeToString()):

            def nonsense(client: RpcClient, raw: bytes = raw) -> rpc_pb2.RpcResponse:
                client.socket.sendall(raw)
                return client.receive()

            answer = await asked(path, nonsense)
            assert (answer.type, answer.success) == (rpc_pb2.RPC_EMPTY, False)
            assert "Invalid req" in answer.cr_errmsg


@pytest.mark.parametrize("raw", [b"\xff" * 40, b"\x0a\xff", b"\x12\x7f\x01"])
async def test_what_is_no_message_ends_only_its_own_connection(tmp_path: Path, raw: bytes) -> None:
    async with served(tmp_path) as (path, _):

        def talk(client: RpcClient) -> None:
            client.socket.sendall(raw)
            client.receive()

        with pytest.raises(RpcError):
            await asked(path, talk)
        assert (await asked(path, lambda c: c.ask(request("CHECK")))).success


async def test_unknown_fields_are_let_through(tmp_path: Path) -> None:
    async with served(tmp_path) as (path, host):
        raw = options(tmp_path, pid=5).SerializeToString() + b"\xfa\xff\x03\x02hi"
        opts = rpc_pb2.RpcOptions.FromString(raw)
        assert (await asked(path, lambda c: c.ask(request("DUMP", opts=opts)))).success
        assert host.asked[0][1].pid == 5


async def test_more_clients_than_allowed_are_turned_away(tmp_path: Path) -> None:
    async with served(tmp_path, most_connections=1) as (path, _):
        with RpcClient.connect(path):
            await asyncio.sleep(0.05)
            with pytest.raises(RpcError):
                await asked(path, lambda c: c.ask(request("CHECK")))
        await asyncio.sleep(0.05)
        assert (await asked(path, lambda c: c.ask(request("CHECK")))).success


async def test_the_socket_is_this_users_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "criu.socket"
    async with serving(path, Recorder()):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(CannotServe, match="another service listens there"):
            listen_at(path)
    assert not path.exists()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left_behind:
        left_behind.bind(str(path))
    with pytest.raises(NoService, match="predump criu service"):
        RpcClient.connect(path)
    async with serving(path, Recorder()):
        assert (await asked(path, lambda c: c.ask(request("CHECK")))).success
    path.write_text("mine")
    with pytest.raises(CannotServe, match="is no socket"):
        listen_at(path)
