"""One log line and one count per request, in place of uvicorn's access log.

A line holds the route's template, not the path and never the query string.
"""

import logging
import random
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from service.answers import error_response
from service.errors import InternalError
from service.logs import FIELDS, log_fault
from service.metrics import Metrics

logger = logging.getLogger("service.access")

QUIET = frozenset({"/health", "/ready", "/metrics"})
"""Asked every few seconds by machines; logged only when the answer is not 200."""

_ids = random.Random()
"""Seeded by the operating system once; uuid4 asks it for every request, which takes 0.01 ms."""


class Access:
    """ASGI middleware, the outermost: request id, metrics, log line, and the last catch."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0
        request_id = f"{_ids.getrandbits(128):032x}"
        state = scope.setdefault("state", {})
        state["request_id"], state["log"] = request_id, {}

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                identity = (b"x-request-id", request_id.encode())
                message["headers"] = [*message.get("headers", []), identity]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            log_fault(logger, "a request failed", error)
            if status == 0:
                failed = InternalError("a fault of the service; its log says where")
                await error_response(failed)(scope, receive, noting)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.count_request(route, status, seconds)
        if route in QUIET and status == 200:
            return
        fields = {
            "id": scope["state"]["request_id"],
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 1),
            **scope["state"]["log"],
        }
        logger.info("request", extra={FIELDS: fields})
