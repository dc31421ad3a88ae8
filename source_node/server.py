"""The source as a process: server and telemetry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version

import grpc
import grpc.aio

from livemigration.drill import Drill
from livemigration.observe.config import ObserveConfig, observed
from livemigration.observe.logs import LoggedTelemetry
from livemigration.observe.metrics import SourceMetrics
from livemigration.service import ListenConfig, default_host_id, serve
from livemigration.telemetry import open_telemetry
from livemigration.telemetry.service import add_telemetry
from livemigration.telemetry.watched import Watched
from livemigration.v1 import source_node_pb2, source_node_pb2_grpc
from source_node.servicer import SourceNode

SERVICE = source_node_pb2.DESCRIPTOR.services_by_name["SourceNode"].full_name


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """How a source is started. `credentials` are for its connection to the destination.

    `policies`: where callers' own policies may come from (`livemigration.user_policy`).
    """

    listen: ListenConfig = field(default_factory=ListenConfig)
    mqtt: str = ""
    host_id: str = ""
    credentials: grpc.ChannelCredentials | None = None
    policies: tuple[str, ...] = ()
    drill: Drill = field(default_factory=Drill)
    observe: ObserveConfig = field(default_factory=ObserveConfig)


async def serve_source(config: SourceConfig, on_ready: Callable[[str], None]) -> None:
    """Runs a source until it is told to stop."""
    host_id = config.host_id or default_host_id("source", config.listen)
    metrics = SourceMetrics(host_id=host_id, version=version("predump"))
    async with (
        open_telemetry(config.mqtt, role="source", host_id=host_id) as broker,
        observed(config.observe, "source", host_id, metrics.registry) as tracing,
    ):
        telemetry = Watched(broker, role="source", host_id=host_id)
        node = SourceNode(
            host_id=host_id,
            version=version("predump"),
            telemetry=LoggedTelemetry(telemetry, config.observe.log.context),
            credentials=config.credentials,
            policies=config.policies,
            drill=config.drill,
            metrics=metrics,
            tracing=tracing,
        )

        node.start()

        def add(server: grpc.aio.Server) -> tuple[str, ...]:
            source_node_pb2_grpc.add_SourceNodeServicer_to_server(node, server)
            return (SERVICE, add_telemetry(telemetry, server))

        async def close() -> None:
            await node.close()
            telemetry.close()

        await serve(config.listen, add, on_ready=on_ready, close=close)
