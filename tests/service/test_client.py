"""RewardClient against real HTTP servers: scripted ones for faults, and a real service."""

import asyncio
import json
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import uvicorn

from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from service import client as client_module
from service.app import create_app
from service.client import RequestRefused, RewardClient, RewardError, RewardTimeout
from service.embedded import EmbeddedScorer
from service.metrics import Metrics
from service.settings import ServiceSettings

Reply = tuple[int, dict[str, str], Any]
"""Status, headers, JSON body (a string is sent as it is)."""


def scored(body: dict[str, Any]) -> Reply:
    """What a service answers: the number of characters as the score."""
    results = []
    for item in body["items"]:
        texts = item.get("responses", [item.get("text", "")])
        scores = [float(len(text)) for text in texts]
        nulls = [None] * len(texts)
        results.append({"scores": scores, "errors": nulls, "num_tokens": [1] * len(texts)})
    return 200, {}, {"results": results, "model_version": "sha256:0"}


def failed(status: int, headers: dict[str, str] | None = None) -> Reply:
    error = {"type": "some_type", "message": "some message", "details": {}}
    return status, headers or {}, {"error": error}


class Scripted:
    """A real HTTP server that answers each request as ``script(number, body)`` says."""

    def __init__(self, script: Callable[[int, dict[str, Any]], Reply], port: int = 0) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.inside = self.most_inside = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.times.append(time.monotonic())
                    outer.inside += 1
                    outer.most_inside = max(outer.most_inside, outer.inside)
                status, headers, answer = script(number, body)
                with lock:
                    outer.inside -= 1
                if status == 0:  # cut the connection
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


Start = Callable[..., Scripted]


