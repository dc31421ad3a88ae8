"""What a node's operator wants to see, and the context in which it can be seen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio
from prometheus_client import CollectorRegistry

from livemigration.observe.endpoint import metrics_endpoint
from livemigration.observe.logs import LogConfig
from livemigration.observe.tracing import Tracing, tracing


@dataclass(frozen=True, slots=True)
class ObserveConfig:
    """`metrics`: HOST:PORT or none. `traces`: a target of `livemigration.observe.exporters`."""

    metrics: str = ""
    traces: str = ""
    log: LogConfig = field(default_factory=LogConfig)


@asynccontextmanager
async def observed(
    config: ObserveConfig, role: str, host_id: str, registry: CollectorRegistry
) -> AsyncIterator[Tracing]:
    """Serves the metrics and gives the tracing of one node, while the context lasts.

    Raises `CannotListen` or `BadRequest`, one line.
    """
    config.log.context.role, config.log.context.host_id = role, host_id
    with (
        tracing(config.traces, role=role, host_id=host_id) as traces,
        metrics_endpoint(config.metrics, registry),
    ):
        yield traces


def traced_calls(traces: Tracing) -> list[grpc.aio.ServerInterceptor]:
    """The interceptor of a server whose calls are to be traced; none where nothing is."""
    if traces.tracer is None:
        return []
    from livemigration.observe.calls import TracedCalls

    return [TracedCalls(traces.tracer)]
