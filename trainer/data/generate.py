"""Responses from any vLLM or other OpenAI-compatible server.

    python -m trainer.data.generate --prompts prompts.jsonl --out unseen.jsonl \\
        --url http://HOST:8001/v1 --model my-model --n 4

Reads rows with a ``prompt`` (text or messages) in any form of :mod:`trainer.data.responses`, and
writes the scored format without gold; ``trainer.data.label`` adds that. Connection errors, 429 and
5xx are tried again until ``timeout``; a prompt that the server refuses (400, 413, 422) is left out
and counted. A killed run goes on where it stopped.
"""

import asyncio
import random
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from pydantic import Field

from reward_model.command import Settings, run
from reward_model.errors import SumzeroError
from trainer.data.journal import Journal
from trainer.data.responses import PromptResponses, prompt_key, read_responses
from trainer.urls import Url

REFUSED_PROMPT = frozenset({400, 413, 422})


class GenerateSettings(Settings):
    """Who answers which prompts, and how."""

    prompts: str = Field(description="rows with a prompt: a JSONL or Parquet file, or a hub name")
    split: str = Field(default="train", description="split of a hub data set")
    limit: int | None = Field(default=None, gt=0, description="the first so many prompts")
    out: Path = Field(description="JSONL file to write")
    url: Url = Field(description="base URL with /v1: POST URL/chat/completions is asked")
    model: str = Field(description="the model's name at the server, and in the file")
    api_key: str | None = None
    n: int = Field(default=1, gt=0, description="responses per prompt")
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=1024, gt=0)
    at_once: int = Field(default=32, gt=0, description="prompts under way at the same time")
    timeout: float = Field(default=600.0, gt=0, description="seconds for one prompt, all attempts")


class _RefusedError(Exception):
    """The server will not answer this one prompt."""


def generate(settings: GenerateSettings) -> dict[str, int]:
    """Ask for every response; return the counts that are printed.

    Raises:
        SumzeroError: the server stays away, or refuses everything; what is done is kept.
    """
    prompts, _ = read_responses([settings.prompts], split=settings.split)
    prompts = prompts[: settings.limit]
    told = settings.model_dump(mode="json", exclude={"out", "api_key", "at_once", "timeout"})
    journal = Journal(settings.out, told)
    waiting = [one for one in prompts if prompt_key(one.prompt) not in journal.done]
    try:
        asyncio.run(_generate_all(waiting, settings, journal))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        journal.close()
    rows, refused, unfinished = [], 0, 0
    for one in prompts:
        done = journal.done[prompt_key(one.prompt)]
        unfinished += done["unfinished"]
        if not done["texts"]:
            refused += 1
            continue
        row = PromptResponses(one.prompt_id, one.prompt).row()
        row["responses"] = [{"model": settings.model, "text": text} for text in done["texts"]]
        rows.append(row)
    count = journal.finish(rows)
    return {"prompts": count, "refused": refused, "cut_at_max_tokens": unfinished}


async def _generate_all(
    waiting: list[PromptResponses], settings: GenerateSettings, journal: Journal
) -> None:
    headers = {} if settings.api_key is None else {"authorization": f"Bearer {settings.api_key}"}
    slots = asyncio.Semaphore(settings.at_once)
    async with (
        httpx.AsyncClient(headers=headers, timeout=settings.timeout) as http,
        asyncio.TaskGroup() as tasks,
    ):
        for one in waiting:
            await slots.acquire()
            task = tasks.create_task(_generate(one, http, settings, journal))
            task.add_done_callback(lambda _: slots.release())


async def _generate(
    one: PromptResponses, http: httpx.AsyncClient, settings: GenerateSettings, journal: Journal
) -> None:
    body = {
        "model": settings.model,
        "messages": [dict(turn) for turn in one.prompt],
        "n": settings.n,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_tokens,
    }
    try:
        choices = await _ask(http, settings, body)
    except _RefusedError:
        journal.add(prompt_key(one.prompt), {"texts": [], "unfinished": 0})
        return
    texts = [choice["message"]["content"] or "" for choice in choices]
    unfinished = sum(choice.get("finish_reason") == "length" for choice in choices)
    journal.add(prompt_key(one.prompt), {"texts": texts, "unfinished": unfinished})


async def _ask(
    http: httpx.AsyncClient, settings: GenerateSettings, body: dict[str, Any]
) -> list[dict[str, Any]]:
    """The choices of one completion, with full jitter between attempts."""
    url = settings.url.rstrip("/") + "/chat/completions"
    deadline = time.monotonic() + settings.timeout
    attempt = 0
    while True:
        try:
            response = await http.post(url, json=body)
            met = f"status {response.status_code}"
            if response.status_code in REFUSED_PROMPT:
                raise _RefusedError
            if response.is_success:
                choices: list[dict[str, Any]] = response.json()["choices"]
                return choices
            if response.status_code != 429 and response.status_code < 500:
                raise SumzeroError(f"url: {url} answers {met}: check url, model and api_key")
        except httpx.TransportError as error:
            met = type(error).__name__
        except (ValueError, KeyError):
            raise SumzeroError(f"url: {url} is no OpenAI-compatible server") from None
        pause = random.uniform(0, min(15.0, 0.25 * 2**attempt))
        if time.monotonic() + pause > deadline:
            raise SumzeroError(f"url: {url}: no answer ({met}); give the command again to go on")
        await asyncio.sleep(pause)
        attempt += 1


def _command(settings: GenerateSettings) -> None:
    counts = generate(settings)
    print(f"{settings.out}:", ", ".join(f"{name} {count}" for name, count in counts.items()))


def main() -> int:
    return run(GenerateSettings, _command, prog="python -m trainer.data.generate")


if __name__ == "__main__":
    sys.exit(main())