@pytest.fixture
def start() -> Iterator[Start]:
    servers: list[Scripted] = []

    def start(script: Callable[[int, dict[str, Any]], Reply], port: int = 0) -> Scripted:
        servers.append(Scripted(script, port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_SECONDS", 0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_groups_come_back_in_order_and_shape(start: Start) -> None:
    server = start(lambda n, body: scored(body))
    async with RewardClient(server.url) as client:
        groups = [["a", "bb"], [], ["ccc"] * 70, ["dddd"]]
        prompts = ["p", [{"role": "user", "content": "q"}], "r", "s"]
        scores = await client.score_groups(prompts, groups)
    assert scores == [[1.0, 2.0], [], [3.0] * 70, [4.0]]
    assert len(server.requests) > 1
    # Requests are sent side by side: which arrives first is not said.
    items = [item for body in server.requests for item in body["items"]]
    assert items.count({"prompt": "p", "responses": ["a", "bb"]}) == 1
    assert all(0 < body["timeout_ms"] <= 180_000 for body in server.requests)


async def test_no_items_need_no_server() -> None:
    async with RewardClient("http://127.0.0.1:1") as client:
        assert await client.score([]) == []
        assert await client.score_groups([], []) == []


async def test_a_failed_item_is_none_and_says_why(start: Start) -> None:
    def script(number: int, body: dict[str, Any]) -> Reply:
        status, headers, answer = scored(body)
        answer["results"][0]["scores"] = [None]
        answer["results"][0]["errors"] = [{"type": "too_long", "message": "9 tokens"}]
        return status, headers, answer

    async with RewardClient(start(script).url) as client:
        result = (await client.score([{"text": "a"}]))[0]
    assert result.scores == [None]
    assert result.errors == [{"type": "too_long", "message": "9 tokens"}]
    assert result.model_version == "sha256:0"


@pytest.mark.parametrize("status", [0, 429, 502, 503, 504])
async def test_what_may_pass_is_tried_again(start: Start, status: int) -> None:
    server = start(lambda n, body: failed(status) if n < 3 else scored(body))
    async with RewardClient(server.url) as client:
        assert (await client.score([{"text": "ab"}]))[0].scores == [2.0]
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
async def test_a_4xx_is_final(start: Start, status: int) -> None:
    server = start(lambda n, body: failed(status))
    async with RewardClient(server.url) as client:
        with pytest.raises(RequestRefused, match="some message") as refused:
            await client.score([{"text": "ab"}])
    assert (refused.value.status, refused.value.type) == (status, "some_type")
    assert len(server.requests) == 1


async def test_a_fault_of_the_server_is_loud(start: Start) -> None:
    server = start(lambda n, body: failed(500))
    async with RewardClient(server.url) as client:
        with pytest.raises(RewardError, match="500"):
            await client.score([{"text": "ab"}])
    assert len(server.requests) == 1


async def test_a_200_without_scores_is_an_error(start: Start) -> None:
    server = start(lambda n, body: (200, {}, "<html>welcome</html>"))
    async with RewardClient(server.url) as client:
        with pytest.raises(RewardError, match="scoring service"):
            await client.score([{"text": "ab"}])


async def test_retry_after_is_honoured(start: Start) -> None:
    refusal = failed(429, {"Retry-After": "1"})
    server = start(lambda n, body: refusal if n == 0 else scored(body))
    async with RewardClient(server.url) as client:
        await client.score([{"text": "ab"}])
    assert server.times[1] - server.times[0] >= 1.0


async def test_the_deadline_ends_the_attempts_and_tells_the_last_word(start: Start) -> None:
    server = start(lambda n, body: failed(503))
    async with RewardClient(server.url, timeout=0.5) as client:
        with pytest.raises(RewardTimeout, match="503 some message"):
            await client.score([{"text": "ab"}])
    assert len(server.requests) > 1
    # What is left of the deadline goes along, so that nobody computes for the gone.
    timeouts = [request["timeout_ms"] for request in server.requests]
    assert timeouts == sorted(timeouts, reverse=True)
    assert timeouts[0] <= 500


async def test_a_silent_server_is_given_up_at_the_deadline(start: Start) -> None:
    held = threading.Event()
    server = start(lambda n, body: (held.wait(20), scored(body))[1])
    async with RewardClient(server.url, timeout=0.3) as client:
        with pytest.raises(RewardTimeout):
            await client.score([{"text": "ab"}])
    held.set()


async def test_several_urls_share_the_load(start: Start) -> None:
    first, second = (start(lambda n, body: (time.sleep(0.02), scored(body))[1]) for _ in "ab")
    async with RewardClient([first.url, second.url]) as client:
        await asyncio.gather(*(client.score([{"text": "a"}]) for _ in range(20)))
    assert min(len(first.requests), len(second.requests)) >= 5


async def test_a_dead_url_is_stood_in_for(start: Start) -> None:
    alive = start(lambda n, body: scored(body))
    urls = [f"http://127.0.0.1:{free_port()}", alive.url]
    async with RewardClient(urls) as client:
        results = await asyncio.gather(*(client.score([{"text": "abc"}]) for _ in range(20)))
    assert [result[0].scores for result in results] == [[3.0]] * 20


async def test_a_restart_loses_nothing(start: Start) -> None:
    port = free_port()
    async with RewardClient(f"http://127.0.0.1:{port}") as client:
        asking = asyncio.create_task(client.score([{"text": "abc"}]))
        await asyncio.sleep(0.1)
        start(lambda n, body: scored(body), port)
        assert (await asking)[0].scores == [3.0]


async def test_the_in_flight_cap_holds(start: Start) -> None:
    server = start(lambda n, body: (time.sleep(0.01), scored(body))[1])
    async with RewardClient(server.url, max_in_flight=3) as client:
        await asyncio.gather(*(client.score([{"text": "a"}]) for _ in range(30)))
    assert server.most_inside <= 3
    assert len(server.requests) == 30


async def test_model_key_and_options_are_sent(start: Start) -> None:
    server = start(lambda n, body: scored(body))
    async with RewardClient(server.url + "/", model="bsr", api_key="k") as client:
        await client.score([{"text": "a"}], truncation="left", normalize=True)
    assert server.headers[0]["Authorization"] == "Bearer k"
    body = server.requests[0]
    assert (body["model"], body["truncation"], body["normalize"]) == ("bsr", "left", True)


def test_code_without_an_event_loop(start: Start) -> None:
    server = start(lambda n, body: scored(body))
    client = RewardClient(server.url)
    assert client.score_sync([{"text": "ab"}])[0].scores == [2.0]
    assert client.score_groups_sync(["p"], [["a", "bb"]]) == [[1.0, 2.0]]
    client.close()


async def test_the_sync_methods_work_inside_a_loop_too(start: Start) -> None:
    server = start(lambda n, body: scored(body))
    client = RewardClient(server.url)
    assert client.score_sync([{"text": "ab"}])[0].scores == [2.0]
    client.close()


def test_one_client_serves_several_loops_and_survives_pickling(start: Start) -> None:
    server = start(lambda n, body: scored(body))
    client = RewardClient(server.url, model="m", timeout=9.0)
    for _ in range(2):
        assert asyncio.run(client.score([{"text": "ab"}]))[0].scores == [2.0]
    copy = pickle.loads(pickle.dumps(client))
    assert (copy.urls, copy.model, copy.timeout) == ([server.url], "m", 9.0)
    assert asyncio.run(copy.score([{"text": "ab"}]))[0].scores == [2.0]


def test_importing_it_pulls_in_no_web_framework_and_no_torch() -> None:
    heavy = ("fastapi", "starlette", "uvicorn", "torch", "transformers", "ray")
    imports = "import sys, service.client, service.adapters"
    code = f"{imports}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_url_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one URL"):
        RewardClient([])


@pytest.mark.parametrize("url", ["localhost:8000", "127.0.0.1:8000", "ftp://host", "http://", ""])
def test_what_is_no_address_of_a_server_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="no address of a server; write http://HOST:PORT"):
        RewardClient(["http://127.0.0.1:8000", url])


async def test_against_a_real_service(settings: ServiceSettings, model: RewardModel) -> None:
    scorer = EmbeddedScorer(settings, Metrics())
    await scorer.load()
    config = uvicorn.Config(create_app(scorer, settings), log_config=None, port=0, lifespan="off")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        serving = asyncio.create_task(server._serve([listener]))
        async with RewardClient(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            groups = await client.score_groups(["hi", "there"], [["a", "b"], ["c"]])
        server.should_exit = True
        await serving
    await scorer.close()
    pairs = [("hi", "a"), ("hi", "b"), ("there", "c")]
    sequences = [model.encoder.prompt_response(*pair).token_ids for pair in pairs]
    wanted = [score_token_ids(model, [ids], share_prefix=False)[0] for ids in sequences]
    assert groups == [wanted[:2], wanted[2:]]
