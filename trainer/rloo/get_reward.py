"""A reward server that speaks OpenRLHF's ``POST /get_reward``, ours or anybody's.

Asked: ``{"query": [text], "prompts": [text], "labels": [""]}`` with one entry per response; a query
is prompt and response as the policy wrote them, special tokens and all. Answered:
``{"rewards": [float]}``. The dialect has no word for a missing score: an answer of 422 means that
there is none for good, and an entry that is not a finite number is missing.
"""

import asyncio
import math
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx
from transformers import PreTrainedTokenizerBase

from reward_model.encode import Message
from reward_model.errors import SumzeroError
from trainer.rloo.samples import Sample

PATH = "/get_reward"
MAX_IN_FLIGHT = 32
MAX_PAUSE_SECONDS = 5.0
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})


def speaks_get_reward(url: str | Sequence[str]) -> bool:
    """Whether ``reward.url`` names this dialect: its path is ``/get_reward``."""
    urls = [url] if isinstance(url, str) else url
    return any(one.rstrip("/").partition("?")[0].endswith(PATH) for one in urls)


class GetReward:
    """All responses to a prompt go in one request; tried on every URL until the deadline.

    Args:
        tokenizer: the policy's.
        timeout: seconds until the scores of a prompt are given up.
    """

    def __init__(
        self, urls: str | Sequence[str], tokenizer: PreTrainedTokenizerBase, *, timeout: float
    ) -> None:
        self._urls = [urls] if isinstance(urls, str) else list(urls)
        self._tokenizer = tokenizer
        self._timeout = timeout
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._http = httpx.AsyncClient(limits=httpx.Limits(max_connections=None))

    async def score(
        self, messages: Sequence[Message], samples: Sequence[Sample]
    ) -> tuple[float | None, ...]:
        prompt = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
        query = [
            prompt + self._tokenizer.decode(sample.token_ids, skip_special_tokens=False)
            for sample in samples
        ]
        body = {"query": query, "prompts": [prompt] * len(query), "labels": [""] * len(query)}
        async with self._slots:
            return await self._ask(body, len(samples))

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _ask(self, body: dict[str, Any], count: int) -> tuple[float | None, ...]:
        deadline, attempt, reason = time.monotonic() + self._timeout, 0, ""
        while (left := deadline - time.monotonic()) > 0:
            url = self._urls[attempt % len(self._urls)]
            try:
                response = await self._http.post(url, json=body, timeout=left)
            except httpx.TransportError as error:
                reason = f"{_shown(url)}: {type(error).__name__}"
            else:
                if response.status_code == 422:
                    return (None,) * count
                if response.status_code == 200:
                    return _rewards(url, response, count)
                reason = f"{_shown(url)}: {response.status_code}"
                if response.status_code not in _RETRIED:
                    raise SumzeroError(f"reward: {reason}")
            attempt += 1
            if attempt % len(self._urls) == 0:
                pause = random.uniform(0, min(MAX_PAUSE_SECONDS, 0.1 * 2 ** min(attempt, 10)))
                await asyncio.sleep(pause)
        raise SumzeroError(f"reward: no scores within {self._timeout:g} s; last: {reason}")


def _rewards(url: str, response: httpx.Response, count: int) -> tuple[float | None, ...]:
    try:
        rewards = response.json()["rewards"]
        numbers = [None if one is None else float(one) for one in rewards]
    except (ValueError, TypeError, KeyError):
        raise SumzeroError(
            f"reward: {_shown(url)}: answered 200 without a list of rewards; does it speak "
            "OpenRLHF's /get_reward?"
        ) from None
    if len(numbers) != count:
        raise SumzeroError(
            f"reward: {_shown(url)}: gave {len(numbers)} rewards for {count} responses"
        )
    return tuple(one if one is not None and math.isfinite(one) else None for one in numbers)


def _shown(url: str) -> str:
    """Without the query string, which may hold a key."""
    return url.partition("?")[0]
