"""``predump criu send | received | lazy-server | fetch``: pages to and from real CRIU.

Exit status: 0 if everything was done (and, with ``--verify-images``, found equal), 3 if the images
differ, 2 for bad input, 1 for any other failure.
"""

import asyncio
import json
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from predump.command import explained_errors, unexpected
from predump.exit_status import BAD_INPUT, DIFFERS, FAILED
from predump.overrides import OverrideError, parse_override

if TYPE_CHECKING:
    from livemigration.criu.page_server.protocol import Dialect
    from livemigration.v1 import destination_node_pb2

Version = Annotated[
    str,
    typer.Option(
        "--criu-version",
        metavar="4.1|4.2",
        help="What the other end speaks: 4.1 for CRIU up to 4.1.1, 4.2 for all from there.",
    ),
]
TlsCa = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Use TLS; the authority of the other end.")
]
TlsCert = Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate to show.")]
TlsKey = Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key.")]
AnyName = Annotated[
    bool,
    typer.Option("--tls-no-cn-verify", help="Take a certificate of the authority for any host's."),
]
PageSize = Annotated[
    int, typer.Option(metavar="BYTES", help="Page size of the other end's machine.")
]
Wait = Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How long to wait for it.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


class PagesInputError(ValueError):
    """An option that cannot be served; ``str()`` is one line."""


def _explained(error: Exception) -> tuple[str, int]:
    from livemigration.errors import BadRequest, MigrationError
    from livemigration.service import CannotListen
    from livemigration.tls import TlsError
    from predump.scenario import ScenarioError

    if isinstance(error, PagesInputError | ScenarioError | OverrideError | TlsError | BadRequest):
        return str(error), BAD_INPUT
    if isinstance(error, MigrationError | CannotListen):
        return str(error), FAILED
    return unexpected(error)


def send_command(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO", help="A scenario file (TOML).")],
    page_server: Annotated[
        list[str],
        typer.Option(
            metavar="HOST:PORT",
            help="A page server for each round, in order; the last takes all that follow.",
        ),
    ],
    criu_version: Version = "4.2",
    verify_images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="What the last page server writes: compare it with the memory."
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the scenario."),
    ] = None,
    wait: Wait = 30.0,
    page_size: PageSize = 4096,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_no_cn_verify: AnyName = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
    debug: Debug = False,
) -> None:
    """Send a task's pre-dump rounds and final round to real `criu page-server`s.

    A real one serves one connection: start one for each round, with --prev-images-dir from the
    second on.
    """
    with explained_errors(_explained, debug=debug):
        from predump.criu_send import send_scenario
        from predump.scenario import load_scenario
        from source_node.criu_migration import PageServers

        servers = PageServers(
            tuple(page_server),
            _dialect(criu_version),
            wait_s=wait,
            tls=_client_tls(tls_ca, tls_cert, tls_key, tls_no_cn_verify),
            page_size=page_size,
            images=verify_images,
        )
        loaded = load_scenario(scenario, [parse_override(argument) for argument in sets or []])
        sent = asyncio.run(send_scenario(loaded, servers, _say_nothing if as_json else typer.echo))
        if as_json:
            typer.echo(json.dumps(sent.to_json()))
        if sent.outcome.error:
            raise typer.Exit(_fail(sent.outcome.error, as_json))
        if verify_images is not None and not sent.outcome.verified:
            raise typer.Exit(DIFFERS)


def _say_nothing(line: str) -> None:
    """With --json the object at the end says it all."""


def _fail(message: str, as_json: bool) -> int:
    if not as_json:
        typer.echo(f"predump: error: {message}", err=True)
    return FAILED


