"""Hostile clients of CRIU's RPC: ``python -m tests.fuzz.criu_rpc --seconds 600 [--seed N]``.

Each case is a function of its seed alone: a client (or some at once) that says sensible things,
sensible things with bytes changed, or nonsense; answers notifications wrongly or not at all; goes
away in the middle; and restores from images with bytes changed. After each case the service must
answer others as if nothing had been, have logged no error that it did not expect, and hold no more
descriptors and memory than before. The first case that fails is printed and ends the run.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import resource
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from livemigration.criu.pb import rpc_pb2
from livemigration.criu.rpc.client import RpcClient, RpcError
from livemigration.criu.rpc.service import MOST_CONNECTIONS, serving
from predump.criu_host.host import SimulatedHost

PID = 4711
PATIENCE_S = 30.0
MOST_SENT = 150_000
"""What a socket's buffer takes; the kernel refuses longer messages before anybody sees them."""
MOST_GROWTH = 128 << 20
MOST_DESCRIPTORS = 8
"""More than before a case: sockets and files of the interpreter's own that come and go."""

_NUMBERS = (-(2**31), -7, -1, 0, 1, 2, 3, 99, 4096, 2**31 - 1)
_TEXTS = ("", ".", "..", "../a", "a/b", "/", "\0", "x" * 5000, "é\n", "criu.log", "parent")
_GUARDED = frozenset({"images_dir", "ps", "stand_in", "control", "start"})
"""Where a random value could reach beyond the fuzzer's own folder; `_options` fills them."""


class Broken(Exception):
    """What a case did to the service."""


class Refused(Broken):
    """What a client that asked for something possible was refused."""


class Watcher(logging.Handler):
    """Keeps what the service logs as an error: it logs what it expects at lower levels."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one line."""
        self.lines.append(record.getMessage())


@contextmanager
def served(folder: Path) -> Iterator[Path]:
    """A service with one task, in a thread of its own."""
    path = folder / "criu.socket"
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(MOST_CONNECTIONS))
        host = SimulatedHost()
        async with serving(path, host):
            ready.set()
            await asyncio.to_thread(stop.wait)
        await host.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    if not ready.wait(600):
        raise Broken("the service did not start")
    try:
        yield path
    finally:
        stop.set()
        thread.join(60)
        if thread.is_alive():
            raise Broken("the service does not end")


