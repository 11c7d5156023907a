"""OpenTelemetry: one span per request, off unless ``--telemetry``.

Where spans go is said in OpenTelemetry's own variables (``OTEL_EXPORTER_OTLP_ENDPOINT`` and so on).
A span holds what a log line holds: route template, status, model, counts and times. The ready-made
instrumentation also sends query strings, and with them keys, so it is not used here.
"""

import os
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from reward_model.errors import UsageError
from service.access import QUIET

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


def tracer_provider() -> "TracerProvider":
    """Sends spans by OTLP over HTTP, in batches, from a thread of its own.

    Raises:
        UsageError: the packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise UsageError(
            "telemetry: OpenTelemetry is not installed; pip install 'sumzero[telemetry]'"
        ) from None
    own = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "sumzero"}
    resource = Resource.create(own)
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """ASGI middleware inside :class:`service.access.Access`, whose log fields it reads."""

    def __init__(self, app: ASGIApp, provider: "TracerProvider") -> None:
        self._app = app
        self._tracer = provider.get_tracer("sumzero.service")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET:
            await self._app(scope, receive, send)
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode

        status = 500

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        carrier = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        with self._tracer.start_as_current_span(
            scope["method"],
            context=extract(carrier),
            kind=SpanKind.SERVER,
            # An exception's text may quote what it was given.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                await self._app(scope, receive, noting)
            finally:
                route = getattr(scope.get("route"), "path", "unknown")
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.request.method", scope["method"])
                span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", status)
                for name, value in scope["state"]["log"].items():
                    span.set_attribute(f"sumzero.{name}", value)
                if status >= 500:
                    span.set_status(Status(StatusCode.ERROR))
