"""Served scores against the statistics of training."""

import math
from pathlib import Path

import httpx
import numpy as np
import pytest

from reward_model.contract import RewardStats
from reward_model.model import RewardModel
from service.app import create_app
from service.drift import ScoreDrift
from service.embedded import EmbeddedScorer
from service.metrics import Metrics
from service.settings import ModelSettings, ServiceSettings

STATS = RewardStats(mean=1.0, std=2.0, n=100, split="train")


def test_the_first_window_is_a_plain_average() -> None:
    scores = np.random.default_rng(0).normal(4.0, 3.0, 500)
    drift = ScoreDrift(STATS)
    drift.add(scores.tolist())
    assert drift.shift == pytest.approx((scores.mean() - 1.0) / 2.0)
    assert drift.spread == pytest.approx(scores.std() / 2.0)


def test_old_scores_are_forgotten() -> None:
    """Mean by hand: 0, then 1/2 of the way to 8 with each new score."""
    drift = ScoreDrift(STATS, window=2)
    drift.add([0.0, 0.0, 8.0, 8.0])
    assert drift.shift == pytest.approx((6.0 - 1.0) / 2.0)
    drift.add([8.0] * 60)
    assert drift.shift == pytest.approx(3.5)
    assert drift.spread == pytest.approx(0.0, abs=1e-6)


def test_one_score_tells_nothing() -> None:
    drift = ScoreDrift(STATS)
    drift.add([5.0])
    assert math.isnan(drift.shift)
    assert math.isnan(drift.spread)


async def test_metrics_show_it_for_models_with_statistics(checkpoint: Path, tmp_path: Path) -> None:
    model = RewardModel.load(checkpoint)
    model.save(tmp_path / "known", model.contract.model_copy(update={"stats": STATS}))
    settings = ServiceSettings(
        model=(
            ModelSettings(name="known", path=tmp_path / "known"),
            ModelSettings(name="unknown", path=checkpoint),
        )
    )
    scorer = EmbeddedScorer(settings, Metrics())
    await scorer.load()
    transport = httpx.ASGITransport(create_app(scorer, settings, metrics=scorer.metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        scores: list[float] = []
        for name in ("known", "unknown"):
            items = [{"prompt": "Hi", "responses": ["Bread.", "Cake.", "No."]}, {"text": ""}]
            answer = await http.post("/score", json={"model": name, "items": items})
            scores = scores or answer.json()["results"][0]["scores"]
        text = (await http.get("/metrics")).text
    shift = (np.mean(scores) - STATS.mean) / STATS.std
    lines = [line for line in text.splitlines() if line.startswith("sumzero_score_")]
    assert [line.split(" ")[0] for line in lines] == [
        'sumzero_score_shift{model="known"}', 'sumzero_score_spread{model="known"}',
    ]  # fmt: skip
    assert float(lines[0].split()[-1]) == pytest.approx(shift)
    assert float(lines[1].split()[-1]) == pytest.approx(np.std(scores) / STATS.std)
    await scorer.close()
