"""Spans of one migration, joined across both hosts by what travels in the calls' metadata.

The source opens a span for the migration and, below it, one for each step as it begins; what it
calls at the destination carries the W3C trace context of the step, so that the destination's spans
(livemigration.observe.calls) belong to the same trace. A caller that traces can put its own context
into the metadata of Migrate. Spans have real times, whatever the migration's clock; that clock's
reading is an attribute.

OpenTelemetry is an extra, ``predump[otel]``: it is imported here when tracing is asked for, never
before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, Protocol

from livemigration.errors import BadRequest

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

Metadata = tuple[tuple[str, str], ...]
"""As gRPC takes it."""

Value = str | int | float | bool

LEAVE_S: Final = 3.0
"""How long a node that ends waits for what it still has to hand on."""

MISSING: Final = "tracing needs OpenTelemetry: pip install 'predump[otel]'"


class MigrationTrace(Protocol):
    """The spans of one migration at its source. No method blocks or raises."""

    def step(self, name: str, **attributes: Value) -> None:
        """The step before is over, this one begins."""

    def note(self, **attributes: Value) -> None:
        """Something about the step that began last."""

    def end(self, error: str, **attributes: Value) -> None:
        """The migration is over; `error` is empty if it went well."""

    def metadata(self) -> Metadata:
        """What calls made now carry to the destination."""
        ...


class Untraced:
    """Where nobody traces."""

    def step(self, name: str, **attributes: Value) -> None: ...

    def note(self, **attributes: Value) -> None: ...

    def end(self, error: str, **attributes: Value) -> None: ...

    def metadata(self) -> Metadata:
        """Nothing."""
        return ()


class _Spans:
    """The spans, opened and ended one after the other."""

    def __init__(self, tracer: Tracer, migration_id: str, parent: Context | None) -> None:
        self._tracer = tracer
        self._id = migration_id
        self._whole = tracer.start_span("migration", parent, attributes=self._attributes({}))
        self._step: Span | None = None

    def step(self, name: str, **attributes: Value) -> None:
        from opentelemetry.trace import set_span_in_context

        if self._step is not None:
            self._step.end()
        self._step = self._tracer.start_span(
            name, set_span_in_context(self._whole), attributes=self._attributes(attributes)
        )

    def note(self, **attributes: Value) -> None:
        if self._step is not None:
            self._step.set_attributes(self._prefixed(attributes))

    def end(self, error: str, **attributes: Value) -> None:
        from opentelemetry.trace import StatusCode

        if self._step is not None:
            self._step.end()
            self._step = None
        self._whole.set_attributes(self._prefixed(attributes))
        if error:
            self._whole.set_status(StatusCode.ERROR, error)
        else:
            self._whole.set_status(StatusCode.OK)
        self._whole.end()

    def metadata(self) -> Metadata:
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        span = self._step if self._step is not None else self._whole
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
        return tuple(carrier.items())

    def _attributes(self, more: Mapping[str, Value]) -> dict[str, Value]:
        return {"predump.migration_id": self._id, **self._prefixed(more)}

    def _prefixed(self, attributes: Mapping[str, Value]) -> dict[str, Value]:
        return {f"predump.{name}": value for name, value in attributes.items()}


class Tracing:
    """A node's tracing: makes the traces of its migrations. Without a tracer, none."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self.tracer = tracer

    def migration(
        self, migration_id: str, metadata: Iterable[tuple[str, str | bytes]] | None
    ) -> MigrationTrace:
        """Opens the span of a migration, below the caller's if `metadata` names one."""
        if self.tracer is None:
            return Untraced()
        return _Spans(self.tracer, migration_id, context_in(metadata))


def context_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> Context:
    """The trace context that a call came with; an empty one if none, or none that is valid."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
    return TraceContextTextMapPropagator().extract(carrier, Context())


@contextmanager
def tracing(target: str, *, role: str, host_id: str) -> Iterator[Tracing]:
    """Tracing to `target` (see `livemigration.observe.exporters`) while the context lasts.

    Nothing is traced for an empty target. Leaving hands on what is finished, for `LEAVE_S` at
    most. Raises `BadRequest`, one line, without OpenTelemetry or for a target that cannot be.
    """
    if not target:
        yield Tracing()
        return
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        from livemigration.observe.exporters import processor_for
    except ImportError as error:
        raise BadRequest(MISSING) from error
    resource = Resource.create(
        {
            "service.name": f"predump-{role}",
            "service.version": version("predump"),
            "service.instance.id": host_id,
        }
    )
    # Of this node alone, not the process' own: nothing global, and nodes can share a process.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(processor_for(target))
    try:
        yield Tracing(provider.get_tracer("predump", version("predump")))
    finally:
        # A collector that does not answer would hold up a node that is told to stop.
        last = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(LEAVE_S)