class Fuzzer:
    """Runs cases against one service."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self.scenario = folder / "task.toml"
        self.scenario.write_text(
            'schema = "predump.scenario/1"\nmemory = "64KiB"\n'
            '[workload]\nkind = "uniform"\nrate = "100 pages/s"\n'
        )
        self.watcher = Watcher()
        logging.getLogger("livemigration.criu.rpc").addHandler(self.watcher)
        self.memory = 0
        self.patience_s = 600.0  # the model may have to be compiled
        self._ensure_task()
        self.good = folder / "good"
        self.good.mkdir()
        self._ask(
            type=rpc_pb2.RPC_DUMP,
            opts=rpc_pb2.RpcOptions(images_dir=str(self.good), pid=PID, leave_running=True),
        )
        self.patience_s = PATIENCE_S

    # -- one case

    def run(self, seed: int) -> None:
        """One case. Raises Broken."""
        rng = random.Random(seed)
        work = Path(tempfile.mkdtemp(prefix="case-", dir=self.folder))
        before = _descriptors()
        try:
            for _ in range(rng.choice((1, 1, 1, 3, 8))):
                self._client(rng, work)
            self._check(before)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _client(self, rng: random.Random, work: Path) -> None:
        """One connection of a client that may do anything."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(self.path))
            for _ in range(rng.choice((1, 1, 2, 4))):
                with suppress(BrokenPipeError, ConnectionResetError):
                    self._say(rng, client, self._message(rng, work))
                if rng.random() < 0.1 or not self._hear(rng, client):
                    return

    def _say(self, rng: random.Random, client: socket.socket, message: bytes) -> None:
        if rng.random() < 0.05:
            with suppress(OSError):  # too long for the socket's buffer
                client.send(message + bytes(rng.choice((300_000, 100_000))))
                return
        if rng.random() < 0.05:
            socket.send_fds(client, [message[:MOST_SENT] or b"x"], [0, 1, 2][: rng.randrange(1, 4)])
            return
        client.send(message[:MOST_SENT])

    def _hear(self, rng: random.Random, client: socket.socket) -> bool:
        """Answers and notifications; False when there will be no more."""
        while True:
            try:
                data = client.recv(1 << 18)
            except TimeoutError:
                return self._explain_silence()
            except ConnectionResetError:
                return False
            if not data:
                return False
            answer = rpc_pb2.RpcResponse.FromString(data)
            if answer.type != rpc_pb2.RPC_NOTIFY:
                return True
            reply = rpc_pb2.RpcRequest(type=rpc_pb2.RPC_NOTIFY, notify_success=rng.random() < 0.9)
            if rng.random() < 0.1:
                reply = rpc_pb2.RpcRequest(type=rng.randrange(0, 14))
            if rng.random() < 0.05:
                return False
            with suppress(BrokenPipeError, ConnectionResetError):
                client.send(_damaged(rng, reply.SerializeToString(), 0.05))

    def _explain_silence(self) -> bool:
        raise Broken(f"no answer within {PATIENCE_S:g} s, and the connection stays open")

    # -- messages

    def _message(self, rng: random.Random, work: Path) -> bytes:
        if rng.random() < 0.05:
            return rng.randbytes(rng.randrange(1, 200))
        request = rpc_pb2.RpcRequest()
        if rng.random() < 0.3:
            _fill(rng, request, 0.3)
        kinds = [value for value in rpc_pb2.RpcType.values() if value != rpc_pb2.RPC_WAIT_PID]
        request.type = rng.choice(kinds)
        if rng.random() < 0.1:
            # Of a task that is there it would be told only at its end.
            request.type, request.pid = rpc_pb2.RPC_WAIT_PID, rng.choice((0, 1, 17, 2**32 - 1))
        if rng.random() < 0.9:
            self._options(rng, request.opts, work)
        if rng.random() < 0.05:
            self._control(rng, request.control)
        return _damaged(rng, request.SerializeToString(), 0.15)

    def _options(self, rng: random.Random, options: rpc_pb2.RpcOptions, work: Path) -> None:
        if rng.random() < 0.3:
            _fill(rng, options, 0.1)
        images = work / rng.choice("abc")
        if rng.random() < 0.3 and not images.exists():
            self._copy_images(rng, images)
        images.mkdir(exist_ok=True)
        options.images_dir_fd = rng.choice((-1, -1, -1, -1, -5, 9999))
        options.images_dir = rng.choice((str(images),) * 6 + ("", str(work / "none")))
        options.pid = rng.choice((PID,) * 6 + _NUMBERS)
        if rng.random() < 0.4:
            options.parent_img = rng.choice(("../a", "../b", "../c", "..", "/dev/null", "\0", "a"))
        if rng.random() < 0.4:
            options.notify_scripts = True
        if rng.random() < 0.3:
            options.track_mem = True
        if rng.random() < 0.1:
            options.ps.port = rng.choice((0, 1, -1, 70000))
            options.ps.address = rng.choice(("127.0.0.1", "", "::1", "\0"))
            if rng.random() < 0.3:
                options.ps.fd = rng.choice((-1, 9999, 2**31 - 1))
        if rng.random() < 0.05:
            options.stand_in = rng.choice((-1, 0, 1, 2**31 - 1, os.getpid()))

    def _copy_images(self, rng: random.Random, images: Path) -> None:
        """Images that were good, with bytes changed in some files."""
        shutil.copytree(self.good, images)
        for file in images.iterdir():
            if rng.random() < 0.3:
                file.write_bytes(_damaged(rng, file.read_bytes(), 1.0))

    def _control(self, rng: random.Random, control: rpc_pb2.RpcControl) -> None:
        control.pid = rng.choice((PID + 1, 0, -1, 2**31 - 1))
        if rng.random() < 0.5:
            control.start = rng.choice((str(self.scenario), str(self.folder), "/none", "\0", "é"))
        control.advance_ns = rng.choice((0, 1, 10**6, 2**64 - 1))
        control.end = rng.random() < 0.3
        if rng.random() < 0.3:
            control.set.append(rng.choice(("seed=2", "seed=", "=", "memory=1", "\0=\0")))

    # -- what must hold afterwards

    def _check(self, before: int) -> None:
        if self.watcher.lines:
            raise Broken(f"an error that was not expected: {self.watcher.lines}")
        tasks = self._ensure_task()
        for task in tasks:
            if task.pid != PID:
                with suppress(Refused):  # its own client ended it meanwhile
                    self._ask(control=rpc_pb2.RpcControl(pid=task.pid, end=True))
        deadline = time.monotonic() + PATIENCE_S
        while _descriptors() > before + MOST_DESCRIPTORS:
            if time.monotonic() > deadline:
                raise Broken(f"{_descriptors()} descriptors, {before} before")
            time.sleep(0.01)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.memory = self.memory or used
        if used > self.memory + MOST_GROWTH:
            raise Broken(f"{used >> 20} MiB of memory, {self.memory >> 20} at first")

    def _ensure_task(self) -> list[rpc_pb2.RpcTask]:
        """All tasks; the one that cases are about is started anew if a case ended it.

        A case's client that is gone may still have a dump under way, so it is tried again.
        """
        deadline = time.monotonic() + self.patience_s
        while True:
            tasks = list(self._ask(control=rpc_pb2.RpcControl()).tasks)
            if any(task.pid == PID and task.running for task in tasks):
                return tasks
            if time.monotonic() > deadline:
                raise Broken("the task of the cases neither runs nor can be started")
            there = any(task.pid == PID for task in tasks)
            control = rpc_pb2.RpcControl(pid=PID, end=True)
            if not there:
                control = rpc_pb2.RpcControl(pid=PID, start=str(self.scenario))
            with suppress(Refused):
                self._ask(control=control)
            time.sleep(0.01)

    def _ask(self, **fields: Any) -> rpc_pb2.RpcResponse:
        """What a well-behaved client is answered. Raises Broken."""
        try:
            with RpcClient.connect(self.path) as client:
                client.socket.settimeout(self.patience_s)
                answer = client.ask(rpc_pb2.RpcRequest(**fields))
        except (OSError, RpcError) as error:
            raise Broken(f"a good client is not answered: {error}") from error
        if not answer.success:
            raise Refused(f"a good client is refused: {answer.cr_errmsg}")
        return answer


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _damaged(rng: random.Random, data: bytes, chance: float) -> bytes:
    """`data`, by that chance with some bytes changed, left out, doubled or added."""
    if rng.random() >= chance or not data:
        return data
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at:at] = rng.randbytes(rng.choice((1, 2, 9)))
            case 2:
                del changed[at : at + rng.choice((1, 2, 30))]
            case _:
                changed[at:at] = changed[at : at + 20]
    return bytes(changed)


