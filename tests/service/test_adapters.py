"""The callables for other trainers, against a real service on a real port."""

import asyncio
import inspect
import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from service import adapters
from service.adapters import TrlReward, compute_score
from service.app import create_app
from service.client import RewardError
from service.embedded import EmbeddedScorer
from service.metrics import Metrics
from service.settings import ServiceSettings

CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def url(settings: ServiceSettings) -> Iterator[str]:
    """A service on its own loop in its own thread, as a trainer would meet it."""
    started, ended = threading.Event(), threading.Event()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    async def serve() -> None:
        scorer = EmbeddedScorer(settings, Metrics())
        await scorer.load()
        app = create_app(scorer, settings)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server._serve([listener]))
        started.set()
        await asyncio.to_thread(ended.wait)
        server.should_exit = True
        await serving
        await scorer.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(60)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    ended.set()
    thread.join(60)


def alone(model: RewardModel, response: str) -> float:
    ids = model.encoder.prompt_response("Hi", response).token_ids
    return score_token_ids(model, [ids], share_prefix=False)[0]


def test_trl_takes_it_for_an_async_function_and_can_send_it_to_a_worker(url: str) -> None:
    reward = TrlReward(url).score
    assert inspect.iscoroutinefunction(reward)
    assert reward.__name__
    copy = pickle.loads(pickle.dumps(reward))
    assert len(asyncio.run(copy(["Hi"], ["there"]))) == 1


async def test_trl_texts_and_conversations(url: str, model: RewardModel) -> None:
    reward = TrlReward(url).score
    wanted = [alone(model, "a"), alone(model, "b")]
    columns: dict[str, Any] = {"completion_ids": [[1], [2]], "trainer_state": None}
    assert await reward(["Hi", "Hi"], ["a", "b"], **columns) == wanted
    completions = [[{"role": "assistant", "content": text}] for text in "ab"]
    assert await reward([CHAT, CHAT], completions, **columns) == wanted


async def test_trl_gets_none_for_what_has_no_score(url: str, model: RewardModel) -> None:
    scores = await TrlReward(url).score(["Hi", "Hi"], ["word " * 9000, "b"])
    assert scores == [None, alone(model, "b")]


async def test_trl_gets_none_when_the_service_stays_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gone = TrlReward("http://127.0.0.1:1", timeout=0.2)
    assert await gone.score(["Hi", "Hi"], ["secret", "b"]) == [None, None]
    assert "no scores for a batch of 2" in caplog.text
    assert "secret" not in caplog.text


async def test_verl(url: str, model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    score = await compute_score("data", "a", None, {"prompt": "Hi"}, url=url)
    assert score == {"score": alone(model, "a")}
    monkeypatch.setenv("SUMZERO_REWARD_URL", url)
    assert await compute_score("data", "a", None, {"prompt": CHAT}, index=3) == score
    with pytest.raises(RewardError, match="tokens"):
        await compute_score("data", "word " * 9000, None, {"prompt": "Hi"})


async def test_verl_without_url_or_prompt_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUMZERO_REWARD_URL", raising=False)
    with pytest.raises(ValueError, match="SUMZERO_REWARD_URL"):
        await compute_score("data", "a", None, {"prompt": "Hi"})
    with pytest.raises(ValueError, match="prompt"):
        await compute_score("data", "a", None, {}, url="http://127.0.0.1:1")


async def test_it_stands_alone(tmp_path: Path) -> None:
    """verl loads it by its path; it may not rest on being imported as part of a package."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("somewhere", adapters.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert inspect.iscoroutinefunction(module.compute_score)
