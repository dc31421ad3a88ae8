"""The ``predump`` command. Each command reads its input, calls what a library user would call,
and shows the outcome.

Exit status: 0 only if the memory was verified, 3 if memory differs, 2 for bad input, 1 for any
other failure. A failure is one line on standard error; ``--debug`` shows where it came from.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from pydantic import ValidationError

from livemigration.errors import MigrationError
from livemigration.spec import TelemetrySpec
from livemigration.spec_errors import first_line
from predump.accuracy_cli import accuracy_command
from predump.calibrate_cli import calibrate_command
from predump.command import explained_errors, fail, unexpected
from predump.compare_cli import compare_command
from predump.conform_cli import conform_app
from predump.criu_cli import criu_app
from predump.demo import demo_scenario, run_demo
from predump.exit_status import BAD_INPUT, FAILED
from predump.faults_cli import faults_app
from predump.hunks_cli import hunks_app
from predump.loading import loading
from predump.mm_cli import mm_command
from predump.overrides import OverrideError, parse_override
from predump.ownership_cli import ownership_command
from predump.policies_cli import policies_command
from predump.progress import make_progress
from predump.render import make_console, print_result
from predump.report_cli import report_command
from predump.result import Result
from predump.scenario import Scenario, ScenarioError, load_scenario
from predump.sweep_cli import sweep_command
from predump.versions import versions
from predump.workload_cli import workload_app

if TYPE_CHECKING:
    import grpc

    from dest_node.criu_pages import CriuPagesConfig
    from livemigration.drill import Drill
    from livemigration.observe.config import ObserveConfig
    from livemigration.service import ListenConfig
    from predump.runner import Hosts

_log = logging.getLogger(__name__)

app = typer.Typer(
    name="predump",
    help="Live migration by pre-dump: simulated page by page, verified byte by byte.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
serve_app = typer.Typer(help="Be a host: run a source or a destination node.", no_args_is_help=True)
app.add_typer(serve_app, name="serve")
app.add_typer(workload_app, name="workload")
app.add_typer(conform_app, name="conform")
app.add_typer(hunks_app, name="hunks")
app.add_typer(criu_app, name="criu")
app.add_typer(faults_app, name="faults")
app.command("mm")(mm_command)
app.command("sweep")(sweep_command)
app.command("policies")(policies_command)
app.command("ownership")(ownership_command)
app.command("report")(report_command)
app.command("compare")(compare_command)
app.command("calibrate")(calibrate_command)
app.command("accuracy")(accuracy_command)

LogFormat = Literal["text", "json"]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO", help="A scenario file (TOML).")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the scenario; repeatable."),
]
JsonTarget = Annotated[
    str,
    typer.Option(
        "--json", metavar="FILE|-", help="Write the result as JSON; - is standard output."
    ),
]
Mqtt = Annotated[
    str,
    typer.Option("--mqtt", metavar="URL", help="Publish progress to a broker, mqtt://HOST:PORT."),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca", metavar="FILE", help="Use TLS; trust nodes that this authority signed."
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert", metavar="FILE", help="Certificate to show to the nodes (mutual TLS)."
    ),
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key.")]
Listen = Annotated[
    str, typer.Option("--listen", metavar="HOST:PORT", help="Port 0 takes a free one.")
]
PortFile = Annotated[
    Path | None,
    typer.Option("--port-file", metavar="FILE", help="Gets HOST:PORT once the node serves."),
]
HostId = Annotated[
    str,
    typer.Option(
        "--host-id", metavar="NAME", help="Name in telemetry; default: ROLE-HOSTNAME-PORT."
    ),
]
ServerCert = Annotated[
    Path | None,
    typer.Option("--tls-cert", metavar="FILE", help="Serve with TLS; certificate of this node."),
]
ClientCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-client-ca", metavar="FILE", help="Let only callers in that this authority signed."
    ),
]

ExportImages = Annotated[
    str,
    typer.Option(
        "--export-images",
        metavar="DIR",
        help="Write the task that was taken over as CRIU images; {id} in DIR is the migration's.",
    ),
]
Drilled = Annotated[
    str,
    typer.Option(
        "--drill", metavar="ACTION@PHASE", help="Die or stop there, to test tools: kill@final."
    ),
]


Metrics = Annotated[
    str,
    typer.Option(
        "--metrics", metavar="HOST:PORT", help="Serve metrics for Prometheus there, over HTTP."
    ),
]
Traces = Annotated[
    str,
    typer.Option(
        "--traces",
        metavar="URL|FILE|-",
        help="Trace migrations to an OpenTelemetry collector, a file or standard error.",
    ),
]
LogFormatOption = Annotated[
    LogFormat, typer.Option("--log-format", help="Lines for people, or JSON objects.")
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    typer.Option("--log-level", help="The least important lines to write."),
]


class InputError(ValueError):
    """A command line that cannot be served; ``str()`` is one line."""


def main() -> None:
    """The ``predump`` command."""
    if sys.argv[1:2] != ["serve"]:
        # gRPC writes failed handshakes to standard error. That belongs in the log of a node; what a
        # caller must know of them is in the one line that it gets.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app(prog_name="predump")


def _explained(error: Exception) -> tuple[str, int]:
    """One line and the exit status for ``error``."""
    # These bring gRPC along, which --help need not wait for.
    from livemigration.service import CannotListen
    from livemigration.tls import TlsError
    from predump.runner import RunError

    if isinstance(error, RunError):
        return error.message, error.exit_code
    if isinstance(error, ScenarioError | OverrideError | InputError | TlsError):
        return str(error), BAD_INPUT
    if isinstance(error, MigrationError | CannotListen):
        return str(error), FAILED
    return unexpected(error)


@app.command()
def demo(debug: Debug = False) -> None:
    """Show a migration that verifies, then one whose lost pages are caught; under a minute."""
    from predump.runner import run_scenario

    console = make_console()

    async def run_part(scenario: Scenario) -> Result:
        with make_progress(console) as progress:
            return await run_scenario(scenario, on_event=progress)

    with explained_errors(_explained, debug=debug):
        good = asyncio.run(run_demo(console, run_part))
        raise typer.Exit(0 if good else FAILED)


@app.command()
def run(
    scenario: ScenarioFile,
    sets: Sets = None,
    json_target: JsonTarget = "",
    source: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Use this source; default: start one.")
    ] = "",
    dest: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Use this destination; default: start one.")
    ] = "",
    mqtt: Mqtt = "",
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    export_images: ExportImages = "",
    debug: Debug = False,
) -> None:
    """Run one migration. Exit status 0 only if it was verified, 3 if memory differs."""
    with explained_errors(_explained, debug=debug):
        if bool(source) != bool(dest):
            raise InputError("--source and --dest go together; give both, or none to start both")
        hosts = _hosts(source, dest, tls_ca, tls_cert, tls_key) if source else None
        if hosts is None and (tls_ca or tls_cert or tls_key):
            raise InputError("--tls-ca, --tls-cert and --tls-key need --source and --dest")
        if hosts is not None and mqtt:
            raise InputError("--mqtt is for nodes started here; give it to `predump serve` instead")
        if hosts is not None and export_images:
            raise InputError(
                "--export-images is for a destination started here; give it to `predump serve "
                "dest` instead"
            )
        loaded = _load(scenario, sets, check_paths=hosts is None)
        images = _checked_export(export_images)
        if images and Path(images).is_dir() and any(Path(images).iterdir()):
            raise InputError(f"--export-images {images}: is there already; name a new directory")
        _run_and_report(loaded, hosts, _checked_broker(mqtt), json_target, export_images=images)


@app.command()
def migrate(
    source: Annotated[str, typer.Option(metavar="HOST:PORT", help="The source node.")],
    dest: Annotated[str, typer.Option(metavar="HOST:PORT", help="The destination node.")],
    scenario: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The task and its migration; default: the demo's."),
    ] = None,
    sets: Sets = None,
    json_target: JsonTarget = "",
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    debug: Debug = False,
) -> None:
    """Give a task to a running source and migrate it to a running destination."""
    with explained_errors(_explained, debug=debug):
        hosts = _hosts(source, dest, tls_ca, tls_cert, tls_key)
        if scenario is not None:
            loaded = _load(scenario, sets, check_paths=False)
        else:
            loaded = demo_scenario(overrides=[parse_override(argument) for argument in sets or []])
        _run_and_report(loaded, hosts, "", json_target)


@serve_app.command("source")
def serve_source_command(
    listen: Listen = "127.0.0.1:0",
    port_file: PortFile = None,
    mqtt: Mqtt = "",
    host_id: HostId = "",
    tls_cert: ServerCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: ClientCa = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Authority that signed the destination's certificate; default: --tls-client-ca.",
        ),
    ] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER|MODULE",
            help="Let callers choose policies from there, which is Python code; repeatable.",
        ),
    ] = None,
    drill: Drilled = "",
    metrics: Metrics = "",
    traces: Traces = "",
    log_format: LogFormatOption = "text",
    log_level: LogLevel = "info",
    debug: Debug = False,
) -> None:
    """Serve as a source until SIGTERM: hold a task, run it, migrate it away."""
    with explained_errors(_explained, debug=debug):
        with loading():
            from livemigration.drill import SOURCE_PHASES
            from livemigration.observe.logs import start_logging
            from livemigration.tls import TlsConfig, channel_credentials, server_credentials
            from source_node.server import SourceConfig, serve_source

        authority = tls_ca or tls_client_ca
        config = SourceConfig(
            listen=_listen(listen, server_credentials(tls_cert, tls_key, tls_client_ca), port_file),
            mqtt=_checked_broker(mqtt),
            host_id=host_id,
            credentials=channel_credentials(TlsConfig(authority, tls_cert, tls_key))
            if authority
            else None,
            policies=_policy_places(policies or []),
            drill=_drill(drill, SOURCE_PHASES),
            observe=_observe("source", metrics, traces, log_format, log_level),
        )
        start_logging(config.observe.log)
        asyncio.run(serve_source(config, _announcer("source", log_format)))


@serve_app.command("dest")
def serve_dest_command(
    listen: Listen = "127.0.0.1:0",
    port_file: PortFile = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keeps a task that was taken over, across restarts."),
    ] = None,
    mqtt: Mqtt = "",
    host_id: HostId = "",
    tls_cert: ServerCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: ClientCa = None,
    export_images: ExportImages = "",
    criu_page_server: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Also take `criu dump|pre-dump --page-server`, into --state-dir.",
        ),
    ] = "",
    criu_tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With TLS there, as criu's --tls; its certificate."),
    ] = None,
    criu_tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate's private key.")
    ] = None,
    criu_tls_client_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take dumps only from those that it signed."),
    ] = None,
    drill: Drilled = "",
    metrics: Metrics = "",
    traces: Traces = "",
    log_format: LogFormatOption = "text",
    log_level: LogLevel = "info",
    debug: Debug = False,
) -> None:
    """Serve as a destination until SIGTERM: receive tasks, verify them, take them over."""
    with explained_errors(_explained, debug=debug):
        with loading():
            from dest_node.server import DestinationConfig, serve_destination
            from livemigration.drill import DESTINATION_PHASES
            from livemigration.observe.logs import start_logging
            from livemigration.tls import server_credentials

        config = DestinationConfig(
            listen=_listen(listen, server_credentials(tls_cert, tls_key, tls_client_ca), port_file),
            state_dir=state_dir,
            mqtt=_checked_broker(mqtt),
            host_id=host_id,
            drill=_drill(drill, DESTINATION_PHASES),
            export_images=_checked_export(export_images),
            observe=_observe("dest", metrics, traces, log_format, log_level),
            criu_pages=_criu_pages(
                criu_page_server, state_dir, criu_tls_cert, criu_tls_key, criu_tls_client_ca
            ),
        )
        start_logging(config.observe.log)
        asyncio.run(serve_destination(config, _announcer("destination", log_format)))


@app.command()
def watch(
    mqtt: Annotated[
        str, typer.Option("--mqtt", metavar="URL", help="The broker.")
    ] = "mqtt://localhost:1883",
    migration: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this migration; default: all.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print what the broker knows and end.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="Give up after so long without the broker."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    debug: Debug = False,
) -> None:
    """Follow migrations through an MQTT broker, live."""
    with explained_errors(_explained, debug=debug):
        from predump.watch import run_watch

        status = run_watch(
            _checked_broker(mqtt),
            migration_id=migration,
            once=once,
            timeout=timeout,
            as_json=as_json,
        )
        raise typer.Exit(status)


@app.command()
def dashboard(
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Port 0 takes a free one.")
    ] = "127.0.0.1:7080",
    mqtt: Annotated[
        str,
        typer.Option("--mqtt", metavar="URL", help="Hear of migrations from a broker."),
    ] = "",
    source: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Watch this source; default: start one."),
    ] = "",
    dest: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Its destination; default: start one.")
    ] = "",
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RESULTS",
            help="Finished runs: result files of sweeps, results as JSON, folders; repeatable.",
        ),
    ] = None,
    scenarios: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Scenario files that can be started from the page."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name that this machine is asked for by; repeatable."),
    ] = None,
    allow_control: Annotated[
        bool,
        typer.Option(
            "--allow-control",
            help="Let others than this machine start and abort migrations as well.",
        ),
    ] = False,
    port_file: PortFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    debug: Debug = False,
) -> None:
    """Show migrations on a page, live, and start them from there; until Ctrl-C."""
    with explained_errors(_explained, debug=debug):
        try:
            import starlette  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError as error:
            raise InputError(
                "the dashboard needs starlette and uvicorn: pip install predump[dashboard]"
            ) from error
        from predump.dashboard.guard import is_loopback
        from predump.dashboard.serve import DashboardConfig, serve_dashboard

        address = _listen(listen, None, port_file).address
        if not (mqtt or source or allow_control or is_loopback(address.rpartition(":")[0])):
            raise InputError(
                f"--listen {listen}: others could start nothing and see nothing; give --mqtt, or "
                "--source and --dest, to look at, or --allow-control"
            )
        if bool(source) != bool(dest):
            raise InputError("--source and --dest go together; give both, or none")
        if not source and (tls_ca or tls_cert or tls_key):
            raise InputError("--tls-ca, --tls-cert and --tls-key need --source and --dest")
        if scenarios is not None and not scenarios.is_dir():
            raise InputError(f"--scenarios {scenarios}: there is no such directory")
        for path in results or []:
            if not path.exists():
                raise InputError(f"--results {path}: there is no such file or directory")
        config = DashboardConfig(
            listen=address,
            mqtt=_checked_broker(mqtt),
            hosts=_hosts(source, dest, tls_ca, tls_cert, tls_key) if source else None,
            results=results or (),
            scenarios=scenarios,
            names=name or (),
            allow_control=allow_control,
            port_file=port_file,
        )
        asyncio.run(serve_dashboard(config, _announcer("dashboard", "text")))


@app.command()
def version() -> None:
    """Show the versions of Predump and of what it runs on."""
    for name, number in versions().items():
        typer.echo(f"{name} {number}")


def _load(path: Path, sets: list[str] | None, *, check_paths: bool) -> Scenario:
    overrides = [parse_override(argument) for argument in sets or []]
    return load_scenario(path, overrides, check_paths=check_paths)


def _run_and_report(
    scenario: Scenario,
    hosts: "Hosts | None",
    mqtt: str,
    json_target: str,
    *,
    export_images: str = "",
) -> NoReturn:
    """Run the migration, show the result, write it as JSON where asked, and exit."""
    from predump.runner import run_scenario

    _check_writable(json_target)
    # With JSON on standard output nothing else may be there.
    console = make_console(stderr=json_target == "-")
    with make_progress(console) as progress:
        result = asyncio.run(
            run_scenario(
                scenario,
                hosts=hosts,
                mqtt=mqtt or scenario.telemetry.mqtt,
                export_images=export_images,
                on_event=progress,
            )
        )
    print_result(console, result)
    if json_target == "-":
        typer.echo(result.to_json())
    elif json_target:
        try:
            Path(json_target).write_text(result.to_json() + "\n", encoding="utf-8")
        except OSError as error:
            fail(f"{json_target}: cannot be written: {error.strerror}", FAILED)
    if export_images and result.exit_code == 0:
        folder = Path(export_images.replace("{id}", result.migration_id))
        if not folder.is_dir():
            fail(f"--export-images {folder}: the destination could not write it", FAILED)
    raise typer.Exit(result.exit_code)


def _checked_export(folder: str) -> str:
    """Refuse what cannot be a directory; makes the path absolute."""
    path = Path(folder)
    if folder and path.exists() and not path.is_dir():
        raise InputError(f"--export-images {path}: is no directory")
    return str(path.absolute()) if folder else ""


def _check_writable(json_target: str) -> None:
    """Refuse a target before the run that could only fail after it."""
    if json_target in ("", "-"):
        return
    path = Path(json_target)
    if path.is_dir():
        raise InputError(f"--json {path}: is a directory; name a file in it")
    if not path.parent.is_dir():
        raise InputError(f"--json {path}: there is no directory {path.parent}; make it first")


def _checked_broker(url: str) -> str:
    try:
        return TelemetrySpec(mqtt=url).mqtt
    except ValidationError as error:
        message = first_line(error, TelemetrySpec).removeprefix("mqtt: ")
        raise InputError(f"--mqtt: {message}") from error


def _hosts(source: str, dest: str, ca: Path | None, cert: Path | None, key: Path | None) -> "Hosts":
    from livemigration.service import split_address
    from livemigration.tls import TlsConfig, channel_credentials
    from predump.runner import Hosts

    for option, address in (("--source", source), ("--dest", dest)):
        try:
            _, port = split_address(address)
        except ValueError as error:
            raise InputError(f"{option}: {address!r} is not an address; write HOST:PORT") from error
        if port == 0:
            raise InputError(f"{option}: {address!r} has port 0; write the port that it listens on")
    if ca is None:
        if cert or key:
            raise InputError("--tls-cert and --tls-key need --tls-ca, the authority of the nodes")
        return Hosts(source=source, dest=dest, tls=None)
    tls = TlsConfig(ca, cert, key)
    channel_credentials(tls)  # refuses bad files now, not in the middle of a run
    return Hosts(source=source, dest=dest, tls=tls)


def _drill(text: str, phases: tuple[str, ...]) -> "Drill":
    from livemigration.drill import Drill

    try:
        return Drill.parse(text, phases)
    except ValueError as error:
        raise InputError(f"--drill: {error}") from error


def _listen(
    address: str, credentials: "grpc.ServerCredentials | None", port_file: Path | None
) -> "ListenConfig":
    from livemigration.service import ListenConfig, split_address

    try:
        split_address(address)
    except ValueError as error:
        raise InputError(f"--listen: {error}") from error
    if port_file is not None and not port_file.parent.is_dir():
        raise InputError(f"--port-file {port_file}: there is no directory {port_file.parent}")
    if port_file is not None and port_file.is_dir():
        raise InputError(f"--port-file {port_file}: is a directory; name a file in it")
    return ListenConfig(address=address, credentials=credentials, port_file=port_file)


def _observe(
    role: str, metrics: str, traces: str, log_format: LogFormat, log_level: str
) -> "ObserveConfig":
    from livemigration.observe.config import ObserveConfig
    from livemigration.observe.logs import LogConfig, LogContext
    from livemigration.service import split_address

    if metrics:
        try:
            split_address(metrics)
        except ValueError as error:
            raise InputError(f"--metrics: {error}") from error
    return ObserveConfig(metrics, traces, LogConfig(log_format, log_level, LogContext(role)))


def _criu_pages(
    address: str, state_dir: Path | None, cert: Path | None, key: Path | None, ca: Path | None
) -> "CriuPagesConfig | None":
    from dest_node.criu_pages import CriuPagesConfig
    from livemigration.service import split_address
    from livemigration.tls import server_context

    if not address:
        if cert or key or ca:
            raise InputError("--criu-tls-... are for --criu-page-server HOST:PORT; give it too")
        return None
    try:
        split_address(address)
    except ValueError as error:
        raise InputError(f"--criu-page-server: {error}") from error
    if state_dir is None:
        raise InputError("--criu-page-server needs --state-dir DIR, where the images are kept")
    return CriuPagesConfig(address, server_context(cert, key, ca))


def _policy_places(places: list[str]) -> tuple[str, ...]:
    """Folders made absolute, and names of modules; refuses what can be neither."""
    checked = []
    for place in places:
        folder = Path(place)
        if folder.is_dir():
            checked.append(str(folder.resolve()))
        elif all(part.isidentifier() for part in place.split(".")):
            checked.append(place)
        else:
            raise InputError(f"--policies {place}: there is no such directory")
    return tuple(checked)


def _announcer(role: str, log_format: LogFormat) -> Callable[[str], None]:
    """Says where the node listens, once it does; whoever started it waits for this line."""

    def announce(address: str) -> None:
        if log_format == "json":
            where = {"fields": {"address": address}}
            _log.info("predump %s listening on %s", role, address, extra=where)
            return
        typer.echo(f"predump {role} listening on {address}")
        sys.stdout.flush()

    return announce
