"""`NodeTelemetry` over gRPC: both nodes serve it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from livemigration.telemetry.watched import TooManyWatchersError, Watched
from livemigration.v1 import telemetry_pb2, telemetry_pb2_grpc

SERVICE = telemetry_pb2.DESCRIPTOR.services_by_name["NodeTelemetry"].full_name


class TelemetryService(telemetry_pb2_grpc.NodeTelemetryServicer):
    """Hands what a host tells to whoever asks."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    async def Watch(  # noqa: N802 - the name in the .proto file
        self,
        request: telemetry_pb2.WatchRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[telemetry_pb2.TelemetryMessage]:
        """First what is known, then what happens, until the host ends."""
        try:
            async for item in self._watched.watch():
                yield telemetry_pb2.TelemetryMessage(
                    topic=item.topic, payload=item.payload, retained=item.retain
                )
        except TooManyWatchersError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))


def add_telemetry(watched: Watched, server: grpc.aio.Server) -> str:
    """Adds the service to a server; returns its full name."""
    telemetry_pb2_grpc.add_NodeTelemetryServicer_to_server(TelemetryService(watched), server)
    return SERVICE