def received_command(
    dest: Annotated[str, typer.Argument(metavar="HOST:PORT", help="A destination node.")],
    new_chain: Annotated[
        bool, typer.Option("--new-chain", help="The next dump to come shall have no parent.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    debug: Debug = False,
) -> None:
    """List what CRIU has dumped to a node that serves with --criu-page-server."""
    with explained_errors(_explained, debug=debug):
        from google.protobuf import json_format

        reply = asyncio.run(_ask(dest, new_chain, (tls_ca, tls_cert, tls_key)))
        if as_json:
            typer.echo(
                json.dumps(json_format.MessageToDict(reply, preserving_proto_field_name=True))
            )
            return
        typer.echo(f"page server at {reply.address}: {len(reply.checkpoints)} checkpoints")
        for checkpoint in reply.checkpoints:
            typer.echo(_line(checkpoint))


def _line(checkpoint: "destination_node_pb2.Checkpoint") -> str:
    pages = sum(image.pages for image in checkpoint.images)
    holes = sum(image.holes for image in checkpoint.images)
    what = f"{pages} pages, {holes} left to the parent, {len(checkpoint.images)} images"
    state = checkpoint.digest[:16] if checkpoint.complete else f"incomplete: {checkpoint.error}"
    return f"{checkpoint.chain}/{checkpoint.number}  {what}  {state}  {checkpoint.folder}"


async def _ask(
    dest: str, new_chain: bool, tls: tuple[Path | None, Path | None, Path | None]
) -> "destination_node_pb2.ListCheckpointsReply":
    import grpc

    from livemigration.channel import open_channel, why
    from livemigration.errors import BadRequest, DestinationLost
    from livemigration.service import split_address
    from livemigration.tls import TlsConfig, channel_credentials
    from livemigration.v1 import destination_node_pb2, destination_node_pb2_grpc

    try:
        split_address(dest)
    except ValueError as error:
        raise PagesInputError(str(error)) from None
    ca, cert, key = tls
    credentials = channel_credentials(TlsConfig(ca, cert, key)) if ca else None
    async with open_channel(dest, credentials) as channel:
        node = destination_node_pb2_grpc.DestinationNodeStub(channel)
        request = destination_node_pb2.ListCheckpointsRequest(new_chain=new_chain)
        try:
            return await node.ListCheckpoints(request, timeout=600)
        except grpc.aio.AioRpcError as error:
            if error.code() in (
                grpc.StatusCode.FAILED_PRECONDITION,
                grpc.StatusCode.UNIMPLEMENTED,
            ):
                raise BadRequest(f"{dest}: {why(error)}") from None
            raise DestinationLost(f"{dest}: {why(error)}") from None


def lazy_server_command(
    images: Annotated[Path, typer.Argument(metavar="DIR", help="A complete image directory.")],
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Port 0 takes a free one.")
    ] = "127.0.0.1:0",
    page_size: PageSize = 4096,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long a client may keep silent.")
    ] = 3600.0,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Let only its clients in.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Serve the pages of a dump to one `criu lazy-pages`, until it has what it needs."""
    with explained_errors(_explained, debug=debug):
        from livemigration.criu.page_server.endpoint import accept
        from livemigration.criu.page_server.endpoint import listen as listen_at
        from livemigration.criu.page_server.lazy import LazyServer
        from livemigration.criu.page_server.lazy_images import LazyImages
        from livemigration.service import split_address
        from livemigration.tls import server_context

        tls = server_context(tls_cert, tls_key, tls_client_ca)
        source = LazyImages(images, page_size)
        with listen_at(listen) as listening:
            address = f"{split_address(listen)[0]}:{listening.getsockname()[1]}"
            typer.echo(f"predump lazy-server listening on {address}")
            channel, peer = accept(listening, patience, tls)
        with channel:
            server = LazyServer(channel, source)
            server.run()
        typer.echo(f"{peer} fetched {server.pages} pages in {server.requests} requests")


def fetch_command(
    images: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `criu dump --lazy-pages` has written.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Gets the complete images.")
    ],
    page_server: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where that dump waits.")],
    criu_version: Version = "4.2",
    wait: Wait = 30.0,
    page_size: PageSize = 4096,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_no_cn_verify: AnyName = False,
    debug: Debug = False,
) -> None:
    """Fetch all pages that a `criu dump --lazy-pages` holds back, and complete its images."""
    with explained_errors(_explained, debug=debug):
        from livemigration.criu.page_server.endpoint import connect
        from livemigration.criu.page_server.lazy import LazyClient
        from livemigration.criu.page_server.lazy_images import fetch_into

        dialect = _dialect(criu_version)
        tls = _client_tls(tls_ca, tls_cert, tls_key, tls_no_cn_verify)
        with connect(page_server, wait_s=wait, patience_s=60.0, tls=tls) as channel:
            client = LazyClient(channel, dialect, page_size)
            done = fetch_into(images, output, client, page_size)
        typer.echo(f"{done.fetched} pages fetched, {done.copied} were there: {output}")


def _dialect(version: str) -> "Dialect":
    from livemigration.criu.page_server.protocol import DIALECTS

    if version not in DIALECTS:
        raise PagesInputError(
            f"--criu-version {version}: there are {' and '.join(DIALECTS)}; 4.1 is for all CRIU up "
            "to 4.1.1, 4.2 for all from there"
        )
    return DIALECTS[version]


def _client_tls(
    ca: Path | None, cert: Path | None, key: Path | None, any_name: bool
) -> ssl.SSLContext | None:
    from livemigration.tls import TlsConfig, client_context

    if ca is None:
        if cert or key or any_name:
            raise PagesInputError("--tls-cert, --tls-key and --tls-no-cn-verify need --tls-ca")
        return None
    return client_context(TlsConfig(ca, cert, key), check_name=not any_name)
