"""``predump criu service``, ``tasks`` and ``shim``: a simulated host for tools that drive CRIU."""

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from predump.command import explained_errors, unexpected
from predump.exit_status import BAD_INPUT, FAILED

if TYPE_CHECKING:
    from livemigration.criu.rpc.host import Version

Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
Socket = Annotated[
    Path,
    typer.Option(
        "--socket",
        metavar="PATH",
        envvar="PREDUMP_CRIU_SOCKET",
        help="The service's socket; default: what PREDUMP_CRIU_SOCKET says.",
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the scenarios; repeatable."),
]


def _explained(error: Exception) -> tuple[str, int]:
    from livemigration.criu.rpc.client import NoService, RpcError
    from livemigration.criu.rpc.errors import RpcFailure
    from livemigration.criu.rpc.service import CannotServe
    from livemigration.errors import MigrationError
    from predump.criu_shim.errors import ShimError
    from predump.overrides import OverrideError
    from predump.scenario import ScenarioError

    if isinstance(error, ScenarioError | OverrideError | typer.BadParameter):
        return str(error), BAD_INPUT
    if isinstance(error, RpcFailure | CannotServe | NoService | RpcError | ShimError):
        return str(error), FAILED
    if isinstance(error, MigrationError):
        return str(error), FAILED
    return unexpected(error)


def service_command(
    socket: Socket,
    scenario: Annotated[
        list[Path] | None,
        typer.Option("--scenario", metavar="FILE", help="A task to start with; repeatable."),
    ] = None,
    sets: Sets = None,
    pid: Annotated[
        int, typer.Option(min=1, max=(1 << 31) - 1, help="Pid of the first task; others follow.")
    ] = 1000,
    adopt: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Make a task of this scenario for each real process that a client names, and "
            "kill the process when the task is dumped away.",
        ),
    ] = None,
    step: Annotated[
        str, typer.Option(metavar="TIME", help="A task on the virtual clock runs so long per dump.")
    ] = "100ms",
    criu_version: Annotated[
        str, typer.Option(metavar="X.Y.Z", help="The version of CRIU to answer as.")
    ] = "4.2.1",
    dirty_tracking: Annotated[
        bool,
        typer.Option(
            "--dirty-tracking/--no-dirty-tracking",
            help="Be a kernel with or without soft-dirty: tools must do without pre-dumps then.",
        ),
    ] = True,
    debug: Debug = False,
) -> None:
    """Be a host with simulated tasks that tools check, dump and restore by CRIU's RPC."""
    with explained_errors(_explained, debug=debug):
        from livemigration.units import parse_time_ns
        from predump.criu_host.host import HostConfig
        from predump.criu_host.serve import serve_host
        from predump.overrides import parse_override
        from predump.scenario import load_scenario

        overrides = [parse_override(text) for text in sets or []]
        scenarios = [
            (load_scenario(file, overrides), pid + number)
            for number, file in enumerate(scenario or [])
        ]
        try:
            step_ns = parse_time_ns(step)
        except ValueError as error:
            raise typer.BadParameter(f"--step: {error}") from error
        version = _version(criu_version)
        config = HostConfig(
            version=version,
            mem_track=dirty_tracking,
            adopt=load_scenario(adopt, overrides) if adopt is not None else None,
            step_ns=step_ns,
            dialect="4.2" if (version.major, version.minor) >= (4, 2) else "4.1",
        )
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        asyncio.run(serve_host(socket, config, scenarios, _say))


def tasks_command(
    socket: Socket,
    start: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Start one more task, of this scenario.")
    ] = None,
    sets: Sets = None,
    pid: Annotated[
        int | None, typer.Option(help="The new task's pid, or of the task to advance or end.")
    ] = None,
    advance: Annotated[
        str, typer.Option(metavar="TIME", help="Let a task on the virtual clock run so long.")
    ] = "",
    end: Annotated[bool, typer.Option("--end", help="End the task.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON list.")] = False,
    debug: Debug = False,
) -> None:
    """Show the tasks of a running service; start, advance or end one."""
    with explained_errors(_explained, debug=debug):
        from livemigration.criu.pb import rpc_pb2
        from livemigration.criu.rpc.client import RpcClient
        from livemigration.criu.rpc.errors import RpcFailure
        from livemigration.units import format_size, parse_time_ns

        control = rpc_pb2.RpcControl(set=sets or [], end=end)
        if start is not None:
            control.start = str(start.absolute())
        elif pid is None and (end or advance):
            raise typer.BadParameter("--advance and --end need --pid, the task's")
        if pid is not None:
            control.pid = pid
        if advance:
            try:
                control.advance_ns = parse_time_ns(advance)
            except ValueError as error:
                raise typer.BadParameter(f"--advance: {error}") from error
        with RpcClient.connect(socket) as client:
            answer = client.ask(rpc_pb2.RpcRequest(type=rpc_pb2.RPC_EMPTY, control=control))
        if not answer.success:
            raise RpcFailure(answer.cr_errmsg.removeprefix("Error (predump): "))
        if as_json:
            typer.echo(json.dumps([_as_map(task) for task in answer.tasks]))
            return
        for task in answer.tasks:
            state = "running" if task.running else "stopped"
            typer.echo(
                f"{task.pid:>8}  {task.name}  {format_size(task.memory)}  {task.clock}  {state}  "
                f"{task.ran_ns / 1e9:.3f} s, {task.operations} operations"
            )


def shim_command(
    ctx: typer.Context,
    install: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write an executable `criu` into DIR, for PATH."),
    ] = None,
    socket: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="With --install: the service that it asks by default."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Be `criu` (dump, pre-dump, restore, check, page-server, swrk ...) for simulated tasks."""
    with explained_errors(_explained, debug=debug):
        if install is not None:
            from predump.criu_shim.install import install as write_command

            typer.echo(str(write_command(install, socket)))
            return
        from predump.criu_shim.main import main

        raise typer.Exit(main(ctx.args))


SHIM_SETTINGS = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "allow_interspersed_args": False,
}
"""For `shim_command`: what is not an option of its own is criu's."""


def _as_map(task: object) -> dict[str, object]:
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import Message

    assert isinstance(task, Message)
    numbers = ("memory", "ran_ns", "operations")  # 64 bits, which protobuf's JSON has as text
    named = MessageToDict(task, preserving_proto_field_name=True)
    return {key: int(value) if key in numbers else value for key, value in named.items()}


def _version(text: str) -> "Version":
    parts = text.split(".")
    if not 2 <= len(parts) <= 3 or not all(p.isascii() and p.isdecimal() for p in parts):
        raise typer.BadParameter(f"--criu-version: {text!r} is no version; write 4.2.1")
    major, minor, sublevel = (int(p) for p in [*parts, "0"][:3])
    from livemigration.criu.rpc.host import Version

    return Version(major, minor, sublevel)


def _say(line: str) -> None:
    typer.echo(line)
    sys.stdout.flush()
