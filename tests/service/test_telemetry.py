"""Spans that a collector receives, and what is not in them."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.embedded import EmbeddedScorer
from service.settings import ServiceSettings
from service.telemetry import Tracing

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(HTTPServer):
    """An OTLP collector that keeps the bodies it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[bytes] = []


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


async def test_one_span_per_request_and_no_text_in_it(
    collector: Collector,
    scorer: EmbeddedScorer,
    settings: ServiceSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    url = f"http://127.0.0.1:{collector.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    app = create_app(scorer, settings.model_copy(update={"telemetry": True}))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://service"
    ) as http:
        await http.get("/health")
        await http.post(
            "/get_reward?token=hidden",
            json={"query": ["private words"]},
            headers={"traceparent": PARENT},
        )
        await http.post("/score", json={"items": []})
    tracing = next(one for one in app.user_middleware if one.cls is Tracing)
    tracing.kwargs["provider"].shutdown()  # sends what is left
    assert collector.bodies
    spans: list[Any] = []
    for body in collector.bodies:
        assert b"private" not in body
        assert b"hidden" not in body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            assert names["service.name"] == "sumzero"
            spans += [span for scope in resource.scope_spans for span in scope.spans]
    assert [span.name for span in spans] == ["POST /get_reward", "POST /score"]
    first = {a.key: a.value for a in spans[0].attributes}
    assert spans[0].trace_id.hex() == PARENT.split("-")[1]
    assert first["http.response.status_code"].int_value == 200
    assert first["sumzero.model"].string_value == "tiny"
    assert first["sumzero.tokens"].int_value > 0
    second = {a.key: a.value for a in spans[1].attributes}
    assert second["http.response.status_code"].int_value == 422


async def test_it_is_off_by_default(scorer: EmbeddedScorer, settings: ServiceSettings) -> None:
    assert all(one.cls is not Tracing for one in create_app(scorer, settings).user_middleware)
