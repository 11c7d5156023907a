"""Rewards of a group: from services and functions, weighted, shaped, and gold beside them.

A reward is a finite float or it is missing. Unfinished responses are scored as they are and pay a
penalty for the missing EOS: to leave them out would reward running on.
"""

import asyncio
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from transformers import PreTrainedTokenizerBase

from reward_model.encode import Message
from reward_model.errors import SumzeroError, UsageError
from service.client import RewardClient, RewardError
from trainer.rloo.config import Reward, Source
from trainer.rloo.detached import run_detached
from trainer.rloo.failures import first_cause
from trainer.rloo.get_reward import GetReward, speaks_get_reward
from trainer.rloo.samples import Sample

Scores = tuple[float | None, ...]
GOLD = "gold"


class RewardSource(Protocol):
    """Scores the responses to one prompt; None where a score cannot be had."""

    async def score(self, messages: Sequence[Message], samples: Sequence[Sample]) -> Scores: ...

    async def aclose(self) -> None: ...


class ServiceReward:
    """A reward service; all responses to a prompt go in one request."""

    def __init__(self, client: RewardClient, truncation: str) -> None:
        self._client = client
        self._truncation = truncation

    async def score(self, messages: Sequence[Message], samples: Sequence[Sample]) -> Scores:
        responses = [sample.text for sample in samples]
        prompt = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
        try:
            groups = await self._client.score_groups(
                [prompt], [responses], truncation=self._truncation
            )
        except ExceptionGroup as group:
            cause = first_cause(group)
            if isinstance(cause, RewardError):
                raise SumzeroError(f"reward: {cause}") from cause
            raise
        return tuple(groups[0])

    async def aclose(self) -> None:
        await self._client.aclose()


class FunctionReward:
    """A Python function ``f(prompts, completions)``; plain ones run in a thread.

    Raises:
        SumzeroError: it took longer than ``timeout`` seconds, or gave another number of scores.
    """

    def __init__(self, name: str, function: Callable[..., Any], timeout: float) -> None:
        self._name = name
        self._function = function
        self._timeout = timeout

    async def score(self, messages: Sequence[Message], samples: Sequence[Sample]) -> Scores:
        responses = [sample.text for sample in samples]
        arguments = ([list(messages)] * len(responses), responses)
        try:
            async with asyncio.timeout(self._timeout):
                if inspect.iscoroutinefunction(self._function):
                    scores = await self._function(*arguments)
                else:
                    scores = await run_detached(self._function, *arguments)
        except TimeoutError:
            raise SumzeroError(
                f"reward function {self._name} gave no scores within {self._timeout:g} s"
            ) from None
        if len(scores) != len(responses):
            raise SumzeroError(
                f"reward function {self._name} gave {len(scores)} scores for {len(responses)} "
                "completions"
            )
        return tuple(_finite(score) for score in scores)

    async def aclose(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Scored:
    """``rewards``: shaped, what the baseline is made of. ``measured``: raw, by source name."""

    rewards: Scores
    measured: Mapping[str, Scores]


class Rewards:
    """All sources of a run. An asynchronous context manager that closes them."""

    def __init__(
        self,
        settings: Reward,
        sources: Mapping[str, RewardSource],
        gold: RewardSource | None = None,
    ) -> None:
        self._settings = settings
        self._sources = dict(sources)
        self._weights = {source.name: source.weight for source in settings.all_sources}
        self._gold = gold

    @classmethod
    def open(cls, settings: Reward, tokenizer: PreTrainedTokenizerBase | None = None) -> "Rewards":
        """Connect to what ``settings`` name. ``tokenizer``: the policy's, for ``/get_reward``."""
        gold = None
        if settings.gold_url is not None:
            gold = _connect(settings, settings.gold_url, settings.gold_model, tokenizer)
        return cls(
            settings,
            {source.name: _open(settings, source, tokenizer) for source in settings.all_sources},
            gold,
        )

    async def score(self, messages: Sequence[Message], samples: Sequence[Sample]) -> Scored:
        """Score the samples of one prompt."""
        sources = dict(self._sources) | ({} if self._gold is None else {GOLD: self._gold})
        scores = await asyncio.gather(
            *(source.score(messages, samples) for source in sources.values())
        )
        measured = dict(zip(sources, scores, strict=True))
        rewards = tuple(
            self._shape([measured[name][place] for name in self._sources], sample)
            for place, sample in enumerate(samples)
        )
        return Scored(rewards, measured)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for source in (*self._sources.values(), *([] if self._gold is None else [self._gold])):
            await source.aclose()

    def _shape(self, scores: Sequence[float | None], sample: Sample) -> float | None:
        total = 0.0
        for weight, score in zip(self._weights.values(), scores, strict=True):
            if score is None:
                return None
            total += weight * score
        return shape(total, sample, self._settings)


def shape(raw: float, sample: Sample, settings: Reward) -> float:
    """((raw - mean) / scale, clipped) - missing-EOS penalty - length penalty * tokens."""
    reward = (raw - settings.mean) / settings.scale
    if settings.clip is not None:
        reward = min(max(reward, settings.clip[0]), settings.clip[1])
    if not sample.ended:
        reward -= settings.missing_eos_penalty
    return reward - settings.length_penalty * len(sample.token_ids)


def _finite(score: Any) -> float | None:
    if score is None:
        return None
    number = float(score)
    return number if math.isfinite(number) else None


def _open(
    settings: Reward, source: Source, tokenizer: PreTrainedTokenizerBase | None
) -> RewardSource:
    if source.url is not None:
        return _connect(settings, source.url, source.model, tokenizer)
    assert source.function is not None
    module, _, name = source.function.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"reward.sources: {source.function}: {error}; give module:name") from None
    return FunctionReward(source.function, function, settings.timeout)


def _connect(
    settings: Reward,
    url: str | list[str],
    model: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> RewardSource:
    """The project's own ``POST /score``, or OpenRLHF's dialect where the URL names it."""
    if speaks_get_reward(url):
        assert tokenizer is not None
        return GetReward(url, tokenizer, timeout=settings.timeout)
    client = RewardClient(url, model=model, api_key=settings.api_key, timeout=settings.timeout)
    return ServiceReward(client, settings.truncation)
