"""The door that closes when the process is asked to end: what is inside is still answered."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from service.answers import error_response
from service.errors import QueueFull, Unavailable


class Gate:
    """Counts requests inside; once closed, new ones are told to go elsewhere."""

    def __init__(self) -> None:
        self.closed = False
        self.inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def close(self) -> None:
        self.closed = True

    async def wait_empty(self) -> None:
        await self._empty.wait()

    def enter(self) -> None:
        self.inside += 1
        self._empty.clear()

    def leave(self) -> None:
        self.inside -= 1
        if self.inside == 0:
            self._empty.set()


class GateKeeper:
    """ASGI middleware around a :class:`Gate`. Reading (GET) is never refused.

    While ``max_requests`` are inside, further ones are answered 429 before a byte of their bodies
    is read, so that bodies in flight cannot fill the memory. Answers given after closing carry
    ``Connection: close``, so that a kept-alive connection is not cut under a client's next request.
    """

    def __init__(self, app: ASGIApp, gate: Gate, max_requests: int) -> None:
        self._app = app
        self._gate = gate
        self._max_requests = max_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def closing(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and self._gate.closed:
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        if self._gate.closed and scope["method"] == "POST":
            error = Unavailable("the service is shutting down")
            await error_response(error)(scope, receive, closing)
            return
        if self._gate.inside >= self._max_requests and scope["method"] == "POST":
            full = QueueFull(f"as many requests as may be ({self._max_requests}) are inside")
            await error_response(full)(scope, receive, closing)
            return
        self._gate.enter()
        try:
            await self._app(scope, receive, closing)
        finally:
            self._gate.leave()