def _fill(rng: random.Random, message: Message, chance: float) -> None:
    """Puts random values into a message's fields."""
    for field in message.DESCRIPTOR.fields:
        if field.name in _GUARDED or rng.random() >= chance:
            continue
        times = rng.choice((1, 2, 50)) if field.is_repeated else 1
        for _ in range(times):
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                inner = getattr(message, field.name)
                _fill(rng, inner.add() if field.is_repeated else inner, 0.5)
                continue
            value = _value(rng, field)
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)


def _value(rng: random.Random, field: FieldDescriptor) -> Any:
    match field.type:
        case FieldDescriptor.TYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.TYPE_STRING:
            return rng.choice(_TEXTS)
        case FieldDescriptor.TYPE_ENUM:
            return rng.choice(field.enum_type.values).number
        case FieldDescriptor.TYPE_INT32:
            return rng.choice(_NUMBERS)
        case _:
            return abs(rng.choice(_NUMBERS))


def fuzz(seconds: float, first: int, folder: Path) -> int:
    """Cases one after the other; returns how many. Raises Broken, with the seed."""
    with served(folder) as path:
        fuzzer = Fuzzer(path, folder)
        end = time.monotonic() + seconds
        seed = first
        while time.monotonic() < end or seed == first:
            try:
                fuzzer.run(seed)
            except (Broken, DecodeError) as broken:
                raise Broken(f"seed {seed}: {broken}") from broken
            seed += 1
        return seed - first


def main() -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=None, help="of the first case")
    given = parser.parse_args()
    first = given.seed if given.seed is not None else int(time.time()) << 20
    with tempfile.TemporaryDirectory(prefix="criu-rpc-") as folder:
        try:
            done = fuzz(given.seconds, first, Path(folder))
        except Broken as broken:
            print(f"criu-rpc: {broken}", file=sys.stderr)
            return 1
    print(f"criu-rpc: {done} cases from seed {first}: no crash, no hang, memory bounded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
