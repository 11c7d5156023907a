"""Tiny real models behind the real app."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from reward_model.model import RewardModel
from service.app import create_app
from service.embedded import EmbeddedScorer
from service.metrics import Metrics
from service.settings import ModelSettings, ServiceSettings
from tests.checkpoints import tiny_checkpoint

OpenClient = Callable[..., httpx.AsyncClient]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "qwen2", seed=0)


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "other", "llama", seed=1)


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> RewardModel:
    return RewardModel.load(checkpoint)


@pytest.fixture(scope="session")
def settings(checkpoint: Path, other_checkpoint: Path) -> ServiceSettings:
    return ServiceSettings(
        model=(
            ModelSettings(name="tiny", path=checkpoint),
            ModelSettings(name="other", path=other_checkpoint),
        )
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scorer(settings: ServiceSettings) -> AsyncIterator[EmbeddedScorer]:
    """Shared by the tests of a module, which run on one loop and leave it as it was."""
    async for scorer in _loaded(settings):
        yield scorer


@pytest_asyncio.fixture(loop_scope="module")
async def own_scorer(settings: ServiceSettings) -> AsyncIterator[EmbeddedScorer]:
    """For a test that counts or breaks things."""
    async for scorer in _loaded(settings.model_copy(update={"model": settings.model[:1]})):
        yield scorer


async def _loaded(settings: ServiceSettings) -> AsyncIterator[EmbeddedScorer]:
    scorer = EmbeddedScorer(settings, Metrics())
    await scorer.load()
    yield scorer
    await scorer.close()


@pytest.fixture
def open_client(scorer: EmbeddedScorer, settings: ServiceSettings) -> OpenClient:
    """The app with changed settings, asked without a network in between."""

    def open_client(scorer: EmbeddedScorer = scorer, **changes: Any) -> httpx.AsyncClient:
        changed = settings.model_copy(update=changes)
        transport = httpx.ASGITransport(create_app(scorer, changed, metrics=scorer.metrics))
        return httpx.AsyncClient(transport=transport, base_url="http://service")

    return open_client


@pytest_asyncio.fixture(loop_scope="module")
async def http(open_client: OpenClient) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client() as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def own_http(
    open_client: OpenClient, own_scorer: EmbeddedScorer
) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(own_scorer) as client:
        yield client
