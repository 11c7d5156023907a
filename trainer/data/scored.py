"""Prompts with several responses, each with a gold score."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reward_model.errors import UsageError
from trainer.data.preferences import Conversation, RowError, parse_prompt
from trainer.data.rows import Row, read_rows


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """One response, the model that wrote it, and its gold score."""

    model: str
    text: str
    gold: float


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """A prompt and its responses."""

    prompt_id: str
    prompt: Conversation
    responses: tuple[ScoredResponse, ...]


def read_scored(source: str, *, split: str = "train") -> list[ScoredPrompt]:
    """All prompts of a file or hub data set in the scored format.

    Raises:
        UsageError: no prompt at all, or a row that is not in the format; names source and row.
    """
    prompts: list[ScoredPrompt] = []
    for number, row in enumerate(read_rows(source, split), start=1):
        try:
            prompts.append(_parse(row, number))
        except RowError as fault:
            raise UsageError(f"{source}: row {number}: {fault}") from None
    if not prompts:
        raise UsageError(f"{source}: no scored prompt in it")
    return prompts


def _parse(row: Row | None, number: int) -> ScoredPrompt:
    if row is None:
        raise RowError("broken", "not a JSON object")
    responses = row.get("responses")
    if not isinstance(responses, list) or not responses:
        raise RowError("broken", "responses is missing or not a list")
    return ScoredPrompt(
        prompt_id=str(row.get("prompt_id", number)),
        prompt=parse_prompt(row.get("prompt")),
        responses=tuple(_response(entry) for entry in responses),
    )


def _response(entry: Any) -> ScoredResponse:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("text"), str):
        raise RowError("broken", "a response has no text")
    gold = entry.get("gold")
    if isinstance(gold, bool) or not isinstance(gold, int | float) or not math.isfinite(gold):
        raise RowError("broken", "a response's gold is not a finite number")
    return ScoredResponse(str(entry.get("model", "")), entry["text"], float(gold))
