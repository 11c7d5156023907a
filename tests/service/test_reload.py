"""A model's directory read anew while the service runs."""

import asyncio
import gc
import weakref
from pathlib import Path

import httpx
import pytest

from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from service.app import create_app
from service.embedded import EmbeddedScorer
from service.inputs import Text
from service.metrics import Metrics
from service.scoring import ScoringPath
from service.settings import ModelSettings, ServiceSettings
from tests.checkpoints import tiny_checkpoint

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = {"items": [{"text": "the river"}]}


async def loaded(path: Path) -> tuple[EmbeddedScorer, ServiceSettings]:
    settings = ServiceSettings(model=(ModelSettings(name="m", path=path),))
    scorer = EmbeddedScorer(settings, Metrics())
    await scorer.load()
    return scorer, settings


def client(scorer: EmbeddedScorer, settings: ServiceSettings) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(scorer, settings, metrics=scorer.metrics))
    return httpx.AsyncClient(transport=transport, base_url="http://service")


def point(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


async def test_the_new_version_answers_and_the_old_series_ends(
    checkpoint: Path, tmp_path: Path
) -> None:
    link, new = tmp_path / "link", tiny_checkpoint(tmp_path / "new", "qwen2", seed=5)
    point(link, checkpoint)
    scorer, settings = await loaded(link)
    async with client(scorer, settings) as http:
        before = (await http.post("/score", json=BODY)).json()
        point(link, new)
        await scorer.reload()
        after = (await http.post("/score", json=BODY)).json()
        await asyncio.gather(*scorer._retiring)
        metrics = (await http.get("/metrics")).text
    assert before["model_version"] != after["model_version"]
    model = RewardModel.load(link)
    assert after["model_version"] == model.model_version
    ids = model.encoder.text("the river").token_ids
    assert after["results"][0]["scores"] == score_token_ids(model, [ids])
    assert metrics.count("sumzero_model_info{") == 1
    await scorer.close()


async def test_the_old_model_is_freed_without_the_garbage_collector(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Which no longer looks at what was loaded first: :mod:`service.garbage`."""
    link, new = tmp_path / "link", tiny_checkpoint(tmp_path / "new", "qwen2", seed=5)
    point(link, checkpoint)
    scorer, settings = await loaded(link)
    old = weakref.ref(scorer.replica("m").model)
    async with client(scorer, settings) as http:
        assert (await http.post("/score", json=BODY)).is_success
        point(link, new)
        gc.collect()
        gc.disable()
        try:
            await scorer.reload()
            await asyncio.gather(*scorer._retiring)
            await asyncio.sleep(0)
            assert (await http.post("/score", json=BODY)).is_success
            assert old() is None
        finally:
            gc.enable()
    await scorer.close()


async def test_the_same_version_and_a_broken_directory_change_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    point(link, checkpoint)
    scorer, _ = await loaded(link)
    seat = scorer.batcher("m")
    await scorer.reload()
    assert scorer.batcher("m") is seat
    point(link, tmp_path / "nothing")
    await scorer.reload()
    assert scorer.batcher("m") is seat
    await scorer.close()


async def test_tokens_made_for_the_old_version_are_made_anew(
    checkpoint: Path, tmp_path: Path
) -> None:
    """The other architecture may have another tokenizer, whose ids the new model would misread."""
    link, new = tmp_path / "link", tiny_checkpoint(tmp_path / "new", "llama", seed=5)
    point(link, checkpoint)
    scorer, _ = await loaded(link)
    path = ScoringPath(scorer, scorer.metrics)
    old = scorer.models()["m"]
    point(link, new)
    await scorer.reload()
    answer = await path.score(old, [Text("the river")], truncation="error", timeout=60)
    model = RewardModel.load(link)
    assert answer.served.version == answer.model_version == model.model_version
    assert answer.outcomes == score_token_ids(model, [model.encoder.text("the river").token_ids])
    await scorer.close()
