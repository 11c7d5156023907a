"""Where rewards come from: a checkpoint in this process, or a reward URL."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from reward_model.encode import Message, Truncation
from reward_model.errors import ItemError, SumzeroError, UsageError
from reward_model.model import RewardModel
from reward_model.scoring import batches, default_batch_tokens
from service.client import RewardClient, RewardError
from trainer.evaluation.config import EvaluationSettings

Conversation = Sequence[Message] | str
"""Turns that end with the response, or text that is already templated."""


@dataclass(frozen=True, eq=False)
class Scores:
    """One reward per conversation, None where there is none; ``hidden_NH`` only from a checkpoint
    and only for those that have one, in order."""

    rewards: list[float | None]
    hidden_NH: Tensor | None = None


class Source(Protocol):
    """Anything that scores conversations that end with the response."""

    name: str
    model_version: str | None

    def score(self, conversations: Sequence[Conversation]) -> Scores: ...


class CheckpointSource:
    """A reward model loaded into this process."""

    def __init__(
        self,
        model: RewardModel,
        name: str,
        *,
        truncation: Truncation,
        max_batch_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.name = name
        self.model_version = model.model_version
        self.truncation: Truncation = truncation
        self.max_batch_tokens = max_batch_tokens or default_batch_tokens(model.device, model.dtype)

    @torch.inference_mode()
    def score(self, conversations: Sequence[Conversation]) -> Scores:
        rewards: list[float | None] = [None] * len(conversations)
        readable = [
            (index, ids)
            for index, turns in enumerate(conversations)
            if (ids := self._tokenise(turns)) is not None
        ]
        hidden = []
        sequences = [ids for _, ids in readable]
        for run in batches(sequences, self.max_batch_tokens, share_prefix=self.model.causal):
            part = [readable[place] for place in run]
            output = self.model(self.model.pack([ids for _, ids in part]))
            hidden.append(output.hidden_NH.float().cpu())
            for (index, _), reward in zip(part, output.rewards_N.tolist(), strict=True):
                rewards[index] = reward if math.isfinite(reward) else None
        return Scores(rewards, torch.cat(hidden) if hidden else None)

    def _tokenise(self, turns: Conversation) -> tuple[int, ...] | None:
        try:
            if isinstance(turns, str):
                return self.model.encoder.text(turns, self.truncation).token_ids
            return self.model.encoder.messages(turns, self.truncation).token_ids
        except ItemError:
            return None


class UrlSource:
    """A served reward model."""

    def __init__(self, client: RewardClient, *, truncation: Truncation) -> None:
        self.client = client
        self.name = client.model or client.urls[0]
        self.model_version: str | None = None
        self.truncation = truncation

    def score(self, conversations: Sequence[Conversation]) -> Scores:
        items = [_item(turns) for turns in conversations]
        try:
            results = self.client.score_sync(items, truncation=self.truncation)
        except RewardError as error:
            raise SumzeroError(f"url: {error}") from error
        versions = {result.model_version for result in results}
        if len(versions | ({self.model_version} - {None})) > 1:
            raise SumzeroError("url: the served model changed during the evaluation; run it again")
        self.model_version = versions.pop() if versions else self.model_version
        return Scores([result.scores[0] for result in results])


def _item(turns: Conversation) -> dict[str, Any]:
    if isinstance(turns, str):
        return {"text": turns}
    return {"messages": [dict(turn) for turn in turns]}


def open_source(settings: EvaluationSettings) -> Source:
    """The source that ``settings`` name.

    Raises:
        CheckpointError: the directory is no reward model.
    """
    if settings.checkpoint is None:
        client = RewardClient(settings.url, model=settings.model, api_key=settings.api_key)
        return UrlSource(client, truncation=settings.truncation)
    if not settings.checkpoint.is_dir():
        raise UsageError(f"checkpoint: {settings.checkpoint}: no such directory")
    model = RewardModel.load(settings.checkpoint, dtype=settings.dtype, device=settings.device)
    return CheckpointSource(
        model,
        settings.checkpoint.name,
        truncation=settings.truncation,
        max_batch_tokens=settings.max_batch_tokens,
    )
