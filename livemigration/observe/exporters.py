"""Where finished spans go: a collector over OTLP, or JSON lines in a file or on standard error.

``http://HOST:PORT`` (or https) is a collector that takes OTLP over gRPC, usually port 4317; `-` is
standard error; anything else names a file, to which lines are added. What a collector does not take
in time is dropped: spans wait in a bounded queue and are sent by a thread of their own.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TextIO
from urllib.parse import urlsplit

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

from livemigration.errors import BadRequest

_log = logging.getLogger(__name__)

EXPORT_S: Final = 2
"""How long a collector may take for a batch: a node that is told to stop waits no longer."""


class JsonLinesExporter(SpanExporter):
    """One JSON object per finished span, in OpenTelemetry's own form."""

    def __init__(self, stream: TextIO, *, close: bool) -> None:
        self._stream = stream
        self._close = close

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """A disk that is full costs the spans, never the migration."""
        try:
            for span in spans:
                self._stream.write(json.dumps(json.loads(span.to_json())) + "\n")
            self._stream.flush()
        except (OSError, ValueError) as error:
            _log.warning("spans could not be written: %s", error)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Closes a file of ours."""
        if self._close:
            self._stream.close()


def processor_for(target: str) -> SpanProcessor:
    """What brings spans to `target`; `BadRequest`, one line, if it cannot be."""
    if "://" in target:
        return BatchSpanProcessor(_collector(target), export_timeout_millis=EXPORT_S * 1000)
    if target == "-":
        return SimpleSpanProcessor(JsonLinesExporter(sys.stderr, close=False))
    try:
        stream = Path(target).open("a", encoding="utf-8")  # noqa: SIM115 - the exporter closes it
    except OSError as error:
        raise BadRequest(f"traces {target}: cannot be written: {error.strerror}") from error
    return SimpleSpanProcessor(JsonLinesExporter(stream, close=True))


def _collector(url: str) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise BadRequest(
            "traces to a collector need its exporter: pip install 'predump[otel]'"
        ) from error
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port
    except ValueError:
        named = None
    if not named:
        raise BadRequest(f"traces {url}: is no collector; write http://HOST:PORT, e.g. port 4317")
    return OTLPSpanExporter(endpoint=url, insecure=parts.scheme == "http", timeout=EXPORT_S)
