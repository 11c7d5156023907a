"""The server around the app: the port, the door, and clients that go away. Over real sockets."""

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx
import pytest
import pytest_asyncio
import uvicorn

from reward_model.errors import UsageError
from reward_model.model import RewardModel, RewardOutput
from reward_model.packing import PackedBatch
from service.app import create_app
from service.embedded import EmbeddedScorer
from service.gate import Gate
from service.server import bind
from service.settings import ServiceSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

ITEM = {"items": [{"token_ids": [5, 6, 7]}]}
OTHER = {"items": [{"token_ids": [8, 9]}]}


class Running:
    """A uvicorn server on a free port over a scorer of its own."""

    def __init__(self, scorer: EmbeddedScorer, settings: ServiceSettings) -> None:
        self.scorer, self.gate = scorer, Gate()
        app = create_app(scorer, settings, metrics=scorer.metrics, gate=self.gate)
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        port = self.listener.getsockname()[1]
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)
        self.task = asyncio.create_task(self.server._serve([self.listener]))

    @property
    def queued_tokens(self) -> float | None:
        return self.scorer.metrics.registry.get_sample_value(
            "sumzero_queue_tokens", {"model": "tiny"}
        )

    async def close(self) -> None:
        await self.http.aclose()
        self.server.should_exit = True
        await self.task


@pytest_asyncio.fixture(loop_scope="module")
async def running(own_scorer: EmbeddedScorer, settings: ServiceSettings) -> AsyncIterator[Running]:
    running = Running(own_scorer, settings)
    yield running
    await running.close()


@contextmanager
def held(model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """Every forward waits for one release of the semaphore; at the end all go through."""
    real, released = model.forward, threading.Semaphore(0)

    def forward(packed: PackedBatch) -> RewardOutput:
        assert released.acquire(timeout=30)
        return real(packed)

    monkeypatch.setattr(model, "forward", forward)
    yield released
    monkeypatch.undo()
    released.release(100)


async def until(condition: object, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def test_a_client_that_goes_away_frees_its_place(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="service")
    with held(running.scorer.replica("tiny").model, monkeypatch) as released:
        first = asyncio.create_task(running.http.post("/score", json=ITEM))
        await until(lambda: running.gate.inside == 1 and running.queued_tokens == 0)
        gone = asyncio.create_task(running.http.post("/score", json=OTHER))
        await until(lambda: running.queued_tokens == 2)
        gone.cancel()
        await until(lambda: running.queued_tokens == 0)
        await until(lambda: running.gate.inside == 1)
        released.release()
        assert (await first).status_code == 200
    statuses = [r.__dict__["fields"]["status"] for r in caplog.records if "fields" in r.__dict__]
    assert statuses == [499, 200]


async def test_status_routes_answer_while_a_forward_runs(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(running.scorer.replica("tiny").model, monkeypatch) as released:
        scoring = asyncio.create_task(running.http.post("/score", json=ITEM))
        await until(lambda: running.gate.inside == 1)
        for path in ("/health", "/ready", "/metrics", "/v1/models"):
            assert (await running.http.get(path)).status_code == 200
        assert not scoring.done()
        released.release()
        assert (await scoring).status_code == 200


async def test_a_full_queue_is_429_with_retry_after_and_then_there_is_room(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = running.scorer.batcher("tiny")
    batcher.max_queue_tokens = 100
    with held(running.scorer.replica("tiny").model, monkeypatch) as released:
        bodies = [{"items": [{"token_ids": [n] * 60}]} for n in range(3)]
        accepted = [asyncio.create_task(running.http.post("/score", json=bodies[0]))]
        await until(lambda: running.gate.inside == 1 and running.queued_tokens == 0)
        accepted.append(asyncio.create_task(running.http.post("/score", json=bodies[1])))
        await until(lambda: running.queued_tokens == 60)
        refused = await running.http.post("/score", json=bodies[2])
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "queue_full"
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["details"]["queued_tokens"] == 60
        released.release(2)
        assert [(await task).status_code for task in accepted] == [200, 200]
        released.release()
        assert (await running.http.post("/score", json=bodies[2])).status_code == 200


async def test_more_requests_than_may_be_inside_are_429(
    own_scorer: EmbeddedScorer, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(own_scorer, settings.model_copy(update={"max_requests": 1}))
    with held(own_scorer.replica("tiny").model, monkeypatch) as released:
        first = asyncio.create_task(running.http.post("/score", json=ITEM))
        await until(lambda: running.gate.inside == 1)
        refused = await running.http.post("/score", json=OTHER)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert refused.json()["error"]["type"] == "queue_full"
        assert (await running.http.get("/ready")).status_code == 200
        released.release()
        assert (await first).status_code == 200
    assert (await running.http.post("/score", json=OTHER)).status_code == 200
    await running.close()


async def test_a_closed_gate_lets_out_and_not_in(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(running.scorer.replica("tiny").model, monkeypatch) as released:
        inside = asyncio.create_task(running.http.post("/score", json=ITEM))
        await until(lambda: running.gate.inside == 1)
        running.gate.close()
        late = await running.http.post("/score", json=ITEM)
        assert late.status_code == 503
        assert late.json()["error"]["type"] == "unavailable"
        assert late.headers["Connection"] == "close"
        ready = await running.http.get("/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "shutting down")
        assert (await running.http.get("/health")).status_code == 200
        emptied = asyncio.create_task(running.gate.wait_empty())
        await asyncio.sleep(0)
        assert not emptied.done()
        released.release()
        answer = await inside
        await emptied
    assert answer.status_code == 200
    assert answer.headers["Connection"] == "close"


async def test_every_answer_carries_the_id_that_the_log_has(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="service")
    answer = await running.http.post("/score", json=ITEM)
    identity = answer.headers["X-Request-Id"]
    assert answer.json()["id"] == identity
    assert caplog.records[-1].__dict__["fields"]["id"] == identity


async def test_a_taken_port_and_an_unknown_host_are_usage_errors() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"{port}.*choose another --port"):
            bind("127.0.0.1", port).__enter__()
    with pytest.raises(UsageError, match="cannot listen on"):
        bind("no-such-host.invalid", 0).__enter__()
