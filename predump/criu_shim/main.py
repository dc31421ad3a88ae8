"""The `criu` command: from its arguments to the service's answer, an exit status and lines.

Exit statuses and output are CRIU's: 0 for success, 1 for anything else; "Looks good." for a check,
``Version: 4.2.1`` for the version.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from livemigration.criu.pb import rpc_pb2
from livemigration.criu.rpc.client import RpcClient, RpcError
from livemigration.criu.rpc.host import DEFAULT_VERSION
from predump.criu_shim.arguments import COMMANDS, Arguments, UsageError, parse
from predump.criu_shim.errors import ShimError
from predump.criu_shim.features import KNOWN, has_feature
from predump.criu_shim.output import say_error
from predump.criu_shim.requests import options_of
from predump.criu_shim.scripts import Scripts
from predump.criu_shim.service_at import SOCKET_VARIABLE, connect
from predump.criu_shim.stand_in import stand_in

STAND_INS_VARIABLE: Final = "PREDUMP_CRIU_STAND_INS"

_USAGE: Final = f"""
Usage:
  criu dump|pre-dump -t PID [<options>]
  criu restore [<options>]
  criu check [--feature FEAT]
  criu page-server [<options>]
  criu dedup -D DIR

This is Predump's criu: its tasks are simulated, by the service whose socket {SOCKET_VARIABLE}
names (`predump criu service`). It takes the options of CRIU 4.2.
"""
_REQUESTS: Final = {
    "dump": rpc_pb2.RPC_DUMP,
    "pre-dump": rpc_pb2.RPC_SINGLE_PRE_DUMP,
    "restore": rpc_pb2.RPC_RESTORE,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["swrk"]:
            return _worker(argv[1:])
        return _run(parse(argv))
    except UsageError as error:
        print(f"criu: {error}", file=sys.stderr)
        print(_USAGE)
        return 1
    except (ShimError, RpcError) as error:
        say_error(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


def _worker(rest: Sequence[str]) -> int:
    if len(rest) != 1 or not rest[0].isdecimal():
        print("Usage: criu swrk <fd>", file=sys.stderr)
        return 1
    from predump.criu_shim.worker import serve

    return serve(int(rest[0]))


def _run(given: Arguments) -> int:
    if "version" in given.on:
        print(f"Version: {_version()}")
        return 0
    if "help" in given.on:
        print(_USAGE)
        return 0
    if not given.command:
        print(_USAGE)
        return 1
    if given.command not in COMMANDS:
        say_error(f"unknown command: {given.command}")
        print(_USAGE)
        return 1
    if given.rest and "exec-cmd" not in given.on and given.command != "cpuinfo":
        say_error(f"excessive parameters for command {given.command}")
        return 1
    match given.command:
        case "check":
            return _check(given)
        case "dump" | "pre-dump" | "restore":
            return _on_a_task(given)
        case "page-server":
            return _page_server(given)
        case "dedup":
            return _dedup(given)
        case "service":
            raise ShimError("simulated tasks are served by `predump criu service --socket PATH`")
        case _:
            raise ShimError(f"{given.command} is not there for simulated tasks")


def _version() -> str:
    """That of the service where there is one, since both must be the same."""
    if not os.environ.get(SOCKET_VARIABLE):
        return str(DEFAULT_VERSION)
    with connect() as service:
        version = service.ask(rpc_pb2.RpcRequest(type=rpc_pb2.RPC_VERSION)).version
    numbers = [version.major_number, version.minor_number]
    numbers += [version.sublevel] if version.sublevel else []
    return ".".join(map(str, numbers))


def _check(given: Arguments) -> int:
    for name in given.all("feature"):
        if name not in KNOWN:
            raise ShimError(f"Unknown feature {name}")
    if not given.all("feature"):
        with connect() as service:
            answer = service.ask(rpc_pb2.RpcRequest(type=rpc_pb2.RPC_CHECK))
        if not answer.success:
            say_error(answer.cr_errmsg)
            return 1
        print("Looks good.")
        return 0
    status = 0
    for name in given.all("feature"):
        with connect() as service:
            if has_feature(service, name):
                print(f"{name} is supported")
                continue
        print(f"Warn  (predump): {name} is not supported by the simulated host", file=sys.stderr)
        status = 1
    return status


# -- dumps and restores


class _Directories:
    """The directories of a command, open for the service, and its log."""

    def __init__(self, given: Arguments, stack: ExitStack) -> None:
        self.images = given.value("images-dir", ".")
        self.work = given.value("work-dir", self.images)
        self.images_fd = _open_directory(self.images, "image", stack)
        self.work_fd = _open_directory(self.work, "work", stack)
        self._log = given.value("log-file")
        self._temporary = ""

    def fill(self, options: rpc_pb2.RpcOptions, verbosity: int) -> None:
        """Puts directories and log into a request's options."""
        options.images_dir_fd = self.images_fd
        options.work_dir_fd = self.work_fd
        options.log_level = verbosity
        if not self._log:
            options.log_to_stderr = True
            return
        options.log_file = self._log
        if "/" in self._log:
            # A request's log has no directory: it is written beside the others and moved.
            number, path = tempfile.mkstemp(prefix="criu-", suffix=".log", dir=self.work)
            os.close(number)
            self._temporary = path
            options.log_file = os.path.basename(path)

    def finish(self) -> None:
        """Puts the log where it was asked for."""
        if not self._temporary:
            return
        target = Path(self.work, self._log)
        try:
            shutil.move(self._temporary, target)
        except OSError as error:
            say_error(f"Can't write the log {target}: {error.strerror}")

    def write_pid(self, file: str, pid: int) -> None:
        """``--pidfile``, a new file in the work directory. Raises ShimError."""
        try:
            with Path(self.work, file).open("x") as opened:
                opened.write(str(pid))
        except OSError as error:
            raise ShimError(f"Can't write pidfile {file}: {error.strerror}") from error


