"""A new version of a model under load: SIGHUP, and nobody notices but by the version."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from tests.checkpoints import tiny_checkpoint
from tests.integration.test_service_process import Service, running

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

WORKERS, RESPONSES = 8, ["In Paris.", "On the river.", "No.", "I like cheese."] * 4


def point(link: Path, target: Path) -> None:
    """As a deployment does it: the link is the old one or the new one at any time."""
    new = link.with_name(f"{link.name}.new")
    new.symlink_to(target)
    os.replace(new, link)


async def wait_for(service: Service, words: str) -> None:
    while not any(words in line for line in service.lines):
        await asyncio.sleep(0.05)


def test_every_answer_is_of_one_version(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for seed, path in enumerate((old, new)):  # with a contract, and so the same version anywhere
        RewardModel.load(tiny_checkpoint(tmp_path / str(seed), "qwen2", seed=seed)).save(path)
    link = tmp_path / "current"
    point(link, old)
    with running("--model", f"m={link}", "--cache_mib", 0) as service:
        answers = asyncio.run(_load_while_swapping(service, link, new))
        assert service.end() == 0
    by_version: dict[str, int] = {}
    models = {m.model_version: m for m in (RewardModel.load(old), RewardModel.load(new))}
    assert len(models) == 2
    for question, answer in answers:
        model = models[answer["model_version"]]
        ids = [model.encoder.prompt_response(question, one).token_ids for one in RESPONSES]
        assert answer["results"][0]["scores"] == score_token_ids(model, ids)
        by_version[answer["model_version"]] = by_version.get(answer["model_version"], 0) + 1
    assert min(by_version.get(version, 0) for version in map(str, models)) > 5, by_version
    log = "".join(service.lines)
    assert "old version retired" in log
    assert "not reloaded" in log


async def _load_while_swapping(
    service: Service, link: Path, new: Path
) -> list[tuple[str, dict[str, Any]]]:
    answers: list[tuple[str, dict[str, Any]]] = []
    done = asyncio.Event()

    async def ask(worker: int, http: httpx.AsyncClient) -> None:
        number = 0
        while not done.is_set():
            number += 1
            question = f"Question {worker} {number}?"
            items = [{"prompt": question, "responses": RESPONSES}]
            response = await http.post("/score", json={"items": items}, timeout=60)
            assert response.status_code == 200, response.text
            answers.append((question, response.json()))

    async with httpx.AsyncClient(base_url=service.url) as http, asyncio.TaskGroup() as group:
        for worker in range(WORKERS):
            group.create_task(ask(worker, http))
        await asyncio.sleep(1)
        point(link, new)
        service.process.send_signal(signal.SIGHUP)
        await wait_for(service, "old version retired")
        await asyncio.sleep(0.5)
        point(link, link.with_name("nothing"))
        service.process.send_signal(signal.SIGHUP)
        await wait_for(service, "not reloaded")
        await asyncio.sleep(0.5)
        done.set()
    return answers
