"""Traces without nodes: where spans go, what travels, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)
from opentelemetry.trace import INVALID_SPAN, get_current_span

from livemigration.errors import BadRequest
from livemigration.observe.endpoint import metrics_endpoint
from livemigration.observe.metrics import SourceMetrics
from livemigration.observe.tracing import MISSING, context_in, tracing
from livemigration.service import CannotListen

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector of OpenTelemetry's protocol that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def collector() -> Iterator[tuple[str, Collector]]:
    server = grpc.server(ThreadPoolExecutor(1))
    kept = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", kept
    finally:
        server.stop(None).wait()


def test_a_collector_gets_the_spans_over_otlp() -> None:
    with collector() as (url, kept), tracing(url, role="source", host_id="a") as traces:
        trace = traces.migration("m1", [("traceparent", PARENT), ("binary-bin", b"\0")])
        trace.step("round 0")
        trace.note(pages_sent=7)
        trace.end("")

    step, whole = kept.spans
    assert [step.name, whole.name] == ["round 0", "migration"]
    assert whole.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c", "the caller's trace goes on"
    assert whole.parent_span_id.hex() == "b7ad6b7169203331"
    assert (step.trace_id, step.parent_span_id) == (whole.trace_id, whole.span_id)
    assert {a.key: a.value.int_value for a in step.attributes}["predump.pages_sent"] == 7


def test_a_collector_that_is_not_there_costs_the_spans_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with tracing("http://127.0.0.1:9", role="source", host_id="a") as traces:
        trace = traces.migration("m1", ())
        trace.end("")
    assert caplog.records, "the exporter says that it could not send"


def test_what_calls_carry_leads_back_to_the_step(tmp_path: Path) -> None:
    target = tmp_path / "spans.jsonl"
    with tracing(str(target), role="source", host_id="a") as traces:
        trace = traces.migration("m1", ())
        trace.step("verify")
        carried = trace.metadata()
        trace.end("the destination is lost")

    found = get_current_span(context_in(carried)).get_span_context()
    step, whole = (json.loads(line) for line in target.read_text().splitlines())
    assert int(step["context"]["span_id"], 16) == found.span_id
    assert int(whole["context"]["trace_id"], 16) == found.trace_id
    assert whole["status"] == {
        "status_code": "ERROR",
        "description": "the destination is lost",
    }


@pytest.mark.parametrize("sent", ["", "rubbish", "00-0-0-00", PARENT[:-3], "ff" + PARENT[2:]])
def test_a_peers_context_that_is_none_is_ignored(sent: str) -> None:
    assert get_current_span(context_in([("traceparent", sent)])) is INVALID_SPAN


@pytest.mark.parametrize(
    ("target", "hint"),
    [("http://collector", "4317"), ("ftp://x:1", "4317"), ("http://x:port", "4317")],
)
def test_a_target_that_is_no_collector_is_refused_in_one_line(target: str, hint: str) -> None:
    with pytest.raises(BadRequest, match=hint) as caught, tracing(target, role="x", host_id="a"):
        pass
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(BadRequest, match="No such file"),
        tracing(str(tmp_path / "none" / "x"), role="x", host_id="a"),
    ):
        pass


def test_without_opentelemetry_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "livemigration.observe.exporters", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(BadRequest) as caught, tracing("-", role="x", host_id="a"):
        pass
    assert str(caught.value) == MISSING
    with tracing("", role="x", host_id="a") as traces:  # nothing is asked for, nothing is needed
        assert traces.migration("m1", ()).metadata() == ()


def test_metrics_on_a_port_that_is_taken_are_refused_in_one_line() -> None:
    registry = SourceMetrics(host_id="a", version="0").registry
    with collector() as (url, _):
        address = url.removeprefix("http://")
        with (
            pytest.raises(CannotListen, match=r"cannot listen on 127\.0\.0\.1:"),
            metrics_endpoint(address, registry),
        ):
            pass
