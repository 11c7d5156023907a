"""The gold reward behind ``POST /score``, so that a run can measure what it does not train on."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from trainer.demo.gold import gold

MODEL_VERSION = "gold"


class GoldServer:
    """Serves :func:`trainer.demo.gold.gold` on a free local port while the ``with`` block runs.

    It answers the ``prompt`` + ``responses`` and ``messages`` forms of ``POST /score``, and
    ``GET /ready``.
    """

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="gold")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _score(items: list[dict[str, Any]]) -> dict[str, Any]:
    results = score_items(items)
    tokens = sum(sum(result["num_tokens"]) for result in results)
    return {
        "id": "gold",
        "model": "gold",
        "model_version": MODEL_VERSION,
        "results": results,
        "usage": {"tokens": tokens, "computed_tokens": tokens},
        "timing_ms": {"queue": 0.0, "tokenize": 0.0, "forward": 0.0},
    }


def score_items(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ``results`` of a ``/score`` answer.

    Raises:
        ValueError: an item of another form, or without a user's turn.
    """
    return [_score_item(item) for item in items]


def _score_item(item: dict[str, Any]) -> dict[str, Any]:
    if "messages" in item:
        *turns, answer = item["messages"]
        prompt, responses = _user_text(turns), [answer["content"]]
    elif {"prompt", "responses"} <= item.keys():
        prompt, responses = _user_text(item["prompt"]), item["responses"]
    else:
        raise ValueError("items: the gold server takes prompt + responses, or messages")
    return {
        "scores": [gold(prompt, response) for response in responses],
        "errors": [None] * len(responses),
        "num_tokens": [len(response.split()) for response in responses],
        "truncated": [False] * len(responses),
    }


def _user_text(prompt: str | list[dict[str, str]]) -> str:
    if isinstance(prompt, str):
        return prompt
    turns = [message["content"] for message in prompt if message["role"] == "user"]
    if not turns:
        raise ValueError("prompt: no user's turn")
    return turns[-1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200 if self.path in ("/ready", "/health") else 404, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/score":
            self._answer(404, _error("not_found", "only POST /score is served"))
            return
        try:
            answer = _score(json.loads(body)["items"])
        except (ValueError, KeyError, TypeError) as error:
            self._answer(422, _error("invalid_request", str(error)))
            return
        self._answer(200, answer)

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a request is not worth a line, and its text is the user's."""


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, "details": None}}