def _open_directory(path: str, what: str, stack: ExitStack) -> int:
    try:
        number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ShimError(f"Couldn't open {what} dir {path}: {error.strerror}") from error
    stack.callback(os.close, number)
    return number


def _on_a_task(given: Arguments) -> int:
    restoring = given.command == "restore"
    if not restoring and "tree" not in given.values:
        raise ShimError("pid not specified")
    if restoring and "restore-sibling" in given.on and "restore-detached" not in given.on:
        raise ShimError("--restore-sibling only makes sense with --restore-detached")
    options = options_of(given)
    with ExitStack() as stack:
        directories = _Directories(given, stack)
        directories.fill(options, given.verbosity)
        service = stack.enter_context(connect())
        stack.callback(directories.finish)
        scripts = Scripts(given.all("action-script"), directories.images, options.pid)
        options.notify_scripts = bool(scripts.paths)
        standing = None
        if restoring and ("restore-sibling" in given.on or os.environ.get(STAND_INS_VARIABLE)):
            standing = stack.enter_context(stand_in(sibling="restore-sibling" in given.on))
            options.stand_in = standing.pid
        _tell_ready(given)
        request = rpc_pb2.RpcRequest(type=_REQUESTS[given.command], opts=options)
        answer = service.ask(request, scripts.run)
        if not answer.success:
            if options.log_to_stderr:
                say_error(answer.cr_errmsg)
            return 1
        if not restoring:
            return 0
        if standing is not None:
            standing.go()
        if "pidfile" in given.values:
            directories.write_pid(given.value("pidfile"), answer.restore.pid)
    if "restore-detached" in given.on:
        return 0
    with connect() as service:
        return _waited(service, answer.restore.pid)


def _tell_ready(given: Arguments) -> None:
    """``--status-fd``: somebody waits for a byte there before going on."""
    number = given.number("status-fd", least=0, most=1 << 20)
    if number is not None:
        with suppress(OSError):
            os.write(number, b"\0")
            os.close(number)


def _waited(service: RpcClient, pid: int) -> int:
    """Waits for the end of a task or page server; how it went, as an exit status."""
    answer = service.ask(rpc_pb2.RpcRequest(type=rpc_pb2.RPC_WAIT_PID, pid=pid))
    if not answer.success:
        say_error(answer.cr_errmsg)
        return 1
    return os.waitstatus_to_exitcode(answer.status) & 0xFF


def _page_server(given: Arguments) -> int:
    options = options_of(given)
    background = "restore-detached" in given.on
    with ExitStack() as stack:
        directories = _Directories(given, stack)
        directories.fill(options, given.verbosity)
        service = stack.enter_context(connect())
        stack.callback(directories.finish)
        kind = rpc_pb2.RPC_PAGE_SERVER if background else rpc_pb2.RPC_PAGE_SERVER_CHLD
        answer = service.ask(rpc_pb2.RpcRequest(type=kind, opts=options))
        if not answer.success:
            say_error(answer.cr_errmsg)
            return 1
        if "pidfile" in given.values:
            directories.write_pid(given.value("pidfile"), answer.ps.pid)
        _tell_ready(given)
        if background:
            return 0
        with connect() as waiting:
            return _waited(waiting, answer.ps.pid)


def _dedup(given: Arguments) -> int:
    # These bring NumPy along, which other commands need not wait for.
    from livemigration.criu.dedup import dedup
    from livemigration.criu.survey import survey
    from livemigration.errors import MigrationError

    folder = Path(given.value("images-dir", "."))
    if not (folder / "parent").exists():
        return 0  # nothing that it could have twice
    try:
        dedup(folder, survey(folder, None, None).page_size)
    except MigrationError as error:
        raise ShimError(str(error)) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
