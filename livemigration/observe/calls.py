"""A span for each call that a node answers, below the caller's span.

The interceptor of OpenTelemetry's own gRPC package takes streams for generators. Predump's page
streams are read and written by hand, which is faster; so this one lets every kind of handler be.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from livemigration.observe.tracing import context_in

if TYPE_CHECKING:  # generic for type checkers alone
    _Handler = grpc.RpcMethodHandler[Any, Any]
    _Context = grpc.aio.ServicerContext[Any, Any]

_MAKERS: dict[tuple[bool, bool], Callable[..., _Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class TracedCalls(grpc.aio.ServerInterceptor):
    """Traces the calls of which the caller sent a trace context; others are let through."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """The handler, with a span around what it does."""
        handler = await continuation(handler_call_details)
        metadata = tuple(handler_call_details.invocation_metadata)
        if handler is None or not any(key == "traceparent" for key, _ in metadata):
            return handler
        name = str(handler_call_details.method).rpartition("/")[2]
        return self._traced(handler, name, metadata)

    def _traced(self, handler: _Handler, name: str, metadata: tuple[Any, ...]) -> _Handler:
        kind = (bool(handler.request_streaming), bool(handler.response_streaming))
        behaviour: Any = {
            (False, False): handler.unary_unary,
            (False, True): handler.unary_stream,
            (True, False): handler.stream_unary,
            (True, True): handler.stream_stream,
        }[kind]
        if inspect.isasyncgenfunction(behaviour):

            async def answer_many(request: Any, context: _Context) -> AsyncIterator[Any]:
                with self._span(name, metadata, context):
                    async for reply in behaviour(request, context):
                        yield reply

            return _MAKERS[kind](
                answer_many, handler.request_deserializer, handler.response_serializer
            )

        async def answer(request: Any, context: _Context) -> Any:
            with self._span(name, metadata, context):
                return await behaviour(request, context)

        return _MAKERS[kind](answer, handler.request_deserializer, handler.response_serializer)

    @contextmanager
    def _span(self, name: str, metadata: tuple[Any, ...], context: _Context) -> Iterator[Span]:
        about = dict(metadata)
        span = self._tracer.start_span(
            name,
            context_in(metadata),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "predump.migration_id": str(about.get("migration-id", "")),
            },
        )
        try:
            yield span
        except asyncio.CancelledError:  # how a source ends a stream that it needs no more
            span.set_attribute("predump.cancelled", True)
            raise
        except BaseException as error:  # of the handler, and raised again
            span.set_status(StatusCode.ERROR, str(context.details() or type(error).__name__))
            raise
        finally:
            span.end()
