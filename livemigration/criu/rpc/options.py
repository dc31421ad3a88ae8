"""A request's options, checked, with its directories open: what a host is asked to do.

Descriptors are numbers in the client's table of open files: they are opened through
``/proc/PID/fd/N`` of the peer, as CRIU does (criu/cr-service.c), which the kernel lets only those
do who may look into that process. Whatever is wrong is `BadOptions` (EBADRQC), as there.

Options about what a simulated task does not have - terminals, sockets, mounts, cgroups, security
labels - are accepted and have no effect, but those that cannot be are refused.

Texts of CRIU's messages are bytes to CRIU, and protobuf gives those that are no UTF-8 as bytes:
`os.fsdecode` takes both.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from livemigration.criu.pb import rpc_pb2
from livemigration.criu.rpc.errors import BadOptions
from livemigration.criu.rpc.log import RequestLog
from livemigration.criu.rpc.packets import Peer

DEFAULT_LOG_FILE = "criu.log"
MOST_LOG_LEVEL = 4
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class PageServerAt:
    """A page server: an address and port, or an open connection to it (`fd` of process `pid`)."""

    address: str
    port: int
    fd: int = -1
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a host.

    images, work: paths of directories that stay open (and these paths good) while the request is
    served; `parent` is the parent's path relative to `images`, "" for none; `pid` the task's;
    `stand_in`: a real process that a restored task shall have the pid of, 0 for none.
    """

    pid: int
    images: Path
    work: Path
    parent: str
    track_mem: bool
    leave_running: bool
    leave_stopped: bool
    auto_dedup: bool
    lazy_pages: bool
    read_mode: bool
    page_server: PageServerAt | None
    notify: bool
    has_net: bool
    stand_in: int


@contextmanager
def opened(
    options: rpc_pb2.RpcOptions, peer: Peer, *, wants_images: bool = True
) -> Iterator[tuple[Request, RequestLog]]:
    """The request that `options` of `peer` make, and its log. Raises BadOptions."""
    with contextlib.ExitStack() as stack:
        images_fd = _images_directory(options, peer, stack) if wants_images else -1
        work_fd = images_fd
        if options.HasField("work_dir_fd"):
            work_fd = _peer_directory(peer, options.work_dir_fd, "work_dir_fd", stack)
        log = _log(options, work_fd, stack)
        try:
            request = _request(options, peer, images_fd, work_fd)
        except BadOptions as error:
            log.error(error.message)
            raise
        yield request, log


def _request(options: rpc_pb2.RpcOptions, peer: Peer, images: int, work: int) -> Request:
    if options.inherit_fd:
        raise BadOptions("inherit_fd is not allowed in standalone service")
    if options.rst_sibling:
        raise BadOptions("rst_sibling is not allowed in standalone service")
    if options.empty_ns & ~_CLONE_NEWNET:
        raise BadOptions(f"empty_ns {options.empty_ns:#x}: only the network namespace can be empty")
    pid = options.pid if options.HasField("pid") else peer.pid
    if pid <= 0:
        raise BadOptions(f"pid {pid} is no process")
    if options.HasField("stand_in"):
        _check_stand_in(options.stand_in, peer)
    parent = os.fsdecode(options.parent_img)
    if "\0" in parent:
        raise BadOptions("parent_img is no path")
    return Request(
        pid=pid,
        images=_path_of(images),
        work=_path_of(work),
        parent=parent,
        track_mem=options.track_mem,
        leave_running=options.leave_running,
        leave_stopped=options.leave_stopped,
        auto_dedup=options.auto_dedup,
        lazy_pages=options.lazy_pages,
        read_mode=options.pre_dump_mode == rpc_pb2.RPC_VM_READ,
        page_server=_page_server(options, peer),
        notify=options.notify_scripts,
        has_net=bool(options.empty_ns & _CLONE_NEWNET),
        stand_in=options.stand_in,
    )


def _check_stand_in(pid: int, peer: Peer) -> None:
    """The process is killed with its task, so it must be one that the client made for that."""
    parent = _parent_of(pid)
    if parent <= 0 or pid == peer.pid or parent not in (peer.pid, _parent_of(peer.pid)):
        raise BadOptions(f"stand_in {pid} is neither a child of the client nor of its parent")


def _parent_of(pid: int) -> int:
    """The parent of a process; -1 if it is no process."""
    try:
        # The name, in parentheses, may hold anything.
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
        return int(after_name.split()[1])
    except (OSError, ValueError, IndexError):
        return -1


def _page_server(options: rpc_pb2.RpcOptions, peer: Peer) -> PageServerAt | None:
    if not options.HasField("ps"):
        return None
    server = options.ps
    if server.HasField("fd"):
        return PageServerAt("", 0, server.fd, peer.pid)
    if not 0 <= server.port < 1 << 16:
        raise BadOptions(f"port {server.port} of the page server is no port")
    return PageServerAt(os.fsdecode(server.address), server.port)


def _images_directory(options: rpc_pb2.RpcOptions, peer: Peer, stack: contextlib.ExitStack) -> int:
    if options.images_dir_fd != -1:
        return _peer_directory(peer, options.images_dir_fd, "images_dir_fd", stack)
    if options.images_dir:
        return _directory(os.fsdecode(options.images_dir), "images_dir", stack)
    raise BadOptions("neither images_dir_fd nor images_dir was given")


def _peer_directory(peer: Peer, number: int, option: str, stack: contextlib.ExitStack) -> int:
    if number < 0:
        raise BadOptions(f"{option} {number} is no descriptor")
    return _directory(f"/proc/{peer.pid}/fd/{number}", f"{option} {number}", stack)


def _directory(path: str, option: str, stack: contextlib.ExitStack) -> int:
    try:
        number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadOptions(f"can't open {option} ({path}): {why}") from error
    stack.callback(os.close, number)
    return number


def _path_of(number: int) -> Path:
    """A path that leads to an open directory: its name if that is still true, else its number."""
    if number < 0:
        return Path()
    by_number = Path(f"/proc/self/fd/{number}")
    with contextlib.suppress(OSError):
        by_name = Path(os.readlink(by_number))
        if os.path.samestat(os.stat(by_name), os.fstat(number)):
            return by_name
    return by_number


def _log(options: rpc_pb2.RpcOptions, work: int, stack: contextlib.ExitStack) -> RequestLog:
    level = max(0, min(options.log_level, MOST_LOG_LEVEL))
    if work < 0 or (options.log_to_stderr and not options.log_file):
        return RequestLog(level)
    name = os.fsdecode(options.log_file) or DEFAULT_LOG_FILE
    if "/" in name or "\0" in name or name in (".", ".."):
        raise BadOptions(f"log_file {name!r}: no subdirs are allowed in a log's name")
    try:
        log = RequestLog.create(work, name, level)
    except OSError as error:
        raise BadOptions(f"can't write the log {name}: {error.strerror}") from error
    stack.callback(log.close)
    return log
