"""Real HTTP servers that speak vLLM's and the reward service's language and take a set time."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TRANSFER = (
    "init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update",
)  # fmt: skip


class VllmDouble:
    """vLLM's endpoints with samples out of thin air; every call is noted.

    ``seconds``: how long a completion takes. ``failures``: statuses to answer the next completions
    with; ``refusals``: the next weights. ``version``: what it holds; a restart of the real server
    resets it to ``default``.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.failures: list[int] = []
        self.aborts = 0
        self.version = "default"
        self.publish_seconds = 0.0
        self.calls: list[str] = []
        self.bodies: list[dict] = []
        self.transfers: list[tuple[str, dict]] = []
        self.refusals: list[int] = []

    def app(self) -> Starlette:
        routes = [
            Route("/health", self._nothing),
            Route("/v1/models", self._models),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/weight_info", self._weight_info),
            Route("/update_weight_version", self._set_version, methods=["POST"]),
        ]
        for name in ("pause", "resume", "reset_prefix_cache", "collective_rpc"):
            routes.append(Route(f"/{name}", self._note, methods=["POST"]))
        for name in TRANSFER:
            routes.append(Route(f"/{name}", self._transfer, methods=["POST"]))
        return Starlette(routes=routes)

    async def _nothing(self, request: Request) -> Response:
        return Response()

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"data": [{"id": "policy", "max_model_len": 4096}]})

    async def _weight_info(self, request: Request) -> Response:
        return JSONResponse({"weight_version": self.version})

    async def _transfer(self, request: Request) -> Response:
        name = request.url.path[1:]
        self.calls.append(name)
        if body := await request.body():
            self.transfers.append((name, json.loads(body)))
        if self.refusals and name == "update_weights":
            return JSONResponse({"error": "as told"}, status_code=self.refusals.pop())
        return JSONResponse({"message": "done"})

    async def _set_version(self, request: Request) -> Response:
        self.version = (await request.json())["new_version"]
        self.calls.append(f"version {self.version}")
        return JSONResponse({"success": True})

    async def _note(self, request: Request) -> Response:
        call = request.url.path[1:]
        if call == "pause":
            call += f" {request.query_params.get('mode', 'abort')}"
        if call == "collective_rpc":
            body = await request.json()
            call = f"{body['method']} {body['kwargs']['weights_path'].rsplit('/', 1)[1]}"
            await asyncio.sleep(self.publish_seconds)
        self.calls.append(call)
        return JSONResponse({})

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        held = int(self.version) if self.version.isdigit() else 0
        await asyncio.sleep(self.seconds)
        if self.failures:
            return JSONResponse({"error": "as told"}, status_code=self.failures.pop())
        reason = "stop"
        if self.aborts:
            self.aborts, reason = self.aborts - 1, "abort"
        tokens = [10 + held, 6, 2]  # the first token tells which weights wrote it
        choices = [
            {
                "index": n,
                "text": "the server's own",
                "token_ids": tokens,
                "logprobs": {"token_logprobs": [-1.0] * len(tokens)},
                "finish_reason": reason,
            }
            for n in reversed(range(body["n"]))
        ]
        return JSONResponse({"choices": choices})


class ScoreDouble:
    """``POST /score`` with set scores after ``seconds``."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/score", self._score, methods=["POST"])])

    async def _score(self, request: Request) -> Response:
        items = (await request.json())["items"]
        await asyncio.sleep(self.seconds)
        results = []
        for item in items:
            count = len(item["responses"])
            results.append(
                {
                    "scores": [float(n) for n in range(count)],
                    "errors": [None] * count,
                    "num_tokens": [1] * count,
                    "truncated": [False] * count,
                }
            )
        return JSONResponse({"model_version": "sha256:0", "results": results})


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """Serve ``app`` on a free port in a thread; yield its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
