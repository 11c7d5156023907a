"""Adapters as models of their own: one backbone in memory, nothing mixed."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from reward_model.errors import CheckpointError
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from service.app import create_app
from service.embedded import EmbeddedScorer
from service.metrics import Metrics
from service.settings import ServiceSettings
from tests.adapters import peft_scores, tiny_adapter
from tests.checkpoints import tiny_checkpoint

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = ("base", "a", "b")
SEQUENCES = [[5 + (7 * n + place) % 300 for place in range(3 + 11 * n)] for n in range(12)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("adapters")
    base = tiny_checkpoint(directory / "base", "qwen2", seed=3)
    a = tiny_adapter(directory / "a", base, seed=1)
    return {"base": base, "a": a, "b": tiny_adapter(directory / "b", base, seed=2, r=2)}


def settings_of(*models: str) -> ServiceSettings:
    return ServiceSettings.model_validate({"model": models})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(paths: dict[str, Path]) -> AsyncIterator[EmbeddedScorer]:
    settings = settings_of(*(f"{name}={paths[name]}" for name in NAMES))
    scorer = EmbeddedScorer(settings, Metrics())
    await scorer.load()
    yield scorer
    await scorer.close()


def pointers(scorer: EmbeddedScorer, name: str) -> dict[str, int]:
    parameters = scorer.replica(name).model.named_parameters()
    return {key: parameter.data_ptr() for key, parameter in parameters}


async def test_one_backbone_in_memory(served: EmbeddedScorer) -> None:
    base, a, b = (pointers(served, name) for name in NAMES)
    backbone = [name for name in base if "score" not in name]
    assert len(backbone) > 20
    assert all(base[name] == a[name] == b[name] for name in backbone)
    assert len({one["classifier.score.weight"] for one in (base, a, b)}) == 3


async def test_at_once_each_gives_its_own_scores(
    served: EmbeddedScorer, paths: dict[str, Path]
) -> None:
    """Many requests to all three at the same time; every score is the one it has alone."""
    expected = {
        name: [
            score_token_ids(RewardModel.load(paths[name]), [one], share_prefix=False)[0]
            for one in SEQUENCES
        ]
        for name in NAMES
    }
    served._cache._scores.clear()
    requests = [(name, [one]) for one in SEQUENCES for name in NAMES]
    requests += [(name, SEQUENCES[start:]) for start in range(6) for name in NAMES]
    answers = await asyncio.gather(*(served.score(n, part, timeout=60) for n, part in requests))
    for (name, part), answer in zip(requests, answers, strict=True):
        wanted = [expected[name][SEQUENCES.index(one)] for one in part]
        assert list(answer.outcomes) == wanted
    for name in ("a", "b"):
        theirs = peft_scores(paths[name], paths["base"], SEQUENCES)
        assert expected[name] == pytest.approx(theirs, abs=1e-5)
    assert expected["a"] != expected["b"]


async def test_each_is_a_model_of_its_own(served: EmbeddedScorer, paths: dict[str, Path]) -> None:
    settings = settings_of(*(f"{name}={paths[name]}" for name in NAMES))
    transport = httpx.ASGITransport(create_app(served, settings, metrics=served.metrics))
    body = {"items": [{"token_ids": [9, 8, 7]}]}
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        listed = (await http.get("/v1/models")).json()["data"]
        ready = (await http.get("/ready")).json()["models"]
        answers = [(await http.post("/score", json={"model": n, **body})).json() for n in NAMES]
        await http.post("/score", json={"model": "a", **body})
        metrics = (await http.get("/metrics")).text
    assert [model["id"] for model in listed] == list(NAMES)
    assert len({model["version"] for model in listed}) == 3
    assert [answer["model_version"] for answer in answers] == [m["version"] for m in listed]
    assert len({answer["results"][0]["scores"][0] for answer in answers}) == 3
    details = [model["details"] for model in listed]
    assert len({one["base_version"] for one in details}) == 1
    assert details[2]["lora"] == "rank 2 on 14 layers, not merged"
    assert "lora" not in details[0]
    assert all(ready[name]["self_test_passed"] for name in NAMES)
    assert 'sumzero_cache_hits_total{model="a"} 1.0' in metrics
    assert 'sumzero_cache_hits_total{model="b"} 0.0' in metrics


async def test_a_new_adapter_goes_on_the_weights_that_are_there(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    """SIGHUP: the changed adapter changes, its neighbours stay, and nothing is loaded twice."""
    link = tmp_path / "link"
    link.symlink_to(paths["a"])
    scorer = EmbeddedScorer(settings_of(f"base={paths['base']}", f"m={link}"), Metrics())
    await scorer.load()
    seat, before = scorer.batcher("base"), pointers(scorer, "base")
    first = scorer.models()["m"].version
    link.unlink()
    link.symlink_to(paths["b"])
    await scorer.reload()
    assert scorer.batcher("base") is seat
    assert scorer.models()["m"].version != first
    after = pointers(scorer, "m")
    assert all(after[name] == before[name] for name in before if "score" not in name)
    expected = score_token_ids(RewardModel.load(paths["b"]), SEQUENCES[:2])
    assert list((await scorer.score("m", SEQUENCES[:2], timeout=60)).outcomes) == expected
    await scorer.close()


async def test_a_new_base_is_a_new_version_of_its_adapters(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", seed=1)
    adapter = tiny_adapter(tmp_path / "a", base)
    scorer = EmbeddedScorer(settings_of(f"a={adapter}"), Metrics())
    await scorer.load()
    first = scorer.models()["a"].version
    shutil.rmtree(base)
    await scorer.reload()  # said in the log
    assert scorer.models()["a"].version == first
    tiny_checkpoint(base, seed=2)
    await scorer.reload()
    assert scorer.models()["a"].version != first
    expected = score_token_ids(RewardModel.load(adapter), SEQUENCES[:2])
    assert list((await scorer.score("a", SEQUENCES[:2], timeout=60)).outcomes) == expected
    await asyncio.gather(*scorer._retiring)
    assert len(scorer._bases._held) == 1
    await scorer.close()


async def test_a_base_that_is_said(paths: dict[str, Path], tmp_path: Path) -> None:
    """By a served model's name or by a directory; a path with @ in it is still a path."""
    moved = tmp_path / "ada@pter"
    shutil.copytree(paths["a"], moved)
    text = (moved / "adapter_config.json").read_text().replace(str(paths["base"]), "some/model")
    (moved / "adapter_config.json").write_text(text)
    settings = settings_of(f"whole={paths['base']}", f"m={moved}@whole", f"n={moved}")
    assert [model.base for model in settings.model] == [None, str(paths["base"]), None]
    assert settings.model[2].path == moved
    expected = score_token_ids(RewardModel.load(paths["a"]), SEQUENCES[:2])
    scorer = EmbeddedScorer(settings_of(f"m={moved}@{paths['base']}"), Metrics())
    await scorer.load()
    assert list((await scorer.score("m", SEQUENCES[:2], timeout=60)).outcomes) == expected
    await scorer.close()
    with pytest.raises(CheckpointError, match="some/model is no directory here"):
        await EmbeddedScorer(settings_of(str(moved)), Metrics()).load()
    with pytest.raises(CheckpointError, match="is no adapter"):
        await EmbeddedScorer(settings_of(f"{paths['base']}@{moved}"), Metrics()).load()
