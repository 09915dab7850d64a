"""Traces of the API reach a collector, without a line of ours."""

from __future__ import annotations

import gzip
import signal
import sys
from pathlib import Path

import httpx2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from service.settings import Settings
from tests.processes import running_server
from tests.receivers import Message, receiving

INSTRUMENT = (sys.executable, str(Path(sys.executable).with_name("opentelemetry-instrument")))


def test_requests_are_traced_to_a_collector(settings: Settings, token: str) -> None:
    with receiving() as collector:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
        }
        with running_server(settings, INSTRUMENT, variables) as server:
            headers = {"Authorization": f"Bearer {token}"}
            assert httpx2.get(f"{server.url}/scans/scn_unknown", headers=headers).status_code == 404
            server.process.send_signal(signal.SIGINT)  # what is left to send goes out before the end
            server.process.wait(60)
    spans = [span for message in collector.received for span in spans_of(message)]
    (asked,) = (span for span in spans if span.name == "GET /scans/{scan_id}")
    told = {attribute.key: attribute.value for attribute in asked.attributes}
    assert told["http.status_code"].int_value == 404
    assert token.encode() not in b"".join(message.body for message in collector.received)


def spans_of(message: Message) -> list[Span]:
    zipped = message.headers.get("content-encoding") == "gzip"
    request = ExportTraceServiceRequest.FromString(gzip.decompress(message.body) if zipped else message.body)
    return [
        span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans
    ]
