"""The destination as a process: server, telemetry, state directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from dest_node.criu_pages import CriuPages, CriuPagesConfig
from dest_node.servicer import DestinationNode
from dest_node.store import StateDirectory
from livemigration.drill import Drill
from livemigration.errors import BadRequest
from livemigration.observe.config import ObserveConfig, observed, traced_calls
from livemigration.observe.logs import LoggedTelemetry
from livemigration.observe.metrics import DestinationMetrics
from livemigration.service import ListenConfig, default_host_id, serve
from livemigration.telemetry import open_telemetry
from livemigration.telemetry.service import add_telemetry
from livemigration.telemetry.watched import Watched
from livemigration.v1 import common_pb2, destination_node_pb2, destination_node_pb2_grpc

SERVICE = destination_node_pb2.DESCRIPTOR.services_by_name["DestinationNode"].full_name


@dataclass(frozen=True, slots=True)
class DestinationConfig:
    """How a destination is started."""

    listen: ListenConfig = field(default_factory=ListenConfig)
    state_dir: Path | None = None
    mqtt: str = ""
    host_id: str = ""
    drill: Drill = field(default_factory=Drill)
    criu_pages: CriuPagesConfig | None = None  # needs a state directory
    export_images: str = ""  # a directory for each task that is taken over; {id}: the migration
    observe: ObserveConfig = field(default_factory=ObserveConfig)


async def serve_destination(config: DestinationConfig, on_ready: Callable[[str], None]) -> None:
    """Runs a destination until it is told to stop."""
    host_id = config.host_id or default_host_id("dest", config.listen)
    store = StateDirectory(config.state_dir) if config.state_dir is not None else None
    criu_pages = None
    if config.criu_pages is not None:
        if store is None:
            raise BadRequest("a page server keeps what it gets: give a state directory too")
        criu_pages = CriuPages(store.path, config.criu_pages)
    metrics = DestinationMetrics(host_id=host_id, version=version("predump"))
    async with (
        open_telemetry(config.mqtt, role="dest", host_id=host_id) as broker,
        observed(config.observe, "dest", host_id, metrics.registry) as tracing,
    ):
        telemetry = Watched(broker, role="dest", host_id=host_id)
        node = DestinationNode(
            host_id=host_id,
            version=version("predump"),
            store=store,
            telemetry=LoggedTelemetry(telemetry, config.observe.log.context),
            drill=config.drill,
            metrics=metrics,
            criu_pages=criu_pages,
            export_images=config.export_images,
        )
        await node.start()

        def add(server: grpc.aio.Server) -> tuple[str, ...]:
            _add_node(node, server)
            return (SERVICE, add_telemetry(telemetry, server))

        async def close() -> None:
            await node.close()
            telemetry.close()

        await serve(
            config.listen,
            add,
            on_ready=on_ready,
            close=close,
            interceptors=traced_calls(tracing),
        )


class _Handlers:
    """Stands in for a server, to learn the handlers that the generated code registers."""

    def __init__(self) -> None:
        self.methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers once more, in another form."""

    def add_registered_method_handlers(
        self, service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """What is wanted."""
        self.methods |= handlers


def _add_node(node: DestinationNode, server: grpc.aio.Server) -> None:
    """As the generated code does, but page frames arrive as bytes (read by livemigration.batch)."""
    handlers = _Handlers()
    destination_node_pb2_grpc.add_DestinationNodeServicer_to_server(
        node, cast("grpc.aio.Server", handlers)
    )
    handlers.methods["Transfer"] = grpc.stream_stream_rpc_method_handler(
        node.Transfer,
        request_deserializer=None,
        response_serializer=common_pb2.TransferAck.SerializeToString,
    )
    handlers.methods["FetchPages"] = grpc.stream_stream_rpc_method_handler(
        node.FetchPages,
        request_deserializer=None,
        response_serializer=destination_node_pb2.PageRequest.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, handlers.methods),)
    )
